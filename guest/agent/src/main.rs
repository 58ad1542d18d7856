//! `openshell-agent`: started by the guest's first process, serves the host until the machine ends, or until the main process whose
//! streams it carries has.

use std::process::ExitCode;

use openshell_agent::main_process::MainProcess;
use openshell_agent::server;
use openshell_agent::session::Guest;

fn main() -> ExitCode {
    let mut guest = Guest::of_process();
    let mut main = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--user", Some(user)) => guest.user = user,
            ("--group", Some(group)) => guest.groups.push(group),
            ("--workdir", Some(directory)) => guest.directory = directory.into(),
            ("--main", Some(text)) => main = MainProcess::parse(&text),
            _ => return complain(&"it takes --user NAME, --group NAME, --workdir DIR and --main"),
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
