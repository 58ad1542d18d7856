//! Certificates and keys of one run, as `openshell-gateway generate-certs` makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use openshell_tests::machine::fixture;

/// The files, below one directory.
#[derive(Debug)]
pub(crate) struct Pki {
    directory: PathBuf,
}

impl Pki {
    /// Makes all of them in `directory`.
    pub(crate) fn make(directory: &Path) -> Self {
        let mut generate = Command::new(fixture("openshell-gateway"));
        let made = generate.args(["generate-certs", "--output-dir"]).arg(directory).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { directory: directory.to_owned() }
    }

    /// The path of a file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is in a file.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}
