//! Policies of sandboxes: what one is that names none, and which are taken.
//!
//! Invariant: a policy that is kept has passed [`check_policy`]. Pure.

use openshell_proto::sandbox::v1::{
    FilesystemPolicy, LandlockPolicy, ProcessPolicy, SandboxPolicy,
};
use openshell_proto::v1::Sandbox;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;

const PATHS_MAX: usize = 256;
const PATH_MAX: usize = 4096;
/// Longest policy, encoded: what is merged into it again and again must end somewhere.
const BYTES_MAX: usize = 1 << 20;

/// The policy of a sandbox and its version, which is 1 at first.
pub(super) fn policy_of(row: &Sandbox) -> (SandboxPolicy, u32) {
    let policy = row.spec.as_ref().and_then(|spec| spec.policy.clone());
    let version = row.status.as_ref().map_or(0, |status| status.current_policy_version);
    (policy.unwrap_or_else(usual), version.max(1))
}

/// The policy of those who bring none: the system to read, the sandbox's own directory to write, no egress.
pub(super) fn usual() -> SandboxPolicy {
    let paths = |list: &[&str]| list.iter().map(|&path| path.to_owned()).collect();
    SandboxPolicy {
        version: 1,
        filesystem: Some(FilesystemPolicy {
            include_workdir: true,
            read_only: paths(&[
                "/usr",
                "/lib",
                "/etc",
                "/app",
                "/var/log",
                "/proc",
                "/dev/urandom",
            ]),
            read_write: paths(&["/tmp", "/dev/null"]),
        }),
        landlock: Some(LandlockPolicy { compatibility: "best_effort".to_owned() }),
        process: Some(ProcessPolicy {
            run_as_user: "sandbox".to_owned(),
            run_as_group: "sandbox".to_owned(),
        }),
        ..SandboxPolicy::default()
    }
}

/// The messages keep their maps in order: the same policy has the same bytes.
pub(super) fn hash(policy: &SandboxPolicy) -> String {
    let digest = Sha256::digest(policy.encode_to_vec());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn check_policy(policy: &SandboxPolicy) -> Result<(), Status> {
    let refused = |why: &str| Err(Status::invalid_argument(format!("policy: {why}")));
    if policy.encoded_len() > BYTES_MAX {
        return refused("longer than 1 MiB");
    }
    if let Some(files) = &policy.filesystem {
        if files.read_only.len() + files.read_write.len() > PATHS_MAX {
            return refused("more than 256 paths");
        }
        for path in files.read_only.iter().chain(&files.read_write) {
            let climbs = path.split('/').any(|part| part == "..");
            if !path.starts_with('/') || path.len() > PATH_MAX || climbs || path.contains('\0') {
                return refused("a path is not absolute, climbs or is too long");
            }
        }
        if files.read_write.iter().any(|path| path.bytes().all(|byte| byte == b'/')) {
            return refused("the root cannot be writable");
        }
    }
    if let Some(process) = &policy.process {
        for name in [&process.run_as_user, &process.run_as_group] {
            let number = name.parse::<u32>().is_ok_and(|id| id >= 1000);
            if !(name.is_empty() || name == "sandbox" || number) {
                return refused("user and group are `sandbox` or a number from 1000 on");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_policy_passes_its_own_check() {
        assert!(check_policy(&usual()).is_ok());
        assert_eq!(hash(&usual()).len(), 64);
        assert_eq!(hash(&usual()), hash(&usual()));
    }

    #[test]
    fn paths_and_users_are_checked() {
        let with = |path: &str, user: &str| SandboxPolicy {
            filesystem: Some(FilesystemPolicy {
                read_write: vec![path.to_owned()],
                ..FilesystemPolicy::default()
            }),
            process: Some(ProcessPolicy { run_as_user: user.to_owned(), ..Default::default() }),
            ..SandboxPolicy::default()
        };
        assert!(check_policy(&with("/tmp/..x", "1000")).is_ok());
        for (path, user) in [
            ("/", "sandbox"),
            ("//", "sandbox"),
            ("tmp", "sandbox"),
            ("/a/../b", "sandbox"),
            ("/tmp", "root"),
            ("/tmp", "0"),
        ] {
            assert!(check_policy(&with(path, user)).is_err(), "{path} {user}");
        }
    }
}
