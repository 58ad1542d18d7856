//! Images for machines: an OCI layout of one layer, and a registry of this host that serves it.
//!
//! Invariant: nothing here shares code with what reads images.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The processor that images are for unless one says otherwise, as OCI names it.
pub const ARCHITECTURE: &str = "amd64";

/// Writes a layout at `layout` with an image of `tree` and the `config` of an OCI image configuration. `busybox` packs it.
///
/// # Errors
/// When a file cannot be written or packed.
pub fn write_layout(
    busybox: &Path,
    tree: &Path,
    layout: &Path,
    architecture: &str,
    config: &Value,
) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let tar = layout.join("layer.tar");
    let mut pack = Command::new(busybox);
    pack.args(["tar", "-C"]).arg(tree).arg("-cf").arg(&tar).arg(".");
    let packed = pack.status().context("busybox does not start")?;
    ensure!(packed.success(), "{} could not be packed", tree.display());
    let layer = fs::read(&tar)?;
    fs::remove_file(&tar)?;
    let put = |bytes: &[u8], media: &str| -> io::Result<Value> {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hex), bytes)?;
        Ok(json!({
            "mediaType": format!("application/vnd.oci.image.{media}"),
            "digest": format!("sha256:{hex}"),
            "size": bytes.len(),
        }))
    };
    let layer = put(&layer, "layer.v1.tar")?;
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = put(config.to_string().as_bytes(), "config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut entry = put(manifest.to_string().as_bytes(), "manifest.v1+json")?;
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "image" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    Ok(())
}

/// A registry of this host that serves the images of one layout under every name, over plain HTTP, and counts what it was asked. A tag
/// is the name of an image in the layout; another one means the first image. It ends with the process.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Registry {
    /// Begins to serve.
    ///
    /// # Errors
    /// When there is no port or no thread to be had.
    pub fn serve(layout: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, layout) = (Arc::clone(&asked), layout.to_owned());
        let serve = move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                drop(answer(stream, &layout));
            }
        };
        thread::Builder::new().name("registry".to_owned()).spawn(serve)?;
        Ok(Self { address, asked })
    }

    /// Its host and port, as a reference to an image begins.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has had.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Answers the one request of a connection.
fn answer(stream: TcpStream, layout: &Path) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? <= 2 {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let wanted = path.rsplit('/').next().unwrap_or_default();
    let images = index["manifests"].as_array().map_or(&[][..], Vec::as_slice);
    let is_wanted =
        |image: &&Value| image["annotations"]["org.opencontainers.image.ref.name"] == wanted;
    let entry = images.iter().find(is_wanted).or(images.first()).unwrap_or(&Value::Null);
    let digest = match wanted {
        digest if digest.starts_with("sha256:") => digest.to_owned(),
        _ => entry["digest"].as_str().unwrap_or_default().to_owned(),
    };
    let blob = layout.join("blobs").join(digest.replace(':', "/"));
    let (status, body) = match fs::read(blob) {
        _ if path == "/v2/" => ("200 OK", b"{}".to_vec()),
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let kind = if path.contains("/manifests/") {
        entry["mediaType"].as_str().unwrap_or_default()
    } else {
        "application/octet-stream"
    };
    let mut stream = lines.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if !first.starts_with("HEAD") {
        stream.write_all(&body)?;
    }
    stream.flush()
}
