//! Functions on whole histories, for clients and tools.
#![forbid(unsafe_code)]

use std::ffi::CStr;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use super::future::add_audit_hook;
use super::{EventLoop, current_loop, optional_bytes, run_id_bytes, to_py_err};
use crate::batch::{Writer, chain_start};
use crate::event::{Command, EventView, Kind, NO_NAME};
use crate::history::{Cursor, History};

/// Below this many bytes, checking is cheaper than letting go of the interpreter.
const DETACH_BYTES_MIN: usize = 1 << 20;

pub(super) fn load_history(
    py: Python<'_>,
    run_id: &[u8],
    batches: Vec<PyBackedBytes>,
    head_hash: Option<i64>,
) -> PyResult<History<PyBackedBytes>> {
    let run_id = run_id_bytes(run_id)?;
    let size: usize = batches.iter().map(|batch| batch.len()).sum();
    let check = || {
        let history = History::with_batches(&run_id, batches)?;
        if let Some(head) = head_hash {
            history.check_head(head as u64)?;
        }
        Ok(history)
    };
    let history = if size < DETACH_BYTES_MIN {
        check()
    } else {
        py.detach(check)
    };
    history.map_err(|error| to_py_err(py, error))
}

/// Return the first history batch of a run (RUN_STARTED) and its checksum.
#[pyfunction]
pub fn start_batch(
    py: Python<'_>,
    run_id: &[u8],
    workflow_type: &str,
    time_us: u64,
    meta: Option<&[u8]>,
    payload: Option<&[u8]>,
) -> PyResult<(Py<PyBytes>, i64)> {
    let run_id = run_id_bytes(run_id)?;
    let mut writer = Writer::default();
    let event = Command {
        name: Some(workflow_type),
        time: time_us,
        meta,
        payload,
        ..Command::new(Kind::RunStarted)
    };
    writer
        .push(&event, Some(time_us))
        .map_err(|error| to_py_err(py, error))?;
    let (batch, chain) = writer.take(1, chain_start(&run_id));
    Ok((PyBytes::new(py, &batch).unbind(), chain as i64))
}

/// Check a history without making objects; return the number of events.
#[pyfunction]
#[pyo3(signature = (run_id, batches, head_hash=None))]
pub fn verify(
    py: Python<'_>,
    run_id: &[u8],
    batches: Vec<PyBackedBytes>,
    head_hash: Option<i64>,
) -> PyResult<u32> {
    let history = load_history(py, run_id, batches, head_hash)?;
    history.check_events().map_err(|error| to_py_err(py, error))
}

/// Check and decode a history into event tuples.
#[pyfunction]
#[pyo3(signature = (run_id, batches, head_hash=None))]
pub fn decode(
    py: Python<'_>,
    run_id: &[u8],
    batches: Vec<PyBackedBytes>,
    head_hash: Option<i64>,
) -> PyResult<Py<PyList>> {
    let history = load_history(py, run_id, batches, head_hash)?;
    let mut cursor = Cursor::default();
    let events = PyList::empty(py);
    while let Some(event) = history
        .next(&mut cursor)
        .map_err(|error| to_py_err(py, error))?
    {
        events.append(event_tuple(py, &history, &event)?)?;
    }
    Ok(events.unbind())
}

pub(super) fn event_tuple(
    py: Python<'_>,
    history: &History<PyBackedBytes>,
    event: &EventView,
) -> PyResult<Py<PyTuple>> {
    let name = |index: u32| {
        (index != NO_NAME).then(|| String::from_utf8_lossy(history.name(index)).into_owned())
    };
    let tuple = (
        event.id,
        event.kind as u8,
        event.reference,
        event.time,
        name(event.name),
        name(event.options),
        optional_bytes(py, event.meta.map(|span| history.bytes(span))),
        optional_bytes(py, event.payload.map(|span| history.bytes(span))),
    );
    Ok(tuple.into_pyobject(py)?.unbind())
}

/// The words of a command as Python objects, where somebody has them.
#[derive(Clone, Copy, Default)]
pub(super) struct Said<'a> {
    pub name: Option<&'a Py<PyString>>,
    pub options: Option<&'a Py<PyString>>,
}

pub(super) fn command_tuple(
    py: Python<'_>,
    id: u32,
    command: &Command<'_>,
    said: Said<'_>,
) -> PyResult<Py<PyTuple>> {
    let object = |object: Option<&Py<PyString>>, text: &str| match object {
        Some(object) => object.bind(py).clone(),
        None => PyString::new(py, text),
    };
    let tuple = (
        id,
        command.kind as u8,
        command.reference,
        command.time,
        command.name.map(|name| object(said.name, name)),
        command.options.map(|options| object(said.options, options)),
        optional_bytes(py, command.meta),
        optional_bytes(py, command.payload),
    );
    Ok(tuple.into_pyobject(py)?.unbind())
}

static GUARDED: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

/// Watch workflow code with an audit hook, once per process: the first call counts.
#[pyfunction]
pub fn guard(py: Python<'_>, events: Py<PyAny>, judge: Py<PyAny>) -> PyResult<()> {
    if GUARDED.set(py, (events, judge)).is_ok() {
        add_audit_hook(py)?;
    }
    Ok(())
}

/// What the audit hook does with an event that workflow code causes.
pub(super) fn judge_event(event: &CStr, args: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = args.py();
    let Some((events, judge)) = GUARDED.get(py) else {
        return Ok(());
    };
    let event = PyString::new(py, &event.to_string_lossy());
    if events.bind(py).contains(&event)? {
        judge.call1(py, (event, args))?;
    }
    Ok(())
}

/// The loop whose workflow code runs on this thread right now, or None.
#[pyfunction]
pub fn current(py: Python<'_>) -> Option<Py<EventLoop>> {
    current_loop(py)
}
