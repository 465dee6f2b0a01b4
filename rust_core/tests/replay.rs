//! Matching: a program replays to what it did, and a changed one is found at the first difference.

mod support;

use durable_core::error::Mismatch;
use durable_core::{Error, Fact, Kind, Replay};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{Owned, RUN, START_US, cases, live, load};

/// What the code asks for after each fact: `turns[k]` follows fact `k`.
#[derive(Debug, Clone)]
struct Program {
    turns: Vec<Vec<Owned>>,
}

type Run = Replay<Vec<u8>, ()>;

/// What was recorded of a program: one batch a fact, as the code was quiet before the next.
struct Recorded {
    batches: Vec<Vec<u8>>,
    heads: Vec<u64>,
    /// Facts and commands in order.
    events: Vec<Owned>,
}

fn fact(number: usize) -> Owned {
    let mut fact = Owned::new(if number == 0 {
        Kind::RunStarted
    } else {
        Kind::SignalReceived
    });
    fact.time = START_US + 1_000 * number as u64;
    fact
}

/// As `Replay` keeps a command that is made `number` events into the run, at the time of `fact`.
fn kept(command: &Owned, number: usize, now: u64) -> Owned {
    let mut command = command.clone();
    command.reference %= number as u32 + 1;
    if command.time != 0 {
        command.time = now + command.time % 1_000_000;
    }
    command
}

fn record(program: &Program) -> Recorded {
    let mut replay = live(&RUN);
    let mut made = Recorded {
        batches: Vec::new(),
        heads: Vec::new(),
        events: Vec::new(),
    };
    let mut take = |replay: &mut Run| {
        let (batch, head, _, _) = replay.take().expect("a fact is new");
        made.batches.push(batch);
        made.heads.push(head);
    };
    for (number, commands) in program.turns.iter().enumerate() {
        replay.record(&fact(number).borrow()).expect("live");
        made.events.push(fact(number));
        // The start is recorded by whoever starts the run, before any code ran.
        if number == 0 {
            take(&mut replay);
        }
        for command in commands {
            let command = kept(command, made.events.len(), replay.now());
            let id = replay.command(&command.borrow(), Some(())).expect("live");
            made.events.push(command);
            assert_eq!(id as usize, made.events.len());
        }
        if number > 0 || !commands.is_empty() {
            take(&mut replay);
        }
    }
    made
}

/// Run `program` against a history. Returns the commands it made until it was live, or the error.
fn replay_against(
    program: &Program,
    batches: &[Vec<u8>],
    head: u64,
) -> Result<(Vec<Owned>, Run), Error> {
    let mut replay = Replay::new(load(&RUN, batches, Some(head))?);
    let mut made = Vec::new();
    let mut events = 0;
    let mut turns = program.turns.iter();
    loop {
        match replay.advance()? {
            Fact::Live => return Ok((made, replay)),
            Fact::Recorded(_) => events += 1,
        }
        for command in turns.next().into_iter().flatten() {
            let command = kept(command, events, replay.now());
            let id = replay.command(&command.borrow(), Some(()))?;
            made.push(command);
            events += 1;
            assert_eq!(id as usize, events);
        }
    }
}

fn commands() -> impl Strategy<Value = Owned> {
    let kinds: Vec<Kind> = Kind::ALL
        .iter()
        .copied()
        .filter(|kind| !kind.is_inbound() && !kind.is_ending())
        .collect();
    let payload = prop_oneof![
        Just(None),
        Just(Some(b"[1]".to_vec())),
        Just(Some(b"[2]".to_vec()))
    ];
    (
        proptest::sample::select(kinds),
        0_u32..4,
        prop_oneof![Just(0_u64), 1_u64..4],
        proptest::option::of("[ab]"),
        proptest::option::of("[{}]"),
        payload,
    )
        .prop_map(|(kind, reference, time, name, options, payload)| Owned {
            kind,
            reference,
            time,
            name,
            options,
            meta: None,
            payload,
        })
}

fn programs() -> impl Strategy<Value = Program> {
    vec(vec(commands(), 0..4), 1..6).prop_map(|turns| Program { turns })
}

fn is_same(recorded: &Owned, made: &Owned) -> bool {
    use durable_core::event::field;
    let compared = recorded.kind.compared();
    let differs = |bit, same: bool| compared & bit != 0 && !same;
    let name = |it: &Owned| it.name.clone().unwrap_or_default();
    recorded.kind == made.kind
        && !differs(field::REF, recorded.reference == made.reference)
        && !differs(field::TIME, recorded.time == made.time)
        && !differs(field::NAME, name(recorded) == name(made))
        && !differs(field::PAYLOAD, recorded.payload == made.payload)
}

/// Where a program parts from recorded events, found the slow way: lay both out and compare.
fn parts_at(events: &[Owned], program: &Program) -> Option<usize> {
    let mut laid_out = Vec::new();
    for (number, commands) in program.turns.iter().enumerate() {
        laid_out.push(fact(number));
        for command in commands {
            let made = kept(command, laid_out.len(), fact(number).time);
            laid_out.push(made);
        }
    }
    let longer = events.len().max(laid_out.len());
    (0..longer).find(|&at| match (events.get(at), laid_out.get(at)) {
        (Some(recorded), Some(made)) => !is_same(recorded, made),
        _ => true,
    })
}

#[derive(Debug, Clone)]
enum Change {
    Add(Owned),
    Remove,
    Replace(Owned),
    Rename,
    Arguments,
    Timer,
    SwapWithNext,
    MoveToNextTurn,
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        commands().prop_map(Change::Add),
        Just(Change::Remove),
        commands().prop_map(Change::Replace),
        Just(Change::Rename),
        Just(Change::Arguments),
        Just(Change::Timer),
        Just(Change::SwapWithNext),
        Just(Change::MoveToNextTurn),
    ]
}

fn change(program: &Program, change: &Change, turn: usize, at: usize) -> Program {
    let mut program = program.clone();
    let turns = program.turns.len();
    let turn = turn % turns;
    let commands = &mut program.turns[turn];
    if let Change::Add(command) = change {
        commands.insert(at % (commands.len() + 1), command.clone());
        return program;
    }
    if commands.is_empty() {
        return program;
    }
    let at = at % commands.len();
    match change {
        Change::Add(_) => {}
        Change::Remove => drop(commands.remove(at)),
        Change::Replace(command) => commands[at] = command.clone(),
        Change::Rename => commands[at].name = Some("renamed".into()),
        Change::Arguments => commands[at].payload = Some(b"[3]".to_vec()),
        Change::Timer => commands[at].time += 1,
        Change::SwapWithNext => {
            let other = (at + 1) % commands.len();
            commands.swap(at, other);
        }
        Change::MoveToNextTurn => {
            if turn + 1 < turns {
                let moved = commands.remove(at);
                program.turns[turn + 1].insert(0, moved);
            }
        }
    }
    program
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_program_replays_to_the_commands_it_made(program in programs()) {
        let made = record(&program);
        let head = made.heads[made.heads.len() - 1];
        let (commands, mut replay) = replay_against(&program, &made.batches, head)
            .expect("the same program");
        let recorded: Vec<_> =
            made.events.iter().filter(|event| !event.kind.is_inbound()).cloned().collect();
        prop_assert_eq!(commands, recorded);
        prop_assert_eq!(replay.event_count() as usize, made.events.len());
        prop_assert_eq!(replay.take(), None);
    }

    #[test]
    fn every_prefix_replays_to_a_prefix_and_goes_on_to_the_same_bytes(program in programs()) {
        let made = record(&program);
        let offset = made.batches.len() - program.turns.len();
        for count in 1 + offset..made.batches.len() {
            let turns = count - offset;
            let shorter = Program { turns: program.turns[..turns].to_vec() };
            let (_, mut replay) =
                replay_against(&shorter, &made.batches[..count], made.heads[count - 1])
                    .expect("a prefix");
            replay.record(&fact(turns).borrow()).expect("live");
            for command in &program.turns[turns] {
                let number = replay.event_count() as usize;
                let command = kept(command, number, replay.now());
                replay.command(&command.borrow(), Some(())).expect("live");
            }
            let (batch, head, _, _) = replay.take().expect("a fact is new");
            prop_assert_eq!(&batch, &made.batches[count]);
            prop_assert_eq!(head, made.heads[count]);
        }
    }

    #[test]
    fn a_changed_program_is_found_at_its_first_difference(
        program in programs(), edit in changes(), turn in any::<usize>(), at in any::<usize>(),
    ) {
        let made = record(&program);
        prop_assume!(made.events.len() > 1);
        let changed = change(&program, &edit, turn, at);
        let head = made.heads[made.heads.len() - 1];
        let found = replay_against(&changed, &made.batches, head);
        match (parts_at(&made.events, &changed), found) {
            (None, Ok(_)) => {}
            (Some(expected), Err(Error::Mismatch(mismatch))) => {
                prop_assert_eq!(mismatch.event_id as usize, expected + 1, "{:?}", mismatch);
                told_well(&mismatch, &made.events)?;
            }
            (expected, found) => {
                prop_assert!(false, "expected {:?}, found {:?}", expected, found.map(|it| it.0));
            }
        }
    }

    #[test]
    fn a_changed_history_is_never_taken_for_the_programs_own(
        program in programs(), other in programs(),
    ) {
        let made = record(&program);
        prop_assume!(made.events.len() > 1);
        let mut other = other;
        other.turns.resize(program.turns.len(), Vec::new());
        let head = made.heads[made.heads.len() - 1];
        let found = replay_against(&other, &made.batches, head);
        prop_assert_eq!(found.is_ok(), parts_at(&made.events, &other).is_none());
    }
}

/// What a mismatch says is there, and is about this place.
fn told_well(mismatch: &Mismatch, events: &[Owned]) -> Result<(), TestCaseError> {
    let at = mismatch.event_id as usize;
    prop_assert_eq!(mismatch.expected.is_some(), at <= events.len());
    prop_assert!(mismatch.expected.is_some() || mismatch.found.is_some());
    prop_assert!(!mismatch.hint.is_empty());
    prop_assert!(mismatch.around.len() <= 7);
    if at <= events.len() {
        let name = events[at - 1].kind.name();
        prop_assert!(
            mismatch
                .expected
                .as_deref()
                .unwrap_or_default()
                .starts_with(name)
        );
        let marked: Vec<_> = mismatch
            .around
            .iter()
            .filter(|line| line.starts_with('>'))
            .collect();
        prop_assert_eq!(marked.len(), 1);
        prop_assert!(marked[0].contains(name));
    }
    Ok(())
}

fn activity(name: &str) -> Owned {
    Owned {
        name: Some(name.into()),
        payload: Some(b"[]".to_vec()),
        ..Owned::new(Kind::ActivityScheduled)
    }
}

fn replayed(old: Vec<Vec<Owned>>, new: Vec<Vec<Owned>>) -> Mismatch {
    let made = record(&Program { turns: old });
    let head = made.heads[made.heads.len() - 1];
    match replay_against(&Program { turns: new }, &made.batches, head) {
        Err(Error::Mismatch(mismatch)) => *mismatch,
        other => panic!("no mismatch: {:?}", other.map(|it| it.0)),
    }
}

#[test]
fn a_command_that_is_no_longer_made_is_found_at_the_end_of_history() {
    let found = replayed(
        vec![vec![activity("a"), activity("b")]],
        vec![vec![activity("a")]],
    );
    assert_eq!((found.event_id, found.found.as_deref()), (3, None));
    assert!(found.hint.contains("fewer"), "{}", found.hint);
}

#[test]
fn a_command_more_than_history_has_is_found_at_its_end() {
    let found = replayed(
        vec![vec![activity("a")]],
        vec![vec![activity("a"), activity("b")]],
    );
    assert_eq!((found.event_id, found.expected.as_deref()), (3, None));
    assert!(found.hint.contains("more"), "{}", found.hint);
}

#[test]
fn the_likely_cause_is_named() {
    let (a, b) = (activity("a"), activity("b"));
    let mut other = a.clone();
    other.payload = Some(b"[1]".to_vec());
    let mut timer = Owned::new(Kind::TimerStarted);
    timer.time = 1_000;
    let mut later = timer.clone();
    later.time = 2_000;
    let cases = [
        (vec![a.clone()], vec![b.clone()], "renamed"),
        (
            vec![a.clone(), b.clone()],
            vec![b.clone(), a.clone()],
            "reordered",
        ),
        (vec![a.clone()], vec![other], "arguments"),
        (vec![timer.clone()], vec![later], "duration"),
        (vec![timer], vec![a], "added, removed or moved"),
    ];
    for (old, new, cause) in cases {
        let found = replayed(vec![old], vec![new]);
        assert!(found.hint.contains(cause), "{cause}: {}", found.hint);
    }
}

#[test]
fn a_timer_due_before_now_replays_as_it_was_recorded() {
    let mut past = Owned::new(Kind::TimerStarted);
    past.time = 5;
    let mut replay = live(&RUN);
    replay.record(&fact(1).borrow()).expect("live");
    replay.command(&past.borrow(), None).expect("live");
    let (batch, head, _, _) = replay.take().expect("new");
    let mut replay: Run = Replay::new(load(&RUN, &[batch], Some(head)).expect("right"));
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert_eq!(replay.command(&past.borrow(), None), Ok(2));
    assert_eq!(replay.advance(), Ok(Fact::Live));
}

#[test]
fn a_command_about_an_event_that_does_not_exist_is_not_written() {
    let mut replay = live(&RUN);
    let mut cancel = Owned::new(Kind::TimerCancelled);
    cancel.reference = 1;
    assert!(matches!(
        replay.command(&cancel.borrow(), None),
        Err(Error::Invalid(_))
    ));
    assert_eq!(replay.event_count(), 0);
    assert_eq!(replay.take(), None);
}

#[test]
fn a_patch_asked_about_after_its_place_takes_the_old_path() {
    let made = record(&Program {
        turns: vec![vec![activity("a")], vec![activity("b")]],
    });
    let head = made.heads[made.heads.len() - 1];
    let mut replay: Run = Replay::new(load(&RUN, &made.batches, Some(head)).expect("ok"));
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert_eq!(replay.take_marker("new path"), Ok(false));
    assert_eq!(replay.command(&activity("a").borrow(), None), Ok(2));
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert_eq!(replay.command(&activity("b").borrow(), None), Ok(4));
    assert_eq!(replay.take_marker("new path"), Ok(false));
    assert_eq!(replay.advance(), Ok(Fact::Live));
}

#[test]
fn a_recorded_patch_is_stepped_over_once() {
    let mut marker = Owned::new(Kind::PatchMarker);
    marker.name = Some("new path".into());
    let made = record(&Program {
        turns: vec![vec![marker, activity("a")]],
    });
    let head = made.heads[made.heads.len() - 1];
    let mut replay: Run = Replay::new(load(&RUN, &made.batches, Some(head)).expect("ok"));
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert_eq!(replay.take_marker("other"), Ok(false));
    assert_eq!(replay.take_marker("new path"), Ok(true));
    assert_eq!(replay.take_marker("new path"), Ok(false));
    assert_eq!(replay.command(&activity("a").borrow(), None), Ok(3));
    assert_eq!(replay.advance(), Ok(Fact::Live));
}

#[test]
fn commands_wait_until_their_outcome_and_are_listed_oldest_first() {
    let mut replay = live(&RUN);
    replay.record(&fact(0).borrow()).expect("live");
    for name in ["a", "b", "c"] {
        replay
            .command(&activity(name).borrow(), Some(()))
            .expect("live");
    }
    assert_eq!(replay.pending_ids(), [2, 3, 4]);
    assert_eq!(replay.pending_count(), 3);
    assert!(replay.resolve(3).is_some());
    assert!(replay.resolve(3).is_none(), "an outcome is taken once");
    assert_eq!(replay.pending_ids(), [2, 4]);
    assert_eq!(replay.pending_count(), 2);
    assert_eq!(
        replay.pending(2).map(|it| it.kind),
        Some(Kind::ActivityScheduled)
    );
    assert_eq!(replay.slots().count(), 2);
    assert_eq!(replay.drain_pending().len(), 2);
}

#[test]
fn history_must_end_where_the_code_ends() {
    let end = Owned::new(Kind::RunCompleted);
    let made = record(&Program {
        turns: vec![vec![end.clone()], vec![]],
    });
    let mut replay: Run = Replay::new(load(&RUN, &made.batches, None).expect("right"));
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert_eq!(replay.command(&end.borrow(), None), Ok(2));
    assert!(replay.is_ended());
    assert!(matches!(replay.check_end(), Err(Error::Mismatch(it)) if it.event_id == 3));
    let mut replay: Run = Replay::new(load(&RUN, &made.batches[..2], None).expect("right"));
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert_eq!(replay.command(&end.borrow(), None), Ok(2));
    assert_eq!(replay.check_end(), Ok(()));
    assert!(!replay.is_replaying());
}

#[test]
fn time_never_runs_backwards() {
    let mut replay = live(&RUN);
    for (given, kept) in [(50, 50), (20, 50), (60, 60)] {
        let mut signal = Owned::new(Kind::SignalReceived);
        signal.time = given;
        replay.record(&signal.borrow()).expect("live");
        assert_eq!(replay.now(), kept);
    }
    let (batch, _, _, count) = replay.take().expect("new");
    assert_eq!(count, 3);
    let times: Vec<_> = support::decode(&RUN, &[batch], None)
        .expect("right")
        .iter()
        .map(|event| event.time)
        .collect();
    assert_eq!(times, [50, 50, 60]);
}

#[test]
fn bytes_and_events_are_counted_with_what_is_new() {
    let mut replay = live(&RUN);
    replay.record(&fact(0).borrow()).expect("live");
    let unsaved = replay.byte_count();
    assert!(unsaved > 0);
    let (batch, _, first_id, count) = replay.take().expect("new");
    assert_eq!((first_id, count, replay.event_count()), (1, 1, 1));
    assert_eq!(replay.take(), None, "what was taken is not new any more");
    assert_eq!(replay.byte_count(), batch.len());
    let history = load(&RUN, std::slice::from_ref(&batch), None).expect("right");
    assert_eq!(
        (history.byte_count(), history.batch_count()),
        (batch.len(), 1)
    );
    assert_eq!(Replay::<_, ()>::new(history).byte_count(), batch.len());
}

#[test]
fn a_command_that_was_refused_is_refused_again_on_replay() {
    let mut cancel = Owned::new(Kind::TimerCancelled);
    cancel.reference = 9;
    let made = record(&Program {
        turns: vec![vec![activity("a")]],
    });
    let mut replay: Run = Replay::new(load(&RUN, &made.batches, None).expect("right"));
    assert!(matches!(replay.advance(), Ok(Fact::Recorded(_))));
    assert!(matches!(
        replay.command(&cancel.borrow(), None),
        Err(Error::Invalid(_))
    ));
    assert_eq!(replay.command(&activity("a").borrow(), None), Ok(2));
    assert!(matches!(
        replay.command(&cancel.borrow(), None),
        Err(Error::Invalid(_))
    ));
    assert_eq!(replay.advance(), Ok(Fact::Live));
}

#[test]
fn an_outcome_answers_the_commands_it_is_for_and_no_other() {
    use Kind::*;
    let answers = [
        (ActivityCompleted, vec![ActivityScheduled]),
        (ActivityFailed, vec![ActivityScheduled]),
        (TimerFired, vec![TimerStarted]),
        (ChildCompleted, vec![ChildInitiated]),
        (ChildFailed, vec![ChildInitiated]),
        (ExternalDone, vec![ExternalSignal, ExternalCancel]),
        (ExternalFailed, vec![ExternalSignal, ExternalCancel]),
    ];
    for &fact in Kind::ALL {
        let expected = answers.iter().find(|(kind, _)| *kind == fact);
        assert_eq!(fact.is_outcome(), expected.is_some(), "{fact:?}");
        let failures = [ActivityFailed, ChildFailed, ExternalFailed];
        assert_eq!(fact.is_failure(), failures.contains(&fact), "{fact:?}");
        for &command in Kind::ALL {
            let answers = expected.is_some_and(|(_, commands)| commands.contains(&command));
            assert_eq!(fact.answers(command), answers, "{fact:?} of {command:?}");
        }
    }
    for &command in Kind::ALL {
        let is_answered = answers
            .iter()
            .any(|(_, commands)| commands.contains(&command));
        assert_eq!(command.awaits_outcome(), is_answered, "{command:?}");
    }
}

#[test]
fn the_table_of_kinds_is_whole() {
    for number in 0..=u8::MAX {
        let kind = Kind::from_number(number);
        assert_eq!(kind.map(|kind| kind as u8), kind.map(|_| number));
        assert_eq!(
            kind.is_some(),
            Kind::ALL.iter().any(|kind| *kind as u8 == number)
        );
    }
    for &kind in Kind::ALL {
        let number = kind as u8;
        assert_eq!(kind.is_inbound(), number < 64);
        assert_eq!(kind.is_ending(), number >= 128);
        assert!(!kind.name().is_empty());
        // Facts and endings are matched by their kind alone.
        assert!(kind.compared() == 0 || (64..128).contains(&number));
    }
}
