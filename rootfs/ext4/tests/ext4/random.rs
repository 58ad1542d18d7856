//! Random trees: e2fsck finds nothing, what is read back is what was written, and threads do not show.

use openshell_ext4::tree::{
    Contents, FileData, Kind, MemoryContents, Metadata, Time, Tree, Xattrs,
};
use openshell_ext4::{Options, write};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::support::{BASE, Sparse, image, read_write, tree};

/// What is done to a tree, by numbers that pick among what there is.
#[derive(Debug, Clone)]
enum Step {
    Insert { directory: usize, name: Vec<u8>, kind: Kind, metadata: Metadata },
    Many { directory: usize, count: usize, length: usize },
    Link { directory: usize, name: Vec<u8>, node: usize },
    Remove { directory: usize, name: usize },
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    // Neither NUL nor one of the separators `.` and `/`.
    let byte = (1..=253_u8).prop_map(|byte| if byte < b'.' { byte } else { byte + 2 });
    prop_oneof![
        9 => vec(byte.clone(), 1..12),
        1 => vec(byte, 200..=255),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    let block = prop_oneof![Just(vec![0; 4096]), any::<u8>().prop_map(|byte| vec![byte; 4096])];
    let bytes = (vec(block, 0..12), vec(any::<u8>(), 0..100)).prop_map(|(blocks, tail)| {
        let mut bytes = blocks.concat();
        bytes.extend(tail);
        Kind::File(FileData::bytes(bytes))
    });
    let device = (0..0x1000_u32, 0..0x10_0000_u32)
        .prop_map(|(major, minor)| openshell_ext4::tree::Device { major, minor });
    prop_oneof![
        4 => Just(Kind::Directory),
        4 => bytes,
        1 => vec(1..=255_u8, 1..=100).prop_map(Kind::Symlink),
        1 => device.clone().prop_map(Kind::CharDevice),
        1 => device.prop_map(Kind::BlockDevice),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let prefix = prop_oneof![Just("user."), Just("trusted."), Just("security.")];
    let name =
        (prefix, "[a-z]{1,20}").prop_map(|(prefix, rest)| format!("{prefix}{rest}").into_bytes());
    let xattrs = prop_oneof![
        4 => Just(Xattrs::new()),
        1 => btree_map(name, vec(any::<u8>(), 0..300), 0..6),
    ];
    let time = (-(1_i64 << 32)..1 << 34, 0..1_000_000_000_u32)
        .prop_map(|(seconds, nanoseconds)| Time::new(seconds, nanoseconds).unwrap());
    (0..0o10000_u16, any::<u32>(), any::<u32>(), time, xattrs).prop_map(
        |(mode, uid, gid, modified, xattrs)| Metadata { mode, uid, gid, modified, xattrs },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (any::<usize>(), name(), kind(), metadata())
            .prop_map(|(directory, name, kind, metadata)| Step::Insert { directory, name, kind, metadata }),
        1 => (any::<usize>(), 1..600_usize, 8..250_usize)
            .prop_map(|(directory, count, length)| Step::Many { directory, count, length }),
        3 => (any::<usize>(), name(), any::<usize>())
            .prop_map(|(directory, name, node)| Step::Link { directory, name, node }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(directory, name)| Step::Remove { directory, name }),
    ]
}

/// Steps that cannot be done are left out.
fn grow(steps: &[Step]) -> Tree {
    let mut tree = tree();
    for step in steps {
        let mut directories = vec![Tree::ROOT];
        let mut others = Vec::new();
        for entry in tree.walk(Tree::ROOT) {
            let is_directory = tree.node(entry.node).unwrap().is_directory();
            if is_directory { directories.push(entry.node) } else { others.push(entry.node) }
        }
        let pick = |number: usize| directories[number % directories.len()];
        match step {
            Step::Insert { directory, name, kind, metadata } => {
                let _taken = tree.insert(pick(*directory), name, kind.clone(), metadata.clone());
            }
            Step::Many { directory, count, length } => {
                let directory = pick(*directory);
                for at in 0..*count {
                    let name = format!("{at:0length$}");
                    let metadata = Metadata::new(0o600, 1, 1);
                    let _taken = tree.insert(directory, name.as_bytes(), Kind::Fifo, metadata);
                }
            }
            Step::Link { directory, name, node } if !others.is_empty() => {
                let _taken = tree.link(pick(*directory), name, others[node % others.len()]);
            }
            Step::Link { .. } => {}
            Step::Remove { directory, name } => {
                let directory = pick(*directory);
                let count = tree.children(directory).len();
                let name = (count > 0)
                    .then(|| tree.children(directory).nth(name % count).unwrap().0.to_vec());
                if let Some(name) = name {
                    assert!(tree.remove(directory, &name));
                }
            }
        }
    }
    tree
}

proptest! {
    // `PROPTEST_CASES` asks for more. Names of attributes that come twice are drawn again, some at each thousand cases.
    #![proptest_config(ProptestConfig {
        cases: cases(200),
        max_local_rejects: u32::MAX,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_trees_come_back(steps in vec(step(), 0..60), disk in any::<bool>()) {
        let tree = grow(&steps);
        let options = if disk { read_write(256 << 20) } else { BASE };
        image(&tree, &MemoryContents::new(), &options);
    }

    #[test]
    fn threads_do_not_show(steps in vec(step(), 0..60)) {
        let tree = grow(&steps);
        for options in [BASE, read_write(256 << 20)] {
            same_for_any_threads(&tree, &MemoryContents::new(), &options);
        }
    }
}

pub(crate) fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

fn same_for_any_threads(tree: &Tree, contents: &dyn Contents, options: &Options) {
    let images = [1, 2, 8].map(|threads| {
        let sparse = Sparse::default();
        write(tree, contents, &sparse, &Options { threads, ..*options }).unwrap();
        sparse.blocks()
    });
    assert!(images[0] == images[1] && images[0] == images[2], "threads show");
}

#[test]
fn threads_do_not_show_in_large_images() {
    let mut contents = MemoryContents::new();
    let id = contents.add((0..20 << 20).map(|at: u32| (at / 5000) as u8).collect());
    let mut tree = tree();
    for at in 0..3000_u64 {
        let directory = format!("d{}", at % 50);
        let above = match tree.at(directory.as_bytes()) {
            Some(node) => node,
            None => tree
                .insert(
                    Tree::ROOT,
                    directory.as_bytes(),
                    Kind::Directory,
                    Metadata::new(0o755, 0, 0),
                )
                .unwrap(),
        };
        let length = if at % 500 == 0 { 5 << 20 } else { at * 7 };
        let data = FileData::stored(id, at * 3, length);
        tree.insert(above, at.to_string().as_bytes(), Kind::File(data), Metadata::new(0o644, 0, 0))
            .unwrap();
    }
    same_for_any_threads(&tree, &contents, &BASE);
    same_for_any_threads(&tree, &contents, &read_write(1 << 30));
}

#[test]
fn the_order_of_building_does_not_show() {
    let names: Vec<String> = (0..500).map(|at| format!("name-{at}")).collect();
    let build = |step: usize| {
        let mut tree = tree();
        for at in 0..names.len() {
            let name = &names[at * step % names.len()];
            let metadata = Metadata::new(0o644, 0, 0);
            let data = FileData::bytes(name.clone().into_bytes());
            tree.insert(Tree::ROOT, name.as_bytes(), Kind::File(data), metadata).unwrap();
        }
        let sparse = Sparse::default();
        write(&tree, &MemoryContents::new(), &sparse, &BASE).unwrap();
        sparse.blocks()
    };
    assert!(build(1) == build(7) && build(1) == build(499));
}
