//! The address of the gateway as the guest has to dial it.
//!
//! Invariant: a guest is never told an address that means itself. Loopback names of the host become the name under which a
//! guest reaches the host; every other host is kept, because its certificate carries that name. Pure but for [`Endpoint::rules`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

/// The name under which a guest reaches the loopback of its host.
const HOST_NAME: &str = "host.openshell.internal";
/// All names of that kind, and the address behind them.
const HOST_NAMES: [&str; 4] =
    [HOST_NAME, "host.containers.internal", "host.docker.internal", "192.168.127.254"];
/// How long a name of the gateway may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(3);

/// A gateway's address, as the operator gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    uri: String,
    host: String,
    port: u16,
    tls: bool,
}

/// A gateway's address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a URL.
    #[error("{0:?} is not a URL; write http://HOST:PORT or https://HOST:PORT")]
    Form(String),
    /// Neither http nor https.
    #[error("{0:?} is neither http nor https")]
    Scheme(String),
    /// An address to listen on.
    #[error("{0:?} names an address to listen on, which nobody can dial; name the host")]
    Unspecified(String),
}

impl Endpoint {
    /// Reads an address.
    ///
    /// # Errors
    ///
    /// When it is no URL of HTTP, or its host is an address that only listeners use.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let text = text.trim();
        let form = || EndpointError::Form(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| form())?;
        let scheme = uri.scheme().ok_or_else(form)?;
        let tls = match scheme {
            s if *s == Scheme::HTTP => false,
            s if *s == Scheme::HTTPS => true,
            _ => return Err(EndpointError::Scheme(text.to_owned())),
        };
        let authority = uri.authority().ok_or_else(form)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(form());
        }
        if address(host).is_some_and(|address| address.is_unspecified()) {
            return Err(EndpointError::Unspecified(text.to_owned()));
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if !authority.as_str().ends_with(authority.host()) => return Err(form()),
            None if tls => 443,
            None => 80,
        };
        Ok(Self { uri: text.to_owned(), host: host.to_owned(), port, tls })
    }

    /// Whether it is spoken to over TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// The URL for the guest.
    pub fn for_guest(&self) -> String {
        if !self.is_loopback() {
            return self.uri.clone();
        }
        let rest = self.uri.split_once("://").map_or("", |(_, rest)| rest);
        let path = rest.find('/').map_or("", |at| &rest[at..]);
        let scheme = if self.tls { "https" } else { "http" };
        // A port that was not given is the scheme's own, for the guest too.
        let given = rest.strip_suffix(path).unwrap_or(rest).ends_with(&format!(":{}", self.port));
        let port = if given { format!(":{}", self.port) } else { String::new() };
        format!("{scheme}://{HOST_NAME}{port}{path}")
    }

    /// The rules of the machine's network without which a guest would not reach the gateway: the host and private networks
    /// are closed to guests unless a rule opens them. A name is looked up, because it may lead into a private network.
    pub async fn rules(&self) -> Vec<String> {
        let port = self.port;
        if self.is_loopback() || HOST_NAMES.contains(&self.name().as_str()) {
            return vec![format!("tcp:host:{port}")];
        }
        if let Some(address) = address(&self.host) {
            return vec![rule(address, port)];
        }
        let lookup = tokio::net::lookup_host((self.host.as_str(), port));
        match tokio::time::timeout(LOOKUP, lookup).await {
            Ok(Ok(found)) => {
                let mut rules: Vec<String> = found.map(|found| rule(found.ip(), port)).collect();
                rules.sort();
                rules.dedup();
                rules.truncate(16);
                rules
            }
            // The guest's own lookup will tell.
            _ => Vec::new(),
        }
    }

    fn name(&self) -> String {
        self.host.trim_end_matches('.').to_ascii_lowercase()
    }

    fn is_loopback(&self) -> bool {
        let name = self.name();
        name == "localhost"
            || name.ends_with(".localhost")
            || address(&self.host).is_some_and(|address| address.is_loopback())
    }
}

fn rule(address: IpAddr, port: u16) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) if address.is_loopback() => format!("tcp:host:{port}"),
        IpAddr::V6(address) if address.is_loopback() => format!("tcp:host:{port}"),
        IpAddr::V4(address) => format!("tcp:{address}:{port}"),
        IpAddr::V6(address) => format!("tcp:[{address}]:{port}"),
    }
}

fn address(host: &str) -> Option<IpAddr> {
    let v4 = host.parse::<Ipv4Addr>().map(IpAddr::V4);
    let v6 = || host.parse::<Ipv6Addr>().map(IpAddr::V6);
    v4.or_else(|_| v6()).ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> String {
        Endpoint::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).for_guest()
    }

    #[test]
    fn guest_visible_openshell_endpoint_rewrites_loopback_hosts_to_host_alias() {
        for (given, expected) in [
            ("http://127.0.0.1:17670", "http://host.openshell.internal:17670"),
            ("https://localhost:17670", "https://host.openshell.internal:17670"),
            ("https://LOCALHOST.:17670/", "https://host.openshell.internal:17670/"),
            ("http://[::1]:80", "http://host.openshell.internal:80"),
            ("http://127.8.9.10", "http://host.openshell.internal"),
            ("https://[::ffff:127.0.0.1]:1/a/b", "https://host.openshell.internal:1/a/b"),
            ("http://gw.localhost:9", "http://host.openshell.internal:9"),
        ] {
            assert_eq!(seen(given), expected, "{given}");
        }
    }

    #[test]
    fn guest_visible_openshell_endpoint_preserves_non_loopback_hosts() {
        for given in [
            "https://gateway.example:8443",
            "http://10.0.0.5:8080/path",
            "http://host.containers.internal:17670",
            "https://[2001:db8::1]:443",
            "http://localhost.example:1",
        ] {
            assert_eq!(seen(given), given);
        }
    }

    #[test]
    fn validate_openshell_endpoint_accepts_loopback_hosts() {
        for given in ["http://127.0.0.1:1", "http://localhost:1", "https://[::1]:1"] {
            assert!(Endpoint::parse(given).is_ok(), "{given}");
        }
    }

    #[test]
    fn validate_openshell_endpoint_rejects_unspecified_hosts() {
        for given in ["http://0.0.0.0:1", "https://[::]:1", "http://[::ffff:0.0.0.0]:1"] {
            let error = Endpoint::parse(given).expect_err(given);
            assert!(matches!(error, EndpointError::Unspecified(_)), "{given}: {error}");
        }
    }

    #[test]
    fn validate_openshell_endpoint_accepts_host_gateway() {
        let endpoint = Endpoint::parse("http://host.openshell.internal:8080").expect("an endpoint");
        assert!(!endpoint.tls());
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for given in [
            "",
            "localhost:1",
            "ftp://h:1",
            "http://",
            "http://a b",
            "http://u@h:1",
            "http://h:99999",
            "http://h:",
        ] {
            assert!(Endpoint::parse(given).is_err(), "{given}");
        }
    }

    #[tokio::test]
    async fn a_machine_may_always_reach_its_gateway() {
        for (given, expected) in [
            ("http://127.0.0.1:17670", "tcp:host:17670"),
            ("https://host.docker.internal", "tcp:host:443"),
            ("http://10.0.0.5:8080", "tcp:10.0.0.5:8080"),
            ("https://[2001:db8::1]:8443", "tcp:[2001:db8::1]:8443"),
        ] {
            let endpoint = Endpoint::parse(given).expect("an endpoint");
            assert_eq!(endpoint.rules().await, [expected], "{given}");
        }
    }
}
