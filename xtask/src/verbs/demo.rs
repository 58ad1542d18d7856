//! `cargo xtask demo`: from a fresh clone to a shell in a guest, where a guest can run.
//!
//! With a terminal the shell is the developer's. Without one a few commands go through a pipe, and
//! the verb fails unless the guest's own answer comes back.

use std::io::{IsTerminal as _, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::test::{carry, host_refusal};
use crate::fixtures::Fixtures;
use crate::lab::{Output, Spec};
use crate::{say, setup};

const SCRIPT: &str = include_str!("demo.sh");
/// What the guest's shell computes; the commands sent to it do not hold this text.
const ANSWER: &str = "the guest says 42";
const DEADLINE: Duration = Duration::from_mins(4);

/// Runs the verb.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Lab)?;
    let fixtures = Fixtures::for_demo()?;
    let refusal = host_refusal(&fixtures.path("openshell-vmm"))?;
    if let Some(reason) = &refusal {
        say::line(format_args!("the guest runs in the lab: {reason}"));
    }
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        return shell(&fixtures, refusal.is_some());
    }
    say::step("boot the guest and ask its shell", || {
        let answer = if refusal.is_some() { ask_in_lab(&fixtures) } else { ask(&fixtures) }?;
        std::io::stdout().write_all(&answer).context("cannot print the answer")?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(text.contains(ANSWER), "the guest's shell did not answer `{ANSWER}`");
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn shell(fixtures: &Fixtures, in_lab: bool) -> Result<ExitCode> {
    if in_lab {
        say::line("starting the lab, then the guest in it; `exit` leaves, Ctrl-A x kills the lab");
        let outcome = lab(fixtures, "shell").run()?;
        return Ok(ExitCode::from(outcome.code));
    }
    let status = script(fixtures, "shell").status().context("cannot start the guest")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

fn ask(fixtures: &Fixtures) -> Result<Vec<u8>> {
    let output = script(fixtures, "ask")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the guest")?;
    ended(output.status.code(), output.stdout)
}

fn ask_in_lab(fixtures: &Fixtures) -> Result<Vec<u8>> {
    let outcome = lab(fixtures, "ask").run()?;
    say::quote(String::from_utf8_lossy(&outcome.stderr));
    ended(Some(i32::from(outcome.code)), outcome.stdout)
}

fn ended(code: Option<i32>, output: Vec<u8>) -> Result<Vec<u8>> {
    if code != Some(0) {
        say::quote(String::from_utf8_lossy(&output));
        bail!("the guest ended with exit code {code:?}");
    }
    Ok(output)
}

fn script(fixtures: &Fixtures, mode: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "demo", mode]).arg(fixtures.directory());
    command
}

fn lab(fixtures: &Fixtures, mode: &str) -> Spec {
    let terminal = mode == "shell";
    let words = ["sh", "-c", SCRIPT, "demo", mode, "/fixtures"];
    let mut spec = Spec {
        command: words.map(str::to_owned).to_vec(),
        terminal,
        output: Output::Capture,
        timeout: if terminal { Duration::from_hours(24) } else { DEADLINE },
        ..Spec::default()
    };
    carry(fixtures, &mut spec);
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd;

    #[test]
    fn the_answer_is_not_in_the_question() {
        assert!(!SCRIPT.contains(ANSWER));
        cmd::run(Command::new("sh").args(["-n", "-c", SCRIPT])).unwrap();
    }
}
