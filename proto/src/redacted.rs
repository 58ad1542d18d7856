//! `Debug` of the messages that carry a token or a user's environment, so that no log line can carry it by accident.
//!
//! Invariant: what is printed says whether there was a secret, never what it was. New fields of these messages are not printed until
//! they are added here.

use std::collections::BTreeMap;
use std::fmt;

use crate::compute::v1 as compute;
use crate::v1;

/// Stands for a secret.
struct Secret(bool);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "(secret)" } else { "(none)" })
    }
}

fn secret(bytes: &str) -> Secret {
    Secret(!bytes.is_empty())
}

/// Names without their values.
fn names<V>(of: &BTreeMap<String, V>) -> Vec<&str> {
    of.keys().map(String::as_str).collect()
}

impl fmt::Debug for compute::DriverSandboxSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverSandboxSpec")
            .field("log_level", &self.log_level)
            .field("environment", &names(&self.environment))
            .field("template", &self.template)
            .field("resource_requirements", &self.resource_requirements)
            .field("sandbox_token", &secret(&self.sandbox_token))
            .field("command", &self.command)
            .field("tty", &self.tty)
            .finish()
    }
}

impl fmt::Debug for compute::DriverSandboxTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverSandboxTemplate")
            .field("image", &self.image)
            .field("agent_socket_path", &self.agent_socket_path)
            .field("labels", &self.labels)
            .field("environment", &names(&self.environment))
            .field("resources", &self.resources)
            .field("platform_config", &self.platform_config)
            .field("driver_config", &self.driver_config)
            .finish()
    }
}

impl fmt::Debug for v1::SandboxSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxSpec")
            .field("log_level", &self.log_level)
            .field("environment", &names(&self.environment))
            .field("template", &self.template)
            .field("policy", &self.policy)
            .field("providers", &self.providers)
            .field("resource_requirements", &self.resource_requirements)
            .field("command", &self.command)
            .field("tty", &self.tty)
            .finish()
    }
}

impl fmt::Debug for v1::SandboxTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxTemplate")
            .field("image", &self.image)
            .field("runtime_class_name", &self.runtime_class_name)
            .field("agent_socket", &self.agent_socket)
            .field("labels", &self.labels)
            .field("annotations", &self.annotations)
            .field("environment", &names(&self.environment))
            .field("resources", &self.resources)
            .field("user_namespaces", &self.user_namespaces)
            .field("driver_config", &self.driver_config)
            .finish()
    }
}

impl fmt::Debug for v1::ExecSandboxRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSandboxRequest")
            .field("sandbox_id", &self.sandbox_id)
            .field("command", &self.command)
            .field("workdir", &self.workdir)
            .field("environment", &names(&self.environment))
            .field("timeout_seconds", &self.timeout_seconds)
            .field("stdin_bytes", &self.stdin.len())
            .field("tty", &self.tty)
            .field("cols", &self.cols)
            .field("rows", &self.rows)
            .finish()
    }
}

impl fmt::Debug for v1::TcpForwardInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpForwardInit")
            .field("sandbox_id", &self.sandbox_id)
            .field("service_id", &self.service_id)
            .field("target", &self.target)
            .field("authorization_token", &secret(&self.authorization_token))
            .finish()
    }
}

impl fmt::Debug for v1::CreateSshSessionResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateSshSessionResponse")
            .field("sandbox_id", &self.sandbox_id)
            .field("token", &secret(&self.token))
            .field("gateway_host", &self.gateway_host)
            .field("gateway_port", &self.gateway_port)
            .field("gateway_scheme", &self.gateway_scheme)
            .field("host_key_fingerprint", &self.host_key_fingerprint)
            .field("expires_at_ms", &self.expires_at_ms)
            .finish()
    }
}

impl fmt::Debug for v1::RevokeSshSessionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevokeSshSessionRequest").field("token", &secret(&self.token)).finish()
    }
}

impl fmt::Debug for v1::GetSandboxProviderEnvironmentResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetSandboxProviderEnvironmentResponse")
            .field("environment", &names(&self.environment))
            .field("provider_env_revision", &self.provider_env_revision)
            .field("credential_expires_at_ms", &self.credential_expires_at_ms)
            .field("dynamic_credentials", &names(&self.dynamic_credentials))
            .field("static_credential_bindings", &self.static_credential_bindings.len())
            .field("non_secret_environment_keys", &self.non_secret_environment_keys)
            .finish()
    }
}

impl fmt::Debug for v1::IssueSandboxTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueSandboxTokenResponse")
            .field("token", &secret(&self.token))
            .field("expires_at_ms", &self.expires_at_ms)
            .finish()
    }
}

impl fmt::Debug for v1::RefreshSandboxTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshSandboxTokenResponse")
            .field("token", &secret(&self.token))
            .field("expires_at_ms", &self.expires_at_ms)
            .field("extension_credentials", &self.extension_credentials.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_in_debug_output() {
        let word = "hunter2";
        let environment = BTreeMap::from([("PASSWORD".to_owned(), word.to_owned())]);
        let token = word.to_owned();
        let spec = compute::DriverSandboxSpec {
            environment: environment.clone(),
            sandbox_token: token.clone(),
            template: Some(compute::DriverSandboxTemplate {
                environment: environment.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let user = v1::SandboxSpec {
            environment: environment.clone(),
            template: Some(v1::SandboxTemplate {
                environment: environment.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let printed = [
            format!("{:?}", compute::DriverSandbox { spec: Some(spec), ..Default::default() }),
            format!("{:?}", v1::Sandbox { spec: Some(user), ..Default::default() }),
            format!(
                "{:?}",
                v1::ExecSandboxRequest {
                    environment: environment.clone(),
                    stdin: word.into(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                v1::TcpForwardInit { authorization_token: token.clone(), ..Default::default() }
            ),
            format!(
                "{:?}",
                v1::CreateSshSessionResponse { token: token.clone(), ..Default::default() }
            ),
            format!("{:?}", v1::RevokeSshSessionRequest { token: token.clone() }),
            format!(
                "{:?}",
                v1::GetSandboxProviderEnvironmentResponse { environment, ..Default::default() }
            ),
            format!(
                "{:?}",
                v1::IssueSandboxTokenResponse { token: token.clone(), ..Default::default() }
            ),
            format!("{:?}", v1::RefreshSandboxTokenResponse { token, ..Default::default() }),
        ];
        for text in printed {
            assert!(!text.contains(word), "{text}");
            assert!(text.contains("(secret)") || text.contains("PASSWORD"), "{text}");
        }
    }
}
