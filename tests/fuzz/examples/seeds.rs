//! Writes the seeds of the fuzz targets to `corpus/`: inputs that get far on the straight way, so that a fuzzer starts behind the
//! first checks. Run it after a change of a target's input format.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Result;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    for (target, seeds) in [
        ("agent", agent()),
        ("block", block()),
        ("config", config()),
        ("console", console()),
        ("copy", copy()),
        ("dhcp", dhcp()),
        ("dns_guest", dns_guest()),
        ("dns_resolver", dns_resolver()),
        ("ext4_reader", ext4_reader()),
        ("fragments", fragments()),
        ("frames", frames()),
        ("inflate", inflate()),
        ("kernel", kernel()),
        ("layer", layer()),
        ("manifest", manifest()),
        ("merge", merge()),
        ("overlay", overlay()),
        ("queue", queue()),
        ("reference", reference()),
        ("rule", rule()),
        ("tar", tar()),
        ("transport", transport()),
        ("vnet", vnet()),
        ("vsock", vsock()),
    ] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        fs::create_dir_all(&directory)?;
        for (name, bytes) in seeds {
            fs::write(directory.join(name), bytes)?;
        }
    }
    Ok(())
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// Direction and size of pieces, then frames.
fn agent() -> Seeds {
    use openshell_agent_proto::{
        CopyIn, CopyOut, Exec, Exit, Failure, FailureKind, FromGuest, FromHost, GuestPath, Signal,
        Size, Stats, Stdio, Stream,
    };
    let words = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let size = Size { columns: 80, rows: 24 };
    let exec = Exec::new(words(&["/bin/sh", "-c", "true"]), Stdio::Terminal(size))
        .and_then(|exec| exec.env(words(&["A=1"])))
        .and_then(|exec| exec.directory(b"/tmp".to_vec()))
        .and_then(|exec| exec.user("a:b".to_owned()))
        .expect("a request");
    let path = GuestPath::new(b"/etc/x".to_vec()).expect("a path");
    let signal = Signal::new(15).expect("a signal");
    let mut host = vec![14];
    for frame in [
        FromHost::Hello { lowest: 1, highest: 1 },
        FromHost::Exec(exec),
        FromHost::CopyIn(CopyIn { path: path.clone(), into: true, owners: false }),
        FromHost::CopyOut(CopyOut { path, follow: true }),
        FromHost::Stats,
        FromHost::Attach { input: true },
        FromHost::SetClock(1),
        FromHost::Data(Stream::Input, b"data"),
        FromHost::End(Stream::Input),
        FromHost::Credit(Stream::Output, 9),
        FromHost::Resize(size),
        FromHost::Signal(signal),
    ] {
        frame.encode(&mut host);
    }
    let mut guest = vec![15];
    for frame in [
        FromGuest::Welcome(1),
        FromGuest::Started(7),
        FromGuest::Data(Stream::Output, b"data"),
        FromGuest::Exited(Exit::Signal(signal)),
        FromGuest::Failed(Failure::new(FailureKind::Path, "text")),
        FromGuest::Stats(Stats::default()),
        FromGuest::Done { files: 1, bytes: 2 },
    ] {
        frame.encode(&mut guest);
    }
    vec![("host", host), ("guest", guest)]
}

/// Archives of small trees.
fn copy() -> Seeds {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("tree/in")).expect("it is ours");
    fs::write(at("tree/in/file"), "text").expect("it is ours");
    fs::hard_link(at("tree/in/file"), at("tree/other")).expect("it is ours");
    std::os::unix::fs::symlink("in/file", at("tree/link")).expect("it is ours");
    std::os::unix::fs::symlink("/etc", at("tree/out")).expect("it is ours");
    fs::write(at(&"n".repeat(150)), "").expect("it is ours");
    fs::File::create(at("sparse")).and_then(|file| file.set_len(1 << 20)).expect("it is ours");
    let pack = |name: &str| {
        let mut bytes = Vec::new();
        openshell_copy::pack(&at(name), false, &mut bytes).expect("it can be read");
        bytes
    };
    vec![
        ("tree", pack("tree")),
        ("contents", pack("tree/.")),
        ("long", pack(&"n".repeat(150))),
        ("sparse", pack("sparse")),
    ]
}

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What the rest is, then a document, or lines in which `@N` stands for the digest and size of another.
fn manifest() -> Seeds {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let pair = format!(r#""digest":"{digest}","size":100"#);
    let platform = r#""os":"linux","architecture":"amd64""#;
    let image = |config: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"mediaType":"{CONFIG}",{config}}},"layers":[{{"mediaType":"{LAYER}",{pair}}}]}}"#
        )
    };
    let index = |entry: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{IMAGE}",{entry},"platform":{{{platform}}}}}]}}"#
        )
    };
    let config = format!(
        r#"{{{platform},"config":{{"Env":["A=b"],"Cmd":["/init"],"User":"a","Labels":{{"a":"b"}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    let script = format!("{}\n{}\n{config}", index("@1"), image("@0"));
    vec![
        ("image", format!("m{}", image(&pair)).into_bytes()),
        ("index", format!("i{}", index(&pair)).into_bytes()),
        ("config", format!("c{config}").into_bytes()),
        ("resolve", format!("r{script}").into_bytes()),
        ("schema1", br#"m{"schemaVersion":1,"fsLayers":[]}"#.to_vec()),
    ]
}

/// Entries: layer and kind, path, target.
fn merge() -> Seeds {
    vec![
        ("replace", b"\x00a/\0\0\x01a/b\0\0\x10a\0\0".to_vec()),
        ("whiteout", b"\x00a/\0\0\x01a/b\0\0\x11a/.wh.b\0\0\x11a/.wh..wh..opq\0\0".to_vec()),
        ("links", b"\x03a\0b\0\x03b\0../a\0\x01a/x\0\0\x01c\0\0\x02d\0c\0".to_vec()),
    ]
}

/// Whether the sums are made right, then an archive.
fn tar() -> Seeds {
    let file = |name: &str, kind: u8, data: &[u8]| {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let mut data = data.to_vec();
        data.resize(data.len().next_multiple_of(512), 0);
        [&block[..], &data].concat()
    };
    let sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n29 GNU.sparse.realsize=12000\n";
    vec![
        ("file", [&[1][..], &file("a/b", b'0', b"hello"), &[0; 1024]].concat()),
        ("long", [&[1][..], &file("long", b'L', &[b'n'; 200]), &file("a", b'5', b"")].concat()),
        (
            "pax",
            [&[1][..], &file("x", b'x', b"20 mtime=1350244992\n"), &file("a", b'0', b"x")].concat(),
        ),
        (
            "sparse",
            [&[1][..], &file("x", b'x', sparse), &file("a", b'0', b"1\n4096\n2\n")].concat(),
        ),
    ]
}

/// An archive, or a member of gzip without bytes and one in front of something else.
fn layer() -> Seeds {
    const EMPTY: [u8; 20] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archives = tar().into_iter().map(|(name, seed)| (name, seed[1..].to_vec()));
    let members = [EMPTY.to_vec(), [&EMPTY[..], &EMPTY[..10], &[5, 0xe0, 0x81, 8]].concat()];
    archives.chain(["empty", "members"].into_iter().zip(members)).collect()
}

/// Whether it is blocks or a whole file, then that.
fn inflate() -> Seeds {
    use flate2::read::{DeflateEncoder, GzEncoder};
    use std::io::Read as _;
    let text = b"one two three two three one ".repeat(9);
    let noise: Vec<u8> = (0..400_u32).map(|at| (at * at >> 3).to_le_bytes()[0]).collect();
    let bytes = [&text[..], &noise, &[0; 300], &text].concat();
    let all = |mode: u8, mut packed: Box<dyn std::io::Read + '_>| {
        let mut seed = vec![mode];
        packed.read_to_end(&mut seed).expect("in memory");
        seed
    };
    let level = flate2::Compression::new;
    vec![
        ("stored", all(1, Box::new(DeflateEncoder::new(&text[..40], level(0))))),
        ("fixed", all(1, Box::new(DeflateEncoder::new(&b"abcabcabc"[..], level(9))))),
        ("dynamic", all(1, Box::new(DeflateEncoder::new(&bytes[..], level(9))))),
        ("file", all(0, Box::new(GzEncoder::new(&bytes[..], level(1))))),
        (
            "files",
            all(
                0,
                Box::new(
                    GzEncoder::new(&text[..], level(6)).chain(GzEncoder::new(&noise[..], level(6))),
                ),
            ),
        ),
    ]
}

/// What the rest is, then the text.
fn reference() -> Seeds {
    let digest = format!("sha256:{}", "0a".repeat(32));
    vec![
        ("registry", format!("rghcr.io:443/a/b-c:1.2@{digest}").into_bytes()),
        ("short", b"rdebian".to_vec()),
        ("layout", format!("roci:/a/b@{digest}").into_bytes()),
        ("archive", b"rdocker-archive:a.tar:debian:12".to_vec()),
        ("platform", b"plinux/arm64/v8.2".to_vec()),
        ("digest", format!("d{digest}").into_bytes()),
        ("hosts", b"h[registry.\"docker.io\"]\nmirrors = [\"https://a.example/hub\"]\nplain-http = false\n".to_vec()),
    ]
}

/// Which image; then block, byte and value of each change.
fn ext4_reader() -> Seeds {
    let change = |block: u16, at: u16, value: u8| {
        [&block.to_le_bytes()[..], &at.to_le_bytes(), &[value]].concat()
    };
    // Counts of the superblock, of a descriptor, and a byte of each of the first structures.
    let counts = [change(0, 1024 + 0xc, 3), change(1, 0xc, 3)].concat();
    let spread: Vec<u8> = (4..50).flat_map(|block| change(block, 8 + block * 5, 1)).collect();
    vec![
        ("base", vec![1]),
        ("base-counts", [&[2][..], &counts].concat()),
        ("base-spread", [&[2][..], &spread].concat()),
        ("disk", vec![3]),
        ("disk-counts", [&[3][..], &counts].concat()),
    ]
}

/// Disk, features; then steps as the target reads them.
fn block() -> Seeds {
    // Honest request: kind, sector, split of the header, number of buffers, their lengths, value.
    let write = [0, 1, 3, 16, 1, 3, 0x55];
    let read = [0, 0, 3, 8, 2, 1, 1, 0];
    let flush_and_id = [0, 2, 0, 0, 0, 0, 0, 3, 0, 16, 1, 3, 0];
    let ranges = [5, 1, 2, 1, 8, 0, 20, 3, 7, 0, 5, 0, 1, 2, 2, 0, 0];
    let mut careless = vec![6];
    careless.extend([0; 16]);
    careless.extend([2, 2, 0, 0, 1, 0, 9, 0, 0, 16, 1, 9, 1, 0, 1, 1]);
    let mut hostile = vec![7, 3, 2, 0x77, 0x77, 1, 9, 0, 0];
    hostile.extend([0xff; 8]);
    hostile.extend([0, 1, 0, 0, 3, 0, 5, 0, 1, 0, 0, 20]);
    let all = |disk: u8, features: u8| {
        [
            &[disk, features][..],
            &write,
            &read,
            &flush_and_id,
            &ranges,
            &careless,
            &write,
            &hostile,
            &[features],
            &read,
        ]
        .concat()
    };
    vec![
        ("read-write", all(0, 3)),
        ("write-through", all(0, 4)),
        ("read-only", all(1, 1)),
        ("overlay", all(2, 2)),
    ]
}

fn config() -> Seeds {
    let toml = r#"tcpus = 2
memory = "1G"
kernel = "vmlinux"
append = "quiet"
vsock = "/run/v.sock,cid=9"
console = "file=log"
timeout = "30s"
tables = "mptable"
seccomp = false
boot_trace = "json"

[[disk]]
path = "a,b.img"
overlay = "delta"
iops = 100
bw = "10M"
"#;
    [
        ("disk", "dd.img,ro,overlay=o=1,iops=5,bw=2K"),
        ("vsock", "v/run/v.sock,cid=9"),
        ("console-file", "cfile=log"),
        ("console-stdio", "cstdio"),
        ("toml", toml),
        ("toml-unknown", "tmemry = 64\n\u{e9} = '\n"),
        ("size", "s512MiB"),
        ("time", "s250ms"),
        ("append", "aquiet init=/bin/sh\u{1f}root=/dev/vdb\u{1f}a\nb"),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into()
}

fn console() -> Seeds {
    let print =
        |text: &[u8]| [&[5, u8::try_from(text.len()).expect("a short text")], text].concat();
    let panic = b"\r\nKernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n";
    let boot = [
        // Divisor, 8n1, FIFOs, all interrupts.
        &[0, 3, 0x83, 0, 0, 1, 0, 1, 0, 0, 3, 3, 0, 2, 7, 0, 1, 0xf][..],
        &print(b"[    0.1] Run /sbin/init as init process\r\n"),
        &print(panic),
        &[3],
        &print(b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07\ta\x08b\r50%\xff"),
    ];
    let input =
        [&[2, 5][..], b"input", &[1, 5, 7, 7, 1, 2, 0, 2, 6, 7], &[6, 2, 0, 0, 0, 0, 0, 0, 0, 0]];
    // Loop mode, back, then more than the port holds.
    let full = [0, 4, 0x10, 0, 0, 0x41, 0, 4, 8].into_iter().chain([4, b'x', 0xff, 3].repeat(70));
    vec![("boot", boot.concat()), ("input", input.concat()), ("full", full.collect())]
}

/// One program header: kind, offset, address, length in the file, length in memory.
type Part = (u32, u64, u64, u64, u64);

fn kernel() -> Seeds {
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    let text = (LOAD, 0x1000, MIB, 0x1234, 0x1234);
    let data = (LOAD, 0x2300, MIB + 0x2300, 0x80, 0x4000);
    let notes = (NOTE, 0x400, 0, 64, 64);
    // Entry and RAM, then the initial RAM disk, the command line, devices and tables.
    let machine = [0x06, 0, 0, 0, 40, 0, 4, 1];
    let pvh = [0x0f, 0x10, 0, 8, 0, 9, 2, 2];
    let mut compressed = b"\x1f\x8b\x08".to_vec();
    compressed.extend([0; 29]);
    let with = |image: Vec<u8>, machine: [u8; 8]| [&image[..], &machine].concat();
    vec![
        ("elf", with(elf(&[text, data, notes]), machine)),
        ("elf-pvh", with(elf(&[notes, text]), pvh)),
        ("elf-overlapping", with(elf(&[text, text]), machine)),
        ("elf-huge", with(elf(&[(LOAD, 0x1000, MIB, 16, 1 << 40)]), machine)),
        ("bzimage", with(bzimage(), machine)),
        ("bzimage-acpi", with(bzimage(), [0x0e, 0, 4, 4, 0xff, 7, 18, 2])),
        ("gzip", compressed),
    ]
}

/// A 64-bit kernel whose notes hold a PVH entry and a build salt.
fn elf(parts: &[Part]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [MIB + 0x40, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0; 4]);
    for half in [64_u16, 56, u16::try_from(parts.len()).expect("few parts"), 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    for &(kind, offset, addr, file_len, mem_len) in parts {
        out.extend(kind.to_le_bytes());
        out.extend(7_u32.to_le_bytes());
        for word in [offset, addr, addr, file_len, mem_len, 4] {
            out.extend(word.to_le_bytes());
        }
    }
    out.resize(0x400, 0);
    out.extend(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x40\0\x10\0\0\0\0\0");
    out.extend(b"\x06\0\0\0\x08\0\0\0\0\x01\0\0Linux\0\0\0osh-tiny");
    out.resize(0x2400, 0xcc);
    out
}

/// Protocol 2.15, one setup sector, 64-bit entry.
fn bzimage() -> Vec<u8> {
    let mut out = vec![0; 1024];
    for (offset, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &0x80_u32.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &0x020f_u16.to_le_bytes()),
        (0x211, &[1]),
        (0x214, &0x0010_0000_u32.to_le_bytes()),
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
        (0x230, &0x0020_0000_u32.to_le_bytes()),
        (0x234, &[1]),
        (0x236, &0x003f_u16.to_le_bytes()),
        (0x238, &2047_u32.to_le_bytes()),
        (0x258, &(2 * MIB).to_le_bytes()),
        (0x260, &0x0010_0000_u32.to_le_bytes()),
    ] {
        out[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    out.resize(1024 + 0x800, 0xcc);
    out
}

/// A delta of the target's disk with bytes changed, and files that are none.
fn overlay() -> Seeds {
    vec![
        ("good", vec![0, 5, 0x5a, 0, 0, 7, 1, 9, 2, 70, 3, 5, 4]),
        ("map-changed", vec![0, 5, 0x5a, 1, 0, 0x10, 0xff, 0, 1, 2]),
        ("header-changed", vec![0, 5, 0x5a, 2, 8, 0, 2, 33, 0, 9, 0]),
        ("cut", vec![0, 5, 0x5a, 0, 0xff]),
        ("not-a-delta", [&[1][..], b"OSHDELTA", &[1, 0, 0, 0, 0, 16, 0, 0]].concat()),
    ]
}

/// Features, size; then add, add indirect, pop, complete, interrupt, doorbell and rule-breaking steps.
fn queue() -> Seeds {
    let rounds = |features: u8| {
        let mut script = vec![features, 4];
        for at in 0_u8..12 {
            script.extend([0, 0x5, at, 0, 16, 9, at, 40, 3, 0x9, at, 1, 80, at, 3, 1, 2, 2]);
            script.extend([5, 12, 6, 10, 8, 0, at, 0, 9, 0, 1, 0, 10, 13, 11, 14, at, 0]);
        }
        script
    };
    let mut broken = rounds(3);
    broken.extend([15, 1, 1, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 1, 0, 2, 0, 2, 3, 0, 5, 5, 12]);
    vec![
        ("plain", rounds(0)),
        ("indirect", rounds(1)),
        ("event-index", rounds(2)),
        ("both", rounds(3)),
        ("rules-broken", broken),
    ]
}

fn transport() -> Seeds {
    // Features; queues; size and three addresses each.
    let up = [5, 3, 2, 4, 0, 1, 0, 0x10, 0, 0x20, 0, 3, 8, 0x80, 0, 0x90, 0, 0xa0];
    let notify = [0, 12, 0, 0, 12, 1, 0, 12, 2];
    let late = [0, 8, 0, 0, 10, 8, 2, 16, 1, 0, 0, 0, 0, 11, 0, 0, 15, 15];
    let reads =
        [3, 2, 15, 3, 2, 0, 3, 0, 29, 3, 3, 30, 3, 2, 28, 6, 0, 6, 1, 0, 14, 3, 6, 2, 3, 2, 15];
    let odd =
        [4, 1, 15, 0, 0, 4, 4, 29, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 255, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
    vec![
        ("brought-up", [&up[..], &notify, &late, &reads].concat()),
        ("refused", [&[7, 1][..], &up, &reads, &[7, 0], &up, &notify].concat()),
        ("odd-widths", [&odd[..], &up, &odd].concat()),
    ]
}

/// Features left out; then steps as the target reads them.
fn vnet() -> Seeds {
    // Header, length, whether large, cuts, indirect.
    let plain = [&[0][..], &[0; 12], &[200, 0, 1], &[11, 255], &[0]].concat();
    let large =
        [&[0][..], &[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0], &[44, 1, 0, 11, 255, 255], &[1]]
            .concat();
    // Skipped, kept, held.
    let take = [2, 54, 0xff, 0xff, 1];
    let (dropped, turn) = ([4], [8]);
    let offer = [5, 0xff, 7, 255, 255, 255, 255, 255, 255, 255, 255, 0];
    let send = [6, 0xb4, 5, 1, 1, 0, 0, 2];
    let command = [&[7, 5, 0][..], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[8, 1, 255, 1, 0]].concat();
    let hostile =
        [&[9, 1][..], &[0, 0, 16, 0, 0, 0, 0, 0], &[60, 0, 0, 0, 1, 0, 0, 0], &[0, 0, 0]].concat();
    let all = |features: u16| {
        let features = features.to_le_bytes();
        [
            &features[..],
            &plain,
            &take,
            &turn,
            &large,
            &take,
            &dropped,
            &turn,
            &offer,
            &offer,
            &send,
            &turn,
            &command,
            &turn,
        ]
        .concat()
    };
    vec![
        ("everything", all(0)),
        ("nothing", all(0xffff)),
        ("hostile", [&all(0)[..], &hostile, &take, &plain, &turn].concat()),
    ]
}

/// Headers as the guest writes them; the first three bytes also say what the host does.
fn vsock() -> Seeds {
    let packet = |mood: u8, op: u16, len: u32, flags: u32| {
        let mut bytes = vec![mood, 1, 4, 0, 0, 0, 0, 0];
        bytes.extend(2_u64.to_le_bytes());
        for word in [1000, 7, len] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend(op.to_le_bytes());
        for word in [flags, 1 << 16, 0] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes
    };
    let talk = |mood: u8| {
        [
            packet(mood | 0x30, 1, 0, 0),
            packet(mood | 0x10, 5, 4096, 0),
            packet(mood | 0x54, 5, 1 << 16, 0),
            packet(mood | 0xd0, 6, 0, 0),
            packet(mood | 0x10, 7, 0, 0),
            packet(mood | 0x10, 4, 0, 2),
            packet(mood | 0x10, 3, 0, 0),
        ]
        .concat()
    };
    vec![
        ("talk", talk(0)),
        ("slow-host", talk(2)),
        ("host-leaves", talk(8)),
        ("refused", [packet(0x10, 1, 0, 0), packet(0x10, 5, 10, 0)].concat()),
        ("too-much", [packet(0x32, 1, 0, 0), packet(0x12, 5, u32::MAX, 0)].concat()),
    ]
}

/// Version and prefix, domains, then the message.
fn dhcp() -> Seeds {
    let four = |options: &[u8], changes: &[(usize, &[u8])]| {
        let mut message = vec![0; 236];
        let client = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
        message[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        message[28..34].copy_from_slice(&client);
        for (at, bytes) in changes {
            message[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        [&[48, 1, 7][..], b"example", &message, &[99, 130, 83, 99], options].concat()
    };
    let address = [192, 168, 127, 2];
    let request = [53, 1, 3, 50, 4, 192, 168, 127, 2, 54, 4, 192, 168, 127, 1, 55, 2, 6, 119, 255];
    vec![
        ("discover", four(&[53, 1, 1, 61, 3, 1, 2, 3, 57, 2, 5, 0xdc, 255], &[(10, &[0x80])])),
        ("request", four(&request, &[])),
        ("renew", four(&[53, 1, 3, 255], &[(12, &address)])),
        ("refused", four(&[53, 1, 3, 50, 4, 10, 0, 2, 15, 255], &[])),
        ("inform", four(&[53, 1, 8, 255], &[(12, &address)])),
        ("rapid", four(&[53, 1, 1, 80, 0, 255], &[])),
        ("overload", four(&[52, 1, 3, 255], &[(108, &[53, 1, 3, 255]), (44, &[50, 4, 192, 168])])),
        (
            "v6",
            [&[1, 1, 4][..], b"a.bc", &[11, 1, 2, 3, 0, 1, 0, 2, 9, 9, 0, 6, 0, 2, 0, 23]].concat(),
        ),
    ]
}

/// Pause, more to come and number; offset; length; first byte.
fn fragments() -> Seeds {
    let (more, slowly) = (8, 16);
    let cut =
        |number: u8| [[more | number, 0, 2, 1], [more | number, 2, 2, 17], [number, 4, 5, 33]];
    let mut backwards = cut(2);
    backwards.reverse();
    let scattered: Vec<[u8; 4]> = (0..80).map(|at| [more | 4, at * 2, 1, at]).collect();
    let big: Vec<[u8; 4]> = (0..6).map(|number| [more | number, 200, 255, 7]).collect();
    vec![
        ("in-order", cut(2).concat()),
        ("backwards", backwards.concat()),
        (
            "interleaved",
            [cut(2)[0], cut(4)[0], cut(2)[1], cut(4)[1], cut(4)[2], cut(2)[2]].concat(),
        ),
        ("overlap", [cut(2)[0], [more | 2, 1, 2, 9], cut(2)[1], cut(2)[2]].concat()),
        ("slow", [[more | slowly * 15 | 2, 0, 2, 1], [slowly * 15, 0, 0, 0], cut(2)[1]].concat()),
        ("tcp", cut(7).concat()),
        ("scattered", scattered.concat()),
        ("too-many", big.concat()),
    ]
}

/// Offloads; then steps as the target reads them.
fn frames() -> Seeds {
    const FLUSH: u8 = 15;
    // Ports, flags, sequence number and acknowledgment by 97, window, length by 7.
    let segment = |flags: u8, len: u8| [2, 0, flags, 0, 0, 255, len];
    let (syn, ack, fin, reset) = (2, 16, 17, 4);
    let open = [&segment(syn, 0)[..], &[FLUSH], &segment(ack, 0), &[FLUSH]].concat();
    let upload = [&open[..], &segment(ack, 200), &segment(ack, 200), &[FLUSH]].concat();
    // Which socket, and what: bytes to read, and that they are there.
    let download = [&open[..], &[9, 0, 0x1c, FLUSH], &segment(ack, 0), &[FLUSH]].concat();
    let wait = [14, 255, FLUSH];
    let close = [&download[..], &[9, 0, 8, FLUSH], &segment(fin, 3), &[FLUSH], &wait].concat();
    let lookup = b"\x08\x00\x1d\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";
    let published = [&[12, 9, FLUSH][..], &segment(18, 0), &[FLUSH], &segment(reset, 0)].concat();
    let all = |kind: u8, steps: &[u8]| [&[kind], steps].concat();
    // To the host, which is closed, and which nobody is told of.
    let refused = [8, 3, 4, b'n', b'o', b'n', b'e', FLUSH];
    let mut solicit = vec![17, 48, 0x60, 0, 0, 0, 0, 8, 58, 255];
    solicit.extend(
        [&[0; 16][..], &[0xff, 2], &[0; 13], &[2], &[133, 0, 0, 0, 0, 0, 0, 0], &[FLUSH]].concat(),
    );
    vec![
        ("upload", all(0, &upload)),
        ("download", all(3, &download)),
        ("close", all(0, &close)),
        ("lookup", all(7, &[&lookup[..], &[FLUSH]].concat())),
        ("published", all(0, &published)),
        ("refused", all(0x20, &refused)),
        ("router", all(8, &solicit)),
        ("full-link", all(1, &[&open[..], &[0x1d, 0], &download, &[0x1d, 9, FLUSH]].concat())),
    ]
}

/// Steps as the target reads them.
fn dns_guest() -> Seeds {
    let plain = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
    let fixed = b"\0\x02\x01\0\0\x01\0\0\0\0\0\0\x04host\x06docker\x08internal\0\0\x01\0\x01";
    let evil = b"\0\x03\x01\0\0\x01\0\0\0\0\0\0\x01x\x04evil\x07example\0\0\x1c\0\x01";
    let len = |bytes: &[u8]| u8::try_from(bytes.len()).expect("queries are short");
    let ask = |port: u8, query: &[u8]| [&[0, port, len(query)], query].concat();
    let push = |query: &[u8]| [&[2, len(query) + 2, 0, len(query)], query].concat();
    let udp =
        [ask(1, plain), vec![8, 0, 0], ask(2, fixed), ask(3, evil), ask(4, plain), vec![6, 255]];
    let tcp =
        [vec![1, 0], push(plain), push(fixed), vec![8, 0, 2, 3, 200, 8, 0, 0, 4, 0, 3, 255, 5, 0]];
    vec![
        ("udp", udp.concat()),
        ("tcp", tcp.concat()),
        ("silence", [ask(1, plain), [6, 90].repeat(4)].concat()),
        ("refused", [vec![7, 1], ask(1, plain), vec![7, 1, 6, 90]].concat()),
    ]
}

/// Way, type, counts of records; then records behind the question.
fn dns_resolver() -> Seeds {
    let a = |last: u8| [&b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04"[..], &[10, 0, 0, last]].concat();
    let public = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x01\x01\x01\x01";
    let cname = b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x04\x01b\xc0\x0f";
    let https =
        b"\xc0\x0c\0\x41\0\x01\0\0\0\x3c\0\x0f\0\x01\0\0\x04\0\x08\x0a\0\0\x01\x01\x01\x01\x01";
    let aaaa =
        b"\x01c\xc0\x0f\0\x1c\0\x01\0\0\0\x3c\0\x10\0\x64\xff\x9b\0\0\0\0\0\0\0\0\x7f\0\0\x01";
    let head = |way: u8, kind: u8, answers: u8, more: u8| [way, kind, 0, answers, 0, 0, 0, more];
    vec![
        ("address", [&head(0, 1, 2, 0)[..], public, &a(1)].concat()),
        ("chain", [&head(0, 1, 2, 1)[..], cname, public, aaaa].concat()),
        ("service", [&head(0, 0, 1, 1)[..], https, &a(2)].concat()),
        ("stream", [&head(2, 1, 2, 0)[..], public, &a(1)].concat()),
    ]
}

/// Rules, then destinations: family, address, port.
fn rule() -> Seeds {
    let destinations = b"\0\x01\x01\x01\x01\xbb\x01\0\xfe\x7f\xa8\xc0\x06\x45\0\x01\0\0\x7f\x50\0\
        \x01\0\0\0\0\x9b\xff\x64\0\x01\0\0\x7f\0\0\0\0\x50\0";
    let seed = |rules: &str| [rules.as_bytes(), &[0], destinations].concat();
    vec![
        ("names", seed("allow tcp:*.example.org:443\nallow dns:a.example\ndeny public")),
        ("ranges", seed("deny 1.1.1.0/24:25,80-90\nallow [fd00::/8]:443\nallow 2606::/16")),
        ("groups", seed("allow tcp:host:17670\nallow icmp:private\ndeny udp:any")),
        ("wrong", seed("allow tpc:1.1.1.1\nallow 10.1.2.3/8\ndeny host:0\npermit x")),
    ]
}
