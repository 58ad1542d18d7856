//! `net`: the network stack by itself.

use std::path::PathBuf;

use clap::Args;
use openshell_vmm::net::alone::{self, Side};

use super::failure::Failure;
use super::net_args::NetArgs;

/// Run the network stack alone, on a tap device or a Unix stream
///
/// A tap's guest has the hardware address of the tap's interface; --mac changes it.
/// It ends with SIGINT or SIGTERM and prints its counters then, and at SIGUSR1. The guest, or whoever is on the other side, has
/// the address 192.168.127.2, which DHCP tells it; 192.168.127.1 is its gateway and resolver.
#[derive(Debug, Args)]
pub(super) struct NetVerbArgs {
    /// Serve this tap device; it is made when there is none
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "stream",
        conflicts_with = "stream"
    )]
    tap: Option<String>,
    /// The network namespace that the tap is in, such as /run/netns/NAME
    #[arg(long, value_name = "PATH", requires = "tap")]
    netns: Option<PathBuf>,
    /// Take and give frames as they would be on a wire, without offloads
    #[arg(long, requires = "tap")]
    no_offloads: bool,
    /// Serve the first who connects to this Unix socket, such as QEMU's -netdev stream
    #[arg(long, value_name = "PATH")]
    stream: Option<PathBuf>,
    #[command(flatten)]
    network: NetArgs,
    /// Leave threads unconfined, to debug
    #[arg(long)]
    no_seccomp: bool,
}

pub(super) fn net(args: NetVerbArgs) -> Result<u8, Failure> {
    let spec =
        args.network.into_spec(None).map_err(|error| Failure::of(&error, super::CODE_USAGE))?;
    let side = match (args.tap, args.stream) {
        (Some(name), _) => Side::Tap { name, netns: args.netns, plain: args.no_offloads },
        (None, Some(path)) => Side::Stream(path),
        // The parser lets neither pass.
        (None, None) => return Ok(super::CODE_USAGE),
    };
    alone::run(&side, &spec, !args.no_seccomp, &mut |text: &str| super::say(text))
        .map(|()| 0)
        .map_err(|error| Failure::of(&error, 1))
}
