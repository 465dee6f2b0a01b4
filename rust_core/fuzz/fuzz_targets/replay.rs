//! A generated program against a generated history: no panic, and never more than history allows.
//!
//! The program is a list of steps. It is run live first, then against its own history (must match)
//! and then, changed at one place, against the same history (must be an answer).
#![no_main]

use arbitrary::Arbitrary;
use durable_core::{Command, Error, Fact, History, Kind, Replay};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug, Clone)]
enum Step {
    Quiet,
    Command {
        kind: u8,
        reference: u32,
        time: u64,
        name: Option<u8>,
        payload: Option<Vec<u8>>,
    },
    Marker(u8),
    Resolve(u32),
}

#[derive(Arbitrary, Debug)]
struct Input {
    steps: Vec<Step>,
    place: u8,
    instead: Option<Step>,
}

const NAMES: [&str; 4] = ["", "a", "b", "\u{fffd}"];

type Run = Replay<Vec<u8>, u32>;

/// Run the steps until the first error. A quiet step takes a recorded fact, or brings a new one.
fn run(replay: &mut Run, steps: &[Step]) -> Result<(), Error> {
    begin(replay)?;
    for step in steps {
        match step {
            Step::Quiet => next_fact(replay)?,
            Step::Command {
                kind,
                reference,
                time,
                name,
                payload,
            } => {
                let kinds = Kind::ALL.iter().filter(|kind| !kind.is_inbound());
                let kinds: Vec<_> = kinds.collect();
                let command = Command {
                    reference: *reference,
                    time: *time,
                    name: name.map(|index| NAMES[usize::from(index) % NAMES.len()]),
                    payload: payload.as_deref(),
                    ..Command::new(*kinds[usize::from(*kind) % kinds.len()])
                };
                match replay.command(&command, Some(1)) {
                    Err(Error::Invalid(_)) => {}
                    outcome => {
                        outcome?;
                    }
                }
            }
            Step::Marker(name) => {
                let name = NAMES[usize::from(*name) % NAMES.len()];
                if !replay.take_marker(name)? && !replay.is_replaying() {
                    let marker = Command {
                        name: Some(name),
                        ..Command::new(Kind::PatchMarker)
                    };
                    replay.command(&marker, None)?;
                }
            }
            Step::Resolve(id) => drop(replay.resolve(*id)),
        }
    }
    Ok(())
}

fn begin(replay: &mut Run) -> Result<(), Error> {
    match replay.advance()? {
        Fact::Recorded(_) => Ok(()),
        Fact::Live => replay.record(&Command::new(Kind::RunStarted)).map(drop),
    }
}

fn next_fact(replay: &mut Run) -> Result<(), Error> {
    if let Fact::Recorded(event) = replay.advance()? {
        assert!(event.kind.is_inbound());
        assert_eq!(event.time, replay.now());
        return Ok(());
    }
    let time = replay.now().wrapping_mul(3).wrapping_add(7);
    replay
        .record(&Command {
            time,
            ..Command::new(Kind::SignalReceived)
        })
        .map(drop)
}

fn load(batches: &[Vec<u8>], head: u64) -> Run {
    let mut history = History::new(&[7; 16]);
    for batch in batches {
        history
            .push(batch.clone())
            .expect("what was written can be read");
    }
    history
        .check_head(head)
        .expect("the head is the last batch's");
    history
        .check_events()
        .expect("what was written can be decoded");
    Replay::new(history)
}

fuzz_target!(|input: Input| {
    let mut live = Run::new(History::new(&[7; 16]));
    if run(&mut live, &input.steps).is_err() {
        return;
    }
    // A run that is only just started is not replayed but run.
    let Some((batch, head, 1, count)) = live.take() else {
        return;
    };
    if count == 1 {
        return;
    }
    let batches = [batch];
    let mut again = load(&batches, head);
    assert_eq!(run(&mut again, &input.steps), Ok(()));
    assert_eq!(again.advance(), Ok(Fact::Live));
    assert_eq!(again.take(), None);
    assert_eq!(again.pending_ids(), live.pending_ids());
    let mut changed = input.steps.clone();
    let place = usize::from(input.place) % (changed.len() + 1);
    match input.instead {
        Some(step) => changed.insert(place, step),
        None => drop((place < changed.len()).then(|| changed.remove(place))),
    }
    let mut other = load(&batches, head);
    match run(&mut other, &changed) {
        Err(Error::Mismatch(mismatch)) => {
            assert!(mismatch.event_id <= count + 1);
            assert!(!mismatch.hint.is_empty());
        }
        Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => panic!("the bytes are right"),
        _ => {}
    }
});
