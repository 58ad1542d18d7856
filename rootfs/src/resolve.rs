//! Paths through symbolic links, inside a tree.
//!
//! Invariant: a path never leaves the tree. An absolute target begins at the tree's root, `..` stops there, and nothing
//! is followed for more than 40 hops.

use openshell_ext4::tree::{Kind, Metadata, NodeId, Tree, TreeError};

use crate::limits::{Limit, Limits};
use crate::path::components;

/// How many symbolic links one path may lead through: the kernel's own limit.
const HOPS: usize = 40;

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Too many links, or links in a circle.
    #[error("it leads through more than 40 symbolic links")]
    Loop,
    /// Something that is not a directory stands where one is needed.
    #[error("{0:?} in it is not a directory")]
    NotDirectory(String),
    /// A link leads to a directory that is not there and whose name would be a whiteout's.
    #[error("a link in it leads to {0:?}, which is the name of a whiteout")]
    Whiteout(String),
    /// A limit is passed.
    #[error("more than the limit of {0}")]
    Limit(Limit),
    /// The tree refuses a directory.
    #[error(transparent)]
    Tree(TreeError),
}

/// What to do about a directory that a path needs and the tree does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The path leads nowhere.
    Stop,
    /// It is made, with the same metadata whatever the layer and the order: root's, 0755, at the start of 1970.
    Make,
}

/// Follows paths in a tree, and counts what that costs.
#[derive(Debug)]
pub struct Resolver<'l> {
    limits: &'l Limits,
    followed: u64,
}

impl<'l> Resolver<'l> {
    /// Nothing followed yet.
    pub fn new(limits: &'l Limits) -> Self {
        Self { limits, followed: 0 }
    }

    /// The directory at `path`, every component of which may be a symbolic link.
    ///
    /// # Errors
    ///
    /// When links lead in circles, a limit is passed, or, with [`Missing::Make`], a directory cannot be made.
    pub fn directory(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        missing: Missing,
    ) -> Result<Option<NodeId>, ResolveError> {
        let mut at = Tree::ROOT;
        let (mut depth, mut hops) = (0usize, 0);
        let mut pending: Vec<Vec<u8>> = Vec::new();
        push(&mut pending, path);
        while let Some(name) = pending.pop() {
            if name == b".." {
                at = tree.parent(at).unwrap_or(Tree::ROOT);
                depth = depth.saturating_sub(1);
                continue;
            }
            let Some(child) = tree.child(at, &name) else {
                if missing == Missing::Stop {
                    return Ok(None);
                }
                depth += 1;
                at = self.make(tree, at, &name, depth)?;
                continue;
            };
            match tree.find(child).map(|node| node.kind()) {
                Some(Kind::Directory) => {
                    at = child;
                    depth += 1;
                }
                Some(Kind::Symlink(target)) => {
                    hops += 1;
                    self.follow(target, hops)?;
                    if target.starts_with(b"/") {
                        (at, depth) = (Tree::ROOT, 0);
                    }
                    push(&mut pending, target);
                }
                _ if missing == Missing::Stop => return Ok(None),
                _ => return Err(ResolveError::NotDirectory(crate::path::display(&name))),
            }
        }
        Ok(Some(at))
    }

    /// What is at `path`, with links followed to the last.
    ///
    /// # Errors
    ///
    /// When links lead in circles or a limit is passed.
    pub fn node(&mut self, tree: &mut Tree, path: &[u8]) -> Result<Option<NodeId>, ResolveError> {
        let mut path = path.to_vec();
        for hops in 1.. {
            let Some((directory, name)) = self.place(tree, &path, Missing::Stop)? else {
                return self.directory(tree, &path, Missing::Stop);
            };
            let Some(node) = tree.child(directory, &name) else { return Ok(None) };
            let Some(Kind::Symlink(target)) = tree.find(node).map(|node| node.kind()) else {
                return Ok(Some(node));
            };
            self.follow(target, hops)?;
            let mut next = Vec::new();
            if !target.starts_with(b"/") {
                next = tree.path(directory).unwrap_or_default();
                next.push(b'/');
            }
            next.extend_from_slice(target);
            path = next;
        }
        Err(ResolveError::Loop)
    }

    /// The directory and the name that `path` stands for, without looking at what the name is. None for the root, for a
    /// path that ends in `..`, and when a directory is missing.
    ///
    /// # Errors
    ///
    /// As [`Resolver::directory`].
    pub fn place(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        missing: Missing,
    ) -> Result<Option<(NodeId, Vec<u8>)>, ResolveError> {
        let mut parts = components(path);
        let Some(name) = parts.next_back().filter(|name| *name != b"..") else { return Ok(None) };
        let parent = parts.collect::<Vec<_>>().join(&b'/');
        let directory = self.directory(tree, &parent, missing)?;
        Ok(directory.map(|directory| (directory, name.to_vec())))
    }

    fn make(
        &self,
        tree: &mut Tree,
        at: NodeId,
        name: &[u8],
        depth: usize,
    ) -> Result<NodeId, ResolveError> {
        if depth > self.limits.depth {
            return Err(ResolveError::Limit(Limit::Depth(self.limits.depth)));
        }
        if tree.len() as u64 > self.limits.entries {
            return Err(ResolveError::Limit(Limit::Entries(self.limits.entries)));
        }
        if name.starts_with(b".wh.") {
            return Err(ResolveError::Whiteout(crate::path::display(name)));
        }
        let metadata = Metadata::new(0o755, 0, 0);
        tree.insert(at, name, Kind::Directory, metadata).map_err(ResolveError::Tree)
    }

    fn follow(&mut self, target: &[u8], hops: usize) -> Result<(), ResolveError> {
        if hops > HOPS {
            return Err(ResolveError::Loop);
        }
        self.followed += target.len() as u64;
        if self.followed > self.limits.followed_bytes {
            return Err(ResolveError::Limit(Limit::FollowedBytes(self.limits.followed_bytes)));
        }
        Ok(())
    }
}

fn push(pending: &mut Vec<Vec<u8>>, path: &[u8]) {
    pending.extend(components(path).rev().map(<[u8]>::to_vec));
}
