//! What the operator says: flags, variables of the environment, and the file, in this order.
//!
//! Read once, before anything is opened.
//!
//! Invariant: a file with a key that nobody reads is refused, so that a misspelt one is not silently the default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

/// Port of users and supervisors.
pub const PORT: u16 = 17670;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or has a key that nobody reads.
    #[error("{} is not a configuration", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What and where.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Something in it contradicts something else.
    #[error("{0}")]
    Wrong(&'static str),
}

/// Flags of `openshell-gateway`.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Configuration file
    #[arg(long, env = "OPENSHELL_GATEWAY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address of users and supervisors
    #[arg(long, env = "OPENSHELL_BIND_ADDRESS")]
    pub bind_address: Option<SocketAddr>,
    /// Port of /healthz, /readyz and /metrics, on loopback
    #[arg(long, env = "OPENSHELL_HEALTH_PORT")]
    pub health_port: Option<u16>,
    /// sqlite:FILE, or postgres://...
    #[arg(long, env = "OPENSHELL_DB_URL")]
    pub db_url: Option<String>,
    /// The one compute driver
    #[arg(long, env = "OPENSHELL_DRIVERS")]
    pub drivers: Option<String>,
    /// Socket of a driver that runs by itself
    #[arg(long, env = "OPENSHELL_COMPUTE_DRIVER_SOCKET")]
    pub compute_driver_socket: Option<PathBuf>,
    /// Serve without TLS
    #[arg(long, env = "OPENSHELL_DISABLE_TLS")]
    pub disable_tls: bool,
    /// Image of sandboxes that ask for none
    #[arg(long, env = "OPENSHELL_SANDBOX_IMAGE")]
    pub sandbox_image: Option<String>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    openshell: Openshell,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Openshell {
    version: Option<u32>,
    gateway: Server,
    drivers: std::collections::BTreeMap<String, DriverFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Server {
    bind_address: Option<SocketAddr>,
    health_port: Option<u16>,
    db_url: Option<String>,
    compute_drivers: Vec<String>,
    disable_tls: bool,
    tls: Option<TlsFiles>,
    mtls_auth: Switch,
    auth: AuthFile,
    gateway_jwt: Option<JwtFiles>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Switch {
    enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuthFile {
    allow_unauthenticated_users: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DriverFile {
    socket_path: Option<PathBuf>,
    default_image: Option<String>,
}

/// Files of TLS.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert_path: PathBuf,
    /// Its key, PEM.
    pub key_path: PathBuf,
    /// The CA of clients, PEM. With it, a client must show a certificate.
    pub client_ca_path: Option<PathBuf>,
}

/// Files of the key that signs tokens of sandboxes.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct JwtFiles {
    /// Ed25519 in PKCS #8, PEM.
    pub signing_key_path: PathBuf,
    /// Its public half. Accepted; the signing key has it.
    pub public_key_path: Option<PathBuf>,
    /// The name of the key.
    pub kid_path: PathBuf,
    /// The name of this gateway in tokens.
    pub gateway_id: String,
    /// Lifetime of tokens in seconds; 0: without end.
    #[serde(default)]
    pub ttl_secs: u64,
}

/// All that is to be known, with nothing left to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address of users and supervisors.
    pub bind: SocketAddr,
    /// Address of probes.
    pub health: Option<SocketAddr>,
    /// The database.
    pub db_url: String,
    /// Name of the driver.
    pub driver: String,
    /// Where it listens.
    pub driver_socket: PathBuf,
    /// `None`: plain text.
    pub tls: Option<TlsFiles>,
    /// A certificate makes a user.
    pub mtls_users: bool,
    /// Nothing makes a user.
    pub open_to_users: bool,
    /// `None`: a key that ends with the process.
    pub jwt: Option<JwtFiles>,
    /// Image of sandboxes that ask for none; empty: the driver's.
    pub image: String,
}

impl Config {
    /// Puts flags and file together.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            None => File::default(),
            Some(path) => {
                let text = read(path)?;
                toml::from_str(&text).map_err(|source| ConfigError::Parse {
                    path: path.clone(),
                    source: Box::new(source),
                })?
            }
        };
        Self::merge(flags, file)
    }

    fn merge(flags: Flags, file: File) -> Result<Self, ConfigError> {
        let File { openshell: Openshell { version, gateway, mut drivers } } = file;
        if version.is_some_and(|version| version != 1) {
            return Err(ConfigError::Wrong("openshell.version is not 1"));
        }
        let named = match flags.drivers {
            Some(list) => list.split(',').map(str::to_owned).collect(),
            None => gateway.compute_drivers,
        };
        let driver = match <[String; 1]>::try_from(named) {
            Ok([one]) => one,
            Err(none) if none.is_empty() => "vm".to_owned(),
            Err(_) => return Err(ConfigError::Wrong("exactly one compute driver is served")),
        };
        let own = drivers.remove(&driver).unwrap_or_default();
        let driver_socket = flags.compute_driver_socket.or(own.socket_path).ok_or(
            ConfigError::Wrong("no socket of the compute driver: --compute-driver-socket"),
        )?;
        let plain = flags.disable_tls || gateway.disable_tls;
        let tls = if plain { None } else { gateway.tls };
        if !plain && tls.is_none() {
            return Err(ConfigError::Wrong(
                "neither [openshell.gateway.tls] nor --disable-tls is given",
            ));
        }
        let mtls_users = gateway.mtls_auth.enabled;
        let has_ca = tls.as_ref().is_some_and(|tls| tls.client_ca_path.is_some());
        if mtls_users && !has_ca {
            return Err(ConfigError::Wrong("mtls_auth needs tls.client_ca_path"));
        }
        let loopback = SocketAddr::from(([127, 0, 0, 1], PORT));
        Ok(Self {
            bind: flags.bind_address.or(gateway.bind_address).unwrap_or(loopback),
            health: flags
                .health_port
                .or(gateway.health_port)
                .map(|port| SocketAddr::from(([127, 0, 0, 1], port))),
            db_url: flags
                .db_url
                .or(gateway.db_url)
                .unwrap_or_else(|| "sqlite:openshell-gateway.db".to_owned()),
            driver,
            driver_socket,
            tls,
            mtls_users,
            open_to_users: gateway.auth.allow_unauthenticated_users,
            jwt: gateway.gateway_jwt,
            image: flags.sandbox_image.or(own.default_image).unwrap_or_default(),
        })
    }
}

/// A file, whole.
///
/// # Errors
///
/// [`ConfigError::Read`].
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(flags: Flags, text: &str) -> Result<Config, String> {
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        Config::merge(flags, file).map_err(|error| error.to_string())
    }

    const PLAIN: &str = "[openshell.gateway]\ndisable_tls = true\nbind_address = '127.0.0.1:1'\n\
                         [openshell.drivers.vm]\nsocket_path = '/s'\ndefault_image = 'i'\n";

    #[test]
    fn flags_win_over_the_file() {
        let config = merge(Flags::default(), PLAIN).unwrap();
        assert_eq!((config.bind.port(), config.image.as_str()), (1, "i"));
        assert_eq!((config.driver.as_str(), config.open_to_users), ("vm", false));
        let flags = Flags {
            bind_address: Some("127.0.0.1:2".parse().unwrap()),
            compute_driver_socket: Some("/t".into()),
            ..Flags::default()
        };
        let config = merge(flags, PLAIN).unwrap();
        assert_eq!((config.bind.port(), config.driver_socket), (2, PathBuf::from("/t")));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (text, expected) in [
            ("", "no socket"),
            ("[openshell]\nversion = 2", "version"),
            ("[openshell.gateway]\ncompute_drivers = ['a', 'b']", "exactly one"),
            ("[openshell.drivers.vm]\nsocket_path = '/s'", "neither"),
            (
                format!("{PLAIN}[openshell.gateway.mtls_auth]\nenabled = true").as_str(),
                "client_ca_path",
            ),
            ("[openshell.gateway]\nbind_adress = 'x'", "unknown field"),
        ] {
            let wrong = merge(Flags::default(), text).unwrap_err();
            assert!(wrong.contains(expected), "{text}: {wrong}");
        }
    }
}
