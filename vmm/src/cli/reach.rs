//! Which machine a verb means that speaks with its guest.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use openshell_vmm::machines::vsock_path;
use openshell_vmm::sys::signal::EndingSignals;

use super::failure::Failure;
use super::targets::of_store;

/// What `exec` exits with when it is not the command that failed.
pub(super) const CODE_AGENT: u8 = 125;

/// Takes the signals that a process of the guest gets in this one's place.
pub(super) fn signals() -> Result<EndingSignals, Failure> {
    let others = [libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];
    EndingSignals::open_with(&others).map_err(|error| host("take signals", &error))
}

/// What this host refused, of a verb whose other failures are the guest's.
pub(super) fn host(what: &str, error: &io::Error) -> Failure {
    Failure {
        what: format!("cannot {what}"),
        why: Some(error.to_string()),
        fix: None,
        code: CODE_AGENT,
    }
}

/// The machine's vsock socket, and the words that are left: all of them when the socket was named, else those behind the machine's name. A
/// failure has the store's own exit code unless `code` is another.
pub(super) fn machine<'a>(
    vsock: Option<&Path>,
    words: &'a [OsString],
    code: Option<u8>,
) -> Result<(PathBuf, &'a [OsString]), Failure> {
    let (path, rest) = match (vsock, words.split_first()) {
        (Some(path), _) => (path.to_owned(), words),
        (None, Some((name, rest))) => (named(name, code)?, rest),
        (None, None) => (PathBuf::new(), words),
    };
    // What follows the name may be set off from it.
    let rest = match rest.split_first() {
        Some((dashes, rest)) if dashes == "--" && vsock.is_none() => rest,
        _ => rest,
    };
    Ok((path, rest))
}

/// The vsock socket of the machine of this name, id or beginning of an id.
pub(super) fn named(name: &OsStr, code: Option<u8>) -> Result<PathBuf, Failure> {
    // A name of a machine is text: what is lost here is in none.
    vsock_path(&name.to_string_lossy()).map_err(|error| {
        let failure = of_store(&error);
        Failure { code: code.unwrap_or(failure.code), ..failure }
    })
}
