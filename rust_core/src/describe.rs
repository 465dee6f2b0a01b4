//! Sentences about events, for mismatches and tools. Not on any hot path.
#![forbid(unsafe_code)]

use crate::event::{Command, EventView, Kind};
use crate::history::{Cursor, History};

/// Bytes of a payload shown.
const SHOWN_BYTES: usize = 80;
/// Events shown on each side of a mismatch.
const AROUND: u32 = 3;

fn text(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let mut shown: String = String::from_utf8_lossy(cut)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if bytes.len() > SHOWN_BYTES {
        shown.push('…');
    }
    shown
}

/// An argument list as it looks in code.
fn arguments(payload: Option<&[u8]>) -> String {
    let shown = text(payload.unwrap_or_default());
    match shown
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inner) => format!("({inner})"),
        None if shown.is_empty() => String::new(),
        None => format!("({shown})"),
    }
}

fn seconds(micros: u64) -> String {
    let whole = micros / 1_000_000;
    let rest = micros % 1_000_000;
    if rest == 0 {
        return format!("{whole} s");
    }
    let digits = format!("{rest:06}");
    format!("{whole}.{} s", digits.trim_end_matches('0'))
}

fn sentence(command: &Command<'_>, now: u64) -> String {
    let name = command
        .name
        .map(|name| text(name.as_bytes()))
        .unwrap_or_default();
    let kind = command.kind.name();
    match command.kind {
        Kind::ActivityScheduled | Kind::ChildInitiated => {
            format!("{kind} {name}{}", arguments(command.payload))
        }
        Kind::TimerStarted => format!("{kind} for {}", seconds(command.time.saturating_sub(now))),
        _ => {
            let mut shown = kind.to_string();
            if !name.is_empty() {
                shown.push(' ');
                shown.push_str(&name);
            }
            if command.reference != 0 {
                shown.push_str(&format!(" of event {}", command.reference));
            }
            if let Some(payload) = command.payload {
                shown.push(' ');
                shown.push_str(&text(payload));
            }
            shown
        }
    }
}

/// A command of the code.
pub fn command(command: &Command<'_>, now: u64) -> String {
    sentence(command, now)
}

fn as_command<'a, B: AsRef<[u8]>>(history: &'a History<B>, event: &EventView) -> Command<'a> {
    let name = |index| {
        std::str::from_utf8(history.name(index))
            .ok()
            .filter(|n| !n.is_empty())
    };
    Command {
        kind: event.kind,
        reference: event.reference,
        time: event.time,
        name: name(event.name),
        options: name(event.options),
        meta: event.meta.map(|span| history.bytes(span)),
        payload: event.payload.map(|span| history.bytes(span)),
    }
}

/// A recorded event. `now` is the time of the last fact before it.
pub fn event<B: AsRef<[u8]>>(history: &History<B>, event: &EventView, now: u64) -> String {
    sentence(&as_command(history, event), now)
}

/// The events near `event_id`, one line each, with their ids.
pub fn around<B: AsRef<[u8]>>(history: &History<B>, event_id: u32) -> Vec<String> {
    let mut lines = Vec::new();
    let mut cursor = Cursor::default();
    loop {
        let now = cursor.time();
        let Ok(Some(item)) = history.next(&mut cursor) else {
            return lines;
        };
        if item.id > event_id.saturating_add(AROUND) {
            return lines;
        }
        if item.id.saturating_add(AROUND) >= event_id {
            let mark = if item.id == event_id { '>' } else { ' ' };
            lines.push(format!(
                "{mark} {:>5} {}",
                item.id,
                event(history, &item, now)
            ));
        }
    }
}

/// Id of the first event after `event_id` that is this command.
fn later<B: AsRef<[u8]>>(history: &History<B>, event_id: u32, found: &Command<'_>) -> Option<u32> {
    let mut cursor = Cursor::default();
    while let Ok(Some(item)) = history.next(&mut cursor) {
        let same = item.id > event_id && item.kind == found.kind && {
            let recorded = as_command(history, &item);
            recorded.name == found.name && found.kind != Kind::TimerStarted
        };
        if same {
            return Some(item.id);
        }
    }
    None
}

/// The likely cause of a mismatch.
pub fn hint<B: AsRef<[u8]>>(
    history: &History<B>,
    expected: Option<&EventView>,
    found: Option<&Command<'_>>,
    now: u64,
) -> String {
    let (expected, found) = match (expected, found) {
        (None, _) => {
            return "the code makes more commands than its history has: was a call added before \
                    the point the run had reached?"
                .into();
        }
        (Some(event), None) if event.kind.is_inbound() => {
            return "the code ended, but its history goes on: was the rest of it removed?".into();
        }
        (Some(_), None) => {
            return "the code makes fewer commands than its history has: was a call removed, or \
                    does a condition come out differently?"
                .into();
        }
        (Some(event), Some(command)) => (event, command),
    };
    let recorded = as_command(history, expected);
    if recorded.kind.is_inbound() {
        return "the code makes a command that its history does not have here: was a call added?"
            .into();
    }
    if recorded.kind == found.kind && recorded.name == found.name {
        return match found.kind {
            Kind::TimerStarted => format!(
                "the timer's duration changed: {} in history, {} in the code",
                seconds(recorded.time.saturating_sub(now)),
                seconds(found.time.saturating_sub(now))
            ),
            _ => "same call, other arguments: does the code compute them from something that is \
                  not in its history (clock, randomness, environment, set order)?"
                .into(),
        };
    }
    if let Some(id) = later(history, expected.id, found) {
        return format!("history has this command later, at event {id}: were calls reordered?");
    }
    match (recorded.kind, found.kind) {
        (Kind::ActivityScheduled, Kind::ActivityScheduled) => {
            "was the activity renamed or replaced?".into()
        }
        _ => "was a call added, removed or moved?".into(),
    }
}
