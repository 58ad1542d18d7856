//! The tree that an image is made of.
//!
//! Nodes live in an arena and directories name them, so that a hard link is a second name of one node. Names, targets and extended
//! attributes are bytes. A file refers to its bytes ([`FileData`]), it does not hold them.
//!
//! Invariant: every node but the root has at least one name, a directory has exactly one, and no directory lies below itself. It
//! holds because a directory gets its name when it is made and can never be linked. Nothing here recurses on depth.

mod data;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::btree_map;

pub(crate) use data::is_zero;
pub use data::{
    BLOCK, ContentId, Contents, FileData, HoleFinder, Holes, MemoryContents, Piece, Source,
};

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// The longest target of a symbolic link, in bytes: one block with the NUL that the kernel adds.
pub const TARGET_MAX: usize = 4095;

/// The largest numbers that the 32-bit device encoding of ext4 holds.
pub const DEVICE_MAX: Device = Device { major: 0xfff, minor: 0xf_ffff };

/// A change that the tree does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A name is empty, `.`, `..`, or holds a slash or NUL.
    #[error("`{}` cannot be a name", .0.escape_ascii())]
    Name(Vec<u8>),
    /// A name is longer than [`NAME_MAX`].
    #[error("a name of {0} bytes is longer than 255")]
    NameLength(usize),
    /// The target of a symbolic link is empty, longer than [`TARGET_MAX`], or holds NUL.
    #[error("a symbolic link cannot have a target of {0} bytes, or one with NUL")]
    Target(usize),
    /// A device number is larger than [`DEVICE_MAX`].
    #[error("device {}:{} does not fit in 12 and 20 bits", .0.major, .0.minor)]
    Device(Device),
    /// Nanoseconds of a second or more.
    #[error("{0} nanoseconds are not a part of a second")]
    Nanoseconds(u32),
    /// The node that should be a directory is not one.
    #[error("node {} is not a directory", .0.0)]
    NotDirectory(NodeId),
    /// The node that should be a regular file is not one.
    #[error("node {} is not a regular file", .0.0)]
    NotFile(NodeId),
    /// The directory has the name already.
    #[error("`{}` exists already", .0.escape_ascii())]
    Exists(Vec<u8>),
    /// Directories have one name.
    #[error("node {} is a directory, which has one name", .0.0)]
    LinkToDirectory(NodeId),
    /// The node lost its last name, or is of another tree.
    #[error("node {} is not in the tree", .0.0)]
    Gone(NodeId),
    /// Pieces of a file overlap, are out of order, empty, or end past its size.
    #[error("the piece at byte {0} of a file overlaps, is empty or lies past the end")]
    Piece(u64),
    /// The arena counts its nodes in 32 bits.
    #[error("the tree has too many nodes")]
    Full,
}

/// A node of one tree. Never used again after its node is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// Where the node stands in the arena: below [`Tree::arena_len`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A moment: seconds since 1970, negative before it, and the nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    seconds: i64,
    nanoseconds: u32,
}

impl Time {
    /// The start of 1970.
    pub const EPOCH: Self = Self { seconds: 0, nanoseconds: 0 };

    /// Fails when `nanoseconds` is a second or more.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Result<Self, TreeError> {
        if nanoseconds >= 1_000_000_000 {
            return Err(TreeError::Nanoseconds(nanoseconds));
        }
        Ok(Self { seconds, nanoseconds })
    }

    /// A whole second.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }

    /// Seconds since 1970, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// 0 to 999,999,999.
    #[must_use]
    pub const fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// At most 4,095.
    pub major: u32,
    /// At most 1,048,575.
    pub minor: u32,
}

/// Extended attributes: full name (`user.x`, `security.capability`) to value, as the kernel's `setxattr` takes them.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What every node has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permissions with setuid, setgid and sticky: the low 12 bits; the rest is ignored.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification. The image's other times of the node are the same.
    pub modified: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Metadata {
    /// Without extended attributes, and modified at the start of 1970.
    #[must_use]
    pub const fn new(mode: u16, uid: u32, gid: u32) -> Self {
        Self { mode, uid, gid, modified: Time::EPOCH, xattrs: Xattrs::new() }
    }
}

/// What a new node is. A directory starts empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(FileData),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
    /// A Unix socket's name.
    Socket,
}

#[derive(Debug, Clone, Default)]
struct Directory {
    parent: u32,
    name: Box<[u8]>,
    children: BTreeMap<Box<[u8]>, NodeId>,
    directories: u32,
}

/// A node: its kind, its metadata, and how many names it has.
#[derive(Debug, Clone)]
pub struct Node {
    /// Owner, mode, time, extended attributes.
    pub metadata: Metadata,
    kind: Kind,
    names: u32,
    directory: Option<Box<Directory>>,
}

impl Node {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// How many names it has: 1 for a directory, the root included.
    #[must_use]
    pub const fn names(&self) -> u32 {
        self.names
    }

    /// Whether it is a directory.
    #[must_use]
    pub const fn is_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// How many directories it names: 0 for what is not a directory.
    #[must_use]
    pub fn directories(&self) -> u32 {
        self.directory.as_ref().map_or(0, |directory| directory.directories)
    }

    /// How many names it holds: 0 for what is not a directory.
    #[must_use]
    pub fn children_len(&self) -> usize {
        self.directory.as_ref().map_or(0, |directory| directory.children.len())
    }
}

/// A tree of nodes below one root directory.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Option<Node>>,
    live: usize,
}

impl Tree {
    /// The root of every tree.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of one directory.
    #[must_use]
    pub fn new(root: Metadata) -> Self {
        let root = Node {
            metadata: root,
            kind: Kind::Directory,
            names: 1,
            directory: Some(Box::default()),
        };
        Self { nodes: vec![Some(root)], live: 1 }
    }

    /// How many nodes it has, the root included.
    #[expect(clippy::len_without_is_empty, reason = "a tree has a root: it is never empty")]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.live
    }

    /// One more than the largest [`NodeId::index`] ever given out.
    #[must_use]
    pub const fn arena_len(&self) -> usize {
        self.nodes.len()
    }

    /// The node, unless it is gone.
    #[must_use]
    pub fn find(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())?.as_ref()
    }

    /// The node. Fails when it is gone.
    pub fn node(&self, id: NodeId) -> Result<&Node, TreeError> {
        self.find(id).ok_or(TreeError::Gone(id))
    }

    /// The node's metadata, to be changed. Fails when it is gone.
    pub fn metadata_mut(&mut self, id: NodeId) -> Result<&mut Metadata, TreeError> {
        Ok(&mut self.node_mut(id)?.metadata)
    }

    /// Gives a regular file other bytes. Fails for anything else.
    pub fn set_data(&mut self, id: NodeId, data: FileData) -> Result<(), TreeError> {
        match &mut self.node_mut(id)?.kind {
            Kind::File(old) => {
                *old = data;
                Ok(())
            }
            _ => Err(TreeError::NotFile(id)),
        }
    }

    /// What `directory` calls `name`: O(log n). None when it has no such name or is no directory.
    #[must_use]
    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.find(directory)?.directory.as_ref()?.children.get(name).copied()
    }

    /// The names of a directory in the order of their bytes. Empty for anything else.
    #[must_use]
    pub fn children(&self, directory: NodeId) -> Children<'_> {
        static NONE: BTreeMap<Box<[u8]>, NodeId> = BTreeMap::new();
        let node = self.find(directory).and_then(|node| node.directory.as_ref());
        Children(node.map_or(&NONE, |directory| &directory.children).iter())
    }

    /// The directory that names this one; the root's is the root. None for anything else.
    #[must_use]
    pub fn parent(&self, directory: NodeId) -> Option<NodeId> {
        Some(NodeId(self.find(directory)?.directory.as_ref()?.parent))
    }

    /// The path of a directory from the root, without a leading slash: empty for the root. None for anything else.
    #[must_use]
    pub fn path(&self, directory: NodeId) -> Option<Vec<u8>> {
        let mut parts = Vec::new();
        let mut at = directory;
        while at != Self::ROOT {
            let here = self.find(at)?.directory.as_ref()?;
            parts.push(&*here.name);
            at = NodeId(here.parent);
        }
        self.find(directory)?.directory.as_ref()?;
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// The node at a path whose parts are names: empty parts are skipped, no link is followed, `.` and `..` are not names.
    #[must_use]
    pub fn at(&self, path: &[u8]) -> Option<NodeId> {
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        parts.try_fold(Self::ROOT, |directory, name| self.child(directory, name))
    }

    /// Makes a node and names it. Fails when the name, the kind or the directory is not right, or the name is taken.
    pub fn insert(
        &mut self,
        directory: NodeId,
        name: &[u8],
        kind: Kind,
        metadata: Metadata,
    ) -> Result<NodeId, TreeError> {
        check_name(name)?;
        check_kind(&kind)?;
        let id = NodeId(u32::try_from(self.nodes.len()).map_err(|_| TreeError::Full)?);
        let is_directory = matches!(kind, Kind::Directory);
        self.enter(directory, name, id, is_directory)?;
        let below = is_directory.then(|| {
            Box::new(Directory { parent: directory.0, name: name.into(), ..Directory::default() })
        });
        self.nodes.push(Some(Node { metadata, kind, names: 1, directory: below }));
        self.live += 1;
        Ok(id)
    }

    /// Gives a node another name: a hard link. Fails for a directory, and as [`insert`](Self::insert) does.
    pub fn link(&mut self, directory: NodeId, name: &[u8], node: NodeId) -> Result<(), TreeError> {
        check_name(name)?;
        if self.node(node)?.is_directory() {
            return Err(TreeError::LinkToDirectory(node));
        }
        self.enter(directory, name, node, false)?;
        self.node_mut(node)?.names += 1;
        Ok(())
    }

    /// Takes a name away, with everything below it when it is a directory's. Nodes without a name are gone. False when there was
    /// no such name.
    pub fn remove(&mut self, directory: NodeId, name: &[u8]) -> bool {
        let Some(here) = self.directory_mut(directory) else { return false };
        let Some(id) = here.children.remove(name) else { return false };
        if self.drop_name(id)
            && let Some(here) = self.directory_mut(directory)
        {
            here.directories -= 1;
        }
        true
    }

    /// Takes all names of a directory away, as [`remove`](Self::remove) does. Fails for anything else.
    pub fn clear(&mut self, directory: NodeId) -> Result<(), TreeError> {
        self.node(directory)?;
        let here = self.directory_mut(directory).ok_or(TreeError::NotDirectory(directory))?;
        here.directories = 0;
        for id in std::mem::take(&mut here.children).into_values() {
            self.drop_name(id);
        }
        Ok(())
    }

    /// Every name below `directory`, a directory before what is in it, names in the order of their bytes. A node with several
    /// names comes as often.
    #[must_use]
    pub fn walk(&self, directory: NodeId) -> Walk<'_> {
        Walk { tree: self, open: vec![(directory, self.children(directory))] }
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, TreeError> {
        self.nodes.get_mut(id.index()).and_then(Option::as_mut).ok_or(TreeError::Gone(id))
    }

    fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        self.node_mut(id).ok()?.directory.as_deref_mut()
    }

    fn enter(
        &mut self,
        directory: NodeId,
        name: &[u8],
        id: NodeId,
        is_directory: bool,
    ) -> Result<(), TreeError> {
        self.node(directory)?;
        let here = self.directory_mut(directory).ok_or(TreeError::NotDirectory(directory))?;
        match here.children.entry(name.into()) {
            btree_map::Entry::Occupied(_) => return Err(TreeError::Exists(name.to_vec())),
            btree_map::Entry::Vacant(entry) => entry.insert(id),
        };
        here.directories += u32::from(is_directory);
        Ok(())
    }

    /// One name less for `id`, and for what only it named. True when it was a directory.
    fn drop_name(&mut self, id: NodeId) -> bool {
        let was_directory = self.find(id).is_some_and(Node::is_directory);
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let Some(slot) = self.nodes.get_mut(id.index()) else { continue };
            let Some(node) = slot else { continue };
            node.names -= 1;
            if node.names > 0 {
                continue;
            }
            if let Some(directory) = node.directory.take() {
                pending.extend(directory.children.into_values());
            }
            *slot = None;
            self.live -= 1;
        }
        was_directory
    }
}

/// Names of a directory and what they name: [`Tree::children`].
#[derive(Debug, Clone)]
pub struct Children<'a>(btree_map::Iter<'a, Box<[u8]>, NodeId>);

impl<'a> Iterator for Children<'a> {
    type Item = (&'a [u8], NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(name, id)| (&**name, *id))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Children<'_> {}

/// One name met by [`Tree::walk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The directory that has the name.
    pub directory: NodeId,
    /// The name.
    pub name: &'a [u8],
    /// What it names.
    pub node: NodeId,
    /// How many directories lie between it and where the walk began.
    pub depth: usize,
}

/// The walk of [`Tree::walk`].
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    tree: &'a Tree,
    open: Vec<(NodeId, Children<'a>)>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        loop {
            let depth = self.open.len().checked_sub(1)?;
            let (directory, children) = self.open.last_mut()?;
            let directory = *directory;
            let Some((name, node)) = children.next() else {
                self.open.pop();
                continue;
            };
            if self.tree.find(node).is_some_and(Node::is_directory) {
                self.open.push((node, self.tree.children(node)));
            }
            return Some(Entry { directory, name, node, depth });
        }
    }
}

fn check_name(name: &[u8]) -> Result<(), TreeError> {
    if name.len() > NAME_MAX {
        return Err(TreeError::NameLength(name.len()));
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(TreeError::Name(name.to_vec()));
    }
    Ok(())
}

fn check_kind(kind: &Kind) -> Result<(), TreeError> {
    match kind {
        Kind::Symlink(target) if !(1..=TARGET_MAX).contains(&target.len()) => {
            Err(TreeError::Target(target.len()))
        }
        Kind::Symlink(target) if target.contains(&0) => Err(TreeError::Target(target.len())),
        Kind::CharDevice(device) | Kind::BlockDevice(device)
            if device.major > DEVICE_MAX.major || device.minor > DEVICE_MAX.minor =>
        {
            Err(TreeError::Device(*device))
        }
        _ => Ok(()),
    }
}
