//! What machines printed and what happened to them: `logs` and `events`.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use openshell_vmm::logbook::{Reader, Record, Source, now_unix_ms};
use openshell_vmm::machines::Status;
use openshell_vmm::machines::journal::{Event, Events};
use openshell_vmm::report::json;

use super::failure::Failure;
use super::moment;
use super::targets::{Form, of_store, open_store};

const LOOK: Duration = Duration::from_millis(50);

/// Print what a machine printed, also after its end
///
/// The guest's output, and that of its kernel, is on standard output; its main process's standard error, and what the machine's own
/// process said, is on standard error.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// A name, an id or the beginning of one
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on until the machine ends
    #[arg(short, long)]
    follow: bool,
    /// Only what came after: 10m, seconds since 1970, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    /// Only what came before
    #[arg(long, value_name = "TIME", value_parser = since)]
    until: Option<u64>,
    /// Only the last lines of what there is
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Only this: guest, stderr, boot or vmm; may be given several times
    #[arg(
        long,
        value_name = "SOURCE",
        value_parser = clap::builder::PossibleValuesParser::new(Source::NAMES)
    )]
    source: Vec<String>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
}

fn since(text: &str) -> Result<u64, String> {
    moment::parse(text, now_unix_ms())
        .ok_or_else(|| "a time is 10m, seconds since 1970, or 2026-01-31T12:00:00Z".to_owned())
}

pub(super) fn logs(args: &LogsArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let machine = store.find(&args.name).map_err(|error| of_store(&error))?;
    let mut reader = Reader::new(&machine.directory);
    let mut printer = Printer { timestamps: args.timestamps, fresh: true };
    let mut records = wanted(reader.more(), args);
    if let Some(lines) = args.tail {
        keep_last(&mut records, lines);
    }
    let mut done = printer.print(&records);
    while args.follow && done.is_ok() {
        // Looked at before the log, so that nothing is missed at the end.
        let runs = matches!(machine.status(), Status::Running(_));
        done = printer.print(&wanted(reader.more(), args));
        if !runs {
            break;
        }
        std::thread::sleep(LOOK);
    }
    match done {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure {
            what: "cannot write to standard output".to_owned(),
            why: Some(error.to_string()),
            fix: None,
            code: 1,
        }),
        _ => Ok(0),
    }
}

fn wanted(mut records: Vec<Record>, args: &LogsArgs) -> Vec<Record> {
    records.retain(|record| {
        let source = args.source.is_empty()
            || args.source.iter().any(|name| Source::named(name) == Some(record.source));
        source
            && args.since.is_none_or(|since| record.unix_ms >= since)
            && args.until.is_none_or(|until| record.unix_ms < until)
    });
    records
}

/// Leaves the last `lines` lines.
fn keep_last(records: &mut Vec<Record>, lines: usize) {
    // The end of the last line ends no further one.
    let mut left = lines;
    let ends_open = records.last().is_none_or(|last| last.bytes.last() != Some(&b'\n'));
    let mut seen = usize::from(ends_open && !records.is_empty());
    if left == 0 {
        return records.clear();
    }
    for at in (0..records.len()).rev() {
        for (byte_at, byte) in records[at].bytes.iter().enumerate().rev() {
            if *byte != b'\n' {
                continue;
            }
            if seen == lines {
                records[at].bytes.drain(..=byte_at);
                records.drain(..at);
                left = 0;
                break;
            }
            seen += 1;
        }
        if left == 0 {
            return;
        }
    }
}

/// Writes records to where they belong.
struct Printer {
    timestamps: bool,
    /// At the beginning of a line.
    fresh: bool,
}

impl Printer {
    fn print(&mut self, records: &[Record]) -> io::Result<()> {
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        for record in records {
            let bytes = self.stamped(record);
            match record.source {
                Source::Guest | Source::Boot => out.write_all(&bytes)?,
                Source::Stderr | Source::Vmm => err.write_all(&bytes)?,
            }
        }
        out.flush()
    }

    fn stamped(&mut self, record: &Record) -> Vec<u8> {
        if !self.timestamps {
            return record.bytes.clone();
        }
        let stamp = format!("{} {} ", moment::show(record.unix_ms), record.source.name());
        let mut bytes = Vec::new();
        for line in record.bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.fresh {
                bytes.extend_from_slice(stamp.as_bytes());
            }
            bytes.extend_from_slice(line);
            self.fresh = line.ends_with(b"\n");
        }
        bytes
    }
}

/// Print what happened to machines
#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only these machines
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Go on
    #[arg(short, long)]
    follow: bool,
    /// Only what came after: 10m, seconds since 1970, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    /// How they are printed; JSON is one object a line
    #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    output: Form,
}

pub(super) fn events(args: &EventsArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let mut events = Events::of(&store);
    loop {
        let mut text = String::new();
        for event in events.more() {
            let named = |name: &String| event.name == *name || event.id.starts_with(name.as_str());
            let wanted = args.names.is_empty() || args.names.iter().any(named);
            if !wanted || args.since.is_some_and(|since| event.unix_ms < since) {
                continue;
            }
            text.push_str(&shown(&event, args.output));
        }
        super::print(text.as_bytes())?;
        if !args.follow {
            return Ok(0);
        }
        std::thread::sleep(LOOK);
    }
}

fn shown(event: &Event, form: Form) -> String {
    if form == Form::Json {
        return json::line(event);
    }
    let time = moment::show(event.unix_ms);
    let mut text = format!("{time} {} {} {}", event.event, event.id, event.name);
    if let Some(code) = event.code {
        text.push_str(&format!(" code={code}"));
    }
    if let Some(image) = &event.image {
        text.push_str(&format!(" image={image}"));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: &[u8]) -> Record {
        Record { unix_ms: 0, source: Source::Guest, bytes: bytes.to_vec() }
    }

    #[test]
    fn the_last_lines_are_kept_whatever_records_they_are_in() {
        let all = [&b"one\ntw"[..], b"o\n", b"three\nfour"];
        for (lines, want) in [
            (0, ""),
            (1, "four"),
            (2, "three\nfour"),
            (3, "two\nthree\nfour"),
            (4, "one\ntwo\nthree\nfour"),
            (9, "one\ntwo\nthree\nfour"),
        ] {
            let mut records: Vec<_> = all.iter().map(|bytes| record(bytes)).collect();
            keep_last(&mut records, lines);
            let text: Vec<u8> = records.into_iter().flat_map(|one| one.bytes).collect();
            assert_eq!(String::from_utf8(text).unwrap(), want, "{lines}");
        }
        let mut records = vec![record(b"a\nb\n")];
        keep_last(&mut records, 1);
        assert_eq!(records[0].bytes, b"b\n");
    }

    #[test]
    fn a_line_in_pieces_has_one_stamp() {
        let mut printer = Printer { timestamps: true, fresh: true };
        let text: Vec<u8> = [&b"a"[..], b"b\nc\n"]
            .iter()
            .flat_map(|bytes| printer.stamped(&record(bytes)))
            .collect();
        let stamp = "1970-01-01T00:00:00.000Z guest ";
        assert_eq!(String::from_utf8(text).unwrap(), format!("{stamp}ab\n{stamp}c\n"));
    }
}
