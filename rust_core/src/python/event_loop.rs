//! One run: a deterministic asyncio event loop joined with the replay of its history.
//!
//! Here are its state and its face to Python. What it does is in the folder: `commands` that the code
//! makes, `facts` that it is given, a `turn` of running what is ready, and `leaving` memory.
#![forbid(unsafe_code)]

mod commands;
mod facts;
mod leaving;
mod turn;

pub(super) use facts::NewFact;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use pyo3::PyTraverseError;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use smallvec::SmallVec;

use super::encode::plain;
use super::future::{CommandFuture, Decoder, copy_context, new_tracked};
use super::handle::{Call, Handle, TimerHandle};
use super::tools::{Said, event_tuple, load_history};
use super::{run_id_bytes, to_py_err};
use crate::event::{Command, Kind};
use crate::history::History;
use crate::replay::Replay;

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

/// What is new since the last `take`.
pub(super) struct Taken {
    pub batch: Py<PyBytes>,
    pub chain: i64,
    pub first_id: u32,
    pub count: u32,
    /// The commands, as event tuples.
    pub events: SmallVec<[Py<PyTuple>; 1]>,
}

impl Taken {
    /// As Python gets it.
    pub(super) fn into_tuple(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        let events = PyList::new(py, self.events)?;
        (self.batch, self.chain, self.first_id, self.count, events).into_pyobject(py)
    }
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

/// Bits of a serial: a hash that Python takes as it is.
const SERIAL_MASK: u64 = (1 << 61) - 1;
/// Spreads the serials of a run, so that those of many runs in one process do not meet.
const SERIAL_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

thread_local! {
    /// Where batches are put together.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What was needed for a batch larger than this is given back.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

/// One run: an event loop whose time, timers and order come from a history.
#[pyclass(module = "durable._core", name = "Loop", subclass, weakref)]
pub struct EventLoop {
    run_id: [u8; 16],
    replay: Replay<PyBackedBytes, Slot>,
    hook: Py<PyAny>,
    context: Py<PyAny>,
    ready: VecDeque<Ready>,
    effects: SmallVec<[Py<PyTuple>; 1]>,
    /// Every unfinished task, so that none is collected before its time.
    tasks: Vec<Py<PyAny>>,
    tasks_sweep_at: usize,
    patches: HashMap<String, bool>,
    /// The last number given as a hash.
    serial: u64,
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
    /// What looked at the run made a command: nothing of what is in memory may be recorded.
    #[pyo3(get, set)]
    is_spoilt: bool,
    failure: Option<PyErr>,
}

impl EventLoop {
    /// The run's own time.
    pub(super) fn now(&self) -> u64 {
        self.replay.now()
    }

    /// What is new since the last time. A dead loop has nothing.
    pub(super) fn take_new(slf: &Bound<'_, Self>) -> PyResult<Option<Taken>> {
        let mut batch = SCRATCH.take();
        batch.clear();
        let (taken, events) = {
            let mut this = slf.try_borrow_mut()?;
            if this.dead {
                return Ok(None);
            }
            let taken = this.replay.take_into(&mut batch);
            (taken, std::mem::take(&mut this.effects))
        };
        let taken = taken.map(|(chain, first_id, count)| Taken {
            batch: PyBytes::new(slf.py(), &batch).unbind(),
            chain: chain as i64,
            first_id,
            count,
            events,
        });
        if batch.capacity() <= SCRATCH_BYTES_MAX {
            SCRATCH.set(batch);
        }
        Ok(taken)
    }

    /// An async generator that the run's code began is let go of unfinished: close it, in a task of the run.
    pub(super) fn close_generator(slf: &Bound<'_, Self>, agen: &Bound<'_, PyAny>) -> PyResult<()> {
        if !slf.borrow().dead {
            let closing = agen.call_method0("aclose")?;
            slf.call_method1("create_task", (closing,))?;
        }
        Ok(())
    }

    fn check_recording(&self) -> PyResult<()> {
        if self.recording {
            let message = "a value that is recorded must be made without asking the run for more";
            return Err(PyRuntimeError::new_err(message));
        }
        Ok(())
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

    /// The code and its history part: nothing of this run counts any more.
    fn fail(&mut self, py: Python<'_>, error: crate::Error) -> PyErr {
        let error = to_py_err(py, error);
        self.dead = true;
        self.failure = Some(error.clone_ref(py));
        error
    }
}

fn cached<'py>(
    py: Python<'py>,
    cell: &'static PyOnceLock<Py<PyAny>>,
    module: &str,
    name: &str,
) -> PyResult<Bound<'py, PyAny>> {
    cell.import(py, module, name).cloned()
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
            effects: SmallVec::new(),
            tasks: Vec::new(),
            tasks_sweep_at: TASKS_SWEEP,
            patches: HashMap::new(),
            serial: u128::from_be_bytes(run_id) as u64,
            main: None,
            main_done: false,
            finishing: false,
            watch_idle: false,
            must_suspend: false,
            entered: false,
            recording: false,
            dead: false,
            is_spoilt: false,
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
        Self::replay_history(slf)
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
        let fact = NewFact {
            kind: kind_of(kind)?,
            reference: r#ref,
            time_us,
            name,
            meta,
            payload,
        };
        Self::deliver_fact(slf, fact)
    }

    fn offer(
        slf: &Bound<'_, Self>,
        kind: u8,
        r#ref: u32,
        time_us: u64,
        name: Option<String>,
        meta: Option<Py<PyBytes>>,
        payload: Option<Py<PyBytes>>,
    ) -> PyResult<bool> {
        let fact = NewFact {
            kind: kind_of(kind)?,
            reference: r#ref,
            time_us,
            name,
            meta,
            payload,
        };
        Self::offer_fact(slf, fact)
    }

    fn take<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let py = slf.py();
        let taken = Self::take_new(slf)?;
        taken.map(|taken| taken.into_tuple(py)).transpose()
    }

    fn pending(slf: &Bound<'_, Self>) -> PyResult<Py<PyList>> {
        let py = slf.py();
        let list = PyList::empty(py);
        let ids = slf.try_borrow()?.replay.pending_ids();
        for id in ids {
            let tuple = {
                let this = slf.try_borrow()?;
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

    #[getter]
    fn pending_count(&self) -> usize {
        self.replay.pending_count()
    }

    fn set_main(slf: &Bound<'_, Self>, task: Py<PyAny>) -> PyResult<()> {
        Self::watch_main(slf, task)
    }

    fn _main_ended(&mut self, _task: &Bound<'_, PyAny>) {
        self.main_done = true;
    }

    fn next_serial(&mut self) -> u64 {
        self.serial = self.serial.wrapping_add(SERIAL_STEP);
        self.serial & SERIAL_MASK
    }

    fn run_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let _entered = Self::enter(slf)?;
        Self::settle(slf)
    }

    fn evict(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::leave(slf)
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
        Self::start(
            slf,
            &command,
            Said::default(),
            allowed,
            decoder,
            wait_cancel,
        )
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
        Self::record_value(slf, kind_of(kind)?, name, produce)
    }

    fn patched(slf: &Bound<'_, Self>, name: &str) -> PyResult<bool> {
        Self::take_patch(slf, name)
    }

    fn skip_marker(slf: &Bound<'_, Self>, name: &str) -> PyResult<bool> {
        Self::pass_patch(slf, name)
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
        if hook.is_none(py) {
            return Err(PyRuntimeError::new_err("this run has left memory"));
        }
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

fn micros(seconds: f64) -> PyResult<u64> {
    // 2**63 microseconds are 292,000 years: far from any real time, near enough for a sentinel.
    let micros = (seconds * 1e6).round();
    if micros.is_nan() || micros >= 9.2e18 {
        return Err(PyValueError::new_err(format!("not a time: {seconds} s")));
    }
    Ok(if micros < 0.0 { 0 } else { micros as u64 })
}
