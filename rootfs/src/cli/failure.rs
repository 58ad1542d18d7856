//! Errors: one line that names the thing, and the fix where there is one.

use std::io::{self, Write as _};
use std::process::ExitCode;

use openshell_rootfs::build::BuildError;
use openshell_rootfs::layer::LayerError;
use openshell_rootfs::limits::Limit;

use super::args::Global;

/// A reference or key that leads to nothing in the cache.
#[derive(Debug, thiserror::Error)]
#[error("there is no image {0:?} in the cache")]
pub(crate) struct NoImage(pub(crate) String);

/// Prints an error and says how the process ends.
pub(crate) fn print(error: &anyhow::Error, global: &Global) -> ExitCode {
    let text = chain(error);
    let fix = fix(error);
    let missing = error.downcast_ref::<NoImage>().is_some();
    let line = if global.json {
        serde_json::json!({ "error": text, "fix": fix }).to_string()
    } else {
        let fix = fix.map(|fix| format!("; {fix}")).unwrap_or_default();
        format!("openshell-rootfs: {text}{fix}")
    };
    // There is nobody left to tell when this fails.
    let line = line.replace('\n', " ");
    drop(if global.errors_on_stdout {
        writeln!(io::stdout(), "{line}")
    } else {
        writeln!(io::stderr(), "{line}")
    });
    ExitCode::from(if missing { 3 } else { 1 })
}

/// An error and its causes, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

/// What the user can do.
fn fix(error: &anyhow::Error) -> Option<&'static str> {
    if error.downcast_ref::<NoImage>().is_some() {
        return Some("`openshell-rootfs ls` shows those that are there, `pull` gets others");
    }
    match error.downcast_ref::<BuildError>() {
        Some(BuildError::Layer(
            LayerError::Digest { .. } | LayerError::Size { .. } | LayerError::DiffId { .. },
        )) => {
            return Some("get or build the image again");
        }
        Some(BuildError::Layer(LayerError::Compression { .. } | LayerError::MediaType { .. })) => {
            return Some("build the image again with layers in tar, tar+gzip or tar+zstd");
        }
        Some(BuildError::Layer(LayerError::Limit { limit: Limit::MetadataBytes(_), .. })) => {
            return Some("if the image is to be trusted, allow more with --max-metadata");
        }
        _ => {}
    }
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>())?;
    match io.kind() {
        io::ErrorKind::StorageFull => {
            Some("make room, with `openshell-rootfs prune --max-size` or elsewhere on the disk")
        }
        io::ErrorKind::PermissionDenied => Some("name a place that you may read and write"),
        io::ErrorKind::NotFound => Some("check the path"),
        _ => None,
    }
}
