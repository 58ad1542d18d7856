//! A tree from an image.

use std::collections::HashMap;

use super::{Fault, Image, Inode, Input, ReadError, SELF};
use crate::bytes::get32;
use crate::checksum;
use crate::format::{BLOCK, FAST_SYMLINK_MAX, inode, number, xattr as on_disk};
use crate::tree::{
    FileData, Holes, Kind, Metadata, NodeId, Piece, Source, TARGET_MAX, Tree, Xattrs, is_zero,
};
use crate::xattr;

impl<I: Input> Image<I> {
    /// The whole tree, `lost+found` included. Its files refer to the image, which is the [`Contents`](crate::Contents) of the tree.
    /// Fails with the first fault when [`check`](Self::check) finds one: the tree of a faulty image would be a guess.
    pub fn read_tree(&self) -> Result<Tree, ReadError> {
        if let Some(fault) = self.check()?.faults().first() {
            return Err((*fault).into());
        }
        let root = self.inode(number::ROOT)?;
        let mut tree = Tree::new(self.metadata(&root)?);
        let mut nodes: HashMap<u32, NodeId> = HashMap::new();
        let mut open = vec![(root, Tree::ROOT)];
        while let Some((directory, at)) = open.pop() {
            let own = directory.number;
            let wrong = move |_| Fault::inode(own, "it has a name or a target that cannot be");
            for leaf in self.listing(&directory)?.leaves {
                if let Some(node) = nodes.get(&leaf.number) {
                    tree.link(at, &leaf.name, *node).map_err(wrong)?;
                    continue;
                }
                let inode = self.inode(leaf.number)?;
                let (kind, metadata) = (self.kind(&inode)?, self.metadata(&inode)?);
                let node = tree.insert(at, &leaf.name, kind, metadata).map_err(wrong)?;
                if inode.is(inode::DIRECTORY) {
                    open.push((inode, node));
                } else if inode.links > 1 {
                    nodes.insert(leaf.number, node);
                }
            }
        }
        Ok(tree)
    }

    /// Mode, owner, time and extended attributes of the root directory, without a look at anything else.
    pub fn root(&self) -> Result<Metadata, ReadError> {
        self.metadata(&self.inode(number::ROOT)?)
    }

    fn metadata(&self, inode: &Inode) -> Result<Metadata, ReadError> {
        Ok(Metadata {
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            modified: inode.modified,
            xattrs: self.xattrs(inode)?.0,
        })
    }

    /// The extended attributes of an inode, and how many inodes share their block.
    pub(crate) fn xattrs(&self, inode: &Inode) -> Result<(Xattrs, u32), ReadError> {
        let mut xattrs = Xattrs::new();
        let wrong = |what| Fault::inode(inode.number, what);
        xattr::read_inode(&inode.bytes, &mut xattrs).map_err(wrong)?;
        if inode.xattr_block == 0 {
            return Ok((xattrs, 0));
        }
        if inode.xattr_block >= self.shape().blocks {
            return Err(wrong("its block of extended attributes lies past the end").into());
        }
        let block = self.block(inode.xattr_block)?;
        let sum = checksum::of_xattr_block(self.shape().seed, inode.xattr_block, &block);
        if self.differ(sum, get32(&block, on_disk::BLOCK_CHECKSUM)) {
            let what = "checksum of a block of extended attributes does not match";
            return Err(Fault::block(inode.xattr_block, what).into());
        }
        let shared = xattr::read_block(&block, &mut xattrs).map_err(wrong)?;
        Ok((xattrs, shared))
    }

    fn kind(&self, inode: &Inode) -> Result<Kind, ReadError> {
        Ok(match inode.mode & inode::TYPE {
            inode::DIRECTORY => Kind::Directory,
            inode::SYMLINK => Kind::Symlink(self.target(inode)?),
            inode::CHAR_DEVICE => Kind::CharDevice(inode.device()),
            inode::BLOCK_DEVICE => Kind::BlockDevice(inode.device()),
            inode::FIFO => Kind::Fifo,
            inode::SOCKET => Kind::Socket,
            _ => Kind::File(self.data(inode)?),
        })
    }

    fn data(&self, inode: &Inode) -> Result<FileData, ReadError> {
        let mut pieces = Vec::new();
        for run in self.map(inode)?.runs.iter().filter(|run| run.written) {
            let at = run.start_bytes();
            let length = (run.length * BLOCK as u64).min(inode.size.saturating_sub(at));
            if length > 0 {
                let source = Source::Stored(SELF, run.physical * BLOCK as u64);
                pieces.push(Piece { at, length, source });
            }
        }
        let data = FileData::new(inode.size, pieces, Holes::Known);
        Ok(data.map_err(|_| Fault::inode(inode.number, "its extents overlap"))?)
    }

    /// The target of a symbolic link.
    pub(crate) fn target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let wrong = |what| ReadError::from(Fault::inode(inode.number, what));
        let length = usize::try_from(inode.size).unwrap_or(usize::MAX);
        let mut target = if inode.has_extents() {
            let map = self.map(inode)?;
            match map.runs[..] {
                [run] if run.logical == 0 && run.length == 1 && run.written => {
                    self.block(run.physical)?.to_vec()
                }
                _ => return Err(wrong("its target does not stand in one block")),
            }
        } else {
            inode.map.to_vec()
        };
        let longest = if inode.has_extents() { TARGET_MAX } else { FAST_SYMLINK_MAX };
        if length == 0 || length > longest || target[length] != 0 || target[..length].contains(&0) {
            return Err(wrong("its target is not as long as its size"));
        }
        if !is_zero(&target[length..]) {
            return Err(wrong("there is something behind its target"));
        }
        target.truncate(length);
        Ok(target)
    }
}
