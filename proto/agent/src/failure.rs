//! Why a session failed, as the host can act on it.

use std::fmt;

use crate::wire::{Reader, WireError, Writer};

/// The longest text in bytes.
pub(crate) const TEXT_MAX: usize = 1024;

macro_rules! kinds {
    ($($name:ident = $number:literal, $text:literal, $code:literal, $what:literal;)*) => {
        /// What went wrong, in words that do not change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum FailureKind {
            $(#[doc = $what] $name,)*
        }

        impl FailureKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name for programs.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The exit code of a command that fails so.
            #[must_use]
            pub fn exit_code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            fn number(self) -> u8 {
                match self { $(Self::$name => $number,)* }
            }

            fn of(number: u8) -> Result<Self, WireError> {
                match number {
                    $($number => Ok(Self::$name),)*
                    _ => Err(WireError::Value("kind of failure")),
                }
            }
        }
    };
}

kinds! {
    Version = 1, "version", 125, "No version that both sides speak.";
    Protocol = 2, "protocol", 125, "What the host sent makes no sense.";
    Busy = 3, "busy", 125, "As many sessions as there may be are open.";
    NotFound = 4, "not-found", 127, "The program is not in the guest.";
    NotRunnable = 5, "not-runnable", 126, "The program cannot be executed.";
    User = 6, "user", 125, "The guest has no such user or group.";
    Directory = 7, "directory", 126, "The working directory cannot be entered.";
    Path = 8, "path", 1, "A path to be copied from or to is not there, or is not what it should be.";
    Space = 9, "space", 1, "The guest's disk is full.";
    Archive = 10, "archive", 1, "The archive is malformed.";
    System = 11, "system", 125, "The guest's kernel refused something else.";
}

/// Why a session failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    kind: FailureKind,
    text: String,
}

impl Failure {
    /// A failure of this kind; the text names what it is about and is cut at 1,024 bytes.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        let text: String = text.into();
        let end = (0..=TEXT_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        let text = text.get(..end.unwrap_or_default()).unwrap_or_default();
        let visible = |c: char| if c.is_control() { '?' } else { c };
        Self { kind, text: text.chars().map(visible).collect() }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// With what. No control characters, whoever sent it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn write(&self, kind: u8, out: &mut Vec<u8>) {
        Writer::new(kind, out).u8(self.kind.number()).raw(self.text.as_bytes()).end();
    }

    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, WireError> {
        let kind = FailureKind::of(reader.u8()?)?;
        let text = String::from_utf8_lossy(reader.rest()).into_owned();
        reader.end(Self::new(kind, text))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
