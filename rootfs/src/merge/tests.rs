//! Layers over layers, written as lists of entries.

use super::*;

/// An entry from a short text: `d/` a directory, `f=data` a file of that size, `l->t` a symbolic link, `h=>t` a hard
/// link, `p|` a pipe. The file's size stands for its content.
fn entry(text: &str) -> Entry {
    let metadata = Metadata::new(0o644, 0, 0);
    let (path, kind) = if let Some((path, target)) = text.split_once("=>") {
        (path, layer::Kind::HardLink(target.into()))
    } else if let Some((path, target)) = text.split_once("->") {
        (path, layer::Kind::Symlink(target.into()))
    } else if let Some((path, size)) = text.split_once('=') {
        (path, layer::Kind::File { size: size.parse().expect("a size"), runs: Vec::new() })
    } else if let Some(path) = text.strip_suffix('/') {
        (path, layer::Kind::Directory)
    } else if let Some(path) = text.strip_suffix('|') {
        (path, layer::Kind::Fifo)
    } else {
        (text, layer::Kind::File { size: 0, runs: Vec::new() })
    };
    Entry { path: path.into(), metadata, kind }
}

fn merged(layers: &[&[&str]]) -> Result<Vec<String>, MergeError> {
    let limits = Limits { followed_bytes: 1 << 20, ..Limits::default() };
    let mut merge = Merge::new(&limits);
    for (at, layer) in layers.iter().enumerate() {
        let entries = layer.iter().map(|text| entry(text)).collect();
        merge.apply(ContentId(u32::try_from(at).expect("few")), entries)?;
    }
    Ok(listing(&merge.finish()))
}

/// What `entry` understands, in the order of paths; further names of a node as hard links to the first.
fn listing(tree: &Tree) -> Vec<String> {
    let mut first = std::collections::HashMap::new();
    let mut found = Vec::new();
    for entry in tree.walk(Tree::ROOT) {
        let mut path = tree.path(entry.directory).expect("a directory");
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(entry.name);
        let path = String::from_utf8(path).expect("tests use text");
        let node = tree.find(entry.node).expect("walked");
        if let Some(first) = first.get(&entry.node) {
            found.push(format!("{path}=>{first}"));
            continue;
        }
        found.push(match node.kind() {
            Kind::Directory => format!("{path}/"),
            Kind::File(data) => format!("{path}={}", data.size()),
            Kind::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            Kind::Fifo => format!("{path}|"),
            other => format!("{path} {other:?}"),
        });
        first.insert(entry.node, path);
    }
    found
}

fn check(layers: &[&[&str]], expected: &[&str]) {
    let found = merged(layers).unwrap_or_else(|error| panic!("{layers:?}: {error}"));
    assert_eq!(found, expected, "{layers:?}");
}

fn check_refused(layers: &[&[&str]], part: &str) {
    let error = merged(layers).expect_err("refused").to_string();
    assert!(error.contains(part), "{layers:?}: {error}");
}

#[test]
fn a_whiteout_hides_what_is_below_and_nothing_else() {
    check(&[&["a/", "a/x=1", "a/y=2"], &["a/", "a/.wh.x"]], &["a/", "a/y=2"]);
    check(&[&["a/", "a/x=1"], &[".wh.a"]], &[]);
    check(&[&["a=1"], &[".wh.b"]], &["a=1"]);
    check(&[&["a=1"], &["x/.wh.a"]], &["a=1"]);
    check(&[&[".wh.a", "a=1"]], &["a=1"]);
}

#[test]
fn whiteouts_do_not_depend_on_their_place_in_the_layer() {
    let below: &[&str] = &["a/", "a/old=1", "a/sub/", "a/sub/x=1"];
    let expected: &[&str] = &["a/", "a/new=2", "a/sub/", "a/sub/y=3"];
    check(&[below, &["a/", "a/.wh..wh..opq", "a/new=2", "a/sub/", "a/sub/y=3"]], expected);
    check(&[below, &["a/", "a/new=2", "a/sub/", "a/sub/y=3", "a/.wh..wh..opq"]], expected);
    check(&[below, &["a/sub/y=3", "a/.wh..wh..opq", "a/new=2"]], expected);
    check(&[&["a=1"], &["a=2", ".wh.a"]], &["a=2"]);
    check(&[&["a=1"], &[".wh.a", "a=2"]], &["a=2"]);
    check(&[&["a/", "a/x=1"], &["a/.wh.x", ".wh.a"]], &[]);
    check(&[&["b/", "b/x=1", "a->b"], &["a/.wh.x", ".wh.a"]], &["b/", "b/x=1"]);
    check(&[&["b/", "b/x=1", "a->b"], &[".wh.a", "a/.wh.x"]], &["b/", "b/x=1"]);
}

#[test]
fn a_whiteout_goes_through_links_unless_its_layer_replaces_them() {
    check(&[&["b/", "b/x=1", "a->b"], &["a/.wh.x"]], &["a->b", "b/"]);
    check(&[&["b/", "b/x=1", "a->/b"], &["a/.wh..wh..opq"]], &["a->/b", "b/"]);
    check(&[&["b/", "b/x=1", "a->b"], &["a/.wh.x", "a/"]], &["a/", "b/", "b/x=1"]);
    check(&[&["b/", "b/x=1", "a->b"], &["a/", "a/.wh..wh..opq"]], &["a/", "b/", "b/x=1"]);
}

#[test]
fn an_opaque_root_hides_all_layers_below() {
    check(&[&["a=1", "b/"], &["c=2"], &[".wh..wh..opq", "d=3"]], &["d=3"]);
}

#[test]
fn hostile_whiteouts_are_refused() {
    check_refused(&[&["a/.wh..."]], "whiteout of \"..\"");
    check_refused(&[&["a/.wh.."]], "whiteout of \".\"");
    check_refused(&[&[".wh."]], "whiteout of \"\"");
    check_refused(&[&["a/.wh.b/c=1"]], "below a whiteout");
    check_refused(&[&["a->.wh.b", "a/c=1"]], "the name of a whiteout");
}

#[test]
fn bookkeeping_of_old_union_file_systems_is_left_out() {
    check(&[&[".wh..wh.plnk/", ".wh..wh.plnk/1.2=1", "a=1", "a/.wh..wh.orph"]], &["a=1"]);
}

#[test]
fn a_later_entry_replaces_an_earlier_one_of_another_type() {
    check(&[&["a/", "a/x=1"], &["a=2"]], &["a=2"]);
    check(&[&["a=1"], &["a/", "a/x=2"]], &["a/", "a/x=2"]);
    check(&[&["b/", "a->b"], &["a/", "a/x=1"]], &["a/", "a/x=1", "b/"]);
    check(&[&["a->b"], &["a=1"]], &["a=1"]);
    check(&[&["a/", "a/x=1"], &["a/"]], &["a/", "a/x=1"]);
    check(&[&["a=1", "a=2", "a|"]], &["a|"]);
    check(&[&["a/", "a/x=1"], &["a->b"]], &["a->b"]);
}

#[test]
fn a_directory_that_comes_again_takes_the_new_metadata() {
    let limits = Limits::default();
    let mut merge = Merge::new(&limits);
    merge.apply(ContentId(0), vec![entry("a/"), entry("a/x=1")]).expect("merged");
    let mut again = entry("a/");
    again.metadata = Metadata::new(0o1777, 70_000, 80_000);
    let mut root = entry("/");
    root.path.clear();
    root.metadata.mode = 0o700;
    merge.apply(ContentId(1), vec![again.clone(), root]).expect("merged");
    let tree = merge.finish();
    let node = tree.at(b"a").and_then(|id| tree.find(id)).expect("there");
    assert_eq!(node.metadata, again.metadata);
    assert_eq!(tree.find(Tree::ROOT).expect("there").metadata.mode, 0o700);
    assert!(tree.at(b"a/x").is_some());
}

#[test]
fn missing_parents_are_always_the_same() {
    let limits = Limits::default();
    let mut merge = Merge::new(&limits);
    merge.apply(ContentId(0), vec![entry("a/b/c=1")]).expect("merged");
    let tree = merge.finish();
    for path in ["a", "a/b"] {
        let node = tree.at(path.as_bytes()).and_then(|id| tree.find(id)).expect("made");
        assert_eq!(node.metadata, Metadata::new(0o755, 0, 0));
    }
}

#[test]
fn parents_that_are_links_lead_inside_the_tree() {
    check(
        &[&["usr/lib/", "lib->usr/lib"], &["lib/x=1"]],
        &["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/x=1"],
    );
    check(&[&["a->/../../b", "b/"], &["a/x=1"]], &["a->/../../b", "b/", "b/x=1"]);
    check(&[&["a->../../../etc", "a/x=1"]], &["a->../../../etc", "etc/", "etc/x=1"]);
    check(&[&["d/", "d/a->../e", "e/", "d/a/x=1"]], &["d/", "d/a->../e", "e/", "e/x=1"]);
    check_refused(&[&["a->b", "b->a", "a/x=1"]], "40 symbolic links");
    check_refused(&[&["a->a", "a/x=1"]], "40 symbolic links");
    check_refused(&[&["a=1", "a/x=1"]], "\"a\" in it is not a directory");
    check_refused(&[&["a=1", "b->a", "b/x=1"]], "is not a directory");
}

#[test]
fn a_leaf_that_is_a_link_is_replaced_not_followed() {
    check(
        &[&["etc/", "etc/passwd=1", "a->etc/passwd"], &["a=2"]],
        &["a=2", "etc/", "etc/passwd=1"],
    );
}

#[test]
fn hard_links_bind_to_what_is_there_at_that_moment() {
    check(&[&["a=1", "b=>a"], &["a=2"]], &["a=2", "b=1"]);
    check(&[&["a=1"], &["b=>a"]], &["a=1", "b=>a"]);
    check(&[&["a->x", "b=>a"]], &["a->x", "b=>a"]);
    check(&[&["a=1", "a=>a"]], &["a=1"]);
    check(&[&["a=1", "b=2", "b=>a", "c=>b"]], &["a=1", "b=>a", "c=>a"]);
    check(&[&["a=1", "b=>a", ".wh.a"]], &["a=1", "b=>a"]);
    check(&[&["a=1", "b=>a"], &[".wh.a"]], &["b=1"]);
    check(&[&["d/", "d/a=1", "l->d", "b=>l/a"]], &["b=1", "d/", "d/a=>b", "l->d"]);
    check(&[&["d/e/b=>a", "a=1"]], &["a=1", "d/", "d/e/", "d/e/b=>a"]);
}

#[test]
fn hard_links_to_nothing_are_refused() {
    check_refused(&[&["b=>a"]], "hard link to \"a\", which is not there");
    check_refused(&[&["a=>b", "b=>a"]], "which is not there");
    check_refused(&[&["d/", "b=>d"]], "hard link to the directory");
    check_refused(&[&["a/", "a/x=1", "a=>a/x"]], "which is not there");
    check_refused(&[&["a=1"], &[".wh.a", "b=>a"]], "which is not there");
}

#[test]
fn the_root_stays_a_directory() {
    let limits = Limits::default();
    let mut root = entry("a=1");
    root.path.clear();
    let error = Merge::new(&limits).apply(ContentId(0), vec![root]).expect_err("refused");
    assert_eq!(error.fault, Fault::Root);
}

#[test]
fn long_detours_through_links_are_bounded() {
    let target = "x/../".repeat(800);
    let link = format!("l->{target}");
    let mut layer = vec!["x/".to_owned(), "y/".to_owned(), link];
    for at in 0..1000 {
        layer.push(format!("l/{at}=1"));
        layer.push(format!("y/{at}=1"));
    }
    let layer: Vec<&str> = layer.iter().map(String::as_str).collect();
    check_refused(&[&layer], "symbolic links followed");
}

#[test]
fn links_do_not_build_deeper_than_the_limit() {
    let deep = "d/".repeat(200);
    let link = format!("l->{deep}");
    let below = format!("l/{deep}x=1");
    check_refused(&[&[&link, &below]], "256 directories deep");
}

#[test]
fn missing_parents_count_as_entries() {
    let limits = Limits { entries: 100, ..Limits::default() };
    let mut merge = Merge::new(&limits);
    let entries = (0..10).map(|at| entry(&format!("{at}/{}x=1", "d/".repeat(50)))).collect();
    let error = merge.apply(ContentId(0), entries).expect_err("too many");
    assert!(error.to_string().contains("limit of 100 entries"), "{error}");
}
