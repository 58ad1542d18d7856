//! `cp`: files into a machine that runs, and out of it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use openshell_vmm::agent::{self, AgentError, GuestPath};

use super::failure::Failure;
use super::reach;

/// Copy files between this host and a running machine
///
/// One of the two is MACHINE:PATH, or with --vsock just :PATH; the other is a path of this host, or - for a tar stream. A directory that
/// is there takes the source under its name; else the destination is the source's new name. SRC/. stands for what is in SRC.
#[derive(Debug, Args)]
pub(super) struct CpArgs {
    /// Keep owners, special permission bits, devices and all attributes; else what is copied belongs to who copies, in the guest to root
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symbolic link at SRC points to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// The vsock socket of a machine that has no name
    #[arg(long, value_name = "PATH")]
    vsock: Option<PathBuf>,
    /// What is copied
    #[arg(value_name = "SRC")]
    source: OsString,
    /// Where to
    #[arg(value_name = "DST")]
    destination: OsString,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Host(&'a Path),
    Stream,
    Guest(&'a OsStr, &'a [u8]),
}

impl<'a> End<'a> {
    /// `MACHINE:PATH` has no slash before its colon.
    fn of(word: &'a OsStr) -> Self {
        let bytes = word.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let slash = bytes.iter().position(|byte| *byte == b'/').unwrap_or(usize::MAX);
        match colon.filter(|colon| *colon < slash) {
            Some(at) => Self::Guest(OsStr::from_bytes(&bytes[..at]), &bytes[at + 1..]),
            None if word == "-" => Self::Stream,
            None => Self::Host(Path::new(word)),
        }
    }
}

pub(super) fn cp(args: &CpArgs) -> Result<u8, Failure> {
    let (keep, follow) = (args.archive, args.follow_link);
    let reach = |name: &OsStr, path: &[u8]| -> Result<(PathBuf, GuestPath), Failure> {
        let words = [name.to_owned()];
        let (socket, _) = reach::machine(args.vsock.as_deref(), &words, None)?;
        let path = GuestPath::new(path.to_vec());
        Ok((socket, path.ok_or_else(|| usage("the path in the machine cannot be one"))?))
    };
    let copied = match (End::of(&args.source), End::of(&args.destination)) {
        (End::Guest(name, path), End::Host(to)) => {
            let (socket, from) = reach(name, path)?;
            agent::copy_out(&socket, &from, to, follow, keep)
        }
        (End::Guest(name, path), End::Stream) => {
            let (socket, from) = reach(name, path)?;
            agent::stream_out(&socket, &from, &mut io::stdout().lock(), follow)
        }
        (End::Host(from), End::Guest(name, path)) => {
            let (socket, to) = reach(name, path)?;
            agent::copy_in(&socket, from, &to, follow, keep)
        }
        (End::Stream, End::Guest(name, path)) => {
            let (socket, to) = reach(name, path)?;
            agent::stream_in(&socket, io::stdin().lock(), &to, keep)
        }
        (End::Guest(..), End::Guest(..)) => return Err(usage("both ends are in a machine")),
        _ => return Err(usage("neither end is in a machine: write MACHINE:PATH")),
    };
    copied.map(|_| 0).map_err(|error| {
        let mut failure = Failure::of(&error, 1);
        if matches!(error, AgentError::Guest(_)) {
            failure.what = format!("in the machine: {}", failure.what);
        }
        failure
    })
}

fn usage(what: &str) -> Failure {
    Failure {
        what: what.to_owned(),
        why: None,
        fix: Some("see `openshell-vmm cp --help`".to_owned()),
        code: super::CODE_USAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_machine_a_stream_or_a_path() {
        for (word, expected) in [
            ("m:/a", End::Guest(OsStr::new("m"), b"/a")),
            (":/a", End::Guest(OsStr::new(""), b"/a")),
            ("m:a:b", End::Guest(OsStr::new("m"), b"a:b")),
            ("./m:a", End::Host(Path::new("./m:a"))),
            ("/m:a", End::Host(Path::new("/m:a"))),
            ("a", End::Host(Path::new("a"))),
            ("-", End::Stream),
        ] {
            assert_eq!(End::of(OsStr::new(word)), expected, "{word}");
        }
    }
}
