//! The files below `/etc` that depend on the machine, as text.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::Host;

/// `/etc/hosts`: localhost, the machine's own name, then what the config says.
#[must_use]
pub fn hosts(hostname: Option<&str>, address: Option<Ipv4Addr>, more: &[Host]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if let Some(name) = hostname {
        // A name that leads nowhere delays programs that look themselves up.
        let address = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
        text.push_str(&format!("{address}\t{name}\n"));
    }
    for host in more.iter().filter(|host| !host.names.is_empty()) {
        text.push_str(&format!("{}\t{}\n", host.address, host.names.join(" ")));
    }
    text
}

/// `/etc/resolv.conf`; nothing when there is nothing to say.
#[must_use]
pub fn resolver(dns: &[IpAddr], search: &[String]) -> Option<String> {
    let mut text = String::new();
    for address in dns {
        text.push_str(&format!("nameserver {address}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_begin_with_localhost_and_the_own_name() {
        let more = [
            Host { address: [1, 2, 3, 4].into(), names: vec!["a".to_owned(), "b.c".to_owned()] },
            Host { address: [1, 2, 3, 5].into(), names: Vec::new() },
        ];
        let text = hosts(Some("work"), Some([10, 0, 0, 2].into()), &more);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines, ["10.0.0.2\twork", "1.2.3.4\ta b.c"]);
        assert!(hosts(Some("work"), None, &[]).ends_with("127.0.1.1\twork\n"));
        assert_eq!(hosts(None, None, &[]).lines().count(), 2);
    }

    #[test]
    fn a_resolver_without_servers_is_none() {
        assert_eq!(resolver(&[], &[]), None);
        let text = resolver(&[[9, 9, 9, 9].into()], &["x.y".to_owned(), "z".to_owned()]);
        assert_eq!(text.as_deref(), Some("nameserver 9.9.9.9\nsearch x.y z\n"));
    }
}
