//! `generate-certs`: the files of TLS and of tokens for one gateway.
//!
//! Two authorities: `ca.crt` signs the gateway's and its users' certificates, `guest-ca.crt` those of guests, so that a certificate that a
//! guest could give away opens nothing. Runs once, before the gateway does.
//!
//! Invariant: what is there is never replaced; a set of which only a part is there is refused.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use crate::auth::keyset::{KeySet, KeySetError, PUBLIC, SECRET, make_dir, replace};

/// Names by which a gateway is called from its host and from guests.
const SANS: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "host.openshell.internal",
    "host.containers.internal",
    "host.docker.internal",
];
const DAY: Duration = Duration::from_hours(24);
/// How long authorities last.
const AUTHORITY_DAYS: u32 = 3650;
/// How long the others last.
const LEAF_DAYS: u32 = 825;

/// Files of TLS, below the directory.
const FILES: [&str; 10] = [
    "ca.crt",
    "ca.key",
    "guest-ca.crt",
    "guest-ca.key",
    "server/tls.crt",
    "server/tls.key",
    "client/tls.crt",
    "client/tls.key",
    "guest/tls.crt",
    "guest/tls.key",
];

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A part of them is there.
    #[error("{} has a part of the files only; it lacks {missing}. Move it away, or bring them back", dir.display())]
    Partial {
        /// Where.
        dir: PathBuf,
        /// What is not there, with commas.
        missing: String,
    },
    /// A file cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A name that no certificate can have.
    #[error("certificates cannot be made")]
    Make(#[source] rcgen::Error),
    /// The keys of tokens.
    #[error("the key of tokens cannot be made")]
    Keys(#[source] KeySetError),
}

/// What has been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// All files are new, or the key of tokens was there already.
    Made,
    /// All were there.
    Kept,
}

/// Makes what a gateway needs below `dir`; its certificate is good for `sans` too, addresses or names.
///
/// # Errors
///
/// [`CertsError`].
pub fn generate(dir: &Path, sans: &[String]) -> Result<Done, CertsError> {
    let missing: Vec<&str> =
        FILES.into_iter().filter(|file| dir.join(file).symlink_metadata().is_err()).collect();
    if !missing.is_empty() && missing.len() < FILES.len() {
        return Err(CertsError::Partial { dir: dir.to_owned(), missing: missing.join(", ") });
    }
    let made = !missing.is_empty();
    if made {
        let files = set(sans).map_err(CertsError::Make)?;
        for (name, text) in FILES.into_iter().zip(files) {
            let path = dir.join(name);
            let mode = if name.ends_with(".key") { SECRET } else { PUBLIC };
            path.parent()
                .map_or(Ok(()), make_dir)
                .and_then(|()| replace(&path, text.as_bytes(), mode))
                .map_err(|source| CertsError::Write { path, source })?;
        }
    }
    let whole = KeySet::of(&dir.join("jwt")).is_whole();
    KeySet::keep(&dir.join("jwt")).map_err(CertsError::Keys)?;
    Ok(if made || !whole { Done::Made } else { Done::Kept })
}

/// The texts of [`FILES`], in that order.
fn set(sans: &[String]) -> Result<[String; 10], rcgen::Error> {
    let users = Authority::new("OpenShell CA")?;
    let guests = Authority::new("OpenShell guest CA")?;
    let mut names: Vec<String> = SANS.iter().map(|name| (*name).to_owned()).collect();
    names.extend(sans.iter().filter(|name| !SANS.contains(&name.as_str())).cloned());
    let server = users.sign("openshell-gateway", names, ExtendedKeyUsagePurpose::ServerAuth)?;
    let client = users.sign("openshell-client", vec![], ExtendedKeyUsagePurpose::ClientAuth)?;
    let guest = guests.sign("openshell-guest", vec![], ExtendedKeyUsagePurpose::ClientAuth)?;
    let key = |authority: &Authority| authority.issuer.key().serialize_pem();
    let (users_key, guests_key) = (key(&users), key(&guests));
    Ok([
        users.pem, users_key, guests.pem, guests_key, server.0, server.1, client.0, client.1,
        guest.0, guest.1,
    ])
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = params(name, vec![], AUTHORITY_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// A certificate and its key.
    fn sign(
        &self,
        name: &str,
        sans: Vec<String>,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String), rcgen::Error> {
        let mut params = params(name, sans, LEAF_DAYS)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

fn params(name: &str, sans: Vec<String>, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(sans)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let now = SystemTime::now();
    // A guest's clock may be behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::auth::certificate::Authority as Users;

    #[test]
    fn a_guests_certificate_is_never_a_users() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(generate(place.path(), &[]).unwrap(), Done::Made);
        let read = |name: &str| fs::read_to_string(place.path().join(name)).unwrap();
        let users = Users::from_pem(&read("ca.crt")).unwrap();
        for (name, expected) in [
            ("client/tls.crt", true),
            ("ca.crt", true),
            ("guest/tls.crt", false),
            ("guest-ca.crt", false),
            // Signed by the same authority, but no client.
            ("server/tls.crt", false),
        ] {
            assert_eq!(users.knows(&read(name)).unwrap(), expected, "{name}");
        }
        assert!(users.knows("").is_err());
    }

    #[test]
    fn what_is_there_stays() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("tls");
        generate(&dir, &["gateway.example".to_owned(), "10.1.2.3".to_owned()]).unwrap();
        let before = fs::read(dir.join("server/tls.crt")).unwrap();
        assert_eq!(generate(&dir, &[]).unwrap(), Done::Kept);
        assert_eq!(fs::read(dir.join("server/tls.crt")).unwrap(), before);
        for name in FILES {
            let mode = fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
        }
        fs::remove_file(dir.join("guest/tls.key")).unwrap();
        let refused = generate(&dir, &[]).unwrap_err().to_string();
        assert!(refused.contains("lacks guest/tls.key."), "{refused}");
        assert!(generate(&dir.join("else"), &["g\u{e9}".to_owned()]).is_err());
    }
}
