//! One turn: make the loop the current one, and run callbacks until none is ready.
#![forbid(unsafe_code)]

use pyo3::exceptions::{PyException, PyGeneratorExit, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::{EventLoop, Ready, cached};
use crate::python::CURRENT;
use crate::python::future::{CancelledError, CommandFuture, run_in_context};
use crate::python::generators::{hook_thread, hook_thread_again};

impl EventLoop {
    /// Run until nothing is ready; when the main task is done, let the engine end the run.
    pub(super) fn settle(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::run_queue(slf)?;
        while slf.try_borrow().map(|this| this.watch_idle && !this.dead)? {
            let hook = slf.borrow().hook.clone_ref(slf.py());
            hook.bind(slf.py()).call_method0("on_idle")?;
            if slf.borrow().ready.is_empty() {
                break;
            }
            Self::run_queue(slf)?;
        }
        let finish = {
            let mut this = slf.try_borrow_mut()?;
            let finish = this.main_done && !this.finishing && !this.dead;
            this.finishing |= finish;
            finish
        };
        if finish {
            let hook = slf.borrow().hook.clone_ref(slf.py());
            hook.bind(slf.py()).call_method0("on_finish")?;
            Self::run_queue(slf)?;
        }
        let failure = slf.try_borrow_mut()?.failure.take();
        failure.map_or(Ok(()), Err)
    }

    /// The run ends with this task; it is kept like those that `create_task` made.
    pub(super) fn watch_main(slf: &Bound<'_, Self>, task: Py<PyAny>) -> PyResult<()> {
        let py = slf.py();
        let ended = slf.getattr(pyo3::intern!(py, "_main_ended"))?;
        task.bind(py)
            .call_method1(pyo3::intern!(py, "add_done_callback"), (ended,))?;
        let before = {
            let mut this = slf.try_borrow_mut()?;
            if !this.tasks.iter().any(|known| known.is(&task)) {
                this.tasks.push(task.clone_ref(py));
            }
            this.main.replace(task)
        };
        drop(before);
        Ok(())
    }

    fn run_queue(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        loop {
            let next = {
                let mut this = slf.try_borrow_mut()?;
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
                    let (callback, context) = (callback.into_bound(py), context.into_bound(py));
                    let given = CommandFuture::given(&future.into_bound(py), &callback)?;
                    run_in_context(&context, &callback, (given,))
                }
                Some(Ready::Handle(handle)) => {
                    let call = handle.borrow_mut(py).take();
                    let Some(call) = call else { continue };
                    let args = call.args.into_bound(py);
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

    pub(super) fn enter<'py>(slf: &Bound<'py, Self>) -> PyResult<Entered<'py>> {
        Self::occupy(slf)?;
        Entered::new(slf)
    }

    /// As `enter`, where no coroutine will run: asyncio is not told.
    pub(super) fn enter_quietly<'py>(slf: &Bound<'py, Self>) -> PyResult<Entered<'py>> {
        Self::occupy(slf)?;
        Ok(Entered::quiet(slf))
    }

    fn occupy(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf.try_borrow_mut() {
            Ok(mut this) if !this.entered => {
                this.entered = true;
                Ok(())
            }
            _ => Err(PyRuntimeError::new_err("this run is already running")),
        }
    }
}

/// While it lives, this thread runs the code of one loop; afterwards all is as before.
pub(super) struct Entered<'py> {
    event_loop: Bound<'py, EventLoop>,
    /// What was current before, once this loop is.
    previous: Option<Option<Py<EventLoop>>>,
    running: Option<Bound<'py, PyAny>>,
    /// The task that the loop which is left alone meanwhile is in, where asyncio has one per thread.
    task: Option<Bound<'py, PyAny>>,
}

impl<'py> Entered<'py> {
    fn quiet(event_loop: &Bound<'py, EventLoop>) -> Self {
        Self {
            event_loop: event_loop.clone(),
            previous: Some(CURRENT.replace(Some(event_loop.clone().unbind()))),
            running: None,
            task: None,
        }
    }

    fn new(event_loop: &Bound<'py, EventLoop>) -> PyResult<Self> {
        let py = event_loop.py();
        let mut entered = Self {
            event_loop: event_loop.clone(),
            previous: None,
            running: None,
            task: None,
        };
        let running = cached(py, &GET_RUNNING, "asyncio", "_get_running_loop")?.call0()?;
        if !running.is_none() {
            entered.task = swap_task(&running, py.None().bind(py))?;
        }
        entered.running = Some(running);
        cached(py, &SET_RUNNING, "asyncio", "_set_running_loop")?.call1((event_loop,))?;
        hook_thread(py)?;
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
        if self.running.is_some() {
            let _ = hook_thread_again(py);
        }
        if let Some(running) = self.running.take() {
            let _ = cached(py, &SET_RUNNING, "asyncio", "_set_running_loop")
                .and_then(|set| set.call1((&running,)));
            if let Some(task) = self.task.take() {
                let _ = swap_task(&running, &task);
            }
        }
        // Where the interpreter has no lock another thread may be reading: then the run stays shut, and
        // whoever comes next hears so. To panic would end the process if this is an unwinding already.
        if let Ok(mut this) = self.event_loop.try_borrow_mut() {
            this.entered = false;
        }
        if let Some(pending) = pending {
            pending.restore(py);
        }
    }
}

/// Make `task` the one that the running loop `running` is in, and return which it was.
///
/// Since 3.14 asyncio knows one such task for each thread, whatever its loop, and no other can be
/// stepped meanwhile; before, it knew one for each loop, and None is returned for nothing done.
fn swap_task<'py>(
    running: &Bound<'py, PyAny>,
    task: &Bound<'py, PyAny>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = running.py();
    static IS_PER_THREAD: PyOnceLock<bool> = PyOnceLock::new();
    if !IS_PER_THREAD.get_or_init(py, || py.version_info() >= (3, 14)) {
        return Ok(None);
    }
    let swap = cached(py, &SWAP_TASK, "asyncio.tasks", "_swap_current_task")?;
    swap.call1((running, task)).map(Some)
}

static GET_RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static SET_RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static SWAP_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
