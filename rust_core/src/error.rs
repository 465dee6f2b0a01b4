//! Every way in which the core can say no, with its data.
#![forbid(unsafe_code)]

/// Why a history cannot be read, or the code cannot go on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// Recorded bytes fail their checks. `seq` is the batch, `offset` the byte in it.
    Corrupt {
        /// Batch number, from 0.
        seq: u32,
        /// Byte in the batch.
        offset: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Written by a newer build: the run must wait for one.
    Unsupported {
        /// Batch number, from 0.
        seq: u32,
        /// Byte in the batch.
        offset: usize,
        /// What is not known here.
        what: String,
    },
    /// A request that no history could hold.
    Invalid(&'static str),
    /// The code and its history part here.
    Mismatch(Box<Mismatch>),
    /// A limit of the format, met before anything was allocated.
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        size: usize,
        /// How large it may be.
        limit: usize,
    },
}

/// Where code and history part, as data. The sentences are made in `describe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Id of the event at which they part.
    pub event_id: u32,
    /// What history has there, or `None` at its end.
    pub expected: Option<String>,
    /// What the code did, or `None` when it made no command.
    pub found: Option<String>,
    /// Time of the last delivered fact, microseconds since the epoch.
    pub time: u64,
    /// The events near it, one line each.
    pub around: Vec<String>,
    /// The likely cause.
    pub hint: String,
}

/// Result of the core.
pub type Result<T> = std::result::Result<T, Error>;
