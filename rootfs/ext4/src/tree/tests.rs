use super::{
    ContentId, Device, FileData, HoleFinder, Holes, Kind, MemoryContents, Metadata, Piece, Source,
    Time, Tree, TreeError,
};

fn tree() -> Tree {
    Tree::new(Metadata::new(0o755, 0, 0))
}

fn plain() -> Metadata {
    Metadata::new(0o644, 1, 2)
}

#[test]
fn names_kinds_and_times_are_checked() {
    let mut tree = tree();
    let long = [b'n'; 256];
    for (name, wrong) in [
        (&b""[..], TreeError::Name(vec![])),
        (b".", TreeError::Name(b".".to_vec())),
        (b"..", TreeError::Name(b"..".to_vec())),
        (b"a/b", TreeError::Name(b"a/b".to_vec())),
        (b"a\0b", TreeError::Name(b"a\0b".to_vec())),
        (&long, TreeError::NameLength(256)),
    ] {
        assert_eq!(tree.insert(Tree::ROOT, name, Kind::Fifo, plain()), Err(wrong));
    }
    tree.insert(Tree::ROOT, &long[..255], Kind::Fifo, plain()).unwrap();
    tree.insert(Tree::ROOT, b"\xff\n", Kind::Socket, plain()).unwrap();
    let device = Device { major: 0x1000, minor: 0 };
    for (kind, wrong) in [
        (Kind::Symlink(vec![]), TreeError::Target(0)),
        (Kind::Symlink(vec![b'a'; 4096]), TreeError::Target(4096)),
        (Kind::Symlink(b"a\0".to_vec()), TreeError::Target(2)),
        (Kind::CharDevice(device), TreeError::Device(device)),
    ] {
        assert_eq!(tree.insert(Tree::ROOT, b"x", kind, plain()), Err(wrong));
    }
    assert_eq!(tree.len(), 3);
    assert_eq!(Time::new(0, 1_000_000_000), Err(TreeError::Nanoseconds(1_000_000_000)));
}

#[test]
fn a_hard_link_is_a_second_name() {
    let mut tree = tree();
    let usr = tree.insert(Tree::ROOT, b"usr", Kind::Directory, plain()).unwrap();
    let file = tree.insert(usr, b"a", Kind::File(FileData::empty()), plain()).unwrap();
    tree.link(Tree::ROOT, b"b", file).unwrap();
    assert_eq!(tree.link(Tree::ROOT, b"b", file), Err(TreeError::Exists(b"b".to_vec())));
    assert_eq!(tree.link(Tree::ROOT, b"c", usr), Err(TreeError::LinkToDirectory(usr)));
    assert_eq!(tree.link(file, b"c", file), Err(TreeError::NotDirectory(file)));
    assert_eq!(tree.node(file).unwrap().names(), 2);
    assert!(tree.remove(usr, b"a"));
    assert!(!tree.remove(usr, b"a"));
    assert_eq!(tree.node(file).unwrap().names(), 1);
    assert!(tree.remove(Tree::ROOT, b"b"));
    assert_eq!(tree.node(file).unwrap_err(), TreeError::Gone(file));
    assert_eq!(tree.len(), 2);
}

#[test]
fn removing_a_directory_removes_what_only_it_names() {
    let mut tree = tree();
    let mut at = Tree::ROOT;
    for _ in 0..200_000 {
        at = tree.insert(at, b"d", Kind::Directory, plain()).unwrap();
    }
    let kept = tree.insert(at, b"kept", Kind::Fifo, plain()).unwrap();
    tree.link(Tree::ROOT, b"kept", kept).unwrap();
    assert_eq!(tree.path(at).unwrap().len(), 399_999);
    assert_eq!(tree.walk(Tree::ROOT).map(|entry| entry.depth).max(), Some(200_000));
    assert_eq!(tree.node(Tree::ROOT).unwrap().directories(), 1);
    assert!(tree.remove(Tree::ROOT, b"d"));
    assert_eq!(tree.len(), 2);
    assert_eq!(tree.node(Tree::ROOT).unwrap().directories(), 0);
    assert_eq!(tree.node(kept).unwrap().names(), 1);
    assert_eq!(tree.insert(at, b"x", Kind::Fifo, plain()), Err(TreeError::Gone(at)));
}

#[test]
fn a_walk_is_in_the_order_of_bytes_however_the_tree_was_built() {
    let paths: [&[u8]; 6] = [b"a", b"a/b", b"a/b/c", b"a.", b"b", b"\xff"];
    for turn in 0..paths.len() {
        let mut tree = tree();
        let mut order = paths;
        order.rotate_left(turn);
        order.sort_by_key(|path| path.iter().filter(|byte| **byte == b'/').count());
        for path in order {
            let slash = path.iter().rposition(|byte| *byte == b'/');
            let (above, name) = slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
            let above = tree.at(above).unwrap();
            tree.insert(above, name, Kind::Directory, plain()).unwrap();
        }
        let walked: Vec<Vec<u8>> =
            tree.walk(Tree::ROOT).map(|entry| tree.path(entry.node).unwrap()).collect();
        let expected: [&[u8]; 6] = [b"a", b"a/b", b"a/b/c", b"a.", b"b", b"\xff"];
        assert_eq!(walked, expected);
    }
}

#[test]
fn clearing_keeps_the_directory() {
    let mut tree = tree();
    let directory = tree.insert(Tree::ROOT, b"d", Kind::Directory, plain()).unwrap();
    tree.insert(directory, b"e", Kind::Directory, plain()).unwrap();
    tree.clear(directory).unwrap();
    assert_eq!(tree.len(), 2);
    assert_eq!(tree.node(directory).unwrap().directories(), 0);
    assert_eq!(tree.children(directory).len(), 0);
}

#[test]
fn pieces_are_checked() {
    let piece = |at, length| Piece { at, length, source: Source::Stored(ContentId(0), 0) };
    let bytes = Piece { at: 0, length: 3, source: Source::Bytes(Vec::from(*b"ab").into()) };
    for (pieces, wrong) in [
        (vec![piece(0, 0)], 0),
        (vec![piece(0, 11)], 0),
        (vec![piece(5, 6)], 5),
        (vec![piece(u64::MAX, 2)], u64::MAX),
        (vec![piece(0, 4), piece(3, 1)], 3),
        (vec![piece(4, 1), piece(3, 1)], 3),
        (vec![bytes], 0),
    ] {
        assert_eq!(FileData::new(10, pieces, Holes::Known), Err(TreeError::Piece(wrong)));
    }
    FileData::new(10, vec![piece(0, 4), piece(4, 6)], Holes::Known).unwrap();
}

#[test]
fn reading_fills_holes_with_zeros() {
    let mut contents = MemoryContents::new();
    let id = contents.add(b"..abcdef".to_vec());
    let pieces = vec![
        Piece { at: 2, length: 3, source: Source::Stored(id, 2) },
        Piece { at: 7, length: 2, source: Source::Bytes(Vec::from(*b"XY").into()) },
    ];
    let data = FileData::new(12, pieces, Holes::Known).unwrap();
    let whole = b"\0\0abc\0\0XY\0\0\0";
    for from in 0..=whole.len() {
        for to in from..=whole.len() {
            let mut into = vec![0x55; to - from];
            data.read_at(&contents, from as u64, &mut into).unwrap();
            assert_eq!(into, whole[from..to]);
        }
    }
    let late = FileData::stored(id, 6, 3);
    assert!(late.read_at(&contents, 0, &mut [0; 3]).is_err());
}

#[test]
fn holes_are_found_block_by_block_however_the_bytes_arrive() {
    let mut file = vec![0; 5 * 4096 + 10];
    file[4096] = 1;
    file[2 * 4096 - 1] = 1;
    file[4 * 4096 - 1] = 1;
    file[5 * 4096 + 9] = 1;
    for step in [1, 7, 4095, 4096, 4097, 100_000] {
        let mut finder = HoleFinder::new(ContentId(3), 100);
        file.chunks(step).for_each(|chunk| finder.feed(chunk));
        let data = finder.finish();
        let found: Vec<_> = data.pieces().iter().map(|piece| (piece.at, piece.length)).collect();
        assert_eq!(found, [(4096, 4096), (3 * 4096, 4096), (5 * 4096, 10)]);
        let sources: Vec<_> = data.pieces().iter().map(|piece| piece.source.clone()).collect();
        let at = [4196, 3 * 4096 + 100, 5 * 4096 + 100];
        assert_eq!(sources, at.map(|offset| Source::Stored(ContentId(3), offset)));
        assert_eq!((data.size(), data.holes()), (file.len() as u64, Holes::Known));
    }
}

#[test]
fn skipped_bytes_have_none_in_the_source() {
    let mut finder = HoleFinder::new(ContentId(0), 0);
    finder.feed(b"ab");
    finder.skip(10_000);
    finder.feed(b"cd");
    finder.skip(5);
    let data = finder.finish();
    let found: Vec<_> =
        data.pieces().iter().map(|piece| (piece.at, piece.length, piece.source.clone())).collect();
    let stored = |offset| Source::Stored(ContentId(0), offset);
    assert_eq!(found, [(0, 2, stored(0)), (10_002, 2, stored(2))]);
    assert_eq!(data.size(), 10_009);
}
