//! Whole images: against umoci's unpacking, the file system checker, and a disk that is full. They need root, for owners,
//! devices and a small tmpfs.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};

use openshell_ext4::{Image, Tree};
use openshell_rootfs::build::{Builder, hash};
use openshell_rootfs::cache::{Cache, Cached, Prune};
use openshell_rootfs::export::export_tar;
use openshell_rootfs::image::Platform;
use openshell_rootfs::layout::Layout;
use openshell_rootfs::limits::Limits;
use openshell_rootfs::progress::Silent;
use openshell_rootfs::reference::Select;
use openshell_rootfs::source::{Local, directory, docker_archive, oci_layout, rootfs_tar};
use tempfile::TempDir;

use crate::served::run;

/// An image of three layers, and what umoci unpacks it to.
pub(crate) struct Made {
    home: TempDir,
}

impl Made {
    pub(crate) fn new() -> Self {
        let made = Self { home: TempDir::new().unwrap() };
        run("umoci", &["init", "--layout", &made.at("oci")]);
        run("umoci", &["new", "--image", &made.image("v0")]);
        run(
            "umoci",
            &["config", "--image", &made.image("v0"), "--os", "linux", "--architecture", "amd64"],
        );
        for (at, change) in [populate as fn(&Path), replace, remove].into_iter().enumerate() {
            let bundle = made.at(&format!("bundle-{at}"));
            run("umoci", &["unpack", "--image", &made.image(&format!("v{at}")), &bundle]);
            change(&Path::new(&bundle).join("rootfs"));
            run("umoci", &["repack", "--image", &made.image(&format!("v{}", at + 1)), &bundle]);
        }
        run("umoci", &["unpack", "--image", &made.image("v3"), &made.at("unpacked")]);
        made
    }

    fn at(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.at("oci"))
    }

    pub(crate) fn unpacked(&self) -> PathBuf {
        self.home.path().join("unpacked/rootfs")
    }
}

/// One of everything that a file system holds.
fn populate(root: &Path) {
    let at = |name: &str| root.join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    for directory in ["bin", "etc/opt", "many", "opaque/below", "sticky"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    for number in 0..3000 {
        fs::write(at(&format!("many/{number}")), format!("{number}\n")).unwrap();
    }
    fs::write(at("bin/suid"), vec![0x7f; 70_000]).unwrap();
    run("chown", &["70000:80000", &text("bin/suid")]);
    run("chmod", &["6755", &text("bin/suid")]);
    fs::write(at("bin/capable"), b"elf").unwrap();
    run("setcap", &["cap_net_raw,cap_sys_admin+ep", &text("bin/capable")]);
    run("chmod", &["1777", &text("sticky")]);
    fs::hard_link(at("bin/suid"), at("etc/suid-again")).unwrap();
    symlink("../nowhere", at("etc/broken")).unwrap();
    symlink("n".repeat(60), at("etc/sixty")).unwrap();
    symlink("n".repeat(2000), at("etc/long")).unwrap();
    fs::hard_link(at("etc/broken"), at("etc/broken-again")).unwrap();
    run("mknod", &[&text("etc/null"), "c", "1", "3"]);
    run("mknod", &[&text("etc/disk"), "b", "259", "300000"]);
    run("mkfifo", &[&text("etc/pipe")]);
    let sparse = File::create(at("etc/sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (5 << 20) + 17).unwrap();
    fs::write(at("n".repeat(255).as_str()), b"longest").unwrap();
    fs::write(at("opaque/old"), b"old").unwrap();
    fs::write(at("opaque/below/old"), b"old").unwrap();
    fs::write(at("etc/removed"), b"soon").unwrap();
    run("touch", &["-d", "1969-12-31T23:00:00.25Z", &text("etc/opt")]);
}

/// Files of another type, a directory that begins anew.
fn replace(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::remove_dir_all(at("opaque")).unwrap();
    fs::create_dir(at("opaque")).unwrap();
    fs::write(at("opaque/new"), b"new").unwrap();
    fs::remove_file(at("etc/pipe")).unwrap();
    fs::create_dir(at("etc/pipe")).unwrap();
    fs::write(at("etc/pipe/inside"), b"x").unwrap();
    fs::remove_dir(at("etc/opt")).unwrap();
    symlink("../opaque", at("etc/opt")).unwrap();
    fs::write(at("many/7"), b"seven").unwrap();
}

fn remove(root: &Path) {
    fs::remove_file(root.join("etc/removed")).unwrap();
    fs::remove_file(root.join("etc/suid-again")).unwrap();
    fs::remove_file(root.join("many/8")).unwrap();
    fs::remove_dir_all(root.join("etc/pipe")).unwrap();
}

pub(crate) fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

pub(crate) fn build(cache: &Cache, local: &Local) -> Cached {
    let (layout, limits) = (Layout::none(), Limits::default());
    let builder = Builder::new(cache, &layout, &limits);
    builder.image(&local.plan, &*local.layers, &Silent).unwrap()
}

fn layout(made: &Made, tag: &str) -> Local {
    let select = Select::Name(tag.into());
    oci_layout(Path::new(&made.at("oci")), Some(&select), &platform()).unwrap()
}

/// All that is in an image, as an archive.
pub(crate) fn contents(cached: &Cached) -> Vec<u8> {
    let path = cached.image();
    run("e2fsck", &["-fn", path.to_str().unwrap()]);
    let image = Image::open(File::open(path).unwrap()).unwrap();
    let mut tree = image.read_tree().unwrap();
    tree.remove(Tree::ROOT, b"lost+found");
    let mut archive = Vec::new();
    export_tar(&tree, &image, &mut archive).unwrap();
    archive
}

#[test]
fn an_image_holds_what_umoci_unpacks_whatever_it_came_in() {
    let made = Made::new();
    let unpacked = made.unpacked();
    assert!(fs::symlink_metadata(unpacked.join("etc/null")).unwrap().file_type().is_char_device());
    let home = TempDir::new().unwrap();
    let cache = Cache::open(home.path()).unwrap();
    let expected = contents(&build(&cache, &directory(&unpacked).unwrap()));
    assert!(contents(&build(&cache, &layout(&made, "v3"))) == expected, "layers");
    let gnu = made.at("gnu.tar");
    run(
        "tar",
        &[
            "-C",
            unpacked.to_str().unwrap(),
            "--xattrs",
            "--xattrs-include=*",
            "--format=posix",
            "--sparse",
            "-cf",
            &gnu,
            ".",
        ],
    );
    assert!(contents(&build(&cache, &rootfs_tar(Path::new(&gnu)).unwrap())) == expected, "GNU tar");
    for (name, compress) in [("gnu.tar.gz", "gzip"), ("gnu.tar.zst", "zstd")] {
        let packed = made.at(name);
        run("sh", &["-c", &format!("{compress} -c '{gnu}' > '{packed}'")]);
        let local = rootfs_tar(Path::new(&packed)).unwrap();
        assert!(contents(&build(&cache, &local)) == expected, "{name}");
    }
    let saved = made.at("saved.tar");
    let (from, to) =
        (format!("oci:{}", made.image("v3")), format!("docker-archive:{saved}:team/app:v3"));
    run("skopeo", &["copy", "--insecure-policy", &from, &to]);
    let limits = Limits::default();
    let local =
        docker_archive(Path::new(&saved), Some("team/app:v3"), &platform(), &limits, home.path());
    assert!(contents(&build(&cache, &local.unwrap())) == expected, "docker save");
    let zstd = format!("oci:{}:v3", made.at("zstd"));
    let more =
        ["--insecure-policy", "--dest-compress-format", "zstd", "--dest-force-compress-format"];
    let plain = ["--insecure-policy", "--dest-compress-format", "zstd"];
    let copy = |more: &[&str]| {
        let all = [&["copy"][..], more, &[&from, &zstd]].concat();
        std::process::Command::new("skopeo").args(all).output().unwrap().status.success()
    };
    assert!(copy(&more) || copy(&plain));
    let local = oci_layout(Path::new(&made.at("zstd")), None, &platform()).unwrap();
    assert!(contents(&build(&cache, &local)) == expected, "zstd");
}

/// A small file system that goes away.
struct Small(TempDir);

impl Small {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().to_str().unwrap().to_owned();
        run("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", &path]);
        Self(directory)
    }

    fn resize(&self, kib: u64) {
        let options = format!("remount,size={kib}k");
        run("mount", &["-o", &options, self.0.path().to_str().unwrap()]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.0.path().to_str().unwrap()]);
    }
}

#[test]
fn fifty_full_disks_leave_a_good_cache() {
    let made = Made::new();
    let local = layout(&made, "v3");
    let limits = Limits::default();
    let guests = Layout::default();
    let small = Small::new();
    let mut failures = 0;
    // With enough room the image takes less than 32 MiB, layers included.
    for step in 0..50 {
        small.resize(256 + step * 640);
        let Ok(cache) = Cache::open(small.0.path()) else { continue };
        cache.prune(Prune { budget: Some(0), dry_run: false }).unwrap();
        let builder = Builder::new(&cache, &guests, &limits);
        let built = builder.image(&local.plan, &*local.layers, &Silent);
        failures += usize::from(built.is_err());
        let named = small.0.path().join("images").read_dir().unwrap().count();
        let images = cache.images();
        assert_eq!(images.len(), named);
        assert_eq!(small.0.path().join("staging").read_dir().unwrap().count(), 0);
        for image in images {
            let file = File::open(image.image()).unwrap();
            assert_eq!(hash(&file, image.record.bytes).unwrap(), image.record.pieces_sha256);
        }
    }
    assert!((5..50).contains(&failures), "{failures} of 50 failed");
}
