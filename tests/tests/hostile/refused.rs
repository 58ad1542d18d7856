//! What is in the archives, and what is said about it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openshell_tests::machine::fixture;
use openshell_tests::taken;
use tempfile::TempDir;

use crate::archive::{BLOCK, extended, header, padded, zeros};

/// When an answer is none any more, on any machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Two seconds are what an optimized build has; tests are not optimized.
const PROCESSOR: Duration = Duration::from_secs(10);
const MEMORY_KIB: u64 = 256 << 10;

type Out<'a> = &'a mut dyn Write;

/// How an archive goes into its file.
#[derive(Clone, Copy)]
enum Packed {
    Plain,
    By(&'static str),
}

/// Writes an archive, gives it to the command, and answers with the exit code and what was said.
fn pull(
    home: &Path,
    packed: Packed,
    write: impl FnOnce(Out<'_>) -> io::Result<()>,
) -> (i32, String) {
    let path = home.join("archive");
    let file = File::create(&path).unwrap();
    match packed {
        Packed::Plain => {
            let mut out = BufWriter::new(file);
            write(&mut out).unwrap();
            out.flush().unwrap();
        }
        Packed::By(program) => {
            let mut words = program.split(' ');
            let mut command = Command::new(words.next().unwrap());
            let mut child = command.args(words).stdin(Stdio::piped()).stdout(file).spawn().unwrap();
            let mut out = BufWriter::new(child.stdin.take().unwrap());
            write(&mut out).unwrap();
            drop(out);
            assert!(child.wait().unwrap().success());
        }
    }
    let begin = Instant::now();
    let mut command = Command::new(fixture("openshell-rootfs"));
    command.arg("--cache").arg(home.join("cache")).args(["--progress", "none", "pull", "--plain"]);
    command.arg(format!("rootfs-tar:{}", path.display()));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let taken = taken(child).unwrap();
    let took = begin.elapsed();
    let spent = taken.processor;
    println!("{spent:.2?} of {took:.2?}, {} MiB: {}", taken.peak_kib >> 10, said.trim_end());
    assert!(took < DEADLINE, "{took:?}: {said}");
    assert!(spent < PROCESSOR, "{spent:?} of processor time: {said}");
    assert!(taken.peak_kib <= MEMORY_KIB, "{} KiB: {said}", taken.peak_kib);
    (taken.code, said)
}

/// An archive is refused with an error of one line that has all of `parts`, and nothing of it stays.
#[track_caller]
fn refused(packed: Packed, parts: &[&str], write: impl FnOnce(Out<'_>) -> io::Result<()>) {
    let home = TempDir::new().unwrap();
    let (code, said) = pull(home.path(), packed, write);
    assert_eq!(code, 1, "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    for part in ["images", "staging", "layers"] {
        let left = home.path().join("cache").join(part).read_dir().unwrap().count();
        assert_eq!(left, 0, "{part}");
    }
}

/// A few entries: name, kind and target of links.
#[track_caller]
fn refused_entries(entries: &[(&str, u8, &str)], parts: &[&str]) {
    refused(Packed::Plain, parts, |out| {
        for (name, kind, link) in entries {
            out.write_all(&header(name.as_bytes(), *kind, 0, link.as_bytes()))?;
        }
        zeros(out, 2)
    });
}

#[test]
fn compressed_zeros() {
    for program in ["gzip -9", "zstd -q"] {
        let ratio = ["archive entry \"zeros\"", "limit of 1000 bytes from one compressed byte"];
        refused(Packed::By(program), &ratio, |out| {
            out.write_all(&header(b"zeros", b'0', 8 << 30, b""))?;
            zeros(out, 400 << 11)
        });
    }
}

#[test]
fn a_window_that_takes_all_memory() {
    refused(Packed::By("zstd --ultra --long=31 -q"), &["does not decompress", "memory"], |out| {
        out.write_all(&header(b"f", b'0', 1 << 20, b""))?;
        zeros(out, 1 << 11)
    });
}

#[test]
fn files_of_any_size() {
    let limit = "limit of 17179869184 bytes in one file";
    refused(Packed::Plain, &["\"large\"", limit], |out| {
        out.write_all(&header(b"large", b'0', (16 << 30) + 1, b""))?;
        zeros(out, 100)
    });
    refused(Packed::Plain, &["\"pax\"", limit], |out| {
        out.write_all(&extended(b'x', &[(b"size", b"17179869185")]))?;
        out.write_all(&header(b"pax", b'0', 0, b""))?;
        zeros(out, 100)
    });
    refused(Packed::Plain, &["\"holes\"", limit], |out| {
        let records: [(&[u8], &[u8]); 4] = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"holes"),
            (b"GNU.sparse.realsize", b"1152921504606846976"),
        ];
        out.write_all(&extended(b'x', &records))?;
        out.write_all(&padded(header(b"f", b'0', 512, b""), b"0\n"))?;
        zeros(out, 2)
    });
}

#[test]
fn maps_of_sparse_files_without_end() {
    let limit = "limit of 1048576 runs of data in a sparse file";
    refused(Packed::By("gzip -1"), &["\"holes\"", limit], |out| {
        let records: [(&[u8], &[u8]); 4] = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"holes"),
            (b"GNU.sparse.realsize", b"1000000000"),
        ];
        out.write_all(&extended(b'x', &records))?;
        out.write_all(&header(b"f", b'0', 1 << 30, b""))?;
        let mut block = b"100000000\n".to_vec();
        block.resize(BLOCK, b'0');
        out.write_all(&block)?;
        (0..100_000).try_for_each(|_| out.write_all(&b"0\n".repeat(BLOCK / 2)))
    });
    refused(Packed::By("gzip -1"), &["\"old\"", limit], |out| {
        let mut old = header(b"old", b'S', 0, b"");
        old[386..397].copy_from_slice(b"00000000001");
        old[398..409].copy_from_slice(b"00000000000");
        old[482] = 1;
        old[483..494].copy_from_slice(b"00000001000");
        old[148..156].fill(b' ');
        let sum: u32 = old.iter().map(|byte| u32::from(*byte)).sum();
        old[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.write_all(&old)?;
        let mut more = [0; BLOCK];
        more[..504].copy_from_slice(&b"00000000001\x0000000000000\0".repeat(21));
        more[504] = 1;
        (0..100_000).try_for_each(|_| out.write_all(&more))
    });
}

#[test]
fn extended_headers_without_end() {
    let limit = "limit of 1048576 bytes in extended headers";
    refused(Packed::Plain, &["\"records\"", limit], |out| {
        out.write_all(&extended(b'x', &[(b"comment", &vec![b'c'; 2 << 20])]))
    });
    refused(Packed::Plain, &["\"records\"", limit], |out| {
        out.write_all(&header(b"records", b'x', 1 << 40, b""))?;
        zeros(out, 1 << 12)
    });
    // Each within the limit, all before one entry.
    for kind in *b"xg" {
        refused(Packed::Plain, &["\"records\"", limit], |out| {
            let value = vec![b'v'; 500 << 10];
            (0..1000).try_for_each(|at: u32| {
                out.write_all(&extended(kind, &[(format!("key-{at}").as_bytes(), &value)]))
            })
        });
    }
    let attributes = ["\"f\"", "limit of 65536 bytes of extended attributes"];
    refused(Packed::Plain, &attributes, |out| {
        out.write_all(&extended(b'x', &[(b"SCHILY.xattr.user.a", &vec![b'v'; 70 << 10])]))?;
        out.write_all(&header(b"f", b'0', 0, b""))
    });
    refused(Packed::Plain, &["`f`", "extended attributes of"], |out| {
        out.write_all(&extended(b'x', &[(b"SCHILY.xattr.user.a", &vec![b'v'; 60 << 10])]))?;
        out.write_all(&header(b"f", b'0', 0, b""))?;
        zeros(out, 2)
    });
}

const METADATA: &str = "limit of 134217728 bytes of names and attributes in all layers";

#[test]
fn a_million_entries() {
    for kind in *b"01" {
        let name = |at: u32| format!("{:x}/{:04x}-{}", at >> 12, at & 0xfff, char::from(kind));
        refused(Packed::By("gzip -1"), &["archive entry \"", METADATA], |out| {
            (0..1_000_000)
                .try_for_each(|at| out.write_all(&header(name(at).as_bytes(), kind, 0, b"to")))
        });
    }
}

#[test]
fn attributes_for_everything_that_follows() {
    refused(Packed::Plain, &["archive entry \"", METADATA], |out| {
        out.write_all(&extended(b'g', &[(b"SCHILY.xattr.user.a", &vec![b'v'; 60 << 10])]))?;
        (0..100_000)
            .try_for_each(|at| out.write_all(&header(format!("{at}").as_bytes(), b'0', 0, b"")))
    });
    refused(Packed::By("gzip -1"), &["archive entry \"", METADATA], |out| {
        (0..500_000).try_for_each(|at| {
            out.write_all(&extended(b'x', &[(b"SCHILY.xattr.user.a", b"v")]))?;
            out.write_all(&header(format!("{at}").as_bytes(), b'0', 0, b""))
        })
    });
}

#[test]
fn paths_too_long_or_too_deep() {
    let with_path = |path: &[u8], limit: &str| {
        refused(Packed::Plain, &["archive entry \"", limit], |out| {
            out.write_all(&extended(b'x', &[(b"path", path)]))?;
            out.write_all(&header(b"short", b'0', 0, b""))
        });
    };
    with_path(&b"d/".repeat(300), "limit of 256 directories deep");
    with_path(&b"directory/".repeat(500), "limit of 4096 bytes in a path");
    with_path(&[b'n'; 300], "limit of 255 bytes in a name");
    with_path(&vec![b'n'; 1 << 19], "limit of 4096 bytes in a path");
    refused(Packed::Plain, &["\"short\"", "limit of 4096 bytes in a path"], |out| {
        out.write_all(&extended(b'x', &[(b"linkpath", &[b'n'; 5000])]))?;
        out.write_all(&header(b"short", b'2', 0, b""))
    });
    // Each path is short enough, and leads deeper than it says.
    refused(Packed::Plain, &["l/", "limit of 256 directories deep"], |out| {
        out.write_all(&extended(b'x', &[(b"linkpath", &b"d/".repeat(200))]))?;
        out.write_all(&header(b"l", b'2', 0, b""))?;
        out.write_all(&extended(
            b'x',
            &[(b"path", &[&b"l/"[..], &b"d/".repeat(200), b"x"].concat())],
        ))?;
        out.write_all(&header(b"x", b'0', 0, b""))?;
        zeros(out, 2)
    });
}

#[test]
fn loops() {
    refused_entries(
        &[("a", b'2', "b"), ("b", b'2', "a"), ("a/x", b'0', "")],
        &["\"a/x\"", "40 symbolic links"],
    );
    refused_entries(&[("a", b'2', "a"), ("a/x", b'5', "")], &["\"a/x\"", "40 symbolic links"]);
    refused_entries(&[("a", b'1', "b"), ("b", b'1', "a")], &["\"a\"", "which is not there"]);
    // Each step back and forth costs the same as one forward.
    refused(
        Packed::By("gzip -1"),
        &["\"l/", "limit of 16777216 bytes of symbolic links followed"],
        |out| {
            out.write_all(&header(b"x", b'5', 0, b""))?;
            out.write_all(&extended(b'x', &[(b"linkpath", &b"x/../".repeat(800))]))?;
            out.write_all(&header(b"l", b'2', 0, b""))?;
            for at in 0..20_000 {
                out.write_all(&header(format!("l/{at}").as_bytes(), b'0', 0, b""))?;
                out.write_all(&header(format!("x/{at}").as_bytes(), b'0', 0, b""))?;
            }
            zeros(out, 2)
        },
    );
}

#[test]
fn names_that_climb() {
    for name in ["../evil", "a/../../evil", "/../evil", "a/..", ".."] {
        for kind in *b"0125" {
            refused_entries(&[(name, kind, "x")], &[&format!("{name:?}"), "climbs with \"..\""]);
        }
    }
    refused_entries(&[("a", b'1', "../../etc/passwd")], &["\"a\"", "climbs with \"..\""]);
    refused_entries(
        &[("a", b'1', "/etc/passwd")],
        &["\"a\"", "\"etc/passwd\", which is not there"],
    );
    refused_entries(&[("d", b'5', ""), ("a", b'1', "d")], &["\"a\"", "the directory \"d\""]);
    refused_entries(
        &[("up", b'2', "../.."), ("a", b'1', "up/etc/passwd")],
        &["\"a\"", "which is not there"],
    );
}

#[test]
fn whiteouts_that_climb() {
    refused_entries(&[("a/.wh...", b'0', "")], &["\"a/.wh...\"", "whiteout of \"..\""]);
    refused_entries(&[(".wh..", b'0', "")], &["\".wh..\"", "whiteout of \".\""]);
    refused_entries(&[(".wh.", b'0', "")], &["\".wh.\"", "whiteout of \"\""]);
    refused_entries(&[("a/../.wh.b", b'0', "")], &["\"a/../.wh.b\"", "climbs"]);
    refused_entries(&[(".wh.a/b", b'0', "")], &["\".wh.a/b\"", "below a whiteout"]);
}

#[test]
fn what_is_no_archive() {
    refused(Packed::Plain, &["ends in the middle"], |out| {
        out.write_all(&header(b"cut", b'0', 1 << 20, b""))?;
        zeros(out, 100)
    });
    refused(Packed::Plain, &["this is not a tar header"], |out| out.write_all(&[0x55; 4096]));
    refused(Packed::Plain, &["a single zero block"], |out| {
        zeros(out, 1)?;
        out.write_all(&header(b"second", b'0', 0, b""))
    });
    refused_entries(
        &[("a", b'0', ""), ("a/b", b'0', "")],
        &["\"a/b\"", "\"a\" in it is not a directory"],
    );
    refused_entries(&[("", b'0', "")], &["the name is empty"]);
}

#[test]
fn links_lead_to_the_image_and_never_to_the_host() {
    let home = TempDir::new().unwrap();
    let host = home.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("victim"), "as before").unwrap();
    let target = host.to_str().unwrap();
    let up = format!("{}{target}", "../".repeat(20));
    let (code, said) = pull(home.path(), Packed::Plain, |out| {
        for (name, link) in [("absolute", target), ("up", &up)] {
            out.write_all(&extended(b'x', &[(b"linkpath", link.as_bytes())]))?;
            out.write_all(&header(name.as_bytes(), b'2', 0, b""))?;
            for below in ["planted", "victim", ".wh.victim", ".wh..wh..opq"] {
                let name = format!("{name}/{below}");
                out.write_all(&padded(header(name.as_bytes(), b'0', 4, b""), b"evil"))?;
            }
        }
        zeros(out, 2)
    });
    assert_eq!(code, 0, "{said}");
    let left: Vec<_> = host.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["victim"]);
    assert_eq!(fs::read_to_string(host.join("victim")).unwrap(), "as before");
}
