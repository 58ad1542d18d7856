//! The agent as a program: started by the guest's first process, serves the host until the machine ends, or until the main process whose
//! streams it carries has.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::main_process::MainProcess;
use crate::server;
use crate::session::Guest;

const USAGE: &str = "it takes --user NAME, --group NAME, --workdir DIR and --main";

/// Runs it with the arguments behind its name. To be called once, before there is another thread.
#[must_use]
pub fn run(args: &[OsString]) -> ExitCode {
    // Without it the process has the name of the file that it shares with the first one.
    _ = rustix::thread::set_name(c"openshell-agent");
    let mut guest = Guest::of_process();
    let mut main = None;
    for option in args.chunks(2) {
        let [name, value] = option else { return complain(&USAGE) };
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
            return complain(&USAGE);
        };
        match name {
            "--user" => value.clone_into(&mut guest.user),
            "--group" => guest.groups.push(value.to_owned()),
            "--workdir" => guest.directory = value.into(),
            "--main" => main = MainProcess::parse(value),
            _ => return complain(&USAGE),
        }
    }
    let serve = || match server::run(guest) {
        Ok(never) => match never {},
        Err(error) => complain(&error),
    };
    let Some(main) = main else { return serve() };
    match std::thread::Builder::new().name("server".to_owned()).spawn(serve) {
        Ok(_) => main.serve(),
        Err(error) => return complain(&error),
    }
    ExitCode::SUCCESS
}

fn complain(what: &dyn std::fmt::Display) -> ExitCode {
    use std::io::Write as _;
    // Without a console nobody can be told.
    drop(writeln!(std::io::stderr(), "openshell-agent: {what}"));
    ExitCode::FAILURE
}
