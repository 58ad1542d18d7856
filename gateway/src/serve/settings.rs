//! What a sandbox may do and how it is set: its policy and its settings, served to its supervisor and changed by users.
//!
//! Settings have two scopes, a sandbox's own and the gateway's, which wins; each scope is a row. The gateway's may hold a policy, which then
//! is that of every sandbox. Keys are not judged: who reads a setting knows what it means.
//!
//! Invariant: the version of a sandbox's policy and the revision of its configuration never decrease, and change with every change.

use std::collections::BTreeMap;

use openshell_proto::sandbox::v1::{
    EffectiveSetting, GetGatewayConfigResponse, GetSandboxConfigResponse, PolicySource,
    SandboxPolicy, SettingScope, SettingValue, setting_value,
};
use openshell_proto::v1::{Sandbox, UpdateConfigRequest, UpdateConfigResponse};
use tonic::Status;

use super::merge::merge;
use super::policy::{check_policy, hash, policy_of};
use super::{Gateway, internal};
use crate::auth::Principal;
use crate::store::{Scope, StoreError};

/// Settings of one scope, bytes of a key, and of a value.
const SETTINGS_MAX: usize = 64;
const KEY_MAX: usize = 64;
const VALUE_MAX: usize = 4096;
/// The key by which the gateway's policy is deleted; no setting has it.
const POLICY: &str = "policy";

/// What somebody wants changed: one thing.
#[derive(Debug)]
enum Change {
    Policy(SandboxPolicy),
    Merge,
    Set(String, SettingValue),
    Delete(String),
}

impl Gateway {
    pub(super) async fn config_of(&self, id: &str) -> Result<GetSandboxConfigResponse, Status> {
        let row = self.row(id).await?;
        let (global, own) = (self.scope(Scope::GLOBAL).await?, self.scope(id).await?);
        let (policy, version) = policy_of(&row);
        let mut settings = BTreeMap::new();
        // The gateway's come last: they win.
        for (scope, which) in [(&own, SettingScope::Sandbox), (&global, SettingScope::Global)] {
            for (key, value) in &scope.values {
                let value = Some(value.clone());
                settings.insert(key.clone(), EffectiveSetting { value, scope: which.into() });
            }
        }
        let source =
            if global.policy.is_some() { PolicySource::Global } else { PolicySource::Sandbox };
        let global_policy_version = global.policy.as_ref().map_or(0, |_| global.policy_version);
        let policy = global.policy.unwrap_or(policy);
        Ok(GetSandboxConfigResponse {
            policy_hash: hash(&policy),
            policy: Some(policy),
            version,
            settings,
            config_revision: u64::from(version)
                .saturating_add(own.revision)
                .saturating_add(global.revision),
            policy_source: source.into(),
            global_policy_version,
            provider_env_revision: 1,
            workspace: row.metadata.unwrap_or_default().workspace,
            policy_validation_failure_mode: "fail_closed".to_owned(),
            ..GetSandboxConfigResponse::default()
        })
    }

    pub(super) async fn gateway_config(&self) -> Result<GetGatewayConfigResponse, Status> {
        let global = self.scope(Scope::GLOBAL).await?;
        Ok(GetGatewayConfigResponse {
            settings: global.values,
            settings_revision: global.revision.saturating_add(1),
        })
    }

    pub(super) async fn change_config(
        &self,
        caller: Principal,
        mut request: UpdateConfigRequest,
    ) -> Result<UpdateConfigResponse, Status> {
        let change = wanted(&mut request)?;
        if request.global {
            caller.user()?;
            return self.change_global(change).await;
        }
        let row = self.find(&request.workspace, &request.name).await?;
        let id = row.metadata.as_ref().map(|meta| meta.id.clone()).unwrap_or_default();
        caller.may_see(&id)?;
        // A supervisor brings a policy at most: what it may do is not its own to say.
        if !matches!(change, Change::Policy(_)) {
            caller.user()?;
        }
        let global = self.scope(Scope::GLOBAL).await?;
        match change {
            Change::Policy(_) | Change::Merge if global.policy.is_some() => {
                Err(Status::failed_precondition("the gateway has one policy for all sandboxes"))
            }
            Change::Set(key, _) | Change::Delete(key) if global.values.contains_key(&key) => Err(
                Status::failed_precondition(format!("setting `{key}` is the gateway's for all")),
            ),
            Change::Policy(policy) => {
                check_policy(&policy)?;
                self.change_policy(&id, &request, |_| Ok(policy.clone())).await
            }
            Change::Merge => {
                self.change_policy(&id, &request, |old| merge(old, &request.merge_operations)).await
            }
            Change::Set(..) | Change::Delete(_) => {
                let version = row.metadata.map_or(0, |meta| meta.resource_version);
                let wanted = request.expected_resource_version;
                if wanted != 0 && wanted != version {
                    return Err(stale());
                }
                self.change_scope(&id, change).await
            }
        }
    }

    /// Writes what `make` makes of a sandbox's policy.
    async fn change_policy(
        &self,
        id: &str,
        request: &UpdateConfigRequest,
        make: impl Fn(&SandboxPolicy) -> Result<SandboxPolicy, Status> + Send + Sync,
    ) -> Result<UpdateConfigResponse, Status> {
        let wanted = request.expected_resource_version;
        let mut refused = None;
        let written = self.0.compute.store().update_message_cas::<Sandbox>(id, |row| {
            let version = row.metadata.as_ref().map_or(0, |meta| meta.resource_version);
            let (old, number) = policy_of(row);
            let made = if wanted != 0 && version != wanted { Err(stale()) } else { make(&old) };
            let policy = match made {
                Ok(policy) if policy == old => return None,
                Ok(policy) => policy,
                Err(status) => {
                    refused = Some(status);
                    return None;
                }
            };
            let mut next = row.clone();
            next.spec.get_or_insert_default().policy = Some(policy);
            next.status.get_or_insert_default().current_policy_version = number.saturating_add(1);
            Some(next)
        });
        let (row, changed) = written
            .await
            .map_err(|error| internal(&error))?
            .ok_or_else(|| Status::not_found("sandbox not found"))?;
        if let Some(refused) = refused {
            return Err(refused);
        }
        if changed {
            self.0.compute.bus().changed(id);
        }
        let (policy, version) = policy_of(&row);
        Ok(UpdateConfigResponse {
            version,
            policy_hash: hash(&policy),
            ..UpdateConfigResponse::default()
        })
    }

    async fn change_global(&self, change: Change) -> Result<UpdateConfigResponse, Status> {
        match &change {
            Change::Policy(policy) => check_policy(policy)?,
            Change::Merge => {
                return Err(Status::invalid_argument("merge operations are for one sandbox"));
            }
            Change::Set(..) | Change::Delete(_) => {}
        }
        self.change_scope(Scope::GLOBAL, change).await
    }

    /// Writes a change of one scope's row, which is made with its first one.
    async fn change_scope(&self, id: &str, change: Change) -> Result<UpdateConfigResponse, Status> {
        let store = self.0.compute.store();
        loop {
            let (mut full, mut found) = (false, false);
            let written = store.update_message_cas::<Scope>(id, |scope| {
                let mut next = scope.clone();
                match &change {
                    Change::Set(key, value) => {
                        next.values.insert(key.clone(), value.clone());
                        full = next.values.len() > SETTINGS_MAX;
                    }
                    Change::Delete(key) if key == POLICY => found = next.policy.take().is_some(),
                    Change::Delete(key) => found = next.values.remove(key).is_some(),
                    Change::Policy(policy) => next.policy = Some(policy.clone()),
                    Change::Merge => {}
                }
                if full || next == *scope {
                    return None;
                }
                next.revision = next.revision.saturating_add(1);
                if next.policy != scope.policy {
                    next.policy_version = next.policy_version.saturating_add(1);
                }
                Some(next)
            });
            let written = written.await.map_err(|error| internal(&error))?;
            if full {
                return Err(Status::resource_exhausted("too many settings"));
            }
            if let Some((scope, _)) = written {
                return Ok(UpdateConfigResponse {
                    version: scope.policy.as_ref().map_or(0, |_| scope.policy_version),
                    policy_hash: scope.policy.as_ref().map(hash).unwrap_or_default(),
                    settings_revision: scope.revision.saturating_add(1),
                    deleted: found,
                    ..UpdateConfigResponse::default()
                });
            }
            match store.put_if(&Scope::of(id), crate::store::Condition::MustCreate).await {
                Ok(_) | Err(StoreError::Exists { .. }) => {}
                Err(error) => return Err(internal(&error)),
            }
        }
    }

    /// The settings of a scope; none where there never were any.
    async fn scope(&self, id: &str) -> Result<Scope, Status> {
        let scope = self.0.compute.store().fetch::<Scope>(id).await;
        Ok(scope.map_err(|error| internal(&error))?.unwrap_or_default())
    }
}

fn stale() -> Status {
    Status::aborted("sandbox has another version by now")
}

/// The one thing that a request wants changed. Merge operations stay in the request.
fn wanted(request: &mut UpdateConfigRequest) -> Result<Change, Status> {
    let invalid = |why: &str| Err(Status::invalid_argument(why.to_owned()));
    let key = std::mem::take(&mut request.setting_key);
    let kinds = [request.policy.is_some(), !request.merge_operations.is_empty(), !key.is_empty()];
    match (kinds, request.policy.take()) {
        ([true, false, false], Some(policy)) => return Ok(Change::Policy(policy)),
        ([false, true, false], _) => return Ok(Change::Merge),
        ([false, false, true], _) => {}
        ([false, false, false], _) => return invalid("nothing to change"),
        _ => return invalid("one of policy, merge operations and setting at a time"),
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if key.len() > KEY_MAX || !key.bytes().all(good) {
        return invalid("a setting's key has 1 to 64 letters, digits, `_`, `.` and `-`");
    }
    match (request.delete_setting, request.setting_value.take()) {
        (true, None) if key == POLICY && !request.global => {
            invalid("a sandbox always has a policy")
        }
        (true, None) => Ok(Change::Delete(key)),
        (false, Some(_)) if key == POLICY => invalid("`policy` is no setting"),
        (false, Some(value)) => match value.value.as_ref().map(length) {
            None => invalid("the setting has no value"),
            Some(length) if length > VALUE_MAX => invalid("a setting has at most 4096 bytes"),
            Some(_) => Ok(Change::Set(key, value)),
        },
        (true, Some(_)) => invalid("a setting is set or deleted, not both"),
        (false, None) => invalid("the setting has no value"),
    }
}

fn length(value: &setting_value::Value) -> usize {
    match value {
        setting_value::Value::StringValue(text) => text.len(),
        setting_value::Value::BytesValue(bytes) => bytes.len(),
        setting_value::Value::BoolValue(_) | setting_value::Value::IntValue(_) => 8,
    }
}
