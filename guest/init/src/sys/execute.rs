//! Programs as the kernel starts them.
//!
//! Invariant: what the kernel refuses is an error. The standard library starts programs with execvp(3), which gives what is no program
//! to a shell: one for another processor would end as a script full of mistakes.

#![expect(
    unsafe_code,
    reason = "execve(2) takes lists of pointers, and is called between fork and exec"
)]

use std::ffi::{CString, NulError, c_char};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

/// A program with its arguments and environment, as execve(2) takes them.
#[derive(Debug)]
pub struct Program {
    path: CString,
    arguments: Strings,
    environment: Strings,
}

/// Strings, and the list of their addresses, which ends with a null.
#[derive(Debug)]
struct Strings {
    addresses: Vec<*const c_char>,
    _strings: Vec<CString>,
}

// SAFETY: the addresses are those of the strings beside them, which nobody changes and which move with them.
unsafe impl Send for Strings {}
// SAFETY: as above.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(strings: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, NulError> {
        let strings = strings.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let addresses = strings.iter().map(|it| it.as_ptr()).chain([ptr::null()]).collect();
        Ok(Self { addresses, _strings: strings })
    }
}

impl Program {
    /// The program at `path`; the first of `arguments` is its name, and variables are `NAME=VALUE`.
    ///
    /// # Errors
    /// When one of them holds a NUL.
    pub fn new(
        path: Vec<u8>,
        arguments: impl IntoIterator<Item = Vec<u8>>,
        environment: impl IntoIterator<Item = Vec<u8>>,
    ) -> io::Result<Self> {
        Ok(Self {
            path: CString::new(path)?,
            arguments: Strings::new(arguments)?,
            environment: Strings::new(environment)?,
        })
    }

    /// Makes the process of `command` become this program, after all that was asked of `command` before.
    pub fn replace(self, command: &mut Command) {
        // SAFETY: the closure makes one system call, on memory that exists already.
        unsafe { command.pre_exec(move || Err(self.execute())) };
    }

    /// Becomes the program, or says why not.
    fn execute(&self) -> io::Error {
        let (arguments, environment) = (&self.arguments.addresses, &self.environment.addresses);
        // SAFETY: path and strings end with NUL, both lists with a null, and all of them live until the call returns.
        unsafe { libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        io::Error::last_os_error()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn run(
        path: &str,
        arguments: &[&str],
        environment: &[&str],
    ) -> io::Result<std::process::Output> {
        let words = |words: &[&str]| -> Vec<Vec<u8>> {
            words.iter().map(|word| word.as_bytes().to_vec()).collect()
        };
        let mut command = Command::new(path);
        Program::new(path.into(), words(arguments), words(environment))?.replace(&mut command);
        command.output()
    }

    #[test]
    fn a_program_gets_what_it_is_given_and_nothing_else() {
        let output =
            run("/bin/sh", &["name", "-c", "echo $0 $1 $A; env -i", "zero", "one"], &["A=b"]);
        assert_eq!(output.unwrap().stdout, b"zero one b\n");
    }

    #[test]
    fn what_the_kernel_refuses_is_no_script() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, "echo a shell ran this").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let error = run(path.to_str().unwrap(), &["program"], &[]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOEXEC));
        assert!(run("/bin/sh", &["a\0b"], &[]).is_err());
    }
}
