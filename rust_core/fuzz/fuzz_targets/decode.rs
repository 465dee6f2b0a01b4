//! Any bytes as a history: an answer, no panic, and what is accepted is read the same way twice.
#![no_main]

use arbitrary::Arbitrary;
use durable_core::batch::{chain_next, chain_start};
use durable_core::{Cursor, History, describe};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    run_id: [u8; 16],
    /// Whether the right checksums are added, so that what is inside gets looked at.
    is_sealed: bool,
    batches: Vec<Vec<u8>>,
}

fuzz_target!(|input: Input| {
    let mut history = History::new(&input.run_id);
    let mut chain = chain_start(&input.run_id);
    for mut batch in input.batches {
        if input.is_sealed {
            batch.insert(0, 1);
            chain = chain_next(chain, &batch);
            batch.extend_from_slice(&chain.to_le_bytes());
        }
        if history.push(batch).is_err() {
            return;
        }
    }
    let checked = history.check_events();
    let mut cursor = Cursor::default();
    let mut count = 0;
    let fault = loop {
        let event = match history.next(&mut cursor) {
            Ok(Some(event)) => event,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        count += 1;
        assert_eq!(event.id, count);
        assert!(event.reference < event.id);
        for span in [event.meta, event.payload].into_iter().flatten() {
            let _ = history.bytes(span);
        }
        let _ = describe::event(&history, &event, cursor.time());
    };
    assert!(fault.is_some() || count == history.event_count());
    assert_eq!(checked.err(), fault);
    let _ = describe::around(&history, count / 2);
});
