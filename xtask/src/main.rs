//! Every developer and CI command of openshell-vmm.
#![forbid(unsafe_code)]

mod binaries;
mod cmd;
mod fixtures;
mod kernel;
mod lab;
mod lint;
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
    /// Install what development needs, or print the command that does
    Setup(setup::Args),
    /// Build the guest kernels, or find them in the cache
    Kernel(kernel::Args),
    /// Run a command (or a shell) on an emulated machine with an ordinary /dev/kvm
    Lab(verbs::lab::Arguments),
    /// Run every test, each on a machine that can run it
    Test(verbs::test::Arguments),
    /// Run the property tests of images on more random trees, and what takes too long for every run
    Property(verbs::property::Arguments),
    /// Check format, lints, arrows between modules, unsafe code, names and dependencies
    Lint,
    /// Set everything up and boot a guest to its shell
    Demo,
    /// Build the release archive with checksums
    Dist,
    /// Run the fuzz targets
    Fuzz(verbs::fuzz::Arguments),
    /// Run a benchmark on this machine and by the lab's instruction clock
    Bench(verbs::bench::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Setup(arguments) => setup::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Kernel(arguments) => kernel::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Lab(arguments) => verbs::lab::run(arguments),
        Verb::Test(arguments) => verbs::test::run(&arguments),
        Verb::Property(arguments) => verbs::property::run(&arguments),
        Verb::Lint => verbs::lint::run(),
        Verb::Demo => verbs::demo::run(),
        Verb::Dist => verbs::dist::run(),
        Verb::Fuzz(arguments) => verbs::fuzz::run(&arguments),
        Verb::Bench(arguments) => verbs::bench::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        say::line(format_args!("error: {error:#}"));
        match error.downcast_ref::<lab::TimedOut>() {
            Some(_) => ExitCode::from(124),
            None => ExitCode::from(125),
        }
    })
}
