//! Verbs that make images: `build` and `pull`.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use openshell_ext4::Tree;
use openshell_rootfs::auth::Keychain;
use openshell_rootfs::build::{Builder, Disk};
use openshell_rootfs::cache::{Cache, Cached, SCHEMA, Tag};
use openshell_rootfs::clone::clone_into;
use openshell_rootfs::digest::Digest;
use openshell_rootfs::image::Platform;
use openshell_rootfs::layout::{Addition, Layout};
use openshell_rootfs::limits::Limits;
use openshell_rootfs::progress::{Phase, Progress};
use openshell_rootfs::reference::{Reference, RegistryReference};
use openshell_rootfs::registry::{Hosts, Patience, Registry};
use openshell_rootfs::source::{
    ImageLayers, Local, Plan, directory, docker_archive, oci_layout, rootfs_tar,
};
use serde_json::json;

use super::args::{BuildArgs, Global, Pull, PullArgs, SourceArgs};
use super::failure::NoImage;
use super::{images, output, progress};

/// Makes an image in the cache.
pub(crate) fn pull(args: &PullArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let work = Work::new(&args.source, global, &cache)?;
    let progress = progress::progress(global);
    let cached = work.image(&*progress)?;
    let line = format!("{} {}", cached.record.key.hex(), cached.image().display());
    let mut value = output::image(&cached, &cache.tags());
    // Whoever keeps what was said here sees at this file whether the reference leads somewhere else by now.
    value["tag"] = json!(cache.tag_path(&work.name(), &work.platform));
    output::print(global.json, &value, &[line])
}

/// Makes a disk in a file.
pub(crate) fn build(args: &BuildArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let work = Work::new(&args.source, global, &cache)?;
    let progress = progress::progress(global);
    let (key, bytes) = if args.read_only {
        let cached = work.image(&*progress)?;
        write_output(&args.output, 0o644, |file| {
            let image = fs::File::open(cached.image()).context("cannot open the cached image")?;
            clone_into(&image, file).context("cannot copy the cached image")?;
            Ok((cached.record.key.clone(), cached.record.bytes))
        })?
    } else {
        let disk = Disk { size_bytes: args.size };
        write_output(&args.output, 0o644, |file| work.disk(disk, file, &*progress))?
    };
    let value = json!({
        "schema": "v1",
        "output": args.output,
        "size_bytes": bytes,
        "key": key,
        "read_only": args.read_only,
    });
    output::print(global.json, &value, &[args.output.display().to_string()])
}

/// The cache of the arguments, or of this user.
pub(crate) fn open_cache(global: &Global) -> Result<Cache> {
    let root = match &global.cache {
        Some(root) => root.clone(),
        None => default_cache().context("no home directory; name a cache with --cache")?,
    };
    Ok(Cache::open(&root)?)
}

fn default_cache() -> Option<PathBuf> {
    let set = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(base.join("openshell-vmm"))
}

/// Writes a file beside its place and moves it there when it is complete.
pub(crate) fn write_output<T>(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&fs::File) -> Result<T>,
) -> Result<T> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let context = || format!("cannot write {}", path.display());
    ensure!(!path.is_dir(), "{} is a directory; name a file", path.display());
    let file = tempfile::Builder::new()
        .prefix(".openshell-rootfs-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
        .with_context(context)?;
    let written = write(file.as_file())?;
    file.as_file().sync_data().with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(written)
}

/// What the arguments ask for.
struct Work<'a> {
    args: &'a SourceArgs,
    global: &'a Global,
    cache: &'a Cache,
    reference: Reference,
    platform: Platform,
    layout: Layout,
    additions: Vec<Addition>,
    limits: Limits,
}

impl<'a> Work<'a> {
    fn new(args: &'a SourceArgs, global: &'a Global, cache: &'a Cache) -> Result<Self> {
        let reference = args.reference.parse()?;
        let additions = args.add.iter().map(|text| addition(text)).collect::<Result<_>>()?;
        let platform = args.platform.clone().unwrap_or_else(Platform::host);
        let mut layout = if args.plain { Layout::none() } else { Layout::default() };
        if let (Some((uid, gid)), Some(user)) = (args.sandbox_user, &mut layout.user) {
            (user.uid, user.gid) = (uid, gid);
        }
        let limits = Limits { metadata_bytes: args.max_metadata, ..Limits::default() };
        Ok(Self { args, global, cache, reference, platform, layout, additions, limits })
    }

    fn builder(&self) -> Builder<'_> {
        let mut builder = Builder::new(self.cache, &self.layout, &self.limits);
        builder.additions = &self.additions;
        builder
    }

    /// The image, from the cache if that may be asked first.
    fn image(&self, progress: &dyn Progress) -> Result<Cached> {
        if let Some(cached) = self.recalled()? {
            return Ok(cached);
        }
        let local = self.open()?;
        let cached = self.builder().image(&local.plan, &*local.layers, progress)?;
        self.remember(&cached)?;
        Ok(cached)
    }

    /// A writable disk with the image's files, and what it is known by.
    fn disk(&self, disk: Disk, file: &fs::File, progress: &dyn Progress) -> Result<(Digest, u64)> {
        let cached = self.image(progress)?;
        let image = images::open(&cached)?;
        let mut tree = image.read_tree().context("cannot read the cached image")?;
        // The writer makes one that fits the disk.
        tree.remove(Tree::ROOT, b"lost+found");
        progress.phase(Phase::Write);
        let key = cached.record.key;
        let summary = self.builder().disk(&tree, &image, disk, &key, file)?;
        Ok((key, summary.size_bytes))
    }

    /// What the reference led to before. Only registries are asked again: what lies on this host is looked at.
    fn recalled(&self) -> Result<Option<Cached>> {
        let registry = matches!(self.reference, Reference::Registry(_));
        if !registry || self.args.pull == Pull::Always {
            return Ok(None);
        }
        match self.cache.recall(&self.name(), &self.platform) {
            Some((_, cached)) => Ok(Some(cached)),
            None if self.args.pull == Pull::Never => {
                Err(NoImage(self.args.reference.clone()).into())
            }
            None => Ok(None),
        }
    }

    /// The reference, with what else the image depends on.
    fn name(&self) -> String {
        let user = match self.args.sandbox_user {
            Some((uid, gid)) => format!(" (user {uid}:{gid})"),
            None => String::new(),
        };
        if self.additions.is_empty() && !self.args.plain {
            return format!("{}{user}", self.args.reference);
        }
        let additions = self.additions.iter().map(|addition| {
            let target = addition.target.escape_ascii();
            format!(" +{target}@{}", addition.digest.hex().get(..12).unwrap_or_default())
        });
        let plain = if self.args.plain { " (plain)" } else { "" };
        format!("{}{user}{plain}{}", self.args.reference, additions.collect::<String>())
    }

    fn remember(&self, cached: &Cached) -> Result<()> {
        let checked = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let record = &cached.record;
        Ok(self.cache.remember(&Tag {
            schema: SCHEMA,
            reference: self.name(),
            platform: self.platform.clone(),
            key: record.key.clone(),
            identity: record.identity.clone(),
            checked,
        })?)
    }

    fn open(&self) -> Result<Local> {
        let scratch = self.cache.root().join("staging");
        Ok(match &self.reference {
            Reference::Registry(reference) => self.resolve(reference)?,
            Reference::Layout { directory, select } => {
                oci_layout(directory, select.as_ref(), &self.platform)?
            }
            Reference::DockerArchive { file, name } => {
                docker_archive(file, name.as_deref(), &self.platform, &self.limits, &scratch)?
            }
            Reference::RootfsTar(file) => rootfs_tar(file)?,
            Reference::Directory(path) => directory(path)?,
        })
    }

    fn resolve(&self, reference: &RegistryReference) -> Result<Local> {
        if self.args.pull == Pull::Never {
            return Err(NoImage(self.args.reference.clone()).into());
        }
        let hosts = match &self.global.hosts {
            None => Hosts::default(),
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Hosts::parse(&text)?
            }
        };
        let keychain = Keychain::from_environment(|name| env::var_os(name));
        let registry = Registry::new(hosts, keychain, Patience::default())?;
        let pull = registry.resolve(reference, &self.platform)?;
        let plan = Plan::of(&pull.image);
        let layers = Box::new(ImageLayers { image: pull.image.clone(), blobs: pull });
        Ok(Local { plan, layers })
    }
}

/// A file that goes into an image.
fn addition(text: &str) -> Result<Addition> {
    let Added { source, target, mode, uid, gid } = Added::parse(text)?;
    Addition::open(source.into(), target.as_bytes(), mode, uid, gid)
        .with_context(|| format!("cannot read {source}"))
}

/// `SOURCE:TARGET[:MODE[:UID[:GID]]]`: the target is absolute, so that the source may have colons.
pub(crate) struct Added<'a> {
    pub(crate) source: &'a str,
    pub(crate) target: &'a str,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl<'a> Added<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        const FORM: &str = "--add takes SOURCE:TARGET[:MODE[:UID[:GID]]] with an absolute target";
        let Some(cut) = text.find(":/") else { bail!("{text:?}: {FORM}") };
        let (source, rest) = (&text[..cut], &text[cut + 1..]);
        let mut parts = rest.split(':');
        let target = parts.next().unwrap_or_default();
        let mode = parts.next().unwrap_or("0644");
        let mode = u16::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
        let mode = mode.with_context(|| format!("{text:?}: the mode is octal, such as 0755"))?;
        let mut id = || -> Result<u32> {
            let id = parts.next().unwrap_or("0").parse();
            id.with_context(|| format!("{text:?}: owner and group are numbers"))
        };
        let (uid, gid) = (id()?, id()?);
        ensure!(parts.next().is_none() && !source.is_empty(), "{text:?}: {FORM}");
        Ok(Self { source, target, mode, uid, gid })
    }
}
