//! Every developer and CI command of openshell-vmm.
#![forbid(unsafe_code)]

mod cmd;
mod lab;
mod say;
mod setup;
mod verbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer and CI commands of openshell-vmm")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command (or a shell) on an emulated machine with an ordinary /dev/kvm
    Lab(verbs::lab::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Lab(arguments) => verbs::lab::run(arguments),
    };
    outcome.unwrap_or_else(|error| {
        say::line(format_args!("error: {error:#}"));
        match error.downcast_ref::<lab::TimedOut>() {
            Some(_) => ExitCode::from(124),
            None => ExitCode::from(125),
        }
    })
}
