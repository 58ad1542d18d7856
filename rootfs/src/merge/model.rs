//! Random layers, merged by the rules written down once more: a flat map of paths, searched from its beginning for everything.
//!
//! `PROPTEST_CASES` asks for more than the 200 cases of continuous integration.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What a path of the model stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    /// Unique, but for several names of one node.
    node: usize,
    kind: layer::Kind,
    uid: u32,
}

/// Paths from the root, without a leading slash.
#[derive(Debug, Clone, Default)]
struct Model {
    items: BTreeMap<String, Item>,
    made: usize,
}

/// The entry is to be refused.
#[derive(Debug, PartialEq, Eq)]
struct Refused;

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

fn cut(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the layers are text")
}

impl Model {
    /// Lays a layer over the others. Fails with the number of the entry that is refused.
    fn apply(&mut self, entries: &[Entry]) -> Result<(), usize> {
        let paths: Vec<String> = entries.iter().map(|entry| text(&entry.path)).collect();
        let is_whiteout = |path: &str| cut(path).1.starts_with(".wh.");
        let mut whiteouts: Vec<usize> =
            (0..paths.len()).filter(|at| is_whiteout(&paths[*at])).collect();
        whiteouts.sort_by_key(|at| (paths[*at].matches('/').count(), &paths[*at]));
        for at in whiteouts {
            self.hide(&paths[at], &paths).map_err(|Refused| at)?;
        }
        let mut early = Vec::new();
        for (at, entry) in entries.iter().enumerate().filter(|(at, _)| !is_whiteout(&paths[*at])) {
            if !self.place(&paths[at], entry).map_err(|Refused| at)? {
                early.push(at);
            }
        }
        for at in early {
            if !self.place(&paths[at], &entries[at]).map_err(|Refused| at)? {
                return Err(at);
            }
        }
        Ok(())
    }

    fn hide(&mut self, whiteout: &str, own: &[String]) -> Result<(), Refused> {
        let (parent, name) = cut(whiteout);
        let mut at = String::new();
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            at = join(&at, part);
            match self.items.get(&at).map(|item| &item.kind) {
                Some(layer::Kind::Directory) => {}
                Some(layer::Kind::Symlink(_)) if own.contains(&at) => return Ok(()),
                _ => break,
            }
        }
        let Some(directory) = self.directory(parent, false)? else { return Ok(()) };
        if name == ".wh..wh..opq" {
            let above = join(&directory, "");
            self.items.retain(|path, _| path != &above && !path.starts_with(&above));
        } else {
            self.remove(&join(&directory, name.strip_prefix(".wh.").expect("a whiteout")));
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.items.retain(|other, _| other != path && !other.starts_with(&below));
    }

    /// Whether it could be placed: a link waits for its target.
    fn place(&mut self, path: &str, entry: &Entry) -> Result<bool, Refused> {
        let (parent, name) = cut(path);
        let directory = self.directory(parent, true)?.expect("it is made");
        let place = join(&directory, name);
        let existing = self.items.get(&place).cloned();
        let item = if let layer::Kind::HardLink(target) = &entry.kind {
            let target = text(target);
            let (parent, name) = cut(&target);
            let directory = if name.is_empty() { None } else { self.directory(parent, false)? };
            let found = directory.and_then(|directory| self.items.get(&join(&directory, name)));
            let Some(found) = found.cloned() else { return Ok(false) };
            if found.kind == layer::Kind::Directory {
                return Err(Refused);
            }
            if existing.is_some_and(|existing| existing.node == found.node) {
                return Ok(true);
            }
            self.remove(&place);
            if self.items.values().all(|other| other.node != found.node) {
                return Err(Refused);
            }
            found
        } else {
            let both = |existing: &Item| {
                existing.kind == layer::Kind::Directory && entry.kind == layer::Kind::Directory
            };
            if !existing.as_ref().is_some_and(both) {
                self.remove(&place);
            }
            self.made += 1;
            Item { node: self.made, kind: entry.kind.clone(), uid: entry.metadata.uid }
        };
        self.items.insert(place, item);
        Ok(true)
    }

    /// The directory that a path leads to, through links and no further than the root.
    fn directory(&mut self, path: &str, make: bool) -> Result<Option<String>, Refused> {
        let parts = |path: &str| {
            let parts = path.split('/').filter(|part| !["", "."].contains(part));
            parts.rev().map(str::to_owned).collect::<Vec<String>>()
        };
        let (mut at, mut left, mut links) = (String::new(), parts(path), 0);
        while let Some(part) = left.pop() {
            if part == ".." {
                at = cut(&at).0.to_owned();
                continue;
            }
            let next = join(&at, &part);
            match self.items.get(&next).map(|item| item.kind.clone()) {
                Some(layer::Kind::Directory) => at = next,
                Some(layer::Kind::Symlink(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Refused);
                    }
                    let target = text(&target);
                    if target.starts_with('/') {
                        at.clear();
                    }
                    left.extend(parts(&target));
                }
                None if make => {
                    self.made += 1;
                    let kind = layer::Kind::Directory;
                    self.items.insert(next.clone(), Item { node: self.made, kind, uid: 0 });
                    at = next;
                }
                Some(_) if make => return Err(Refused),
                _ => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Each path with what it is, and the first path of its node.
    fn listing(&self) -> Vec<String> {
        let first = |node: usize| self.items.iter().find(|(_, item)| item.node == node);
        let line = |(path, item): (&String, &Item)| {
            let first = first(item.node).expect("it is there itself").0;
            format!("{path} {:?} {} as {first}", item.kind, item.uid)
        };
        self.items.iter().map(line).collect()
    }
}

/// The same of a tree.
fn listing(tree: &Tree) -> Vec<String> {
    let mut first = BTreeMap::new();
    let mut all = BTreeMap::new();
    for entry in tree.walk(Tree::ROOT) {
        let directory = text(&tree.path(entry.directory).expect("a directory"));
        all.insert(join(&directory, &text(entry.name)), entry.node);
    }
    let line = |(path, id): (&String, &NodeId)| {
        let first = first.entry(*id).or_insert_with(|| path.clone());
        let node = tree.find(*id).expect("walked");
        let kind = match node.kind() {
            Kind::Directory => layer::Kind::Directory,
            Kind::Symlink(target) => layer::Kind::Symlink(target.clone()),
            Kind::File(data) => layer::Kind::File { size: data.size(), runs: Vec::new() },
            _ => layer::Kind::Fifo,
        };
        format!("{path} {kind:?} {} as {first}", node.metadata.uid)
    };
    all.iter().map(line).collect()
}

/// Few names, so that entries meet.
fn path() -> impl Strategy<Value = String> {
    vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
}

fn some_entry() -> impl Strategy<Value = Entry> {
    let target =
        (prop_oneof![Just(""), Just("/"), Just("../"), Just("./"), Just("a/../../")], path());
    let kind = prop_oneof![
        6 => Just(Some(layer::Kind::Directory)),
        6 => (0..1000_u64).prop_map(|size| Some(layer::Kind::File { size, runs: Vec::new() })),
        3 => target.prop_map(|(up, path)| Some(layer::Kind::Symlink((up.to_owned() + &path).into()))),
        4 => path().prop_map(|path| Some(layer::Kind::HardLink(path.into()))),
        1 => Just(Some(layer::Kind::Fifo)),
        5 => Just(None),
    ];
    (path(), kind, any::<bool>()).prop_map(|(path, kind, opaque)| {
        let (parent, name) = cut(&path);
        let (path, kind) = match kind {
            Some(kind) => (path, kind),
            None if opaque => (join(&path, ".wh..wh..opq"), layer::Kind::Fifo),
            None => (join(parent, &format!(".wh.{name}")), layer::Kind::Fifo),
        };
        Entry { path: path.into(), metadata: Metadata::new(0o644, 0, 0), kind }
    })
}

/// Layers, each entry of which belongs to another user.
fn layers() -> impl Strategy<Value = Vec<Vec<Entry>>> {
    vec(vec(some_entry(), 0..14), 1..5).prop_map(|mut layers| {
        for (entry, uid) in layers.iter_mut().flatten().zip(1..) {
            entry.metadata.uid = uid;
        }
        layers
    })
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

fn merged(layers: &[Vec<Entry>]) -> Result<Vec<String>, MergeError> {
    let limits = Limits::default();
    let mut merge = Merge::new(&limits);
    for (entries, at) in layers.iter().zip(0..) {
        merge.apply(ContentId(at), entries.clone())?;
    }
    Ok(listing(&merge.finish()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn layers_merge_as_the_model_says(mut layers in layers()) {
        let mut model = Model::default();
        for entries in &mut layers {
            // What is refused is taken out, so that the rest is compared.
            model = loop {
                let mut next = model.clone();
                match next.apply(entries) {
                    Ok(()) => break next,
                    Err(at) => drop(entries.remove(at)),
                }
            };
        }
        let found = merged(&layers);
        prop_assert!(found.is_ok(), "{found:?}");
        prop_assert_eq!(found.expect("checked"), model.listing());
    }

    #[test]
    fn what_the_model_refuses_is_refused(layers in layers()) {
        let mut model = Model::default();
        let refused = layers.iter().any(|entries| model.apply(entries).is_err());
        prop_assert_eq!(merged(&layers).is_err(), refused);
    }

    /// Whiteouts mean the same wherever they stand in their layer.
    #[test]
    fn whiteouts_may_stand_anywhere(layers in layers()) {
        let is_whiteout = |entry: &Entry| path::split(&entry.path).is_some_and(|(_, name)| name.starts_with(WHITEOUT));
        let with = |first: bool| {
            let order = |entries: &Vec<Entry>| {
                let (mut front, mut back): (Vec<Entry>, Vec<Entry>) =
                    entries.iter().cloned().partition(|entry| is_whiteout(entry) == first);
                front.append(&mut back);
                front
            };
            merged(&layers.iter().map(order).collect::<Vec<_>>()).ok()
        };
        prop_assert_eq!(with(true), with(false));
        prop_assert_eq!(with(true), merged(&layers).ok());
    }
}
