//! Async generators: which were begun by the code of a run, and what becomes of one that is let go of
//! before its end.
//!
//! Each thread has two hooks for them, one that is told of each when it begins, and one that is to
//! close what is let go of. Those of this module stay with a thread once it has stepped a run: setting
//! hooks and setting them back took a tenth of every step. They pass on whatever is not of a run to the
//! hooks that the thread had before. Whoever sets others afterwards is heard of by the audit hook.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use pyo3::PyTraverseError;
use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyWeakrefMethods, PyWeakrefReference};

use super::future::hears_of_hooks;
use super::{EventLoop, current_loop, is_running_code};

/// Which run began the async generator at an address. Entries of ended ones stay until another is begun
/// there, so there are no more than generators were ever alive at once.
///
/// Held for one look at the map, never while Python code can run.
static OWNERS: LazyLock<Mutex<HashMap<usize, Py<PyWeakrefReference>>>> =
    LazyLock::new(Mutex::default);

#[derive(Clone, Copy, PartialEq)]
enum Hooks {
    /// Whose they are has to be asked.
    Unknown,
    /// They are ours.
    Ours,
    /// They were, until the code of a run that this thread is in set others.
    SetByCode,
}

thread_local! {
    static HOOKS: Cell<Hooks> = const { Cell::new(Hooks::Unknown) };
    /// The hooks of this thread, unless they are unknown.
    static PAIR: RefCell<Option<Py<PyTuple>>> = const { RefCell::new(None) };
}

/// Told of each async generator that begins.
#[pyclass(module = "durable._core", frozen)]
pub struct BeginHook {
    previous: Py<PyAny>,
}

#[pymethods]
impl BeginHook {
    fn __call__(&self, agen: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = agen.py();
        let owner = match current_loop(py) {
            Some(owner) => Some(PyWeakrefReference::new(owner.bind(py))?.unbind()),
            None => None,
        };
        let is_of_run = owner.is_some();
        let before = note_owner(agen, owner);
        drop(before);
        if !is_of_run && !self.previous.is_none(py) {
            self.previous.call1(py, (agen,))?;
        }
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.previous)
    }
}

/// Told of each async generator that is let go of before its end.
#[pyclass(module = "durable._core", frozen)]
pub struct CloseHook {
    previous: Py<PyAny>,
}

#[pymethods]
impl CloseHook {
    fn __call__(&self, agen: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = agen.py();
        if let Some(owner) = note_owner(agen, None) {
            // Of a run that is gone: nothing of it runs any more.
            return match owner.bind(py).upgrade_as::<EventLoop>()? {
                Some(owner) => EventLoop::close_generator(&owner, agen),
                None => Ok(()),
            };
        }
        if self.previous.is_none(py) {
            return close_at_once(agen);
        }
        self.previous.call1(py, (agen,)).map(drop)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.previous)
    }
}

/// See to it that this thread's hooks are ours.
pub(super) fn hook_thread(py: Python<'_>) -> PyResult<()> {
    if HOOKS.get() == Hooks::Ours {
        return Ok(());
    }
    let hooks = GET
        .import(py, "sys", "get_asyncgen_hooks")?
        .call0()?
        .cast_into::<PyTuple>()?;
    let (begin, close) = (hooks.get_item(0)?, hooks.get_item(1)?);
    let are_ours =
        begin.is_exact_instance_of::<BeginHook>() && close.is_exact_instance_of::<CloseHook>();
    let pair = if are_ours {
        hooks
    } else {
        let previous = begin.unbind();
        let begin = Bound::new(py, BeginHook { previous })?.into_any();
        let previous = close.unbind();
        let close = Bound::new(py, CloseHook { previous })?.into_any();
        PyTuple::new(py, [begin, close])?
    };
    if !are_ours {
        SET.import(py, "sys", "set_asyncgen_hooks")?
            .call1(pair.clone())?;
    }
    if hears_of_hooks() {
        drop(PAIR.replace(Some(pair.unbind())));
        HOOKS.set(Hooks::Ours);
    }
    Ok(())
}

/// The code of a run was left: hooks that it set were for itself.
pub(super) fn hook_thread_again(py: Python<'_>) -> PyResult<()> {
    if HOOKS.get() != Hooks::SetByCode {
        return Ok(());
    }
    let pair = PAIR.with_borrow(|pair| pair.as_ref().map(|pair| pair.clone_ref(py)));
    if let Some(pair) = pair {
        // For then nothing is made of the events of setting them.
        HOOKS.set(Hooks::Unknown);
        SET.import(py, "sys", "set_asyncgen_hooks")?
            .call1(pair.into_bound(py))?;
        HOOKS.set(Hooks::Ours);
    }
    Ok(())
}

/// An audit event came: whoever sets the hooks of this thread is announced by one (or two: their names
/// end in `_firstiter` and `_finalizer`).
pub(super) fn note_event(event: &CStr) {
    // Most events come to threads that never stepped a run.
    if HOOKS.get() == Hooks::Unknown || !event.to_bytes().starts_with(b"sys.set_asyncgen_hook") {
        return;
    }
    if is_running_code() {
        HOOKS.set(Hooks::SetByCode);
        return;
    }
    HOOKS.set(Hooks::Unknown);
    // Said to PyO3, which would else put off letting go of them: the caller is attached.
    Python::try_attach(|_| drop(PAIR.try_with(RefCell::take)));
}

/// Note whose an async generator is, None for nobody's; whose the one at its address was.
fn note_owner(
    agen: &Bound<'_, PyAny>,
    owner: Option<Py<PyWeakrefReference>>,
) -> Option<Py<PyWeakrefReference>> {
    let address = agen.as_ptr() as usize;
    let mut owners: MutexGuard<'_, _> = OWNERS.lock().unwrap_or_else(PoisonError::into_inner);
    match owner {
        Some(owner) => owners.insert(address, owner),
        None => owners.remove(&address),
    }
}

/// What the interpreter does without a hook: close it, if that takes no waiting.
fn close_at_once(agen: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = agen.py();
    let closing = agen.call_method0(pyo3::intern!(py, "aclose"))?;
    match closing.call_method1(pyo3::intern!(py, "send"), (py.None(),)) {
        Ok(_) => Err(PyRuntimeError::new_err(
            "async generator ignored GeneratorExit",
        )),
        Err(error) if error.is_instance_of::<PyStopIteration>(py) => Ok(()),
        Err(error) => Err(error),
    }
}

static GET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static SET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
