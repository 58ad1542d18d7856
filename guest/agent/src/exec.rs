//! From a request to a process: user, directory, environment, program, streams.
//!
//! Invariant: the arguments are the request's, byte for byte; no shell has a say. What cannot be started is told apart: not there
//! (127), not runnable (126), anything else.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ChildStdio};

use openshell_agent_proto::{Exec, Failure, FailureKind, Stdio};
use openshell_init::environment::PATH;
use openshell_init::sys::execute::Program;
use openshell_init::sys::spawn::{Owner, settle};
use openshell_init::terminal;

use crate::accounts;
use crate::session::Guest;
use crate::sys::spawn::spare_no_longer;
use crate::watched::Watched;

/// A process that runs, and our ends of its streams, which do not block.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: Watched,
    /// What is written here is its input.
    pub input: Option<OwnedFd>,
    /// Its output, or what its terminal shows.
    pub output: Option<OwnedFd>,
    /// Its standard error.
    pub error: Option<OwnedFd>,
    /// Whether input and output are a terminal.
    pub is_terminal: bool,
}

/// Starts what `exec` asks for.
///
/// # Errors
/// What there is not, or what the kernel refuses.
pub fn start(exec: &Exec, guest: &Guest) -> Result<Started, Failure> {
    let groups: &[String] = if exec.account().is_some() { &[] } else { &guest.groups };
    let identity = accounts::look_up(exec.account().unwrap_or(&guest.user), groups)?;
    let owner = Owner { uid: identity.uid, gid: identity.gid, groups: identity.groups };
    // Whoever is not root can only be who they are: that is so in tests.
    let owner = rustix::process::geteuid().is_root().then_some(owner);
    let directory = directory(exec, guest)?;
    let is_terminal = matches!(exec.stdio(), Stdio::Terminal(_));
    let variables = variables(&guest.env, exec.variables(), &identity.home, is_terminal);
    let path = variables.iter().find(|(name, _)| name == b"PATH").map(|(_, path)| path.as_slice());
    let name = exec
        .args()
        .first()
        .ok_or_else(|| Failure::new(FailureKind::Protocol, "the command is empty"))?;
    let program = find(name, path.unwrap_or_default(), &directory)?;
    let mut command = Command::new(&program);
    command.current_dir(&directory);
    let terminal = streams(&mut command, exec.stdio(), owner.as_ref())?;
    let program_side = terminal.as_ref().map(|(_, program)| program.try_clone()).transpose();
    spare_no_longer(&mut command);
    settle(&mut command, owner.as_ref(), program_side.map_err(system("terminal"))?);
    let variables = variables.iter().map(|(name, value)| [name, &b"="[..], value].concat());
    let executable =
        Program::new(program.as_os_str().as_bytes().to_vec(), exec.args().to_vec(), variables);
    executable.map_err(system("command"))?.replace(&mut command);
    let child = command.spawn().map_err(|error| not_started(&program, &error))?;
    // The program's side of a terminal is the program's alone: its end is to be seen.
    drop(command);
    let user_side = terminal.map(|(user, _)| user);
    ours(child, user_side)
}

fn ours(mut child: Child, terminal: Option<OwnedFd>) -> Result<Started, Failure> {
    let failed = system("streams");
    if let Some(terminal) = terminal {
        let input = Some(terminal.try_clone().map_err(failed)?);
        let process = Watched::child(child)?;
        let output = Some(terminal);
        return Ok(Started { process, input, output, error: None, is_terminal: true });
    }
    let input = child.stdin.take().map(OwnedFd::from);
    let output = child.stdout.take().map(OwnedFd::from);
    let error = child.stderr.take().map(OwnedFd::from);
    for stream in [&input, &output, &error].into_iter().flatten() {
        rustix::io::ioctl_fionbio(stream, true).map_err(|errno| failed(errno.into()))?;
    }
    Ok(Started { process: Watched::child(child)?, input, output, error, is_terminal: false })
}

/// Connects the command's streams; the two sides of its terminal, if it has one.
fn streams(
    command: &mut Command,
    stdio: Stdio,
    owner: Option<&Owner>,
) -> Result<Option<(OwnedFd, OwnedFd)>, Failure> {
    let (null, piped) = (ChildStdio::null, ChildStdio::piped);
    match stdio {
        Stdio::Detached => command.stdin(null()).stdout(null()).stderr(null()),
        Stdio::Output => command.stdin(null()).stdout(piped()).stderr(piped()),
        Stdio::Pipes => command.stdin(piped()).stdout(piped()).stderr(piped()),
        Stdio::Terminal(size) => {
            let opened = terminal::open((size.columns, size.rows), owner.map(|owner| owner.uid));
            let (user, program) = opened.map_err(|errno| system("terminal")(errno.into()))?;
            let side = || program.try_clone().map_err(system("terminal"));
            command.stdin(side()?).stdout(side()?).stderr(side()?);
            return Ok(Some((user, program)));
        }
    };
    Ok(None)
}

fn directory(exec: &Exec, guest: &Guest) -> Result<PathBuf, Failure> {
    let path = exec.working_directory().map(|path| Path::new(OsStr::from_bytes(path)));
    let path = path.unwrap_or(&guest.directory);
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::new(FailureKind::Directory, format!("{}: {why}", path.display()))
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(path.to_owned()),
        Ok(_) => Err(wrong(&"not a directory")),
        Err(error) => Err(wrong(&error)),
    }
}

type Variables = Vec<(Vec<u8>, Vec<u8>)>;

/// The usual variables, then the request's over them, then what a program always finds.
fn variables(usual: &Variables, given: &[Vec<u8>], home: &str, is_terminal: bool) -> Variables {
    let mut variables = usual.clone();
    let mut set = |name: &[u8], value: &[u8], replace: bool| match variables
        .iter_mut()
        .find(|(known, _)| known == name)
    {
        Some((_, known)) if replace => *known = value.to_vec(),
        Some(_) => {}
        None => variables.push((name.to_vec(), value.to_vec())),
    };
    for word in given {
        if let Some(at) = word.iter().position(|byte| *byte == b'=') {
            set(&word[..at], &word[at + 1..], true);
        }
    }
    set(b"PATH", PATH.as_bytes(), false);
    set(b"HOME", home.as_bytes(), false);
    if is_terminal {
        set(b"TERM", b"xterm", false);
    }
    variables
}

/// The program as the kernel will be told it: `name` itself when it has a slash, else the first executable of that name in `path`.
fn find(name: &[u8], path: &[u8], directory: &Path) -> Result<PathBuf, Failure> {
    let name = Path::new(OsStr::from_bytes(name));
    let candidates: Vec<PathBuf> = if name.as_os_str().as_bytes().contains(&b'/') {
        vec![directory.join(name)]
    } else {
        // As the shell has it: an empty entry is the working directory.
        let entries = path.split(|byte| *byte == b':');
        entries.map(|entry| directory.join(OsStr::from_bytes(entry)).join(name)).collect()
    };
    let mut unusable = None;
    for candidate in candidates {
        let Ok(found) = fs::metadata(&candidate) else { continue };
        if found.is_file() && found.mode() & 0o111 != 0 {
            return Ok(candidate);
        }
        unusable.get_or_insert(candidate);
    }
    Err(match unusable {
        Some(path) => Failure::new(
            FailureKind::NotRunnable,
            format!("{}: not an executable file", path.display()),
        ),
        None => Failure::new(
            FailureKind::NotFound,
            format!("{}: no such file or directory", name.display()),
        ),
    })
}

fn not_started(program: &Path, error: &io::Error) -> Failure {
    use rustix::io::Errno;
    let kind = match Errno::from_io_error(error) {
        // It was there a moment ago: what is missing is its interpreter.
        Some(Errno::NOENT | Errno::ACCESS | Errno::NOEXEC | Errno::PERM | Errno::LOOP)
        | Some(Errno::ISDIR | Errno::LIBBAD | Errno::TXTBSY | Errno::TOOBIG) => {
            FailureKind::NotRunnable
        }
        _ => FailureKind::System,
    };
    let what = match Errno::from_io_error(error) {
        Some(Errno::NOENT) => "its interpreter is missing".to_owned(),
        Some(Errno::NOEXEC) => "not a program for this machine".to_owned(),
        _ => error.to_string(),
    };
    Failure::new(kind, format!("{}: {what}", program.display()))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(FailureKind::System, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_request_replace_usual_ones() {
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let usual = vec![pair("A", "1"), pair("HOME", "/set")];
        let given = [b"A=2".to_vec(), b"B==".to_vec(), b"B=3".to_vec()];
        let found = variables(&usual, &given, "/root", true);
        let expected = [
            pair("A", "2"),
            pair("HOME", "/set"),
            pair("B", "3"),
            pair("PATH", PATH),
            pair("TERM", "xterm"),
        ];
        assert_eq!(found, expected);
        let least = variables(&Vec::new(), &[], "/h", false);
        assert_eq!(least, [pair("PATH", PATH), pair("HOME", "/h")]);
    }

    #[test]
    fn a_program_is_looked_for_as_a_shell_does() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("a/program")).unwrap();
        fs::create_dir(at("b")).unwrap();
        for name in ["b/program", "b/plain", "here"] {
            fs::write(at(name), "").unwrap();
        }
        for name in ["b/program", "here"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(at(name), mode).unwrap();
        }
        let path = format!("{}:{}:", at("a").display(), at("b").display());
        let found = |name: &str| {
            find(name.as_bytes(), path.as_bytes(), root.path()).map_err(|failure| failure.kind())
        };
        assert_eq!(found("program"), Ok(at("b/program")));
        assert_eq!(found("here"), Ok(at("here")));
        assert_eq!(found("./here"), Ok(at("./here")));
        assert_eq!(found("plain"), Err(FailureKind::NotRunnable));
        assert_eq!(found("none"), Err(FailureKind::NotFound));
        assert_eq!(found("a/program"), Err(FailureKind::NotRunnable));
    }
}
