//! Archives of `docker save` in their old form, and directories of this host.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::limits::Limits;
use crate::tar::{Kind, Reader};

/// An archive of files, and of links where the data begins with `->`.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = ::tar::Header::new_ustar();
        header.set_mode(0o644);
        if let Some(target) = data.strip_prefix(b"->") {
            header.set_entry_type(::tar::EntryType::Symlink);
            header.set_size(0);
            let target = str::from_utf8(target).expect("text");
            builder.append_link(&mut header, name, target).expect("in memory");
        } else {
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, name, *data).expect("in memory");
        }
    }
    builder.into_inner().expect("in memory")
}

/// What an old `docker save` wrote: the second layer is the first again, by a link.
fn saved() -> Vec<u8> {
    let layer = archive(&[("etc/motd", b"hello")]);
    let diff_id = Digest::sha256(&layer);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{diff_id}","{diff_id}"]}}}}"#
    );
    let manifest =
        br#"[{"Config":"c.json","RepoTags":["team/app:1"],"Layers":["1/layer.tar","2/layer.tar"]},
        {"Config":"c.json","RepoTags":["team/other:latest"],"Layers":[]}]"#;
    archive(&[
        ("1/layer.tar", &layer),
        ("2/layer.tar", b"->../1/layer.tar"),
        ("c.json", config.as_bytes()),
        ("manifest.json", manifest),
    ])
}

fn open(bytes: &[u8], name: Option<&str>, platform: &str) -> Result<Local, SourceError> {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("saved.tar");
    fs::write(&path, bytes).expect("written");
    let platform = platform.parse().expect("a platform");
    docker_archive(&path, name, &platform, &Limits::default(), home.path())
}

fn read(local: &Local, layer: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    local.layers.open(layer).expect("opened").read_to_end(&mut bytes).expect("read");
    bytes
}

#[test]
fn an_old_archive_is_read_through_its_links_compressed_or_not() {
    let bytes = saved();
    let zstd = zstd::encode_all(&bytes[..], 1).expect("in memory");
    for bytes in [bytes, zstd] {
        let local = open(&bytes, Some("docker.io/team/app:1"), "linux/amd64").expect("opened");
        assert_eq!(local.plan.layers.len(), 2);
        assert_eq!(read(&local, 0), read(&local, 1));
        let diff_id = local.plan.layers[1].diff_id.clone().expect("known");
        assert_eq!(diff_id, Digest::sha256(&read(&local, 1)));
        let config = local.plan.config.as_deref().expect("kept");
        assert_eq!(local.plan.identity, Some(Digest::sha256(config)));
    }
}

#[test]
fn what_is_wrong_with_an_archive_is_said() {
    let refused = |bytes: &[u8], name: Option<&str>, platform: &str| {
        open(bytes, name, platform).expect_err("refused").to_string()
    };
    let bytes = saved();
    assert!(
        refused(&bytes, None, "linux/amd64").contains("name one: team/app:1, team/other:latest")
    );
    assert!(refused(&bytes, Some("x"), "linux/amd64").contains("no such image"));
    assert!(refused(&bytes, Some("team/app:1"), "linux/arm64").contains("linux/amd64"));
    assert!(refused(&bytes, Some("team/other"), "linux/amd64").contains("0 layers and 2"));
    assert!(refused(&bytes[..2000], None, "linux/amd64").contains("saved.tar is not"));
    assert!(refused(&archive(&[("a", b"")]), None, "linux/amd64").contains("no member"));
    let circle = archive(&[("manifest.json", b"->manifest.json")]);
    assert!(refused(&circle, None, "linux/amd64").contains("no member"));
    let outside = archive(&[("manifest.json", b"->../../../../etc/passwd")]);
    assert!(refused(&outside, None, "linux/amd64").contains("no member"));
}

#[test]
fn a_directory_is_archived_in_order_without_following_links() {
    let home = tempfile::tempdir().expect("a directory");
    let at = |name: &str| home.path().join(name);
    fs::create_dir(at("b")).expect("made");
    fs::write(at("b/file"), b"data").expect("written");
    fs::hard_link(at("b/file"), at("z")).expect("linked");
    symlink("/etc", at("a")).expect("linked");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("bound");
    let archive = read(&directory(home.path()).expect("opened"), 0);
    let limits = Limits::default();
    let mut reader = Reader::new(&archive[..], &limits);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().expect("an archive") {
        found.push((String::from_utf8(entry.path).expect("text"), entry.kind));
    }
    let expected = [
        ("", Kind::Directory),
        ("a", Kind::Symlink(b"/etc".to_vec())),
        ("b", Kind::Directory),
        ("b/file", Kind::File { size: 4, sparse: None }),
        ("z", Kind::HardLink(b"b/file".to_vec())),
    ];
    assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
    assert!(directory(Path::new("/does/not/exist")).is_err());
}
