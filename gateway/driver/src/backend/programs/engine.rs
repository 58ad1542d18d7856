//! Images of a container engine of this host: the stock client has it build them, and no registry has them.
//!
//! Invariant: an archive that was saved is gone with the future that saved it. What the engine is asked for is an image that the client
//! named; nothing else of the engine is read.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::news::{HEARTBEAT, Pull};
use super::super::process::{Output, Program};
use super::{BackendError, IMAGE_LIMIT, Image, NO_IMAGE, News, Programs, blocking, collect, parse};
use crate::state::StateError;

/// How the names of such images begin.
const BUILT: &str = "openshell/sandbox-from";
/// Engines that are looked for, and what each is told for an archive that the other writes as well.
const ENGINES: [(&str, &[&str]); 2] = [("docker", &[]), ("podman", &["--format=docker-archive"])];
/// Variables that are none of an engine's business.
const SECRET: [&str; 2] = ["OPENSHELL_REGISTRY_USERNAME", "OPENSHELL_REGISTRY_TOKEN"];
/// How events call such an origin.
const SOURCE: &str = "local_docker";
/// Where it is kept which image of the engine is which of the cache: beside the cache.
const KNOWN: &str = "engine";

/// The name that an engine knows an image by, if it is one of an engine's.
pub(super) fn built(image: &str) -> Option<&str> {
    let name = image.strip_prefix("docker://").unwrap_or(image);
    name.starts_with(BUILT).then_some(name)
}

/// An archive on its way. Removed when dropped.
struct Archive(PathBuf);

impl Drop for Archive {
    fn drop(&mut self) {
        // It may never have been written.
        drop(fs::remove_file(&self.0));
    }
}

impl Programs {
    /// Gets an image out of the engine into the cache.
    pub(super) async fn pull_from_engine(
        &self,
        name: &str,
        news: News,
    ) -> Result<(Image, bool), BackendError> {
        let (program, options) = engine(name)?;
        let engine =
            || Program::new(&program, Path::new("/"), &self.paths.launcher).without(SECRET);
        let inspect = engine().args(["image", "inspect", "--format", "{{.Id}}", "--", name]);
        let id = id_of(&ask(&inspect, &news).await?, &inspect)?;
        let place = self.paths.cache.with_file_name(KNOWN);
        let known = place.join(&id);
        if let Ok(key) = fs::read_to_string(&known) {
            let inspect = self.rootfs(Path::new("/")).args(["inspect", "--", key.trim()]);
            let (output, said) = collect(&inspect).await?;
            if output.code != Some(NO_IMAGE) {
                let image = parse(&inspect, &output, said.as_deref())?;
                let cached = Pull::new(name, SOURCE, news).done(&image.identity, image.size_bytes);
                return Ok((image, cached));
            }
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let archive = Archive(place.join(format!("{}-{number}.tar", std::process::id())));
        blocking(move || crate::state::private_directory(&place)).await?;
        let save = engine().args(["image", "save"]).args(options.iter());
        ask(&save.arg("--output").arg(&archive.0).args(["--", name]), &news).await?;
        let source = format!("docker-archive:{}", archive.0.display());
        let (image, cached) = self.pull_from(&source, name, SOURCE, news).await?;
        let key = image.key.clone();
        blocking(move || {
            let failed = |source| StateError::Io { action: "write", path: known.clone(), source };
            fs::write(&known, key).map_err(failed)
        })
        .await?;
        Ok((image, cached))
    }
}

/// An engine of this host, and its options for an archive.
fn engine(image: &str) -> Result<(PathBuf, &'static [&'static str]), BackendError> {
    let listed = env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> =
        env::split_paths(&listed).filter(|place| place.is_absolute()).collect();
    let found = ENGINES.iter().find_map(|(name, options)| {
        let path = places.iter().map(|place| place.join(name)).find(|path| path.is_file())?;
        Some((path, *options))
    });
    found.ok_or_else(|| {
        BackendError::Refused(format!(
            "{image} is an image of a container engine, and neither docker nor podman is in the driver's PATH"
        ))
    })
}

/// Runs the engine; its last word is the reason of a failure.
async fn ask(program: &Program, news: &News) -> Result<Output, BackendError> {
    let said = std::sync::Mutex::new(String::new());
    let line = |line: &str| {
        if !line.trim().is_empty()
            && let Ok(mut said) = said.lock()
        {
            line.trim().clone_into(&mut said);
        }
    };
    let tick = || {
        let event = crate::events::Event::new(crate::events::Reason::Pulling, "Saving the image");
        news.tell(event.active(crate::events::progress::PULLING));
    };
    let output = program.run(IMAGE_LIMIT, HEARTBEAT, line, tick).await?;
    if output.code == Some(0) {
        return Ok(output);
    }
    let said = said.into_inner().unwrap_or_default();
    Err(BackendError::Refused(super::super::bounded(&format!("{}: {said}", program.name()))))
}

/// The image's digest, as a name of a file.
fn id_of(output: &Output, program: &Program) -> Result<String, BackendError> {
    let text = String::from_utf8_lossy(&output.text);
    let id = text.trim();
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(hex.to_ascii_lowercase());
    }
    Err(BackendError::Refused(format!("{} names no image", program.name())))
}
