//! `nsenter --net=FILE [--] PROGRAM [ARGUMENTS]`.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::describe;

/// Enters the namespace and becomes the program; returns only with what went wrong.
pub(super) fn run(args: &[OsString]) -> Result<(), String> {
    let (file, program, args) = parse(args).ok_or("usage: nsenter --net=FILE [--] PROGRAM ...")?;
    let shown = file.to_string_lossy();
    let namespace = File::open(&file).map_err(|error| format!("cannot open {shown}: {error}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| format!("cannot enter {shown}: {}", describe(errno)))?;
    let error = Command::new(&program).args(args).exec();
    Err(format!("cannot execute {}: {error}", program.to_string_lossy()))
}

fn parse(args: &[OsString]) -> Option<(OsString, OsString, &[OsString])> {
    let (first, rest) = args.split_first()?;
    let file = first.as_bytes().strip_prefix(b"--net=").filter(|file| !file.is_empty())?;
    let rest = match rest.split_first() {
        Some((dashes, rest)) if dashes == "--" => rest,
        _ => rest,
    };
    let (program, args) = rest.split_first()?;
    Some((OsString::from_vec(file.to_vec()), program.clone(), args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_and_a_program_are_needed() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(OsString::from).collect() };
        for text in ["--net=/x -- ip -o link", "--net=/x ip -o link"] {
            let args = words(text);
            let (file, program, rest) = parse(&args).unwrap();
            assert_eq!((file, program), ("/x".into(), "ip".into()));
            assert_eq!(rest, ["-o", "link"]);
        }
        for text in ["", "ip", "--net=", "--net= ip", "--net=/x", "--net=/x --", "-n /x ip"] {
            assert_eq!(parse(&words(text)), None, "{text}");
        }
    }
}
