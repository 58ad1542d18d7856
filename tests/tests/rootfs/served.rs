//! Images made by umoci, and a docker-registry on loopback that skopeo puts them into.
//!
//! Everything lies in one temporary directory, and the registry ends with its owner.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

/// The name and password of registries that want one, and its line in an htpasswd file.
pub(crate) const USER: (&str, &str) = ("user", "hunter2");
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";

/// Runs a program to its end, which must be a good one.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program}: {error}; `cargo xtask setup tests` installs it")
    });
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// An image layout made by umoci.
pub(crate) struct Layout {
    directory: TempDir,
}

impl Layout {
    /// A layout with image `app`: a small layer, a large one that does not compress, a change and a removal.
    pub(crate) fn new() -> Self {
        let layout = Self { directory: TempDir::new().unwrap() };
        let tree = layout.directory.path().join("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/motd"), "hello\n").unwrap();
        fs::write(tree.join("etc/removed"), "soon\n").unwrap();
        std::os::unix::fs::symlink("motd", tree.join("etc/link")).unwrap();
        let large = layout.directory.path().join("large");
        let mut noise = vec![0; 40 << 20];
        File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
        fs::write(&large, noise).unwrap();
        fs::write(tree.join("change"), "changed\n").unwrap();
        let at = |path: &str| tree.join(path).to_str().unwrap().to_owned();
        let image = layout.image();
        run("umoci", &["init", "--layout", &layout.path()]);
        run("umoci", &["new", "--image", &image]);
        layout.insert(&["--rootless", &at("etc"), "/etc"]);
        layout.insert(&["--rootless", large.to_str().unwrap(), "/srv/large"]);
        layout.insert(&["--rootless", &at("change"), "/etc/motd"]);
        layout.insert(&["--whiteout", "/etc/removed"]);
        run(
            "umoci",
            &[
                "config",
                "--image",
                &image,
                "--os",
                "linux",
                "--architecture",
                "amd64",
                "--config.entrypoint",
                "/init",
                "--config.env",
                "A=b",
            ],
        );
        layout
    }

    fn insert(&self, arguments: &[&str]) {
        let image = self.image();
        run("umoci", &[&["insert", "--image", &image], arguments].concat());
    }

    fn path(&self) -> String {
        self.directory.path().join("layout").to_str().unwrap().to_owned()
    }

    /// The image's name for umoci.
    fn image(&self) -> String {
        format!("{}:app", self.path())
    }

    /// A blob's file.
    pub(crate) fn blob(&self, hex: &str) -> PathBuf {
        Path::new(&self.path()).join("blobs/sha256").join(hex)
    }

    /// Puts the image into a registry, with more arguments for skopeo.
    pub(crate) fn push(&self, registry: &Served, name: &str, more: &[&str]) {
        let (from, to) =
            (format!("oci:{}", self.image()), format!("docker://{}/{name}", registry.host()));
        let always = ["copy", "--insecure-policy", "--dest-tls-verify=false"];
        run("skopeo", &[&always, more, &[&from, &to]].concat());
    }
}

/// A docker-registry on loopback.
pub(crate) struct Served {
    directory: TempDir,
    process: Option<Child>,
    host: String,
    log: Arc<Mutex<String>>,
}

impl Served {
    /// A registry that is open to everybody.
    pub(crate) fn open() -> Self {
        Self::start("")
    }

    /// A registry for [`USER`] alone.
    pub(crate) fn closed() -> Self {
        Self::start("auth:\n  htpasswd:\n    realm: test\n    path: PATH/htpasswd\n")
    }

    /// A registry that speaks TLS, with a certificate that only [`Served::authority`] vouches for.
    pub(crate) fn secure() -> Self {
        Self::start("http:\n  tls:\n    certificate: PATH/certificate\n    key: PATH/key\n")
    }

    /// The file with the certificate of the registry's authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.path().join("authority")
    }

    fn start(more: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().to_str().unwrap();
        if more.contains("tls:") {
            certify(path);
        }
        fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {path}/store\n{}",
            more.replace("PATH", path)
        );
        fs::write(directory.path().join("config"), config).unwrap();
        let (host, log) = ("127.0.0.1:0".to_owned(), Arc::default());
        let mut served = Self { directory, process: None, host, log };
        served.run();
        served
    }

    /// Runs the registry, at the same address as before.
    pub(crate) fn run(&mut self) {
        let config = self.directory.path().join("config");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .env("REGISTRY_HTTP_ADDR", &self.host)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`cargo xtask setup tests` installs docker-registry");
        let (found, host) = std::sync::mpsc::channel();
        let output = process.stdout.take().unwrap();
        self.follow(output, None);
        let error = process.stderr.take().unwrap();
        self.follow(error, Some(found));
        self.process = Some(process);
        self.host = host.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| {
            panic!("the registry does not listen: {}", self.log.lock().unwrap())
        });
    }

    /// Ends the registry at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// What the registry has written.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Puts a manifest there, which skopeo has no way to make.
    pub(crate) fn put(&self, name: &str, media_type: &str, document: &str) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let head = format!(
            "PUT /v2/team/app/manifests/{name} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\
             content-type: {media_type}\r\ncontent-length: {}\r\n\r\n{document}",
            self.host,
            document.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    /// Keeps what the registry writes, and looks for the address that it listens at.
    fn follow(
        &self,
        output: impl std::io::Read + Send + 'static,
        found: Option<std::sync::mpsc::Sender<String>>,
    ) {
        let log = self.log.clone();
        let follow = move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ")
                    && let Some(found) = &found
                {
                    let address: String = rest
                        .chars()
                        .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                        .collect();
                    drop(found.send(address));
                }
                *log.lock().unwrap() += &(line + "\n");
            }
        };
        std::thread::Builder::new().spawn(follow).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes an authority and a certificate for loopback in a directory.
fn certify(directory: &str) {
    let at = |name: &str| format!("{directory}/{name}");
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let openssl = |arguments: &[&str]| run("openssl", arguments);
    let (authority, authority_key) = (at("authority"), at("authority-key"));
    let own = ["-x509", "-subj", "/CN=authority", "-keyout", &authority_key, "-out", &authority];
    openssl(&[&["req"], &key[..], &own].concat());
    let request = ["-subj", "/CN=registry", "-keyout", &at("key"), "-out", &at("request")];
    openssl(&[&["req"], &key[..], &request].concat());
    fs::write(at("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let signed =
        ["-in", &at("request"), "-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial"];
    let out = ["-extfile", &at("extensions"), "-out", &at("certificate")];
    openssl(&[&["x509", "-req"], &signed[..], &out].concat());
}
