//! Writing: events into batches, one batch a flush.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use twox_hash::XxHash3_64;

use crate::error::{Error, Result};
use crate::event::{Command, field};
use crate::wire::{put_varint, varint_len};

/// First byte of every batch.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes of one batch.
pub const BATCH_BYTES_MAX: usize = 64 << 20;
/// Bytes of one interned name or options text.
pub const NAME_BYTES_MAX: usize = 64 << 10;
/// Interned texts of one history.
pub const NAMES_MAX: usize = 1 << 20;
/// Events of one history.
pub const EVENTS_MAX: u32 = 1 << 30;
/// Bytes of the checksum at the end of a batch.
pub const CHECKSUM_BYTES: usize = 8;
/// The version and three numbers.
const HEADER_BYTES_MAX: usize = 1 + 3 * 5;

/// More than the numbers of one event, its new names and the batch around them can take.
const OVERHEAD_BYTES: usize = 128;

/// Where the checksum chain of a run begins.
pub fn chain_start(run_id: &[u8; 16]) -> u64 {
    XxHash3_64::oneshot(run_id)
}

/// The chain after a batch whose bytes, without the checksum, are `bytes`.
#[inline]
pub fn chain_next(chain: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(chain, bytes)
}

/// Collects events and makes a batch of them.
#[derive(Debug, Default)]
pub struct Writer {
    interned: HashMap<Box<[u8]>, u32>,
    /// The text that was asked for last: code that calls an activity often calls it again.
    last: Vec<u8>,
    last_index: u32,
    new_names: Vec<u8>,
    new_name_count: u32,
    body: Vec<u8>,
    event_count: u32,
}

impl Writer {
    /// A writer that knows the texts of the history so far, in order.
    pub fn with_names<'a>(names: impl Iterator<Item = &'a [u8]>) -> Self {
        let interned = names
            .zip(0..)
            .map(|(name, index)| (name.into(), index))
            .collect();
        Self {
            interned,
            ..Self::default()
        }
    }

    /// Events since the last [`Writer::take`].
    pub fn event_count(&self) -> u32 {
        self.event_count
    }

    /// Bytes since the last [`Writer::take`].
    pub fn len(&self) -> usize {
        self.body.len() + self.new_names.len()
    }

    /// Whether nothing was written since the last [`Writer::take`].
    pub fn is_empty(&self) -> bool {
        self.event_count == 0
    }

    fn intern(&mut self, text: &str) -> Result<u32> {
        if !text.is_empty() && self.last == text.as_bytes() {
            return Ok(self.last_index);
        }
        self.last_index = self.index_of(text)?;
        self.last.clear();
        self.last.extend_from_slice(text.as_bytes());
        Ok(self.last_index)
    }

    fn index_of(&mut self, text: &str) -> Result<u32> {
        if let Some(&index) = self.interned.get(text.as_bytes()) {
            return Ok(index);
        }
        limit("name", text.len(), NAME_BYTES_MAX)?;
        limit("number of names", self.interned.len() + 1, NAMES_MAX)?;
        let index = self.interned.len() as u32;
        self.interned.insert(text.as_bytes().into(), index);
        put_varint(&mut self.new_names, text.len() as u64);
        self.new_names.extend_from_slice(text.as_bytes());
        self.new_name_count += 1;
        Ok(index)
    }

    /// Append one event. `delta` is its time relative to the last inbound fact.
    pub fn push(&mut self, event: &Command<'_>, delta: Option<u64>) -> Result<()> {
        let meta_len = event.meta.map_or(0, <[u8]>::len);
        let payload_len = event.payload.map_or(0, <[u8]>::len);
        let text_len = event.name.map_or(0, str::len) + event.options.map_or(0, str::len);
        limit(
            "batch",
            self.len() + text_len + meta_len + payload_len + OVERHEAD_BYTES,
            BATCH_BYTES_MAX,
        )?;
        let name = event.name.map(|text| self.intern(text)).transpose()?;
        let options = event.options.map(|text| self.intern(text)).transpose()?;

        let mut flags = 0;
        let mut body_len = 1;
        let mut count = |bit: u8, len: usize| {
            flags |= bit;
            body_len += len;
        };
        if event.reference != 0 {
            count(field::REF, varint_len(event.reference.into()));
        }
        if let Some(delta) = delta {
            count(field::TIME, varint_len(delta));
        }
        if let Some(index) = name {
            count(field::NAME, varint_len(index.into()));
        }
        if let Some(index) = options {
            count(field::OPTIONS, varint_len(index.into()));
        }
        if event.meta.is_some() {
            count(field::META, varint_len(meta_len as u64) + meta_len);
        }
        if event.payload.is_some() {
            count(field::PAYLOAD, payload_len);
        }

        let out = &mut self.body;
        out.push(event.kind as u8);
        put_varint(out, body_len as u64);
        out.push(flags);
        if event.reference != 0 {
            put_varint(out, event.reference.into());
        }
        if let Some(delta) = delta {
            put_varint(out, delta);
        }
        for index in [name, options].into_iter().flatten() {
            put_varint(out, index.into());
        }
        if let Some(meta) = event.meta {
            put_varint(out, meta_len as u64);
            out.extend_from_slice(meta);
        }
        out.extend_from_slice(event.payload.unwrap_or_default());
        self.event_count += 1;
        Ok(())
    }

    /// Make a batch of everything since the last one; return it and the chain after it.
    pub fn take(&mut self, first_id: u32, chain: u64) -> (Vec<u8>, u64) {
        let mut out = Vec::new();
        let chain = self.take_into(first_id, chain, &mut out);
        (out, chain)
    }

    /// The same into an empty buffer, which may have been used before; return the chain.
    pub fn take_into(&mut self, first_id: u32, chain: u64, out: &mut Vec<u8>) -> u64 {
        debug_assert!(out.is_empty());
        out.reserve(self.len() + HEADER_BYTES_MAX + CHECKSUM_BYTES);
        out.push(FORMAT_VERSION);
        put_varint(out, first_id.into());
        put_varint(out, self.event_count.into());
        put_varint(out, self.new_name_count.into());
        out.append(&mut self.new_names);
        out.append(&mut self.body);
        let chain = chain_next(chain, out);
        out.extend_from_slice(&chain.to_le_bytes());
        self.event_count = 0;
        self.new_name_count = 0;
        chain
    }
}

pub(crate) fn limit(what: &'static str, size: usize, limit: usize) -> Result<()> {
    if size > limit {
        Err(Error::TooLarge { what, size, limit })
    } else {
        Ok(())
    }
}
