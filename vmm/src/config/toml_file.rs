//! Reads a [`Spec`] from TOML.
//!
//! Invariant: an unknown key is an error that says where it is and which known key is close. Pure but for [`read`].

use std::path::Path;

use super::failure::SpecError;
use super::spec::Spec;

/// Reads the file at `path`.
///
/// # Errors
/// [`SpecError::Read`], [`SpecError::File`].
pub fn read(path: &Path) -> Result<Spec, SpecError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Reads `text`; `path` is for messages.
///
/// # Errors
/// [`SpecError::File`].
pub fn parse(text: &str, path: &Path) -> Result<Spec, SpecError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        let before = text.get(..at).unwrap_or(text);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        SpecError::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
            nearest: nearest_name(&message),
            message,
        }
    })
}

/// The known name that is closest to the unknown one in serde's message: "unknown field `a`, expected one of `b`, `c`".
fn nearest_name(message: &str) -> Option<String> {
    message.starts_with("unknown ").then_some(())?;
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    closest(unknown, names)
}

/// The name that is closest to `unknown`, if one is close.
pub(super) fn closest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    names
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .filter(|&(distance, name)| distance <= 1 + name.len() / 3)
        .min()
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::net::{NetMode, NetSpec};
    use crate::config::spec::Bandwidth;
    use crate::config::spec::{
        ConsoleSpec, DiskSpec, MemorySize, TablesSpec, TimeLimit, TraceFormat, VsockSpec,
    };
    use crate::explain::Explain;

    #[test]
    fn a_file_says_all_that_flags_say() {
        let text = r#"
cpus = 2
memory = "1G"
kernel = "vmlinux"
initrd = "initrd.img"
append = "quiet"
vsock = "/run/v.sock,cid=9"
net = "none"
console = "file=log"
timeout = "30s"
tables = "mptable"
seccomp = false
boot_trace = "json"
result = "r.json"

[[disk]]
path = "a,b.img"
ro = true

[[disk]]
path = "c.img"
overlay = "delta"
iops = 100
bw = "10M"
"#;
        let spec = parse(text, Path::new("m.toml")).unwrap();
        let first = DiskSpec { path: "a,b.img".into(), ro: true, ..DiskSpec::default() };
        let second = DiskSpec {
            path: "c.img".into(),
            overlay: Some("delta".into()),
            iops: Some(100),
            bw: Some(Bandwidth(10 << 20)),
            ..DiskSpec::default()
        };
        let expected = Spec {
            disks: vec![first, second],
            kernel: Some("vmlinux".into()),
            initrd: Some("initrd.img".into()),
            append: Some("quiet".to_owned()),
            cpus: Some(2),
            memory: Some(MemorySize(1 << 30)),
            vsock: Some(VsockSpec { path: "/run/v.sock".into(), cid: Some(9) }),
            net: NetSpec { mode: Some(NetMode::None), ..NetSpec::default() },
            console: Some(ConsoleSpec::File("log".into())),
            timeout: Some(TimeLimit(Duration::from_secs(30))),
            tables: Some(TablesSpec::Mptable),
            seccomp: Some(false),
            boot_trace: Some(TraceFormat::Json),
            result: Some("r.json".into()),
        };
        assert_eq!(spec, expected);
    }

    #[test]
    fn flags_win_and_disks_come_from_one_side() {
        let file = parse("cpus = 2\nmemory = 64\n[[disk]]\npath = 'f'\n", Path::new("f")).unwrap();
        assert_eq!(file.memory, Some(MemorySize(64 << 20)), "a bare number is MiB");
        let disk = DiskSpec { path: PathBuf::from("flag"), ..DiskSpec::default() };
        let flags = Spec { cpus: Some(4), disks: vec![disk.clone()], ..Spec::default() };
        let both = flags.or(file.clone());
        assert_eq!((both.cpus, both.memory, both.disks), (Some(4), file.memory, vec![disk]));
        assert_eq!(Spec::default().or(file.clone()), file);
    }

    #[test]
    fn errors_say_where_and_suggest_a_name() {
        for (text, message, fix) in [
            (
                "cpus = 2\nmemry = 64\n",
                "m.toml:2:1: unknown field `memry`",
                "did you mean `memory`?",
            ),
            (
                "[[disk]]\npath = 'd'\nbww = '1M'\n",
                "m.toml:3:1: unknown field `bww`",
                "did you mean `bw`?",
            ),
            (
                "zzzzzzzz = 1\n",
                "m.toml:1:1: unknown field `zzzzzzzz`",
                "the file takes the long names",
            ),
            ("cpus = \n", "m.toml:1:8: ", "the file takes"),
            ("cpus = 'two'\n", "m.toml:1:8: invalid type", "the file takes"),
            ("cpus = -1\n", "m.toml:1:8: invalid value", "the file takes"),
            ("\u{e9} = 1\n", "m.toml:1:1: ", "the file takes"),
            ("a = '\u{e9}' 1\n", "m.toml:1:9: ", "the file takes"),
            ("memory = '12Q'\n", "m.toml:1:10: a size is", "the file takes"),
            ("memory = -5\n", "m.toml:1:10: invalid value: integer `-5`", "the file takes"),
            ("timeout = 'soon'\n", "m.toml:1:11: a time is", "the file takes"),
            ("console = 'tty'\n", "m.toml:1:11: tty: none of", "the file takes"),
            ("vsock = ''\n", "m.toml:1:9: : the socket", "the file takes"),
            ("tables = 'acpy'\n", "m.toml:1:10: unknown variant `acpy`", "did you mean `acpi`?"),
            ("[net]\nmtus = 9000\n", "m.toml:2:1: unknown field `mtus`", "did you mean `mtu`?"),
            ("net = 'usr'\n", "m.toml:1:7: unknown variant `usr`", "did you mean `user`?"),
            ("[[disk]]\nro = true\n", "m.toml:1:1: missing field `path`", "the file takes"),
            ("[[disk]]\npath = 'd'\nbw = 5\n", "m.toml:3:6: invalid type", "the file takes"),
            ("cpus = 1\ncpus = 2\n", "m.toml:2:1: duplicate key", "the file takes"),
        ] {
            let error = parse(text, Path::new("m.toml")).unwrap_err();
            let shown = error.to_string();
            assert!(shown.starts_with(message), "{shown}\nwanted {message}");
            assert_eq!(shown.lines().count(), 1, "{shown}");
            let fixed = error.fix().unwrap();
            assert!(fixed.starts_with(fix), "{text}: {fixed}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in "(cpus|disk|[\\[\\]={}'\"\\n a-z0-9\u{e9}]){0,40}") {
            if let Err(error) = parse(&text, Path::new("m.toml")) {
                prop_assert_eq!(error.to_string().lines().count(), 1);
            }
        }
    }
}
