//! One question to one host, and the redirects that lead to its answer.
//!
//! Invariant: credentials go to the host they were meant for and to no other; https never becomes http; what comes back
//! is neither encoded nor endless. Runs on the registry's thread; RFC 9110.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, LOCATION,
    RANGE, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, Url};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{RegistryError, clean};
use super::hosts::{Hosts, authority, is_loopback};
use super::retry::{Patience, retry_after};

/// Most redirects that are followed.
const MAX_HOPS: usize = 5;
/// Most of an error's text that is read, in bytes.
const MAX_MESSAGE: usize = 16 << 10;
/// What we call ourselves.
const USER_AGENT: &str = concat!("openshell-rootfs/", env!("CARGO_PKG_VERSION"));

/// A question.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: Option<&'static str>,
    /// First and last byte.
    pub(super) range: Option<(u64, u64)>,
    /// A form, for token servers.
    pub(super) form: Option<String>,
}

impl Ask {
    pub(super) fn get(url: Url) -> Self {
        Self { method: Method::GET, url, accept: None, range: None, form: None }
    }
}

/// Hosts that share connections and what is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Group {
    /// Through a proxy where the environment names one.
    Everybody,
    /// This host, which no proxy can reach.
    Loopback,
    /// Without TLS, so that a host without certificates of authorities will do.
    Plain,
    /// As `Plain`, on this host.
    PlainLoopback,
    /// A host with authorities of its own.
    Private(String),
}

/// The connections of a client.
#[derive(Debug)]
pub(super) struct Http {
    /// Made when they are first needed: reading the certificates of authorities takes its time.
    clients: Mutex<HashMap<Group, Client>>,
    /// Certificates of authorities, by the host that they are for.
    authorities: HashMap<String, Vec<reqwest::Certificate>>,
    pub(super) hosts: Hosts,
    pub(super) patience: Patience,
}

impl Http {
    pub(super) fn new(hosts: Hosts, patience: Patience) -> Result<Self, RegistryError> {
        let mut authorities = HashMap::new();
        for (host, path) in hosts.authorities() {
            let unreadable =
                |why: String| RegistryError::Setup(format!("{}: {why}", path.display()));
            let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| unreadable(error.to_string()))?;
            if certificates.is_empty() {
                return Err(unreadable("there is no certificate in it".into()));
            }
            authorities.insert(host.to_owned(), certificates);
        }
        Ok(Self { clients: Mutex::default(), authorities, hosts, patience })
    }

    fn client(&self, url: &Url) -> Result<Client, RegistryError> {
        let group = match (url.scheme(), is_loopback(url)) {
            ("http", true) => Group::PlainLoopback,
            ("http", false) => Group::Plain,
            _ if self.authorities.contains_key(&authority(url)) => Group::Private(authority(url)),
            (_, true) => Group::Loopback,
            (_, false) => Group::Everybody,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&group) {
            return Ok(client.clone());
        }
        let failed = |error: reqwest::Error| RegistryError::Setup(error.to_string());
        let client = self.build(&group).map_err(failed)?;
        clients.insert(group, client.clone());
        Ok(client)
    }

    fn build(&self, group: &Group) -> Result<Client, reqwest::Error> {
        // Another part of the process may have chosen one already, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.patience.connect)
            .pool_idle_timeout(Duration::from_secs(30));
        match group {
            Group::Everybody => builder,
            Group::Loopback => builder.no_proxy(),
            Group::Plain => builder.tls_certs_only([]),
            Group::PlainLoopback => builder.tls_certs_only([]).no_proxy(),
            Group::Private(host) => {
                builder.tls_certs_merge(self.authorities.get(host).into_iter().flatten().cloned())
            }
        }
        .build()
    }

    /// Asks, and follows redirects. Statuses are answers, not errors.
    pub(super) async fn exchange(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut url = ask.url.clone();
        self.allowed(&url, &url)?;
        for _ in 0..=MAX_HOPS {
            let authorization = authorization.filter(|_| url.origin() == ask.url.origin());
            let response = self.once(ask, &url, authorization).await?;
            if !is_redirect(&response) {
                return unencoded(response);
            }
            url = self.target(&url, &response)?;
        }
        Err(self.unfollowed(&ask.url, &url, "there are too many redirects"))
    }

    async fn once(
        &self,
        ask: &Ask,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut request = self
            .client(url)?
            .request(ask.method.clone(), url.clone())
            .header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some((first, last)) = ask.range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(form) = &ask.form {
            request = request
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone());
        }
        let after = self.patience.response;
        let host = || authority(url);
        timeout(after, request.send())
            .await
            .map_err(|_| RegistryError::Slow { host: host(), what: "no answer", after })?
            .map_err(|error| transport(host(), error))
    }

    /// Where an answer leads to, if that may be followed.
    fn target(&self, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        self.follow(from, location.unwrap_or_default())
    }

    fn follow(&self, from: &Url, location: &str) -> Result<Url, RegistryError> {
        let unusable = || self.unfollowed(from, from, "it is no address");
        if location.is_empty() {
            return Err(unusable());
        }
        let url = from.join(location).map_err(|_| unusable())?;
        if from.scheme() == "https" && url.scheme() != "https" {
            return Err(self.unfollowed(from, &url, "it gives up TLS"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.unfollowed(from, &url, "it holds credentials"));
        }
        self.allowed(from, &url)?;
        Ok(url)
    }

    /// Whether an address may be spoken to at all.
    pub(super) fn allowed(&self, from: &Url, url: &Url) -> Result<(), RegistryError> {
        match url.scheme() {
            "https" if url.has_host() => Ok(()),
            "http" if self.hosts.plain_allowed(url) => Ok(()),
            "http" => Err(self.unfollowed(from, url, "plain HTTP is not allowed with this host")),
            _ => Err(self.unfollowed(from, url, "it is no address of the web")),
        }
    }

    fn unfollowed(&self, from: &Url, target: &Url, why: &'static str) -> RegistryError {
        let mut target = target.clone();
        target.set_query(None);
        // An address without a host cannot have a name in it.
        if target.set_username("").is_err() || target.set_password(None).is_err() {
            target.set_path("");
        }
        RegistryError::Redirect { host: authority(from), target: clean(target.as_str()), why }
    }
}

fn is_redirect(response: &Response) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn unencoded(response: Response) -> Result<Response, RegistryError> {
    let encoding = response.headers().get(CONTENT_ENCODING);
    let encoding = encoding.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match encoding {
        Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
            let host = authority(response.url());
            Err(RegistryError::Encoding { host, encoding: clean(&encoding) })
        }
        _ => Ok(response),
    }
}

fn transport(host: String, error: reqwest::Error) -> RegistryError {
    // The address may hold a signature.
    RegistryError::Transport { host, source: error.without_url() }
}

/// The error that a status is, with what the host says about it.
pub(super) async fn refusal(response: Response, patience: Patience) -> RegistryError {
    let host = authority(response.url());
    let status = response.status().as_u16();
    let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = wait.and_then(|text| retry_after(text, SystemTime::now()));
    let mut body = Body::new(response, patience);
    let mut text = Vec::new();
    // The status is the error; its text is worth a little time and no error of its own.
    while text.len() < MAX_MESSAGE
        && let Ok(Some(bytes)) = body.next().await
    {
        text.extend_from_slice(bytes.as_ref());
    }
    text.truncate(MAX_MESSAGE);
    RegistryError::Status { host, status, message: message(&text), retry_after }
}

/// The first message of a registry's list of errors, or nothing.
fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Fault>,
    }
    #[derive(serde::Deserialize)]
    struct Fault {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Option<Errors> = serde_json::from_slice(body).ok();
    let fault = errors.and_then(|errors| errors.errors.into_iter().next());
    fault.map_or_else(String::new, |Fault { code, message }| {
        clean(if message.is_empty() { &code } else { &message })
    })
}

/// An answer's bytes, which must keep coming.
#[derive(Debug)]
pub(super) struct Body {
    response: Response,
    patience: Patience,
    host: String,
    /// Time left for the bytes that are still due, without the time that nobody asked for any.
    left: Duration,
    due: u64,
}

impl Body {
    pub(super) fn new(response: Response, patience: Patience) -> Self {
        let host = authority(response.url());
        let (left, due) = (patience.pace, patience.pace_bytes);
        Self { response, patience, host, left, due }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The next bytes, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, RegistryError> {
        let begin = Instant::now();
        let chunk = timeout_at(begin + self.left, self.response.chunk()).await;
        let slow = || RegistryError::Slow {
            host: self.host.clone(),
            what: "less than the least came",
            after: self.patience.pace,
        };
        let chunk = chunk.map_err(|_| slow())?;
        let chunk = chunk.map_err(|error| transport(self.host.clone(), error))?;
        let len = chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        match self.due.checked_sub(len).filter(|due| *due > 0) {
            Some(due) => {
                self.due = due;
                self.left = self.left.saturating_sub(begin.elapsed());
            }
            None => (self.left, self.due) = (self.patience.pace, self.patience.pace_bytes),
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_keep_tls_and_go_only_where_they_may() {
        let http = Http::new(Hosts::default(), Patience::default()).unwrap();
        let secure = Url::parse("https://a.example/v2/x/blobs/y").unwrap();
        let plain = Url::parse("http://127.0.0.1:5000/v2/x/blobs/y").unwrap();
        for (from, location, expected) in [
            (&secure, "/z", Some("https://a.example/z")),
            (&secure, "//b.example/z?s=1", Some("https://b.example/z?s=1")),
            (&secure, "https://b.example/", Some("https://b.example/")),
            (&secure, "http://a.example/z", None),
            (&secure, "http://127.0.0.1/z", None),
            (&secure, "file:///etc/passwd", None),
            (&secure, "https://user:pass@b.example/", None),
            (&secure, "", None),
            (&secure, "https://", None),
            (&plain, "http://localhost:1/z", Some("http://localhost:1/z")),
            (&plain, "https://b.example/z", Some("https://b.example/z")),
            (&plain, "http://b.example/z", None),
            (&plain, "http://169.254.169.254/latest", None),
        ] {
            let followed = http.follow(from, location).ok();
            assert_eq!(followed.as_ref().map(Url::as_str), expected, "{location}");
        }
        let refused = http.follow(&secure, "http://b.example/z?signature=hunter2").unwrap_err();
        assert!(!format!("{refused} {refused:?}").contains("hunter2"), "{refused}");
    }

    #[test]
    fn what_a_registry_says_is_one_short_line() {
        let body = br#"{"errors": [{"code": "DENIED", "message": "no\u001b[2J\nway"}, {}]}"#;
        assert_eq!(message(body), "no [2J way");
        assert_eq!(message(br#"{"errors": [{"code": "DENIED"}]}"#), "DENIED");
        assert_eq!(message(b"<html>"), "");
        let long = format!(r#"{{"errors": [{{"message": "{}"}}]}}"#, "x".repeat(5000));
        assert_eq!(message(long.as_bytes()).len(), 200);
    }
}
