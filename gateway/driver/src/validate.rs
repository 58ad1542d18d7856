//! What is refused, and with which code.
//!
//! Invariant: a request is judged in one order: what the message lacks, what this driver cannot do, what is not well formed. A
//! user of the gateway names images of registries only: a path of this host would show its files. Pure but for the look at a
//! `rootfs_tar_path`.

use std::path::{Component, Path, PathBuf};

use openshell_proto::compute::v1 as pb;
use prost::Message as _;
use prost_types::value::Kind;

use crate::id::SandboxId;
use crate::resources::{self, Asked};
use crate::sandbox::{DriverError, Identity, Request, Settings, Unusable};
use crate::wire;

/// Beginnings of references that lead to files of this host.
const LOCAL: [&str; 7] = ["/", "./", "../", "dir:", "oci:", "docker-archive:", "rootfs-tar:"];
/// Ends of archives that are taken.
const ARCHIVES: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"];

/// What the user said to this driver in particular.
#[derive(Debug, Default)]
struct Config {
    gpu_devices: Option<Vec<String>>,
    rootfs_tar: Option<String>,
}

fn invalid(text: impl Into<String>) -> DriverError {
    DriverError::Invalid(text.into())
}

fn precondition(text: impl Into<String>) -> DriverError {
    DriverError::Precondition(text.into())
}

/// Judges a request and reads it.
pub(crate) fn request(
    sandbox: Option<&pb::DriverSandbox>,
    settings: &Settings,
) -> Result<Request, DriverError> {
    let sandbox = sandbox.ok_or_else(|| invalid("sandbox is required"))?;
    let spec = sandbox.spec.as_ref().ok_or_else(|| invalid("sandbox.spec is required"))?;
    let id = SandboxId::parse(&sandbox.id).map_err(|error| invalid(error.to_string()))?;
    let gpu = spec.resource_requirements.as_ref().and_then(|resources| resources.gpu.as_ref());
    if gpu.is_some() && !settings.gpu {
        return Err(precondition("GPU requested, and this driver was started without --gpu"));
    }
    let template = spec.template.clone().unwrap_or_default();
    if !template.agent_socket_path.is_empty() {
        return Err(precondition("template.agent_socket_path is not supported by VMs"));
    }
    if template.platform_config.is_some() {
        return Err(precondition("template.platform_config is not supported by VMs"));
    }
    let named = template.image.trim();
    let archive = has_archive(template.driver_config.as_ref());
    if named.is_empty() && settings.default_image.is_none() && !archive {
        let text = "template.image is required: this driver was started without --default-image";
        return Err(precondition(text));
    }
    let config = config(template.driver_config.as_ref())?;
    check_gpu(gpu, config.gpu_devices.as_deref())?;
    let asked = template.resources.clone().unwrap_or_default();
    let asked = Asked {
        cpu_request: &asked.cpu_request,
        cpu_limit: &asked.cpu_limit,
        memory_request: &asked.memory_request,
        memory_limit: &asked.memory_limit,
    };
    let (size, notes) = resources::size(&asked, settings.size, settings.host)
        .map_err(|error| invalid(format!("template.resources.{error}")))?;
    let image = match &config.rootfs_tar {
        Some(path) => format!("rootfs-tar:{}", rootfs_tar(path, settings)?.display()),
        None => image(named, settings)?,
    };
    if gpu.is_some() {
        return Err(precondition("these VMs have no GPUs: passing devices through is not built"));
    }
    Ok(Request {
        identity: Identity {
            id,
            name: sandbox.name.clone(),
            namespace: sandbox.namespace.clone(),
            workspace: sandbox.workspace.clone(),
        },
        image,
        size,
        notes,
        environment: wire::environment(&template.environment, &spec.environment),
        command: spec.command.clone(),
        tty: spec.tty,
        log_level: spec.log_level.clone(),
        token: spec.sandbox_token.clone(),
    })
}

/// Reads requests as they were kept.
pub fn decoder(settings: Settings) -> impl Fn(&[u8]) -> Result<Request, Unusable> {
    move |encoded| {
        let sandbox = pb::DriverSandbox::decode(encoded)
            .map_err(|error| Unusable { identity: None, why: error.to_string() })?;
        request(Some(&sandbox), &settings).map_err(|error| {
            let id = SandboxId::parse(&sandbox.id).ok();
            let identity = id.map(|id| Identity {
                id,
                name: sandbox.name.clone(),
                namespace: sandbox.namespace.clone(),
                workspace: sandbox.workspace.clone(),
            });
            Unusable { identity, why: error.to_string() }
        })
    }
}

/// The image as `openshell-rootfs` takes it.
fn image(named: &str, settings: &Settings) -> Result<String, DriverError> {
    let own = [&settings.default_image, &settings.bootstrap_image];
    let own: Vec<&String> = own.into_iter().flatten().collect();
    if named.is_empty() {
        return own.first().map(|image| (*image).clone()).ok_or_else(|| invalid("no image"));
    }
    // What the operator named may be a path: it is the operator's host.
    if own.iter().any(|image| *image == named) {
        return Ok(named.to_owned());
    }
    if LOCAL.iter().any(|local| named.starts_with(local)) {
        return Err(invalid(format!(
            "template.image {named:?} is not an image of a registry; the operator names others with --default-image"
        )));
    }
    if named.starts_with('-') || named.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(invalid(format!("template.image {named:?} cannot name an image")));
    }
    // So that nothing in it can mean a file.
    let name = named.strip_prefix("docker://").unwrap_or(named);
    Ok(format!("docker://{name}"))
}

/// An archive of this host that the operator lets users name.
fn rootfs_tar(text: &str, settings: &Settings) -> Result<PathBuf, DriverError> {
    let refuse = |why: &str| invalid(format!("driver_config.rootfs_tar_path {text:?} {why}"));
    let path = Path::new(text);
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) || text.contains('\0') {
        return Err(refuse("must be an absolute path without . and .."));
    }
    if !ARCHIVES.iter().any(|end| text.ends_with(end)) {
        return Err(refuse(&format!("must end in one of {}", ARCHIVES.join(", "))));
    }
    let path = path.canonicalize().map_err(|error| refuse(&format!("cannot be read: {error}")))?;
    if !path.is_file() {
        return Err(refuse("is not a file"));
    }
    match &settings.rootfs_tar_dir {
        Some(directory) if !path.starts_with(directory) => {
            Err(refuse(&format!("is not below {}", directory.display())))
        }
        _ => Ok(path),
    }
}

fn has_archive(config: Option<&prost_types::Struct>) -> bool {
    config.is_some_and(|config| config.fields.contains_key("rootfs_tar_path"))
}

fn config(config: Option<&prost_types::Struct>) -> Result<Config, DriverError> {
    let mut read = Config::default();
    for (key, value) in config.iter().flat_map(|config| &config.fields) {
        let refuse = |must: &str| Err(invalid(format!("driver_config.{key} must be {must}")));
        match (key.as_str(), &value.kind) {
            ("gpu_device_ids", Some(Kind::ListValue(list))) => {
                let mut devices = Vec::new();
                for value in &list.values {
                    match &value.kind {
                        Some(Kind::StringValue(id)) if !id.trim().is_empty() => {
                            devices.push(id.clone());
                        }
                        _ => return refuse("a list of device ids"),
                    }
                }
                read.gpu_devices = Some(devices);
            }
            ("gpu_device_ids", _) => return refuse("a list of device ids"),
            ("rootfs_tar_path", Some(Kind::StringValue(path))) => {
                read.rootfs_tar = Some(path.clone());
            }
            ("rootfs_tar_path", _) => return refuse("a path"),
            _ => {
                let key: String = key.chars().take(60).collect();
                let known = "gpu_device_ids and rootfs_tar_path";
                return Err(invalid(format!(
                    "driver_config.{key:?} is unknown; there are {known}"
                )));
            }
        }
    }
    Ok(read)
}

fn check_gpu(
    gpu: Option<&pb::GpuResourceRequirements>,
    devices: Option<&[String]>,
) -> Result<(), DriverError> {
    let Some(gpu) = gpu else {
        return match devices {
            None => Ok(()),
            Some(_) => Err(invalid("driver_config.gpu_device_ids without a GPU request")),
        };
    };
    if gpu.count.is_some_and(|count| count > 1) {
        return Err(invalid("a VM has at most one GPU"));
    }
    match devices {
        None => Ok(()),
        Some([_]) if gpu.count.is_none_or(|count| count == 1) => Ok(()),
        Some(_) => Err(invalid("driver_config.gpu_device_ids must name exactly one device")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::resources::Host;

    fn settings() -> Settings {
        let endpoint = Endpoint::parse("http://localhost:1").expect("an endpoint");
        Settings {
            default_image: Some("/srv/base.tar".to_owned()),
            bootstrap_image: Some("dir:/srv/boot".to_owned()),
            ..Settings::new(endpoint, Host { cpus: 4, memory_mib: 8192 })
        }
    }

    #[test]
    fn only_the_operator_names_files_of_the_host() {
        let taken = |named: &str| image(named, &settings()).ok();
        for own in ["/srv/base.tar", "dir:/srv/boot"] {
            assert_eq!(taken(own).as_deref(), Some(own));
        }
        assert_eq!(taken("").as_deref(), Some("/srv/base.tar"));
        assert_eq!(taken("alpine").as_deref(), Some("docker://alpine"));
        assert_eq!(taken("docker://a/b:1").as_deref(), Some("docker://a/b:1"));
        for other in
            ["/srv/base.tar/../x", "dir:/", "oci:x", "./a", "-a", "a b", "a\n", "rootfs-tar:-"]
        {
            assert_eq!(taken(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_state_directory_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(decoder(settings())(&bytes));
        }

        #[test]
        fn what_is_accepted_names_no_file(id in "\\PC{0,12}", named in "\\PC{0,24}", cpu in "\\PC{0,8}") {
            let resources =
                pb::DriverResourceRequirements { cpu_limit: cpu, ..Default::default() };
            let template = pb::DriverSandboxTemplate {
                image: named.clone(),
                resources: Some(resources),
                ..Default::default()
            };
            let spec = pb::DriverSandboxSpec { template: Some(template), ..Default::default() };
            let asked = pb::DriverSandbox { id, spec: Some(spec), ..Default::default() };
            if let Ok(request) = request(Some(&asked), &settings()) {
                let operator = named.trim().is_empty();
                prop_assert!(operator || request.image.starts_with("docker://"), "{}", request.image);
                prop_assert!((1..=4).contains(&request.size.vcpus));
            }
        }
    }
}
