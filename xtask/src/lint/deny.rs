//! `cargo deny`: licences, sources, duplicate versions, and advisories where they can be fetched.

use anyhow::Result;

use crate::{cmd, say};

const VERSION: &str = "0.20.2";

/// Checks the dependencies against deny.toml. Without a connection the advisories cannot be
/// checked; that is said, and everything else still is.
pub(crate) fn check() -> Result<()> {
    if cmd::find("cargo-deny").is_none() && !cmd::cargo_has("deny") {
        say::step("install cargo-deny", || {
            let mut command = cmd::cargo();
            cmd::run(command.args(["install", "--locked", "--version", VERSION, "cargo-deny"]))
        })?;
    }
    let deny = |arguments: &[&str]| {
        let mut command = cmd::cargo();
        command.arg("deny").args(arguments);
        command
    };
    cmd::run(&mut deny(&["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    if let Err(error) = cmd::output(&mut deny(&["fetch", "db"])) {
        say::line("advisories are NOT checked: the advisory database cannot be fetched");
        say::quote(format_args!("{error:#}"));
        return Ok(());
    }
    cmd::run(&mut deny(&["check", "--disable-fetch", "--hide-inclusion-graph", "advisories"]))
}
