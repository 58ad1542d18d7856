//! The regions of guest RAM and their host mappings.
//!
//! Invariant: every region is one host mapping that starts on a 2 MiB boundary of host and guest alike, so that the host can
//! back it with huge pages, and stays mapped until the [`GuestRam`] is dropped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::access::{IoBuf, Window};

const HUGE_PAGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: u64 = 4096;

/// Why guest RAM could not be made or touched.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused the mapping.
    #[error("cannot map {len_bytes} bytes of guest memory")]
    Map {
        /// Size asked for.
        len_bytes: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The range is not inside one region of RAM.
    #[error("guest range {addr:#x} plus {len_bytes} bytes is not inside guest memory")]
    OutOfRange {
        /// Guest-physical start.
        addr: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The address does not have the alignment that the use needs.
    #[error("guest address {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Guest-physical address.
        addr: u64,
        /// Alignment needed, a power of two.
        align: u64,
    },
    /// A file could not be mapped over RAM.
    #[error("cannot map the file over guest memory at {addr:#x}")]
    MapFile {
        /// Guest-physical start.
        addr: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A file could not be read into RAM.
    #[error("cannot read the file into guest memory at {addr:#x}")]
    ReadFile {
        /// Guest-physical start.
        addr: u64,
        /// What the host said, or that the file ended.
        #[source]
        source: io::Error,
    },
}

/// One contiguous range of guest-physical RAM and the host address that backs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Guest-physical start, a multiple of 2 MiB or 0.
    pub start: GuestAddress,
    /// Length in bytes, a multiple of 4096.
    pub len_bytes: u64,
    /// Host virtual address of the first byte.
    pub host_addr: u64,
}

/// A host reservation that is unmapped when it goes.
#[derive(Debug)]
struct Reservation {
    addr: *mut libc::c_void,
    len: usize,
}

// SAFETY: the pointer is only an address range to unmap; no data is read through it.
unsafe impl Send for Reservation {}
// SAFETY: as above; a shared reference offers no operation at all.
unsafe impl Sync for Reservation {}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `reserve` and nothing else unmaps it; every `Window` and every worker holds an
        // `Arc` of the `GuestRam` that owns this, so no access can come later.
        unsafe { libc::munmap(self.addr, self.len) };
    }
}

/// All RAM of one machine.
#[derive(Debug)]
pub struct GuestRam {
    map: GuestMemoryMmap<()>,
    ranges: Vec<RamRange>,
    _reservations: Vec<Reservation>,
}

impl GuestRam {
    /// Maps anonymous, private, lazily populated RAM for `layout`: (guest start, length in bytes) in ascending order.
    ///
    /// It is on small pages until [`Self::allow_huge_pages`].
    ///
    /// # Errors
    /// [`MemoryError::Map`] when the host refuses.
    pub fn anonymous(layout: &[(GuestAddress, u64)]) -> Result<Self, MemoryError> {
        let mut ranges = Vec::with_capacity(layout.len());
        let mut reservations = Vec::with_capacity(layout.len());
        let mut regions = Vec::with_capacity(layout.len());
        for &(start, len_bytes) in layout {
            let map_error = |source| MemoryError::Map { len_bytes, source };
            let len = usize::try_from(len_bytes)
                .map_err(|_| map_error(io::Error::from_raw_os_error(libc::ENOMEM)))?;
            let (reservation, host) = reserve(len).map_err(map_error)?;
            reservations.push(reservation);
            // SAFETY: `host..host + len` was mapped read-write by `reserve`, stays mapped until the reservation kept in
            // `_reservations` is dropped, and this region is the only owner of it.
            let mapping = unsafe {
                MmapRegion::build_raw(
                    host.cast::<u8>(),
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                )
            }
            .map_err(|error| map_error(io::Error::other(error)))?;
            let region = GuestRegionMmap::new(mapping, start)
                .ok_or_else(|| map_error(io::Error::from_raw_os_error(libc::EOVERFLOW)))?;
            regions.push(Arc::new(region));
            ranges.push(RamRange { start, len_bytes, host_addr: host.expose_provenance() as u64 });
        }
        let map = GuestMemoryMmap::from_arc_regions(regions).map_err(|error| MemoryError::Map {
            len_bytes: layout.iter().map(|&(_, len)| len).sum(),
            source: io::Error::other(error),
        })?;
        Ok(Self { map, ranges, _reservations: reservations })
    }

    /// Lets the host back what is touched from now on with huge pages, and gather what was touched before.
    ///
    /// Not from the start: a boot touches a few pages in each of many places, and zeroing 2 MiB for each of them is a
    /// sixth of all the work of a small boot.
    pub fn allow_huge_pages(&self) {
        for range in &self.ranges {
            let (Ok(addr), Ok(len)) =
                (usize::try_from(range.host_addr), usize::try_from(range.len_bytes))
            else {
                continue;
            };
            let host = std::ptr::with_exposed_provenance_mut(addr);
            // SAFETY: the range is mapped and ours; MADV_HUGEPAGE is advice and changes no contents. A host without huge pages
            // refuses it, which costs speed only.
            unsafe { libc::madvise(host, len, libc::MADV_HUGEPAGE) };
        }
    }

    /// The ranges in ascending order, for memory slots and the guest's memory map.
    #[must_use]
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// Total RAM in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len_bytes).sum()
    }

    /// Whether `addr..addr + len_bytes` lies inside one range of RAM.
    #[must_use]
    pub fn contains(&self, addr: GuestAddress, len_bytes: u64) -> bool {
        self.host_ptr(addr, len_bytes).is_ok()
    }

    /// Copies guest bytes out; the copy is what must be parsed, because the guest may change the original.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn read(&self, addr: GuestAddress, out: &mut [u8]) -> Result<(), MemoryError> {
        self.map.read_slice(out, addr).map_err(|_| out_of_range(addr, out.len() as u64))
    }

    /// Copies `data` into guest RAM.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`]; bytes before the end of RAM may have been written.
    pub fn write(&self, addr: GuestAddress, data: &[u8]) -> Result<(), MemoryError> {
        self.map.write_slice(data, addr).map_err(|_| out_of_range(addr, data.len() as u64))
    }

    /// Copies `N` bytes out, reading each once: whatever the guest does to the original, the copy stays as it is.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], also where the bytes lie in two ranges that touch.
    pub fn read_array<const N: usize>(&self, addr: GuestAddress) -> Result<[u8; N], MemoryError> {
        let src = self.host_ptr(addr, N as u64)?.cast::<[u8; N]>();
        // SAFETY: `host_ptr` found N bytes of RAM there, which stay mapped while `self` is borrowed; byte arrays have no alignment and no
        // invalid values.
        Ok(unsafe { src.read_volatile() })
    }

    /// Copies one byte in.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn write_byte(&self, addr: GuestAddress, value: u8) -> Result<(), MemoryError> {
        let dst = self.host_ptr(addr, 1)?;
        // SAFETY: as in `read_array`, for one byte.
        unsafe { dst.write_volatile(value) };
        Ok(())
    }

    /// A fixed window for structures that both sides use while the machine runs (rings).
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], or [`MemoryError::Misaligned`] when `addr` is not a multiple of `align`.
    pub fn window(
        self: &Arc<Self>,
        addr: GuestAddress,
        len_bytes: u64,
        align: u64,
    ) -> Result<Window, MemoryError> {
        if !addr.0.is_multiple_of(align) {
            return Err(MemoryError::Misaligned { addr: addr.0, align });
        }
        let base = self.host_ptr(addr, len_bytes)?;
        let len = usize::try_from(len_bytes).map_err(|_| out_of_range(addr, len_bytes))?;
        Ok(Window::new(Arc::clone(self), base, len))
    }

    /// A range for the kernel to read or write during I/O. The user of it must keep this `GuestRam` alive until the I/O
    /// has completed.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`].
    pub fn io_buf(&self, addr: GuestAddress, len_bytes: u32) -> Result<IoBuf, MemoryError> {
        Ok(IoBuf::new(self.host_ptr(addr, u64::from(len_bytes))?, len_bytes as usize))
    }

    /// Maps `len_bytes` of `file` from `offset` over RAM at `addr`: private, so that the guest's writes stay its own and the
    /// file's pages are shared with the page cache until then.
    ///
    /// # Errors
    /// [`MemoryError::Misaligned`] unless `addr`, `offset` and `len_bytes` are multiples of 4096,
    /// [`MemoryError::OutOfRange`], [`MemoryError::MapFile`].
    pub fn map_file(
        &self,
        addr: GuestAddress,
        file: &File,
        offset: u64,
        len_bytes: u64,
    ) -> Result<(), MemoryError> {
        for value in [addr.0, offset, len_bytes] {
            if !value.is_multiple_of(PAGE_BYTES) {
                return Err(MemoryError::Misaligned { addr: value, align: PAGE_BYTES });
            }
        }
        let host = self.host_ptr(addr, len_bytes)?;
        let len = usize::try_from(len_bytes).map_err(|_| out_of_range(addr, len_bytes))?;
        let offset = i64::try_from(offset).map_err(|_| out_of_range(addr, len_bytes))?;
        // SAFETY: the target range lies inside one reservation of ours (`host_ptr` checked it), so MAP_FIXED replaces only
        // pages of guest RAM, which nobody holds references to.
        let mapped = unsafe {
            libc::mmap(
                host.cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(MemoryError::MapFile { addr: addr.0, source: io::Error::last_os_error() });
        }
        Ok(())
    }

    /// Reads `len_bytes` of `file` from `offset` into RAM at `addr`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfRange`], [`MemoryError::ReadFile`]; the range may then be partly written.
    pub fn read_file(
        &self,
        addr: GuestAddress,
        file: &File,
        offset: u64,
        len_bytes: u64,
    ) -> Result<(), MemoryError> {
        let host = self.host_ptr(addr, len_bytes)?;
        let len = usize::try_from(len_bytes).map_err(|_| out_of_range(addr, len_bytes))?;
        let failed = |source| MemoryError::ReadFile { addr: addr.0, source };
        let mut done = 0;
        while done < len {
            let from = i64::try_from(offset.saturating_add(done as u64))
                .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
            // SAFETY: `done` is below `len`, and `host..host + len` lies inside one region of RAM (`host_ptr` checked it).
            let to = unsafe { host.add(done) };
            // SAFETY: as above, `to..host + len` is mapped RAM of ours; nobody holds references into it.
            let got = unsafe { libc::pread(file.as_raw_fd(), to.cast(), len - done, from) };
            match usize::try_from(got) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(got) => done += got,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(failed(error)),
                },
            }
        }
        Ok(())
    }

    fn host_ptr(&self, addr: GuestAddress, len_bytes: u64) -> Result<*mut u8, MemoryError> {
        let error = || out_of_range(addr, len_bytes);
        // Searched here and not in `map`: every descriptor of every request comes by.
        for range in &self.ranges {
            let Some(offset) = addr.0.checked_sub(range.start.0) else { break };
            if offset < range.len_bytes {
                if len_bytes > range.len_bytes - offset {
                    break;
                }
                let host = usize::try_from(range.host_addr + offset).map_err(|_| error())?;
                return Ok(std::ptr::with_exposed_provenance_mut(host));
            }
        }
        Err(error())
    }
}

fn out_of_range(addr: GuestAddress, len_bytes: u64) -> MemoryError {
    MemoryError::OutOfRange { addr: addr.0, len_bytes }
}

/// Reserves `len` bytes on a 2 MiB boundary, on small pages.
fn reserve(len: usize) -> io::Result<(Reservation, *mut libc::c_void)> {
    let padded = len
        .checked_add(HUGE_PAGE_BYTES)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: a fresh anonymous mapping at an address the kernel chooses touches nothing that exists.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            padded,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let reservation = Reservation { addr, len: padded };
    let skip = addr.align_offset(HUGE_PAGE_BYTES);
    // SAFETY: `skip` is below 2 MiB and the reservation is `len` plus 2 MiB, so the result stays inside it.
    let aligned = unsafe { addr.byte_add(skip) };
    // SAFETY: the range is ours; MADV_NOHUGEPAGE is advice and changes no contents. A host without huge pages refuses it, and has
    // nothing else than small ones.
    unsafe { libc::madvise(aligned, len, libc::MADV_NOHUGEPAGE) };
    // SAFETY: as above; guest memory in a core dump would be large and would hold the guest's secrets.
    unsafe { libc::madvise(aligned, len, libc::MADV_DONTDUMP) };
    Ok((reservation, aligned))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn two_ranges() -> Arc<GuestRam> {
        let layout = [(GuestAddress(0), 4 << 20), (GuestAddress(1 << 32), 2 << 20)];
        Arc::new(GuestRam::anonymous(&layout).unwrap())
    }

    #[test]
    fn ranges_are_huge_page_aligned() {
        for range in two_ranges().ranges() {
            assert_eq!(range.host_addr % HUGE_PAGE_BYTES as u64, 0);
        }
    }

    #[test]
    fn a_range_is_inside_one_region_or_refused() {
        let ram = two_ranges();
        for (addr, len, inside) in [
            (0, 4 << 20, true),
            (0, (4 << 20) + 1, false),
            ((4 << 20) - 1, 1, true),
            (4 << 20, 1, false),
            ((1 << 32) + (1 << 20), 1 << 20, true),
            ((1 << 32) + (2 << 20), 0, false),
            ((1 << 32) + (2 << 20) - 1, 2, false),
            (u64::MAX, 2, false),
            (u64::MAX - 1, 1, false),
        ] {
            assert_eq!(ram.contains(GuestAddress(addr), len), inside, "{addr:#x}+{len}");
        }
    }

    #[test]
    fn small_copies_land_where_large_ones_do() {
        let ram = two_ranges();
        for addr in [0x1000, 0x1003, (4 << 20) - 16, 1 << 32, (1 << 32) + (2 << 20) - 16] {
            let addr = GuestAddress(addr);
            ram.write(addr, b"sixteen bytes xx").unwrap();
            assert_eq!(&ram.read_array::<16>(addr).unwrap(), b"sixteen bytes xx");
            ram.write_byte(addr, b'S').unwrap();
            let mut byte = [0];
            ram.read(addr, &mut byte).unwrap();
            assert_eq!(byte, *b"S");
        }
        for addr in [(4 << 20) - 15, 4 << 20, (1 << 32) + (2 << 20) - 1, u64::MAX] {
            assert!(ram.read_array::<16>(GuestAddress(addr)).is_err(), "{addr:#x}");
        }
        assert!(ram.write_byte(GuestAddress(4 << 20), 0).is_err());
    }

    #[test]
    fn a_file_is_read_whole_or_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let ram = two_ranges();
        ram.read_file(GuestAddress(0x1001), &file, 100, 4900).unwrap();
        let mut bytes = [1; 4902];
        ram.read(GuestAddress(0x1000), &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[4901]), (0, 0));
        assert!(bytes[1..4901].iter().all(|&byte| byte == 7));
        assert!(matches!(
            ram.read_file(GuestAddress(0), &file, 101, 4900),
            Err(MemoryError::ReadFile { .. })
        ));
        assert!(matches!(
            ram.read_file(GuestAddress((4 << 20) - 1), &file, 0, 2),
            Err(MemoryError::OutOfRange { .. })
        ));
    }

    #[test]
    fn a_mapped_file_is_seen_and_never_written() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let ram = two_ranges();
        ram.map_file(GuestAddress(0x1000), &file, 4096, 4096).unwrap();
        let mut byte = [0];
        ram.read(GuestAddress(0x1fff), &mut byte).unwrap();
        assert_eq!(byte, [7]);
        ram.write(GuestAddress(0x1000), &[9]).unwrap();
        assert_eq!(std::os::unix::fs::FileExt::read_at(&file, &mut byte, 4096).unwrap(), 1);
        assert_eq!(byte, [7]);
        assert!(matches!(
            ram.map_file(GuestAddress(0x1001), &file, 0, 4096),
            Err(MemoryError::Misaligned { .. })
        ));
    }
}
