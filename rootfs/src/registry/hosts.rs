//! Where a registry's requests go: its mirrors in order, then itself; and who may be spoken to without TLS.
//!
//! Invariant: plain HTTP is spoken with loopback addresses and with hosts that the configuration names for it, and with
//! nobody else, whatever an answer says. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;
use serde::Deserialize;

use super::error::RegistryError;
use crate::reference::DOCKER_HUB;

/// The host that serves Docker Hub.
const HUB_HOST: &str = "registry-1.docker.io";

/// What is known of registries beyond their names.
///
/// ```toml
/// [registry."docker.io"]
/// mirrors = ["https://mirror.example/hub"]
///
/// [registry."registry.internal:5000"]
/// plain-http = true
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    #[serde(default)]
    registry: BTreeMap<String, Host>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Host {
    /// Asked first, in this order.
    mirrors: Vec<String>,
    /// Whether there is no TLS.
    plain_http: Option<bool>,
    /// Certificates of authorities, in PEM, trusted for this host only.
    ca: Option<PathBuf>,
}

/// A place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Scheme, host, port and a path that ends with a slash.
    pub(super) base: Url,
    /// Whose content a mirror is asked for.
    pub(super) mirror_of: Option<String>,
    /// The host as credentials know it.
    pub(super) host: String,
}

impl Hosts {
    /// Reads a configuration in TOML.
    ///
    /// # Errors
    ///
    /// When it is not of this shape, or a mirror is no address.
    pub fn parse(text: &str) -> Result<Self, RegistryError> {
        let hosts: Self =
            toml::from_str(text).map_err(|error| RegistryError::Hosts(error.to_string()))?;
        for mirror in hosts.registry.values().flat_map(|host| &host.mirrors) {
            mirror_url(mirror)?;
        }
        Ok(hosts)
    }

    /// The certificates of authorities, by the host that they are for.
    pub(super) fn authorities(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.registry.iter().filter_map(|(name, host)| Some((name.as_str(), host.ca.as_ref()?)))
    }

    /// Where to ask for a registry's content, in order; the last is the registry itself.
    pub(super) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, RegistryError> {
        let mut endpoints = Vec::new();
        for mirror in self.registry.get(registry).map_or(&[][..], |host| &host.mirrors) {
            let base = mirror_url(mirror)?;
            let host = authority(&base);
            endpoints.push(Endpoint { base, mirror_of: Some(registry.to_owned()), host });
        }
        let address = if registry == DOCKER_HUB { HUB_HOST } else { registry };
        let wrong = |_| RegistryError::Hosts(format!("{registry:?} is not a host"));
        let secure = Url::parse(&format!("https://{address}/")).map_err(wrong)?;
        let base = if self.plain(&secure) {
            Url::parse(&format!("http://{address}/")).map_err(wrong)?
        } else {
            secure
        };
        endpoints.push(Endpoint { base, mirror_of: None, host: registry.to_owned() });
        Ok(endpoints)
    }

    /// Whether plain HTTP may be spoken with the host of an address.
    pub(super) fn plain_allowed(&self, url: &Url) -> bool {
        let explicit = |mirror: &String| {
            let mirror = mirror_url(mirror);
            mirror.is_ok_and(|mirror| {
                mirror.scheme() == "http" && authority(&mirror) == authority(url)
            })
        };
        let mut mirrors = self.registry.values().flat_map(|host| &host.mirrors);
        self.plain(url) || is_loopback(url) || mirrors.any(explicit)
    }

    /// Whether a registry itself is spoken to without TLS.
    fn plain(&self, url: &Url) -> bool {
        let configured = self.registry.get(&authority(url)).and_then(|host| host.plain_http);
        configured.unwrap_or_else(|| is_loopback(url))
    }
}

/// Whether an address is one of this host.
pub(super) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host == "localhost", |address| address.is_loopback())
}

/// Host and port, without the port that the scheme has anyway.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn mirror_url(mirror: &str) -> Result<Url, RegistryError> {
    let wrong =
        || RegistryError::Hosts(format!("mirror {mirror:?} is not an http or https address"));
    let mut url = Url::parse(mirror).map_err(|_| wrong())?;
    let fits = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !fits {
        return Err(wrong());
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        [registry."docker.io"]
        mirrors = ["https://mirror.example/hub", "http://plain.example:8080"]
        [registry."insecure.example:5000"]
        plain-http = true
        [registry."localhost:5443"]
        plain-http = false
    "#;

    fn bases(hosts: &Hosts, registry: &str) -> Vec<String> {
        let endpoints = hosts.endpoints(registry).unwrap();
        endpoints.iter().map(|endpoint| endpoint.base.to_string()).collect()
    }

    #[test]
    fn mirrors_come_first_and_the_registry_last() {
        let hosts = Hosts::parse(CONFIG).unwrap();
        let expected = [
            "https://mirror.example/hub/",
            "http://plain.example:8080/",
            "https://registry-1.docker.io/",
        ];
        assert_eq!(bases(&hosts, "docker.io"), expected);
        let endpoints = hosts.endpoints("docker.io").unwrap();
        assert_eq!(endpoints[0].host, "mirror.example");
        assert_eq!(endpoints[0].mirror_of.as_deref(), Some("docker.io"));
        assert_eq!((endpoints[2].host.as_str(), &endpoints[2].mirror_of), ("docker.io", &None));
    }

    #[test]
    fn plain_http_only_for_loopback_and_where_it_is_allowed() {
        let hosts = Hosts::parse(CONFIG).unwrap();
        for (registry, base) in [
            ("ghcr.io", "https://ghcr.io/"),
            ("insecure.example", "https://insecure.example/"),
            ("insecure.example:5000", "http://insecure.example:5000/"),
            ("localhost", "http://localhost/"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/"),
            ("localhost:5443", "https://localhost:5443/"),
            ("localhost.example", "https://localhost.example/"),
            ("127.0.0.1.example", "https://127.0.0.1.example/"),
        ] {
            assert_eq!(bases(&hosts, registry), [base], "{registry}");
        }
        for (url, allowed) in [
            ("http://plain.example:8080/x", true),
            ("http://plain.example/x", false),
            ("http://[::1]:1/", true),
            ("http://10.0.0.1/", false),
            ("http://169.254.169.254/latest", false),
        ] {
            assert_eq!(hosts.plain_allowed(&Url::parse(url).unwrap()), allowed, "{url}");
        }
    }

    #[test]
    fn what_is_not_a_configuration_is_refused() {
        for text in [
            "[registry.a]\nmirror = []",
            "[registry.a]\nmirrors = ['ftp://a']",
            "[registry.a]\nmirrors = ['a.example']",
            "[registry.a]\nmirrors = ['https://user:pass@a.example']",
            "[registry.a]\nmirrors = ['https://a.example/?x=1']",
            "mirrors = []",
        ] {
            assert!(Hosts::parse(text).is_err(), "{text}");
        }
        assert_eq!(Hosts::parse("").unwrap(), Hosts::default());
    }
}
