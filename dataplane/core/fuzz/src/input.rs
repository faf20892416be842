//! Reads a fuzz input as a sequence of small choices.

/// The rest of an input. Behind its end all bytes are 0, so each input has a meaning, and a shorter one has a similar meaning.
pub struct Input<'i>(&'i [u8]);

impl<'i> Input<'i> {
    /// A whole input.
    pub fn new(bytes: &'i [u8]) -> Input<'i> {
        Input(bytes)
    }

    /// Whether all bytes have been read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> u32 {
        (u32::from(self.u16()) << 16) | u32::from(self.u16())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        (u64::from(self.u32()) << 32) | u64::from(self.u32())
    }

    /// A number below `limit`, which is 1 to 256, from the next byte.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    /// One of some values, of which there are 1 to 256.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// The next bytes, at most this many.
    pub fn bytes(&mut self, max: usize) -> &'i [u8] {
        let (taken, rest) = self.0.split_at(max.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
