//! A compute driver that the gateway starts, watches over and ends.
//!
//! One task owns the process. A driver that ends by itself is started again, later each time; its socket stays, so that calls reach the
//! next one. The driver is told the gateway's process id and ends with it.
//!
//! Invariant: no more than one driver of a gateway runs at a time, and none is left when its owner has returned.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use openshell_proto::compute::v1::GetCapabilitiesResponse;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use crate::compute::driver::{Driver as _, RemoteDriver};

/// The program, of whatever make.
pub const PROGRAM: &str = "openshell-driver-vm";
/// How long a driver that was started has until it answers.
const STARTED: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);
/// How long it has to end its machines when it is told to end.
const GRACE: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A driver that ran this long starts again at once.
const STEADY: Duration = Duration::from_mins(1);

/// Why no driver runs, or answers.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The program is nowhere.
    #[error("no {PROGRAM} in {places}; set driver_dir in [openshell.drivers.vm]")]
    Missing {
        /// Where it was looked for, with commas.
        places: String,
    },
    /// The state directory is not fit to hold secrets.
    #[error("driver's directory {}: {why}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The program cannot be started.
    #[error("{} cannot be started", path.display())]
    Start {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended before it answered.
    #[error("{} ended before it answered: {status}; what it said is above", path.display())]
    Ended {
        /// Which.
        path: PathBuf,
        /// How.
        status: ExitStatus,
    },
    /// It does not answer.
    #[error("compute driver at {} did not answer within {} s: {last}", socket.display(), limit.as_secs())]
    Silent {
        /// Where.
        socket: PathBuf,
        /// For how long.
        limit: Duration,
        /// What the last attempt came to.
        last: String,
    },
    /// Its socket has no name that a URL can hold.
    #[error("{} is no path in UTF-8", .0.display())]
    Name(PathBuf),
}

/// What a driver is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Managed {
    /// Where the program is; `None`: looked for.
    pub driver_dir: Option<PathBuf>,
    /// Where it keeps sandboxes.
    pub state_dir: PathBuf,
    /// What to log.
    pub log_level: String,
    /// Where guests reach the gateway.
    pub endpoint: String,
    /// Flags of it that the operator has set: name and value.
    pub options: Vec<(&'static str, String)>,
}

impl Managed {
    /// Where the driver listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("run/compute-driver.sock")
    }

    /// The program.
    fn program(&self) -> Result<PathBuf, DriverError> {
        let places = match &self.driver_dir {
            Some(dir) => vec![dir.clone()],
            None => {
                places(std::env::current_exe().ok().as_deref(), std::env::home_dir().as_deref())
            }
        };
        let found = places.iter().map(|dir| dir.join(PROGRAM)).find(|path| path.is_file());
        found.ok_or_else(|| DriverError::Missing {
            places: places
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// Its arguments, for a gateway of this process id.
    #[must_use]
    pub fn arguments(&self, gateway: u32) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![
            "--bind-socket".into(),
            self.socket().into(),
            "--expected-peer-pid".into(),
            gateway.to_string().into(),
            "--log-level".into(),
            self.log_level.clone().into(),
            "--openshell-endpoint".into(),
            self.endpoint.clone().into(),
            "--state-dir".into(),
            self.state_dir.clone().into(),
        ];
        for (name, value) in &self.options {
            arguments.extend([(*name).into(), value.into()]);
        }
        arguments
    }

    fn spawn(&self) -> Result<(PathBuf, Child), DriverError> {
        let path = self.program()?;
        private_dir(&self.state_dir)?;
        private_dir(&self.state_dir.join("run"))?;
        let mut command = Command::new(&path);
        command.args(self.arguments(std::process::id())).stdin(Stdio::null()).kill_on_drop(true);
        // Said by argument; a variable that the gateway got is not the driver's.
        command.env_remove("OPENSHELL_COMPUTE_DRIVER_BIND");
        match command.spawn() {
            Ok(child) => Ok((path, child)),
            Err(source) => Err(DriverError::Start { path, source }),
        }
    }
}

/// Where the program is looked for.
fn places(gateway: Option<&Path>, home: Option<&Path>) -> Vec<PathBuf> {
    let bin = gateway.and_then(Path::parent);
    let mut places = Vec::new();
    if let Some(prefix) = bin.and_then(Path::parent) {
        places.extend([prefix.join("libexec"), prefix.join("libexec/openshell")]);
    }
    places.extend(home.map(|home| home.join(".local/libexec/openshell")));
    places.extend(
        ["/usr/libexec/openshell", "/usr/local/libexec/openshell", "/usr/local/libexec"]
            .map(PathBuf::from),
    );
    places.extend(bin.map(Path::to_owned));
    places
}

/// Makes a directory that only its owner enters, or checks that it is one.
fn private_dir(path: &Path) -> Result<(), DriverError> {
    let wrong = |why: String| DriverError::Directory { path: path.to_owned(), why };
    let io = |error: io::Error| wrong(error.to_string());
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        _ => {}
    }
    let found = std::fs::symlink_metadata(path).map_err(io)?;
    if !found.is_dir() {
        return Err(wrong("is no directory, or a link to one".to_owned()));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(wrong(format!("belongs to user {}", found.uid())));
    }
    if found.mode() & 0o777 != 0o700 {
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(path, mode).map_err(io)?;
    }
    Ok(())
}

/// Connects to a driver's socket and asks what it can do, again and again for as long as `limit`.
///
/// # Errors
///
/// [`DriverError::Silent`], [`DriverError::Name`].
pub async fn reach(
    socket: &Path,
    limit: Duration,
    retry: Duration,
) -> Result<(RemoteDriver, GetCapabilitiesResponse), DriverError> {
    let name = || DriverError::Name(socket.to_owned());
    let path = socket.to_str().ok_or_else(name)?;
    let endpoint = Endpoint::from_shared(format!("unix:{path}")).map_err(|_| name())?;
    let deadline = Instant::now() + limit;
    let mut last = "nothing was tried".to_owned();
    loop {
        // A driver that takes the connection and says nothing must not take longer than the others.
        let tried = timeout(deadline.saturating_duration_since(Instant::now()), async {
            let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
            let driver = RemoteDriver::new(channel);
            let capabilities = driver.capabilities().await.map_err(|status| status.to_string())?;
            Ok::<_, String>((driver, capabilities))
        });
        match tried.await {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
        if Instant::now() + retry > deadline {
            return Err(DriverError::Silent { socket: socket.to_owned(), limit, last });
        }
        sleep(retry).await;
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let mut text = error.to_string();
    for cause in causes {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A driver that runs, and is started again when it ends.
#[derive(Debug)]
pub struct Running {
    end: watch::Sender<bool>,
    keeper: JoinHandle<()>,
    starts: watch::Receiver<u32>,
}

impl Running {
    /// Starts a driver and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`DriverError`]: whatever keeps it from running, within the time it has.
    pub async fn start(
        managed: Managed,
    ) -> Result<(Self, RemoteDriver, GetCapabilitiesResponse), DriverError> {
        let (path, mut child) = managed.spawn()?;
        let socket = managed.socket();
        let reached = tokio::select! {
            reached = reach(&socket, STARTED, RETRY) => reached,
            status = child.wait() => match status {
                Ok(status) => Err(DriverError::Ended { path: path.clone(), status }),
                Err(source) => Err(DriverError::Start { path: path.clone(), source }),
            },
        };
        let (driver, capabilities) = match reached {
            Ok(reached) => reached,
            Err(error) => {
                finish(&mut child).await;
                return Err(error);
            }
        };
        tracing::info!(program = %path.display(), pid = child.id(), "compute driver runs");
        let (end, ending) = watch::channel(false);
        let (count, starts) = watch::channel(1);
        let keeper = tokio::spawn(keep(managed, child, ending, count));
        Ok((Self { end, keeper, starts }, driver, capabilities))
    }

    /// How often a driver has been started.
    #[must_use]
    pub fn starts(&self) -> u32 {
        *self.starts.borrow()
    }

    /// Ends the driver: by signal, and by force if that does not do.
    pub async fn stop(self) {
        self.end.send_replace(true);
        // A keeper that has ended has no driver.
        drop(self.keeper.await);
    }
}

/// Watches over the process until it is to end.
async fn keep(
    managed: Managed,
    first: Child,
    mut ending: watch::Receiver<bool>,
    starts: watch::Sender<u32>,
) {
    let mut running = Some((first, Instant::now()));
    let mut backoff = BACKOFF_FIRST;
    loop {
        if let Some((mut child, since)) = running.take() {
            tokio::select! {
                status = child.wait() => {
                    let status = status.map_or_else(|error| error.to_string(), |s| s.to_string());
                    tracing::error!(status, "compute driver has ended by itself; its machines with it");
                    if since.elapsed() >= STEADY {
                        backoff = BACKOFF_FIRST;
                    }
                }
                () = told(&mut ending) => {
                    finish(&mut child).await;
                    return;
                }
            }
        }
        tokio::select! {
            () = sleep(backoff) => {}
            () = told(&mut ending) => return,
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
        match managed.spawn() {
            Ok((_, child)) => {
                tracing::warn!(pid = child.id(), "compute driver is started again");
                starts.send_modify(|count| *count += 1);
                running = Some((child, Instant::now()));
            }
            Err(error) => tracing::error!(%error, "compute driver is not started again"),
        }
    }
}

/// Returns when the driver is to end, or nobody is left who could say so.
async fn told(ending: &mut watch::Receiver<bool>) {
    drop(ending.wait_for(|ending| *ending).await);
}

async fn finish(child: &mut Child) {
    // Not reaped yet: the number is still that of this process.
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // An error means that it has ended.
        kill_process(pid, Signal::TERM).ok();
    }
    if timeout(GRACE, child.wait()).await.is_err() {
        tracing::warn!("compute driver does not end; it is killed");
        drop(child.kill().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn managed(dir: &Path, script: &str) -> Managed {
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let program = bin.join(PROGRAM);
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Managed {
            driver_dir: Some(bin),
            state_dir: dir.join("state"),
            log_level: "warn".to_owned(),
            endpoint: "http://127.0.0.1:1".to_owned(),
            options: vec![("--default-image", "i".to_owned())],
        }
    }

    #[test]
    fn arguments_are_in_their_order() {
        let place = tempfile::tempdir().unwrap();
        let managed = managed(Path::new(place.path()), "");
        let text: Vec<_> =
            managed.arguments(7).iter().map(|word| word.to_str().unwrap().to_owned()).collect();
        let state = place.path().join("state");
        let state = state.to_str().unwrap();
        assert_eq!(
            text,
            [
                "--bind-socket",
                &format!("{state}/run/compute-driver.sock"),
                "--expected-peer-pid",
                "7",
                "--log-level",
                "warn",
                "--openshell-endpoint",
                "http://127.0.0.1:1",
                "--state-dir",
                state,
                "--default-image",
                "i"
            ]
        );
    }

    #[test]
    fn the_program_is_looked_for_beside_the_gateway_last() {
        let places = places(Some(Path::new("/opt/o/bin/openshell-gateway")), Some(Path::new("/h")));
        assert_eq!(places.first(), Some(&PathBuf::from("/opt/o/libexec")));
        assert_eq!(places.get(2), Some(&PathBuf::from("/h/.local/libexec/openshell")));
        assert_eq!(places.last(), Some(&PathBuf::from("/opt/o/bin")));
    }

    #[tokio::test]
    async fn a_driver_that_ends_at_once_is_named_with_its_status() {
        let place = tempfile::tempdir().unwrap();
        let error = Running::start(managed(place.path(), "exit 3")).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        let missing =
            Managed { driver_dir: Some(place.path().join("none")), ..managed(place.path(), "") };
        let error = Running::start(missing).await.unwrap_err().to_string();
        assert!(error.contains("/none; set driver_dir"), "{error}");
    }

    #[tokio::test]
    async fn directories_are_made_private_and_links_are_refused() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("state");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(&dir).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(matches!(private_dir(&link), Err(DriverError::Directory { .. })));
    }

    #[tokio::test]
    async fn who_does_not_answer_is_waited_for_no_longer_than_said() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("none");
        let limit = Duration::from_millis(30);
        let error = reach(&socket, limit, Duration::from_millis(10)).await.unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
        // One that takes connections and never says a word.
        let socket = place.path().join("mute");
        let mute = tokio::net::UnixListener::bind(&socket).unwrap();
        let asked = reach(&socket, limit, Duration::from_millis(10)).await;
        assert!(matches!(asked, Err(DriverError::Silent { .. })));
        drop(mute);
    }
}
