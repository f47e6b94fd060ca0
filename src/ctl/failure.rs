//! Why a command did not work, with the exit code that etcdctl has for it.

use crate::client;

/// What ends a command early.
#[derive(Debug)]
pub enum Failure {
    /// It was asked how it is used; nothing failed.
    Help(String),
    /// The command line cannot be understood.
    Usage(String),
    /// Something else, as a line on stderr, and an exit code. Without text everything has been said.
    Said {
        /// What is said.
        text: String,
        /// How the process ends.
        code: u8,
    },
}

impl Failure {
    /// It did not work.
    pub(super) fn error(text: impl Into<String>) -> Failure {
        Failure::Said { text: text.into(), code: 1 }
    }

    /// No connection, or none for this user.
    pub(super) fn connection(text: impl Into<String>) -> Failure {
        Failure::Said { text: text.into(), code: 2 }
    }

    /// Input that cannot be understood.
    pub(super) fn bad_input(text: impl Into<String>) -> Failure {
        Failure::Said { text: text.into(), code: 3 }
    }

    /// Something that is not offered.
    pub(super) fn bad_feature(text: impl Into<String>) -> Failure {
        Failure::Said { text: text.into(), code: 4 }
    }

    /// It was interrupted.
    pub(super) fn interrupted(text: impl Into<String>) -> Failure {
        Failure::Said { text: text.into(), code: 5 }
    }

    /// Words that make no sense.
    pub(super) fn bad_arguments(text: impl Into<String>) -> Failure {
        Failure::Said { text: text.into(), code: 128 }
    }

    /// A flag that makes no sense.
    pub(super) fn usage(text: impl Into<String>) -> Failure {
        Failure::Usage(text.into())
    }

    /// Ends the process like this; what was to be said has been said.
    pub(super) fn silent(code: u8) -> Failure {
        Failure::Said { text: String::new(), code }
    }

    /// What is said on stderr.
    pub fn text(&self) -> &str {
        match self {
            Failure::Help(_) => "",
            Failure::Usage(text) | Failure::Said { text, .. } => text,
        }
    }

    /// How the process ends.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Help(_) => 0,
            Failure::Usage(_) => 1,
            Failure::Said { code, .. } => *code,
        }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Failure {
        Failure::error(error.etcd_text())
    }
}

/// Of what backups and files have to say.
impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure::error(text)
    }
}
