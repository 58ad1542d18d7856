//! A process of the sandbox with its streams: pipes, or a pseudo-terminal.
//!
//! Invariant: a process starts as the sandbox's user, in its directory and with its environment, whoever asked for it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use openshell_init::environment::candidates;
use openshell_init::sys::spawn::{Owner, settle};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe;

use crate::children::{Child, Children};
use crate::pty::{Pty, Size, duplicate};

/// What every process of the sandbox has in common.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Where they are reaped.
    pub children: Children,
    /// Whose they are; the supervisor's own when nobody is named.
    pub owner: Option<Owner>,
    /// Where they start.
    pub workdir: PathBuf,
    /// Their environment.
    pub environment: BTreeMap<String, String>,
    /// The user's shell, if the image has one.
    pub shell: Option<PathBuf>,
}

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Program and arguments; never empty.
    pub words: Vec<String>,
    /// More variables.
    pub variables: Vec<(String, String)>,
    /// Another directory to start in.
    pub directory: Option<String>,
    /// What the program is told that its name is.
    pub name: Option<String>,
}

/// The streams of a process.
#[derive(Debug)]
pub enum Streams {
    /// Three pipes.
    Pipes {
        /// What it reads.
        input: pipe::Sender,
        /// What it writes.
        output: pipe::Receiver,
        /// What it writes as errors.
        errors: pipe::Receiver,
    },
    /// A terminal.
    Terminal(Arc<Pty>),
}

/// Why a process cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No such program.
    #[error("{0}: not found")]
    NotFound(String),
    /// The program cannot be executed.
    #[error("{program}: cannot be executed")]
    NotRunnable {
        /// The program.
        program: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its directory cannot be used.
    #[error("{path}: cannot be the working directory")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Pipes or terminal could not be made.
    #[error("no streams for a process")]
    Streams(#[source] io::Error),
}

impl StartError {
    /// What a shell would exit with.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotRunnable { .. } | Self::Directory { .. } | Self::Streams(_) => 126,
        }
    }

    /// With its cause, in one line.
    #[must_use]
    pub fn line(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

impl Sandbox {
    /// Starts a process, on a terminal if `size` is given.
    ///
    /// # Errors
    /// Why not.
    pub fn start(
        &self,
        program: &Program,
        size: Option<Size>,
    ) -> Result<(Child, Streams), StartError> {
        let (name, args) =
            program.words.split_first().ok_or(StartError::NotFound(String::new()))?;
        let mut variables = self.environment.clone();
        variables.extend(program.variables.iter().cloned());
        let directory = match &program.directory {
            Some(directory) => self.workdir.join(directory),
            None => self.workdir.clone(),
        };
        if let Err(source) = std::fs::read_dir(&directory) {
            let missing = source.kind() == io::ErrorKind::NotFound;
            if missing || source.kind() == io::ErrorKind::NotADirectory {
                return Err(StartError::Directory { path: directory, source });
            }
        }
        let path = variables.get("PATH").map_or("", String::as_str);
        let found =
            candidates(name, path).into_iter().find(|place| is_file(&directory.join(place)));
        let found = found.ok_or_else(|| StartError::NotFound(name.clone()))?;
        let mut command = Command::new(&found);
        command.arg0(program.name.as_ref().unwrap_or(name)).args(args);
        command.env_clear().envs(variables).current_dir(&directory);
        let (streams, terminal) = self.streams(&mut command, size).map_err(StartError::Streams)?;
        settle(&mut command, self.owner.as_ref(), terminal);
        let child = self.children.spawn(&mut command).map_err(|source| {
            let program = name.clone();
            StartError::NotRunnable { program, source }
        })?;
        Ok((child, streams))
    }

    fn streams(
        &self,
        command: &mut Command,
        size: Option<Size>,
    ) -> io::Result<(Streams, Option<OwnedFd>)> {
        if let Some(size) = size {
            let (pty, program) = Pty::open(size, self.owner.as_ref().map(|owner| owner.uid))?;
            command.stdin(Stdio::from(duplicate(&program)?));
            command.stdout(Stdio::from(duplicate(&program)?));
            command.stderr(Stdio::from(duplicate(&program)?));
            return Ok((Streams::Terminal(Arc::new(pty)), Some(program)));
        }
        let make = || pipe_with(PipeFlags::CLOEXEC);
        let ((stdin, input), (output, stdout), (errors, stderr)) = (make()?, make()?, make()?);
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        let streams = Streams::Pipes {
            input: pipe::Sender::from_owned_fd(input)?,
            output: pipe::Receiver::from_owned_fd(output)?,
            errors: pipe::Receiver::from_owned_fd(errors)?,
        };
        Ok((streams, None))
    }

    /// The program for a command text: run by the shell, or as it is where it needs none and there is none.
    #[must_use]
    pub fn command(&self, text: &str, variables: Vec<(String, String)>) -> Option<Program> {
        if let Some(shell) = &self.shell {
            let shell = shell.to_string_lossy().into_owned();
            let words = vec![shell, "-c".to_owned(), text.to_owned()];
            return Some(Program { words, variables, ..Program::default() });
        }
        let simple = crate::ssh::simple::parse(text)?;
        let variables = variables.into_iter().chain(simple.variables).collect();
        let directory = simple.directory;
        Some(Program { words: simple.words, variables, directory, name: None })
    }

    /// The program for a login shell.
    #[must_use]
    pub fn login(&self, variables: Vec<(String, String)>) -> Option<Program> {
        let shell = self.shell.as_ref()?;
        let file = shell.file_name().unwrap_or_default().to_string_lossy();
        let name = Some(format!("-{file}"));
        let words = vec![shell.to_string_lossy().into_owned()];
        Some(Program { words, variables, directory: None, name })
    }
}

/// The shell of an account, else the usual ones, as far as there are any.
#[must_use]
pub fn shell(of_account: Option<&str>) -> Option<PathBuf> {
    let usable = |path: &&str| is_file(Path::new(path)) && !path.ends_with("/nologin");
    let all = of_account.into_iter().chain(["/bin/bash", "/bin/sh"]);
    all.filter(|path| path.starts_with('/') && !path.ends_with("/false"))
        .find(usable)
        .map(PathBuf::from)
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::children::Exit;

    /// A sandbox of this machine's own programs, as the user who runs the tests.
    pub(crate) fn sandbox() -> Sandbox {
        let environment = [("PATH", "/usr/bin:/bin"), ("A", "outer")];
        let pairs = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Sandbox {
            children: Children::watch().unwrap(),
            owner: None,
            workdir: "/tmp".into(),
            environment: pairs.into(),
            shell: Some("/bin/sh".into()),
        }
    }

    pub(crate) fn words(words: &[&str]) -> Program {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Program { words, ..Program::default() }
    }

    async fn output(sandbox: &Sandbox, program: &Program) -> (String, Exit) {
        let (mut child, streams) = sandbox.start(program, None).unwrap();
        let Streams::Pipes { mut output, .. } = streams else {
            panic!("no terminal was asked for")
        };
        let mut text = String::new();
        output.read_to_string(&mut text).await.unwrap();
        (text, child.wait().await)
    }

    #[tokio::test]
    async fn a_process_has_directory_environment_and_name() {
        let sandbox = sandbox();
        let variables = vec![("B".to_owned(), "two words".to_owned())];
        let program = sandbox.command("cd /usr && pwd && echo $A $B && exit 3", variables).unwrap();
        let (text, exit) = output(&sandbox, &program).await;
        assert_eq!((text.as_str(), exit), ("/usr\nouter two words\n", Exit::Code(3)));
    }

    #[tokio::test]
    async fn without_a_shell_simple_commands_run() {
        let sandbox = Sandbox { shell: None, ..sandbox() };
        let program = sandbox.command("cd /usr && A='x y' env", Vec::new()).unwrap();
        let (text, exit) = output(&sandbox, &program).await;
        assert!(text.contains("A=x y\n") && exit == Exit::Code(0), "{text}");
        let (text, _) =
            output(&sandbox, &sandbox.command("cd /usr && pwd", Vec::new()).unwrap()).await;
        assert_eq!(text, "/usr\n");
        assert!(sandbox.command("a | b", Vec::new()).is_none());
        assert!(sandbox.login(Vec::new()).is_none());
    }

    #[tokio::test]
    async fn what_cannot_start_has_a_shells_code() {
        let sandbox = sandbox();
        let code = |program: &Program| sandbox.start(program, None).map(drop).unwrap_err().code();
        assert_eq!(code(&words(&["none-such"])), 127);
        assert_eq!(code(&words(&["/etc/passwd"])), 126);
        assert_eq!(code(&words(&[])), 127);
        let directory = Some("/none".to_owned());
        assert_eq!(code(&Program { directory, ..words(&["true"]) }), 126);
    }

    #[test]
    fn shells_that_let_nobody_in_are_passed_over() {
        assert_eq!(shell(Some("/bin/sh")), Some("/bin/sh".into()));
        for account in ["/usr/sbin/nologin", "/bin/false", "sh", "/none"] {
            assert!(shell(Some(account)).is_some_and(|path| path.starts_with("/bin")), "{account}");
        }
    }
}
