//! Layers laid over each other, in memory, by the rules of the OCI image specification.
//!
//! Invariant: whiteouts act on the layers below and never on their own, wherever in their layer they stand. No path of
//! an image leaves the tree or becomes one of the host. Runs on one thread. OCI image-spec, "Image Layer Filesystem
//! Changeset".

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use openshell_ext4::tree::{
    ContentId, FileData, Holes, Kind, Metadata, NodeId, Piece, Source, Tree, TreeError,
};

use crate::layer::{self, Entry};
use crate::limits::{Limit, Limits};
use crate::path::{self, components, display};
use crate::resolve::{Missing, ResolveError, Resolver};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const META: &[u8] = b".wh..wh.";

/// Why a layer cannot be laid over the ones below.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer}: entry {entry:?}: {fault}")]
pub struct MergeError {
    /// The layer, counted from the base, which is 1.
    pub layer: usize,
    /// The entry.
    pub entry: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its path leads nowhere.
    #[error("the path cannot be followed: {0}")]
    Path(ResolveError),
    /// It is a hard link to what is not there.
    #[error("it is a hard link to {0:?}, which is not there")]
    NoTarget(String),
    /// It is a hard link to a directory.
    #[error("it is a hard link to the directory {0:?}")]
    DirectoryLink(String),
    /// It would replace the root by something else.
    #[error("the root of an image is a directory")]
    Root,
    /// It is a whiteout of nothing that has a name.
    #[error("a whiteout of {0:?}")]
    Whiteout(String),
    /// It lies in a directory whose name is a whiteout's.
    #[error("it lies below a whiteout")]
    BelowWhiteout,
    /// A limit is passed.
    #[error("more than the limit of {0}")]
    Limit(Limit),
    /// The tree refuses it.
    #[error(transparent)]
    Tree(TreeError),
}

/// A merge in the making.
#[derive(Debug)]
pub struct Merge<'l> {
    tree: Tree,
    limits: &'l Limits,
    resolver: Resolver<'l>,
    layers: usize,
    /// The directory that the last path led to: entries of one directory mostly follow each other.
    last: Option<(Vec<u8>, NodeId)>,
}

impl<'l> Merge<'l> {
    /// An empty image.
    pub fn new(limits: &'l Limits) -> Self {
        let tree = Tree::new(Metadata::new(0o755, 0, 0));
        Self { tree, limits, resolver: Resolver::new(limits), layers: 0, last: None }
    }

    /// The merged tree.
    pub fn finish(self) -> Tree {
        self.tree
    }

    /// Lays a layer over the ones so far. The data of its files is in the source `pack`.
    ///
    /// # Errors
    ///
    /// When an entry cannot be placed. The merge is of no use then.
    pub fn apply(&mut self, pack: ContentId, entries: Vec<Entry>) -> Result<(), MergeError> {
        self.layers += 1;
        let layer = self.layers;
        let error = |path: &[u8], fault| MergeError { layer, entry: display(path), fault };
        self.remove_hidden(&entries).map_err(|(path, fault)| MergeError {
            layer,
            entry: path,
            fault,
        })?;
        // A hard link may stand before its target, but only once.
        let mut early = Vec::new();
        for entry in entries {
            if matches!(role(&entry.path), Ok(Role::Entry)) {
                let path = entry.path.clone();
                if let Some(entry) = self.place(pack, entry).map_err(|fault| error(&path, fault))? {
                    early.push(entry);
                }
            }
        }
        for entry in early {
            let path = entry.path.clone();
            if let Some(entry) = self.place(pack, entry).map_err(|fault| error(&path, fault))?
                && let layer::Kind::HardLink(target) = entry.kind
            {
                return Err(error(&path, Fault::NoTarget(display(&target))));
            }
        }
        Ok(())
    }

    /// Takes away what the whiteouts of a layer hide.
    fn remove_hidden(&mut self, entries: &[Entry]) -> Result<(), (String, Fault)> {
        let mut hidden = Vec::new();
        for entry in entries {
            let role = role(&entry.path).map_err(|fault| (display(&entry.path), fault))?;
            if let Role::Whiteout { parent, name } = role {
                hidden.push((components(parent).count(), parent, name));
            }
        }
        if hidden.is_empty() {
            return Ok(());
        }
        // From the root down, so that the order in the archive makes no difference.
        hidden.sort_unstable();
        let own: HashSet<&[u8]> = entries
            .iter()
            .filter(|entry| matches!(role(&entry.path), Ok(Role::Entry)))
            .map(|entry| entry.path.as_slice())
            .collect();
        self.last = None;
        for (_, parent, name) in hidden {
            let fault = |error| (display(parent), Fault::Path(error));
            if self.is_replaced(parent, &own) {
                continue;
            }
            let found = self.resolver.directory(&mut self.tree, parent, Missing::Stop);
            let Some(directory) = found.map_err(fault)? else { continue };
            match name {
                Some(name) => drop(self.tree.remove(directory, name)),
                None => {
                    let cleared = self.tree.clear(directory);
                    cleared.map_err(|error| (display(parent), Fault::Tree(error)))?;
                }
            }
        }
        Ok(())
    }

    /// Whether the layer puts something of its own in the place of a link that `path` would lead through. What lies
    /// behind the link is then not what the whiteout means.
    fn is_replaced(&self, path: &[u8], own: &HashSet<&[u8]>) -> bool {
        let mut at = Tree::ROOT;
        let mut end = 0;
        for name in components(path) {
            end += name.len() + usize::from(end > 0);
            let Some(child) = self.tree.child(at, name) else { return false };
            match self.tree.find(child).map(|node| node.kind()) {
                Some(Kind::Directory) => at = child,
                Some(Kind::Symlink(_)) => return own.contains(&path[..end]),
                _ => return false,
            }
        }
        false
    }

    /// Puts an entry into the tree; gives back a hard link whose target is not there yet.
    fn place(&mut self, pack: ContentId, entry: Entry) -> Result<Option<Entry>, Fault> {
        let Some((parent, name)) = path::split(&entry.path) else {
            if entry.kind != layer::Kind::Directory {
                return Err(Fault::Root);
            }
            *self.tree.metadata_mut(Tree::ROOT).map_err(Fault::Tree)? = entry.metadata;
            return Ok(None);
        };
        let directory = self.parent(parent)?;
        let existing = self.tree.child(directory, name);
        if let layer::Kind::HardLink(target) = &entry.kind {
            let Some(node) = self.target(target)? else { return Ok(Some(entry)) };
            self.link(directory, name, node, target)?;
            return Ok(None);
        }
        if self.tree.len() as u64 > self.limits.entries {
            return Err(Fault::Limit(Limit::Entries(self.limits.entries)));
        }
        if let Some(existing) = existing {
            let was_directory = self.tree.node(existing).map_err(Fault::Tree)?.is_directory();
            if was_directory && entry.kind == layer::Kind::Directory {
                *self.tree.metadata_mut(existing).map_err(Fault::Tree)? = entry.metadata;
                return Ok(None);
            }
            self.remove(directory, name);
        }
        let kind = kind_of(pack, entry.kind).map_err(Fault::Tree)?;
        self.tree.insert(directory, name, kind, entry.metadata).map_err(Fault::Tree)?;
        Ok(None)
    }

    fn link(
        &mut self,
        directory: NodeId,
        name: &[u8],
        node: NodeId,
        target: &[u8],
    ) -> Result<(), Fault> {
        if self.tree.node(node).map_err(Fault::Tree)?.is_directory() {
            return Err(Fault::DirectoryLink(display(target)));
        }
        match self.tree.child(directory, name) {
            Some(existing) if existing == node => return Ok(()),
            Some(_) => self.remove(directory, name),
            None => {}
        }
        // The target may have been in the directory that the link replaces.
        if self.tree.find(node).is_none() {
            return Err(Fault::NoTarget(display(target)));
        }
        self.tree.link(directory, name, node).map_err(Fault::Tree)
    }

    /// What a hard link means: the leaf is not followed, so a link to a symbolic link is one more name of that.
    fn target(&mut self, target: &[u8]) -> Result<Option<NodeId>, Fault> {
        let place = self.resolver.place(&mut self.tree, target, Missing::Stop);
        let Some((directory, name)) = place.map_err(Fault::Path)? else { return Ok(None) };
        Ok(self.tree.child(directory, &name))
    }

    fn parent(&mut self, path: &[u8]) -> Result<NodeId, Fault> {
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return Ok(*directory);
        }
        let found = self.resolver.directory(&mut self.tree, path, Missing::Make);
        let directory = found.map_err(Fault::Path)?.expect("missing directories are made");
        self.last = Some((path.to_vec(), directory));
        Ok(directory)
    }

    fn remove(&mut self, directory: NodeId, name: &[u8]) {
        // What is removed may be on the way to the last directory.
        self.last = None;
        self.tree.remove(directory, name);
    }
}

/// What an entry of a layer is about.
enum Role<'a> {
    /// Itself.
    Entry,
    /// What is below: one name of a directory, or all of them.
    Whiteout { parent: &'a [u8], name: Option<&'a [u8]> },
    /// Nothing: bookkeeping of an old union file system.
    Bookkeeping,
}

fn role(path: &[u8]) -> Result<Role<'_>, Fault> {
    let Some((parent, name)) = path::split(path) else { return Ok(Role::Entry) };
    if path.starts_with(META) && path != OPAQUE {
        return Ok(Role::Bookkeeping);
    }
    if components(parent).any(|part| part.starts_with(WHITEOUT)) {
        return Err(Fault::BelowWhiteout);
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(Role::Entry) };
    if name == OPAQUE {
        return Ok(Role::Whiteout { parent, name: None });
    }
    if name.starts_with(META) {
        return Ok(Role::Bookkeeping);
    }
    match hidden {
        b"" | b"." | b".." => Err(Fault::Whiteout(display(hidden))),
        hidden => Ok(Role::Whiteout { parent, name: Some(hidden) }),
    }
}

fn kind_of(pack: ContentId, kind: layer::Kind) -> Result<Kind, TreeError> {
    Ok(match kind {
        layer::Kind::Directory => Kind::Directory,
        layer::Kind::File { size, runs } => {
            let piece = |run: layer::Run| Piece {
                at: run.at,
                length: run.length,
                source: Source::Stored(pack, run.pack),
            };
            let pieces = runs.into_iter().map(piece).collect();
            Kind::File(FileData::new(size, pieces, Holes::Known)?)
        }
        layer::Kind::Symlink(target) => Kind::Symlink(target),
        layer::Kind::CharDevice(device) => Kind::CharDevice(device),
        layer::Kind::BlockDevice(device) => Kind::BlockDevice(device),
        layer::Kind::Fifo => Kind::Fifo,
        layer::Kind::HardLink(_) => unreachable!("links are placed before"),
    })
}
