//! How an error is printed, whoever made it.

use clap::error::ErrorKind;
use openshell_vmm::explain::Explain;
use openshell_vmm::report::{Source, Verdict, text};

/// An error on its way to standard error.
#[derive(Debug)]
pub(super) struct Failure {
    /// What did not happen.
    pub(super) what: String,
    /// Why.
    pub(super) why: Option<String>,
    /// What can be done.
    pub(super) fix: Option<String>,
    /// Exit code of the process.
    pub(super) code: u8,
}

impl Failure {
    /// `error`, with the exit code `code`.
    pub(super) fn of(error: &impl Explain, code: u8) -> Self {
        let what = error.to_string();
        // Some errors of libraries end with their source.
        let why = error.why().filter(|why| !what.contains(why.as_str()));
        Self { what, why, fix: error.fix(), code }
    }

    /// An error of the argument parser, brought into the form of all others: its first paragraph says what is wrong, its
    /// tip becomes the fix, and the usage, which follows, is one command away.
    pub(super) fn usage(kind: ErrorKind, rendered: &str, code: u8) -> Self {
        let verb = std::env::args_os()
            .nth(1)
            .and_then(|verb| verb.into_string().ok())
            .filter(|verb| super::definition().find_subcommand(verb).is_some())
            .map_or_else(String::new, |verb| format!(" {verb}"));
        let see = format!("see `openshell-vmm{verb} --help`");
        if kind == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let what = "a command is missing".to_owned();
            return Self { what, why: None, fix: Some(see), code };
        }
        let mut lines = rendered.lines().map(str::trim);
        let what: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let what = what.join(" ");
        let tip = lines.find_map(|line| line.strip_prefix("tip: ")).map(str::to_owned);
        Self {
            what: what.strip_prefix("error: ").unwrap_or(&what).to_owned(),
            why: None,
            fix: Some(tip.unwrap_or(see)),
            code,
        }
    }

    /// What is told about a run that failed in this way before there was an outcome.
    pub(super) fn verdict(&self) -> Verdict {
        Verdict {
            source: Source::Vmm,
            code: self.code,
            what: self.what.clone(),
            why: self.why.clone(),
            fix: self.fix.clone(),
            registers: None,
            failed: true,
        }
    }

    pub(super) fn print(&self) {
        super::say(&text::error(&self.what, self.why.as_deref(), self.fix.as_deref()));
    }
}
