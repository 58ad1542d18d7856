//! What a tree needs: inode numbers, and for each inode its blocks.
//!
//! The order is that of the paths: a directory, the names in it, and then what is below them. It does not depend on how the tree
//! was built.

use std::ops::Range;
use std::sync::Mutex;

use super::directory;
use super::extents::tree_blocks;
use super::threads;
use super::{Options, Profile, WriteError, path_of};
use crate::bytes::{size, small};
use crate::format::{BLOCK, EXTENT_MAX, FAST_SYMLINK_MAX, FILE_MAX, LINKS_MAX, number};
use crate::tree::{Contents, FileData, Holes, Kind, Metadata, Node, NodeId, Tree, is_zero};
use crate::xattr;

/// The name that checkers put lost files under.
pub(super) const LOST_FOUND: &[u8] = b"lost+found";
/// Bytes that are searched for zeros at a time.
const SEARCH: usize = 1 << 20;

/// A run of a file's blocks that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
}

/// What an inode stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// A node of the tree.
    Node(NodeId),
    /// The directory `lost+found`, which the tree does not have.
    LostFound,
    /// The journal, of so many blocks.
    Journal(u32),
}

/// An inode in use, and what it needs.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) subject: Subject,
    pub(super) number: u32,
    /// Its blocks: which of [`Demand::runs`].
    pub(super) runs: Range<usize>,
    /// Whether the blocks are a directory's or a target's, and so stand among the structures.
    pub(super) is_structure: bool,
    /// Whether it has a block of extended attributes.
    pub(super) xattr_block: bool,
}

/// What a tree needs.
#[derive(Debug)]
pub(super) struct Demand<'a> {
    pub(super) tree: &'a Tree,
    /// In the order of their numbers.
    pub(super) items: Vec<Item>,
    pub(super) runs: Vec<Run>,
    /// Inode numbers by [`NodeId::index`]; 0 for what is gone.
    pub(super) numbers: Vec<u32>,
    /// Whether `lost+found` is added.
    pub(super) adds_lost_found: bool,
    /// Levels of the deepest directory index.
    pub(super) index_levels: u8,
}

impl<'a> Demand<'a> {
    /// Numbers the nodes and counts their blocks. Reads files whose holes are not known.
    pub(super) fn new(
        tree: &'a Tree,
        contents: &dyn Contents,
        options: &Options,
    ) -> Result<Self, WriteError> {
        let root = tree.child(Tree::ROOT, LOST_FOUND);
        let lost_found = root.filter(|id| tree.find(*id).is_some_and(Node::is_directory));
        let mut demand = Self {
            tree,
            items: Vec::with_capacity(tree.len() + 2),
            runs: Vec::new(),
            numbers: vec![0; tree.arena_len()],
            adds_lost_found: root.is_none(),
            index_levels: 0,
        };
        demand.add(Subject::Node(Tree::ROOT), number::ROOT);
        if let Profile::ReadWrite { size_bytes, journal: true, .. } = options.profile {
            demand.add(Subject::Journal(journal_blocks(size_bytes)), number::JOURNAL);
        }
        // What is first is also found first when a checker looks for it.
        match lost_found {
            Some(id) => demand.add(Subject::Node(id), number::FIRST),
            None if root.is_none() => demand.add(Subject::LostFound, number::FIRST),
            None => {}
        }
        demand.number_nodes()?;
        demand.count(searched(tree, &demand.items, contents, options.threads)?, options)?;
        Ok(demand)
    }

    /// The highest number in use.
    pub(super) fn last_number(&self) -> u32 {
        self.items.last().map_or(number::FIRST, |item| item.number).max(number::FIRST - 1)
    }

    /// The inode of a node.
    pub(super) fn number(&self, node: NodeId) -> u32 {
        self.numbers[node.index()]
    }

    /// Blocks of an item that are not files' data, when it has so many extents, or its blocks lie in one run of the image.
    pub(super) fn structure_blocks(&self, item: &Item, extents: Option<usize>) -> u64 {
        let runs = &self.runs[item.runs.clone()];
        let in_one_run = || runs.iter().map(|run| run.count.div_ceil(EXTENT_MAX) as usize).sum();
        let extents = extents.unwrap_or_else(in_one_run);
        let own = if item.is_structure { self.blocks(item) } else { 0 };
        own + tree_blocks(extents) as u64 + u64::from(item.xattr_block)
    }

    /// Blocks of its data, its names or its target.
    pub(super) fn blocks(&self, item: &Item) -> u64 {
        self.runs[item.runs.clone()].iter().map(|run| u64::from(run.count)).sum()
    }

    fn add(&mut self, subject: Subject, number: u32) {
        if let Subject::Node(id) = subject {
            self.numbers[id.index()] = number;
        }
        let runs = 0..0;
        let is_structure = false;
        self.items.push(Item { subject, number, runs, is_structure, xattr_block: false });
    }

    fn number_nodes(&mut self) -> Result<(), WriteError> {
        let tree = self.tree;
        let mut next = number::FIRST + u32::from(self.has_first());
        let directories = tree.walk(Tree::ROOT).map(|entry| entry.node);
        for directory in std::iter::once(Tree::ROOT).chain(directories) {
            // Empty for what is not a directory.
            for (_, child) in tree.children(directory) {
                if self.number(child) == 0 {
                    self.add(Subject::Node(child), next);
                    next = next.checked_add(1).ok_or(WriteError::TooManyNodes)?;
                }
            }
        }
        Ok(())
    }

    fn has_first(&self) -> bool {
        self.items.iter().any(|item| item.number == number::FIRST)
    }

    fn count(
        &mut self,
        searched: Vec<Option<Vec<Run>>>,
        options: &Options,
    ) -> Result<(), WriteError> {
        for (at, searched) in searched.into_iter().enumerate() {
            let first = self.runs.len();
            let subject = self.items[at].subject;
            let one = |count| Run { first: 0, count };
            let (is_structure, xattr_block) = match subject {
                Subject::Journal(blocks) => {
                    self.runs.push(one(blocks));
                    (false, false)
                }
                Subject::LostFound => {
                    self.runs.push(one(1));
                    (true, false)
                }
                Subject::Node(id) => {
                    let node = self.tree.find(id).expect("an item's node is in the tree");
                    self.check(id, node)?;
                    let layout = xattr::Layout::new(&node.metadata.xattrs);
                    let layout = layout.map_err(|source| WriteError::Xattrs {
                        path: path_of(self.tree, id),
                        source,
                    })?;
                    match node.kind() {
                        Kind::Directory => {
                            let seed = &options.identity.hash_seed;
                            let shape = directory::shape(self.names(id), seed);
                            self.index_levels = self.index_levels.max(shape.levels);
                            self.runs.push(one(shape.blocks));
                        }
                        Kind::Symlink(target) if target.len() > FAST_SYMLINK_MAX => {
                            self.runs.push(one(1));
                        }
                        Kind::File(data) => match searched {
                            Some(runs) => self.runs.extend(runs),
                            None => self.runs.extend(touched(data)),
                        },
                        _ => {}
                    }
                    (!matches!(node.kind(), Kind::File(_)), layout.needs_block())
                }
            };
            let item = &mut self.items[at];
            item.runs = first..self.runs.len();
            (item.is_structure, item.xattr_block) = (is_structure, xattr_block);
        }
        Ok(())
    }

    /// The names of a directory in the order of their bytes, with `lost+found` where it is added.
    pub(super) fn names(&self, directory: NodeId) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.children(directory).map(|(name, _)| name)
    }

    /// The names of a directory and their nodes; none for the `lost+found` that is added.
    pub(super) fn children(
        &self,
        directory: NodeId,
    ) -> impl Iterator<Item = (&'a [u8], Option<NodeId>)> + Clone {
        let added = directory == Tree::ROOT && self.adds_lost_found;
        let named = self.tree.children(directory).map(|(name, id)| (name, Some(id)));
        let before = named.clone().take_while(|(name, _)| *name < LOST_FOUND);
        let after = named.skip_while(|(name, _)| *name < LOST_FOUND);
        before.chain(added.then_some((LOST_FOUND, None))).chain(after)
    }

    fn check(&self, id: NodeId, node: &Node) -> Result<(), WriteError> {
        if let Kind::File(data) = node.kind()
            && data.size() > FILE_MAX
        {
            let path = path_of(self.tree, id);
            return Err(WriteError::FileTooLarge { path, size_bytes: data.size() });
        }
        if node.names() > LINKS_MAX {
            let path = path_of(self.tree, id);
            return Err(WriteError::TooManyNames { path, names: node.names() });
        }
        Ok(())
    }
}

impl Item {
    /// The node's metadata; that of what has no node is fixed.
    pub(super) fn metadata(&self, tree: &Tree) -> Metadata {
        match self.subject {
            Subject::Node(id) => {
                tree.find(id).expect("an item's node is in the tree").metadata.clone()
            }
            Subject::LostFound => Metadata::new(0o700, 0, 0),
            Subject::Journal(_) => Metadata::new(0o600, 0, 0),
        }
    }
}

/// Journal of a disk: 1/64 of it between 16 and 64 MiB, but no more than 1/8 of a small one, and never less than 4 MiB.
fn journal_blocks(size_bytes: u64) -> u32 {
    let blocks = size_bytes / BLOCK as u64;
    let wanted = (blocks / 64).clamp(4096, 16_384);
    small(wanted.min(blocks / 8).max(1024))
}

/// The blocks that a file's pieces touch.
fn touched(data: &FileData) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in data.pieces() {
        let first = small(piece.at / BLOCK as u64);
        let end = small((piece.at + piece.length).div_ceil(BLOCK as u64));
        match runs.last_mut() {
            Some(last) if last.first + last.count >= first => last.count = end - last.first,
            _ => runs.push(Run { first, count: end - first }),
        }
    }
    runs
}

/// The runs with data of files whose holes are to be found, by their place among the items.
fn searched(
    tree: &Tree,
    items: &[Item],
    contents: &dyn Contents,
    count: usize,
) -> Result<Vec<Option<Vec<Run>>>, WriteError> {
    let unknown = |item: &Item| match item.subject {
        Subject::Node(id) => match tree.find(id)?.kind() {
            Kind::File(data) if data.holes() == Holes::ToFind && data.size() <= FILE_MAX => {
                Some((id, data))
            }
            _ => None,
        },
        _ => None,
    };
    let files: Vec<(usize, (NodeId, &FileData))> =
        items.iter().enumerate().filter_map(|(at, item)| Some((at, unknown(item)?))).collect();
    let found = Mutex::new(vec![None; items.len()]);
    threads::each(
        count,
        files.len(),
        || vec![0; SEARCH],
        |buffer, at| {
            let (item, (id, data)) = files[at];
            let runs = search(data, contents, buffer)
                .map_err(|source| WriteError::Contents { path: path_of(tree, id), source })?;
            found.lock().expect("no thread panics with the lock")[item] = Some(runs);
            Ok(())
        },
    )?;
    Ok(found.into_inner().expect("no thread panics with the lock"))
}

/// The runs of blocks of a file that are not zero.
fn search(
    data: &FileData,
    contents: &dyn Contents,
    buffer: &mut [u8],
) -> std::io::Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for run in touched(data) {
        let (mut at, end) = (run.first, run.first + run.count);
        while at < end {
            let count = (end - at).min(small((buffer.len() / BLOCK) as u64));
            let bytes = &mut buffer[..size(u64::from(count)) * BLOCK];
            data.read_at(contents, u64::from(at) * BLOCK as u64, bytes)?;
            for (block, number) in bytes.chunks_exact(BLOCK).zip(at..) {
                if is_zero(block) {
                    continue;
                }
                match runs.last_mut() {
                    Some(last) if last.first + last.count == number => last.count += 1,
                    _ => runs.push(Run { first: number, count: 1 }),
                }
            }
            at += count;
        }
    }
    Ok(runs)
}
