//! Verbs about images that are there: `ls`, `inspect`, `verify`, `prune`, `rm`, `cat`, `export-tar`.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use openshell_ext4::tree::Kind;
use openshell_ext4::{Image, Tree};
use openshell_rootfs::build::hash;
use openshell_rootfs::cache::{Cache, Cached, Prune, Record};
use openshell_rootfs::limits::Limits;
use openshell_rootfs::resolve::Resolver;
use serde_json::{Value, json};

use super::args::{CatArgs, ExportArgs, Global, ImageArgs, PruneArgs, RmArgs, VerifyArgs};
use super::build::{open_cache, write_output};
use super::failure::NoImage;
use super::output;

/// The fewest digits of a key that are taken for it.
const PREFIX: usize = 4;

/// Lists the images.
pub(crate) fn ls(global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let tags = cache.tags();
    let mut images = cache.images();
    images.sort_by_key(|cached| std::cmp::Reverse(cached.used()));
    let values: Vec<Value> = images.iter().map(|cached| output::image(cached, &tags)).collect();
    let mut lines = vec![format!("{:14}{:>12}  {:18}REFERENCES", "KEY", "SIZE", "USED")];
    lines.extend(images.iter().map(|cached| {
        let key = cached.record.key.hex().get(..12).unwrap_or_default();
        let names = output::names(cached, &tags).join(", ");
        let (size, used) = (output::bytes(cached.record.bytes), output::ago(cached.used()));
        format!("{key:14}{size:>12}  {used:18}{names}")
    }));
    output::print(global.json, &Value::Array(values), &lines)
}

/// Shows one image.
pub(crate) fn inspect(args: &ImageArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let cached = find(&cache, &args.image)?;
    let mut value = output::image(&cached, &cache.tags());
    let config = std::fs::read(cached.config()).ok();
    let config = config.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    value["config"] = config.unwrap_or(Value::Null);
    // One form for people and programs: there is too much in it for a table.
    output::print(true, &value, &[])
}

/// Makes the cache smaller.
pub(crate) fn prune(args: &PruneArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let freed = cache.prune(Prune { budget: args.max_size, dry_run: args.dry_run })?;
    let value = json!({
        "schema": "v1",
        "images": freed.images,
        "layers": freed.layers,
        "freed_bytes": freed.bytes,
        "left_bytes": freed.left,
        "dry_run": args.dry_run,
    });
    let verb = if args.dry_run { "would free" } else { "freed" };
    let mut lines: Vec<String> = freed.images.iter().map(|key| format!("image {key}")).collect();
    lines.extend(freed.layers.iter().map(|name| format!("layer {name}")));
    let (bytes, left) = (output::bytes(freed.bytes), output::bytes(freed.left));
    lines.push(format!("{verb} {bytes}, {left} left"));
    output::print(global.json, &value, &lines)
}

/// Removes images. All that can go, go; what cannot is an error at the end.
pub(crate) fn rm(args: &RmArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    let mut missing = None;
    for name in &args.images {
        match find(&cache, name) {
            Err(error) => missing = missing.or(Some(error)),
            Ok(cached) if cache.pins().iter().any(|pin| pin.key == cached.record.key) => {
                kept.push(name.clone());
            }
            Ok(cached) if cache.remove(&cached.record.key)? => removed.push(cached.record.key),
            Ok(_) => kept.push(name.clone()),
        }
    }
    let lines: Vec<String> = removed.iter().map(|key| key.hex().to_owned()).collect();
    output::print(global.json, &json!({ "schema": "v1", "removed": removed }), &lines)?;
    if !kept.is_empty() {
        bail!("{} in use; stop the machines that run on it first", kept.join(", "));
    }
    missing.map_or(Ok(()), Err)
}

/// An image by its reference, its key or the beginning of that.
pub(crate) fn find(cache: &Cache, name: &str) -> Result<Cached> {
    let tagged = cache.tags().into_iter().filter(|tag| tag.reference == name);
    let newest = tagged.max_by_key(|tag| tag.checked);
    if let Some(cached) = newest.and_then(|tag| cache.find(&tag.key)) {
        return Ok(cached);
    }
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    let same = |cached: &Cached| {
        let record = &cached.record;
        record.key.hex().starts_with(digits) || record.identity.hex().starts_with(digits)
    };
    let mut found: Vec<Cached> = cache.images();
    found.retain(|cached| digits.len() >= PREFIX && same(cached));
    match (found.pop(), found.len()) {
        (Some(cached), 0) => Ok(cached),
        (Some(_), others) => bail!("{name:?} begins {} keys; write more of it", others + 1),
        (None, _) => Err(NoImage(name.to_owned()).into()),
    }
}

/// Checks images: all that the arguments name, or all of the cache.
pub(crate) fn verify(args: &VerifyArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let mut targets = Vec::new();
    for name in &args.images {
        let path = Path::new(name);
        targets.push(match find(&cache, name) {
            Ok(cached) => (cached.image(), Some(cached.record)),
            Err(_) if path.is_file() => (path.to_owned(), None),
            Err(error) => return Err(error),
        });
    }
    if args.images.is_empty() {
        targets = cache.images().into_iter().map(|one| (one.image(), Some(one.record))).collect();
    }
    let (mut values, mut lines, mut bad) = (Vec::new(), Vec::new(), 0);
    for (path, record) in targets {
        let faults = faults(&path, record.as_ref())?;
        bad += usize::from(!faults.is_empty());
        let verdict = if faults.is_empty() { "sound".to_owned() } else { faults.join("; ") };
        lines.push(format!("{}: {verdict}", path.display()));
        values.push(json!({ "path": path, "sound": faults.is_empty(), "faults": faults }));
    }
    output::print(global.json, &Value::Array(values), &lines)?;
    if bad > 0 {
        bail!("{bad} damaged; remove and build what is damaged again");
    }
    Ok(())
}

fn faults(path: &Path, record: Option<&Record>) -> Result<Vec<String>> {
    let context = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(context)?;
    let mut faults = Vec::new();
    match Image::open(&file).and_then(|image| image.check()) {
        Ok(report) => faults.extend(report.faults().iter().map(ToString::to_string)),
        Err(error) => faults.push(error.to_string()),
    }
    if let Some(record) = record {
        let found = hash(&file, record.bytes).with_context(context)?;
        if found != record.pieces_sha256 {
            faults.push(format!("its bytes have the digest {found}, not {}", record.pieces_sha256));
        }
    }
    Ok(faults)
}

/// Prints a file, to which links of the image may lead.
pub(crate) fn cat(args: &CatArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let image = open(&find(&cache, &args.image)?)?;
    let mut tree = image.read_tree().context("cannot read the image")?;
    let limits = Limits::default();
    let found = Resolver::new(&limits).node(&mut tree, args.path.as_bytes());
    let found = found.with_context(|| format!("cannot follow {:?}", args.path))?;
    let node = found.and_then(|id| tree.find(id));
    let node = node.with_context(|| format!("there is no {:?} in the image", args.path))?;
    let Kind::File(data) = node.kind() else { bail!("{:?} is not a regular file", args.path) };
    let mut out = io::stdout().lock();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < data.size() {
        let wanted = usize::try_from(data.size() - at).unwrap_or(usize::MAX).min(buffer.len());
        data.read_at(&image, at, &mut buffer[..wanted]).context("cannot read the image")?;
        out.write_all(&buffer[..wanted]).context("cannot print")?;
        at += wanted as u64;
    }
    out.flush().context("cannot print")
}

/// Writes the files of an image as an archive.
pub(crate) fn export_tar(args: &ExportArgs, global: &Global) -> Result<()> {
    let cache = open_cache(global)?;
    let image = open(&find(&cache, &args.image)?)?;
    let mut tree = image.read_tree().context("cannot read the image")?;
    // The writer made it, it is not the image's.
    tree.remove(Tree::ROOT, b"lost+found");
    let export = |out: &mut dyn io::Write| {
        let mut out = io::BufWriter::with_capacity(1 << 20, out);
        openshell_rootfs::export::export_tar(&tree, &image, &mut out)?;
        out.flush()
    };
    let Some(path) = &args.output else {
        return export(&mut io::stdout().lock()).context("cannot write the archive");
    };
    write_output(path, 0o644, |file| {
        let mut file = file;
        export(&mut file).with_context(|| format!("cannot write {}", path.display()))
    })?;
    let value = json!({ "schema": "v1", "output": path });
    output::print(global.json, &value, &[path.display().to_string()])
}

/// The file system of a cached image.
pub(crate) fn open(cached: &Cached) -> Result<Image<File>> {
    let path = cached.image();
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Image::open(file).with_context(|| format!("{} is damaged", path.display()))
}
