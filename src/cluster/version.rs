//! The cluster version: the lowest minor release that every member speaks. It never goes down here; downgrades come later.

use std::fmt;
use std::str::FromStr;

/// A release, `major.minor.patch`. A cluster version has patch 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Version {
    /// The cluster version before this one: the only one that a cluster may be taken down to. None before the first of a major release.
    pub fn one_below(self) -> Option<Version> {
        Some(Version { minor: self.minor.checked_sub(1)?, patch: 0, ..self })
    }

    /// The cluster version of members that run these releases; none of no members.
    pub fn of_cluster(releases: impl IntoIterator<Item = Version>) -> Option<Version> {
        releases.into_iter().min().map(|lowest| Version { patch: 0, ..lowest })
    }
}

impl FromStr for Version {
    type Err = NotAVersion;

    /// `3.5.1`, `3.5`, and what may follow a `-` or `+` is left out.
    fn from_str(text: &str) -> Result<Version, NotAVersion> {
        let release = text.split(['-', '+']).next().unwrap_or_default();
        let mut numbers = release.split('.').map(|number| {
            let digits = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
            number.parse().ok().filter(|_| digits).ok_or(NotAVersion)
        });
        let major = numbers.next().ok_or(NotAVersion)??;
        let minor = numbers.next().ok_or(NotAVersion)??;
        let patch = numbers.next().unwrap_or(Ok(0))?;
        if numbers.next().is_some() {
            return Err(NotAVersion);
        }
        Ok(Version { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text that is not `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAVersion;

impl fmt::Display for NotAVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a version")
    }
}

impl std::error::Error for NotAVersion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_member_sets_the_cluster_version() {
        let releases = ["3.6.2", "3.5.17-rc.1", "3.10.0"].map(|text| text.parse().unwrap());
        assert_eq!(Version::of_cluster(releases).unwrap().to_string(), "3.5.0");
        assert_eq!(Version::of_cluster([]), None);
        let below = |text: &str| text.parse::<Version>().unwrap().one_below();
        assert_eq!(below("3.6.2"), "3.5.0".parse().ok());
        assert_eq!(below("4.0.1"), None);
        assert_eq!("3.5".parse::<Version>().unwrap().to_string(), "3.5.0");
        for bad in ["", "3", "3.", "3.x", "3.5.1.2", "+3.5", "-1.5", "99999999999.1"] {
            assert_eq!(bad.parse::<Version>(), Err(NotAVersion), "{bad}");
        }
    }
}
