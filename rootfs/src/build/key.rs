//! What an image is known by: everything that its bytes depend on, and nothing else.

use std::fmt::Write as _;

use super::Builder;
use crate::digest::Digest;
use crate::source::Plan;

/// The version of the bytes that are made of the same layers. It changes when the merge, the layout or the writer does.
const LAYOUT: &str = "openshell-rootfs image 2";

impl Builder<'_> {
    /// The key of an image.
    pub fn key(&self, identity: &Digest, plan: &Plan) -> Digest {
        let mut text = format!("{LAYOUT}\n{}\n{identity}\n", self.layout.version());
        for layer in &plan.layers {
            let diff_id = layer.diff_id.as_ref().map(ToString::to_string);
            writeln!(text, "layer {}", diff_id.as_deref().unwrap_or("unknown"))
                .expect("a string takes every write");
        }
        for addition in self.additions {
            let (mode, uid, gid) = (addition.mode, addition.uid, addition.gid);
            let target = addition.target.escape_ascii();
            writeln!(text, "add {target} {mode:o} {uid} {gid} {}", addition.digest)
                .expect("a string takes every write");
        }
        Digest::sha256(text.as_bytes())
    }
}
