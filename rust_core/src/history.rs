//! Reading: check the batches of a run, then walk their events without copying.
#![forbid(unsafe_code)]

use crate::batch::{
    BATCH_BYTES_MAX, CHECKSUM_BYTES, EVENTS_MAX, FORMAT_VERSION, NAME_BYTES_MAX, NAMES_MAX,
    chain_next, chain_start, limit,
};
use crate::error::{Error, Result};
use crate::event::{EventView, Kind, NO_NAME, Span, field};
use crate::wire::Reader;

#[derive(Debug)]
struct Section {
    /// First byte of the events.
    start: u32,
    /// First byte after the events: where the checksum is.
    end: u32,
    first_id: u32,
    event_count: u32,
}

/// The recorded batches of one run, checked. `B` is anything that holds bytes.
#[derive(Debug)]
pub struct History<B> {
    batches: Vec<B>,
    sections: Vec<Section>,
    names: Vec<Span>,
    chain: u64,
    event_count: u32,
    byte_count: usize,
}

impl<B: AsRef<[u8]>> History<B> {
    /// The empty history of a run.
    pub fn new(run_id: &[u8; 16]) -> Self {
        Self {
            batches: Vec::new(),
            sections: Vec::new(),
            names: Vec::new(),
            chain: chain_start(run_id),
            event_count: 0,
            byte_count: 0,
        }
    }

    /// A whole history. Takes the batches as they are: of a long history with short batches, a second
    /// list of them would be more bytes than they have.
    pub fn with_batches(run_id: &[u8; 16], batches: Vec<B>) -> Result<Self> {
        let mut history = Self::new(run_id);
        history.sections.reserve_exact(batches.len());
        for batch in &batches {
            history.check(batch.as_ref())?;
        }
        history.batches = batches;
        Ok(history)
    }

    /// Check the next batch and add it.
    pub fn push(&mut self, batch: B) -> Result<()> {
        self.check(batch.as_ref())?;
        self.batches.push(batch);
        Ok(())
    }

    /// Check what comes next: version, checksum, chain, numbering, names.
    fn check(&mut self, bytes: &[u8]) -> Result<()> {
        let seq = self.sections.len() as u32;
        limit("batch", bytes.len(), BATCH_BYTES_MAX)?;
        let corrupt = |offset, reason| Error::Corrupt {
            seq,
            offset,
            reason,
        };
        match bytes.first() {
            None => return Err(corrupt(0, "empty batch")),
            Some(&FORMAT_VERSION) => {}
            Some(&version) => {
                let what = format!("history format {version} (this build knows {FORMAT_VERSION})");
                return Err(Error::Unsupported {
                    seq,
                    offset: 0,
                    what,
                });
            }
        }
        let Some((body, stored)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(corrupt(bytes.len(), "cut short"));
        };
        let chain = chain_next(self.chain, body);
        if chain != u64::from_le_bytes(*stored) {
            let reason = "checksum wrong: bytes changed, or a batch is missing or out of place";
            return Err(corrupt(body.len(), reason));
        }
        let mut reader = Reader::new(bytes, 1, body.len(), seq);
        let first_id = reader.varint32()?;
        if first_id != self.event_count + 1 {
            return Err(reader.corrupt("events not in sequence"));
        }
        let event_count = reader.varint32()?;
        // The shortest event is three bytes, so a count beyond that is a lie.
        if event_count as usize > body.len() / 3 || event_count > EVENTS_MAX - self.event_count {
            return Err(reader.corrupt("more events than bytes"));
        }
        let name_count = reader.varint32()?;
        if name_count as usize > body.len() {
            return Err(reader.corrupt("more names than bytes"));
        }
        limit(
            "number of names",
            self.names.len() + name_count as usize,
            NAMES_MAX,
        )?;
        for _ in 0..name_count {
            let len = reader.varint32()?;
            limit("name", len as usize, NAME_BYTES_MAX)?;
            let start = reader.skip(len.into())?;
            if std::str::from_utf8(&bytes[start..start + len as usize]).is_err() {
                return Err(reader.corrupt("name is not UTF-8"));
            }
            self.names.push(Span {
                seq,
                start: start as u32,
                len,
            });
        }
        self.sections.push(Section {
            start: reader.offset() as u32,
            end: body.len() as u32,
            first_id,
            event_count,
        });
        self.chain = chain;
        self.event_count += event_count;
        self.byte_count += bytes.len();
        Ok(())
    }

    /// Compare with the chain that the run's row remembers: finds a missing last batch.
    pub fn check_head(&self, head: u64) -> Result<()> {
        if head == self.chain {
            return Ok(());
        }
        let reason = "the newest batches are missing, or the run's head is wrong";
        Err(Error::Corrupt {
            seq: self.batches.len() as u32,
            offset: 0,
            reason,
        })
    }

    /// Read every event once. A history that passes replays without a format error.
    pub fn check_events(&self) -> Result<u32> {
        let mut cursor = Cursor::default();
        while self.next(&mut cursor)?.is_some() {}
        Ok(self.event_count)
    }

    /// The checksum chain after the last batch.
    pub fn chain(&self) -> u64 {
        self.chain
    }

    /// Number of events.
    pub fn event_count(&self) -> u32 {
        self.event_count
    }

    /// Number of batches.
    pub fn batch_count(&self) -> usize {
        self.batches.len()
    }

    /// Bytes of all batches.
    pub fn byte_count(&self) -> usize {
        self.byte_count
    }

    /// The bytes of a span.
    #[inline]
    pub fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        &self.batches[span.seq as usize].as_ref()[start..start + span.len as usize]
    }

    /// An interned text; empty for [`NO_NAME`].
    #[inline]
    pub fn name(&self, index: u32) -> &[u8] {
        self.names
            .get(index as usize)
            .map_or(&[], |span| self.bytes(*span))
    }

    /// All interned texts in order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().map(|span| self.bytes(*span))
    }

    /// Decode the event under the cursor and step on; `None` at the end.
    #[inline]
    pub fn next(&self, cursor: &mut Cursor) -> Result<Option<EventView>> {
        let Some(section) = self.section(cursor)? else {
            return Ok(None);
        };
        let seq = cursor.seq;
        let bytes = self.batches[seq as usize].as_ref();
        let mut reader = Reader::new(bytes, cursor.at as usize, section.end as usize, seq);
        let number = reader.byte()?;
        let body_len = reader.varint()?;
        let start = reader.skip(body_len)?;
        let end = reader.offset();
        let Some(kind) = Kind::from_number(number) else {
            let what = format!("event kind {number}");
            return Err(Error::Unsupported {
                seq,
                offset: cursor.at as usize,
                what,
            });
        };
        let body = Reader::new(bytes, start, end, seq);
        let event = self.fields(cursor, kind, body, end)?;
        cursor.at = end as u32;
        cursor.id += 1;
        if kind.is_inbound() {
            cursor.time = event.time;
        }
        Ok(Some(event))
    }

    /// The section the cursor is in, moving over empty and finished ones.
    #[inline]
    fn section(&self, cursor: &mut Cursor) -> Result<Option<&Section>> {
        loop {
            let Some(section) = self.sections.get(cursor.seq as usize) else {
                return Ok(None);
            };
            if cursor.at == 0 {
                cursor.at = section.start;
                cursor.id = section.first_id;
            }
            let left = section.first_id + section.event_count - cursor.id;
            if left > 0 {
                return Ok(Some(section));
            }
            if cursor.at != section.end {
                let reason = "bytes after the last event";
                return Err(Error::Corrupt {
                    seq: cursor.seq,
                    offset: cursor.at as usize,
                    reason,
                });
            }
            cursor.seq += 1;
            cursor.at = 0;
        }
    }

    #[inline]
    fn fields(
        &self,
        cursor: &Cursor,
        kind: Kind,
        mut body: Reader<'_>,
        end: usize,
    ) -> Result<EventView> {
        let flags = body.byte()?;
        if flags & !field::ALL != 0 {
            let what = format!("event fields {flags:#04x}");
            return Err(Error::Unsupported {
                seq: cursor.seq,
                offset: body.offset(),
                what,
            });
        }
        let mut event = EventView {
            id: cursor.id,
            kind,
            reference: 0,
            time: 0,
            name: NO_NAME,
            options: NO_NAME,
            meta: None,
            payload: None,
        };
        if flags & field::REF != 0 {
            event.reference = body.varint32()?;
            if event.reference == 0 || event.reference >= cursor.id {
                return Err(body.corrupt("refers to an event that is not before it"));
            }
        }
        if flags & field::TIME != 0 {
            let delta = body.varint()?;
            let time = cursor.time.checked_add(delta);
            event.time = time.ok_or_else(|| body.corrupt("time beyond 64 bits"))?;
        } else if kind.is_inbound() {
            event.time = cursor.time;
        }
        if flags & field::NAME != 0 {
            event.name = self.name_index(&mut body)?;
        }
        if flags & field::OPTIONS != 0 {
            event.options = self.name_index(&mut body)?;
        }
        if flags & field::META != 0 {
            let len = body.varint32()?;
            let start = body.skip(len.into())? as u32;
            event.meta = Some(Span {
                seq: cursor.seq,
                start,
                len,
            });
        }
        if flags & field::PAYLOAD != 0 {
            let start = body.offset();
            let len = (end - start) as u32;
            event.payload = Some(Span {
                seq: cursor.seq,
                start: start as u32,
                len,
            });
        }
        // Bytes after the known fields belong to a newer build's fields of a kind we know: ignored.
        Ok(event)
    }

    #[inline]
    fn name_index(&self, body: &mut Reader<'_>) -> Result<u32> {
        let index = body.varint32()?;
        if index as usize >= self.names.len() {
            return Err(body.corrupt("unknown name"));
        }
        Ok(index)
    }
}

/// A place in a history.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    seq: u32,
    at: u32,
    id: u32,
    time: u64,
}

impl Cursor {
    /// Time of the last inbound fact before it.
    pub fn time(&self) -> u64 {
        self.time
    }
}
