//! The sandbox's token: read, attached to every call, refreshed before it ends.
//!
//! Invariant: a token is in no log, no error and no `Debug` output.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::settings::TokenSource;

/// How often a token is refreshed that does not say when it ends.
const OPAQUE: Duration = Duration::from_hours(6);
/// The longest time between refreshes of one that does.
const LONGEST: Duration = Duration::from_hours(12);
const SHORTEST: Duration = Duration::from_secs(1);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// It is empty or holds what no header can.
    #[error("the token is empty or not ASCII")]
    Unusable,
}

/// The token, shared by all calls.
#[derive(Clone)]
pub struct Token {
    header: Arc<RwLock<MetadataValue<Ascii>>>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads it. The second part is when to refresh it, if ever.
    ///
    /// # Errors
    /// When there is none that can be used.
    pub fn read(source: &TokenSource) -> Result<(Self, Option<Duration>), TokenError> {
        let text = match source {
            TokenSource::Value(token) => token.clone(),
            TokenSource::File(path) => std::fs::read_to_string(path)
                .map_err(|source| TokenError::Read { path: path.clone(), source })?,
        };
        let header = header(text.trim())?;
        let token = Self { header: Arc::new(RwLock::new(header)) };
        Ok((token, refresh_after(text.trim(), now())))
    }

    /// Takes a new one; when to refresh that.
    ///
    /// # Errors
    /// When it cannot be used; the old one stays.
    pub fn replace(&self, text: &str) -> Result<Option<Duration>, TokenError> {
        let header = header(text)?;
        *self.header.write().unwrap_or_else(PoisonError::into_inner) = header;
        Ok(refresh_after(text, now()))
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = self.header.read().unwrap_or_else(PoisonError::into_inner).clone();
        request.metadata_mut().insert("authorization", header);
        Ok(request)
    }
}

fn header(token: &str) -> Result<MetadataValue<Ascii>, TokenError> {
    let graphic = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !graphic {
        return Err(TokenError::Unusable);
    }
    let header: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
    let mut header = header.map_err(|_| TokenError::Unusable)?;
    header.set_sensitive(true);
    Ok(header)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// When to refresh a token: at 80 % of what is left of it; never when it never ends.
fn refresh_after(token: &str, now: u64) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let mut parts = token.split('.');
    let payload = parts.nth(1).filter(|_| parts.next().is_some() && parts.next().is_none());
    let claims = payload
        .and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok())
        .and_then(|bytes| serde_json::from_slice::<Claims>(&bytes).ok());
    let Some(Claims { exp }) = claims else { return Some(OPAQUE) };
    if exp == 0 {
        return None;
    }
    let left = Duration::from_secs(exp.saturating_sub(now));
    Some((left / 5 * 4).clamp(SHORTEST, LONGEST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn tokens_are_refreshed_before_they_end() {
        for (token, expected) in [
            (jwt(r#"{"exp": 2000}"#), Some(Duration::from_secs(800))),
            (jwt(r#"{"exp": 500}"#), Some(SHORTEST)),
            (jwt(r#"{"exp": 18446744073709551615}"#), Some(LONGEST)),
            (jwt(r#"{"exp": 0}"#), None),
            (jwt("{}"), Some(OPAQUE)),
            ("opaque".to_owned(), Some(OPAQUE)),
            ("a.b".to_owned(), Some(OPAQUE)),
        ] {
            assert_eq!(refresh_after(&token, 1000), expected, "{token}");
        }
    }

    #[test]
    fn a_token_becomes_a_header_and_nothing_else() {
        let (mut token, _) = Token::read(&TokenSource::Value("secret\n".to_owned())).unwrap();
        let request = token.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer secret");
        assert!(!format!("{token:?} {request:?}").contains("secret"));
        token.replace("other").unwrap();
        let request = token.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer other");
        for bad in ["", "two words", "é", "a\nb"] {
            assert!(token.replace(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_token_is_judged(token in ".{0,60}", now in any::<u64>()) {
            _ = refresh_after(&token, now);
        }
    }
}
