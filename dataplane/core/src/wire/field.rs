//! A place in a header.

use std::ops::Range;

/// A header field of `N` bytes, in network byte order, at a fixed offset from the start of its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field<const N: usize>(usize);

impl<const N: usize> Field<N> {
    /// `N` bytes at an offset, for what spans several fields.
    pub const fn at(start: usize) -> Field<N> {
        Field(start)
    }

    /// Offset of the first byte.
    #[inline(always)]
    pub const fn start(self) -> usize {
        self.0
    }

    /// The bytes, as a range of the header.
    #[inline(always)]
    pub const fn range(self) -> Range<usize> {
        self.0..self.0 + N
    }

    /// The same field as seen from `bytes` before its header.
    #[inline(always)]
    pub const fn after(self, bytes: usize) -> Field<N> {
        Field(bytes + self.0)
    }

    /// The bytes of the field, if the data reaches that far.
    #[inline(always)]
    pub fn get(self, data: &[u8]) -> Option<[u8; N]> {
        data.get(self.0..)?.first_chunk().copied()
    }

    /// The bytes of the field in a header that is known to be whole.
    ///
    /// # Panics
    /// When the field is outside of `header`.
    #[inline(always)]
    pub fn read(self, header: &[u8]) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&header[self.range()]);
        bytes
    }

    /// Overwrites the field.
    ///
    /// # Panics
    /// When the field is outside of `header`.
    #[inline(always)]
    pub fn write(self, header: &mut [u8], bytes: [u8; N]) {
        header[self.range()].copy_from_slice(&bytes);
    }
}

impl Field<1> {
    /// [`Field::read`] as a number.
    #[inline(always)]
    pub fn u8(self, header: &[u8]) -> u8 {
        header[self.0]
    }
}

impl Field<2> {
    /// [`Field::read`] as a number.
    #[inline(always)]
    pub fn u16(self, header: &[u8]) -> u16 {
        u16::from_be_bytes(self.read(header))
    }
}

impl Field<4> {
    /// [`Field::read`] as a number.
    #[inline(always)]
    pub fn u32(self, header: &[u8]) -> u32 {
        u32::from_be_bytes(self.read(header))
    }
}

impl Field<8> {
    /// [`Field::read`] as a number.
    #[inline(always)]
    pub fn u64(self, header: &[u8]) -> u64 {
        u64::from_be_bytes(self.read(header))
    }
}
