//! What the host gives to a guest's network.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use super::Check;
use crate::config::net_plan::RESOLV_CONF;
use crate::net::resolvers;
use crate::sys::inet::{self, Kind, NumberOption};

pub(super) fn examine() -> Vec<Check> {
    vec![resolvers_of(Path::new(RESOLV_CONF)), ipv6(), ping(), udp_segments()]
}

fn resolvers_of(path: &Path) -> Check {
    let name = "resolvers";
    let fix = "name one there, or give a machine its own: run --dns ADDR";
    match resolvers::read(path) {
        Ok(found) if found.is_empty() => Check::warn(
            name,
            format!("{} names none: guests resolve no names", path.display()),
            fix,
        ),
        Ok(found) => {
            let mut text = String::new();
            for resolver in found {
                let comma = if text.is_empty() { "" } else { ", " };
                // A String takes everything.
                write!(text, "{comma}{resolver}").ok();
            }
            Check::ok(name, text)
        }
        Err(error) => Check::warn(
            name,
            format!("cannot read {}: {error}: guests resolve no names", path.display()),
            fix,
        ),
    }
}

/// Whether there is a way to the internet by IPv6. Nothing is sent: to connect a datagram socket is to look for a route.
fn ipv6() -> Check {
    let documentation = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let to = SocketAddr::from((documentation, 53));
    let found = inet::open(to.ip(), Kind::Datagram)
        .and_then(|socket| inet::connect(socket.as_fd(), to).map(drop));
    match found {
        Ok(()) => Check::ok("IPv6", "there is a route"),
        Err(error) => Check::ok("IPv6", format!("no route ({error}): guests have IPv4")),
    }
}

fn ping() -> Check {
    let name = "ping";
    let four = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if inet::open(four, Kind::Ping).is_ok() {
        return Check::ok(name, "this user may send echo requests");
    }
    match inet::open(four, Kind::RawIcmp) {
        Ok(_) => Check::ok(name, "echo requests by raw sockets (CAP_NET_RAW)"),
        Err(error) => Check::warn(
            name,
            format!("refused ({error}): guests can ping their gateway alone"),
            "sudo sysctl net.ipv4.ping_group_range='0 2147483647'",
        ),
    }
}

fn udp_segments() -> Check {
    let name = "UDP segments";
    let socket = inet::open(IpAddr::V4(Ipv4Addr::LOCALHOST), Kind::Datagram);
    let set = |option: NumberOption, value| {
        socket.as_ref().is_ok_and(|socket| option.set(socket.as_fd(), value).is_ok())
    };
    match (set(NumberOption::UDP_SEGMENT, 1400), set(NumberOption::UDP_GRO, 1)) {
        (true, true) => Check::ok(name, "the kernel cuts and joins datagrams"),
        _ => Check::warn(
            name,
            "the kernel does not cut and join datagrams: UDP is slower",
            "use a kernel of version 5.0 or later",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn resolvers_are_named_or_missed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let check = resolvers_of(&path);
        assert_eq!(check.status, Status::Warn);
        assert!(check.detail.contains("cannot read") && check.fix.unwrap().contains("--dns"));
        std::fs::write(&path, "# none\n").unwrap();
        assert!(resolvers_of(&path).detail.contains("names none"));
        std::fs::write(&path, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n").unwrap();
        let check = resolvers_of(&path);
        assert_eq!(
            (check.status, check.detail.as_str()),
            (Status::Ok, "192.0.2.1:53, [2001:db8::1]:53")
        );
    }

    #[test]
    fn each_thing_is_looked_at_once() {
        let names: Vec<&str> = examine().iter().map(|check| check.name).collect();
        assert_eq!(names, ["resolvers", "IPv6", "ping", "UDP segments"]);
    }
}
