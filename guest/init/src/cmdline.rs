//! The kernel's command line: the words of it that are ours.
//!
//! Invariant: a device's name is letters and digits, so that it cannot lead out of `/dev`.

/// Where the sandbox's writes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadWrite {
    /// A device.
    Device(String),
    /// Memory; nothing is kept.
    Memory,
}

/// Our words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// Device of the base.
    pub base: String,
    /// Device of the read-write disk.
    pub read_write: ReadWrite,
    /// Device of the config disk, which may be the read-write disk.
    pub config: String,
}

impl Words {
    /// Whether the read-write disk holds the configuration as well.
    #[must_use]
    pub fn config_is_read_write(&self) -> bool {
        matches!(&self.read_write, ReadWrite::Device(name) if *name == self.config)
    }
}

impl Default for Words {
    fn default() -> Self {
        let read_write = ReadWrite::Device("vdc".to_owned());
        Self { base: "vdb".to_owned(), read_write, config: "vdd".to_owned() }
    }
}

/// Reads a command line. Of equal words the last counts, as in the kernel.
///
/// # Errors
/// With the word that cannot be.
pub fn parse(line: &str) -> Result<Words, String> {
    let mut words = Words::default();
    for word in split(line) {
        let Some(ours) = word.strip_prefix("openshell.") else { continue };
        let (key, value) = ours.split_once('=').ok_or_else(|| word.clone())?;
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(word);
        }
        match key {
            "base" => words.base = value.to_owned(),
            "config" => words.config = value.to_owned(),
            "rw" if value == "memory" => words.read_write = ReadWrite::Memory,
            "rw" => words.read_write = ReadWrite::Device(value.to_owned()),
            _ => return Err(word),
        }
    }
    Ok(words)
}

/// Words up to `--`, without their quotes; spaces between quotes belong to a word.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => words.push(String::new()),
            c => words.last_mut().expect("there is one from the start").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    if let Some(end) = words.iter().position(|word| word == "--") {
        words.truncate(end);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Result<(&str, &str, &str), &str>) {
        let words = parse(line);
        let shown = words.as_ref().map(|words| {
            let read_write = match &words.read_write {
                ReadWrite::Device(name) => name,
                ReadWrite::Memory => "(memory)",
            };
            (words.base.as_str(), read_write, words.config.as_str())
        });
        assert_eq!(shown, expected.map_err(str::to_owned).as_ref().copied(), "{line}");
    }

    #[test]
    fn words_are_found_among_others() {
        check("", Ok(("vdb", "vdc", "vdd")));
        check("quiet root=/dev/vda ro\n", Ok(("vdb", "vdc", "vdd")));
        check("a openshell.base=vdx b openshell.rw=sda1 c", Ok(("vdx", "sda1", "vdd")));
        check("openshell.rw=memory openshell.config=vdc", Ok(("vdb", "(memory)", "vdc")));
        check("openshell.base=vdx openshell.base=vdy", Ok(("vdy", "vdc", "vdd")));
        check("x=\"a openshell.base=vdx b\"", Ok(("vdb", "vdc", "vdd")));
        check("quiet -- openshell.base=vdx", Ok(("vdb", "vdc", "vdd")));
    }

    #[test]
    fn the_read_write_disk_may_hold_the_configuration() {
        for (line, expected) in [
            ("", false),
            ("openshell.config=vdc", true),
            ("openshell.config=vdc openshell.rw=memory", false),
            ("openshell.config=sda openshell.rw=sda", true),
        ] {
            assert_eq!(parse(line).unwrap().config_is_read_write(), expected, "{line}");
        }
    }

    #[test]
    fn words_that_cannot_be_are_named() {
        for word in [
            "openshell.base=../sda",
            "openshell.base=",
            "openshell.base",
            "openshell.odd=vdb",
            "openshell.config=vd/d",
        ] {
            check(word, Err(word));
        }
    }

    proptest! {
        #[test]
        fn no_line_leads_out_of_dev(line in ".{0,200}", word in "openshell\\.(base|rw|config)=.{0,9}") {
            if let Ok(words) = parse(&format!("{line} {word}")) {
                let safe = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric());
                prop_assert!(safe(&words.base) && safe(&words.config));
            }
        }
    }
}
