//! `ip`, as far as a supervisor sets up a network namespace with it: `netns add|delete`, `link add|set|delete`, `addr add`,
//! `route add`.
//!
//! [`parse`] is pure: words to a command. Invariant: a word that is not understood is refused, never passed over.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::config::Prefix;
use crate::failure::describe;
use crate::netlink::{Message, Socket};
use crate::sys::spawn::enter_new_network_namespace;

const NAMESPACES: &str = "/var/run/netns";
const NAME_MAX: usize = 15;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Command<'a> {
    AddNamespace(&'a str),
    DeleteNamespace(&'a str),
    AddVeth { name: &'a str, peer: &'a str },
    DeleteLink(&'a str),
    SetLink { name: &'a str, up: Option<bool>, mtu: Option<u16>, namespace: Option<&'a str> },
    AddAddress { prefix: Prefix, interface: &'a str },
    AddRoute { to: Option<Prefix>, via: Option<Ipv4Addr>, interface: Option<&'a str> },
}

/// Runs the command that `args` are.
pub(super) fn run(args: &[OsString]) -> Result<(), String> {
    let words: Option<Vec<&str>> = args.iter().map(|arg| arg.to_str()).collect();
    let words = words.ok_or("arguments must be UTF-8")?;
    let command = parse(&words).ok_or_else(|| format!("not understood: {}", words.join(" ")))?;
    match command {
        Command::AddNamespace(name) => add_namespace(&Path::new(NAMESPACES).join(name)),
        Command::DeleteNamespace(name) => delete_namespace(&Path::new(NAMESPACES).join(name)),
        Command::SetLink { name, up, mtu, namespace } => set_link(name, (up, mtu), namespace),
        Command::AddVeth { name, peer } => ask(Message::veth(name, peer)),
        Command::DeleteLink(name) => ask(Message::delete_link(index(name)?)),
        Command::AddAddress { prefix, interface } => {
            ask(Message::address(index(interface)?, prefix))
        }
        Command::AddRoute { to, via, interface } => {
            let index = interface.map(index).transpose()?;
            ask(Message::route(to, via, index))
        }
    }
}

fn parse<'a>(words: &[&'a str]) -> Option<Command<'a>> {
    let command = match words {
        ["netns", "add", name] => Command::AddNamespace(path_part(name)?),
        ["netns", "delete" | "del", name] => Command::DeleteNamespace(path_part(name)?),
        ["link" | "l", "add", rest @ ..] => {
            let rest = rest.strip_prefix(&["name"]).unwrap_or(rest);
            let rest = rest.strip_prefix(&["dev"]).unwrap_or(rest);
            match rest {
                [name, "type", "veth", "peer", "name", peer]
                | [name, "type", "veth", "peer", peer] => {
                    Command::AddVeth { name: interface(name)?, peer: interface(peer)? }
                }
                _ => return None,
            }
        }
        ["link" | "l", "delete" | "del", rest @ ..] => match rest {
            [name] | ["dev", name] => Command::DeleteLink(interface(name)?),
            _ => return None,
        },
        ["link" | "l", "set", rest @ ..] => parse_link(rest)?,
        ["addr" | "address" | "a", "add", prefix, "dev", name] => {
            let prefix = Prefix::parse(prefix).or_else(|| host(prefix))?;
            Command::AddAddress { prefix, interface: interface(name)? }
        }
        ["route" | "r", "add", to, rest @ ..] => parse_route(to, rest)?,
        _ => return None,
    };
    Some(command)
}

fn parse_link<'a>(words: &[&'a str]) -> Option<Command<'a>> {
    let words = words.strip_prefix(&["dev"]).unwrap_or(words);
    let (name, mut rest) = words.split_first()?;
    let (mut up, mut mtu, mut namespace) = (None, None, None);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        rest = match rest {
            ["up", rest @ ..] => {
                up = Some(true);
                rest
            }
            ["down", rest @ ..] => {
                up = Some(false);
                rest
            }
            ["mtu", number, rest @ ..] => {
                mtu = Some(number.parse().ok()?);
                rest
            }
            ["netns", name, rest @ ..] => {
                namespace = Some(path_part(name)?);
                rest
            }
            _ => return None,
        };
    }
    Some(Command::SetLink { name: interface(name)?, up, mtu, namespace })
}

fn parse_route<'a>(to: &str, words: &[&'a str]) -> Option<Command<'a>> {
    let to = match to {
        "default" => None,
        to => Some(Prefix::parse(to).or_else(|| host(to))?),
    };
    let (via, words) = match words {
        ["via", via, rest @ ..] => (Some(via.parse().ok()?), rest),
        _ => (None, words),
    };
    let interface = match words {
        [] if via.is_some() => None,
        ["dev", name] => Some(interface(name)?),
        _ => return None,
    };
    Some(Command::AddRoute { to, via, interface })
}

fn host(text: &str) -> Option<Prefix> {
    Some(Prefix { address: text.parse().ok()?, len: 32 })
}

fn interface(name: &str) -> Option<&str> {
    let fits = !name.is_empty() && name.len() <= NAME_MAX && !name.starts_with('-');
    let plain = !name.contains(['/', '\0']) && !name.contains(char::is_whitespace);
    (fits && plain && name != "." && name != "..").then_some(name)
}

fn path_part(name: &str) -> Option<&str> {
    let plain = !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('-');
    (plain && name != "." && name != "..").then_some(name)
}

fn kernel(errno: Errno) -> String {
    describe(errno)
}

fn index(name: &str) -> Result<u32, String> {
    let socket = Socket::open().map_err(kernel)?;
    socket.index(name).map_err(|errno| format!("interface {name}: {}", describe(errno)))
}

fn ask(message: Message) -> Result<(), String> {
    Socket::open().and_then(|mut socket| socket.ask(message)).map_err(kernel)
}

fn set_link(
    name: &str,
    (up, mtu): (Option<bool>, Option<u16>),
    namespace: Option<&str>,
) -> Result<(), String> {
    let index = index(name)?;
    if let Some(mtu) = mtu {
        ask(Message::link_mtu(index, mtu))?;
    }
    match up {
        Some(true) => ask(Message::link_up(index, None))?,
        Some(false) => ask(Message::link_down(index))?,
        None => {}
    }
    let Some(namespace) = namespace else { return Ok(()) };
    let path = Path::new(NAMESPACES).join(namespace);
    let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    ask(Message::link_to_namespace(index, file.as_raw_fd()))
}

/// Makes a namespace that lives as long as the mount at `path`.
fn add_namespace(path: &Path) -> Result<(), String> {
    let shown = path.display();
    fs::create_dir_all(NAMESPACES).map_err(|error| format!("{NAMESPACES}: {error}"))?;
    let made = File::options().write(true).create_new(true).open(path);
    made.map_err(|error| format!("{shown}: {error}"))?;
    let mount = || {
        enter_new_network_namespace()?;
        mount_bind("/proc/thread-self/ns/net", path)
    };
    mount().map_err(|errno| {
        drop(fs::remove_file(path));
        format!("{shown}: {}", describe(errno))
    })
}

fn delete_namespace(path: &Path) -> Result<(), String> {
    let shown = path.display();
    // What is no mount is a left-over file.
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(format!("{shown}: {}", describe(errno))),
    }
    fs::remove_file(path).map_err(|error| format!("{shown}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&Command<'_>>) {
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(parse(&words).as_ref(), expected, "{text}");
    }

    fn set<'a>(name: &'a str, up: Option<bool>, namespace: Option<&'a str>) -> Command<'a> {
        Command::SetLink { name, up, mtu: None, namespace }
    }

    #[test]
    fn what_a_supervisor_calls_is_understood() {
        let prefix = Prefix { address: [10, 200, 0, 1].into(), len: 24 };
        let via = Some([10, 200, 0, 1].into());
        for (text, command) in [
            ("netns add sandbox-1", Command::AddNamespace("sandbox-1")),
            ("netns delete sandbox-1", Command::DeleteNamespace("sandbox-1")),
            ("link add a type veth peer name b", Command::AddVeth { name: "a", peer: "b" }),
            ("link set b netns sandbox-1", set("b", None, Some("sandbox-1"))),
            ("link set a up", set("a", Some(true), None)),
            ("link set dev a down", set("a", Some(false), None)),
            ("link delete a", Command::DeleteLink("a")),
            ("addr add 10.200.0.1/24 dev a", Command::AddAddress { prefix, interface: "a" }),
            (
                "route add default via 10.200.0.1",
                Command::AddRoute { to: None, via, interface: None },
            ),
            (
                "route add 10.200.0.1/24 dev a",
                Command::AddRoute { to: Some(prefix), via: None, interface: Some("a") },
            ),
        ] {
            check(text, Some(&command));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "netns",
            "netns add ../x",
            "netns add -x",
            "link add a type bridge",
            "link set a",
            "link set a mtu",
            "link set a mtu 70000",
            "link set a up sideways",
            "link set a-name-that-is-too-long up",
            "addr add 10.200.0.1/33 dev a",
            "addr add 10.200.0.1/24",
            "route add default",
            "route add default via x",
            "route add default via 10.0.0.1 metric 1",
        ] {
            check(text, None);
        }
    }
}
