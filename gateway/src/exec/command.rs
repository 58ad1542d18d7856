//! The line that an SSH server's shell reads, from a request.
//!
//! Invariant: no byte of the request is seen by the shell as anything but text.

use openshell_proto::v1::ExecSandboxRequest;
use russh::Sig;
use tonic::Status;

/// Longest line, in bytes.
const LINE_MAX: usize = 256 * 1024;
/// Words that mean something to a shell where a command is expected.
const RESERVED: [&str; 17] = [
    "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in",
    "select", "then", "time", "until", "while",
];

/// `cd DIRECTORY && env K=V ... COMMAND ...`, quoted for a POSIX shell.
///
/// # Errors
///
/// INVALID_ARGUMENT: no command, a NUL byte, a variable whose name is none, or more than 256 KiB.
pub fn line(request: &ExecSandboxRequest) -> Result<String, Status> {
    if request.command.is_empty() {
        return Err(Status::invalid_argument("command is empty"));
    }
    let mut words = Vec::new();
    if !request.workdir.is_empty() {
        words.push("cd".to_owned());
        // Not always: a server without a shell reads the plain form only.
        if request.workdir.starts_with('-') {
            words.push("--".to_owned());
        }
        words.extend([quote(&request.workdir), "&&".to_owned()]);
    }
    for (key, value) in &request.environment {
        if !is_name(key) {
            return Err(Status::invalid_argument(format!("`{key}` is no name of a variable")));
        }
        words.push(format!("{key}={}", quote(value)));
    }
    words.extend(request.command.iter().map(|word| quote(word)));
    let line = words.join(" ");
    if line.contains('\0') {
        return Err(Status::invalid_argument("command holds a NUL byte"));
    }
    if line.len() > LINE_MAX {
        return Err(Status::invalid_argument("command is longer than 256 KiB"));
    }
    Ok(line)
}

/// A word that a shell reads as this text.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !RESERVED.contains(&text) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether a shell takes this for the name of a variable.
pub(crate) fn is_name(key: &str) -> bool {
    let mut chars = key.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The number of a signal on Linux.
pub(super) fn number(signal: &Sig) -> i32 {
    match signal {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_has_directory_variables_and_words() {
        let request = ExecSandboxRequest {
            command: vec!["echo".into(), "it's".into(), String::new()],
            workdir: "/a b".into(),
            environment: [("B".into(), "2 3".into()), ("A".into(), "1".into())].into(),
            ..Default::default()
        };
        assert_eq!(line(&request).unwrap(), r"cd '/a b' && A=1 B='2 3' echo 'it'\''s' ''");
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let run = |command: &[&str], key: &str| {
            line(&ExecSandboxRequest {
                command: command.iter().map(|&word| word.into()).collect(),
                environment: [(key.into(), "x".into())].into(),
                ..Default::default()
            })
        };
        let long = "x".repeat(LINE_MAX);
        for (command, key) in [
            (&[][..], "A"),
            (&["a\0b"][..], "A"),
            (&["a"][..], "A;b"),
            (&["a"][..], ""),
            (&[long.as_str()][..], "A"),
        ] {
            let refused = run(command, key).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_reads_what_was_meant(words in proptest::collection::vec("[^\0]{0,20}", 1..4)) {
            let mut command = vec!["printf".to_owned(), r"%s\0".to_owned()];
            command.extend(words.iter().cloned());
            let request = ExecSandboxRequest { command, ..Default::default() };
            let out = Command::new("sh").arg("-c").arg(line(&request).unwrap()).output().unwrap();
            let expected: String = words.iter().map(|word| format!("{word}\0")).collect();
            prop_assert_eq!(String::from_utf8(out.stdout).unwrap(), expected);
        }
    }
}
