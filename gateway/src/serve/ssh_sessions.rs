//! Tokens with which users forward connections into a sandbox.
//!
//! Invariant: a token opens connections to one sandbox, a few at a time, until it expires or is revoked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Lifetime of a token, in milliseconds: a day.
const LIFETIME_MS: i64 = 24 * 60 * 60 * 1000;
const PER_TOKEN: usize = 3;
const PER_SANDBOX: usize = 20;
/// Tokens of one sandbox.
const TOKENS: usize = 256;

/// All tokens. They end with the gateway.
#[derive(Debug, Default)]
pub(super) struct SshSessions(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tokens: HashMap<String, Session>,
    connections: HashMap<String, Arc<Semaphore>>,
}

#[derive(Debug)]
struct Session {
    sandbox_id: String,
    expires_at_ms: i64,
    connections: Arc<Semaphore>,
}

/// Held for as long as a connection lasts.
#[derive(Debug)]
pub(super) struct Permit {
    _token: OwnedSemaphorePermit,
    _sandbox: OwnedSemaphorePermit,
}

impl SshSessions {
    /// A token for a sandbox, and when it expires.
    pub(super) fn open(&self, sandbox_id: &str, now_ms: i64) -> Result<(String, i64), Status> {
        let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let expires_at_ms = now_ms.saturating_add(LIFETIME_MS);
        let mut state = self.lock();
        state.tokens.retain(|_, session| session.expires_at_ms > now_ms);
        if state.tokens.values().filter(|s| s.sandbox_id == sandbox_id).count() >= TOKENS {
            return Err(Status::resource_exhausted("too many sessions of this sandbox"));
        }
        let session = Session {
            sandbox_id: sandbox_id.to_owned(),
            expires_at_ms,
            connections: Arc::new(Semaphore::new(PER_TOKEN)),
        };
        state.tokens.insert(token.clone(), session);
        Ok((token, expires_at_ms))
    }

    /// Ends a token; connections that are open stay.
    pub(super) fn revoke(&self, token: &str) -> bool {
        self.lock().tokens.remove(token).is_some()
    }

    /// Room for one connection.
    pub(super) fn connect(
        &self,
        token: &str,
        sandbox_id: &str,
        now_ms: i64,
    ) -> Result<Permit, Status> {
        if token.is_empty() {
            return Err(Status::unauthenticated("authorization token is missing"));
        }
        let mut state = self.lock();
        let session = state
            .tokens
            .get(token)
            .filter(|session| session.expires_at_ms > now_ms)
            .ok_or_else(|| Status::unauthenticated("authorization token is not known"))?;
        if session.sandbox_id != sandbox_id {
            return Err(Status::permission_denied("authorization token of another sandbox"));
        }
        let own = Arc::clone(&session.connections);
        let all = state
            .connections
            .entry(sandbox_id.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(PER_SANDBOX)));
        let full = |_| Status::resource_exhausted("too many connections");
        Ok(Permit {
            _token: own.try_acquire_owned().map_err(full)?,
            _sandbox: Arc::clone(all).try_acquire_owned().map_err(full)?,
        })
    }

    /// The sandbox is gone.
    pub(super) fn remove(&self, sandbox_id: &str) {
        let mut state = self.lock();
        state.tokens.retain(|_, session| session.sandbox_id != sandbox_id);
        state.connections.remove(sandbox_id);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_token_is_for_one_sandbox_until_it_expires() {
        let sessions = SshSessions::default();
        let (token, end) = sessions.open("a", 1000).unwrap();
        assert!(sessions.connect(&token, "a", end - 1).is_ok());
        for (token, sandbox, now, expected) in [
            ("", "a", 1000, Code::Unauthenticated),
            ("x", "a", 1000, Code::Unauthenticated),
            (&token, "b", 1000, Code::PermissionDenied),
            (&token, "a", end, Code::Unauthenticated),
        ] {
            assert_eq!(sessions.connect(token, sandbox, now).unwrap_err().code(), expected);
        }
        assert!(sessions.revoke(&token) && !sessions.revoke(&token));
        assert!(sessions.connect(&token, "a", 1000).is_err());
    }

    #[test]
    fn connections_are_counted_by_token_and_by_sandbox() {
        let sessions = SshSessions::default();
        let mut held = Vec::new();
        while held.len() < PER_SANDBOX {
            let (token, _) = sessions.open("a", 0).unwrap();
            held.extend((0..PER_TOKEN).map_while(|_| sessions.connect(&token, "a", 0).ok()));
            let refused = sessions.connect(&token, "a", 0).unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted);
        }
        assert_eq!(held.len(), PER_SANDBOX);
        drop(held.pop());
        let (token, _) = sessions.open("a", 0).unwrap();
        assert!(sessions.connect(&token, "a", 0).is_ok());
    }
}
