//! The files of a tree as a tar archive.

use std::collections::HashMap;
use std::io::{self, Write};

use openshell_ext4::tree::{Contents, FileData, Kind, NodeId, Tree};

use crate::tar::{self, END, Entry, Extent, encode, padding};

/// A file of which less than this is missing is written whole: other programs read that more often.
const HOLES_MIN: u64 = 1 << 20;

/// Writes all files of a tree, directories before what is in them, in the order of their names. Sockets are left out.
///
/// # Errors
///
/// When the archive cannot be written or the data of a file cannot be read.
pub fn export_tar(tree: &Tree, contents: &dyn Contents, out: &mut dyn Write) -> io::Result<()> {
    let mut first: HashMap<NodeId, Vec<u8>> = HashMap::new();
    entry(tree, contents, Tree::ROOT, Vec::new(), &mut first, out)?;
    for found in tree.walk(Tree::ROOT) {
        let mut path = tree.path(found.directory).unwrap_or_default();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(found.name);
        entry(tree, contents, found.node, path, &mut first, out)?;
    }
    out.write_all(&END)
}

fn entry(
    tree: &Tree,
    contents: &dyn Contents,
    id: NodeId,
    path: Vec<u8>,
    first: &mut HashMap<NodeId, Vec<u8>>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Some(node) = tree.find(id) else { return Ok(()) };
    let mut data = None;
    let kind = match node.kind() {
        _ if first.contains_key(&id) => tar::Kind::HardLink(first[&id].clone()),
        Kind::Directory => tar::Kind::Directory,
        Kind::File(file) => {
            data = Some(file);
            tar::Kind::File { size: file.size(), sparse: sparse(file) }
        }
        Kind::Symlink(target) => tar::Kind::Symlink(target.clone()),
        Kind::CharDevice(device) => tar::Kind::CharDevice(*device),
        Kind::BlockDevice(device) => tar::Kind::BlockDevice(*device),
        Kind::Fifo => tar::Kind::Fifo,
        Kind::Socket => return Ok(()),
    };
    let link = matches!(kind, tar::Kind::HardLink(_));
    if !link && node.names() > 1 {
        first.insert(id, path.clone());
    }
    let entry = Entry { path, kind, metadata: node.metadata.clone() };
    out.write_all(&encode(&entry))?;
    let (Some(data), tar::Kind::File { size, sparse }) = (data.filter(|_| !link), entry.kind)
    else {
        return Ok(());
    };
    let extents = sparse.unwrap_or_else(|| vec![Extent { offset: 0, length: size }]);
    let stored: u64 = extents.iter().map(|extent| extent.length).sum();
    for extent in extents {
        copy(data, contents, extent, out)?;
    }
    out.write_all(&[0; 512][..padding(stored)])
}

/// The runs of a file that is worth being written as a sparse one.
fn sparse(file: &FileData) -> Option<Vec<Extent>> {
    let stored: u64 = file.pieces().iter().map(|piece| piece.length).sum();
    if file.size() - stored < HOLES_MIN {
        return None;
    }
    let extent =
        |piece: &openshell_ext4::tree::Piece| Extent { offset: piece.at, length: piece.length };
    Some(file.pieces().iter().map(extent).collect())
}

fn copy(
    data: &FileData,
    contents: &dyn Contents,
    extent: Extent,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(extent.length.min(1 << 20)).expect("at most 1 MiB")];
    let mut done = 0;
    while done < extent.length {
        let wanted = (extent.length - done).min(buffer.len() as u64);
        let part = &mut buffer[..usize::try_from(wanted).expect("at most 1 MiB")];
        data.read_at(contents, extent.offset + done, part)?;
        out.write_all(part)?;
        done += wanted;
    }
    Ok(())
}
