//! Verbs about images that are there: `ls`, `inspect`, `verify`, `prune`, `rm`, `cat`, `export-tar`.

use anyhow::{Result, bail};
use openshell_rootfs::cache::{Cache, Cached, Prune};
use serde_json::{Value, json};

use super::args::{CatArgs, ExportArgs, Global, ImageArgs, PruneArgs, RmArgs, VerifyArgs};
use super::build::open_cache;
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

/// Checks images.
pub(crate) fn verify(_args: &VerifyArgs, _global: &Global) -> Result<()> {
    bail!("waits for the checker")
}

/// Prints a file.
pub(crate) fn cat(_args: &CatArgs, _global: &Global) -> Result<()> {
    bail!("waits for the reader")
}

/// Writes an archive.
pub(crate) fn export_tar(_args: &ExportArgs, _global: &Global) -> Result<()> {
    bail!("waits for the reader")
}
