//! The loopback, the card, its address and route.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::config::{Mode, Network, Prefix};
use crate::dhcp::{self, Action, Client};
use crate::failure::{Failure, Step};
use crate::netlink::{Message, Socket};
use crate::sys::bind;

const LOOPBACK: &str = "lo";

/// What the rest of the boot needs to know of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The machine's address.
    pub address: Option<Ipv4Addr>,
    /// Resolvers.
    pub dns: Vec<IpAddr>,
    /// Domains for unqualified names.
    pub search: Vec<String>,
}

/// Sets it all up.
///
/// # Errors
/// A request that the kernel refused, a required interface that is missing, a DHCP server that is silent.
pub fn apply(network: &Network, hostname: Option<&str>) -> Result<Applied, Failure> {
    let step = Step::Network;
    let mut socket = Socket::open().map_err(step.at("netlink"))?;
    let loopback = socket.index(LOOPBACK).map_err(step.at(LOOPBACK))?;
    socket.ask(Message::link_up(loopback, None)).map_err(step.at(LOOPBACK))?;
    let name = network.interface();
    let configured =
        Applied { address: None, dns: network.dns.clone(), search: network.search.clone() };
    let index = match socket.index(name) {
        _ if network.mode() == Mode::None => return Ok(configured),
        Err(Errno::NODEV) if !network.is_required() => return Ok(configured),
        result => result.map_err(step.at(name))?,
    };
    if let (Mode::Static, Some(address)) = (network.mode(), network.address) {
        socket.ask(Message::link_up(index, network.mtu)).map_err(step.at(name))?;
        addresses(&mut socket, (index, name), address, network.gateway)?;
        return Ok(Applied { address: Some(address.address), ..configured });
    }
    socket.ask(Message::link_up(index, None)).map_err(step.at(name))?;
    let lease = lease(name, hostname)?;
    let mtu = network.mtu.or(lease.mtu);
    if mtu.is_some() {
        socket.ask(Message::link_up(index, mtu)).map_err(step.at(name))?;
    }
    addresses(&mut socket, (index, name), lease.address, network.gateway.or(lease.router))?;
    let dns = if network.dns.is_empty() { lease.dns } else { configured.dns };
    let search = if network.search.is_empty() { lease.search } else { configured.search };
    Ok(Applied { address: Some(lease.address.address), dns, search })
}

fn addresses(
    socket: &mut Socket,
    (index, name): (u32, &str),
    address: Prefix,
    gateway: Option<Ipv4Addr>,
) -> Result<(), Failure> {
    socket.ask(Message::address(index, address)).map_err(Step::Network.at(name))?;
    let Some(gateway) = gateway else { return Ok(()) };
    let route = Message::route(None, Some(gateway), Some(index));
    socket.ask(route).map_err(Step::Network.at(gateway.to_string()))
}

/// Asks for a lease.
fn lease(name: &str, hostname: Option<&str>) -> Result<dhcp::Lease, Failure> {
    let step = Step::Dhcp;
    let mac = hardware_address(name)?;
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, dhcp::CLIENT_PORT)).map_err(step.io(name))?;
    socket.set_broadcast(true).map_err(step.io(name))?;
    // Without an address there is no route yet: the interface has to be named.
    bind::to_interface(socket.as_fd(), name).map_err(step.at(name))?;
    let mut transaction = [0; 4];
    getrandom(&mut transaction[..], GetRandomFlags::empty()).map_err(step.at(name))?;
    let mut client = Client::new(mac, u32::from_be_bytes(transaction), hostname.map(str::to_owned));
    let since = Instant::now();
    let mut buffer = [0; 1500];
    loop {
        match client.next(since.elapsed()) {
            Action::Send(bytes) => {
                let to = (Ipv4Addr::BROADCAST, dhcp::SERVER_PORT);
                socket.send_to(&bytes, to).map_err(step.io(name))?;
            }
            Action::Wait(time) => {
                let time = time.max(Duration::from_millis(1));
                socket.set_read_timeout(Some(time)).map_err(step.io(name))?;
                let received = match socket.recv_from(&mut buffer) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                    result => result.map_err(step.io(name))?.0,
                };
                if let Some(lease) = client.receive(buffer.get(..received).unwrap_or_default()) {
                    return Ok(lease);
                }
            }
            Action::GiveUp => {
                let waited = since.elapsed().as_secs();
                let message = format!("no lease after {} messages and {waited} s", dhcp::TRIES);
                return Err(Failure::new(step, message).path(name));
            }
        }
    }
}

fn hardware_address(name: &str) -> Result<[u8; 6], Failure> {
    let path = format!("/sys/class/net/{name}/address");
    let text = fs::read_to_string(&path).map_err(Step::Dhcp.io(&path))?;
    parse_mac(text.trim()).ok_or_else(|| Failure::new(Step::Dhcp, "no Ethernet").path(&path))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_bytes() {
        assert_eq!(parse_mac("5a:94:ef:e4:0c:ee"), Some([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]));
        for text in ["", "5a:94", "5a:94:ef:e4:0c:ee:00", "zz:94:ef:e4:0c:ee"] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }
}
