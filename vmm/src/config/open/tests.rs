use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::config::spec::MemorySize;
use crate::explain::Explain;

/// A directory with a kernel `k`, disks `d` and `e` of 1 MiB, and helpers to ask for machines made of them.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.file("k", 4096);
        place.file("d", 1 << 20);
        place.file("e", 1 << 20);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    /// `--disk` as written, with `@` for the directory.
    fn disk(&self, text: &str) -> DiskSpec {
        let text = text.replace('@', self.0.path().to_str().unwrap());
        DiskSpec::parse(OsStr::new(&text)).unwrap()
    }

    fn spec(&self, disks: &[&str]) -> Spec {
        let disks = disks.iter().map(|disk| self.disk(disk)).collect();
        Spec { disks, kernel: Some(self.path("k")), ..Spec::default() }
    }

    /// The refusal of `spec` as it is printed, with `@` for the directory.
    fn refusal(&self, spec: &Spec) -> String {
        let error = open(spec, &KernelPlaces::default()).expect_err("refused");
        let text = crate::report::text::error(
            &error.to_string(),
            error.why().as_deref(),
            error.fix().as_deref(),
        );
        text.replace(self.0.path().to_str().unwrap(), "@")
    }

    fn check(&self, spec: &Spec, expected: &[&str]) {
        let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
        let found: Vec<_> = self.refusal(spec).lines().map(str::to_owned).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_plan_holds_what_was_asked_for() {
    let place = Place::new();
    let spec = Spec {
        cpus: Some(32),
        memory: Some(MemorySize((33 << 20) + 1)),
        append: Some("quiet".to_owned()),
        timeout: Some(crate::config::spec::TimeLimit(Duration::from_secs(5))),
        seccomp: Some(false),
        console: Some(ConsoleSpec::None),
        vsock: Some(VsockSpec { path: place.path("v"), cid: Some(7) }),
        ..place.spec(&["@/d,iops=10,bw=1M", "@/e,overlay=@/o"])
    };
    let plan = open(&spec, &KernelPlaces::default()).unwrap();
    assert_eq!((plan.cpus, plan.memory_bytes), (32, 34 << 20));
    assert_eq!((plan.append.as_str(), plan.seccomp), ("quiet", false));
    assert_eq!(plan.timeout, Some(Duration::from_secs(5)));
    assert_eq!(plan.kernel.image.len_bytes, 4096);
    assert_eq!(plan.vsock.unwrap().guest_cid, 7);
    assert!(matches!(plan.console, ConsolePlan::None));
    let [first, second] = &plan.disks[..] else { panic!("two disks") };
    assert_eq!(first.limits.ops_per_s, NonZeroU64::new(10));
    assert_eq!(first.limits.bytes_per_s, NonZeroU64::new(1 << 20));
    assert_eq!((first.len_bytes, first.read_only), (1 << 20, false));
    (&first.file).write_all(b"x").expect("opened for writing");
    (&second.file).write_all(b"x").expect_err("the base of an overlay is opened for reading");
    assert!(!second.read_only && second.overlay.is_some());
}

#[test]
fn defaults_are_one_cpu_and_512_mib_on_stdio_confined() {
    let place = Place::new();
    let plan = open(&place.spec(&["@/d"]), &KernelPlaces::default()).unwrap();
    assert_eq!((plan.cpus, plan.memory_bytes), (1, 512 << 20));
    assert!(plan.seccomp && plan.timeout.is_none() && plan.vsock.is_none());
    assert!(matches!(plan.console, ConsolePlan::Stdio));
    assert_eq!(plan.tables, Tables::Auto);
}

#[test]
fn disks_that_cannot_serve_are_refused() {
    let place = Place::new();
    place.file("odd", 1000);
    place.file("empty", 0);
    symlink(place.path("nowhere"), place.path("dangling")).unwrap();
    let _socket = UnixListener::bind(place.path("s")).unwrap();
    mkfifo(&place.path("fifo"));
    let not_a_disk = |what: &str| {
        [
            format!("error: disk {what}, not a regular file or block device"),
            "  fix: give a regular file or block device".to_owned(),
        ]
    };
    let missing =
        |what: &str| [format!("error: {what}: no such file"), "  fix: check the path".to_owned()];
    for (disks, expected) in [
        (&["@/nope"][..], &missing("disk @/nope")[..]),
        (&["@/dangling"], &missing("disk @/dangling")),
        (&["@/fifo"], &not_a_disk("@/fifo is a pipe")),
        (&["@/s"], &not_a_disk("@/s is a socket")),
        (&["/dev/null"], &not_a_disk("/dev/null is a character device")),
        (
            &["@"],
            &[
                "error: disk @ is a directory, not a regular file or block device".to_owned(),
                "  fix: make an ext4 image of the directory and give its file name".to_owned(),
            ],
        ),
        (
            &["@/odd"],
            &[
                "error: disk @/odd has 1000 bytes, which is not a multiple of 512".to_owned(),
                "  fix: truncate -s 1024 @/odd, if the image is complete".to_owned(),
            ],
        ),
        (
            &["@/empty"],
            &[
                "error: disk @/empty is empty".to_owned(),
                "  fix: give a file with contents".to_owned(),
            ],
        ),
    ] {
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        place.check(&place.spec(disks), &expected);
    }
}

#[test]
fn disk_options_and_combinations_that_make_no_sense_are_refused() {
    let place = Place::new();
    symlink(place.path("d"), place.path("link")).unwrap();
    for (disks, expected) in [
        (
            &["@/d,ro,overlay=@/o"][..],
            &[
                "error: disk @/d: ro and overlay exclude each other",
                "  fix: drop ro: the image is never written when there is an overlay",
            ][..],
        ),
        (
            &["@/d,iops=0"],
            &["error: disk @/d: iops=0 would stop it for good", "  fix: drop iops for no limit"],
        ),
        (
            &["@/d,overlay=@/no/o"],
            &["error: overlay @/no/o: no such file", "  fix: make the directory first"],
        ),
        (
            &["@/d", "@/link,ro"],
            &[
                "error: disk @/link is the same file as disk @/d",
                "  two devices on one file would undo each other's writes",
                "  fix: give each its own file, or drop one",
            ],
        ),
        (
            &["@/d,overlay=@/e", "@/e"],
            &[
                "error: disk @/e is the same file as overlay @/e",
                "  two devices on one file would undo each other's writes",
                "  fix: give each its own file, or drop one",
            ],
        ),
        (
            &["@/d"; 9],
            &[
                "error: 9 disks were given: a machine has at most 8",
                "  fix: put several directories on one disk",
            ],
        ),
    ] {
        place.check(&place.spec(disks), expected);
    }
}

#[test]
fn only_a_kernel_of_the_users_own_boots_without_a_disk() {
    let place = Place::new();
    let bare = place.spec(&[]);
    open(&bare, &KernelPlaces::default()).unwrap();
    place.check(
        &Spec { kernel: None, ..bare },
        &[
            "error: no disk was given",
            "  the guest boots from its first disk or from an initial RAM disk",
            "  fix: add --disk FILE, or --initrd FILE",
        ],
    );
}

#[test]
fn a_disk_that_may_only_be_read_suggests_ro_and_overlay() {
    // A file that nobody may write, root included.
    let path = "/sys/kernel/notes";
    let place = Place::new();
    place.check(
        &place.spec(&[path]),
        &[
            "error: disk /sys/kernel/notes cannot be opened for writing",
            "  Permission denied (os error 13)",
            "  fix: --disk /sys/kernel/notes,ro to read it only, or --disk /sys/kernel/notes,overlay=FILE to keep writes apart",
        ],
    );
}

#[test]
fn a_locked_disk_names_its_holder() {
    let place = Place::new();
    let me = lock::Holder::of(std::process::id());
    let places = KernelPlaces::default();
    let first = open(&place.spec(&["@/d", "@/e,overlay=@/o"]), &places).unwrap();
    let pid = std::process::id();
    place.check(
        &place.spec(&["@/d"]),
        &[
            &format!("error: disk @/d is in use {me}"),
            "  a disk that is written belongs to one machine alone",
            &format!(
                "  fix: stop process {pid}, or share the image with --disk @/d,overlay=FILE in both"
            ),
        ],
    );
    place.check(
        &place.spec(&["@/d,ro"]),
        &[
            &format!("error: disk @/d is in use {me}"),
            "  another machine writes to it: what is read here would change underway",
            &format!("  fix: stop process {pid}"),
        ],
    );
    let overlay = place.refusal(&place.spec(&["@/e,overlay=@/o"]));
    assert!(overlay.starts_with(&format!("error: overlay @/o is in use {me}")), "{overlay}");
    open(&place.spec(&["@/e,ro"]), &places).expect("a base is shared");
    open(&place.spec(&["@/e,overlay=@/p"]), &places).expect("by overlays too");
    assert!(place.refusal(&place.spec(&["@/e"])).contains("is in use"), "but not written");
    drop(first);
    open(&place.spec(&["@/d"]), &places).expect("the lock goes with the machine");
}

#[test]
fn numbers_out_of_range_are_refused() {
    let place = Place::new();
    let disk = || place.spec(&["@/d"]);
    let cpus = "  fix: --cpus N with N from 1 to 32";
    for count in [0, 33, 256, u64::MAX] {
        let expected = format!("error: {count} CPUs: a machine has 1 to 32");
        place.check(&Spec { cpus: Some(count), ..disk() }, &[&expected, cpus]);
    }
    for (bytes, shown, fix) in [
        (0, "0 bytes", "--memory 512M suits most guests; a bare number is MiB"),
        (31 << 20, "31M", "--memory 512M suits most guests; a bare number is MiB"),
        ((256 << 30) + 1, "274877906945 bytes", "ask for less"),
        (1 << 40, "1T", "ask for less"),
        (u64::MAX, "18446744073709551615 bytes", "ask for less"),
    ] {
        let expected = format!("error: memory of {shown}: a machine has 32M to 256G");
        let spec = Spec { memory: Some(MemorySize(bytes)), ..disk() };
        place.check(&spec, &[&expected, &format!("  fix: {fix}")]);
    }
    for bytes in [32 << 20, 256 << 30] {
        let spec = Spec { memory: Some(MemorySize(bytes)), ..disk() };
        assert_eq!(open(&spec, &KernelPlaces::default()).unwrap().memory_bytes, bytes);
    }
    let never = crate::config::spec::TimeLimit(Duration::ZERO);
    place.check(
        &Spec { timeout: Some(never), ..disk() },
        &[
            "error: a timeout of 0 leaves the machine no time to run",
            "  fix: drop --timeout for no limit",
        ],
    );
}

#[test]
fn kernel_initrd_and_console_files_are_checked() {
    let place = Place::new();
    place.file("empty", 0);
    let spec = || place.spec(&["@/d"]);
    place.check(
        &Spec { kernel: Some(place.path("nope")), ..spec() },
        &["error: kernel @/nope: no such file", "  fix: check the path"],
    );
    place.check(
        &Spec { kernel: Some(place.path("")), ..spec() },
        &["error: kernel @/ is a directory, not a regular file", "  fix: give a regular file"],
    );
    place.check(
        &Spec { initrd: Some(place.path("empty")), ..spec() },
        &["error: initrd @/empty is empty", "  fix: give a file with contents"],
    );
    place.check(
        &Spec { kernel: None, ..spec() },
        &[
            "error: no guest kernel found",
            "  looked for ",
            "  fix: `cargo xtask kernel` builds and installs one, or --kernel FILE names your own",
        ],
    );
    let console = Some(ConsoleSpec::File(place.path("d")));
    let refusal = place.refusal(&Spec { console, ..spec() });
    assert!(refusal.starts_with("error: console file @/d is the same file as disk @/d"));
    assert_eq!(fs::metadata(place.path("d")).unwrap().len(), 1 << 20, "and it is not truncated");
}

#[test]
fn a_refusal_leaves_no_file_behind() {
    let place = Place::new();
    let spec = place.spec(&["@/d,overlay=@/new", "@/nope"]);
    assert!(place.refusal(&spec).contains("@/nope"));
    assert!(!place.path("new").exists());
}

#[test]
fn a_result_file_is_new_or_an_older_result() {
    let place = Place::new();
    place.file("empty", 0);
    fs::write(place.path("old"), "{\n}\n").unwrap();
    for name in ["new", "empty", "old"] {
        let mut file = result(&place.path(name)).unwrap();
        assert_eq!(fs::metadata(place.path(name)).unwrap().len(), 0, "{name}");
        file.write_all(b"{}").unwrap();
    }
    fs::write(place.path("text"), "notes").unwrap();
    for (path, message) in [
        (place.path("d"), "result file @/d exists and holds something other than a result"),
        (place.path("text"), "result file @/text exists and holds something other than a result"),
        (place.path(""), "result file @/ is a directory, not a regular file"),
        (place.path("no/r"), "result file @/no/r: its directory does not exist"),
        ("/dev/null".into(), "result file /dev/null is a character device, not a regular file"),
    ] {
        let len = fs::metadata(&path).map_or(0, |found| found.len());
        let refusal = result(&path).expect_err("refused").to_string();
        let shown = refusal.replace(place.0.path().to_str().unwrap(), "@");
        assert_eq!(shown, message);
        assert_eq!(fs::metadata(&path).map_or(0, |found| found.len()), len, "it is left alone");
    }
}

#[test]
fn a_result_file_is_nothing_else_of_the_machine() {
    let place = Place::new();
    let name = place.path("log");
    drop(result(&name).unwrap());
    let console = Some(ConsoleSpec::File(name.clone()));
    let refusal = place.refusal(&Spec { console, result: Some(name), ..place.spec(&["@/d"]) });
    assert!(refusal.starts_with("error: console file @/log is the same file as result file @/log"));
}

#[test]
fn vsock_paths_are_checked() {
    let place = Place::new();
    let with =
        |path: PathBuf, cid| Spec { vsock: Some(VsockSpec { path, cid }), ..place.spec(&["@/d"]) };
    let long = PathBuf::from("/tmp").join("x".repeat(92));
    place.check(
        &with(long.clone(), None),
        &[
            &format!("error: vsock path {} has 97 bytes: at most 96 fit", long.display()),
            "  a socket address holds 107 bytes, and guest port N is served at PATH_N",
            "  fix: use a shorter directory, such as one in $XDG_RUNTIME_DIR",
        ],
    );
    let listener = UnixListener::bind(place.path("s")).unwrap();
    let me = lock::Holder::of(std::process::id());
    place.check(
        &with(place.path("s"), None),
        &[
            &format!("error: vsock path @/s is in use {me}"),
            "  fix: give each machine a socket path of its own",
        ],
    );
    drop(listener);
    open(&with(place.path("s"), None), &KernelPlaces::default()).expect("nobody listens any more");
    place.check(
        &with(place.path("e"), None),
        &[
            "error: vsock path @/e exists and is not a socket",
            "  fix: give another path, or remove that file",
        ],
    );
    place.check(
        &with(place.path("no/s"), None),
        &[
            "error: vsock path @/no/s: its directory does not exist",
            "  fix: make the directory first",
        ],
    );
    for cid in [0, 2, 0xffff_fffe, u64::from(u32::MAX), u64::MAX] {
        let expected = format!("error: vsock cid {cid}: a guest has 3 to 4294967293");
        place.check(
            &with(place.path("v"), Some(cid)),
            &[&expected, "  fix: drop cid: the default is 3"],
        );
    }
}

#[test]
fn opened_files_wait_for_their_data() {
    use std::os::fd::AsRawFd;
    let place = Place::new();
    let plan = open(&place.spec(&["@/d"]), &KernelPlaces::default()).unwrap();
    for file in [&plan.disks[0].file, &plan.kernel.image.file] {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
    }
}

fn mkfifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}
