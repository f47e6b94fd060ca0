//! Certificates that nobody vouches for: `--auto-tls`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// More than anybody means; beyond, dates can no longer be written.
const YEARS_MAX: u32 = 1000;

/// A certificate for these hosts and its key, as files of a directory; made now unless they are there. It is for both ends of a
/// connection, and good for so many years from when it is made.
pub fn self_signed(directory: &Path, hosts: &[String], years: u32) -> io::Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if certificate.exists() && key.exists() {
        return Ok((certificate, key));
    }
    let mut params = CertificateParams::new(hosts).map_err(io::Error::other)?;
    let now = SystemTime::now();
    params.not_before = now.into();
    params.not_after = (now + YEAR * years.clamp(1, YEARS_MAX)).into();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::OrganizationName, "everwatch");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let pair = KeyPair::generate().map_err(io::Error::other)?;
    let signed = params.self_signed(&pair).map_err(io::Error::other)?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    write(&key, &pair.serialize_pem())?;
    // Last: who finds both can use them.
    write(&certificate, &signed.pem())?;
    Ok((certificate, key))
}

/// For nobody else to read, whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}
