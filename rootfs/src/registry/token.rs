//! What a registry asks for in a 401, and the exchange of credentials for a token.
//!
//! Invariant: the scope that is asked for is made here, from the repository that is pulled, so that a registry cannot
//! have a token made that reads or writes another one. Distribution's token authentication, with its OAuth2 form.

use http_auth::ChallengeParser;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use serde::Deserialize;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::{RegistryError, clean};
use super::http::{Ask, Body, Http, refusal};
use super::retry::Tries;
use crate::auth::{Credentials, Secret};

/// Largest answer of a token server, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// What we call ourselves to token servers.
const CLIENT_ID: &str = "openshell-rootfs";

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password.
    Basic,
    /// A token from `realm`.
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// Reads the challenges of a 401, and takes the best that can be met.
pub(super) fn challenge(host: &str, headers: &HeaderMap) -> Result<Challenge, RegistryError> {
    let refused = |why: &str| RegistryError::Challenge { host: host.to_owned(), why: clean(why) };
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let text = value.to_str().map_err(|_| refused("it is not text"))?;
        for challenge in ChallengeParser::new(text) {
            let challenge = challenge.map_err(|_| refused("it cannot be read"))?;
            let parameter = |name: &str| {
                let mut parameters = challenge.params.iter();
                let found = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
                let realm = realm.ok_or_else(|| refused("its realm is no address"))?;
                return Ok(Challenge::Bearer { realm, service: parameter("service") });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic.ok_or_else(|| refused("neither a token nor a password is asked for"))
}

/// The value of an `Authorization` header with a name and a password.
pub(super) fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = STANDARD.encode(format!("{username}:{}", password.expose()));
    sensitive(&format!("Basic {pair}"))
}

/// The value of an `Authorization` header with a token.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a token is for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The registry's address, whose scheme the token server must not undercut.
    pub(super) registry: &'a Url,
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
}

/// Exchanges credentials for a token.
pub(super) async fn fetch(
    http: &Http,
    wanted: &Wanted<'_>,
    credentials: &Credentials,
) -> Result<HeaderValue, RegistryError> {
    let refused =
        |why: &str| RegistryError::Challenge { host: wanted.host.to_owned(), why: why.to_owned() };
    if wanted.registry.scheme() == "https" && wanted.realm.scheme() != "https" {
        return Err(refused("its token server is without TLS"));
    }
    http.allowed(wanted.registry, wanted.realm)?;
    let (ask, authorization) = question(wanted, credentials);
    let mut tries = Tries::new(http.patience);
    let answer = loop {
        match answer(http, &ask, authorization.as_ref()).await {
            Ok(answer) => break answer,
            Err(error) => tokio::time::sleep(tries.after(error)?).await,
        }
    };
    // The answer is not quoted: it holds the token.
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| refused("its token server gave no token"))?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    let token = token.filter(|token| !token.is_empty());
    token.and_then(|token| bearer(&token)).ok_or_else(|| refused("its token server gave no token"))
}

/// A form for an identity token; otherwise a question with the scope in its address.
fn question(wanted: &Wanted<'_>, credentials: &Credentials) -> (Ask, Option<HeaderValue>) {
    let scope = format!("repository:{}:pull", wanted.repository);
    let mut pairs = vec![("scope", scope.as_str())];
    pairs.extend(wanted.service.map(|service| ("service", service)));
    if let Credentials::Identity(token) = credentials {
        pairs.push(("grant_type", "refresh_token"));
        pairs.push(("client_id", CLIENT_ID));
        pairs.push(("refresh_token", token.expose()));
        let mut url = wanted.realm.clone();
        url.query_pairs_mut().clear().extend_pairs(pairs);
        let form = url.query().unwrap_or_default().to_owned();
        let ask = Ask { method: Method::POST, form: Some(form), ..Ask::get(wanted.realm.clone()) };
        return (ask, None);
    }
    let mut url = wanted.realm.clone();
    url.query_pairs_mut().extend_pairs(pairs);
    let authorization = match credentials {
        Credentials::Basic { username, password } => basic(username, password),
        _ => None,
    };
    (Ask::get(url), authorization)
}

async fn answer(
    http: &Http,
    ask: &Ask,
    authorization: Option<&HeaderValue>,
) -> Result<Vec<u8>, RegistryError> {
    let response = http.exchange(ask, authorization).await?;
    if !response.status().is_success() {
        return Err(refusal(response, http.patience).await);
    }
    let mut body = Body::new(response, http.patience);
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await? {
        bytes.extend_from_slice(chunk.as_ref());
        if bytes.len() > MAX_ANSWER {
            let (what, limit) = ("a token".to_owned(), MAX_ANSWER as u64);
            return Err(RegistryError::TooLarge { host: body.host().to_owned(), what, limit });
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge_of(values: &[&str]) -> Result<Challenge, RegistryError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        challenge("a.example", &headers)
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let bearer = Challenge::Bearer {
            realm: Url::parse("https://auth.example/token").unwrap(),
            service: Some("a \"quoted\" service".into()),
        };
        let text =
            r#"bearer realm="https://auth.example/token",service="a \"quoted\" service",scope="x""#;
        assert_eq!(challenge_of(&[text]).unwrap(), bearer);
        assert_eq!(challenge_of(&["Basic realm=\"r\"", text]).unwrap(), bearer);
        assert_eq!(challenge_of(&["Basic realm=\"r\""]).unwrap(), Challenge::Basic);
        assert_eq!(challenge_of(&["Negotiate, Basic realm=\"r\""]).unwrap(), Challenge::Basic);
    }

    #[test]
    fn a_challenge_that_cannot_be_met_is_refused() {
        for values in [
            &[][..],
            &["Negotiate"],
            &["Bearer realm=\"not an address\""],
            &["Bearer"],
            &["Bearer realm=\"unterminated"],
            &["="],
        ] {
            assert!(challenge_of(values).is_err(), "{values:?}");
        }
    }

    #[test]
    fn the_scope_is_ours_and_an_identity_token_travels_in_a_form() {
        let registry = Url::parse("https://a.example/").unwrap();
        let realm = Url::parse("https://auth.example/token?x=1").unwrap();
        let wanted = Wanted {
            registry: &registry,
            host: "a.example",
            repository: "own/app",
            realm: &realm,
            service: Some("s&t"),
        };
        let (ask, authorization) = question(&wanted, &Credentials::Anonymous);
        let expected =
            "https://auth.example/token?x=1&scope=repository%3Aown%2Fapp%3Apull&service=s%26t";
        assert_eq!((ask.url.as_str(), authorization), (expected, None));
        let identity = Credentials::Identity(Secret::new("long lived".into()));
        let (ask, authorization) = question(&wanted, &identity);
        assert_eq!((ask.method, ask.url, authorization), (Method::POST, realm.clone(), None));
        let form = ask.form.unwrap();
        assert!(form.contains("grant_type=refresh_token&"), "{form}");
        assert!(form.contains("&refresh_token=long+lived"), "{form}");
        let password =
            Credentials::Basic { username: "u".into(), password: Secret::new("p".into()) };
        let (_, authorization) = question(&wanted, &password);
        assert_eq!(authorization.unwrap(), "Basic dTpw");
    }
}
