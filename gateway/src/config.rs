//! What the operator says: flags, variables of the environment, and the file, in this order.
//!
//! Read once, before anything is opened.
//!
//! Invariant: a file with a key that nobody reads is refused, so that a misspelt one is not silently the default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::auth::keyset::KeySet;
use crate::managed::Managed;

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
    /// How much to say: error, warn, info, debug, trace
    #[arg(long, env = "OPENSHELL_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
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
    state_dir: Option<PathBuf>,
    driver_dir: Option<PathBuf>,
    default_image: Option<String>,
    grpc_endpoint: Option<String>,
    bootstrap_image: Option<String>,
    krun_log_level: Option<u32>,
    vcpus: Option<u32>,
    mem_mib: Option<u64>,
    overlay_disk_mib: Option<u64>,
    guest_tls_ca: Option<PathBuf>,
    guest_tls_cert: Option<PathBuf>,
    guest_tls_key: Option<PathBuf>,
}

/// Files of TLS.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert_path: PathBuf,
    /// Its key, PEM.
    pub key_path: PathBuf,
    /// The authority of users, PEM. With it, a client must show a certificate.
    pub client_ca_path: Option<PathBuf>,
    /// The authority of guests, PEM; usually `guest-ca.crt` beside that of users. Its certificates make nobody a user.
    pub guest_ca_path: Option<PathBuf>,
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

/// Where the compute driver comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compute {
    /// It runs by itself and listens here.
    Attached(PathBuf),
    /// The gateway starts it.
    Managed {
        /// With what. Its endpoint is empty where the operator has named none.
        driver: Managed,
        /// The certificate that it gives to guests.
        guest_certificate: Option<PathBuf>,
    },
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
    /// Where it comes from.
    pub compute: Compute,
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
        let image = flags.sandbox_image.or_else(|| own.default_image.clone()).unwrap_or_default();
        let socket = flags.compute_driver_socket.or_else(|| own.socket_path.clone());
        let plain = flags.disable_tls || gateway.disable_tls;
        let mut tls = if plain { None } else { gateway.tls };
        if let Some(tls) = &mut tls {
            tls.find_guest_ca();
        }
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
        if mtls_users && tls.as_ref().is_some_and(|tls| tls.guest_ca_path.is_none()) {
            return Err(ConfigError::Wrong(
                "mtls_auth needs tls.guest_ca_path, or guest-ca.crt beside client_ca_path: guests' \
                 certificates must not be users'; see `openshell-gateway generate-certs`",
            ));
        }
        let compute = match socket {
            Some(socket) => Compute::Attached(socket),
            None => own.managed(&flags.log_level, &image, tls.is_some())?,
        };
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
            compute,
            tls,
            mtls_users,
            open_to_users: gateway.auth.allow_unauthenticated_users,
            jwt: gateway.gateway_jwt,
            image,
        })
    }

    /// Where the key of tokens is kept if nobody has said so: beside certificates that `generate-certs` has made, or beside the database.
    #[must_use]
    pub fn key_dir(&self) -> Option<PathBuf> {
        let made = self.tls.as_ref().and_then(|tls| tls.cert_path.parent()?.parent());
        if let Some(dir) = made.map(|dir| dir.join("jwt")).filter(|dir| KeySet::of(dir).is_whole())
        {
            return Some(dir);
        }
        match self.db_url.strip_prefix("sqlite:") {
            Some(file) => {
                let file = file.strip_prefix("//").unwrap_or(file);
                let file = file.split('?').next().unwrap_or(file);
                let dir = Path::new(file).parent()?;
                (!file.is_empty() && file != ":memory:").then(|| dir.join("jwt"))
            }
            None => Some(state_home()?.join("openshell/gateway/jwt")),
        }
    }
}

impl TlsFiles {
    fn find_guest_ca(&mut self) {
        if let (None, Some(users)) = (&self.guest_ca_path, &self.client_ca_path) {
            let beside = users.with_file_name("guest-ca.crt");
            self.guest_ca_path = beside.is_file().then_some(beside);
        }
    }
}

impl DriverFile {
    /// A driver that the gateway starts.
    fn managed(self, log_level: &str, image: &str, tls: bool) -> Result<Compute, ConfigError> {
        let guest = [&self.guest_tls_ca, &self.guest_tls_cert, &self.guest_tls_key];
        let https = self.grpc_endpoint.as_ref().map_or(tls, |url| url.starts_with("https:"));
        if https && guest.iter().any(|path| path.is_none()) {
            return Err(ConfigError::Wrong(
                "guests reach the gateway over TLS: [openshell.drivers.vm] needs guest_tls_ca, \
                 guest_tls_cert and guest_tls_key",
            ));
        }
        let state_dir = match self.state_dir {
            Some(dir) => dir,
            None => state_home()
                .ok_or(ConfigError::Wrong("no home directory: set state_dir of the driver"))?
                .join("openshell/vm-driver"),
        };
        let text = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let guest_certificate = self.guest_tls_cert.clone();
        let options = [
            ("--default-image", Some(image.to_owned()).filter(|image| !image.is_empty())),
            ("--bootstrap-image", self.bootstrap_image),
            ("--krun-log-level", number(self.krun_log_level.map(u64::from))),
            ("--vcpus", number(self.vcpus.map(u64::from))),
            ("--mem-mib", number(self.mem_mib)),
            ("--overlay-disk-mib", number(self.overlay_disk_mib)),
            ("--guest-tls-ca", text(self.guest_tls_ca)),
            ("--guest-tls-cert", text(self.guest_tls_cert)),
            ("--guest-tls-key", text(self.guest_tls_key)),
        ];
        let driver = Managed {
            driver_dir: self.driver_dir,
            state_dir,
            log_level: log_level.to_owned(),
            endpoint: self.grpc_endpoint.unwrap_or_default(),
            options: options.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        };
        Ok(Compute::Managed { driver, guest_certificate })
    }
}

/// Where programs of this user keep their state.
fn state_home() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    set.filter(|dir| dir.is_absolute()).or_else(|| Some(std::env::home_dir()?.join(".local/state")))
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
        assert_eq!((config.bind.port(), config.compute), (2, Compute::Attached("/t".into())));
    }

    const MANAGED: &str = "[openshell]\nversion = 1\n[openshell.gateway]\ncompute_drivers = ['vm']\n\
        [openshell.gateway.tls]\ncert_path = 'c'\nkey_path = 'k'\n\
        [openshell.drivers.vm]\nstate_dir = '/st'\ndriver_dir = '/bin'\ndefault_image = 'i'\n\
        grpc_endpoint = 'https://host.openshell.internal:1'\nbootstrap_image = 'b'\nkrun_log_level = 1\n\
        vcpus = 3\nmem_mib = 512\noverlay_disk_mib = 64\nguest_tls_ca = '/ca'\n\
        guest_tls_cert = '/crt'\nguest_tls_key = '/key'\n";

    #[test]
    fn a_driver_without_a_socket_is_started() {
        let config = merge(Flags { log_level: "debug".into(), ..Flags::default() }, MANAGED);
        let Compute::Managed { driver, guest_certificate } = config.unwrap().compute else {
            panic!("attached");
        };
        assert_eq!(guest_certificate, Some("/crt".into()));
        assert_eq!(
            (driver.log_level.as_str(), driver.socket()),
            ("debug", PathBuf::from("/st/run/compute-driver.sock"))
        );
        let words: Vec<String> =
            driver.options.iter().map(|(name, value)| format!("{name} {value}")).collect();
        assert_eq!(
            words.join(" "),
            "--default-image i --bootstrap-image b --krun-log-level 1 --vcpus 3 --mem-mib 512 \
             --overlay-disk-mib 64 --guest-tls-ca /ca --guest-tls-cert /crt --guest-tls-key /key"
        );
        let wrong = merge(Flags::default(), &MANAGED.replace("guest_tls_key", "# ")).unwrap_err();
        assert!(wrong.contains("guest_tls_key"), "{wrong}");
    }

    #[test]
    fn keys_of_tokens_are_kept_beside_the_database() {
        for (url, expected) in [
            ("sqlite:/var/lib/o/gateway.db?mode=rwc", Some("/var/lib/o/jwt")),
            ("sqlite:///var/lib/o/gateway.db", Some("/var/lib/o/jwt")),
            ("sqlite:gateway.db", Some("jwt")),
            ("sqlite::memory:", None),
        ] {
            let flags = Flags { db_url: Some(url.into()), ..Flags::default() };
            let config = merge(flags, PLAIN).unwrap();
            assert_eq!(config.key_dir(), expected.map(PathBuf::from), "{url}");
        }
    }

    #[test]
    fn users_certificates_need_an_authority_of_guests() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        let text = format!(
            "[openshell.gateway.mtls_auth]\nenabled = true\n[openshell.gateway.tls]\n\
             cert_path = 'c'\nkey_path = 'k'\nclient_ca_path = '{0}/ca.crt'\n\
             [openshell.drivers.vm]\nsocket_path = '/s'\n",
            dir.display()
        );
        let wrong = merge(Flags::default(), &text).unwrap_err();
        assert!(wrong.contains("guest_ca_path"), "{wrong}");
        std::fs::write(dir.join("guest-ca.crt"), "").unwrap();
        let tls = merge(Flags::default(), &text).unwrap().tls.unwrap();
        assert_eq!(tls.guest_ca_path, Some(dir.join("guest-ca.crt")));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (text, expected) in [
            ("", "neither"),
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
