//! Reads one layer with two threads.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::compression::{Compression, Decoder, MAGIC_BYTES};
use super::flow::{Flow, Sender, flow};
use super::{Entry, Kind, Layer, LayerError, PackWriter};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::limits::{Limit, Limits};
use crate::path::display;
use crate::tar;

/// What is known of a layer before it is read.
#[derive(Debug, Clone, Default)]
pub struct LayerSource {
    /// What messages call it.
    pub name: String,
    /// Its media type, where the source has one.
    pub media_type: Option<String>,
    /// Bytes as they are transferred.
    pub size: Option<u64>,
    /// The digest of those bytes.
    pub digest: Option<Digest>,
    /// The digest of the uncompressed bytes.
    pub diff_id: Option<Digest>,
}

/// What all layers of an image may use together, and whether they shall go on.
#[derive(Debug)]
pub struct Budget<'l> {
    limits: &'l Limits,
    raw_bytes: AtomicU64,
    entries: AtomicU64,
    metadata_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl<'l> Budget<'l> {
    /// Nothing used yet.
    pub fn new(limits: &'l Limits) -> Self {
        let [raw_bytes, entries, metadata_bytes] = [const { AtomicU64::new(0) }; 3];
        Self { limits, raw_bytes, entries, metadata_bytes, cancelled: AtomicBool::new(false) }
    }

    /// The limits that it keeps.
    pub fn limits(&self) -> &'l Limits {
        self.limits
    }

    /// Makes every layer that is being read give up.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the layers shall give up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Counts a layer that did not have to be read again.
    ///
    /// # Errors
    ///
    /// The limit that it passes.
    pub fn take(&self, layer: &Layer) -> Result<(), Limit> {
        self.take_raw(layer.raw_bytes)?;
        layer.entries.iter().try_for_each(|entry| self.take_entry(entry))
    }

    fn take_raw(&self, bytes: u64) -> Result<(), Limit> {
        let limit = self.limits.raw_bytes;
        within(&self.raw_bytes, bytes, limit).then_some(()).ok_or(Limit::RawBytes(limit))
    }

    fn take_entry(&self, entry: &Entry) -> Result<(), Limit> {
        let Limits { entries, metadata_bytes, .. } = *self.limits;
        if !within(&self.entries, 1, entries) {
            return Err(Limit::Entries(entries));
        }
        if !within(&self.metadata_bytes, entry.metadata_bytes(), metadata_bytes) {
            return Err(Limit::MetadataBytes(metadata_bytes));
        }
        Ok(())
    }
}

fn within(count: &AtomicU64, more: u64, limit: u64) -> bool {
    count.fetch_add(more, Ordering::Relaxed).saturating_add(more) <= limit
}

/// Reads a layer to its end. `progress` is told how many more compressed bytes were read.
///
/// # Errors
///
/// When the layer is not what its descriptor says, is malformed, passes a limit, or cannot be read or stored.
pub fn read(
    bytes: impl Read + Send,
    source: &LayerSource,
    budget: &Budget<'_>,
    pack: PackWriter,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Layer, LayerError> {
    let algorithm = source.diff_id.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
    let (sender, flow) = flow(Hasher::new(algorithm));
    let mut current = None;
    let (inflated, indexed) = thread::scope(|scope| {
        let blob = Blob::new(bytes, source, budget, progress);
        let inflating =
            thread::Builder::new().name("inflate".to_owned()).spawn_scoped(scope, move || {
                let inflated = inflate(blob, source, budget, &sender);
                inflated
                    .map_err(|error| if budget.is_cancelled() { cancelled(source) } else { error })
            });
        let inflating = match inflating {
            Ok(handle) => handle,
            Err(error) => return (Err(read_error(source, error)), Ok(None)),
        };
        let indexed = index(flow, source, budget, pack, &mut current);
        (inflating.join().expect("the inflating thread does not panic"), indexed.map(Some))
    });
    // What broke the bytes explains the archive's end; a broken archive only makes the inflater stop.
    let digest = inflated.map_err(|error| error.at(current))?;
    let missing = || cancelled(source);
    let (mut layer, diff_id) = indexed?.ok_or_else(missing)?;
    let digest = digest.ok_or_else(missing)?;
    if let Some(stated) = source.diff_id.as_ref().filter(|stated| **stated != diff_id) {
        let (layer, stated) = (source.name.clone(), stated.clone());
        return Err(LayerError::DiffId { layer, found: diff_id, stated });
    }
    layer.digest = digest;
    layer.diff_id = diff_id;
    Ok(layer)
}

fn cancelled(source: &LayerSource) -> LayerError {
    LayerError::Cancelled { layer: source.name.clone() }
}

fn read_error(source: &LayerSource, error: io::Error) -> LayerError {
    LayerError::Read { layer: source.name.clone(), source: error }
}

/// The first thread: reads, hashes, inflates. None when the second one had enough.
fn inflate<R: Read>(
    mut blob: Blob<'_, R>,
    source: &LayerSource,
    budget: &Budget<'_>,
    sender: &Sender,
) -> Result<Option<Digest>, LayerError> {
    let compression = match blob.compression(source) {
        Ok(compression) => compression,
        Err(error) => return Err(blob.oversize(source).unwrap_or(error)),
    };
    let window = budget.limits.zstd_window_log;
    let decoder = Decoder::new(blob, compression, window);
    let decoder = decoder.map_err(|error| read_error(source, error))?;
    let mut guarded = Guarded { decoder, source, budget, raw: 0, fault: None };
    let sent = sender.send_all(|buffer| guarded.fill(buffer));
    let Guarded { mut decoder, fault, .. } = guarded;
    if let Some(fault) = fault {
        return Err(fault);
    }
    if matches!(sent, Ok(false)) {
        return Ok(None);
    }
    // What stands behind the last member or frame belongs to the blob and to its digest.
    let blob = decoder.get_mut();
    let drained = blob.drain();
    if let Some(oversize) = blob.oversize(source) {
        return Err(oversize);
    }
    drained.map_err(|error| read_error(source, error))?;
    let digest = blob.check(source)?;
    match sent {
        Ok(_) => Ok(Some(digest)),
        Err(error) => Err(LayerError::Decompress { layer: source.name.clone(), source: error }),
    }
}

/// The second thread: hashes, reads the archive, stores the data.
fn index(
    flow: Flow,
    source: &LayerSource,
    budget: &Budget<'_>,
    mut pack: PackWriter,
    current: &mut Option<String>,
) -> Result<(Layer, Digest), LayerError> {
    let archive = |error| LayerError::Archive { layer: source.name.clone(), source: error };
    let store = |error| LayerError::Store { layer: source.name.clone(), source: error };
    let mut reader = tar::Reader::new(flow, budget.limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(archive)? {
        if let tar::Kind::File { size, .. } = entry.kind {
            let is_edited = crate::layout::edits(&entry.path);
            pack.begin_file(size, reader.stored().1, is_edited).map_err(store)?;
        }
        let data = reader.data(&entry, |offset, bytes| pack.append(offset, bytes));
        data.inspect_err(|_| *current = Some(display(&entry.path))).map_err(archive)?;
        let kind = match entry.kind {
            tar::Kind::File { size, .. } => {
                Kind::File { size, runs: pack.finish_file(size).map_err(store)? }
            }
            other => plain(other),
        };
        let entry = Entry { path: entry.path, metadata: entry.metadata, kind };
        let limit = |limit| limit_error(source, limit).at(Some(display(&entry.path)));
        budget.take_entry(&entry).map_err(limit)?;
        entries.push(entry);
    }
    reader.drain().map_err(archive)?;
    let flow = reader.into_inner();
    let raw_bytes = flow.bytes;
    let diff_id = flow.into_hasher().finish();
    let pack = pack.finish().map_err(store)?;
    entries.shrink_to_fit();
    let layer =
        Layer { entries, pack, raw_bytes, digest: diff_id.clone(), diff_id: diff_id.clone() };
    Ok((layer, diff_id))
}

fn plain(kind: tar::Kind) -> Kind {
    match kind {
        tar::Kind::Directory => Kind::Directory,
        tar::Kind::File { size, .. } => Kind::File { size, runs: Vec::new() },
        tar::Kind::HardLink(path) => Kind::HardLink(path),
        tar::Kind::Symlink(target) => Kind::Symlink(target),
        tar::Kind::CharDevice(device) => Kind::CharDevice(device),
        tar::Kind::BlockDevice(device) => Kind::BlockDevice(device),
        tar::Kind::Fifo => Kind::Fifo,
    }
}

fn limit_error(source: &LayerSource, limit: Limit) -> LayerError {
    LayerError::Limit { layer: source.name.clone(), entry: None, limit }
}

/// What nobody is told: the reason is.
const GIVEN_UP: &str = "given up";

/// Uncompressed bytes, counted against the limits before anybody sees them.
struct Guarded<'a, R: Read> {
    decoder: Decoder<'a, Blob<'a, R>>,
    source: &'a LayerSource,
    budget: &'a Budget<'a>,
    raw: u64,
    fault: Option<LayerError>,
}

impl<R: Read> Guarded<'_, R> {
    /// More of them, as [`Decoder::fill`] gives them.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> io::Result<Range<usize>> {
        let filled = self.decoder.fill(buffer)?;
        self.check(filled.len() as u64).map_err(|fault| {
            self.fault = Some(fault);
            io::Error::other(GIVEN_UP)
        })?;
        Ok(filled)
    }

    fn check(&mut self, read: u64) -> Result<(), LayerError> {
        let limits = self.budget.limits;
        self.budget.take_raw(read).map_err(|limit| limit_error(self.source, limit))?;
        self.raw += read;
        let allowed = self.decoder.get_mut().consumed.saturating_mul(limits.ratio);
        if self.raw > limits.ratio_free_bytes && self.raw > allowed {
            return Err(limit_error(self.source, Limit::Ratio(limits.ratio)));
        }
        Ok(())
    }
}

/// Compressed bytes, hashed and counted as they are read.
struct Blob<'a, R> {
    bytes: R,
    buffer: Vec<u8>,
    at: usize,
    hasher: Hasher,
    found: u64,
    consumed: u64,
    stated: Option<u64>,
    budget: &'a Budget<'a>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<'a, R: Read> Blob<'a, R> {
    const BUFFER: usize = 128 << 10;

    fn new(
        bytes: R,
        source: &LayerSource,
        budget: &'a Budget<'a>,
        progress: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        let algorithm = source.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let (buffer, hasher, stated) = (Vec::new(), Hasher::new(algorithm), source.size);
        Self { bytes, buffer, at: 0, hasher, found: 0, consumed: 0, stated, budget, progress }
    }

    /// How it is compressed, by its first bytes and its media type.
    fn compression(&mut self, source: &LayerSource) -> Result<Compression, LayerError> {
        let stated = match &source.media_type {
            None => None,
            Some(media_type) => Some(Compression::of_media_type(media_type).ok_or_else(|| {
                let (layer, media_type) = (source.name.clone(), media_type.clone());
                LayerError::MediaType { layer, media_type }
            })?),
        };
        while self.buffer.len() < MAGIC_BYTES {
            let before = self.buffer.len();
            self.more().map_err(|error| read_error(source, error))?;
            if self.buffer.len() == before {
                break;
            }
        }
        let found = Compression::of_bytes(&self.buffer);
        match (found, stated) {
            (Ok(found), None) => Ok(found),
            (Ok(found), Some(stated)) if found == stated => Ok(found),
            (found, stated) => Err(LayerError::Compression {
                layer: source.name.clone(),
                found: found.map_or_else(|name| name, Compression::name),
                stated: stated.map_or("nothing", Compression::name),
            }),
        }
    }

    /// Reads more behind what is buffered.
    fn more(&mut self) -> io::Result<()> {
        if self.budget.is_cancelled() {
            return Err(io::Error::other(GIVEN_UP));
        }
        let kept = self.buffer.len();
        self.buffer.resize(kept + Self::BUFFER, 0);
        let read = loop {
            match self.bytes.read(&mut self.buffer[kept..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(kept + read.as_ref().map_or(0, |read| *read));
        let read = read?;
        self.hasher.update(&self.buffer[kept..]);
        self.found += read as u64;
        (self.progress)(read as u64);
        if self.stated.is_some_and(|stated| self.found > stated) {
            return Err(io::Error::other("more bytes than its descriptor says"));
        }
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }

    fn oversize(&self, source: &LayerSource) -> Option<LayerError> {
        let stated = self.stated.filter(|stated| self.found > *stated)?;
        Some(LayerError::Size { layer: source.name.clone(), found: self.found, stated })
    }

    /// The digest of all bytes, once they are what the descriptor says.
    fn check(&self, source: &LayerSource) -> Result<Digest, LayerError> {
        if let Some(stated) = self.stated.filter(|stated| *stated != self.found) {
            return Err(LayerError::Size { layer: source.name.clone(), found: self.found, stated });
        }
        let found = self.hasher.clone().finish();
        match &source.digest {
            Some(stated) if *stated != found => {
                Err(LayerError::Digest { found, stated: stated.clone() })
            }
            _ => Ok(found),
        }
    }
}

impl<R: Read> BufRead for Blob<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
            self.more()?;
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = self.buffer.len().min(self.at + amount);
        self.consumed += amount as u64;
    }
}

impl<R: Read> Read for Blob<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let used = available.len().min(into.len());
        into[..used].copy_from_slice(&available[..used]);
        self.consume(used);
        Ok(used)
    }
}
