//! Tokens of sandboxes: JSON Web Tokens (RFC 7519), signed with Ed25519 (RFC 8037).
//!
//! One algorithm, one key, one issuer: a header that says anything else is refused before the signature is looked at. Pure, called by
//! whoever judges a call.
//!
//! Invariant: a token names one sandbox and is good at one gateway only.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

/// What clocks may differ by, in seconds.
const LEEWAY: i64 = 60;
/// More than any token of ours.
const TOKEN_MAX: usize = 4096;
const SUBJECT: &str = "spiffe://openshell/sandbox/";

/// Why a token or a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token at all.
    #[error("token is malformed")]
    Malformed,
    /// Another algorithm, or another key.
    #[error("token is not signed with the key of this gateway")]
    Key,
    /// The signature is not that of what is signed.
    #[error("token's signature is wrong")]
    Signature,
    /// It is meant for another gateway.
    #[error("token is for another gateway")]
    Audience,
    /// Its time is over.
    #[error("token has expired")]
    Expired,
    /// The signing key is not Ed25519 in PKCS #8.
    #[error("signing key is not an Ed25519 key in PKCS #8")]
    SigningKey,
    /// The machine has no random numbers.
    #[error("no random numbers")]
    Random,
    /// A token cannot be written.
    #[error("token cannot be written")]
    Encode,
}

/// A token and its end.
#[derive(Clone)]
pub struct Token {
    /// The token. Secret.
    pub text: String,
    /// Milliseconds since 1970; 0: it has no end.
    pub expires_at_ms: i64,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_at_ms", &self.expires_at_ms).finish_non_exhaustive()
    }
}

/// The key that signs, and what goes into tokens.
#[derive(Debug)]
pub struct Keys {
    pair: Ed25519KeyPair,
    kid: String,
    issuer: String,
    lifetime: Option<Duration>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
    typ: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    iat: i64,
    exp: i64,
    sandbox_id: String,
}

impl Keys {
    /// A key that ends with this process: tokens of an earlier one are not good any more.
    ///
    /// # Errors
    ///
    /// [`TokenError::Random`].
    pub fn generate(gateway_id: &str, lifetime: Option<Duration>) -> Result<Self, TokenError> {
        let key = new_pkcs8()?;
        let mut kid = [0; 8];
        SystemRandom::new().fill(&mut kid).map_err(|_| TokenError::Random)?;
        Self::from_pkcs8(&key, &URL_SAFE_NO_PAD.encode(kid), gateway_id, lifetime)
    }

    /// The key of a PEM file, of a gateway, for tokens of this lifetime (`None`: without end).
    ///
    /// # Errors
    ///
    /// [`TokenError::SigningKey`].
    pub fn from_pem(
        pem: &str,
        kid: &str,
        gateway_id: &str,
        lifetime: Option<Duration>,
    ) -> Result<Self, TokenError> {
        let body = pem
            .split_once("-----BEGIN PRIVATE KEY-----")
            .and_then(|(_, rest)| rest.split_once("-----END PRIVATE KEY-----"))
            .ok_or(TokenError::SigningKey)?
            .0;
        let body: String = body.split_whitespace().collect();
        let key = STANDARD.decode(body).map_err(|_| TokenError::SigningKey)?;
        Self::from_pkcs8(&key, kid.trim(), gateway_id, lifetime)
    }

    fn from_pkcs8(
        key: &[u8],
        kid: &str,
        gateway_id: &str,
        lifetime: Option<Duration>,
    ) -> Result<Self, TokenError> {
        // Other programs write the key without its public half.
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(key).map_err(|_| TokenError::SigningKey)?;
        let issuer = format!("openshell-gateway:{gateway_id}");
        Ok(Self { pair, kid: kid.to_owned(), issuer, lifetime })
    }

    /// A token for a sandbox.
    ///
    /// # Errors
    ///
    /// [`TokenError::Encode`].
    pub fn mint(&self, sandbox_id: &str) -> Result<Token, TokenError> {
        self.mint_at(sandbox_id, now())
    }

    fn mint_at(&self, sandbox_id: &str, now: i64) -> Result<Token, TokenError> {
        let lifetime = self.lifetime.map(|span| i64::try_from(span.as_secs()).unwrap_or(i64::MAX));
        let exp = lifetime.map_or(0, |span| now.saturating_add(span));
        let header =
            Header { alg: "EdDSA".to_owned(), kid: self.kid.clone(), typ: "JWT".to_owned() };
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.issuer.clone(),
            sub: format!("{SUBJECT}{sandbox_id}"),
            iat: now,
            exp,
            sandbox_id: sandbox_id.to_owned(),
        };
        let mut text = format!("{}.{}", encode(&header)?, encode(&claims)?);
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(text.as_bytes()));
        text.push('.');
        text.push_str(&signature);
        Ok(Token { text, expires_at_ms: exp.saturating_mul(1000) })
    }

    /// The sandbox that a token names.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the token.
    pub fn verify(&self, token: &str) -> Result<String, TokenError> {
        self.verify_at(token, now())
    }

    fn verify_at(&self, token: &str, now: i64) -> Result<String, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = decode(header)?;
        if header.alg != "EdDSA" || header.kid != self.kid {
            return Err(TokenError::Key);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        UnparsedPublicKey::new(&ED25519, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::Signature)?;
        let claims: Claims = decode(claims)?;
        if claims.iss != self.issuer || claims.aud != self.issuer {
            return Err(TokenError::Audience);
        }
        if claims.sandbox_id.is_empty()
            || claims.sub.strip_prefix(SUBJECT) != Some(claims.sandbox_id.as_str())
        {
            return Err(TokenError::Malformed);
        }
        if claims.exp != 0 && claims.exp.saturating_add(LEEWAY) < now {
            return Err(TokenError::Expired);
        }
        Ok(claims.sandbox_id)
    }
}

/// A new Ed25519 key in PKCS #8.
///
/// # Errors
///
/// [`TokenError::Random`].
pub fn new_pkcs8() -> Result<Vec<u8>, TokenError> {
    let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    key.map(|key| key.as_ref().to_vec()).map_err(|_| TokenError::Random)
}

fn encode<T: Serialize>(part: &T) -> Result<String, TokenError> {
    serde_json::to_vec(part)
        .map(|json| URL_SAFE_NO_PAD.encode(json))
        .map_err(|_| TokenError::Encode)
}

fn decode<T: for<'a> Deserialize<'a>>(part: &str) -> Result<T, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_good_until_its_end() {
        let keys = Keys::generate("here", Some(Duration::from_secs(100))).unwrap();
        let token = keys.mint_at("a", 1000).unwrap();
        assert_eq!(token.expires_at_ms, 1_100_000);
        assert_eq!(keys.verify_at(&token.text, 1160), Ok("a".to_owned()));
        assert_eq!(keys.verify_at(&token.text, 1161), Err(TokenError::Expired));
        let endless = Keys::generate("here", None).unwrap();
        let token = endless.mint_at("a", 1000).unwrap();
        assert_eq!(token.expires_at_ms, 0);
        assert_eq!(endless.verify_at(&token.text, i64::MAX), Ok("a".to_owned()));
    }

    #[test]
    fn the_token_of_another_gateway_is_refused() {
        let key = new_pkcs8().unwrap();
        let here = Keys::from_pkcs8(&key, "k", "here", None).unwrap();
        let there = Keys::from_pkcs8(&key, "k", "there", None).unwrap();
        let other = Keys::from_pkcs8(&new_pkcs8().unwrap(), "k", "here", None).unwrap();
        let renamed = Keys::from_pkcs8(&key, "l", "here", None).unwrap();
        for (keys, expected) in [
            (&there, TokenError::Audience),
            (&other, TokenError::Signature),
            (&renamed, TokenError::Key),
        ] {
            assert_eq!(here.verify(&keys.mint("a").unwrap().text), Err(expected));
        }
    }

    #[test]
    fn no_other_algorithm_is_taken() {
        let keys = Keys::generate("here", None).unwrap();
        let token = keys.mint("a").unwrap().text;
        let (_, rest) = token.split_once('.').unwrap();
        for alg in ["none", "HS256", "eddsa"] {
            let header =
                Header { alg: alg.to_owned(), kid: keys.kid.clone(), typ: "JWT".to_owned() };
            let forged = format!("{}.{rest}", encode(&header).unwrap());
            assert_eq!(keys.verify(&forged), Err(TokenError::Key));
        }
    }

    #[test]
    fn keys_come_from_pem() {
        let body = STANDARD.encode(new_pkcs8().unwrap());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        let keys = Keys::from_pem(&pem, "k\n", "here", None).unwrap();
        assert_eq!(keys.verify(&keys.mint("a").unwrap().text), Ok("a".to_owned()));
        assert_eq!(Keys::from_pem("", "k", "here", None).unwrap_err(), TokenError::SigningKey);
    }

    proptest! {
        #[test]
        fn no_text_is_a_token(text in "[A-Za-z0-9_.-]{0,200}") {
            let keys = Keys::generate("here", None).unwrap();
            prop_assert!(keys.verify(&text).is_err());
        }

        #[test]
        fn a_changed_token_is_none(at in 0usize..400, with in b'A'..=b'Z') {
            let keys = Keys::generate("here", None).unwrap();
            let good = keys.mint("sandbox").unwrap().text;
            let mut bytes = good.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] = with;
            let changed = String::from_utf8(bytes).unwrap();
            prop_assert!(changed == good || keys.verify(&changed).is_err());
        }
    }
}
