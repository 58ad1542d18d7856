//! Sandboxes, as users ask for them.
//!
//! Invariant: what goes to the driver comes from the row, and the row has passed the checks here.

use std::collections::BTreeMap;

use openshell_proto::compute::v1::{
    DriverResourceRequirements, DriverSandbox, DriverSandboxSpec, DriverSandboxTemplate,
    GpuResourceRequirements, ResourceRequirements,
};
use openshell_proto::datamodel::v1::ObjectMeta;
use openshell_proto::v1::{
    CreateSandboxRequest, CreateSshSessionResponse, ListSandboxesRequest, Sandbox, SandboxSpec,
};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::Status;

use super::{Gateway, internal, now_ms, workspace};
use crate::exec::is_name;
use crate::store::Selector;

/// Most entries of labels, annotations and environments.
const ENTRIES_MAX: usize = 256;
const LIST_MAX: u32 = 1000;
const LIST_USUAL: u32 = 100;

impl Gateway {
    pub(super) async fn create(&self, request: CreateSandboxRequest) -> Result<Sandbox, Status> {
        let id = uuid::Uuid::new_v4().to_string();
        let name = if request.name.is_empty() {
            format!("sandbox-{}", id.split('-').next().unwrap_or(&id))
        } else {
            request.name
        };
        check_name("name", &name)?;
        let workspace = workspace(&request.workspace).to_owned();
        check_name("workspace", &workspace)?;
        let mut spec = request.spec.unwrap_or_default();
        check_spec(&spec)?;
        if request.labels.len() > ENTRIES_MAX || request.annotations.len() > ENTRIES_MAX {
            return Err(Status::invalid_argument("too many labels or annotations"));
        }
        let template = spec.template.get_or_insert_default();
        if template.image.is_empty() {
            template.image.clone_from(&self.0.about.default_image);
        }
        if let Some(policy) = &spec.policy {
            super::policy::check_policy(policy)?;
        }
        let row = Sandbox {
            metadata: Some(ObjectMeta {
                id: id.clone(),
                name: name.clone(),
                created_at_ms: now_ms(),
                labels: request.labels,
                annotations: request.annotations,
                workspace: workspace.clone(),
                ..ObjectMeta::default()
            }),
            spec: Some(spec.clone()),
            status: None,
        };
        let token = self.0.keys.mint(&id).map_err(|error| Status::internal(error.to_string()))?;
        let mut wanted = self.wanted(spec)?;
        if let Some(spec) = &mut wanted.spec {
            spec.sandbox_token = token.text;
        }
        (wanted.id, wanted.name, wanted.workspace) = (id, name, workspace);
        wanted.namespace.clone_from(&wanted.workspace);
        self.0.compute.driver().validate(wanted.clone()).await.map_err(|refused| match refused
            .code()
        {
            tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => refused,
            _ => Status::internal(format!("driver: {}", refused.message())),
        })?;
        self.0.compute.create(row, wanted).await
    }

    /// The driver's view of a specification.
    fn wanted(&self, spec: SandboxSpec) -> Result<DriverSandbox, Status> {
        let template = spec.template.unwrap_or_default();
        let driver_config = match template.driver_config {
            Some(by_driver) => own_part(by_driver, &self.0.about.driver)?,
            None => None,
        };
        let gpu = spec.resource_requirements.and_then(|wanted| wanted.gpu);
        Ok(DriverSandbox {
            spec: Some(DriverSandboxSpec {
                log_level: spec.log_level,
                environment: spec.environment,
                template: Some(DriverSandboxTemplate {
                    image: template.image,
                    agent_socket_path: template.agent_socket,
                    labels: template.labels,
                    environment: template.environment,
                    resources: template.resources.as_ref().map(resources),
                    platform_config: None,
                    driver_config,
                }),
                resource_requirements: gpu.map(|gpu| ResourceRequirements {
                    gpu: Some(GpuResourceRequirements { count: gpu.count }),
                }),
                sandbox_token: String::new(),
                command: spec.command,
                tty: spec.tty,
            }),
            ..DriverSandbox::default()
        })
    }

    pub(super) async fn find(&self, workspace_: &str, name: &str) -> Result<Sandbox, Status> {
        let store = self.0.compute.store();
        let row = store.fetch_by_name::<Sandbox>(workspace(workspace_), name).await;
        row.map_err(|error| internal(&error))?.ok_or_else(|| Status::not_found("sandbox not found"))
    }

    pub(super) async fn list(&self, asked: &ListSandboxesRequest) -> Result<Vec<Sandbox>, Status> {
        let selector = Selector::parse(&asked.label_selector)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let of = (!asked.all_workspaces).then(|| workspace(&asked.workspace));
        let rows = self.0.compute.store().list::<Sandbox>(of, &selector).await;
        let rows = rows.map_err(|error| internal(&error))?;
        let limit = if asked.limit == 0 { LIST_USUAL } else { asked.limit.min(LIST_MAX) };
        let skip = usize::try_from(asked.offset).unwrap_or(usize::MAX);
        Ok(rows.into_iter().skip(skip).take(limit as usize).collect())
    }

    pub(super) async fn delete(&self, workspace_: &str, name: &str) -> Result<bool, Status> {
        let id = match self.find(workspace_, name).await {
            Ok(row) => row.metadata.unwrap_or_default().id,
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(false),
            Err(status) => return Err(status),
        };
        let deleted = self.0.compute.delete(workspace(workspace_), name).await?;
        self.0.logs.remove(&id);
        self.0.ssh.remove(&id);
        Ok(deleted)
    }

    pub(super) async fn ssh_session(&self, id: &str) -> Result<CreateSshSessionResponse, Status> {
        self.ready(id).await?;
        let (token, expires_at_ms) = self.0.ssh.open(id, now_ms())?;
        let (scheme, host, port) = self.0.about.address.clone();
        Ok(CreateSshSessionResponse {
            sandbox_id: id.to_owned(),
            token,
            gateway_host: host,
            gateway_port: u32::from(port),
            gateway_scheme: scheme,
            host_key_fingerprint: String::new(),
            expires_at_ms,
        })
    }
}

/// A label of DNS (RFC 1123): it becomes the guest's host name.
fn check_name(what: &str, name: &str) -> Result<(), Status> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let good = (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "{what} is not 1 to 63 lower-case letters, digits and inner hyphens"
    )))
}

fn check_spec(spec: &SandboxSpec) -> Result<(), Status> {
    let template = spec.template.as_ref().map(|template| &template.environment);
    for environment in [Some(&spec.environment), template].into_iter().flatten() {
        check_environment(environment)?;
    }
    if spec.command.iter().any(|word| word.contains('\0')) {
        return Err(Status::invalid_argument("command holds a NUL byte"));
    }
    if !spec.providers.is_empty() {
        return Err(Status::failed_precondition("this gateway serves no providers"));
    }
    Ok(())
}

fn check_environment(environment: &BTreeMap<String, String>) -> Result<(), Status> {
    if environment.len() > ENTRIES_MAX {
        return Err(Status::invalid_argument("too many variables"));
    }
    for (key, value) in environment {
        if !is_name(key) || value.contains('\0') {
            return Err(Status::invalid_argument(format!("variable `{key}` cannot be set")));
        }
        if key.starts_with("OPENSHELL_") {
            return Err(Status::invalid_argument(format!("variable `{key}` is reserved")));
        }
    }
    Ok(())
}

/// The part of a configuration by driver that is this driver's.
fn own_part(mut by_driver: Struct, driver: &str) -> Result<Option<Struct>, Status> {
    match by_driver.fields.remove(driver).map(|value| value.kind) {
        None | Some(None | Some(Kind::NullValue(_))) => Ok(None),
        Some(Some(Kind::StructValue(own))) => Ok(Some(own)),
        Some(Some(_)) => {
            Err(Status::invalid_argument(format!("driver_config.{driver} is not an object")))
        }
    }
}

/// `requests` and `limits` with `cpu` and `memory`, as Kubernetes writes them.
fn resources(wanted: &Struct) -> DriverResourceRequirements {
    let quantity = |group: &str, what: &str| {
        let Some(Kind::StructValue(group)) = kind(wanted, group) else { return String::new() };
        match kind(group, what) {
            Some(Kind::StringValue(text)) => text.clone(),
            Some(Kind::NumberValue(number)) => number.to_string(),
            _ => String::new(),
        }
    };
    DriverResourceRequirements {
        cpu_request: quantity("requests", "cpu"),
        cpu_limit: quantity("limits", "cpu"),
        memory_request: quantity("requests", "memory"),
        memory_limit: quantity("limits", "memory"),
    }
}

fn kind<'a>(of: &'a Struct, key: &str) -> Option<&'a Kind> {
    of.fields.get(key).and_then(|Value { kind }| kind.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for good in ["a", "a-b", "0", &"x".repeat(63)] {
            assert!(check_name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a\n", "ä", &"x".repeat(64)] {
            assert!(check_name("name", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_of_the_gateway_are_reserved() {
        for (key, value, good) in [
            ("A_1", "x", true),
            ("OPENSHELL_ENDPOINT", "x", false),
            ("1A", "x", false),
            ("A=B", "x", false),
            ("A", "x\0", false),
        ] {
            let environment = [(key.to_owned(), value.to_owned())].into();
            assert_eq!(check_environment(&environment).is_ok(), good, "{key}");
        }
    }

    #[test]
    fn quantities_are_taken_as_text_or_number() {
        let value = |kind| Value { kind: Some(kind) };
        let limits = Struct {
            fields: [
                ("cpu".to_owned(), value(Kind::NumberValue(2.0))),
                ("memory".to_owned(), value(Kind::StringValue("4Gi".into()))),
            ]
            .into(),
        };
        let all =
            Struct { fields: [("limits".to_owned(), value(Kind::StructValue(limits)))].into() };
        let got = resources(&all);
        assert_eq!((got.cpu_limit.as_str(), got.memory_limit.as_str()), ("2", "4Gi"));
        assert!(got.cpu_request.is_empty() && got.memory_request.is_empty());
    }
}
