//! Bounds-checked reading and writing of bytes: the only file that knows offsets.
#![forbid(unsafe_code)]

use crate::error::{Error, Result};

/// Append an unsigned LEB128 number.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes `put_varint` takes for `value`.
#[inline]
pub fn varint_len(value: u64) -> usize {
    ((64 - (value | 1).leading_zeros()) as usize).div_ceil(7)
}

/// A position in one batch. Every read is checked; a failed one names the batch and the byte.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    seq: u32,
}

impl<'a> Reader<'a> {
    /// Read `bytes[at..end]` of batch `seq`.
    #[inline]
    pub fn new(bytes: &'a [u8], at: usize, end: usize, seq: u32) -> Self {
        let end = end.min(bytes.len());
        Self {
            bytes,
            at: at.min(end),
            end,
            seq,
        }
    }

    /// The next byte's offset.
    #[inline]
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Whether everything was read.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    /// A fault at the current byte.
    #[cold]
    pub fn corrupt(&self, reason: &'static str) -> Error {
        Error::Corrupt {
            seq: self.seq,
            offset: self.at,
            reason,
        }
    }

    /// One byte.
    #[inline]
    pub fn byte(&mut self) -> Result<u8> {
        if self.at >= self.end {
            return Err(self.corrupt("cut short"));
        }
        let byte = self.bytes[self.at];
        self.at += 1;
        Ok(byte)
    }

    /// An unsigned LEB128 number of at most 64 bits, in its shortest form.
    #[inline]
    pub fn varint(&mut self) -> Result<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        let mut shift = 7;
        loop {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                return Err(self.corrupt("number over 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                if byte == 0 {
                    return Err(self.corrupt("number not in its shortest form"));
                }
                return Ok(value);
            }
            shift += 7;
            if shift > 63 {
                return Err(self.corrupt("number over 64 bits"));
            }
        }
    }

    /// A number that must fit 32 bits.
    #[inline]
    pub fn varint32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| self.corrupt("number over 32 bits"))
    }

    /// Step over `len` bytes; return where they begin.
    #[inline]
    pub fn skip(&mut self, len: u64) -> Result<usize> {
        let start = self.at;
        if len > (self.end - self.at) as u64 {
            return Err(self.corrupt("length beyond the end"));
        }
        self.at += len as usize;
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_width() {
        for shift in 0..64 {
            for delta in [-1_i128, 0, 1] {
                let value = (1_i128 << shift) + delta;
                let Ok(value) = u64::try_from(value) else {
                    continue;
                };
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
                let mut reader = Reader::new(&out, 0, out.len(), 0);
                assert_eq!(reader.varint(), Ok(value));
                assert!(reader.is_empty());
            }
        }
    }

    #[test]
    fn overlong_and_oversized_varints_are_refused() {
        for bytes in [&[0x80, 0x00][..], &[0xff; 11][..], &[0x80][..], &[]] {
            let mut reader = Reader::new(bytes, 0, bytes.len(), 3);
            assert!(
                matches!(reader.varint(), Err(Error::Corrupt { seq: 3, .. })),
                "{bytes:?}"
            );
        }
        let mut reader = Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x7f], 0, 5, 0);
        assert!(reader.varint32().is_err());
    }
}
