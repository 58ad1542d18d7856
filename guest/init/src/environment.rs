//! The main process's environment, and where its program may be.

/// What `PATH` is when nobody says.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables given as `NAME=VALUE`, of equal names the last, with `PATH`, `HOME` and for a terminal `TERM` added.
#[must_use]
pub fn variables(given: &[String], home: &str, tty: bool) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for (name, value) in given.iter().filter_map(|given| given.split_once('=')) {
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => variables.push((name.to_owned(), value.to_owned())),
        }
    }
    for (name, value) in [("PATH", PATH), ("HOME", home), ("TERM", "xterm")] {
        let missing = !variables.iter().any(|(known, _)| known == name);
        if missing && (name != "TERM" || tty) {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables
}

/// Paths at which `program` may be, in order: itself when it has a slash, else below the directories of `path`.
#[must_use]
pub fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let inside = |directory: &str| match directory {
        // As the shell has it: an empty entry is the working directory.
        "" => format!("./{program}"),
        directory => format!("{}/{program}", directory.trim_end_matches('/')),
    };
    path.split(':').map(inside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_equal_names_counts_and_defaults_are_added() {
        let given = ["A=1", "B==", "A=2", "HOME=/h"].map(str::to_owned);
        let variables = variables(&given, "/root", true);
        let expected = [("A", "2"), ("B", "="), ("HOME", "/h"), ("PATH", PATH), ("TERM", "xterm")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(variables, expected);
        assert_eq!(super::variables(&[], "/r", false).len(), 2);
    }

    #[test]
    fn programs_are_looked_for_in_path() {
        for (program, path, expected) in [
            ("/bin/sh", "/x", vec!["/bin/sh"]),
            ("bin/sh", "/x", vec!["bin/sh"]),
            ("sh", "/x:/y/:", vec!["/x/sh", "/y/sh", "./sh"]),
            ("sh", "/", vec!["/sh"]),
        ] {
            assert_eq!(candidates(program, path), expected);
        }
    }
}
