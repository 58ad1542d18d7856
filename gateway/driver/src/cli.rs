//! Flags and environment of the command, and what they come to.
//!
//! Invariant: every flag and variable of OpenShell's own driver is taken; those that mean nothing here are named as such in
//! docs/driver.md. An empty variable is no value.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use openshell_driver_vm::backend::ProgramPaths;
use openshell_driver_vm::endpoint::Endpoint;
use openshell_driver_vm::listen::ListenArgs;
use openshell_driver_vm::resources::{Host, Size};
use openshell_driver_vm::sandbox::{BOOT_LIMIT, SUPERVISOR, Settings, TlsPaths};
use tracing::level_filters::LevelFilter;

/// Another supervisor, in the place of that of the tools disk.
const OTHER_SUPERVISOR: &str = "/opt/openshell/bin/openshell-sandbox";

/// Runs sandboxes as microVMs for an OpenShell gateway.
#[derive(Debug, Parser)]
#[command(name = "openshell-driver-vm", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Listen on this Unix socket
    #[arg(long, env = "OPENSHELL_COMPUTE_DRIVER_SOCKET", value_name = "PATH")]
    bind_socket: Option<PathBuf>,
    /// Hear this process only, and end with it
    #[arg(long, value_name = "PID")]
    expected_peer_pid: Option<i32>,
    /// Hear every process of this user
    #[arg(long, env = "OPENSHELL_COMPUTE_DRIVER_ALLOW_SAME_UID_PEER")]
    allow_same_uid_peer: bool,
    /// Listen on this TCP address, without any authentication
    #[arg(long, env = "OPENSHELL_COMPUTE_DRIVER_BIND", value_name = "ADDR:PORT")]
    bind_address: Option<String>,
    /// Really listen on TCP
    #[arg(long)]
    allow_unauthenticated_tcp: bool,
    /// How much to say: error, warn, info, debug, trace
    #[arg(long, env = "OPENSHELL_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// Taken and not used: there is no export of traces
    #[arg(long, env = "OPENSHELL_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// The gateway, as this host reaches it
    #[arg(long, env = "OPENSHELL_GRPC_ENDPOINT", value_name = "URL")]
    openshell_endpoint: String,
    /// Where sandboxes and images are kept [default: `openshell/vm-driver` below the XDG state directory]
    #[arg(long, env = "OPENSHELL_VM_DRIVER_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The image of sandboxes that name none
    #[arg(long, env = "OPENSHELL_SANDBOX_IMAGE", value_name = "IMAGE")]
    default_image: Option<String>,
    /// An image to have ready before somebody asks; nothing boots from it
    #[arg(long, env = "OPENSHELL_VM_BOOTSTRAP_IMAGE", value_name = "IMAGE")]
    bootstrap_image: Option<String>,
    /// Certificate of the authority that guests trust
    #[arg(long, env = "OPENSHELL_VM_TLS_CA", value_name = "FILE")]
    guest_tls_ca: Option<PathBuf>,
    /// Certificate of guests
    #[arg(long, env = "OPENSHELL_VM_TLS_CERT", value_name = "FILE")]
    guest_tls_cert: Option<PathBuf>,
    /// Key of guests
    #[arg(long, env = "OPENSHELL_VM_TLS_KEY", value_name = "FILE")]
    guest_tls_key: Option<PathBuf>,
    /// Taken and not used: there is no libkrun
    #[arg(long, default_value_t = 1, value_name = "N")]
    krun_log_level: u32,
    /// CPUs of sandboxes that ask for none
    #[arg(long, env = "OPENSHELL_VM_DRIVER_VCPUS", default_value_t = 2, value_name = "N")]
    vcpus: u32,
    /// Memory of sandboxes that ask for none, in MiB
    #[arg(long, env = "OPENSHELL_VM_DRIVER_MEM_MIB", default_value_t = 2048, value_name = "N")]
    mem_mib: u64,
    /// What a sandbox may write, in MiB
    #[arg(long, env = "OPENSHELL_VM_OVERLAY_DISK_MIB", default_value_t = 4096, value_name = "N")]
    overlay_disk_mib: u64,
    /// Taken: requests for GPUs are then judged by their form first, and refused all the same
    #[arg(long, env = "OPENSHELL_VM_GPU")]
    gpu: bool,
    /// Taken and not used
    #[arg(long, env = "OPENSHELL_VM_GPU_MEM_MIB", default_value_t = 8192, value_name = "N")]
    gpu_mem_mib: u64,
    /// Taken and not used
    #[arg(long, env = "OPENSHELL_VM_GPU_VCPUS", default_value_t = 4, value_name = "N")]
    gpu_vcpus: u32,
    /// Number of the user `sandbox`, in images that have none
    #[arg(long, env = "OPENSHELL_VM_SANDBOX_UID", default_value_t = 10001, value_name = "UID")]
    sandbox_uid: u32,
    /// Number of the group `sandbox`, in images that have none
    #[arg(long, env = "OPENSHELL_VM_SANDBOX_GID", default_value_t = 10001, value_name = "GID")]
    sandbox_gid: u32,
    #[command(flatten)]
    own: Own,
}

/// What OpenShell's own driver has not.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Of this driver")]
struct Own {
    /// Programs, tools disk and kernel are looked for here first
    #[arg(long, env = "OPENSHELL_VM_RUNTIME_DIR", value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// The program `openshell-vmm`
    #[arg(long, env = "OPENSHELL_VM_VMM_BIN", value_name = "FILE")]
    vmm_bin: Option<PathBuf>,
    /// The program `openshell-rootfs`
    #[arg(long, env = "OPENSHELL_VM_ROOTFS_BIN", value_name = "FILE")]
    rootfs_bin: Option<PathBuf>,
    /// The disk with the guest's own programs
    #[arg(long, env = "OPENSHELL_VM_TOOLS_DISK", value_name = "FILE")]
    tools_disk: Option<PathBuf>,
    /// Another supervisor than that of the tools disk; the disk is then made from it and `--init-bin`
    #[arg(long, env = "OPENSHELL_VM_SUPERVISOR_BIN", value_name = "FILE")]
    supervisor_bin: Option<PathBuf>,
    /// The program `openshell-init`, for `--supervisor-bin`
    #[arg(long, env = "OPENSHELL_VM_INIT_BIN", value_name = "FILE")]
    init_bin: Option<PathBuf>,
    /// The guest's kernel [default: the one that `openshell-vmm kernel path` prints]
    #[arg(long, env = "OPENSHELL_VM_KERNEL", value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// What guests reach of this host's loopback: every port, or the gateway's only
    #[arg(long, env = "OPENSHELL_VM_HOST_ACCESS", default_value = "all", value_parser = ["all", "gateway"])]
    host_access: String,
    /// A further rule of every guest's network, as `openshell-vmm run --allow` takes it
    #[arg(long, value_name = "RULE")]
    net_allow: Vec<String>,
    /// A file of rules, as `openshell-vmm run --net-policy` takes it
    #[arg(long, env = "OPENSHELL_VM_NET_POLICY", value_name = "FILE")]
    net_policy: Option<PathBuf>,
    /// Users may name archives below this directory only
    #[arg(long, env = "OPENSHELL_VM_ROOTFS_TAR_DIR", value_name = "DIR")]
    rootfs_tar_dir: Option<PathBuf>,
    /// How long a guest may boot, in seconds, until its machine is ended and its sandbox says why
    #[arg(long, env = "OPENSHELL_VM_BOOT_TIMEOUT", default_value_t = BOOT_LIMIT.as_secs(), value_name = "SECONDS")]
    boot_timeout: u64,
}

/// Another supervisor, and the first process that starts it.
#[derive(Debug)]
pub(crate) struct OtherSupervisor {
    pub(crate) init: PathBuf,
    pub(crate) supervisor: PathBuf,
}

impl Cli {
    /// Where to listen.
    pub(crate) fn listen(&self) -> Result<ListenArgs> {
        let address = match filled(self.bind_address.as_deref()) {
            None => None,
            Some(text) => Some(text.parse::<SocketAddr>().with_context(|| {
                format!("--bind-address {text:?} is no address; write 127.0.0.1:50061")
            })?),
        };
        Ok(ListenArgs {
            socket: path(self.bind_socket.as_deref()),
            expected_pid: self.expected_peer_pid,
            same_user: self.allow_same_uid_peer,
            address,
            unauthenticated_tcp: self.allow_unauthenticated_tcp,
        })
    }

    /// The process to end with.
    pub(crate) fn parent(&self) -> Option<i32> {
        self.expected_peer_pid
    }

    /// How much to say; what is not known is `info`.
    pub(crate) fn level(&self) -> LevelFilter {
        self.log_level.trim().parse().unwrap_or(LevelFilter::INFO)
    }

    /// Flags that were given and do nothing.
    pub(crate) fn unused(&self) -> Vec<&'static str> {
        let mut unused = Vec::new();
        if filled(self.otlp_endpoint.as_deref()).is_some() {
            unused.push("--otlp-endpoint");
        }
        if self.krun_log_level != 1 {
            unused.push("--krun-log-level");
        }
        if self.gpu || self.gpu_mem_mib != 8192 || self.gpu_vcpus != 4 {
            unused.push("--gpu and its sizes");
        }
        unused
    }

    /// Where sandboxes are kept.
    pub(crate) fn state_dir(&self) -> Result<PathBuf> {
        if let Some(given) = path(self.state_dir.as_deref()) {
            return Ok(given);
        }
        let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
        Ok(base.context("no home directory; name --state-dir")?.join("openshell/vm-driver"))
    }

    /// What the operator set.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let endpoint = Endpoint::parse(&self.openshell_endpoint).context("--openshell-endpoint")?;
        ensure!(self.vcpus > 0, "--vcpus must be more than 0");
        ensure!(self.mem_mib > 0, "--mem-mib must be more than 0");
        ensure!(
            (16..=16 << 20).contains(&self.overlay_disk_mib),
            "--overlay-disk-mib must be 16 to {}",
            16 << 20
        );
        ensure!(
            self.sandbox_uid != 0 && self.sandbox_gid != 0,
            "--sandbox-uid and --sandbox-gid must not be 0: the sandbox user is never root"
        );
        ensure!((1..=86_400).contains(&self.own.boot_timeout), "--boot-timeout must be 1 to 86400");
        let mut rules = self.own.net_allow.clone();
        if self.own.host_access == "all" {
            rules.push("host".to_owned());
        }
        let directory = path(self.own.rootfs_tar_dir.as_deref());
        let rootfs_tar_dir = directory.map(|directory| absolute(&directory)).transpose()?;
        let supervisor = path(self.own.supervisor_bin.as_deref());
        Ok(Settings {
            tls: self.tls(&endpoint)?,
            endpoint,
            default_image: filled(self.default_image.as_deref()).map(str::to_owned),
            bootstrap_image: filled(self.bootstrap_image.as_deref()).map(str::to_owned),
            size: Size { vcpus: self.vcpus, memory_mib: self.mem_mib },
            host: Host::probe(),
            overlay_bytes: self.overlay_disk_mib << 20,
            gpu: self.gpu,
            log_level: self.level().to_string().to_ascii_lowercase(),
            telemetry: env::var("OPENSHELL_TELEMETRY_ENABLED")
                .is_ok_and(|value| matches!(value.as_str(), "1" | "true")),
            supervisor: if supervisor.is_some() { OTHER_SUPERVISOR } else { SUPERVISOR }.to_owned(),
            rules,
            rootfs_tar_dir,
            boot_limit: Duration::from_secs(self.own.boot_timeout),
        })
    }

    fn tls(&self, endpoint: &Endpoint) -> Result<Option<TlsPaths>> {
        let files = [&self.guest_tls_ca, &self.guest_tls_cert, &self.guest_tls_key];
        let files = files.map(|file| path(file.as_deref()));
        match files {
            [Some(ca), Some(cert), Some(key)] => {
                let files = [absolute(&ca)?, absolute(&cert)?, absolute(&key)?];
                // Without TLS to the gateway a guest has no use for a key.
                Ok(endpoint.tls().then_some(TlsPaths { files }))
            }
            [None, None, None] if !endpoint.tls() => Ok(None),
            _ if endpoint.tls() => {
                bail!(
                    "an https endpoint needs --guest-tls-ca, --guest-tls-cert and --guest-tls-key"
                )
            }
            _ => bail!("--guest-tls-ca, --guest-tls-cert and --guest-tls-key go together"),
        }
    }

    /// Another supervisor, if there is to be one.
    pub(crate) fn other_supervisor(&self) -> Result<Option<OtherSupervisor>> {
        let Some(supervisor) = path(self.own.supervisor_bin.as_deref()) else { return Ok(None) };
        let init = self.find(self.own.init_bin.as_deref(), "openshell-init", "--init-bin")?;
        Ok(Some(OtherSupervisor { init: absolute(&init)?, supervisor: absolute(&supervisor)? }))
    }

    /// Where programs and shared files are; `state` is the state directory.
    pub(crate) fn programs(&self, state: &Path) -> Result<ProgramPaths> {
        let own = &self.own;
        let tools = match path(own.supervisor_bin.as_deref()) {
            Some(_) => state.join("tools.ext4"),
            None => {
                absolute(&self.find(own.tools_disk.as_deref(), "tools.ext4", "--tools-disk")?)?
            }
        };
        let policy = path(own.net_policy.as_deref());
        let kernel = match path(own.kernel.as_deref()) {
            Some(kernel) => Some(absolute(&kernel)?),
            None => own.runtime_dir.as_ref().map(|dir| dir.join("vmlinux")).filter(|k| k.is_file()),
        };
        Ok(ProgramPaths {
            vmm: self.find(own.vmm_bin.as_deref(), "openshell-vmm", "--vmm-bin")?,
            rootfs: self.find(own.rootfs_bin.as_deref(), "openshell-rootfs", "--rootfs-bin")?,
            launcher: "/proc/self/exe".into(),
            sandbox_user: (self.sandbox_uid, self.sandbox_gid),
            tools,
            kernel,
            net_policy: policy.map(|policy| absolute(&policy)).transpose()?,
            cache: state.join("images"),
        })
    }

    /// A file of ours: the one that was given, or the first that is there.
    fn find(&self, given: Option<&Path>, name: &str, flag: &str) -> Result<PathBuf> {
        if let Some(given) = path(given) {
            return absolute(&given);
        }
        let exe = env::current_exe().unwrap_or_default();
        let beside = exe.parent().unwrap_or(Path::new("/"));
        let mut places: Vec<PathBuf> = self.own.runtime_dir.iter().cloned().collect();
        places.push(beside.to_owned());
        for prefix in beside.ancestors().skip(1).take(2) {
            places.extend(["bin", "lib/openshell-vmm"].map(|part| prefix.join(part)));
        }
        places.push("/usr/lib/openshell-vmm".into());
        let listed = env::var_os("PATH").unwrap_or_default();
        places.extend(env::split_paths(&listed).filter(|place| place.is_absolute()));
        let found = places.iter().map(|place| place.join(name)).find(|file| file.is_file());
        found.with_context(|| format!("cannot find {name}; name it with {flag}"))
    }
}

fn filled(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn path(path: Option<&Path>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}
