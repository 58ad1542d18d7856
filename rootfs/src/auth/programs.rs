//! Credential helpers: programs named `docker-credential-NAME` that print what they keep.
//!
//! Invariant: a helper is one process, has a deadline, and cannot make us read more than a few kilobytes. It is named
//! by the user's own configuration, never by anything that an image or a registry says.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{AuthError, Credentials, Secret};

/// Most bytes that a helper may print.
const MAX_BYTES: u64 = 64 << 10;
/// The name that says that the secret is an identity token.
const IDENTITY: &str = "<token>";
/// What helpers print for registries that they do not know.
const NOT_FOUND: &str = "credentials not found";
/// How often an ending helper is looked at, once it has closed its output.
const POLL: Duration = Duration::from_millis(5);

/// How helpers are run.
pub(super) struct Helper<'a> {
    pub(super) deadline: Duration,
    pub(super) path: Option<&'a OsStr>,
}

/// What a helper said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Found(Credentials),
    Nothing,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    #[serde(default)]
    username: String,
    secret: String,
}

impl Helper<'_> {
    /// Asks `docker-credential-NAME` for what it keeps under `server`.
    pub(super) fn ask(&self, name: &str, host: &str, server: &str) -> Result<Answer, AuthError> {
        let helper = format!("docker-credential-{name}");
        let failed =
            |why: String| AuthError::Helper { helper: helper.clone(), host: host.into(), why };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || !name.bytes().all(fits) {
            return Err(failed("its name is not one of a program".into()));
        }
        let program =
            self.find(&helper).ok_or_else(|| failed("there is no such program".into()))?;
        let (printed, success) = self.run(&program, server).map_err(failed)?;
        let text = String::from_utf8_lossy(&printed);
        if !success {
            if text.to_ascii_lowercase().contains(NOT_FOUND) {
                return Ok(Answer::Nothing);
            }
            return Err(failed("it failed".into()));
        }
        // What it printed is not quoted: it holds the secret.
        let printed: Printed = serde_json::from_slice(&printed)
            .map_err(|_| failed("what it printed is not an answer".into()))?;
        let secret = Secret::new(printed.secret);
        Ok(Answer::Found(if printed.username == IDENTITY {
            Credentials::Identity(secret)
        } else {
            Credentials::Basic { username: printed.username, password: secret }
        }))
    }

    fn find(&self, program: &str) -> Option<PathBuf> {
        let path = self.path.map(OsStr::to_owned).or_else(|| std::env::var_os("PATH"))?;
        let absolute = |directory: &PathBuf| directory.is_absolute();
        let programs = std::env::split_paths(&path).filter(absolute).map(|dir| dir.join(program));
        programs.into_iter().find(|program| program.is_file())
    }

    /// Runs a program: what it printed, and whether it says that it succeeded.
    fn run(&self, program: &std::path::Path, input: &str) -> Result<(Vec<u8>, bool), String> {
        let end = Instant::now() + self.deadline;
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("it cannot be started: {error}"))?;
        let result = self.converse(&mut child, input, end);
        if result.is_err() {
            // It is already over in some of these cases, which is as good.
            drop(child.kill());
            drop(child.wait());
        }
        result
    }

    fn converse(
        &self,
        child: &mut Child,
        input: &str,
        end: Instant,
    ) -> Result<(Vec<u8>, bool), String> {
        let late = || format!("no answer within {} s", self.deadline.as_secs_f32());
        let stdin = child.stdin.take();
        if let Some(mut stdin) = stdin {
            // A line fits into the pipe, so that this does not wait. A helper may not want to know.
            match stdin.write_all(input.as_bytes()) {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    return Err(format!("it cannot be asked: {error}"));
                }
                _ => {}
            }
        }
        let stdout = child.stdout.take().ok_or("it has no output")?;
        let (sender, receiver) = mpsc::channel();
        // Not joined: a process that the helper left behind may hold the pipe for as long as it likes.
        std::thread::Builder::new()
            .name("credential".into())
            .spawn(move || {
                let mut printed = Vec::new();
                let read = stdout.take(MAX_BYTES + 1).read_to_end(&mut printed);
                drop(sender.send(read.map(|_| printed)));
            })
            .map_err(|error| format!("it cannot be listened to: {error}"))?;
        let left = end.saturating_duration_since(Instant::now());
        let printed = receiver
            .recv_timeout(left)
            .map_err(|_| late())?
            .map_err(|error| format!("its output cannot be read: {error}"))?;
        if printed.len() as u64 > MAX_BYTES {
            return Err(format!("it printed more than {MAX_BYTES} bytes"));
        }
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok((printed, status.success())),
                Ok(None) if Instant::now() < end => std::thread::sleep(POLL),
                Ok(None) => return Err(late()),
                Err(error) => return Err(format!("it cannot be waited for: {error}")),
            }
        }
    }
}
