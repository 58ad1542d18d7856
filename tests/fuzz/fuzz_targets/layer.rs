//! Layers of any compression: read or refused, whatever pieces their bytes come in.
#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use openshell_rootfs::layer::{Budget, Kind, LayerSource, PackWriter, read};
use openshell_rootfs::limits::Limits;

fuzz_target!(|data: &[u8]| {
    let whole = layer(data);
    let parts = layer(Slow(data));
    assert_eq!(whole, parts);
});

/// Gives three bytes at a time.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min(3).min(self.0.len());
        let (head, rest) = self.0.split_at(count);
        into[..count].copy_from_slice(head);
        self.0 = rest;
        Ok(count)
    }
}

/// The entries with the bytes of their files, or why there are none.
fn layer(bytes: impl Read + Send) -> Result<Vec<String>, String> {
    let limits =
        Limits { raw_bytes: 8 << 20, file_bytes: 8 << 20, entries: 5000, ..Limits::default() };
    let pack = PackWriter::unnamed(&std::env::temp_dir(), 16 << 20);
    let source = LayerSource { name: "L".to_owned(), ..LayerSource::default() };
    let layer = read(bytes, &source, &Budget::new(&limits), pack, &|_| ());
    let layer = layer.map_err(|error| error.to_string())?;
    let mut entries = vec![layer.diff_id.to_string()];
    for entry in layer.entries {
        let mut text = format!("{entry:?}");
        if let Kind::File { runs, .. } = &entry.kind {
            for run in runs {
                let mut data = vec![0; usize::try_from(run.length).expect("within the limit")];
                layer.pack.read_at(run.pack, &mut data).expect("what was stored is there");
                text.push_str(&format!("{data:?}"));
            }
        }
        entries.push(text);
    }
    Ok(entries)
}
