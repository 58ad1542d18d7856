//! The supervisor as a program of a guest: settings from the environment, the exit code of the main process at the end.

use std::process::ExitCode;

use openshell_guest::connect::chain;
use openshell_guest::settings::Settings;
use openshell_guest::supervise;

/// Exit code when the sandbox never got its main process.
const FAILED: u8 = 125;
/// Ends the machine for a supervisor that is its first process.
const INIT: &str = "/opt/openshell/bin/openshell-init";

fn main() -> ExitCode {
    let code = run().unwrap_or_else(|error| {
        say(&format!("error: {}", chain(&*error)));
        FAILED
    });
    if std::process::id() == 1 {
        use std::os::unix::process::CommandExt as _;
        let error = std::process::Command::new(INIT).args(["exit", &code.to_string()]).exec();
        say(&format!("error: {INIT}: {error}"));
    }
    ExitCode::from(code)
}

fn run() -> Result<u8, Box<dyn std::error::Error>> {
    let variables = std::env::vars_os();
    // What is not text cannot be a setting, and does not reach the sandbox.
    let text = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let settings = Settings::read(text, std::env::args().skip(1))?;
    // Two threads: one encrypts for SSH while the other does for the gateway.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(supervise::run(settings))?;
    runtime.shutdown_background();
    Ok(code)
}

fn say(line: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "openshell-supervisor: {line}"));
}
