//! One run: a deterministic asyncio event loop joined with the replay of its history.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use pyo3::PyTraverseError;
use pyo3::exceptions::{PyException, PyGeneratorExit, PyRuntimeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::encode::{get_plain, plain};
use super::future::{
    CancelledError, CommandFuture, Decoder, copy_context, new_tracked, run_in_context,
};
use super::handle::{Call, Handle, TimerHandle};
use super::tools::{command_tuple, event_tuple, load_history};
use super::{CURRENT, optional_bytes, run_id_bytes, to_py_err};
use crate::event::{Command, EventView, Kind, NO_NAME};
use crate::history::History;
use crate::replay::{Fact, Pending, Replay};

/// What is kept with a command that waits.
pub(super) struct Slot {
    target: Target,
    /// The event tuple of a command made since the history was loaded.
    tuple: Option<Py<PyTuple>>,
}

enum Target {
    Future(Py<CommandFuture>),
    Timer(Py<TimerHandle>),
}

/// Something to run.
pub(super) enum Ready {
    Handle(Py<Handle>),
    Wake {
        callback: Py<PyAny>,
        future: Py<CommandFuture>,
        context: Py<PyAny>,
    },
}

/// The live tasks are looked through for ended ones when the list has grown by so many.
const TASKS_SWEEP: usize = 64;

/// One run: an event loop whose time, timers and order come from a history.
#[pyclass(module = "durable._core", name = "Loop", subclass, weakref)]
pub struct EventLoop {
    run_id: [u8; 16],
    replay: Replay<PyBackedBytes, Slot>,
    hook: Py<PyAny>,
    context: Py<PyAny>,
    ready: VecDeque<Ready>,
    effects: Vec<Py<PyTuple>>,
    /// Every unfinished task, so that none is collected before its time.
    tasks: Vec<Py<PyAny>>,
    tasks_sweep_at: usize,
    patches: HashMap<String, bool>,
    main: Option<Py<PyAny>>,
    main_done: bool,
    finishing: bool,
    /// Ask the hook before each fact, once nothing is ready.
    #[pyo3(get, set)]
    watch_idle: bool,
    /// The code that runs has to suspend at its next await: it cancelled a task, maybe its own.
    #[pyo3(get, set)]
    must_suspend: bool,
    entered: bool,
    /// A value is being produced to be recorded: no command may come between.
    recording: bool,
    dead: bool,
    failure: Option<PyErr>,
}

impl EventLoop {
    fn check_recording(&self) -> PyResult<()> {
        if self.recording {
            let message = "a value that is recorded must be made without asking the run for more";
            return Err(PyRuntimeError::new_err(message));
        }
        Ok(())
    }

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

    /// Queue it, unless the loop is dead. What is not queued comes back, to be dropped when the
    /// loop is no longer borrowed: dropping it may run code.
    pub(super) fn push_ready(&mut self, ready: Ready) -> Option<Ready> {
        if self.dead {
            return Some(ready);
        }
        self.ready.push_back(ready);
        None
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

    /// The code and its history part: nothing of this run counts any more.
    fn fail(&mut self, py: Python<'_>, error: crate::Error) -> PyErr {
        let error = to_py_err(py, error);
        self.dead = true;
        self.failure = Some(error.clone_ref(py));
        error
    }

    /// Make a command. Id 0 when the loop is dead: whoever waits then waits for ever.
    fn make(slf: &Bound<'_, Self>, command: &Command<'_>, target: Option<Target>) -> PyResult<u32> {
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
            let tuple = command_tuple(py, id, command)?;
            let mut this = slf.borrow_mut();
            if let Some(slot) = this.replay.slot_mut(id) {
                slot.tuple = Some(tuple.clone_ref(py));
            }
            this.effects.push(tuple);
        }
        Ok(id)
    }

    /// Make a command and the future of its outcome.
    pub(super) fn start(
        slf: &Bound<'_, Self>,
        command: &Command<'_>,
        plain: u8,
        decoder: Option<Decoder>,
        wait_cancel: bool,
    ) -> PyResult<Py<CommandFuture>> {
        let event_loop = slf.clone().unbind();
        let future = CommandFuture::new(event_loop, command.kind, plain, decoder, wait_cancel);
        let future = new_tracked(slf.py(), future)?;
        let target = Target::Future(future.clone_ref(slf.py()));
        let id = Self::make(slf, command, Some(target))?;
        future.borrow_mut(slf.py()).set_id(id);
        Ok(future)
    }

    /// The code no longer wants the outcome of a command.
    pub(super) fn cancel_command(
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

    pub(super) fn cancel_timer(slf: &Bound<'_, Self>, id: u32) -> PyResult<()> {
        Self::cancel_command(slf, id, Kind::TimerStarted, false)
    }

    /// The outcome of `future` when it is the next thing in history and nothing else can run before
    /// it: then suspending and waking up again would come to the same. Nothing else: no callback is
    /// ready, nobody else waits for this future, no condition is watched, no task was cancelled, and
    /// the main task goes on (once it is done, the run ends before the next fact).
    #[inline]
    pub(super) fn outcome_at_hand(
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
        let pending = slf.borrow_mut().replay.resolve(reference);
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

    /// Run until nothing is ready; when the main task is done, let the engine end the run.
    fn settle(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::run_queue(slf)?;
        while slf.borrow().watch_idle && !slf.borrow().dead {
            let hook = slf.borrow().hook.clone_ref(slf.py());
            hook.bind(slf.py()).call_method0("on_idle")?;
            if slf.borrow().ready.is_empty() {
                break;
            }
            Self::run_queue(slf)?;
        }
        let finish = {
            let mut this = slf.borrow_mut();
            let finish = this.main_done && !this.finishing && !this.dead;
            this.finishing |= finish;
            finish
        };
        if finish {
            let hook = slf.borrow().hook.clone_ref(slf.py());
            hook.bind(slf.py()).call_method0("on_finish")?;
            Self::run_queue(slf)?;
        }
        let failure = slf.borrow_mut().failure.take();
        failure.map_or(Ok(()), Err)
    }

    fn run_queue(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        loop {
            let next = {
                let mut this = slf.borrow_mut();
                this.must_suspend = false;
                if this.dead {
                    None
                } else {
                    this.ready.pop_front()
                }
            };
            let outcome = match next {
                None => return Ok(()),
                Some(Ready::Wake {
                    callback,
                    future,
                    context,
                }) => {
                    let args = PyTuple::new(py, [future])?;
                    run_in_context(context.bind(py), callback.bind(py), &args)
                }
                Some(Ready::Handle(handle)) => {
                    let call = handle.borrow_mut(py).take();
                    let Some(call) = call else { continue };
                    let args = call.args.bind(py);
                    run_in_context(call.context.bind(py), call.callback.bind(py), args)
                }
            };
            if let Err(error) = outcome {
                Self::report(slf, error)?;
            }
        }
    }

    /// An exception that a callback let through: told to the loop's handler, unless it means to end
    /// the process.
    fn report(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        // CancelledError and GeneratorExit are no Exception either, but they end nothing.
        let is_harmless = error.is_instance_of::<PyException>(py)
            || error.is_instance_of::<CancelledError>(py)
            || error.is_instance_of::<PyGeneratorExit>(py);
        if !is_harmless {
            slf.borrow_mut().dead = true;
            return Err(error);
        }
        let about = PyDict::new(py);
        about.set_item("message", "Exception in callback")?;
        about.set_item("exception", error.value(py))?;
        slf.call_method1("call_exception_handler", (about,))?;
        Ok(())
    }

    fn enter<'py>(slf: &Bound<'py, Self>) -> PyResult<Entered<'py>> {
        {
            let mut this = slf.borrow_mut();
            if this.entered {
                return Err(PyRuntimeError::new_err("this run is already running"));
            }
            this.entered = true;
        }
        Entered::new(slf)
    }
}

/// While it lives, this thread runs the code of one loop; afterwards all is as before.
struct Entered<'py> {
    event_loop: Bound<'py, EventLoop>,
    /// What was current before, once this loop is.
    previous: Option<Option<Py<EventLoop>>>,
    running: Option<Bound<'py, PyAny>>,
    hooks: Option<Bound<'py, PyTuple>>,
}

impl<'py> Entered<'py> {
    fn new(event_loop: &Bound<'py, EventLoop>) -> PyResult<Self> {
        let py = event_loop.py();
        let mut entered = Self {
            event_loop: event_loop.clone(),
            previous: None,
            running: None,
            hooks: None,
        };
        entered.running = Some(cached(py, &GET_RUNNING, "asyncio", "_get_running_loop")?.call0()?);
        cached(py, &SET_RUNNING, "asyncio", "_set_running_loop")?.call1((event_loop,))?;
        let hooks = cached(py, &GET_HOOKS, "sys", "get_asyncgen_hooks")?.call0()?;
        let hooks = hooks.cast_into::<PyTuple>()?;
        let finalizer = event_loop.getattr(pyo3::intern!(py, "_finalize_asyncgen"))?;
        entered.hooks = Some(hooks);
        cached(py, &SET_HOOKS, "sys", "set_asyncgen_hooks")?.call1((py.None(), finalizer))?;
        // Last, as it is undone first: what the audit hook hears of until then is not the code's.
        entered.previous = Some(CURRENT.replace(Some(event_loop.clone().unbind())));
        Ok(entered)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let py = self.event_loop.py();
        let pending = PyErr::take(py);
        if let Some(previous) = self.previous.take() {
            drop(CURRENT.replace(previous));
        }
        if let Some(hooks) = self.hooks.take() {
            let _ = cached(py, &SET_HOOKS, "sys", "set_asyncgen_hooks")
                .and_then(|set| set.call1(hooks));
        }
        if let Some(running) = self.running.take() {
            let _ = cached(py, &SET_RUNNING, "asyncio", "_set_running_loop")
                .and_then(|set| set.call1((running,)));
        }
        self.event_loop.borrow_mut().entered = false;
        if let Some(pending) = pending {
            pending.restore(py);
        }
    }
}

static GET_RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static SET_RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static GET_HOOKS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static SET_HOOKS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

fn cached<'py>(
    py: Python<'py>,
    cell: &'static PyOnceLock<Py<PyAny>>,
    module: &str,
    name: &str,
) -> PyResult<Bound<'py, PyAny>> {
    cell.import(py, module, name).cloned()
}

fn json_loads(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    cached(py, &LOADS, "msgspec.json", "decode")
}

fn kind_of(number: u8) -> PyResult<Kind> {
    Kind::from_number(number)
        .ok_or_else(|| PyValueError::new_err(format!("no such event kind: {number}")))
}

#[pymethods]
impl EventLoop {
    #[new]
    fn new(py: Python<'_>, run_id: &[u8], hook: Py<PyAny>) -> PyResult<Self> {
        let run_id = run_id_bytes(run_id)?;
        Ok(Self {
            run_id,
            replay: Replay::new(History::new(&run_id)),
            hook,
            context: py.None(),
            ready: VecDeque::new(),
            effects: Vec::new(),
            tasks: Vec::new(),
            tasks_sweep_at: TASKS_SWEEP,
            patches: HashMap::new(),
            main: None,
            main_done: false,
            finishing: false,
            watch_idle: false,
            must_suspend: false,
            entered: false,
            recording: false,
            dead: false,
            failure: None,
        })
    }

    // -- driving it -------------------------------------------------------------------------------

    #[pyo3(signature = (batches, head_hash=None))]
    fn load(
        slf: &Bound<'_, Self>,
        batches: Vec<PyBackedBytes>,
        head_hash: Option<i64>,
    ) -> PyResult<()> {
        let run_id = slf.borrow().run_id;
        let history = load_history(slf.py(), &run_id, batches, head_hash)?;
        let mut this = slf.borrow_mut();
        if this.replay.event_count() > 0 {
            return Err(PyRuntimeError::new_err("this run has its history already"));
        }
        this.replay = Replay::new(history);
        Ok(())
    }

    fn replay(slf: &Bound<'_, Self>) -> PyResult<()> {
        let _entered = Self::enter(slf)?;
        let py = slf.py();
        loop {
            Self::settle(slf)?;
            let fact = {
                let mut this = slf.borrow_mut();
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

    fn deliver(
        slf: &Bound<'_, Self>,
        kind: u8,
        r#ref: u32,
        time_us: u64,
        name: Option<String>,
        meta: Option<Py<PyBytes>>,
        payload: Option<Py<PyBytes>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let kind = kind_of(kind)?;
        if !kind.is_inbound() {
            return Err(PyValueError::new_err(format!(
                "{} is not a fact",
                kind.name()
            )));
        }
        let _entered = Self::enter(slf)?;
        {
            let mut this = slf.borrow_mut();
            if this.dead || this.replay.is_ended() {
                return Err(PyRuntimeError::new_err("this run takes no more facts"));
            }
            if this.replay.is_replaying() {
                return Err(PyRuntimeError::new_err("replay the history first"));
            }
            let fits = !kind.is_outcome()
                || this
                    .replay
                    .pending(r#ref)
                    .is_some_and(|it| kind.answers(it.kind));
            if !fits {
                let message = format!("{} answers no waiting command {}", kind.name(), r#ref);
                return Err(PyValueError::new_err(message));
            }
            let fact = Command {
                reference: r#ref,
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
            Self::dispatch_outcome(slf, kind, r#ref, |future, name| {
                let allowed = future.borrow().plain();
                let payload = payload.map(|payload| payload.into_bound(py));
                if !kind.is_failure()
                    && let Some(payload) = &payload
                    && let Some(value) = get_plain(py, payload.as_bytes(), allowed)
                {
                    return Ok(value);
                }
                Self::outcome_value(slf, kind, r#ref, name, payload, future)
            })?;
        } else {
            Self::dispatch_fact(slf, kind, r#ref, name, meta, payload)?;
        }
        Self::settle(slf)
    }

    #[allow(clippy::type_complexity)] // the tuple is the contract of `_core.pyi`
    fn take(slf: &Bound<'_, Self>) -> PyResult<Option<(Py<PyBytes>, i64, u32, u32, Py<PyList>)>> {
        let py = slf.py();
        let (taken, effects) = {
            let mut this = slf.borrow_mut();
            if this.dead {
                return Ok(None);
            }
            (this.replay.take(), std::mem::take(&mut this.effects))
        };
        let Some((batch, chain, first_id, count)) = taken else {
            return Ok(None);
        };
        let effects = PyList::new(py, effects)?.unbind();
        let batch = PyBytes::new(py, &batch).unbind();
        Ok(Some((batch, chain as i64, first_id, count, effects)))
    }

    fn pending(slf: &Bound<'_, Self>) -> PyResult<Py<PyList>> {
        let py = slf.py();
        let list = PyList::empty(py);
        let ids = slf.borrow().replay.pending_ids();
        for id in ids {
            let tuple = {
                let this = slf.borrow();
                match this.replay.pending(id) {
                    Some(it) => match (&it.view, &it.slot.tuple) {
                        (Some(view), _) => Some(event_tuple(py, this.replay.history(), view)?),
                        (None, Some(tuple)) => Some(tuple.clone_ref(py)),
                        (None, None) => None,
                    },
                    None => None,
                }
            };
            if let Some(tuple) = tuple {
                list.append(tuple)?;
            }
        }
        Ok(list.unbind())
    }

    fn is_pending(&self, r#ref: u32) -> bool {
        !self.dead && !self.replay.is_ended() && self.replay.pending(r#ref).is_some()
    }

    fn set_main(slf: &Bound<'_, Self>, task: Py<PyAny>) -> PyResult<()> {
        let ended = slf.getattr("_main_ended")?;
        task.bind(slf.py())
            .call_method1("add_done_callback", (ended,))?;
        slf.borrow_mut().main = Some(task);
        Ok(())
    }

    fn _main_ended(&mut self, _task: &Bound<'_, PyAny>) {
        self.main_done = true;
    }

    fn run_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let _entered = Self::enter(slf)?;
        Self::settle(slf)
    }

    fn evict(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let _entered = Self::enter(slf)?;
        let (tasks, pending, ready, main, effects, failure) = {
            let mut this = slf.borrow_mut();
            this.dead = true;
            (
                std::mem::take(&mut this.tasks),
                this.replay.drain_pending(),
                std::mem::take(&mut this.ready),
                this.main.take(),
                std::mem::take(&mut this.effects),
                this.failure.take(),
            )
        };
        for pending in &pending {
            match &pending.slot.target {
                Target::Future(future) => CommandFuture::abandon(future.bind(py)),
                Target::Timer(timer) => drop(timer.borrow_mut(py).take()),
            }
        }
        for task in &tasks {
            close_task(task.bind(py))?;
        }
        // Tasks that `finally` blocks made just now: never started, so closing them runs no code.
        let late = std::mem::take(&mut slf.borrow_mut().tasks);
        for task in &late {
            close_task(task.bind(py))?;
        }
        let nothing = py.None();
        let context = std::mem::replace(&mut slf.borrow_mut().context, nothing);
        drop((tasks, late, pending, ready, main, effects, failure, context));
        Ok(())
    }

    // -- making commands --------------------------------------------------------------------------

    #[pyo3(signature = (
        kind, *, r#ref=0, time_us=0, name=None, options=None, meta=None, payload=None,
        decoder=None, wait_cancel=false
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of the Python method
    fn command(
        slf: &Bound<'_, Self>,
        kind: u8,
        r#ref: u32,
        time_us: u64,
        name: Option<&str>,
        options: Option<&str>,
        meta: Option<&[u8]>,
        payload: Option<&[u8]>,
        decoder: Option<Py<PyAny>>,
        wait_cancel: bool,
    ) -> PyResult<Py<CommandFuture>> {
        let kind = kind_of(kind)?;
        if !kind.awaits_outcome() {
            let message = format!("{} has no outcome to wait for; use emit()", kind.name());
            return Err(PyValueError::new_err(message));
        }
        let command = Command {
            kind,
            reference: r#ref,
            time: time_us,
            name,
            options,
            meta,
            payload,
        };
        let allowed = if decoder.is_none() { plain::ALL } else { 0 };
        let decoder = decoder.map(Decoder::Call);
        Self::start(slf, &command, allowed, decoder, wait_cancel)
    }

    #[pyo3(signature = (
        kind, *, r#ref=0, time_us=0, name=None, options=None, meta=None, payload=None
    ))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of the Python method
    fn emit(
        slf: &Bound<'_, Self>,
        kind: u8,
        r#ref: u32,
        time_us: u64,
        name: Option<&str>,
        options: Option<&str>,
        meta: Option<&[u8]>,
        payload: Option<&[u8]>,
    ) -> PyResult<u32> {
        let kind = kind_of(kind)?;
        if kind.is_inbound() || kind.awaits_outcome() {
            return Err(PyValueError::new_err(format!(
                "{} cannot be emitted",
                kind.name()
            )));
        }
        let command = Command {
            kind,
            reference: r#ref,
            time: time_us,
            name,
            options,
            meta,
            payload,
        };
        Self::make(slf, &command, None)
    }

    fn record(
        slf: &Bound<'_, Self>,
        kind: u8,
        name: Option<&str>,
        produce: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyBytes>> {
        let py = slf.py();
        let command = Command {
            name,
            ..Command::new(kind_of(kind)?)
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

    fn patched(slf: &Bound<'_, Self>, name: &str) -> PyResult<bool> {
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

    fn skip_marker(slf: &Bound<'_, Self>, name: &str) -> PyResult<bool> {
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

    // -- facts --------------------------------------------------------------------------------------

    #[getter]
    fn get_context(&self, py: Python<'_>) -> Py<PyAny> {
        self.context.clone_ref(py)
    }

    #[setter]
    fn set_context(slf: &Bound<'_, Self>, context: Py<PyAny>) {
        let old = std::mem::replace(&mut slf.borrow_mut().context, context);
        drop(old);
    }

    #[getter]
    fn now_us(&self) -> u64 {
        self.replay.now()
    }

    #[getter]
    fn position(&self) -> u32 {
        self.replay.position()
    }

    #[getter]
    fn event_count(&self) -> u32 {
        self.replay.event_count()
    }

    #[getter]
    fn history_bytes(&self) -> usize {
        self.replay.byte_count()
    }

    #[getter]
    fn is_replaying(&self) -> bool {
        self.replay.is_replaying()
    }

    #[getter]
    fn is_finished(&self) -> bool {
        self.replay.is_ended()
    }

    #[getter]
    fn is_dead(&self) -> bool {
        self.dead
    }

    // -- the asyncio face ----------------------------------------------------------------------------

    fn time(&self) -> f64 {
        self.replay.now() as f64 / 1e6
    }

    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon(
        slf: &Bound<'_, Self>,
        callback: Py<PyAny>,
        args: Py<PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<Handle>> {
        let py = slf.py();
        let context = match context {
            Some(context) if !context.is_none(py) => context,
            _ => copy_context(py)?,
        };
        let handle = new_tracked(
            py,
            Handle::new(Call {
                callback,
                args,
                context,
            }),
        )?;
        let refused = slf
            .borrow_mut()
            .push_ready(Ready::Handle(handle.clone_ref(py)));
        drop(refused);
        Ok(handle)
    }

    #[pyo3(signature = (delay, callback, *args, context=None))]
    fn call_later(
        slf: &Bound<'_, Self>,
        delay: f64,
        callback: Py<PyAny>,
        args: Py<PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<TimerHandle>> {
        let micros = micros(delay)?;
        let due = slf.borrow().replay.now().saturating_add(micros);
        Self::timer(slf, due, callback, args, context)
    }

    #[pyo3(signature = (when, callback, *args, context=None))]
    fn call_at(
        slf: &Bound<'_, Self>,
        when: f64,
        callback: Py<PyAny>,
        args: Py<PyTuple>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<Py<TimerHandle>> {
        Self::timer(slf, micros(when)?, callback, args, context)
    }

    fn create_future<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        static FUTURE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        let kwargs = PyDict::new(py);
        kwargs.set_item(pyo3::intern!(py, "loop"), slf)?;
        cached(py, &FUTURE, "asyncio", "Future")?.call((), Some(&kwargs))
    }

    #[pyo3(signature = (coro, *, name=None, context=None, **_kwargs))]
    fn create_task(
        slf: &Bound<'_, Self>,
        coro: Py<PyAny>,
        name: Option<Py<PyAny>>,
        context: Option<Py<PyAny>>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let hook = slf.borrow().hook.clone_ref(py);
        let task = hook
            .bind(py)
            .call_method1("make_task", (coro, name, context))?
            .unbind();
        let sweep = {
            let mut this = slf.borrow_mut();
            this.tasks.push(task.clone_ref(py));
            this.tasks.len() >= this.tasks_sweep_at
        };
        if sweep {
            Self::sweep_tasks(slf)?;
        }
        Ok(task)
    }

    fn _finalize_asyncgen(slf: &Bound<'_, Self>, agen: &Bound<'_, PyAny>) -> PyResult<()> {
        if !slf.borrow().dead {
            let closing = agen.call_method0("aclose")?;
            slf.call_method1("create_task", (closing,))?;
        }
        Ok(())
    }

    #[getter]
    fn _tasks(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        self.tasks.iter().map(|task| task.clone_ref(py)).collect()
    }

    fn get_debug(&self) -> bool {
        false
    }

    fn is_running(&self) -> bool {
        self.entered
    }

    fn is_closed(&self) -> bool {
        self.dead
    }

    fn call_exception_handler(slf: &Bound<'_, Self>, context: &Bound<'_, PyDict>) -> PyResult<()> {
        let py = slf.py();
        let logger = py
            .import("logging")?
            .call_method1("getLogger", ("durable.workflow",))?;
        let message = context.get_item("message")?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("exc_info", context.get_item("exception")?)?;
        logger.call_method("error", ("%s", message), Some(&kwargs))?;
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.hook)?;
        visit.call(&self.context)?;
        visit.call(&self.main)?;
        for task in &self.tasks {
            visit.call(task)?;
        }
        for ready in &self.ready {
            match ready {
                Ready::Handle(handle) => visit.call(handle)?,
                Ready::Wake {
                    callback,
                    future,
                    context,
                } => {
                    visit.call(callback)?;
                    visit.call(future)?;
                    visit.call(context)?;
                }
            }
        }
        for slot in self.replay.slots() {
            match &slot.target {
                Target::Future(future) => visit.call(future)?,
                Target::Timer(timer) => visit.call(timer)?,
            }
        }
        Ok(())
    }

    fn __clear__(&mut self) {
        self.dead = true;
        self.tasks.clear();
        self.ready.clear();
        self.main = None;
        drop(self.replay.drain_pending());
    }
}

impl EventLoop {
    fn timer(
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

    /// Forget the tasks that are done.
    fn sweep_tasks(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let tasks = std::mem::take(&mut slf.borrow_mut().tasks);
        let mut kept = Vec::with_capacity(tasks.len());
        let mut ended = Vec::new();
        for task in tasks {
            let done = task
                .bind(py)
                .call_method0(pyo3::intern!(py, "done"))?
                .is_truthy()?;
            if done {
                ended.push(task)
            } else {
                kept.push(task)
            }
        }
        let mut this = slf.borrow_mut();
        kept.append(&mut this.tasks);
        this.tasks = kept;
        this.tasks_sweep_at = this.tasks.len() * 2 + TASKS_SWEEP;
        drop(this);
        drop(ended);
        Ok(())
    }
}

fn micros(seconds: f64) -> PyResult<u64> {
    // 2**63 microseconds are 292,000 years: far from any real time, near enough for a sentinel.
    let micros = (seconds * 1e6).round();
    if micros.is_nan() || micros >= 9.2e18 {
        return Err(PyValueError::new_err(format!("not a time: {seconds} s")));
    }
    Ok(if micros < 0.0 { 0 } else { micros as u64 })
}

/// How often a task is asked to close in vain. Every time, it leaves one `finally` that awaits.
const CLOSE_TRIES: usize = 100;

/// Close the coroutine of an unfinished task, from the inside out: closed from the outside, a
/// `finally` that awaits would come to its caller as a RuntimeError, and go on when it is collected.
/// What refuses to end is kept for ever: collecting it would run its code outside of any run.
fn close_task(task: &Bound<'_, PyAny>) -> PyResult<()> {
    static GRAVEYARD: PyOnceLock<Py<PyList>> = PyOnceLock::new();
    let py = task.py();
    if task.call_method0("done")?.is_truthy()? {
        return Ok(());
    }
    let _ = task.setattr("_log_destroy_pending", false);
    let coroutine = task.call_method0("get_coro")?;
    if coroutine.is_none() {
        return Ok(());
    }
    let mut stack = vec![coroutine.clone()];
    let mut refusals = 0;
    while let Some(top) = stack.last() {
        if let Some(inner) = suspended_in(top) {
            stack.push(inner);
            continue;
        }
        let closed = top.call_method0("close");
        let refused = match &closed {
            Ok(_) => false,
            Err(error) => error.is_instance_of::<PyRuntimeError>(py) && is_suspended(top),
        };
        if !refused {
            stack.pop();
            continue;
        }
        refusals += 1;
        if refusals == CLOSE_TRIES {
            let graveyard = GRAVEYARD.get_or_init(py, || PyList::empty(py).unbind());
            return graveyard.bind(py).append(coroutine);
        }
    }
    Ok(())
}

/// The coroutine or generator that a suspended one awaits, if that is suspended itself.
fn suspended_in<'py>(coroutine: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let awaited = coroutine
        .getattr("cr_await")
        .or_else(|_| coroutine.getattr("gi_yieldfrom"));
    awaited.ok().filter(is_suspended)
}

/// Whether it has a frame left to close: one that runs or ended has none, and others do not say.
fn is_suspended(coroutine: &Bound<'_, PyAny>) -> bool {
    let frame = coroutine
        .getattr("cr_frame")
        .or_else(|_| coroutine.getattr("gi_frame"));
    frame.is_ok_and(|frame| !frame.is_none())
}
