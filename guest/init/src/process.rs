//! The main process: found, placed, started.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, fchown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Pid;

use crate::accounts::{self, Identity};
use crate::config::{Directory, Process};
use crate::environment;
use crate::failure::{Failure, NOT_FOUND, NOT_RUNNABLE, Step};
use crate::files;
use crate::streams::{self, Ends};
use crate::sys::execute::Program;
use crate::sys::spawn::{self, Owner};

/// Group of terminals, as devpts has it.
const TTY_GROUP: u32 = 5;

/// The account files of the guest.
#[derive(Debug)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them; an image may lack them.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read() -> Result<Self, Failure> {
        let read = |path| files::read_text(Step::User, path);
        Ok(Self { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
    }

    fn resolve(&self, user: &str, groups: &[String]) -> Result<Identity, Failure> {
        accounts::resolve(user, groups, &self.passwd, &self.group)
            .map_err(|message| Failure::new(Step::User, message).path(user))
    }
}

/// Makes the directories that shall be there.
///
/// # Errors
/// One that cannot be made or changed, or an owner that there is not.
pub fn directories(list: &[Directory], accounts: &Accounts) -> Result<(), Failure> {
    let step = Step::Directories;
    for directory in list {
        let path = &directory.path;
        let owner = accounts.resolve(&directory.owner, &[])?;
        fs::create_dir_all(path).map_err(step.io(path))?;
        let found = fs::metadata(path).map_err(step.io(path))?;
        if (found.uid(), found.gid()) != (owner.uid, owner.gid) {
            chown(path, Some(owner.uid), Some(owner.gid)).map_err(step.io(path))?;
        }
        if found.mode() & 0o7777 != directory.mode() {
            let mode = fs::Permissions::from_mode(directory.mode());
            fs::set_permissions(path, mode).map_err(step.io(path))?;
        }
    }
    Ok(())
}

/// Runs a hook to its end.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub fn hook(args: &[String], process: &Process) -> Result<(), Failure> {
    let step = Step::Hook;
    let (program, rest) = args.split_first().expect("it was checked when it was read");
    let variables = environment::variables(&process.env, "/", false);
    let mut command = Command::new(program);
    command.args(rest).env_clear().envs(variables).stdin(Stdio::null()).current_dir("/");
    spawn::settle(&mut command, Some(&Owner::ROOT), None);
    let status = command.status().map_err(step.io(program))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(step, format!("ended with {status}")).path(program))
}

/// The main process, ready to start.
#[derive(Debug)]
pub struct Main {
    command: Command,
    program: String,
    ends: Option<Ends>,
}

impl Main {
    /// Looks for user and program, and opens the terminal.
    ///
    /// # Errors
    /// What there is not, with the exit code that says so.
    pub fn prepare(process: &Process, accounts: &Accounts) -> Result<Self, Failure> {
        let step = Step::Exec;
        let identity = accounts.resolve(&process.user, &process.groups)?;
        let variables = environment::variables(&process.env, &identity.home, process.tty);
        let cwd = process.cwd();
        if !Path::new(cwd).is_dir() {
            fs::create_dir_all(cwd).map_err(step.io(cwd))?;
        }
        std::env::set_current_dir(cwd).map_err(step.io(cwd))?;
        let path = variables.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_str());
        let name = process.args.first().expect("it was checked when it was read");
        let program = find(name, path.unwrap_or_default())?;
        let mut command = Command::new(&program);
        command.stdin(Stdio::null());
        let owner = Owner { uid: identity.uid, gid: identity.gid, groups: identity.groups };
        let (mut ends, mut controlling) = (None, None);
        if let Some(wanted) = &process.streams {
            let connected = streams::connect(&mut command, owner.uid, wanted, process.tty)?;
            (ends, controlling) = (Some(connected.0), connected.1);
        } else if process.tty {
            let terminal = terminal(owner.uid)?;
            let clone = || terminal.try_clone().map_err(step.io("terminal"));
            command.stdin(clone()?).stdout(clone()?).stderr(clone()?);
            controlling = Some(terminal.into());
        }
        spawn::settle(&mut command, Some(&owner), controlling);
        let arguments = process.args.iter().map(|argument| argument.clone().into_bytes());
        let variables =
            variables.iter().map(|(name, value)| format!("{name}={value}").into_bytes());
        let executable = Program::new(program.clone().into_bytes(), arguments, variables);
        executable.map_err(step.io(&program))?.replace(&mut command);
        Ok(Self { command, program, ends })
    }

    /// The other ends of its streams, once, when the host carries them.
    pub fn take_ends(&mut self) -> Option<Ends> {
        self.ends.take()
    }

    /// Starts it as a child.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(mut self) -> Result<Pid, Failure> {
        let started = self.command.spawn().map_err(self.not_runnable())?;
        let id = i32::try_from(started.id()).ok().and_then(Pid::from_raw);
        Ok(id.expect("a process has a number"))
    }

    /// Becomes it.
    pub fn replace(mut self) -> Failure {
        let error = self.command.exec();
        self.not_runnable()(error)
    }

    fn not_runnable(&self) -> impl FnOnce(std::io::Error) -> Failure + use<> {
        let program = self.program.clone();
        move |error| Step::Exec.io(program)(error).code(NOT_RUNNABLE)
    }
}

fn find(name: &str, path: &str) -> Result<String, Failure> {
    let mut unusable = None;
    for candidate in environment::candidates(name, path) {
        let Ok(metadata) = fs::metadata(&candidate) else { continue };
        if metadata.is_file() && metadata.mode() & 0o111 != 0 {
            return Ok(candidate);
        }
        unusable.get_or_insert(candidate);
    }
    Err(match unusable {
        Some(path) => {
            Failure::new(Step::Exec, "not an executable file").path(path).code(NOT_RUNNABLE)
        }
        None => Failure::new(Step::Exec, "no such file or directory (ENOENT)")
            .path(name)
            .code(NOT_FOUND),
    })
}

/// The console as a terminal of the user's.
fn terminal(uid: u32) -> Result<File, Failure> {
    let step = Step::Exec;
    let active = "/sys/class/tty/console/active";
    let text = fs::read_to_string(active).map_err(step.io(active))?;
    let name = text.split_ascii_whitespace().last();
    let name = name.ok_or_else(|| Failure::new(step, "the machine has no console").path(active))?;
    let path = format!("/dev/{name}");
    let terminal = File::options().read(true).write(true).open(&path).map_err(step.io(&path))?;
    fchown(&terminal, Some(uid), Some(TTY_GROUP)).map_err(step.io(&path))?;
    Ok(terminal)
}
