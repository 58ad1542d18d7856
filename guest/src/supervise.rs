//! The supervisor's life: what it is told, the main process, the session, the report of the end.
//!
//! Invariant: the exit status of the main process becomes the supervisor's own, whatever becomes of the gateway.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openshell_init::accounts;
use openshell_init::sys::spawn::Owner;
use openshell_proto::sandbox::v1::{GetSandboxConfigRequest, SandboxPolicy};
use openshell_proto::v1::{RefreshSandboxTokenRequest, ReportMainProcessExitRequest};
use rustix::process::Signal;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use crate::children::{Children, Exit};
use crate::connect::{Backoff, Client, ConnectError, chain, client, endpoint};
use crate::logs::{self, Log};
use crate::main_process::MainProcess;
use crate::process::{Program, Sandbox, shell};
use crate::session::Session;
use crate::settings::Settings;
use crate::ssh;
use crate::token::{Token, TokenError};

/// How long the gateway may take to say what the sandbox is.
const CONFIG: Duration = Duration::from_secs(120);
const CALL: Duration = Duration::from_secs(10);
/// How long the gateway may take to hear how the main process ended.
const REPORT: Duration = Duration::from_secs(120);
/// The same when the machine is being stopped anyway.
const REPORT_STOPPING: Duration = Duration::from_secs(2);
const REPORT_BACKOFF: Duration = Duration::from_millis(250);
const REPORT_BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Between asking the main process to end and ending it.
const GRACE: Duration = Duration::from_secs(10);
const ACCOUNT_BYTES: usize = 1 << 20;

/// Why a sandbox never gets its main process.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The gateway cannot even be tried.
    #[error("no way to the gateway")]
    Connect(#[source] ConnectError),
    /// There is no token.
    #[error("no token for the gateway")]
    Token(#[source] TokenError),
    /// The gateway does not say what the sandbox is.
    #[error("the gateway at {endpoint} gives no configuration: {}: {}", status.code(), status.message())]
    Config {
        /// The gateway.
        endpoint: String,
        /// What it said.
        status: Box<Status>,
    },
    /// The user does not exist.
    #[error("{0}")]
    User(String),
    /// Sockets, signals or files of our own.
    #[error("{what}")]
    Own {
        /// What could not be done.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

fn own(what: &'static str) -> impl FnOnce(io::Error) -> SuperviseError {
    move |source| SuperviseError::Own { what, source }
}

/// Runs a sandbox from its beginning to the end of its main process; the exit code to end with.
///
/// # Errors
/// Why the main process was never started.
pub async fn run(settings: Settings) -> Result<u8, SuperviseError> {
    let children = Children::watch().map_err(own("ended children cannot be listened to"))?;
    let mut term = signal(SignalKind::terminate()).map_err(own("signals cannot be listened to"))?;
    let endpoint = endpoint(&settings).map_err(SuperviseError::Connect)?;
    let (token, refresh) = Token::read(&settings.token).map_err(SuperviseError::Token)?;
    let (log, lines) = Log::new(&settings.sandbox_id);
    // Logs have a connection of their own: they must never be in the session's way.
    tokio::spawn(logs::push(client(endpoint.connect_lazy(), &token), lines));
    let client = client(endpoint.connect_lazy(), &token);
    let policy = policy(&client, &settings, &log).await?;
    tokio::spawn(keep_fresh(client.clone(), token.clone(), refresh, log.clone()));
    let sandbox = sandbox(&settings, policy.as_ref(), children)?;
    let listener =
        ssh::listen(&settings.ssh_socket).map_err(own("the SSH socket cannot be made"))?;
    let instance_id = instance_id().map_err(own("no random numbers"))?;
    let report =
        Report { client, sandbox_id: settings.sandbox_id.clone(), instance_id, log: log.clone() };
    let main = match start_main(&sandbox, &settings, &log) {
        Ok(main) => Arc::new(main),
        Err(code) => {
            report.send(code, REPORT).await;
            return Ok(code);
        }
    };
    let context = Arc::new(ssh::Context { sandbox, main: Arc::clone(&main) });
    tokio::spawn(ssh::serve(listener, context));
    let (end, ended) = watch::channel(false);
    let session = Session {
        endpoint,
        token,
        sandbox_id: settings.sandbox_id,
        instance_id: report.instance_id.clone(),
        ssh_socket: settings.ssh_socket,
        log: log.clone(),
    };
    let session = tokio::spawn(session.keep(ended));
    let (exit, stopping) = tokio::select! {
        exit = main.wait() => (exit, false),
        _ = term.recv() => (stop(&main).await, true),
    };
    log.info(&format!("the main process ended: {exit:?}"));
    end.send_replace(true);
    // It ends by itself within a bounded time.
    drop(session.await);
    let patience = if stopping { REPORT_STOPPING } else { REPORT };
    report.send(exit.code(), patience).await;
    Ok(exit.code())
}

fn start_main(sandbox: &Sandbox, settings: &Settings, log: &Log) -> Result<MainProcess, u8> {
    let mut words = settings.main.command.clone();
    // The usual shell of an empty command is not in every image.
    if let (Some(program), Some(shell)) = (words.first_mut(), &sandbox.shell)
        && program == "/bin/bash"
        && !std::path::Path::new(program).exists()
    {
        *program = shell.to_string_lossy().into_owned();
    }
    let program = Program { words, ..Program::default() };
    MainProcess::start(sandbox, &program, settings.main.tty, log.tap()).map_err(|error| {
        log.error(&format!("the main process cannot start: {}", error.line()));
        error.code()
    })
}

async fn stop(main: &MainProcess) -> Exit {
    main.signal(Signal::TERM);
    match timeout(GRACE, main.wait()).await {
        Ok(exit) => exit,
        Err(_) => {
            main.signal(Signal::KILL);
            main.wait().await
        }
    }
}

/// What the gateway says that the sandbox is. Tried again while it may still come up.
async fn policy(
    client: &Client,
    settings: &Settings,
    log: &Log,
) -> Result<Option<SandboxPolicy>, SuperviseError> {
    let ends = Instant::now() + CONFIG;
    let mut backoff = Backoff::default();
    loop {
        let mut client = client.clone();
        let request = GetSandboxConfigRequest { sandbox_id: settings.sandbox_id.clone() };
        let answer = timeout(CALL, client.get_sandbox_config(request)).await;
        let status = match answer {
            Ok(Ok(config)) => return Ok(config.into_inner().policy),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        let wait = backoff.wait().min(Duration::from_secs(4));
        if !may_pass(status.code()) || Instant::now() + wait > ends {
            let (endpoint, status) = (settings.endpoint.clone(), Box::new(status));
            return Err(SuperviseError::Config { endpoint, status });
        }
        log.warn(&format!("no configuration yet: {}: {}", status.code(), chain(&status)));
        sleep(wait).await;
    }
}

/// Whether the same call may succeed later.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unknown
    )
}

fn sandbox(
    settings: &Settings,
    policy: Option<&SandboxPolicy>,
    children: Children,
) -> Result<Sandbox, SuperviseError> {
    let process = policy.and_then(|policy| policy.process.as_ref());
    let named = |name: Option<&String>| name.filter(|name| !name.is_empty()).cloned();
    let mut user =
        named(process.map(|process| &process.run_as_user)).unwrap_or_else(|| settings.user.clone());
    if let Some(group) = named(process.map(|process| &process.run_as_group)) {
        // A group of the user's own name is what the user has anyway, and may be missing under that name.
        if group != user {
            user = format!("{user}:{group}");
        }
    }
    let read = |path: &str| -> String {
        let bytes = std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(..ACCOUNT_BYTES).unwrap_or(&bytes)).into_owned()
    };
    let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
    let identity = accounts::resolve(&user, &[], &passwd, &group).map_err(SuperviseError::User)?;
    let mut environment = settings.environment.clone();
    let name = user.split(':').next().unwrap_or_default();
    for (variable, value) in [
        ("HOME", identity.home.as_str()),
        ("PATH", openshell_init::environment::PATH),
        ("USER", name),
    ] {
        environment.entry(variable.to_owned()).or_insert_with(|| value.to_owned());
    }
    let owner = Owner { uid: identity.uid, gid: identity.gid, groups: identity.groups };
    Ok(Sandbox {
        children,
        // Only root can become somebody.
        owner: rustix::process::geteuid().is_root().then_some(owner),
        workdir: settings.workdir.clone(),
        environment,
        shell: shell(Some(&identity.shell)),
    })
}

/// Names this run of the main process: a random UUID.
fn instance_id() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    bytes[6] = 0x40 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// The report of the main process's end.
struct Report {
    client: Client,
    sandbox_id: String,
    instance_id: String,
    log: Log,
}

impl Report {
    /// Reports until the gateway has heard it, or for so long.
    async fn send(&self, code: u8, patience: Duration) {
        let ends = Instant::now() + patience;
        let mut wait = REPORT_BACKOFF;
        loop {
            let mut client = self.client.clone();
            let request = ReportMainProcessExitRequest {
                sandbox_id: self.sandbox_id.clone(),
                instance_id: self.instance_id.clone(),
                exit_code: i32::from(code),
            };
            let left = ends.saturating_duration_since(Instant::now());
            let answer = timeout(left.min(CALL), client.report_main_process_exit(request)).await;
            let reason = match answer {
                Ok(Ok(_)) => return,
                Ok(Err(status)) => format!("{}: {}", status.code(), status.message()),
                Err(_) => "no answer in time".to_owned(),
            };
            if Instant::now() + wait > ends {
                self.log.error(&format!("the end could not be reported: {reason}"));
                return;
            }
            sleep(wait).await;
            wait = (wait * 2).min(REPORT_BACKOFF_MAX);
        }
    }
}

/// Refreshes the token before it ends.
async fn keep_fresh(client: Client, token: Token, mut next: Option<Duration>, log: Log) {
    let mut backoff = Backoff::default();
    while let Some(wait) = next {
        sleep(wait).await;
        let mut client = client.clone();
        let request = RefreshSandboxTokenRequest::default();
        let reason = match timeout(CALL, client.refresh_sandbox_token(request)).await {
            Ok(Ok(answer)) => match token.replace(&answer.into_inner().token) {
                Ok(refresh) => {
                    backoff.reset();
                    next = refresh;
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Ok(Err(status)) => format!("{}: {}", status.code(), status.message()),
            Err(_) => "no answer in time".to_owned(),
        };
        log.warn(&format!("the token was not refreshed: {reason}"));
        next = Some(backoff.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_random_uuids() {
        let (one, other) = (instance_id().unwrap(), instance_id().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 36);
        let parts: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(one.as_bytes()[14], b'4');
    }

    #[test]
    fn only_codes_that_may_pass_are_tried_again() {
        assert!(may_pass(Code::Unavailable) && may_pass(Code::Unknown));
        for code in
            [Code::NotFound, Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument]
        {
            assert!(!may_pass(code), "{code}");
        }
    }
}
