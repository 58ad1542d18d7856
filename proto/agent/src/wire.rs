//! Fields of a frame: little-endian integers, and byte strings behind their length.

/// What was received is not this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame of a kind that nobody sends in this direction.
    #[error("frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// A frame longer than its kind may be.
    #[error("frame of kind {kind:#04x} with {len} bytes is too long")]
    Long {
        /// Its kind.
        kind: u8,
        /// Its payload in bytes.
        len: usize,
    },
    /// A frame that ends inside a field.
    #[error("frame of kind {0:#04x} ends inside a field")]
    Short(u8),
    /// A frame with bytes behind its last field.
    #[error("frame of kind {0:#04x} has bytes behind its last field")]
    Trailing(u8),
    /// A field that cannot have this value.
    #[error("{0} cannot have this value")]
    Value(&'static str),
    /// The first frame is not the one that opens a session.
    #[error("the peer speaks another protocol")]
    Magic,
    /// More data than there was credit for.
    #[error("the peer sent more than it was allowed to")]
    Overrun,
}

/// Bytes of a header: three of length, one of kind.
pub(crate) const HEADER: usize = 4;

/// Writes one frame.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    kind: u8,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(kind: u8, out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        Self { out, start, kind }
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    /// Bytes without their length: the last field of a frame.
    pub(crate) fn raw(self, bytes: &[u8]) -> Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Bytes behind their length.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let len = u32::try_from(bytes.len()).expect("requests are bounded when they are made");
        self.u32(len).raw(bytes)
    }

    pub(crate) fn list<'b>(self, items: impl ExactSizeIterator<Item = &'b Vec<u8>>) -> Self {
        let len = u32::try_from(items.len()).expect("requests are bounded when they are made");
        items.fold(self.u32(len), |writer, item| writer.bytes(item))
    }

    /// Completes the header.
    pub(crate) fn end(self) {
        let len = self.out.len() - self.start - HEADER;
        let len = u32::try_from(len).expect("frames are bounded when they are made");
        let [a, b, c, _] = len.to_le_bytes();
        self.out[self.start..self.start + HEADER].copy_from_slice(&[a, b, c, self.kind]);
    }
}

/// Reads the fields of one frame.
pub(crate) struct Reader<'a> {
    kind: u8,
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(kind: u8, payload: &'a [u8]) -> Self {
        Self { kind, left: payload }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, left) = self.left.split_at_checked(len).ok_or(WireError::Short(self.kind))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let taken = self.take(N)?;
        <[u8; N]>::try_from(taken).map_err(|_| WireError::Short(self.kind))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Value(name)),
        }
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u32()?;
        self.take(usize::try_from(len).map_err(|_| WireError::Short(self.kind))?)
    }

    pub(crate) fn list(&mut self) -> Result<Vec<Vec<u8>>, WireError> {
        let count = self.u32()?;
        // Each item has at least its length: what cannot be there is not waited for.
        let fits = usize::try_from(count).is_ok_and(|count| count <= self.left.len() / 4);
        if !fits {
            return Err(WireError::Short(self.kind));
        }
        (0..count).map(|_| self.bytes().map(<[u8]>::to_vec)).collect()
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.left)
    }

    /// Checks that nothing is left.
    pub(crate) fn end<T>(self, value: T) -> Result<T, WireError> {
        if self.left.is_empty() { Ok(value) } else { Err(WireError::Trailing(self.kind)) }
    }
}
