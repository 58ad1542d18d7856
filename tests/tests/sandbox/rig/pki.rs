//! Certificates and keys of one run: an authority, the gateway's, the user's and the guests' certificates, the key of tokens.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ED25519,
};

/// Names under which the gateway is reached: by users, and from guests.
const GATEWAY_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "host.openshell.internal"];

/// The files, below one directory.
#[derive(Debug)]
pub(crate) struct Pki {
    directory: PathBuf,
}

impl Pki {
    /// Makes all of them in `directory`.
    pub(crate) fn make(directory: &Path) -> Self {
        let pki = Self { directory: directory.to_owned() };
        std::fs::create_dir_all(directory).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        pki.write("ca.crt", &params.self_signed(&key).unwrap().pem());
        let authority = Issuer::new(params, key);
        for (name, names, purpose) in [
            ("server", &GATEWAY_NAMES[..], ExtendedKeyUsagePurpose::ServerAuth),
            ("user", &[], ExtendedKeyUsagePurpose::ClientAuth),
            ("guest", &[], ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().unwrap();
            pki.write(&format!("{name}.crt"), &params.signed_by(&key, &authority).unwrap().pem());
            pki.write(&format!("{name}.key"), &key.serialize_pem());
        }
        pki.write("signing.pem", &KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem());
        pki.write("kid", "lab");
        pki
    }

    /// The path of a file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is in a file.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }
}
