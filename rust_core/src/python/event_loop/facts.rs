//! The facts that a run is given: recorded ones in the order of history, and new ones.
#![forbid(unsafe_code)]

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use super::{EventLoop, Ready, Slot, Target, cached};
use crate::event::{Command, EventView, Kind, NO_NAME};
use crate::python::encode::get_plain;
use crate::python::future::{CommandFuture, new_tracked};
use crate::python::handle::Handle;
use crate::python::{optional_bytes, to_py_err};
use crate::replay::{Fact, Pending};

/// A fact that is not in history yet.
pub(in crate::python) struct NewFact {
    pub kind: Kind,
    pub reference: u32,
    pub time_us: u64,
    pub name: Option<String>,
    pub meta: Option<Py<PyBytes>>,
    pub payload: Option<Py<PyBytes>>,
}

impl EventLoop {
    /// Run the code against its history: quiet, next fact, quiet, until history is used up.
    pub(super) fn replay_history(slf: &Bound<'_, Self>) -> PyResult<()> {
        let _entered = Self::enter(slf)?;
        let py = slf.py();
        loop {
            Self::settle(slf)?;
            let fact = {
                let mut this = slf.try_borrow_mut()?;
                if this.dead {
                    return Ok(());
                }
                let fact = if this.replay.is_ended() {
                    this.replay.check_end().map(|()| Fact::Live)
                } else {
                    this.replay.advance()
                };
                match fact {
                    Ok(fact) => fact,
                    Err(error) => {
                        let error = this.fail(py, error);
                        this.failure = None;
                        return Err(error);
                    }
                }
            };
            match fact {
                Fact::Live => return Ok(()),
                Fact::Recorded(event) => Self::dispatch_recorded(slf, &event)?,
            }
        }
    }

    /// Whether a new fact comes too late to change anything.
    fn is_void(&self, kind: Kind, reference: u32) -> bool {
        let is_answer = kind.is_outcome() || kind == Kind::ChildStarted;
        self.dead
            || self.is_spoilt
            || self.replay.is_ended()
            || is_answer && self.replay.pending(reference).is_none()
    }

    /// `deliver_fact`, unless it comes too late; whether it did not.
    pub(in crate::python) fn offer_fact(slf: &Bound<'_, Self>, fact: NewFact) -> PyResult<bool> {
        if slf.borrow().is_void(fact.kind, fact.reference) {
            return Ok(false);
        }
        Self::deliver_fact(slf, fact)?;
        Ok(true)
    }

    /// Write a new fact down, give it to whoever waits for it, and run the code until it is quiet.
    pub(super) fn deliver_fact(slf: &Bound<'_, Self>, fact: NewFact) -> PyResult<()> {
        let py = slf.py();
        let NewFact {
            kind,
            reference,
            time_us,
            name,
            meta,
            payload,
        } = fact;
        if !kind.is_inbound() {
            return Err(PyValueError::new_err(format!(
                "{} is not a fact",
                kind.name()
            )));
        }
        let _entered = Self::enter(slf)?;
        {
            let mut this = slf.try_borrow_mut()?;
            if this.dead || this.replay.is_ended() {
                return Err(PyRuntimeError::new_err("this run takes no more facts"));
            }
            if this.replay.is_replaying() {
                return Err(PyRuntimeError::new_err("replay the history first"));
            }
            let fits = !kind.is_outcome()
                || this
                    .replay
                    .pending(reference)
                    .is_some_and(|it| kind.answers(it.kind));
            if !fits {
                let message = format!("{} answers no waiting command {}", kind.name(), reference);
                return Err(PyValueError::new_err(message));
            }
            let fact = Command {
                reference,
                time: time_us,
                name: name.as_deref(),
                meta: meta.as_ref().map(|meta| meta.as_bytes(py)),
                payload: payload.as_ref().map(|payload| payload.as_bytes(py)),
                ..Command::new(kind)
            };
            this.replay
                .record(&fact)
                .map_err(|error| to_py_err(py, error))?;
        }
        if kind.is_outcome() {
            Self::dispatch_outcome(slf, kind, reference, |future, name| {
                let allowed = future.borrow().plain();
                let payload = payload.map(|payload| payload.into_bound(py));
                if !kind.is_failure()
                    && let Some(payload) = &payload
                    && let Some(value) = get_plain(py, payload.as_bytes(), allowed)
                {
                    return Ok(value);
                }
                Self::outcome_value(slf, kind, reference, name, payload, future)
            })?;
        } else {
            Self::dispatch_fact(slf, kind, reference, name, meta, payload)?;
        }
        Self::settle(slf)
    }

    /// What a waiting command was called: the activity, the child's type.
    fn name_of(&self, py: Python<'_>, pending: &Pending<Slot>) -> Option<String> {
        if let Some(view) = &pending.view {
            let name = self.replay.history().name(view.name);
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        let tuple = pending.slot.tuple.as_ref()?.bind(py);
        tuple.get_item(4).ok()?.extract().ok()
    }

    /// The outcome of `future` when it is the next thing in history and nothing else can run before
    /// it: then suspending and waking up again would come to the same. Nothing else: no callback is
    /// ready, nobody else waits for this future, no condition is watched, no task was cancelled, and
    /// the main task goes on (once it is done, the run ends before the next fact).
    #[inline]
    pub(in crate::python) fn outcome_at_hand(
        slf: &Bound<'_, Self>,
        future: &Bound<'_, CommandFuture>,
    ) -> Option<PyResult<Py<PyAny>>> {
        let py = slf.py();
        let (id, command_kind, watched) = {
            let this = future.borrow();
            (this.id(), this.kind(), this.has_callbacks())
        };
        let (event, slot, name) = {
            let mut this = slf.borrow_mut();
            let alone = this.entered
                && !this.dead
                && !this.main_done
                && this.ready.is_empty()
                && !this.watch_idle
                && !this.must_suspend
                && !watched;
            if !alone || !this.replay.is_replaying() {
                return None;
            }
            let event = this.replay.peek().ok().flatten()?;
            if event.reference != id || !event.kind.answers(command_kind) {
                return None;
            }
            this.replay.accept(&event);
            let pending = this.replay.resolve(id);
            let name = match &pending {
                Some(pending) if event.kind.is_failure() => this.name_of(py, pending),
                _ => None,
            };
            (event, pending, name)
        };
        drop(slot);
        Some(Self::recorded_outcome(slf, &event, name, future))
    }

    /// The value or exception of a recorded outcome.
    fn recorded_outcome(
        slf: &Bound<'_, Self>,
        event: &EventView,
        name: Option<String>,
        future: &Bound<'_, CommandFuture>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let allowed = future.borrow().plain();
        let payload = {
            let this = slf.borrow();
            let json = event.payload.map(|span| this.replay.history().bytes(span));
            match json {
                Some(json) if !event.kind.is_failure() => {
                    if let Some(value) = get_plain(py, json, allowed) {
                        return Ok(value);
                    }
                    Some(PyBytes::new(py, json))
                }
                Some(json) => Some(PyBytes::new(py, json)),
                None => None,
            }
        };
        Self::outcome_value(slf, event.kind, event.reference, name, payload, future)
    }

    /// Decode a result, or build the exception of a failure.
    fn outcome_value(
        slf: &Bound<'_, Self>,
        kind: Kind,
        reference: u32,
        name: Option<String>,
        payload: Option<Bound<'_, PyBytes>>,
        future: &Bound<'_, CommandFuture>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        if kind.is_failure() {
            let hook = slf.borrow().hook.clone_ref(py);
            let error = hook
                .bind(py)
                .call_method1("failure", (kind as u8, reference, name, payload))?;
            return Err(PyErr::from_value(error));
        }
        let Some(payload) = payload else {
            return Ok(py.None());
        };
        let decoder = future.borrow().decoder(py);
        match decoder {
            Some(decoder) => decoder.decode(&payload),
            None => Ok(json_loads(py)?.call1((payload,))?.unbind()),
        }
    }

    /// Give a fact to whoever waits for it.
    fn dispatch_outcome(
        slf: &Bound<'_, Self>,
        kind: Kind,
        reference: u32,
        outcome: impl FnOnce(&Bound<'_, CommandFuture>, Option<String>) -> PyResult<Py<PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let pending = slf.try_borrow_mut()?.replay.resolve(reference);
        let Some(pending) = pending else {
            return Ok(());
        };
        let name = if kind.is_failure() {
            slf.borrow().name_of(py, &pending)
        } else {
            None
        };
        debug_assert!(kind.answers(pending.kind));
        match pending.slot.target {
            Target::Future(future) => {
                let future = future.bind(py);
                let outcome = outcome(future, name);
                CommandFuture::settle(future, outcome);
            }
            Target::Timer(timer) => {
                let call = timer.borrow_mut(py).take();
                if let Some(call) = call {
                    let handle = new_tracked(py, Handle::new(call))?;
                    let refused = slf.borrow_mut().push_ready(Ready::Handle(handle));
                    drop(refused);
                }
            }
        }
        Ok(())
    }

    fn dispatch_recorded(slf: &Bound<'_, Self>, event: &EventView) -> PyResult<()> {
        let py = slf.py();
        if event.kind.is_outcome() {
            let problem = {
                let mut this = slf.borrow_mut();
                let fits = this
                    .replay
                    .pending(event.reference)
                    .is_some_and(|pending| event.kind.answers(pending.kind));
                if fits {
                    None
                } else {
                    let error = this.replay.mismatch(Some(*event), None);
                    Some(this.fail(py, error))
                }
            };
            if let Some(problem) = problem {
                return Err(problem);
            }
            return Self::dispatch_outcome(slf, event.kind, event.reference, |future, name| {
                Self::recorded_outcome(slf, event, name, future)
            });
        }
        let (name, meta, payload) = {
            let this = slf.borrow();
            let history = this.replay.history();
            let name = (event.name != NO_NAME)
                .then(|| String::from_utf8_lossy(history.name(event.name)).into_owned());
            let bytes = |span| optional_bytes(py, Some(history.bytes(span)));
            (
                name,
                event.meta.and_then(bytes),
                event.payload.and_then(bytes),
            )
        };
        Self::dispatch_fact(slf, event.kind, event.reference, name, meta, payload)
    }

    fn dispatch_fact(
        slf: &Bound<'_, Self>,
        kind: Kind,
        reference: u32,
        name: Option<String>,
        meta: Option<Py<PyBytes>>,
        payload: Option<Py<PyBytes>>,
    ) -> PyResult<()> {
        let py = slf.py();
        if matches!(kind, Kind::RunTerminated | Kind::RunTimedOut) {
            slf.borrow_mut().replay.end();
        }
        let hook = slf.borrow().hook.clone_ref(py);
        hook.bind(py)
            .call_method1("on_event", (kind as u8, reference, name, meta, payload))?;
        Ok(())
    }
}

fn json_loads(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    cached(py, &LOADS, "msgspec.json", "decode")
}
