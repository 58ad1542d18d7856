//! The command `openshell-driver-vm`: arguments to a driver to an exit code.

#![forbid(unsafe_code)]

mod cli;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use openshell_driver_vm::backend::Programs;
use openshell_driver_vm::parent::Parent;
use openshell_driver_vm::sandbox::Driver;
use openshell_driver_vm::serve::serve;
use openshell_driver_vm::state::StateDir;
use openshell_driver_vm::{decoder, launcher};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use tokio::signal::unix::{SignalKind, signal};

use cli::Cli;

fn main() -> ExitCode {
    if let Some(code) = launcher::launch_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_max_level(cli.level())
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell when this fails.
            drop(writeln!(io::stderr(), "openshell-driver-vm: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    // Whatever a program of ours makes is for this user only.
    umask(Mode::from_raw_mode(0o077));
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).ok();
    for flag in cli.unused() {
        tracing::warn!(flag, "taken and not used");
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        tracing::warn!(%error, "cannot open /dev/kvm: no machine will start; see `openshell-vmm doctor`");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start a runtime")?;
    let done = runtime.block_on(drive(cli));
    // What still waits for a disk waits for a machine that is gone with this process.
    runtime.shutdown_background();
    done
}

async fn drive(cli: &Cli) -> Result<()> {
    // Before anything else: a gateway that ends now takes the driver with it.
    let parent = match cli.parent() {
        None => None,
        Some(pid) => {
            Some(Parent::watch(pid).with_context(|| format!("cannot watch process {pid}"))?)
        }
    };
    let listen = cli.listen()?.mode()?;
    let settings = cli.settings()?;
    let state = StateDir::open(&cli.state_dir()?).context("state directory")?;
    let paths = cli.programs(state.root())?;
    if let Some(other) = cli.other_supervisor()? {
        let made = Programs::make_tools(&paths, &other.init, &other.supervisor).await;
        made.context("cannot make the tools disk")?;
    }
    let backend = Arc::new(Programs::new(paths)?);
    let driver = Driver::new(state, settings.clone(), backend, decoder(settings));
    serve(driver, &listen, end(parent)?).await?;
    Ok(())
}

/// Ready when the driver is to end.
fn end(parent: Option<Parent>) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
    Ok(async move {
        let gone = async {
            match &parent {
                Some(parent) => parent.gone().await,
                None => std::future::pending().await,
            }
        };
        let why = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = gone => "the gateway is gone",
        };
        tracing::info!(why, "ending");
    })
}
