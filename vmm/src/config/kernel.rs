//! Guest kernels on this host: where they are looked for, and whether one is what its manifest says.
//!
//! Invariant: the search order is fixed and never includes the working directory. Any thread.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::explain::Explain;

/// Names a kernel image when no flag does.
pub const KERNEL_ENV: &str = "OPENSHELL_VMM_KERNEL";

/// What a kernel was built for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Everything that a container workload expects.
    #[default]
    Sandbox,
    /// As small as boots a disk.
    Tiny,
}

impl Profile {
    /// Every profile's name.
    pub const NAMES: [&'static str; 2] = ["sandbox", "tiny"];

    /// The profile of that name, one of [`Self::NAMES`].
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "sandbox" => Some(Self::Sandbox),
            "tiny" => Some(Self::Tiny),
            _ => None,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sandbox => "sandbox",
            Self::Tiny => "tiny",
        })
    }
}

/// Where kernels are looked for: what the environment decides.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct KernelPlaces {
    /// [`KERNEL_ENV`]: an image.
    pub named: Option<PathBuf>,
    /// Directories that hold `openshell-vmm/kernels/PROFILE/vmlinux`, best first.
    pub roots: Vec<PathBuf>,
}

impl KernelPlaces {
    /// As the environment of this process says.
    #[must_use]
    pub fn of_process() -> Self {
        let not_empty =
            |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data = not_empty("XDG_DATA_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| not_empty("HOME").map(|home| home.join(".local/share")));
        let beside =
            env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("lib")));
        let system = PathBuf::from("/usr/lib");
        let mut roots: Vec<_> = data.into_iter().chain(beside).collect();
        if !roots.contains(&system) {
            roots.push(system);
        }
        Self { named: not_empty(KERNEL_ENV), roots }
    }

    /// The images to try for `profile`, in order.
    #[must_use]
    pub fn candidates(&self, profile: Profile) -> Vec<PathBuf> {
        match &self.named {
            // A name that leads nowhere is an error: falling back would boot a kernel that nobody asked for.
            Some(path) => vec![path.clone()],
            None => self
                .roots
                .iter()
                .map(|root| root.join(format!("openshell-vmm/kernels/{profile}/vmlinux")))
                .collect(),
        }
    }

    /// The image that `run` would take: `explicit`, or the first candidate that exists.
    ///
    /// # Errors
    /// The candidates, when none exists.
    pub fn find(&self, explicit: Option<&Path>, profile: Profile) -> Result<PathBuf, Vec<PathBuf>> {
        if let Some(path) = explicit {
            return Ok(path.to_owned());
        }
        let candidates = self.candidates(profile);
        candidates.iter().find(|path| path.exists()).cloned().ok_or(candidates)
    }
}

/// `kernel.json`, written beside an image when it is installed. Keys that this version does not know are left to newer ones.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// SHA-256 of the image, in hexadecimal.
    pub vmlinux_sha256: String,
    /// The linker's build id.
    pub build_id: String,
    /// The profile it was built as.
    pub profile: String,
    /// How it finds devices: `mptable` or `acpi`.
    pub tables: String,
    /// Version of the kernel source.
    pub source_version: String,
}

/// Why an image cannot be trusted to be the one that was installed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The image cannot be read.
    #[error("cannot read the kernel {}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// There is nothing to compare with.
    #[error("cannot read {}, which says what the kernel should be", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{} is not a kernel manifest", path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The image is another one.
    #[error("kernel {} has SHA-256 {found}, its manifest says {expected}", path.display())]
    Digest {
        /// The image.
        path: PathBuf,
        /// Computed.
        found: String,
        /// Recorded.
        expected: String,
    },
}

impl Explain for VerifyError {
    fn fix(&self) -> Option<String> {
        Some("`cargo xtask kernel` builds and installs it again".to_owned())
    }
}

/// Computes the digest of `image` and compares it with the manifest beside it.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(image: &Path) -> Result<Manifest, VerifyError> {
    let path = image.with_file_name("kernel.json");
    let text = std::fs::read(&path)
        .map_err(|source| VerifyError::Manifest { path: path.clone(), source })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|source| VerifyError::Format { path: path.clone(), source })?;
    let found =
        sha256(image).map_err(|source| VerifyError::Image { path: image.to_owned(), source })?;
    if !found.eq_ignore_ascii_case(&manifest.vmlinux_sha256) {
        let expected = manifest.vmlinux_sha256;
        return Err(VerifyError::Digest { path: image.to_owned(), found, expected });
    }
    Ok(manifest)
}

/// SHA-256 of a file's contents, in hexadecimal.
fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        digest.update(&buffer[..len]);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(root: &Path, profile: &str) -> PathBuf {
        let dir = root.join("openshell-vmm/kernels").join(profile);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("vmlinux"), "abc").unwrap();
        dir.join("vmlinux")
    }

    fn manifest(image: &Path, digest: &str) {
        let text = format!(
            r#"{{"vmlinux_sha256": "{digest}", "build_id": "b", "profile": "sandbox", "tables": "acpi",
                "source_version": "6.1", "added_later": 1}}"#
        );
        std::fs::write(image.with_file_name("kernel.json"), text).unwrap();
    }

    #[test]
    fn the_first_place_that_has_the_profile_wins() {
        let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = vec![near.path().to_owned(), far.path().to_owned()];
        let places = KernelPlaces { named: None, roots };
        let sandbox = install(far.path(), "sandbox");
        let tiny = install(near.path(), "tiny");
        assert_eq!(places.find(None, Profile::Sandbox), Ok(sandbox));
        assert_eq!(places.find(None, Profile::Tiny), Ok(tiny));
        let sandbox = install(near.path(), "sandbox");
        assert_eq!(places.find(None, Profile::Sandbox), Ok(sandbox));
    }

    #[test]
    fn a_name_is_taken_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        install(root.path(), "sandbox");
        let roots = vec![root.path().to_owned()];
        let named = KernelPlaces { named: Some("/nope".into()), roots };
        assert_eq!(named.find(None, Profile::Sandbox), Err(vec![PathBuf::from("/nope")]));
        assert_eq!(named.find(Some(Path::new("k")), Profile::Sandbox), Ok("k".into()));
    }

    #[test]
    fn a_kernel_is_intact_when_its_digest_is_the_recorded_one() {
        const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let root = tempfile::tempdir().unwrap();
        let image = install(root.path(), "sandbox");
        assert!(matches!(verify(&image), Err(VerifyError::Manifest { .. })));
        manifest(&image, ABC);
        assert_eq!(verify(&image).unwrap().source_version, "6.1");
        std::fs::write(&image, "abd").unwrap();
        let error = verify(&image).unwrap_err();
        assert!(
            matches!(&error, VerifyError::Digest { expected, .. } if expected == ABC),
            "{error}"
        );
        std::fs::write(image.with_file_name("kernel.json"), "{}").unwrap();
        assert!(matches!(verify(&image), Err(VerifyError::Format { .. })));
    }
}
