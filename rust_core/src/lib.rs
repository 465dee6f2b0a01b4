//! History codec and replay matching: the part of durable that must be exact and fast.
//!
//! The core is pure: no I/O, no clock, no randomness, no threads, no Python. [`History`] checks and
//! walks the recorded batches of one run, [`Replay`] matches the commands that workflow code makes
//! with them and records what is new. The feature `python` adds the binding: an asyncio event loop
//! whose ready queue, timers and futures are this crate's.
//!
//! The format is specified in `docs/internals/history-format.md`, the algorithm in
//! `docs/internals/replay.md`.

#![deny(unsafe_code)]

pub mod batch;
pub mod describe;
pub mod error;
pub mod event;
pub mod history;
pub mod replay;
pub mod wire;

#[cfg(feature = "python")]
pub mod python;

pub use batch::Writer;
pub use error::Error;
pub use event::{Command, EventView, Kind, Span};
pub use history::{Cursor, History};
pub use replay::{Fact, Replay};
