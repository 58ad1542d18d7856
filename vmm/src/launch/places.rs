//! Where the programs and files are that a machine of an image needs besides its kernel.

use std::env;
use std::path::{Path, PathBuf};

use crate::explain::Explain;

/// Names the tools disk when it is not where it is looked for.
pub(super) const TOOLS_ENV: &str = "OPENSHELL_VMM_TOOLS";
/// Names `openshell-rootfs` when it is not where it is looked for.
pub(super) const ROOTFS_ENV: &str = "OPENSHELL_VMM_ROOTFS";

const ROOTFS: &str = "openshell-rootfs";
const TOOLS: &str = "tools.ext4";

/// What the environment of this process decides.
#[derive(Debug, Default, Clone)]
pub struct Places {
    tools_named: Option<PathBuf>,
    rootfs_named: Option<PathBuf>,
    /// The directory of this program.
    beside: Option<PathBuf>,
    /// Directories that hold `openshell-vmm/tools.ext4`, best first.
    roots: Vec<PathBuf>,
    path: Vec<PathBuf>,
}

/// What was not found.
#[derive(Debug, thiserror::Error)]
pub enum PlacesError {
    /// The disk with the guest's first process.
    #[error("there is no tools disk; looked for {}", shown(.0))]
    Tools(Vec<PathBuf>),
    /// The program that makes disks of images.
    #[error("there is no program {ROOTFS}; looked for {}, then in $PATH", shown(.0))]
    Rootfs(Vec<PathBuf>),
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Explain for PlacesError {
    fn fix(&self) -> Option<String> {
        Some(match self {
            Self::Tools(_) => format!(
                "put {TOOLS} of the release beside openshell-vmm, or name one with ${TOOLS_ENV}"
            ),
            Self::Rootfs(_) => format!(
                "put {ROOTFS} of the release beside openshell-vmm, or name it with ${ROOTFS_ENV}"
            ),
        })
    }
}

impl Places {
    /// As the environment of this process says.
    #[must_use]
    pub fn of_process() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let data = set("XDG_DATA_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| set("HOME").map(|home| home.join(".local/share")));
        let beside = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        let lib = beside.as_deref().and_then(Path::parent).map(|parent| parent.join("lib"));
        let mut roots: Vec<_> = data.into_iter().chain(lib).collect();
        let system = PathBuf::from("/usr/lib");
        if !roots.contains(&system) {
            roots.push(system);
        }
        let path =
            env::var_os("PATH").map_or_else(Vec::new, |path| env::split_paths(&path).collect());
        let (tools_named, rootfs_named) = (set(TOOLS_ENV), set(ROOTFS_ENV));
        Self { tools_named, rootfs_named, beside, roots, path }
    }

    /// The disk with the guest's first process.
    ///
    /// # Errors
    /// [`PlacesError::Tools`].
    pub fn tools(&self) -> Result<PathBuf, PlacesError> {
        let candidates: Vec<PathBuf> = match &self.tools_named {
            Some(named) => vec![named.clone()],
            None => {
                let beside = self.beside.iter().map(|directory| directory.join(TOOLS));
                let installed =
                    self.roots.iter().map(|root| root.join("openshell-vmm").join(TOOLS));
                beside.chain(installed).collect()
            }
        };
        let found = candidates.iter().find(|path| path.exists()).cloned();
        found.ok_or(PlacesError::Tools(candidates))
    }

    /// The program that makes disks of images.
    ///
    /// # Errors
    /// [`PlacesError::Rootfs`].
    pub fn rootfs(&self) -> Result<PathBuf, PlacesError> {
        let own: Vec<PathBuf> = match &self.rootfs_named {
            Some(named) => vec![named.clone()],
            None => self.beside.iter().map(|directory| directory.join(ROOTFS)).collect(),
        };
        let elsewhere = self.path.iter().filter(|_| self.rootfs_named.is_none());
        let all = own.iter().cloned().chain(elsewhere.map(|directory| directory.join(ROOTFS)));
        let found = all.into_iter().find(|path| path.is_file());
        found.ok_or(PlacesError::Rootfs(own))
    }

    /// A kernel that came in the same archive as this program.
    #[must_use]
    pub fn kernel_beside(&self) -> Option<PathBuf> {
        let path = self.beside.as_ref()?.join("vmlinux");
        path.is_file().then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_not_looked_for_and_what_is_beside_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let places = Places {
            beside: Some(at("bin")),
            roots: vec![at("lib")],
            path: vec![at("path")],
            ..Places::default()
        };
        let error = places.tools().unwrap_err().to_string();
        assert!(error.contains("bin/tools.ext4") && error.contains("lib/openshell-vmm/tools.ext4"));
        let error = places.rootfs().unwrap_err();
        assert!(error.to_string().ends_with("bin/openshell-rootfs, then in $PATH"), "{error}");
        assert!(error.fix().unwrap().contains("beside openshell-vmm"));
        for file in ["path/openshell-rootfs", "lib/openshell-vmm/tools.ext4"] {
            std::fs::create_dir_all(at(file).parent().unwrap()).unwrap();
            std::fs::write(at(file), b"x").unwrap();
        }
        assert_eq!(places.rootfs().unwrap(), at("path/openshell-rootfs"));
        assert_eq!(places.tools().unwrap(), at("lib/openshell-vmm/tools.ext4"));
        std::fs::create_dir_all(at("bin")).unwrap();
        for file in ["bin/openshell-rootfs", "bin/tools.ext4"] {
            std::fs::write(at(file), b"x").unwrap();
        }
        assert_eq!(places.rootfs().unwrap(), at("bin/openshell-rootfs"));
        assert_eq!(places.tools().unwrap(), at("bin/tools.ext4"));
        let named =
            Places { tools_named: Some(at("none")), rootfs_named: Some(at("none")), ..places };
        assert!(named.tools().is_err() && named.rootfs().is_err());
    }
}
