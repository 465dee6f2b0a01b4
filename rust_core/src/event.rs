//! The event table: numbers, names, and which fields of a command replay compares.
//!
//! Numbers are for ever. `python/durable/events.py` has the same table; a test compares the two.
#![forbid(unsafe_code)]

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// What an event says happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $variant = $number,)* }

        impl Kind {
            /// Every kind this build knows.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)*];

            /// The kind with this number, if this build knows it.
            #[inline]
            pub fn from_number(number: u8) -> Option<Kind> {
                match number { $($number => Some(Kind::$variant),)* _ => None }
            }

            /// Its name in the specification.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    /// The run exists: its type, input and circumstances.
    RunStarted = 1, "RUN_STARTED";
    /// An activity's result.
    ActivityCompleted = 2, "ACTIVITY_COMPLETED";
    /// An activity gave up.
    ActivityFailed = 3, "ACTIVITY_FAILED";
    /// A timer is due.
    TimerFired = 4, "TIMER_FIRED";
    /// A signal (external event).
    SignalReceived = 5, "SIGNAL_RECEIVED";
    /// Somebody asks the run to cancel itself.
    CancelRequested = 6, "CANCEL_REQUESTED";
    /// An update passed its validator.
    UpdateAccepted = 7, "UPDATE_ACCEPTED";
    /// A child run exists.
    ChildStarted = 8, "CHILD_STARTED";
    /// A child's result.
    ChildCompleted = 9, "CHILD_COMPLETED";
    /// A child ended without a result, or could not start.
    ChildFailed = 10, "CHILD_FAILED";
    /// A signal or cancel to another run was delivered.
    ExternalDone = 11, "EXTERNAL_DONE";
    /// A signal or cancel to another run could not be delivered.
    ExternalFailed = 12, "EXTERNAL_FAILED";
    /// Ended from outside.
    RunTerminated = 13, "RUN_TERMINATED";
    /// Ended by its execution timeout.
    RunTimedOut = 14, "RUN_TIMED_OUT";
    /// The code called an activity.
    ActivityScheduled = 64, "ACTIVITY_SCHEDULED";
    /// The code cancelled an activity.
    ActivityCancelRequested = 65, "ACTIVITY_CANCEL_REQUESTED";
    /// The code started a timer.
    TimerStarted = 66, "TIMER_STARTED";
    /// The code cancelled a timer.
    TimerCancelled = 67, "TIMER_CANCELLED";
    /// The code starts a child run.
    ChildInitiated = 68, "CHILD_INITIATED";
    /// The code cancels a child run.
    ChildCancelRequested = 69, "CHILD_CANCEL_REQUESTED";
    /// The code signals another run.
    ExternalSignal = 70, "EXTERNAL_SIGNAL";
    /// The code cancels another run.
    ExternalCancel = 71, "EXTERNAL_CANCEL";
    /// A value that was produced once and is recorded.
    SideEffect = 72, "SIDE_EFFECT";
    /// The code took the new path of a patch.
    PatchMarker = 73, "PATCH_MARKER";
    /// An update's result.
    UpdateCompleted = 74, "UPDATE_COMPLETED";
    /// An update's failure.
    UpdateFailed = 75, "UPDATE_FAILED";
    /// Search attributes changed.
    AttributesSet = 76, "ATTRIBUTES_SET";
    /// The run ended with a result.
    RunCompleted = 128, "RUN_COMPLETED";
    /// The run ended with an error.
    RunFailed = 129, "RUN_FAILED";
    /// The run ended because it was asked to cancel.
    RunCancelled = 130, "RUN_CANCELLED";
    /// The run goes on as a new run.
    RunContinuedAsNew = 131, "RUN_CONTINUED_AS_NEW";
}

/// Field flags of an event body, in the order in which the fields follow.
pub mod field {
    /// Id of the command an inbound fact answers, or that a command is about.
    pub const REF: u8 = 1;
    /// Microseconds after the last inbound fact (the first: since the epoch).
    pub const TIME: u8 = 2;
    /// Index of an interned name.
    pub const NAME: u8 = 4;
    /// Index of an interned options text.
    pub const OPTIONS: u8 = 8;
    /// Length and bytes.
    pub const META: u8 = 16;
    /// The rest of the body.
    pub const PAYLOAD: u8 = 32;
    /// What this build knows.
    pub const ALL: u8 = 63;
}

impl Kind {
    /// A fact from outside, as opposed to something the code asked for.
    #[inline]
    pub fn is_inbound(self) -> bool {
        (self as u8) < 64
    }

    /// The run's last event, made by its code.
    #[inline]
    pub fn is_ending(self) -> bool {
        (self as u8) >= 128
    }

    /// A command whose outcome comes as a later fact.
    #[inline]
    pub fn awaits_outcome(self) -> bool {
        matches!(
            self,
            Kind::ActivityScheduled
                | Kind::TimerStarted
                | Kind::ChildInitiated
                | Kind::ExternalSignal
                | Kind::ExternalCancel
        )
    }

    /// For a fact that is the outcome of a command: the kinds of command it can answer.
    #[inline]
    pub fn answers(self, command: Kind) -> bool {
        match self {
            Kind::ActivityCompleted | Kind::ActivityFailed => command == Kind::ActivityScheduled,
            Kind::TimerFired => command == Kind::TimerStarted,
            Kind::ChildCompleted | Kind::ChildFailed => command == Kind::ChildInitiated,
            Kind::ExternalDone | Kind::ExternalFailed => {
                matches!(command, Kind::ExternalSignal | Kind::ExternalCancel)
            }
            _ => false,
        }
    }

    /// Whether this fact ends the wait of a command.
    #[inline]
    pub fn is_outcome(self) -> bool {
        matches!(
            self,
            Kind::ActivityCompleted
                | Kind::ActivityFailed
                | Kind::TimerFired
                | Kind::ChildCompleted
                | Kind::ChildFailed
                | Kind::ExternalDone
                | Kind::ExternalFailed
        )
    }

    /// Whether this outcome is an error for the code that waits.
    #[inline]
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Kind::ActivityFailed | Kind::ChildFailed | Kind::ExternalFailed
        )
    }

    /// The fields that a replayed command must have in common with history. Options may change
    /// between builds (another queue, another retry policy); what is asked for may not.
    #[inline]
    pub fn compared(self) -> u8 {
        match self {
            Kind::ActivityScheduled | Kind::ChildInitiated | Kind::ExternalSignal => {
                field::NAME | field::PAYLOAD
            }
            Kind::TimerStarted => field::TIME,
            Kind::ActivityCancelRequested
            | Kind::TimerCancelled
            | Kind::ChildCancelRequested
            | Kind::UpdateCompleted
            | Kind::UpdateFailed => field::REF,
            Kind::ExternalCancel | Kind::SideEffect | Kind::PatchMarker => field::NAME,
            _ => 0,
        }
    }
}

/// Some bytes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Batch number, from 0.
    pub seq: u32,
    /// First byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

/// No interned name.
pub const NO_NAME: u32 = u32::MAX;

/// A decoded event. Bytes stay in the batch; see [`crate::History::bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventView {
    /// From 1, without gaps.
    pub id: u32,
    /// What happened.
    pub kind: Kind,
    /// Id of the command it answers or is about; 0 is none.
    pub reference: u32,
    /// Time of an inbound fact, due time of a timer: absolute, microseconds; 0 is none.
    pub time: u64,
    /// Interned name, or [`NO_NAME`].
    pub name: u32,
    /// Interned options, or [`NO_NAME`].
    pub options: u32,
    /// Small JSON that rarely matters.
    pub meta: Option<Span>,
    /// Argument list, result, failure.
    pub payload: Option<Span>,
}

/// A command that code makes, or a fact that arrives: an event before it is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// What is asked.
    pub kind: Kind,
    /// Id of the command it is about; 0 is none.
    pub reference: u32,
    /// Absolute due time or arrival time, microseconds; 0 is none.
    pub time: u64,
    /// Activity, signal, workflow or patch name.
    pub name: Option<&'a str>,
    /// Options text, interned.
    pub options: Option<&'a str>,
    /// Small JSON.
    pub meta: Option<&'a [u8]>,
    /// Argument list or value.
    pub payload: Option<&'a [u8]>,
}

impl Command<'_> {
    /// A command with nothing but its kind.
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
}
