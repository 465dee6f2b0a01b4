//! Matching: what the code asks for, against what history says it asked for.
//!
//! Facts are delivered one at a time, in history order, and the code runs until it can do nothing
//! more before the next one. So the order of commands is a function of history alone, and matching
//! is strictly sequential: each command must be the next event, and when the code is quiet the next
//! event must be a fact. Neither extra nor missing commands can hide, also not at the end.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::batch::{EVENTS_MAX, Writer};
use crate::describe;
use crate::error::{Error, Mismatch, Result};
use crate::event::{Command, EventView, Kind, field};
use crate::history::{Cursor, History};

/// Event ids are small and dense: multiplying spreads them enough.
#[derive(Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }
    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A command that waits for its outcome.
#[derive(Debug)]
pub struct Pending<S> {
    /// What was asked.
    pub kind: Kind,
    /// Where history has it; `None` when it was made since the history was loaded.
    pub view: Option<EventView>,
    /// What the caller keeps with it: the future to resolve.
    pub slot: S,
}

/// The next fact to deliver, or that history is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// History has this fact next.
    Recorded(EventView),
    /// Nothing more is recorded: from here on commands are new.
    Live,
}

/// One run: its history, where the code is in it, and what is new since.
#[derive(Debug)]
pub struct Replay<B, S> {
    history: History<B>,
    cursor: Cursor,
    /// The event under the cursor, decoded once.
    ahead: Option<EventView>,
    peeked: bool,
    live: bool,
    ended: bool,
    now: u64,
    next_id: u32,
    position: u32,
    taken_id: u32,
    chain: u64,
    new_bytes: usize,
    writer: Option<Writer>,
    pending: HashMap<u32, Pending<S>, BuildHasherDefault<IdHasher>>,
}

impl<B: AsRef<[u8]>, S> Replay<B, S> {
    /// Begin at the first event of `history`.
    pub fn new(history: History<B>) -> Self {
        let chain = history.chain();
        let next_id = history.event_count() + 1;
        Self {
            history,
            cursor: Cursor::default(),
            ahead: None,
            peeked: false,
            live: false,
            ended: false,
            now: 0,
            next_id,
            position: 0,
            taken_id: next_id,
            chain,
            new_bytes: 0,
            writer: None,
            pending: HashMap::default(),
        }
    }

    /// The history it was loaded with.
    #[inline]
    pub fn history(&self) -> &History<B> {
        &self.history
    }

    /// Time of the last delivered fact: what the code sees as now. Microseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Whether commands are still matched with history rather than recorded.
    #[inline]
    pub fn is_replaying(&self) -> bool {
        !self.live
    }

    /// Whether the ending command was made.
    #[inline]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Id of the last event that the code has reached: the same live and replayed.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// Events so far, recorded and new.
    pub fn event_count(&self) -> u32 {
        self.next_id - 1
    }

    /// Bytes of history, recorded and new.
    pub fn byte_count(&self) -> usize {
        self.history.byte_count() + self.new_bytes + self.writer.as_ref().map_or(0, Writer::len)
    }

    /// The event history has next, without stepping on.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<EventView>> {
        if !self.peeked {
            self.ahead = self.history.next(&mut self.cursor)?;
            self.peeked = true;
        }
        Ok(self.ahead)
    }

    #[inline]
    fn step(&mut self, id: u32) {
        self.peeked = false;
        self.position = id;
    }

    /// The next fact, once the code is quiet. A command here is one that the code no longer makes.
    #[inline]
    pub fn advance(&mut self) -> Result<Fact> {
        if self.live {
            return Ok(Fact::Live);
        }
        match self.peek()? {
            None => {
                self.live = true;
                Ok(Fact::Live)
            }
            Some(event) if event.kind.is_inbound() => {
                self.accept(&event);
                Ok(Fact::Recorded(event))
            }
            Some(event) => Err(self.mismatch(Some(event), None)),
        }
    }

    /// Step over a fact that was peeked at.
    #[inline]
    pub fn accept(&mut self, event: &EventView) {
        self.step(event.id);
        self.now = event.time;
        // A start is recorded by whoever starts the run, before any code ran.
        if event.kind == Kind::RunStarted && self.history.event_count() == 1 {
            self.live = true;
        }
    }

    /// A command of the code: the next event of history, or new. Returns its id.
    #[inline]
    pub fn command(&mut self, command: &Command<'_>, slot: Option<S>) -> Result<u32> {
        let command = &self.normal(command);
        if command.reference != 0 && command.reference >= self.next_command_id()? {
            return Err(Error::Invalid("it refers to an event that does not exist"));
        }
        let (id, view) = if self.live {
            (self.write(command)?, None)
        } else {
            let event = self.expect(command)?;
            (event.id, Some(event))
        };
        if let Some(slot) = slot {
            self.pending.insert(
                id,
                Pending {
                    kind: command.kind,
                    view,
                    slot,
                },
            );
        }
        self.ended |= command.kind.is_ending();
        Ok(id)
    }

    /// The id that the next event gets or has.
    fn next_command_id(&mut self) -> Result<u32> {
        if self.live {
            return Ok(self.next_id);
        }
        Ok(self.peek()?.map_or(self.next_id, |event| event.id))
    }

    /// A command as history keeps it: no time in it is before now.
    #[inline]
    fn normal<'a>(&self, command: &Command<'a>) -> Command<'a> {
        Command {
            time: if command.time == 0 {
                0
            } else {
                command.time.max(self.now)
            },
            ..*command
        }
    }

    /// Match a command with the next event and step over it.
    #[inline]
    fn expect(&mut self, command: &Command<'_>) -> Result<EventView> {
        let event = self.peek()?;
        match event {
            Some(event) if self.agrees(&event, command) => {
                self.step(event.id);
                Ok(event)
            }
            _ => Err(self.mismatch(event, Some(command))),
        }
    }

    #[inline]
    fn agrees(&self, event: &EventView, command: &Command<'_>) -> bool {
        if event.kind != command.kind {
            return false;
        }
        let compared = event.kind.compared();
        let history = &self.history;
        let name = || history.name(event.name) == command.name.unwrap_or_default().as_bytes();
        let payload = || match (event.payload, command.payload) {
            (Some(span), Some(bytes)) => history.bytes(span) == bytes,
            (None, None) => true,
            _ => false,
        };
        (compared & field::NAME == 0 || name())
            && (compared & field::PAYLOAD == 0 || payload())
            && (compared & field::TIME == 0 || event.time == command.time)
            && (compared & field::REF == 0 || event.reference == command.reference)
    }

    fn write(&mut self, event: &Command<'_>) -> Result<u32> {
        if self.next_id > EVENTS_MAX {
            return Err(Error::TooLarge {
                what: "number of events",
                size: self.next_id as usize,
                limit: EVENTS_MAX as usize,
            });
        }
        let history = &self.history;
        let writer = self
            .writer
            .get_or_insert_with(|| Writer::with_names(history.names()));
        let has_time = event.time != 0 || event.kind.is_inbound();
        let delta = has_time.then(|| event.time.saturating_sub(self.now));
        writer.push(event, delta)?;
        let id = self.next_id;
        self.next_id += 1;
        self.position = id;
        Ok(id)
    }

    /// Record a new fact. Its time is raised to that of the fact before it. Returns its id.
    pub fn record(&mut self, fact: &Command<'_>) -> Result<u32> {
        debug_assert!(fact.kind.is_inbound());
        if fact.reference >= self.next_id {
            return Err(Error::Invalid("it refers to an event that does not exist"));
        }
        let fact = Command {
            time: fact.time.max(self.now),
            ..*fact
        };
        let id = self.write(&fact)?;
        self.now = fact.time;
        Ok(id)
    }

    /// The recorded payload of a value command (side effect), if history has it next.
    pub fn recorded(&mut self, command: &Command<'_>) -> Result<Option<EventView>> {
        if self.live {
            Ok(None)
        } else {
            self.expect(command).map(Some)
        }
    }

    /// Whether the next event is this patch's marker; steps over it. Live: never.
    pub fn take_marker(&mut self, name: &str) -> Result<bool> {
        if self.live {
            return Ok(false);
        }
        let event = self.peek()?;
        let found = event.is_some_and(|event| {
            event.kind == Kind::PatchMarker && self.history.name(event.name) == name.as_bytes()
        });
        if found {
            self.step(self.position + 1);
        }
        Ok(found)
    }

    /// The command that a fact answers, if it waits.
    #[inline]
    pub fn pending(&self, id: u32) -> Option<&Pending<S>> {
        self.pending.get(&id)
    }

    /// What is kept with a command that waits.
    pub fn slot_mut(&mut self, id: u32) -> Option<&mut S> {
        self.pending.get_mut(&id).map(|pending| &mut pending.slot)
    }

    /// A fact ended the run: no more commands.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// End the wait of a command.
    #[inline]
    pub fn resolve(&mut self, id: u32) -> Option<Pending<S>> {
        self.pending.remove(&id)
    }

    /// How many commands wait.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// All commands that wait, oldest first.
    pub fn pending_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.pending.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Everything that waits, to let go of it.
    pub fn drain_pending(&mut self) -> Vec<Pending<S>> {
        self.pending.drain().map(|(_, pending)| pending).collect()
    }

    /// Visit what waits, in no order.
    pub fn slots(&self) -> impl Iterator<Item = &S> {
        self.pending.values().map(|pending| &pending.slot)
    }

    /// The batch of everything new: bytes, chain after it, first event id, number of events.
    pub fn take(&mut self) -> Option<(Vec<u8>, u64, u32, u32)> {
        let mut batch = Vec::new();
        let (chain, first_id, count) = self.take_into(&mut batch)?;
        Some((batch, chain, first_id, count))
    }

    /// The same with the batch put into an empty buffer.
    pub fn take_into(&mut self, batch: &mut Vec<u8>) -> Option<(u64, u32, u32)> {
        let writer = self.writer.as_mut().filter(|writer| !writer.is_empty())?;
        let count = writer.event_count();
        let chain = writer.take_into(self.taken_id, self.chain, batch);
        let first_id = self.taken_id;
        self.chain = chain;
        self.taken_id = self.next_id;
        self.new_bytes += batch.len();
        Some((chain, first_id, count))
    }

    /// The code ended; history must end here too.
    pub fn check_end(&mut self) -> Result<()> {
        if self.live {
            return Ok(());
        }
        match self.peek()? {
            None => {
                self.live = true;
                Ok(())
            }
            event => Err(self.mismatch(event, None)),
        }
    }

    /// Where code and history part.
    #[cold]
    pub fn mismatch(&self, expected: Option<EventView>, found: Option<&Command<'_>>) -> Error {
        let event_id = expected.map_or(self.history.event_count() + 1, |event| event.id);
        Error::Mismatch(Box::new(Mismatch {
            event_id,
            expected: expected.map(|event| describe::event(&self.history, &event, self.now)),
            found: found.map(|command| describe::command(command, self.now)),
            time: self.now,
            around: describe::around(&self.history, event_id),
            hint: describe::hint(&self.history, expected.as_ref(), found, self.now),
        }))
    }
}
