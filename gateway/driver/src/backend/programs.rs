//! The real backend: disks from `openshell-rootfs`, machines from `openshell-vmm`, each a process of its own.
//!
//! Invariant: paths that reach a program's argument list are relative to the sandbox's directory or checked when the driver
//! starts, so that no path can be read as an option. Secrets reach the config disk through files, never through arguments.

mod engine;
mod machine;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::news::{HEARTBEAT, News, Pull};
use super::process::{Output, Program};
use super::{Backend, BackendError, Boxed, Machine, MachineSpec, Prepared, console, stop};
use crate::events::{Event, Reason, progress};
use crate::guest::{GuestFile, GuestFiles};
use crate::state::{KeptImage, SandboxDir, StateError};

/// How long an image may take. The program has its own, shorter, patience with registries.
const IMAGE_LIMIT: Duration = Duration::from_secs(3600);
/// How long a small disk may take.
const DISK_LIMIT: Duration = Duration::from_secs(60);
/// How long a machine that is being killed may hold its disk.
const DISK_PATIENCE: Duration = Duration::from_secs(10);
/// How `openshell-rootfs` says that there is no such image.
const NO_IMAGE: i32 = 3;
/// The config disk, in a sandbox's directory.
const CONFIG: &str = "config.ext4";
/// Where files for the config disk lie while it is made.
const STAGING: &str = "config.new";
/// The end of the driver's variables that a machine gets.
const MACHINE_ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "XDG_DATA_HOME", "OPENSHELL_VMM_KERNEL"];

/// Where programs and shared files are.
#[derive(Debug, Clone)]
pub struct ProgramPaths {
    /// `openshell-vmm`.
    pub vmm: PathBuf,
    /// `openshell-rootfs`.
    pub rootfs: PathBuf,
    /// This program, which becomes the others, see [`crate::launcher`].
    pub launcher: PathBuf,
    /// The disk with the guest's own programs.
    pub tools: PathBuf,
    /// The guest's kernel; `openshell-vmm` finds one if there is none.
    pub kernel: Option<PathBuf>,
    /// Further rules of every machine's network.
    pub net_policy: Option<PathBuf>,
    /// The cache of images.
    pub cache: PathBuf,
    /// User and group `sandbox` in images that have none.
    pub sandbox_user: (u32, u32),
}

/// Runs the programs.
#[derive(Debug)]
pub struct Programs {
    paths: ProgramPaths,
}

/// An image as `openshell-rootfs --json` tells it. Further keys may come.
#[derive(Debug, Deserialize)]
struct Image {
    key: String,
    identity: String,
    path: PathBuf,
    size_bytes: u64,
}

impl Programs {
    /// A backend of these programs.
    ///
    /// # Errors
    ///
    /// When a shared path holds what an option would be taken for.
    pub fn new(paths: ProgramPaths) -> Result<Self, BackendError> {
        if paths.tools.as_os_str().as_encoded_bytes().contains(&b',') {
            let shown = paths.tools.display();
            return Err(BackendError::Refused(format!("{shown}: the path must not hold a comma")));
        }
        Ok(Self { paths })
    }

    /// Makes a tools disk with another supervisor at `tools`, which is replaced.
    ///
    /// # Errors
    ///
    /// When a program cannot be read, or the disk not be written.
    pub async fn make_tools(
        paths: &ProgramPaths,
        init: &Path,
        supervisor: &Path,
    ) -> Result<(), BackendError> {
        let program = |path: &Path, target: &str| {
            let mut text = path.as_os_str().to_owned();
            text.push(format!(":{target}:0755:0:0"));
            [OsString::from("--add"), text]
        };
        let directory = paths.tools.parent().unwrap_or(Path::new("/"));
        let made = Program::new(&paths.rootfs, directory, &paths.launcher)
            .args(["make-config", "--json", "--output"])
            .arg(&paths.tools)
            .args(program(init, "/bin/openshell-init"))
            .args(program(supervisor, "/bin/openshell-sandbox"))
            .args(["--add", "/dev/null:/dev/.keep", "--add", "/dev/null:/run/.keep"]);
        quiet(&made).await
    }

    fn rootfs(&self, directory: &Path) -> Program {
        Program::new(&self.paths.rootfs, directory, &self.paths.launcher)
            .arg("--json")
            .arg("--cache")
            .arg(&self.paths.cache)
    }

    async fn pull(&self, image: &str, news: News) -> Result<(Image, bool), BackendError> {
        match engine::built(image) {
            Some(name) => self.pull_from_engine(name, news).await,
            None => self.pull_from(image, image, "registry", news).await,
        }
    }

    /// Gets the image from `from` into the cache, and tells of it by the name that it was asked for.
    async fn pull_from(
        &self,
        from: &str,
        name: &str,
        source: &'static str,
        news: News,
    ) -> Result<(Image, bool), BackendError> {
        let pull = Pull::new(name, source, news);
        // Behind `--` nothing is read as an option.
        let program =
            self.rootfs(Path::new("/")).args(["--progress", "json", "pull"]).args(self.user());
        let program = program.args(["--", from]);
        let output = program
            .run(IMAGE_LIMIT, HEARTBEAT, |line| pull.line(line), || pull.heartbeat())
            .await?;
        let said = pull.error();
        let image = parse(&program, &output, said.as_deref())?;
        let cached = pull.done(&image.identity, image.size_bytes);
        Ok((image, cached))
    }

    /// The option for a user with other numbers than an image gets by itself.
    fn user(&self) -> Vec<String> {
        match self.paths.sandbox_user {
            (10001, 10001) => Vec::new(),
            (uid, gid) => vec![format!("--sandbox-user={uid}:{gid}")],
        }
    }

    /// The image that a disk was made above: that one, or none.
    async fn kept(&self, kept: &KeptImage, news: News) -> Result<(Image, bool), BackendError> {
        let program = self.rootfs(Path::new("/")).args(["inspect", "--", &kept.key]);
        let (output, said) = collect(&program).await?;
        if output.code != Some(NO_IMAGE) {
            return Ok((parse(&program, &output, said.as_deref())?, true));
        }
        let (image, cached) = self.pull(&kept.reference, news).await?;
        if image.key != kept.key {
            return Err(BackendError::Refused(format!(
                "the image of this sandbox is no longer in the cache, and {} is another one by now: {} instead of {}; put \
                 that image back into the cache, or create the sandbox anew",
                kept.reference, image.key, kept.key
            )));
        }
        Ok((image, cached))
    }

    async fn image(&self, spec: &MachineSpec, news: News) -> Result<(Image, bool), BackendError> {
        let directory = spec.directory.clone();
        let (kept, disk) =
            blocking(move || Ok((directory.image(), directory.overlay_bytes()?))).await?;
        if let (Some(kept), Some(_)) = (&kept, disk) {
            return self.kept(kept, news).await;
        }
        let (image, cached) = self.pull(&spec.image, news).await?;
        let kept = KeptImage { key: image.key.clone(), reference: spec.image.clone() };
        let directory = spec.directory.clone();
        blocking(move || directory.set_image(&kept)).await?;
        Ok((image, cached))
    }

    async fn overlay(&self, spec: &MachineSpec, image: &Image) -> Result<(), BackendError> {
        let directory = spec.directory.clone();
        let there = blocking(move || match directory.overlay_bytes()? {
            Some(bytes) => directory.wait_for_overlay(DISK_PATIENCE).map(|()| Some(bytes)),
            None => Ok(None),
        });
        if there.await?.is_some() {
            return Ok(());
        }
        let program = self
            .rootfs(spec.directory.path())
            .args(["make-upper", "--output", "overlay.ext4", "--base", &image.key, "--size"])
            .arg(format!("{}M", spec.overlay_bytes >> 20));
        quiet(&program).await
    }

    async fn config(&self, spec: &MachineSpec) -> Result<(), BackendError> {
        let (directory, guest) = (spec.directory.clone(), spec.guest.clone());
        let arguments = blocking(move || stage(&directory, &guest)).await?;
        let program = self
            .rootfs(spec.directory.path())
            .args(["make-config", "--output", CONFIG])
            .args(arguments);
        let made = quiet(&program).await;
        let staging = spec.directory.file(STAGING);
        drop(spawn_blocking(move || fs::remove_dir_all(staging)).await);
        made
    }

    fn machine(&self, spec: &MachineSpec, prepared: &Prepared) -> Program {
        let directory = spec.directory.path();
        let paths = &self.paths;
        let disk = |path: &Path| {
            let mut text = path.as_os_str().to_owned();
            text.push(",ro");
            [OsString::from("--disk"), text]
        };
        let mut program = Program::new(&paths.vmm, directory, &paths.launcher)
            .arg("run")
            .args(disk(&paths.tools))
            .args(disk(&from_sandbox(&prepared.base, &paths.cache)))
            .args(["--disk", "overlay.ext4"])
            .args(disk(Path::new(CONFIG)))
            .arg("--cpus")
            .arg(spec.size.vcpus.to_string())
            .arg("--memory")
            .arg(format!("{}M", spec.size.memory_mib))
            .args(["--append", "rootfstype=ext4 init=/bin/openshell-init"])
            .args(["--vsock", stop::SOCKET, "--console", "stdio", "--result", "result.json"]);
        if let Some(kernel) = &paths.kernel {
            program = program.arg("--kernel").arg(kernel);
        }
        if let Some(policy) = &paths.net_policy {
            program = program.arg("--net-policy").arg(policy);
        }
        for rule in &spec.rules {
            program = program.arg("--allow").arg(rule);
        }
        program
    }
}

impl Backend for Programs {
    fn fetch<'a>(
        &'a self,
        image: &'a str,
        news: News,
    ) -> Boxed<'a, Result<Prepared, BackendError>> {
        Box::pin(async move {
            let (found, cached) = self.pull(image, news).await?;
            let kept = KeptImage { key: found.key, reference: image.to_owned() };
            Ok(Prepared { base: found.path, image: kept, cached })
        })
    }

    fn prepare<'a>(
        &'a self,
        spec: &'a MachineSpec,
        news: News,
    ) -> Boxed<'a, Result<Prepared, BackendError>> {
        Box::pin(async move {
            // The config disk needs nothing of the image.
            let (image, ()) = tokio::try_join!(self.image(spec, news.clone()), self.config(spec))?;
            let (image, cached) = image;
            let event = Event::new(Reason::PreparingOverlay, "Making the sandbox's disk");
            news.tell(event.active(progress::STARTING));
            self.overlay(spec, &image).await?;
            let kept = KeptImage { key: image.key, reference: spec.image.clone() };
            Ok(Prepared { base: image.path, image: kept, cached })
        })
    }

    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
        prepared: &'a Prepared,
    ) -> Boxed<'a, Result<Box<dyn Machine>, BackendError>> {
        Box::pin(async move {
            let path = spec.directory.file("vmm.log");
            let log = console::create(&path).map_err(|source| StateError::Io {
                action: "make",
                path,
                source,
            })?;
            let result = spec.directory.file("result.json");
            drop(fs::remove_file(&result));
            let environment = MACHINE_ENVIRONMENT
                .iter()
                .filter_map(|name| Some((OsString::from(name), env::var_os(name)?)));
            let child = self.machine(spec, prepared).spawn(environment, log)?;
            Ok(Box::new(machine::Vmm::new(child, spec.directory.clone())) as Box<dyn Machine>)
        })
    }
}

/// The path of a cached image from within a sandbox's directory: without what the operator's path may hold.
fn from_sandbox(image: &Path, cache: &Path) -> PathBuf {
    match image.strip_prefix(cache) {
        Ok(inside) => Path::new("../../images").join(inside),
        Err(_) => image.to_owned(),
    }
}

/// Writes files for the config disk, and returns the arguments that put them on it.
fn stage(directory: &SandboxDir, guest: &GuestFiles) -> Result<Vec<OsString>, StateError> {
    let staging = directory.file(STAGING);
    let failed = |action| {
        let path = staging.clone();
        move |source| StateError::Io { action, path, source }
    };
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove")(error));
        }
        _ => {}
    }
    crate::state::private_directory(&staging)?;
    let mut arguments = Vec::new();
    for (number, GuestFile { path, mode, bytes }) in guest.files.iter().enumerate() {
        let write = || -> io::Result<()> {
            let mut file = console::create(&staging.join(number.to_string()))?;
            io::Write::write_all(&mut file, bytes)
        };
        write().map_err(failed("write"))?;
        arguments.push("--add".into());
        arguments.push(format!("{STAGING}/{number}:{path}:{mode:04o}:0:0").into());
    }
    Ok(arguments)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, BackendError> {
    match spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(BackendError::Refused(format!("a task of the driver failed: {error}"))),
    }
}

/// Runs a short program of ours, and returns what its last line says is wrong.
async fn collect(program: &Program) -> Result<(Output, Option<String>), BackendError> {
    let pull = Pull::listener();
    let output = program.run(DISK_LIMIT, DISK_LIMIT, |line| pull.line(line), || {}).await?;
    let said = pull.error();
    Ok((output, said))
}

async fn quiet(program: &Program) -> Result<(), BackendError> {
    let (output, said) = collect(program).await?;
    refuse(program, &output, said.as_deref())
}

fn refuse(program: &Program, output: &Output, said: Option<&str>) -> Result<(), BackendError> {
    if output.code == Some(0) {
        return Ok(());
    }
    Err(BackendError::Refused(match (said, output.code) {
        (Some(said), _) => said.to_owned(),
        (None, Some(code)) => format!("{} ended with status {code}", program.name()),
        (None, None) => format!("{} was killed", program.name()),
    }))
}

fn parse(program: &Program, output: &Output, said: Option<&str>) -> Result<Image, BackendError> {
    refuse(program, output, said)?;
    serde_json::from_slice(&output.text).map_err(|error| {
        BackendError::Refused(format!("{} said what nobody understands: {error}", program.name()))
    })
}
