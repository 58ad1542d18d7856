//! The command `openshell-conformance`.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use openshell_conformance::played::Played;
use openshell_conformance::{driver, gateway};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Checks a gateway or a compute driver of `OpenShell` over the wire
#[derive(Debug, Parser)]
#[command(name = "openshell-conformance", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    whom: Whom,
}

#[derive(Debug, Subcommand)]
enum Whom {
    /// A driver that listens on a Unix socket and hears this user. It makes, stops, starts and deletes sandboxes
    Driver {
        /// The socket
        #[arg(long)]
        socket: PathBuf,
        /// The image of the sandboxes
        #[arg(long)]
        image: String,
    },
    /// A gateway whose driver is this program. Users must need no token
    Gateway {
        /// The gateway
        #[arg(long)]
        endpoint: String,
        /// Where the gateway looks for its driver
        #[arg(long)]
        driver_socket: PathBuf,
        /// The authority of the gateway's certificate
        #[arg(long)]
        tls_ca: Option<PathBuf>,
        /// A user's certificate
        #[arg(long, requires = "tls_key")]
        tls_cert: Option<PathBuf>,
        /// Its key
        #[arg(long)]
        tls_key: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let report = match Cli::parse().whom {
        Whom::Driver { socket, image } => driver::check(&socket, &image).await?,
        Whom::Gateway { endpoint, driver_socket, tls_ca, tls_cert, tls_key } => {
            let mut way = Endpoint::from_shared(endpoint)?;
            if let Some(ca) = tls_ca {
                let mut tls =
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&ca)?));
                if let (Some(cert), Some(key)) = (tls_cert, tls_key) {
                    tls = tls.identity(Identity::from_pem(read(&cert)?, read(&key)?));
                }
                way = way.tls_config(tls)?;
            }
            gateway::check(way, Played::serve(&driver_socket)?).await?
        }
    };
    let failed = report.failures().count();
    let mut out = std::io::stdout().lock();
    write!(out, "{}", report.text())?;
    writeln!(out, "{} checks, {failed} failed", report.len())?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}
