//! Who calls: users, and supervisors that speak for one sandbox.
//!
//! A supervisor shows the token of its sandbox in each call. A user shows a client certificate, or nothing where the operator has said so.
//! Called by every RPC before it does anything else.
//!
//! Invariant: whoever shows a token is judged by the token alone; a bad one makes nobody a user, and neither does a guest's certificate.

pub mod certificate;
pub mod keyset;
pub mod token;

use tonic::{Request, Status};

use crate::session::Claimant;
use certificate::Authority;
use token::Keys;

/// The caller of one RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A user of the gateway, by a name for logs.
    User(String),
    /// The supervisor of a sandbox, by the sandbox's id.
    Sandbox(String),
}

/// How users are told from strangers.
#[derive(Debug, Clone, Default)]
pub struct Users {
    /// Everybody without a token is a user: for a loopback address.
    pub allow_unauthenticated: bool,
    /// Who shows a certificate of the users' authority is a user.
    pub allow_certificate: bool,
    /// Who signs certificates of users, where clients show certificates. Those of others are guests.
    pub authority: Option<Authority>,
}

impl Principal {
    /// Judges who calls.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED for a token that is not one of ours, and for a caller who shows nothing where something is asked for.
    pub fn of<T>(request: &Request<T>, keys: &Keys, users: &Users) -> Result<Self, Status> {
        if let Some(header) = request.metadata().get("authorization") {
            let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
            let token = token.ok_or_else(|| Status::unauthenticated("malformed authorization"))?;
            return match keys.verify(token) {
                Ok(id) => Ok(Self::Sandbox(id)),
                Err(error) => Err(Status::unauthenticated(error.to_string())),
            };
        }
        if let Some(chain) = request.peer_certs().filter(|chain| !chain.is_empty()) {
            if !users.authority.as_ref().is_some_and(|authority| authority.signed(&chain)) {
                return Err(Status::unauthenticated("no token with a guest's certificate"));
            }
            if users.allow_certificate {
                return Ok(Self::User("certificate".to_owned()));
            }
        }
        if users.allow_unauthenticated {
            return Ok(Self::User("anonymous".to_owned()));
        }
        Err(Status::unauthenticated("no credentials"))
    }

    /// Only users.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED for a supervisor.
    pub fn user(self) -> Result<String, Status> {
        match self {
            Self::User(name) => Ok(name),
            Self::Sandbox(_) => Err(Status::permission_denied("this call is for users")),
        }
    }

    /// Only supervisors: the sandbox that one speaks for.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED for a user.
    pub fn sandbox(self) -> Result<String, Status> {
        match self {
            Self::Sandbox(id) => Ok(id),
            Self::User(_) => Err(Status::permission_denied("this call is for supervisors")),
        }
    }

    /// Only the supervisor of this very sandbox.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED for everybody else.
    pub fn speaks_for(self, sandbox_id: &str) -> Result<(), Status> {
        if self.sandbox()? == sandbox_id {
            Ok(())
        } else {
            Err(Status::permission_denied("token of another sandbox"))
        }
    }

    /// Any user, or the supervisor of this very sandbox.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED for the supervisors of other sandboxes.
    pub fn may_see(&self, sandbox_id: &str) -> Result<(), Status> {
        match self {
            Self::Sandbox(id) if id != sandbox_id => {
                Err(Status::permission_denied("token of another sandbox"))
            }
            Self::User(_) | Self::Sandbox(_) => Ok(()),
        }
    }

    /// As the registry of sessions sees it.
    #[must_use]
    pub fn claimant(&self) -> Claimant<'_> {
        match self {
            Self::User(_) => Claimant::User,
            Self::Sandbox(id) => Claimant::Sandbox(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(header: Option<&str>) -> Request<()> {
        let mut request = Request::new(());
        if let Some(text) = header {
            request.metadata_mut().insert("authorization", text.parse().unwrap());
        }
        request
    }

    #[test]
    fn a_bad_token_makes_nobody_a_user() {
        let keys = Keys::generate("here", None).unwrap();
        let open = Users { allow_unauthenticated: true, allow_certificate: true, authority: None };
        let good = format!("Bearer {}", keys.mint("a").unwrap().text);
        assert_eq!(
            Principal::of(&call(Some(&good)), &keys, &open).unwrap(),
            Principal::Sandbox("a".into())
        );
        for bad in
            ["Bearer x.y.z", "Bearer ", "Basic YTpi", good.trim_end_matches(char::is_alphanumeric)]
        {
            let refused = Principal::of(&call(Some(bad)), &keys, &open).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{bad}");
        }
        assert!(Principal::of(&call(None), &keys, &open).unwrap().user().is_ok());
        let refused = Principal::of(&call(None), &keys, &Users::default()).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    }

    #[test]
    fn each_kind_of_caller_has_its_calls() {
        let sandbox = Principal::Sandbox("a".into());
        let user = Principal::User("u".into());
        for refused in [
            sandbox.clone().user().err(),
            user.clone().sandbox().err(),
            user.clone().speaks_for("a").err(),
            sandbox.clone().speaks_for("b").err(),
            sandbox.may_see("b").err(),
        ] {
            assert_eq!(refused.unwrap().code(), tonic::Code::PermissionDenied);
        }
        assert!(sandbox.may_see("a").is_ok() && user.may_see("a").is_ok());
        assert!(sandbox.speaks_for("a").is_ok());
    }
}
