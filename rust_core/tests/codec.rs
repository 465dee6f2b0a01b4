//! The history format: what is written comes back, and nothing else is taken for it.

mod support;

use durable_core::batch::{
    BATCH_BYTES_MAX, NAME_BYTES_MAX, NAMES_MAX, Writer, chain_next, chain_start,
};
use durable_core::event::field;
use durable_core::wire::put_varint;
use durable_core::{Command, Error, History, Kind};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{OTHER_RUN, Owned, RUN, cases, decode, histories, load, write};

fn is_corrupt<T: std::fmt::Debug>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Corrupt { .. }))
}

/// Add the right checksums, so that what is inside gets looked at.
fn sealed(run: &[u8; 16], bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut chain = chain_start(run);
    let seal = |body: &Vec<u8>| {
        chain = chain_next(chain, body);
        [body.as_slice(), &chain.to_le_bytes()].concat()
    };
    bodies.iter().map(seal).collect()
}

/// A first batch with these names and events, written by hand.
fn batch(first_id: u64, count: u64, names: &[&[u8]], events: &[u8]) -> Vec<u8> {
    let mut out = vec![1];
    for number in [first_id, count, names.len() as u64] {
        put_varint(&mut out, number);
    }
    for name in names {
        put_varint(&mut out, name.len() as u64);
        out.extend_from_slice(name);
    }
    out.extend_from_slice(events);
    out
}

fn outcome(body: Vec<u8>) -> Result<Vec<Owned>, Error> {
    decode(&RUN, &sealed(&RUN, &[body]), None)
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn events_come_back_as_they_were_written((events, flushes) in histories()) {
        let (batches, head, expected) = write(&RUN, &events, &flushes);
        prop_assert_eq!(decode(&RUN, &batches, Some(head)), Ok(expected));
    }

    #[test]
    fn a_flipped_bit_is_found((events, flushes) in histories(), at in any::<usize>()) {
        let (mut batches, head, _) = write(&RUN, &events, &flushes);
        let bits: usize = batches.iter().map(|batch| batch.len() * 8).sum();
        let mut bit = at % bits;
        for batch in &mut batches {
            if bit < batch.len() * 8 {
                batch[bit / 8] ^= 1 << (bit % 8);
                break;
            }
            bit -= batch.len() * 8;
        }
        // A flip in the version byte is another format as far as anyone can tell.
        let found = load(&RUN, &batches, Some(head));
        let is_found = is_corrupt(&found) || matches!(found, Err(Error::Unsupported { .. }));
        prop_assert!(is_found);
    }

    #[test]
    fn a_history_taken_whole_is_as_one_taken_batch_by_batch(
        (events, flushes) in histories(), at in any::<usize>(), broken in any::<bool>(),
    ) {
        let (mut batches, _, _) = write(&RUN, &events, &flushes);
        if broken {
            let at = at % batches.len();
            batches[at].pop();
        }
        let mut pushed = History::new(&RUN);
        let outcome = batches.iter().try_for_each(|batch| pushed.push(batch.as_slice()));
        let whole = History::with_batches(&RUN, batches.iter().map(Vec::as_slice).collect());
        match (outcome, whole) {
            (Ok(()), Ok(whole)) => prop_assert_eq!(format!("{whole:?}"), format!("{pushed:?}")),
            (outcome, whole) => prop_assert_eq!(whole.map(drop), outcome),
        }
    }

    #[test]
    fn a_batch_missing_repeated_or_out_of_place_is_found(
        (events, flushes) in histories(), at in any::<usize>(), other in any::<usize>(),
    ) {
        let (batches, head, _) = write(&RUN, &events, &flushes);
        let (at, other) = (at % batches.len(), other % batches.len());
        let mut dropped = batches.clone();
        dropped.remove(at);
        prop_assert!(is_corrupt(&load(&RUN, &dropped, Some(head))));
        let mut repeated = batches.clone();
        repeated.insert(other, batches[at].clone());
        prop_assert!(is_corrupt(&load(&RUN, &repeated, Some(head))));
        let mut swapped = batches.clone();
        swapped.swap(at, other);
        if at != other {
            prop_assert!(is_corrupt(&load(&RUN, &swapped, Some(head))));
        }
    }

    #[test]
    fn a_cut_is_found((events, flushes) in histories(), at in any::<usize>(), cut in 1_usize..) {
        let (mut batches, head, _) = write(&RUN, &events, &flushes);
        let at = at % batches.len();
        let len = batches[at].len();
        batches[at].truncate(len - 1 - (cut - 1) % len);
        prop_assert!(is_corrupt(&load(&RUN, &batches, Some(head))));
    }

    #[test]
    fn a_batch_of_another_run_is_found((events, flushes) in histories(), at in any::<usize>()) {
        let (mut batches, head, _) = write(&RUN, &events, &flushes);
        let (others, other_head, _) = write(&OTHER_RUN, &events, &flushes);
        prop_assert!(is_corrupt(&load(&RUN, &others, None)));
        prop_assert!(is_corrupt(&load(&RUN, &batches, Some(other_head))));
        let at = at % batches.len();
        batches[at].clone_from(&others[at]);
        prop_assert!(is_corrupt(&load(&RUN, &batches, Some(head))));
    }

    #[test]
    fn any_bytes_give_an_answer(batches in vec(vec(any::<u8>(), 0..200), 0..4)) {
        let _ = decode(&RUN, &batches, None);
    }

    #[test]
    fn any_checked_bytes_give_an_answer(
        bodies in vec(vec(prop_oneof![0_u8..8, 60..80_u8, any::<u8>()], 0..120), 0..4),
    ) {
        let bodies: Vec<_> = bodies.into_iter().map(|body| [vec![1], body].concat()).collect();
        let _ = decode(&RUN, &sealed(&RUN, &bodies), None);
    }

    #[test]
    fn a_broken_body_under_a_right_checksum_gives_an_answer(
        (events, _) in histories(), at in any::<usize>(), byte in any::<u8>(),
    ) {
        let (batches, _, _) = write(&RUN, &events, &[]);
        let mut body = batches[0][..batches[0].len() - 8].to_vec();
        let at = at % body.len();
        body[at] = byte;
        let _ = outcome(body);
    }

    #[test]
    fn any_number_comes_back_in_its_shortest_form(value in any::<u64>()) {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        prop_assert_eq!(out.len(), durable_core::wire::varint_len(value));
        let mut reader = durable_core::wire::Reader::new(&out, 0, out.len(), 0);
        prop_assert_eq!(reader.varint(), Ok(value));
        prop_assert!(reader.is_empty());
    }
}

#[test]
#[cfg_attr(miri, ignore = "two thousand events")]
fn every_kind_and_every_set_of_fields_comes_back() {
    let mut events = Vec::new();
    for &kind in Kind::ALL {
        for fields in 0..=field::ALL {
            let has = |bit| fields & bit != 0;
            events.push(Owned {
                kind,
                reference: if has(field::REF) {
                    events.len() as u32
                } else {
                    0
                },
                time: if has(field::TIME) {
                    support::START_US
                } else {
                    0
                },
                name: has(field::NAME).then(|| format!("name {}", fields % 7)),
                options: has(field::OPTIONS).then(|| "{}".to_string()),
                meta: has(field::META).then(|| vec![fields]),
                payload: has(field::PAYLOAD).then(|| vec![b'['; fields.into()]),
            });
        }
    }
    let flushes: Vec<bool> = (0..events.len()).map(|index| index % 5 == 0).collect();
    let (batches, head, expected) = write(&RUN, &events, &flushes);
    assert_eq!(decode(&RUN, &batches, Some(head)), Ok(expected));
}

#[test]
fn every_single_bit_of_a_small_history_counts() {
    let events = [
        Owned::new(Kind::RunStarted),
        Owned::new(Kind::ActivityScheduled),
    ];
    let (batches, head, _) = write(&RUN, &events, &[true]);
    for seq in 0..batches.len() {
        for bit in 0..batches[seq].len() * 8 {
            let mut broken = batches.clone();
            broken[seq][bit / 8] ^= 1 << (bit % 8);
            match load(&RUN, &broken, Some(head)) {
                Err(Error::Corrupt { seq: found, .. }) => assert_eq!(found as usize, seq),
                Err(Error::Unsupported {
                    seq: found,
                    offset: 0,
                    ..
                }) => {
                    assert!(bit < 8);
                    assert_eq!(found as usize, seq);
                }
                other => panic!("bit {bit} of batch {seq}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_a_newer_build_wrote_is_unsupported_and_not_corrupt() {
    let mut newer = batch(1, 1, &[], &[1, 1, 0]);
    newer[0] = 2;
    let unsupported = [
        newer,
        batch(1, 1, &[], &[63, 1, 0]),
        batch(1, 1, &[], &[200, 4, 0, 9, 9, 9]),
        batch(1, 1, &[], &[1, 1, 64]),
        batch(1, 1, &[], &[1, 1, 128]),
    ];
    for body in unsupported {
        let found = outcome(body.clone());
        assert!(
            matches!(found, Err(Error::Unsupported { seq: 0, .. })),
            "{body:?}: {found:?}"
        );
    }
}

#[test]
fn bytes_behind_the_known_fields_are_ignored() {
    let mut expected = Owned::new(Kind::RunStarted);
    expected.name = Some("n".into());
    assert_eq!(
        outcome(batch(1, 1, &[b"n"], &[1, 5, field::NAME, 0, 7, 8, 9])),
        Ok(vec![expected])
    );
}

#[test]
fn lies_about_lengths_and_counts_are_corrupt() {
    let mut huge = Vec::new();
    put_varint(&mut huge, u64::MAX);
    let lies = [
        batch(2, 1, &[], &[1, 1, 0]),
        batch(0, 1, &[], &[1, 1, 0]),
        batch(1, 2, &[], &[1, 1, 0]),
        batch(1, 1 << 29, &[], &[1, 1, 0]),
        batch(1, u64::MAX, &[], &[1, 1, 0]),
        batch(1, 0, &[], &[1, 1, 0]),
        batch(1, 1, &[], &[1, 1, 0, 0]),
        batch(1, 1, &[], &[1, 0]),
        batch(1, 1, &[b"\xff"], &[1, 1, 0]),
        batch(1, 1, &[], &[1, 2, field::NAME, 0]),
        batch(1, 1, &[], &[1, 2, field::OPTIONS, 3]),
        batch(1, 1, &[], &[1, 2, field::REF, 1]),
        batch(1, 1, &[], &[1, 2, field::REF, 0]),
        batch(1, 1, &[], &[1, 2, field::META, 1]),
        batch(1, 1, &[], &[[1].as_slice(), &huge].concat()),
        vec![1],
        vec![1, 1, 1, 0x80, 0x80, 0x80, 0x80, 0x10],
        vec![1, 1, 0, 0xff, 0x7f],
    ];
    for body in lies {
        let found = outcome(body.clone());
        assert!(is_corrupt(&found), "{body:?}: {found:?}");
    }
    let time = [1, 12, field::TIME]
        .into_iter()
        .chain(huge.clone())
        .chain([0]);
    let second = [1, 2, field::TIME, 1];
    let events: Vec<u8> = time.chain(second).collect();
    assert!(
        is_corrupt(&outcome(batch(1, 2, &[], &events))),
        "time beyond 64 bits"
    );
}

#[test]
#[cfg_attr(miri, ignore = "moves many megabytes")]
fn limits_hold_before_anything_is_allocated() {
    let mut names = vec![1, 1, 1];
    put_varint(&mut names, (1 << 20) + 1);
    names.resize(3 + (1 << 21), 0);
    let found = outcome(names);
    assert!(
        matches!(
            found,
            Err(Error::TooLarge {
                what: "number of names",
                ..
            })
        ),
        "{found:?}"
    );
    let long = vec![b'a'; NAME_BYTES_MAX + 1];
    let found = outcome(batch(1, 1, &[&long], &[1, 1, 0]));
    assert!(
        matches!(found, Err(Error::TooLarge { what: "name", .. })),
        "{found:?}"
    );
    let mut history = History::new(&RUN);
    let found = history.push(vec![1; BATCH_BYTES_MAX + 1]);
    assert!(
        matches!(found, Err(Error::TooLarge { what: "batch", .. })),
        "{found:?}"
    );
}

#[test]
#[cfg_attr(miri, ignore = "moves many megabytes")]
fn what_the_writer_takes_the_reader_takes() {
    let long = "n".repeat(NAME_BYTES_MAX);
    let mut writer = Writer::default();
    let payload = vec![0_u8; 1 << 20];
    let mut number = 0;
    for size in [payload.len(), 1000, 0] {
        loop {
            number += 1;
            let name = format!("{number}{}", &long[10..]);
            let event = Command {
                name: Some(&name),
                options: Some(&name[1..]),
                payload: Some(&payload[..size]),
                ..Command::new(Kind::SignalReceived)
            };
            if writer.push(&event, Some(0)).is_err() {
                break;
            }
        }
    }
    let long_name = format!("{long}x");
    assert!(matches!(
        writer.push(
            &Command {
                name: Some(&long_name),
                ..Command::new(Kind::SignalReceived)
            },
            None
        ),
        Err(Error::TooLarge { what: "name", .. })
    ));
    let (batch, chain) = writer.take(1, chain_start(&RUN));
    assert!(batch.len() <= BATCH_BYTES_MAX);
    let mut history = History::new(&RUN);
    assert_eq!(history.push(batch), Ok(()));
    assert_eq!(history.check_head(chain), Ok(()));
    assert!(history.check_events().is_ok());
}

#[test]
#[cfg_attr(miri, ignore = "a million names")]
fn a_history_has_so_many_names_and_no_more() {
    let mut writer = Writer::default();
    let push = |writer: &mut Writer, name: &str| {
        let event = Command {
            name: Some(name),
            ..Command::new(Kind::SignalReceived)
        };
        writer.push(&event, Some(0))
    };
    for number in 0..NAMES_MAX {
        assert_eq!(push(&mut writer, &number.to_string()), Ok(()));
    }
    assert!(matches!(
        push(&mut writer, "one more"),
        Err(Error::TooLarge {
            what: "number of names",
            limit: NAMES_MAX,
            ..
        })
    ));
    assert_eq!(push(&mut writer, "7"), Ok(()), "a known name is no new one");
    let (batch, _) = writer.take(1, chain_start(&RUN));
    let mut history = History::new(&RUN);
    assert_eq!(history.push(batch), Ok(()));
    assert_eq!(history.check_events(), Ok(NAMES_MAX as u32 + 1));
}

#[test]
fn a_writer_is_empty_again_after_a_take() {
    let mut writer = Writer::default();
    assert!(writer.is_empty());
    assert_eq!((writer.len(), writer.event_count()), (0, 0));
    let signal = Command {
        name: Some("name"),
        ..Command::new(Kind::SignalReceived)
    };
    assert_eq!(writer.push(&signal, Some(0)), Ok(()));
    assert!(!writer.is_empty());
    // Kind, length, flags, time, name; and the name with its length.
    assert_eq!((writer.len(), writer.event_count()), (5 + 5, 1));
    let (first, chain) = writer.take(1, chain_start(&RUN));
    assert!(writer.is_empty());
    assert_eq!(writer.push(&signal, Some(0)), Ok(()));
    let (second, head) = writer.take(2, chain);
    // The name is known by now.
    assert_eq!(first.len(), second.len() + 5);
    assert_eq!(
        load(&RUN, &[first, second], Some(head)).map(|it| it.event_count()),
        Ok(2)
    );
}

#[test]
#[cfg_attr(miri, ignore = "moves many megabytes")]
fn a_batch_has_so_many_bytes_and_no_more() {
    let bytes = vec![0; BATCH_BYTES_MAX];
    let signal = Command::new(Kind::SignalReceived);
    let meta = |len: usize| Command {
        meta: Some(&bytes[..len]),
        ..signal
    };
    let payload = |len: usize| Command {
        payload: Some(&bytes[..len]),
        ..signal
    };
    let room = BATCH_BYTES_MAX - 1000;
    let mut writer = Writer::default();
    for event in [meta(BATCH_BYTES_MAX), payload(BATCH_BYTES_MAX)] {
        let refused = writer.push(&event, None);
        assert!(
            matches!(refused, Err(Error::TooLarge { what: "batch", .. })),
            "{refused:?}"
        );
    }
    let both = Command {
        meta: Some(&bytes[..room / 2]),
        ..payload(room / 2 + 1000)
    };
    assert!(writer.push(&both, None).is_err());
    assert!(writer.is_empty(), "what is refused leaves nothing");
    let full = Command {
        name: Some("name"),
        meta: Some(b"meta"),
        ..payload(room)
    };
    assert_eq!(writer.push(&full, None), Ok(()));
    assert!(
        writer.push(&payload(1000), None).is_err(),
        "the batch counts as a whole"
    );
    assert_eq!(writer.push(&payload(100), None), Ok(()));
}

#[test]
fn counts_that_cannot_be_are_found_before_any_event_is_read() {
    let event = [1, 1, 0];
    let at_load =
        |body: Vec<u8>| load(&RUN, &sealed(&RUN, &[body]), None).map(|it| it.event_count());
    // Four bytes of head and three of event: room for two at the very most.
    assert_eq!(at_load(batch(1, 2, &[], &event)), Ok(2));
    for count in [3, 4, 1 << 29, (1 << 30) + 1] {
        assert!(
            is_corrupt(&at_load(batch(1, count, &[], &event))),
            "{count}"
        );
    }
    let names = |count: u8| [vec![1, 1, 0, count], vec![0; 4]].concat();
    assert_eq!(at_load(names(4)), Ok(0));
    for count in [5, 8, 9, 100] {
        assert!(is_corrupt(&at_load(names(count))), "{count}");
    }
}

#[test]
fn the_longest_name_is_written_and_read() {
    let longest = "n".repeat(NAME_BYTES_MAX);
    let mut event = Owned::new(Kind::SignalReceived);
    event.name = Some(longest);
    let (batches, head, expected) = write(&RUN, &[event], &[]);
    assert_eq!(decode(&RUN, &batches, Some(head)), Ok(expected));
}
