//! Images with and without what a sandbox needs.

use openshell_ext4::tree::MemoryContents;

use super::*;

const NONE: MemoryContents = MemoryContents::new();

fn tree_of(entries: &[(&str, Kind)]) -> Tree {
    let limits = Limits::default();
    let mut tree = Tree::new(Metadata::new(0o755, 0, 0));
    let mut resolver = Resolver::new(&limits);
    for (path, kind) in entries {
        let place = resolver.place(&mut tree, path.as_bytes(), Missing::Make);
        let (directory, name) = place.expect("a path").expect("a name");
        tree.insert(directory, &name, kind.clone(), Metadata::new(0o600, 5, 6)).expect("new");
    }
    tree
}

fn file(text: &str) -> Kind {
    Kind::File(FileData::bytes(text.as_bytes().to_vec()))
}

fn link(target: &str) -> Kind {
    Kind::Symlink(target.into())
}

fn apply(tree: &mut Tree) -> Result<(), LayoutError> {
    Editor::new(tree, &Limits::default()).apply(&Layout::default(), &NONE)
}

fn text_at(tree: &Tree, path: &str) -> String {
    let node = tree.at(path.as_bytes()).and_then(|id| tree.find(id)).expect("there");
    let Kind::File(data) = node.kind() else { panic!("{path} is a file") };
    let mut text = vec![0; usize::try_from(data.size()).expect("small")];
    data.read_at(&NONE, 0, &mut text).expect("in memory");
    String::from_utf8(text).expect("text")
}

fn owner(tree: &Tree, path: &str) -> (u16, u32, u32) {
    let id = tree.at(path.as_bytes()).expect("there");
    let metadata = &tree.find(id).expect("there").metadata;
    (metadata.mode, metadata.uid, metadata.gid)
}

#[test]
fn an_empty_image_gets_a_user_a_home_and_mount_points() {
    let mut tree = tree_of(&[]);
    apply(&mut tree).expect("applied");
    let passwd = "root:x:0:0:root:/root:/bin/sh\nsandbox:x:10001:10001:sandbox:/sandbox:/bin/sh\n";
    assert_eq!(text_at(&tree, "etc/passwd"), passwd);
    assert_eq!(text_at(&tree, "etc/group"), "root:x:0:\nsandbox:x:10001:\n");
    assert!(tree.at(b"etc/shadow").is_none());
    assert_eq!(owner(&tree, "sandbox"), (0o755, 10001, 10001));
    assert_eq!(owner(&tree, "tmp"), (0o1777, 0, 0));
    assert_eq!(owner(&tree, "proc"), (0o555, 0, 0));
    assert_eq!(owner(&tree, "opt/openshell"), (0o755, 0, 0));
}

#[test]
fn accounts_are_added_behind_those_of_the_image() {
    let mut tree = tree_of(&[
        ("etc/passwd", file("root:x:0:0::/:/bin/bash")),
        ("etc/group", file("root:x:0:\n")),
        ("etc/shadow", file("root:*:1::::::\n")),
        ("etc/gshadow", file("")),
        ("tmp", Kind::Directory),
    ]);
    apply(&mut tree).expect("applied");
    let passwd = "root:x:0:0::/:/bin/bash\nsandbox:x:10001:10001:sandbox:/sandbox:/bin/sh\n";
    assert_eq!(text_at(&tree, "etc/passwd"), passwd);
    assert_eq!(text_at(&tree, "etc/shadow"), "root:*:1::::::\nsandbox:!:::::::\n");
    assert_eq!(text_at(&tree, "etc/gshadow"), "sandbox:!::\n");
    assert_eq!(owner(&tree, "etc/passwd"), (0o600, 5, 6));
    assert_eq!(owner(&tree, "tmp"), (0o600, 5, 6));
}

#[test]
fn a_user_of_the_image_wins() {
    let passwd = "sandbox:x:1234:77:me:/home/me:/bin/zsh\n";
    let mut tree = tree_of(&[("etc/passwd", file(passwd)), ("sandbox", Kind::Directory)]);
    apply(&mut tree).expect("applied");
    assert_eq!(text_at(&tree, "etc/passwd"), passwd);
    assert_eq!(owner(&tree, "sandbox"), (0o600, 1234, 77));
    let mut tree = tree_of(&[("etc/group", file("sandbox:x:55:\n"))]);
    apply(&mut tree).expect("applied");
    assert!(text_at(&tree, "etc/passwd").contains("sandbox:x:10001:55:"));
    assert_eq!(owner(&tree, "sandbox"), (0o755, 10001, 55));
}

#[test]
fn links_are_followed_inside_the_tree() {
    let mut tree = tree_of(&[
        ("etc/passwd", link("/../../usr/share/passwd")),
        ("usr/share/passwd", file("")),
        ("tmp", link("var/tmp")),
        ("var/tmp", Kind::Directory),
    ]);
    apply(&mut tree).expect("applied");
    assert!(text_at(&tree, "usr/share/passwd").starts_with("sandbox:"));
    assert!(matches!(
        tree.find(tree.at(b"tmp").expect("there")).expect("there").kind(),
        Kind::Symlink(_)
    ));
}

#[test]
fn what_is_in_the_way_is_named() {
    let big = "x".repeat(2 << 20);
    for (path, kind, part) in [
        ("etc/passwd", Kind::Fifo, "/etc/passwd of the image is not a regular file"),
        ("etc/passwd", Kind::Directory, "/etc/passwd of the image is not a regular file"),
        ("etc/passwd", file(&big), "/etc/passwd of the image has more than"),
        ("etc/passwd", link("nowhere"), "it leads nowhere"),
        ("etc/passwd", link("passwd"), "/etc/passwd of the image cannot be followed"),
        ("sandbox", file(""), "/sandbox of the image cannot be followed"),
        ("proc", Kind::Fifo, "/proc of the image cannot be followed"),
    ] {
        let error = apply(&mut tree_of(&[(path, kind)])).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn files_of_the_caller_go_where_they_shall() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = directory.path().join("tool");
    std::fs::write(&source, b"program").expect("written");
    let add = |tree: &mut Tree, target: &str| {
        let addition = Addition::open(source.clone(), target.as_bytes(), 0o4755, 1, 2);
        let limits = Limits::default();
        Editor::new(tree, &limits).add(&addition.expect("opened"), ContentId(9))
    };
    let mut tree = tree_of(&[("bin", link("usr/bin")), ("usr/bin/tool", file("old"))]);
    add(&mut tree, "/bin/tool").expect("added");
    assert_eq!(owner(&tree, "usr/bin/tool"), (0o4755, 1, 2));
    let node = tree.find(tree.at(b"usr/bin/tool").expect("there")).expect("there");
    assert_eq!(node.kind(), &Kind::File(FileData::stored(ContentId(9), 0, 7)));
    let error = add(&mut tree, "/usr/bin").expect_err("a directory").to_string();
    assert!(error.contains("/usr/bin of the image is not a file"), "{error}");
    let error = add(&mut tree, "/usr/../x").expect_err("climbs").to_string();
    assert!(error.contains("cannot be a path"), "{error}");
}
