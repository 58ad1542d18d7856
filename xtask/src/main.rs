//! Every developer and CI command of openshell-vmm.
#![forbid(unsafe_code)]

mod kernel;
mod setup;

use clap::Parser;

/// Developer and CI commands.
#[derive(Debug, Parser)]
enum Verb {
    /// Build the guest kernels, or find them in the cache.
    Kernel(kernel::Args),
    /// Install what development needs, or print the command that does.
    Setup(setup::Args),
}

fn main() -> anyhow::Result<()> {
    match Verb::parse() {
        Verb::Kernel(args) => kernel::run(&args),
        Verb::Setup(args) => setup::run(&args),
    }
}
