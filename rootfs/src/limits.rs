//! How much an image may ask for, so that no image can exhaust the host.
//!
//! Every limit that is passed is an error that names the entry and the limit. The defaults are far above what images
//! need; a bomb meets them while it is read, not after.

/// What an entry counts for in [`Limits::metadata_bytes`] besides its names and attributes.
pub const ENTRY_BYTES: u64 = 192;

/// What the attributes of an entry count for besides their names and values.
pub const XATTRS_BYTES: u64 = 640;

/// The limits of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Uncompressed bytes of all layers together.
    pub raw_bytes: u64,
    /// Bytes of one file, holes included.
    pub file_bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
    /// Memory for what is known of the entries of all layers: names, targets, extended attributes, runs of data, and
    /// [`ENTRY_BYTES`] for each.
    pub metadata_bytes: u64,
    /// Runs of data in one sparse file.
    pub extents: u64,
    /// Bytes of a path, and of the target of a link.
    pub path_bytes: usize,
    /// Bytes of one component of a path. ext4 stores at most 255.
    pub component_bytes: usize,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of the targets of symbolic links that are followed while layers are merged.
    pub followed_bytes: u64,
    /// Bytes of the extended headers of one entry, and of all global headers together.
    pub extended_header_bytes: u64,
    /// Bytes of the names and values of one inode's extended attributes.
    pub xattr_bytes: usize,
    /// How many bytes a compressed byte may become, once `ratio_free_bytes` have come out.
    pub ratio: u64,
    /// Uncompressed bytes of a layer before `ratio` is looked at.
    pub ratio_free_bytes: u64,
    /// Base-two logarithm of the largest window of a zstd frame.
    pub zstd_window_log: u32,
    /// Layers of an image.
    pub layers: usize,
    /// Bytes of a manifest, an index or a configuration.
    pub manifest_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            raw_bytes: 64 << 30,
            file_bytes: 16 << 30,
            entries: 4_000_000,
            metadata_bytes: 128 << 20,
            extents: 1 << 20,
            path_bytes: 4096,
            component_bytes: 255,
            depth: 256,
            followed_bytes: 16 << 20,
            extended_header_bytes: 1 << 20,
            xattr_bytes: 64 << 10,
            ratio: 1000,
            ratio_free_bytes: 64 << 20,
            zstd_window_log: 27,
            layers: 512,
            manifest_bytes: 8 << 20,
        }
    }
}

/// A limit, as errors name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// [`Limits::raw_bytes`].
    #[error("{0} uncompressed bytes in all layers")]
    RawBytes(u64),
    /// [`Limits::file_bytes`].
    #[error("{0} bytes in one file")]
    FileBytes(u64),
    /// [`Limits::entries`].
    #[error("{0} entries in all layers")]
    Entries(u64),
    /// [`Limits::metadata_bytes`].
    #[error("{0} bytes of names and attributes in all layers")]
    MetadataBytes(u64),
    /// [`Limits::extents`].
    #[error("{0} runs of data in a sparse file")]
    Extents(u64),
    /// [`Limits::path_bytes`].
    #[error("{0} bytes in a path")]
    PathBytes(usize),
    /// [`Limits::component_bytes`].
    #[error("{0} bytes in a name")]
    ComponentBytes(usize),
    /// [`Limits::depth`].
    #[error("{0} directories deep")]
    Depth(usize),
    /// [`Limits::followed_bytes`].
    #[error("{0} bytes of symbolic links followed")]
    FollowedBytes(u64),
    /// [`Limits::extended_header_bytes`].
    #[error("{0} bytes in extended headers")]
    ExtendedHeaderBytes(u64),
    /// [`Limits::xattr_bytes`].
    #[error("{0} bytes of extended attributes")]
    XattrBytes(usize),
    /// [`Limits::ratio`].
    #[error("{0} bytes from one compressed byte")]
    Ratio(u64),
    /// [`Limits::layers`].
    #[error("{0} layers")]
    Layers(usize),
    /// [`Limits::manifest_bytes`].
    #[error("{0} bytes in a manifest or configuration")]
    ManifestBytes(u64),
}
