//! Histories of every released format decode to what they meant, and are written the same today.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use durable_core::{Kind, Replay};
use serde_json::Value;
use support::{Owned, decode, load, write};

struct Golden {
    run: [u8; 16],
    head: u64,
    batches: Vec<Vec<u8>>,
    events: Vec<Owned>,
    flushes: Vec<bool>,
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v1");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the folder of golden files")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    assert!(files.len() >= 7);
    files
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).expect("hex") as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn event(row: &Value) -> Owned {
    let number = |at: usize| row[at].as_u64().expect("a number");
    let text = |at: usize| row[at].as_str().map(str::to_owned);
    Owned {
        kind: Kind::from_number(number(1) as u8).expect("a known kind"),
        reference: number(2) as u32,
        time: number(3),
        name: text(4),
        options: text(5),
        meta: row[6].as_str().map(unhex),
        payload: row[7].as_str().map(unhex),
    }
}

fn golden(path: &Path) -> Golden {
    let text = fs::read_to_string(path).expect("readable");
    let data: Value = serde_json::from_str(&text).expect("JSON");
    let mut golden = Golden {
        run: unhex(data["run_id"].as_str().expect("text"))
            .try_into()
            .expect("16 bytes"),
        head: data["head"].as_i64().expect("signed") as u64,
        batches: Vec::new(),
        events: Vec::new(),
        flushes: Vec::new(),
    };
    for batch in data["batches"].as_array().expect("a list") {
        golden
            .batches
            .push(unhex(batch["bytes"].as_str().expect("text")));
        let rows = batch["events"].as_array().expect("a list");
        golden.events.extend(rows.iter().map(event));
        golden.flushes.resize(golden.events.len() - 1, false);
        golden.flushes.push(true);
    }
    golden
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn a_golden_history_decodes_to_its_events() {
    for path in files() {
        let golden = golden(&path);
        let decoded = decode(&golden.run, &golden.batches, Some(golden.head));
        assert_eq!(decoded, Ok(golden.events), "{}", path.display());
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn a_golden_history_is_written_the_same_today() {
    for path in files() {
        let golden = golden(&path);
        let (batches, head, _) = write(&golden.run, &golden.events, &golden.flushes);
        assert_eq!(golden.batches, batches, "{}", path.display());
        assert_eq!(golden.head, head, "{}", path.display());
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads files")]
fn a_golden_history_goes_on_where_it_ends() {
    for path in files() {
        let golden = golden(&path);
        let cut = golden.batches.len() - 1;
        let history = load(&golden.run, &golden.batches[..cut], None).expect("right");
        let known = history.event_count() as usize;
        let mut replay: Replay<_, ()> = Replay::new(history);
        for event in &golden.events[..known] {
            if event.kind.is_inbound() {
                assert!(replay.advance().is_ok());
            } else if replay.is_replaying() {
                replay.command(&event.borrow(), None).expect("as recorded");
            }
        }
        if known != 1 {
            assert_eq!(replay.advance(), Ok(durable_core::Fact::Live));
        }
        for event in &golden.events[known..] {
            if event.kind.is_inbound() {
                replay.record(&event.borrow()).expect("live");
            } else {
                replay.command(&event.borrow(), None).expect("live");
            }
        }
        let (batch, head, _, _) = replay.take().expect("new");
        assert_eq!(golden.batches[cut], batch, "{}", path.display());
        assert_eq!(golden.head, head, "{}", path.display());
    }
}
