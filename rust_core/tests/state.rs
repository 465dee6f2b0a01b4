//! What a [`Replay`] says of itself: where it is, whether it is live, whether it has ended.

mod support;

use std::collections::HashSet;
use std::hash::Hasher;

use durable_core::replay::IdHasher;
use durable_core::{Fact, Kind, Replay};
use support::{Owned, RUN, START_US, live, load};

fn start() -> Owned {
    Owned {
        time: START_US,
        ..Owned::new(Kind::RunStarted)
    }
}

fn named(kind: Kind, name: &str) -> Owned {
    Owned {
        name: Some(name.into()),
        ..Owned::new(kind)
    }
}

/// The batch of a start and these commands.
fn batch(commands: &[Owned]) -> Vec<u8> {
    let mut replay = live(&RUN);
    replay.record(&start().borrow()).expect("live");
    for command in commands {
        replay.command(&command.borrow(), None).expect("live");
    }
    replay.take().expect("new").0
}

fn cold<S>(commands: &[Owned]) -> Replay<Vec<u8>, S> {
    Replay::new(load(&RUN, &[batch(commands)], None).expect("right"))
}

#[test]
fn a_run_ends_by_its_code_or_by_a_fact_and_not_before() {
    let mut by_code = live(&RUN);
    assert!(!by_code.is_ended());
    by_code.record(&start().borrow()).expect("live");
    let activity = named(Kind::ActivityScheduled, "a");
    by_code.command(&activity.borrow(), None).expect("live");
    assert!(!by_code.is_ended());
    let end = Owned::new(Kind::RunCompleted);
    by_code.command(&end.borrow(), None).expect("live");
    assert!(by_code.is_ended());
    let timer = Owned::new(Kind::TimerStarted);
    by_code.command(&timer.borrow(), None).expect("live");
    assert!(by_code.is_ended(), "once ended, it stays so");

    let mut by_fact = live(&RUN);
    by_fact.end();
    assert!(by_fact.is_ended());
}

#[test]
fn a_start_alone_was_recorded_before_any_code_ran() {
    let mut replay = cold::<()>(&[]);
    assert!(replay.is_replaying());
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert!(!replay.is_replaying(), "its first turn is live");

    let mut replay = cold::<()>(&[named(Kind::ActivityScheduled, "a")]);
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert!(replay.is_replaying(), "its first turn is recorded");
}

#[test]
fn the_position_is_the_event_that_the_code_has_reached() {
    let marker = named(Kind::PatchMarker, "new path");
    let first = named(Kind::ActivityScheduled, "a");
    let last = named(Kind::ActivityScheduled, "b");
    let mut replay = cold::<()>(&[first.clone(), marker, last.clone()]);
    let mut positions = vec![replay.position()];
    replay.advance().expect("a start");
    positions.push(replay.position());
    replay.command(&first.borrow(), None).expect("the same");
    positions.push(replay.position());
    assert_eq!(replay.take_marker("new path"), Ok(true));
    positions.push(replay.position());
    replay.command(&last.borrow(), None).expect("the same");
    positions.push(replay.position());
    assert_eq!(positions, [0, 1, 2, 3, 4]);

    assert_eq!(replay.advance(), Ok(Fact::Live));
    replay.command(&first.borrow(), None).expect("live");
    assert_eq!(replay.position(), 5);
}

#[test]
fn what_is_kept_with_a_command_can_be_changed_while_it_waits() {
    let mut replay = cold(&[]);
    replay.advance().expect("a start");
    let id = replay
        .command(&named(Kind::ActivityScheduled, "a").borrow(), Some(1))
        .expect("live");
    *replay.slot_mut(id).expect("it waits") = 7;
    assert_eq!(replay.slots().copied().collect::<Vec<_>>(), [7]);
    assert_eq!(replay.resolve(id).map(|it| it.slot), Some(7));
    assert_eq!(replay.slot_mut(id), None);
}

#[test]
fn a_recorded_value_is_read_where_history_has_it_and_made_where_it_ends() {
    let value = Owned {
        payload: Some(b"42".to_vec()),
        ..named(Kind::SideEffect, "number")
    };
    let asked = named(Kind::SideEffect, "number");
    let mut replay = cold::<()>(&[value]);
    replay.advance().expect("a start");
    let found = replay.recorded(&asked.borrow()).expect("the same");
    let span = found.expect("recorded").payload.expect("a value");
    assert_eq!(replay.history().bytes(span), b"42");
    assert_eq!(replay.advance(), Ok(Fact::Live), "it was stepped over");
    assert_eq!(replay.recorded(&asked.borrow()), Ok(None));

    let mut replay = cold::<()>(&[named(Kind::ActivityScheduled, "a")]);
    replay.advance().expect("a start");
    assert!(replay.recorded(&asked.borrow()).is_err());
}

/// Kind; whether another reference, time, name or payload makes it another command.
const COMPARED: [(Kind, [bool; 4]); 12] = [
    (Kind::ActivityScheduled, [false, false, true, true]),
    (Kind::ChildInitiated, [false, false, true, true]),
    (Kind::ExternalSignal, [false, false, true, true]),
    (Kind::TimerStarted, [false, true, false, false]),
    (Kind::ActivityCancelRequested, [true, false, false, false]),
    (Kind::TimerCancelled, [true, false, false, false]),
    (Kind::ChildCancelRequested, [true, false, false, false]),
    (Kind::UpdateCompleted, [true, false, false, false]),
    (Kind::ExternalCancel, [false, false, true, false]),
    (Kind::SideEffect, [false, false, true, false]),
    (Kind::PatchMarker, [false, false, true, false]),
    (Kind::RunCompleted, [false, false, false, false]),
];

#[test]
fn a_command_is_the_same_when_what_is_compared_of_its_kind_is_the_same() {
    let first = named(Kind::ActivityScheduled, "first");
    for (kind, compared) in COMPARED {
        let recorded = Owned {
            reference: 1,
            time: START_US + 5,
            payload: Some(b"1".to_vec()),
            options: Some("{}".into()),
            ..named(kind, "a")
        };
        let mut changed = std::array::from_fn::<_, 4, _>(|_| recorded.clone());
        changed[0].reference = 2;
        changed[1].time += 1;
        changed[2].name = Some("b".into());
        changed[3].payload = None;
        let mut other_options = recorded.clone();
        other_options.options = None;
        let alike = [recorded.clone(), other_options];
        let cases = changed.into_iter().zip(compared);
        for (made, differs) in cases.chain(alike.map(|it| (it, false))) {
            let mut replay = cold::<()>(&[first.clone(), recorded.clone()]);
            replay.advance().expect("a start");
            replay.command(&first.borrow(), None).expect("the same");
            let answer = replay.command(&made.borrow(), None);
            assert_eq!(answer.is_err(), differs, "{recorded:?} {made:?}");
        }
    }
}

#[test]
fn dense_ids_hash_apart_and_spread_over_the_top_bits() {
    let hash = |id: u32| {
        let mut hasher = IdHasher::default();
        hasher.write_u32(id);
        hasher.finish()
    };
    // Miri is slow.
    let count = if cfg!(miri) { 400 } else { 10_000 };
    let hashes: HashSet<u64> = (1..=count).map(hash).collect();
    assert_eq!(hashes.len(), count as usize);
    let tops: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
    assert_eq!(tops.len(), 128, "a hash table tells entries apart by these");

    let mut by_bytes = IdHasher::default();
    by_bytes.write(&[1, 2]);
    let mut by_ids = IdHasher::default();
    by_ids.write_u32(1);
    by_ids.write_u32(2);
    assert_eq!(by_bytes.finish(), by_ids.finish());
    assert_ne!(by_bytes.finish(), hash(2));
}
