//! A process to be started.
//!
//! Invariant: an [`Exec`] has a program, no NUL byte in a word, a name in every variable, an absolute directory, and fits into a
//! request, whichever side made it.

use crate::REQUEST_MAX;
use crate::wire::{Reader, WireError, Writer};

/// Bytes that the fixed fields need at most.
const FIXED: usize = 64;
const USER_MAX: usize = 256;
const PATH_MAX: usize = 4096;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Size {
    pub(crate) fn write<'a>(self, writer: Writer<'a>) -> Writer<'a> {
        writer.u16(self.columns).u16(self.rows)
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self { columns: reader.u16()?, rows: reader.u16()? })
    }
}

/// What a process's standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdio {
    /// Nothing: the process runs on when the session has ended.
    Detached,
    /// Output and error; input is empty.
    Output,
    /// Input, output and error.
    Pipes,
    /// A terminal of this size, for all three.
    Terminal(Size),
}

/// Why there is no such request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// There is no program.
    #[error("the command is empty")]
    Empty,
    /// A NUL byte ends words.
    #[error("{0} holds a zero byte")]
    Nul(&'static str),
    /// A variable without a name.
    #[error("an environment variable has no name")]
    Variable,
    /// A directory that is not absolute.
    #[error("the working directory is not an absolute path")]
    Directory,
    /// An account's name that is empty or too long.
    #[error("the user's name is empty or longer than {USER_MAX} bytes")]
    User,
    /// Command and environment are too long.
    #[error("command and environment are longer than {} bytes", REQUEST_MAX)]
    Long,
}

/// A process to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    args: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    directory: Option<Vec<u8>>,
    user: Option<String>,
    stdio: Stdio,
}

impl Exec {
    /// `args` exactly as given, the program first, with the environment, directory and user of the guest's main process.
    ///
    /// # Errors
    /// When there is no program, or what is given cannot be.
    pub fn new(args: Vec<Vec<u8>>, stdio: Stdio) -> Result<Self, ExecError> {
        Self { args, env: Vec::new(), directory: None, user: None, stdio }.checked()
    }

    /// With `NAME=VALUE` over the usual environment; of equal names the last counts.
    ///
    /// # Errors
    /// When one has no name or a zero byte.
    pub fn env(mut self, env: Vec<Vec<u8>>) -> Result<Self, ExecError> {
        self.env = env;
        self.checked()
    }

    /// Starting in this directory.
    ///
    /// # Errors
    /// When it is not absolute.
    pub fn directory(mut self, directory: Vec<u8>) -> Result<Self, ExecError> {
        self.directory = Some(directory);
        self.checked()
    }

    /// As this user: `user`, `uid`, `user:group`, `uid:gid`.
    ///
    /// # Errors
    /// When it is empty or too long.
    pub fn user(mut self, user: String) -> Result<Self, ExecError> {
        self.user = Some(user);
        self.checked()
    }

    /// Program and arguments; at least the program.
    #[must_use]
    pub fn args(&self) -> &[Vec<u8>] {
        &self.args
    }

    /// Variables, `NAME=VALUE`.
    #[must_use]
    pub fn variables(&self) -> &[Vec<u8>] {
        &self.env
    }

    /// Where it starts, if that was said.
    #[must_use]
    pub fn working_directory(&self) -> Option<&[u8]> {
        self.directory.as_deref()
    }

    /// Whose it is, if that was said.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Its standard streams.
    #[must_use]
    pub fn stdio(&self) -> Stdio {
        self.stdio
    }

    fn checked(self) -> Result<Self, ExecError> {
        let words = self.args.iter().chain(&self.env);
        let bytes: usize = words.map(|word| word.len() + 4).sum();
        let others =
            self.directory.as_ref().map_or(0, Vec::len) + self.user.as_ref().map_or(0, String::len);
        if bytes + others + FIXED > REQUEST_MAX {
            return Err(ExecError::Long);
        }
        if self.args.first().is_none_or(Vec::is_empty) {
            return Err(ExecError::Empty);
        }
        let nul = |words: &[Vec<u8>]| words.iter().any(|word| word.contains(&0));
        if nul(&self.args) {
            return Err(ExecError::Nul("the command"));
        }
        if nul(&self.env) {
            return Err(ExecError::Nul("the environment"));
        }
        let has_name =
            |word: &Vec<u8>| word.iter().position(|byte| *byte == b'=').is_some_and(|at| at > 0);
        if !self.env.iter().all(has_name) {
            return Err(ExecError::Variable);
        }
        let is_place =
            |path: &Vec<u8>| path.starts_with(b"/") && !path.contains(&0) && path.len() < PATH_MAX;
        if self.directory.as_ref().is_some_and(|path| !is_place(path)) {
            return Err(ExecError::Directory);
        }
        let is_name =
            |user: &String| !user.is_empty() && user.len() <= USER_MAX && !user.contains('\0');
        if self.user.as_ref().is_some_and(|user| !is_name(user)) {
            return Err(ExecError::User);
        }
        Ok(self)
    }

    pub(crate) fn write(&self, kind: u8, out: &mut Vec<u8>) {
        let writer = Writer::new(kind, out).list(self.args.iter()).list(self.env.iter());
        let writer = writer.bytes(self.directory.as_deref().unwrap_or_default());
        let writer = writer.bytes(self.user.as_deref().unwrap_or_default().as_bytes());
        match self.stdio {
            Stdio::Detached => writer.u8(0),
            Stdio::Output => writer.u8(1),
            Stdio::Pipes => writer.u8(2),
            Stdio::Terminal(size) => size.write(writer.u8(3)),
        }
        .end();
    }

    pub(crate) fn read(mut reader: Reader<'_>) -> Result<Self, WireError> {
        let (args, env) = (reader.list()?, reader.list()?);
        let directory = Some(reader.bytes()?.to_vec()).filter(|path| !path.is_empty());
        let user = std::str::from_utf8(reader.bytes()?).map_err(|_| WireError::Value("user"))?;
        let user = Some(user.to_owned()).filter(|user| !user.is_empty());
        let stdio = match reader.u8()? {
            0 => Stdio::Detached,
            1 => Stdio::Output,
            2 => Stdio::Pipes,
            3 => Stdio::Terminal(Size::read(&mut reader)?),
            _ => return Err(WireError::Value("stdio")),
        };
        let exec = Self { args, env, directory, user, stdio };
        reader.end(exec.checked().map_err(|_| WireError::Value("command"))?)
    }
}
