//! Generated events and programs, and what records and replays them.
#![allow(dead_code)] // each test file takes its part

use durable_core::error::Result;
use durable_core::event::{Command, EventView, Kind, NO_NAME};
use durable_core::{Fact, History, Replay};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub const RUN: [u8; 16] = *b"the run id bytes";
pub const OTHER_RUN: [u8; 16] = *b"another run's id";
pub const START_US: u64 = 1_700_000_000_000_000;

/// So many generated cases; few under Miri, which is slow and has no files.
pub fn cases(count: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { count },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// An event or command that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub kind: Kind,
    pub reference: u32,
    pub time: u64,
    pub name: Option<String>,
    pub options: Option<String>,
    pub meta: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
}

impl Owned {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            reference: 0,
            time: 0,
            name: None,
            options: None,
            meta: None,
            payload: None,
        }
    }

    pub fn borrow(&self) -> Command<'_> {
        Command {
            kind: self.kind,
            reference: self.reference,
            time: self.time,
            name: self.name.as_deref(),
            options: self.options.as_deref(),
            meta: self.meta.as_deref(),
            payload: self.payload.as_deref(),
        }
    }

    pub fn from_view(history: &History<Vec<u8>>, event: &EventView) -> Self {
        let text = |index| {
            (index != NO_NAME).then(|| {
                String::from_utf8(history.name(index).to_vec()).expect("names are checked")
            })
        };
        Self {
            kind: event.kind,
            reference: event.reference,
            time: event.time,
            name: text(event.name),
            options: text(event.options),
            meta: event.meta.map(|span| history.bytes(span).to_vec()),
            payload: event.payload.map(|span| history.bytes(span).to_vec()),
        }
    }
}

/// Check the batches and decode all events.
pub fn decode(run: &[u8; 16], batches: &[Vec<u8>], head: Option<u64>) -> Result<Vec<Owned>> {
    let history = load(run, batches, head)?;
    let mut cursor = Default::default();
    let mut events = Vec::new();
    while let Some(event) = history.next(&mut cursor)? {
        assert_eq!(event.id as usize, events.len() + 1);
        events.push(Owned::from_view(&history, &event));
    }
    assert_eq!(history.event_count() as usize, events.len());
    Ok(events)
}

pub fn load(run: &[u8; 16], batches: &[Vec<u8>], head: Option<u64>) -> Result<History<Vec<u8>>> {
    let mut history = History::new(run);
    for batch in batches {
        history.push(batch.clone())?;
    }
    if let Some(head) = head {
        history.check_head(head)?;
    }
    Ok(history)
}

/// Write events through a live [`Replay`]: the batches, the chain after the last, and the events as
/// they must come back. `flushes` says after which events a batch is taken.
pub fn write(
    run: &[u8; 16],
    events: &[Owned],
    flushes: &[bool],
) -> (Vec<Vec<u8>>, u64, Vec<Owned>) {
    let mut replay = live(run);
    let mut batches = Vec::new();
    let mut expected = Vec::new();
    let mut head = replay.history().chain();
    for (index, event) in events.iter().enumerate() {
        let mut event = event.clone();
        event.reference %= index as u32 + 1;
        if event.kind.is_inbound() || event.time != 0 {
            event.time = event.time.max(replay.now());
        }
        if event.kind.is_inbound() {
            replay.record(&event.borrow()).expect("within the limits");
        } else {
            replay.command(&event.borrow(), None).expect("live");
        }
        expected.push(event);
        let last = index + 1 == events.len();
        if last || flushes.get(index).copied().unwrap_or(false) {
            let (batch, chain, _, _) = replay.take().expect("something is new");
            batches.push(batch);
            head = chain;
        }
    }
    (batches, head, expected)
}

/// A run without a history, past its (empty) replay.
pub fn live(run: &[u8; 16]) -> Replay<Vec<u8>, ()> {
    let mut replay = Replay::new(History::new(run));
    assert_eq!(replay.advance(), Ok(Fact::Live));
    replay
}

fn kinds() -> impl Strategy<Value = Kind> {
    proptest::sample::select(Kind::ALL)
}

fn times() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => START_US..START_US + 1_000_000_000,
        1 => Just(0_u64),
        1 => any::<u64>(),
    ]
}

pub fn owned() -> impl Strategy<Value = Owned> {
    let name = option::of(prop_oneof!["[a-d]", "\\PC{0,12}"]);
    let options = option::of("[{}a-c]{0,3}");
    let bytes = || option::of(vec(any::<u8>(), 0..40));
    (
        kinds(),
        any::<u32>(),
        times(),
        name,
        options,
        bytes(),
        bytes(),
    )
        .prop_map(
            |(kind, reference, time, name, options, meta, payload)| Owned {
                kind,
                reference,
                time,
                name,
                options,
                meta,
                payload,
            },
        )
}

pub fn histories() -> impl Strategy<Value = (Vec<Owned>, Vec<bool>)> {
    (vec(owned(), 1..40), vec(any::<bool>(), 40))
}
