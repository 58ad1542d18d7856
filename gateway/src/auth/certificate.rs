//! Whose certificate a client shows: a user's, or a guest's.
//!
//! Two authorities sign certificates of clients. A handshake takes both; only those of the users' authority make users. The chain is
//! checked again, against that authority alone, with the checks of the handshake. Called for each call that shows no token.
//!
//! Invariant: no certificate is a user's that the users' authority has not signed for clients and that is not valid now.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The file has none, or what it has is no certificate.
    #[error("no certificate of an authority in it")]
    Empty,
    /// A certificate cannot be one of an authority.
    #[error("a certificate in it is not one of an authority")]
    Root(#[source] rustls::Error),
    /// They cannot be used together.
    #[error("its certificates cannot be used")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Who signs certificates of users.
#[derive(Debug, Clone)]
pub struct Authority {
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// The authority whose certificates a PEM file has.
    ///
    /// # Errors
    ///
    /// [`AuthorityError`].
    pub fn from_pem(pem: &str) -> Result<Self, AuthorityError> {
        let certificates = parse(pem)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(AuthorityError::Root)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(AuthorityError::Verifier)?;
        Ok(Self { verifier, certificates })
    }

    /// Whether a chain, its leaf first, ends at this authority.
    #[must_use]
    pub fn signed(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, between)) = chain.split_first() else { return false };
        self.verifier.verify_client_cert(leaf, between, UnixTime::now()).is_ok()
    }

    /// Whether a PEM file has a certificate that this authority has signed, or is.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::Empty`].
    pub fn knows(&self, pem: &str) -> Result<bool, AuthorityError> {
        let chain = parse(pem)?;
        Ok(self.signed(&chain) || chain.iter().any(|one| self.certificates.contains(one)))
    }
}

fn parse(pem: &str) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match parsed {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(AuthorityError::Empty),
    }
}
