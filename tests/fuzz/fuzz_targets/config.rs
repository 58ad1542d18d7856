//! What a user writes: a TOML file, the arguments of flags, sizes and times, and words for the kernel.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_vmm::boot::CommandLine;
use openshell_vmm::config::failure::SpecError;
use openshell_vmm::config::spec::{ConsoleSpec, DiskSpec, MemorySize, Spec, TimeLimit, VsockSpec};
use openshell_vmm::config::toml_file;
use openshell_vmm::config::units::{format_size, parse_duration, parse_size};
use openshell_vmm::explain::Explain;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&what, rest)) = data.split_first() else { return Corpus::Reject };
    let argument = OsStr::from_bytes(rest);
    match what {
        b'd' => told(DiskSpec::parse(argument), |disk| assert!(!disk.path.as_os_str().is_empty())),
        b'v' => told(VsockSpec::parse(argument), |it| assert!(!it.path.as_os_str().is_empty())),
        b'c' => told(ConsoleSpec::parse(argument), |console| {
            assert_ne!(console, ConsoleSpec::File("".into()));
        }),
        _ => {
            let Ok(text) = std::str::from_utf8(rest) else { return Corpus::Reject };
            match what {
                b't' => toml(text),
                b's' => sizes(text),
                b'a' => append(text),
                _ => return Corpus::Reject,
            }
        }
    }
    Corpus::Keep
});

/// A refusal must be something that can be shown.
fn told<T>(result: Result<T, SpecError>, good: impl FnOnce(T)) {
    match result {
        Ok(value) => good(value),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            drop((error.why(), error.fix()));
        }
    }
}

fn toml(text: &str) {
    match toml_file::parse(text, Path::new("m.toml")) {
        Ok(spec) => assert_eq!(spec.clone().or(Spec::default()), spec),
        Err(SpecError::File { line, column, message, .. }) => {
            assert!(line <= text.matches('\n').count() + 1, "line {line}");
            assert!(column <= text.chars().count() + 1, "column {column}");
            assert!(!message.contains('\n'), "{message}");
        }
        Err(other) => panic!("{other}"),
    }
}

fn sizes(text: &str) {
    for unit in [None, Some(1), Some(1 << 20)] {
        if let Ok(bytes) = parse_size(text, unit) {
            let shown = format_size(bytes);
            let bare = shown.strip_suffix(" bytes").unwrap_or(&shown);
            assert_eq!(parse_size(bare, Some(1)), Ok(bytes), "{text}");
        }
    }
    assert_eq!(MemorySize::parse(text).ok(), parse_size(text, Some(1 << 20)).ok().map(MemorySize));
    assert_eq!(TimeLimit::parse(text).ok(), parse_duration(text).ok().map(TimeLimit));
    assert_eq!(Spec::parse_cpus(text).ok(), text.parse().ok());
}

fn append(text: &str) {
    let mut line = CommandLine::new();
    for word in text.split('\u{1f}') {
        let before = line.clone();
        if line.push(word).is_err() {
            assert_eq!(line, before);
        }
    }
    assert!(!line.as_str().chars().any(char::is_control));
    assert!(line.len() <= text.len());
}
