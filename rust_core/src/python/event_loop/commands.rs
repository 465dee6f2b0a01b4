//! The commands that the code makes: matched with history, or written as what is new.
#![forbid(unsafe_code)]

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::{EventLoop, Ready, Slot, Target};
use crate::event::{Command, Kind};
use crate::python::future::{CommandFuture, Decoder, copy_context, new_tracked};
use crate::python::handle::{Call, Handle, TimerHandle};
use crate::python::to_py_err;
use crate::python::tools::{Said, command_tuple};

impl EventLoop {
    /// Call what makes a value to record. Replayed, the value is read from history and nothing is
    /// called, so nothing else may be recorded by the call.
    fn produce<'py>(
        slf: &Bound<'py, Self>,
        produce: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.borrow_mut().recording = true;
        let produced = produce.call0();
        slf.borrow_mut().recording = false;
        produced
    }

    /// Make a command. Id 0 when the loop is dead: whoever waits then waits for ever.
    pub(super) fn make(
        slf: &Bound<'_, Self>,
        command: &Command<'_>,
        target: Option<Target>,
    ) -> PyResult<u32> {
        Self::make_said(slf, command, Said::default(), target)
    }

    fn make_said(
        slf: &Bound<'_, Self>,
        command: &Command<'_>,
        said: Said<'_>,
        target: Option<Target>,
    ) -> PyResult<u32> {
        let py = slf.py();
        let (id, live) = {
            let mut this = slf.borrow_mut();
            if this.dead || this.replay.is_ended() {
                return Ok(0);
            }
            this.check_recording()?;
            let live = !this.replay.is_replaying();
            let slot = target.map(|target| Slot {
                target,
                tuple: None,
            });
            match this.replay.command(command, slot) {
                Ok(id) => (id, live),
                Err(error @ crate::Error::Invalid(_)) => return Err(to_py_err(py, error)),
                Err(error) => return Err(this.fail(py, error)),
            }
        };
        if live {
            let tuple = command_tuple(py, id, command, said)?;
            let mut this = slf.borrow_mut();
            if let Some(slot) = this.replay.slot_mut(id) {
                slot.tuple = Some(tuple.clone_ref(py));
            }
            this.effects.push(tuple);
        }
        Ok(id)
    }

    /// Make a command and the future of its outcome.
    pub(in crate::python) fn start(
        slf: &Bound<'_, Self>,
        command: &Command<'_>,
        said: Said<'_>,
        plain: u8,
        decoder: Option<Decoder>,
        wait_cancel: bool,
    ) -> PyResult<Py<CommandFuture>> {
        let event_loop = slf.clone().unbind();
        let future = CommandFuture::new(event_loop, command.kind, plain, decoder, wait_cancel);
        let future = new_tracked(slf.py(), future)?;
        let target = Target::Future(future.clone_ref(slf.py()));
        let id = Self::make_said(slf, command, said, Some(target))?;
        future.borrow_mut(slf.py()).set_id(id);
        Ok(future)
    }

    /// The code no longer wants the outcome of a command.
    pub(in crate::python) fn cancel_command(
        slf: &Bound<'_, Self>,
        id: u32,
        kind: Kind,
        wait: bool,
    ) -> PyResult<()> {
        let waits = slf.borrow().replay.pending(id).is_some();
        if !waits {
            return Ok(());
        }
        let cancel = match kind {
            Kind::ActivityScheduled => Some(Kind::ActivityCancelRequested),
            Kind::TimerStarted => Some(Kind::TimerCancelled),
            Kind::ChildInitiated => Some(Kind::ChildCancelRequested),
            _ => None,
        };
        if let Some(cancel) = cancel {
            Self::make(
                slf,
                &Command {
                    reference: id,
                    ..Command::new(cancel)
                },
                None,
            )?;
        }
        if !wait {
            let gone = slf.borrow_mut().replay.resolve(id);
            drop(gone);
        }
        Ok(())
    }

    pub(in crate::python) fn cancel_timer(slf: &Bound<'_, Self>, id: u32) -> PyResult<()> {
        Self::cancel_command(slf, id, Kind::TimerStarted, false)
    }

    /// A command whose payload is its own outcome: live it is produced, replaying it is read.
    pub(super) fn record_value(
        slf: &Bound<'_, Self>,
        kind: Kind,
        name: Option<&str>,
        produce: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyBytes>> {
        let py = slf.py();
        let command = Command {
            name,
            ..Command::new(kind)
        };
        let recorded = {
            let mut this = slf.borrow_mut();
            this.check_recording()?;
            let over = this.dead || this.replay.is_ended();
            let recorded = if over {
                Ok(None)
            } else {
                this.replay.recorded(&command)
            };
            recorded.map(|event| {
                event.map(|event| {
                    let payload = event.payload.map(|span| this.replay.history().bytes(span));
                    PyBytes::new(py, payload.unwrap_or_default()).unbind()
                })
            })
        };
        match recorded {
            Ok(Some(recorded)) => return Ok(recorded),
            Ok(None) => {}
            Err(error) => {
                // What raised when it was produced is not in history; it raises again.
                Self::produce(slf, produce)?;
                return Err(slf.borrow_mut().fail(py, error));
            }
        }
        let payload = Self::produce(slf, produce)?.cast_into::<PyBytes>()?;
        Self::make(
            slf,
            &Command {
                payload: Some(payload.as_bytes()),
                ..command
            },
            None,
        )?;
        Ok(payload.unbind())
    }

    /// Whether the code takes the new path of a patch. Asked again, the same answer.
    pub(super) fn take_patch(slf: &Bound<'_, Self>, name: &str) -> PyResult<bool> {
        if let Some(&known) = slf.borrow().patches.get(name) {
            return Ok(known);
        }
        let py = slf.py();
        let (replaying, marked) = {
            let mut this = slf.borrow_mut();
            if this.dead || this.replay.is_ended() {
                return Ok(false);
            }
            this.check_recording()?;
            match this.replay.take_marker(name) {
                Ok(marked) => (this.replay.is_replaying(), marked),
                Err(error) => return Err(this.fail(py, error)),
            }
        };
        if !replaying {
            let command = Command {
                name: Some(name),
                ..Command::new(Kind::PatchMarker)
            };
            Self::make(slf, &command, None)?;
        }
        let taken = marked || !replaying;
        slf.borrow_mut().patches.insert(name.to_owned(), taken);
        Ok(taken)
    }

    /// Step over the marker of a patch that the code no longer asks for.
    pub(super) fn pass_patch(slf: &Bound<'_, Self>, name: &str) -> PyResult<bool> {
        let mut this = slf.borrow_mut();
        if this.dead || this.replay.is_ended() {
            return Ok(false);
        }
        this.check_recording()?;
        match this.replay.take_marker(name) {
            Ok(marked) => Ok(marked),
            Err(error) => Err(this.fail(slf.py(), error)),
        }
    }

    /// A callback at a time: a durable timer, or this turn when that time has come.
    pub(super) fn timer(
        slf: &Bound<'_, Self>,
        due: u64,
        callback: Py<PyAny>,
        args: Py<PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<TimerHandle>> {
        let py = slf.py();
        let context = match context {
            Some(context) if !context.is_none(py) => context,
            _ => copy_context(py)?,
        };
        let call = Call {
            callback,
            args,
            context: context.clone_ref(py),
        };
        let now = slf.borrow().replay.now();
        let handle = Py::new(py, TimerHandle::new(slf.clone().unbind(), due, call))?;
        if due <= now {
            // Due already: it runs in this turn and leaves no trace in history.
            let run = handle.getattr(py, "_run")?;
            let ready = Call {
                callback: run,
                args: PyTuple::empty(py).unbind(),
                context,
            };
            let ready = Ready::Handle(new_tracked(py, Handle::new(ready))?);
            let refused = slf.borrow_mut().push_ready(ready);
            drop(refused);
            return Ok(handle);
        }
        let command = Command {
            time: due,
            ..Command::new(Kind::TimerStarted)
        };
        let id = Self::make(slf, &command, Some(Target::Timer(handle.clone_ref(py))))?;
        handle.borrow_mut(py).set_id(id);
        Ok(handle)
    }
}
