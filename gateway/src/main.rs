//! `openshell-gateway`: the server, its certificates, and a small client.
//!
//! Without a verb it opens the database, finds its driver, and serves until it is told to end. See the library for what it does.

#![forbid(unsafe_code)]

mod client;
mod server;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use openshell_gateway::certs::{self, Done};
use openshell_gateway::config::{Config, Flags};
use tracing::level_filters::LevelFilter;

/// The gateway of `OpenShell` sandboxes
#[derive(Debug, Parser)]
#[command(
    name = "openshell-gateway",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the files of TLS and of tokens for one gateway
    GenerateCerts(GenerateCerts),
    /// Make, list, use and delete sandboxes of a gateway that runs
    Sandbox(Box<client::Sandbox>),
}

#[derive(Debug, clap::Args)]
struct GenerateCerts {
    /// Where they go: ca.crt, guest-ca.crt, server/, client/, guest/ and jwt/
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,
    /// A further name or address of the gateway; may be repeated
    #[arg(long = "server-san", value_name = "SAN")]
    server_sans: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.verb {
        None => serve(cli.flags),
        Some(Verb::GenerateCerts(asked)) => generate(&asked),
        Some(Verb::Sandbox(asked)) => client::run(*asked),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            // There is nobody left to tell when this fails.
            drop(writeln!(std::io::stderr(), "openshell-gateway: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: Flags) -> Result<ExitCode> {
    let level = flags.log_level.trim().parse().unwrap_or(LevelFilter::INFO);
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let config = Config::load(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(server::run(config))?;
    Ok(ExitCode::SUCCESS)
}

fn generate(asked: &GenerateCerts) -> Result<ExitCode> {
    let dir = asked.output_dir.display();
    let said = match certs::generate(&asked.output_dir, &asked.server_sans)? {
        Done::Made => format!("made in {dir}"),
        Done::Kept => format!("all files are in {dir} already; nothing was changed"),
    };
    writeln!(std::io::stdout(), "{said}").context("cannot write")?;
    Ok(ExitCode::SUCCESS)
}
