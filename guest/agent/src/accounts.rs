//! Who a process runs as, by the guest's own account files.

use std::fs::File;
use std::io::{ErrorKind, Read as _};

use openshell_agent_proto::{Failure, FailureKind};
use openshell_init::accounts::{Identity, resolve};

/// What is read of an account file, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// Looks up `user`, as an image's configuration writes it, and further `groups`.
///
/// # Errors
/// With the name that there is not, or the file that cannot be read.
pub fn look_up(user: &str, groups: &[String]) -> Result<Identity, Failure> {
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    resolve(user, groups, &passwd, &group).map_err(|text| Failure::new(FailureKind::User, text))
}

fn read(path: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::new(FailureKind::User, format!("{path}: {error}")))
        }
        // An image may lack them.
        _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}
