//! The flags of the network, which `run` and `net` share.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Args;
use openshell_vmm::config::failure::SpecError;
use openshell_vmm::config::net::{self, MacAddress, Mtu, NetSpec, PublishSpec};
use openshell_vmm::config::net_limits::NetLimit;

/// Flags of the network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(super) struct NetArgs {
    /// Let a port of the host lead to the guest; on the host's loopback unless ADDR says otherwise
    #[arg(short, long, value_name = "[ADDR:]HOST:GUEST[/udp]")]
    publish: Vec<String>,
    /// Let the guest reach this: a group, an address, a network or a name, with ports
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// Keep the guest from this; the more specific of all rules decides
    #[arg(long, value_name = "RULE")]
    deny: Vec<String>,
    /// Read further rules from a TOML file, again whenever it changes
    #[arg(long, value_name = "FILE")]
    net_policy: Option<PathBuf>,
    /// How the guest hears of a refusal: connections are reset, an ICMP error for all, or nothing [default: reset]
    #[arg(long, value_name = "reset|icmp|drop")]
    net_refuse: Option<String>,
    /// Ask this resolver instead of the host's; may be given several times
    #[arg(long, value_name = "ADDR[:PORT]")]
    dns: Vec<String>,
    /// Read resolvers from FILE, again whenever it changes [default: /etc/resolv.conf]
    #[arg(long, value_name = "FILE", conflicts_with = "dns")]
    resolv_conf: Option<PathBuf>,
    /// Give the guest IPv6 too: what the host reaches by it, and fd6f:7368:656c:6c00::fe for the host itself
    #[arg(long)]
    ipv6: bool,
    /// Largest packet in bytes, 576 to 65520 [default: 1500]
    #[arg(long, value_name = "N")]
    mtu: Option<String>,
    /// The guest's hardware address [default: 5a:94:ef:e4:0c:ee]
    #[arg(long, value_name = "MAC")]
    mac: Option<String>,
    /// Write what the guest is refused to FILE, one JSON object a line
    #[arg(long, value_name = "FILE")]
    net_log: Option<PathBuf>,
    /// Write every frame to FILE, for tshark
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Limit bytes per second, each way: 100M
    #[arg(long, value_name = "SIZE")]
    net_bw: Option<String>,
    /// Limit packets per second, each way
    #[arg(long, value_name = "N")]
    net_pps: Option<String>,
    /// Keep more or less than usual: tcp-flows=4096; docs/networking.md has the names
    #[arg(long, value_name = "NAME=VALUE")]
    net_limit: Vec<String>,
}

impl NetArgs {
    /// What the flags say; `mode` is the value of `--net`, which `net` has not.
    pub(super) fn into_spec(self, mode: Option<&OsStr>) -> Result<NetSpec, SpecError> {
        Ok(NetSpec {
            mode: mode.map(net::parse_mode).transpose()?,
            publish: self
                .publish
                .iter()
                .map(|text| PublishSpec::parse(text))
                .collect::<Result<_, _>>()?,
            allow: self.allow,
            deny: self.deny,
            policy: self.net_policy,
            refuse: self.net_refuse.as_deref().map(NetSpec::parse_refuse).transpose()?,
            dns: self.dns.iter().map(|text| NetSpec::parse_dns(text)).collect::<Result<_, _>>()?,
            resolv_conf: self.resolv_conf,
            ipv6: self.ipv6,
            mtu: self.mtu.as_deref().map(Mtu::parse).transpose()?,
            mac: self.mac.as_deref().map(MacAddress::parse).transpose()?,
            log: self.net_log,
            pcap: self.pcap,
            bw: self.net_bw.as_deref().map(NetSpec::parse_bw).transpose()?,
            pps: self.net_pps.as_deref().map(NetSpec::parse_pps).transpose()?,
            limits: self
                .net_limit
                .iter()
                .map(|text| NetLimit::parse(text))
                .collect::<Result<_, _>>()?,
            ..NetSpec::default()
        })
    }
}
