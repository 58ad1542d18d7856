//! Verbs of the command, and the one place where errors are printed.
//!
//! Invariant: a verb returns; data goes to the standard output, talk to the standard error. Exit codes: 0 done, 1
//! failed, 2 wrong usage, 3 no such image.

mod args;
mod build;
mod failure;
mod images;
mod output;
mod progress;
mod sandbox;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Verb};

/// Reads the arguments of this process and does what they say.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let global = &cli.global;
    let done = match cli.verb {
        Verb::Build(args) => build::build(&args, global),
        Verb::Pull(args) => build::pull(&args, global),
        Verb::Ls => images::ls(global),
        Verb::Inspect(args) => images::inspect(&args, global),
        Verb::Verify(args) => images::verify(&args, global),
        Verb::Prune(args) => images::prune(&args, global),
        Verb::Rm(args) => images::rm(&args, global),
        Verb::Cat(args) => images::cat(&args, global),
        Verb::ExportTar(args) => images::export_tar(&args, global),
        Verb::MakeUpper(args) => sandbox::make_upper(&args, global),
        Verb::MakeConfig(args) => sandbox::make_config(&args, global),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::print(&error, global),
    }
}
