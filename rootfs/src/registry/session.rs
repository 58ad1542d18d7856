//! A repository at one place: what is asked there, with which credentials, and how often.
//!
//! Invariant: however many requests meet a token that has run out, one new token is fetched, and a request that is
//! refused with two tokens that it fetched is not sent again. Runs on the registry's thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::HeaderValue;
use reqwest::{Response, Url};

use super::error::RegistryError;
use super::hosts::Endpoint;
use super::http::{Ask, Body, Http, refusal};
use super::retry::Tries;
use super::token::{self, Challenge, Wanted};
use crate::auth::{Credentials, Found, Keychain};

/// How often a request may find that a token which another one has fetched has run out as well.
const REFRESHES: usize = 4;

/// One place that has a repository, or should have.
#[derive(Debug)]
pub(super) struct Session {
    http: Arc<Http>,
    keychain: Arc<Keychain>,
    pub(super) endpoint: Endpoint,
    repository: String,
    /// What requests carry. Read for every request, and never held while one waits.
    shown: Mutex<Shown>,
    /// Held while a token is fetched, so that others wait for it.
    refresh: tokio::sync::Mutex<()>,
    /// Whether a mirror could not be reached, and is passed over from then on.
    down: AtomicBool,
}

#[derive(Debug, Clone, Default)]
struct Shown {
    /// How often it was replaced.
    generation: u64,
    authorization: Option<HeaderValue>,
}

/// A document that was read whole.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    pub(super) headers: reqwest::header::HeaderMap,
}

impl Session {
    pub(super) fn new(
        http: Arc<Http>,
        keychain: Arc<Keychain>,
        endpoint: Endpoint,
        repository: String,
    ) -> Self {
        Self {
            http,
            keychain,
            endpoint,
            repository,
            shown: Mutex::default(),
            refresh: tokio::sync::Mutex::new(()),
            down: AtomicBool::new(false),
        }
    }

    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    /// Whether it is worth asking here.
    pub(super) fn is_up(&self) -> bool {
        self.endpoint.mirror_of.is_none() || !self.down.load(Ordering::Relaxed)
    }

    pub(super) fn set_down(&self) {
        self.down.store(true, Ordering::Relaxed);
    }

    /// The address of a manifest or blob of the repository.
    pub(super) fn url(&self, kind: &str, selector: &str) -> Url {
        let mut url = self.endpoint.base.clone();
        let base = self.endpoint.base.path();
        url.set_path(&format!("{base}v2/{}/{kind}/{selector}", self.repository));
        if let Some(namespace) = &self.endpoint.mirror_of {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Asks once, apart from a token that has run out. Any status that is not success is an error.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Response, RegistryError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut response = self.http.exchange(ask, shown.authorization.as_ref()).await?;
        let mut fetched = 0;
        for _ in 0..REFRESHES {
            // Only the registry itself asks for its credentials, not where it leads to.
            if response.status().as_u16() != 401 || response.url().origin() != ask.url.origin() {
                break;
            }
            let challenge = token::challenge(&self.endpoint.host, response.headers())?;
            drop(response);
            let (fresh, ours) = self.refresh(&shown, &challenge).await?;
            shown = fresh;
            response = self.http.exchange(ask, shown.authorization.as_ref()).await?;
            // Twice, as the first may run out while others use it.
            fetched += u32::from(ours);
            if fetched == 2 {
                break;
            }
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let own = response.url().origin() == ask.url.origin();
        if response.status().as_u16() == 401 && own {
            return Err(self.unauthorized("with the credentials that were found", None));
        }
        Err(refusal(response, self.http.patience).await)
    }

    /// Reads an answer whole, trying again when it breaks off.
    pub(super) async fn document(
        &self,
        ask: &Ask,
        what: &str,
        limit: usize,
    ) -> Result<Document, RegistryError> {
        let mut tries = Tries::new(self.http.patience);
        loop {
            match self.read(ask, what, limit).await {
                Ok(document) => return Ok(document),
                Err(error) => tokio::time::sleep(tries.after(error)?).await,
            }
        }
    }

    async fn read(&self, ask: &Ask, what: &str, limit: usize) -> Result<Document, RegistryError> {
        let response = self.send(ask).await?;
        let headers = response.headers().clone();
        let too_large = |host: &str| RegistryError::TooLarge {
            host: host.to_owned(),
            what: what.to_owned(),
            limit: limit as u64,
        };
        let announced = response.content_length().unwrap_or_default();
        let mut body = Body::new(response, self.http.patience);
        if announced > limit as u64 && ask.method != reqwest::Method::HEAD {
            return Err(too_large(body.host()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await? {
            if bytes.len() + chunk.as_ref().len() > limit {
                return Err(too_large(body.host()));
            }
            bytes.extend_from_slice(chunk.as_ref());
        }
        Ok(Document { bytes, headers })
    }

    /// What to show instead of what was refused: what another request has fetched meanwhile, or something new, and
    /// whether it is new.
    async fn refresh(
        &self,
        refused: &Shown,
        challenge: &Challenge,
    ) -> Result<(Shown, bool), RegistryError> {
        let _alone = self.refresh.lock().await;
        let current = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if current.generation != refused.generation {
            return Ok((current, false));
        }
        let authorization = Some(self.authorization(challenge).await?);
        let fresh = Shown { generation: current.generation + 1, authorization };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        Ok((fresh, true))
    }

    async fn authorization(&self, challenge: &Challenge) -> Result<HeaderValue, RegistryError> {
        let found = self.look_up().await?;
        let nothing = || self.unauthorized("anybody", found.note.clone());
        match (challenge, &found.credentials) {
            (_, Credentials::Bearer(token)) => token::bearer(token.expose()).ok_or_else(nothing),
            (Challenge::Basic, Credentials::Basic { username, password }) => {
                token::basic(username, password).ok_or_else(nothing)
            }
            (Challenge::Basic, _) => Err(nothing()),
            (Challenge::Bearer { realm, service }, credentials) => {
                let wanted = Wanted {
                    registry: &self.endpoint.base,
                    host: &self.endpoint.host,
                    repository: &self.repository,
                    realm,
                    service: service.as_deref(),
                };
                let token = token::fetch(&self.http, &wanted, credentials).await;
                token.map_err(|error| match error {
                    RegistryError::Status { status: 400 | 401 | 403, .. } => {
                        let who = match credentials {
                            Credentials::Anonymous => "anybody",
                            _ => "the user whose credentials were found",
                        };
                        self.unauthorized(who, found.note.clone())
                    }
                    other => other,
                })
            }
        }
    }

    /// Looks credentials up on a thread of its own: files and helpers block.
    async fn look_up(&self) -> Result<Found, RegistryError> {
        let (keychain, repository) = (self.keychain.clone(), self.repository.clone());
        let (host, mirror) = (self.endpoint.host.clone(), self.endpoint.mirror_of.is_some());
        let found = tokio::task::spawn_blocking(move || {
            if mirror {
                keychain.for_mirror(&host, &repository)
            } else {
                keychain.for_registry(&host, &repository)
            }
        });
        let failed =
            |source| RegistryError::Credentials { host: self.endpoint.host.clone(), source };
        found.await.map_err(|_| RegistryError::Ended)?.map_err(failed)
    }

    fn unauthorized(&self, who: &'static str, note: Option<String>) -> RegistryError {
        RegistryError::Unauthorized {
            host: self.endpoint.host.clone(),
            who,
            repository: self.repository.clone(),
            note: note.unwrap_or_default(),
        }
    }
}
