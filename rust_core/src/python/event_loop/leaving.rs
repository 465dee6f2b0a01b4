//! How a run leaves memory, and how its ended tasks do.
#![forbid(unsafe_code)]

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;

use super::{EventLoop, TASKS_SWEEP, Target};
use crate::python::future::CommandFuture;

impl EventLoop {
    /// Make it dead, close every coroutine, and let go of all that could be part of a cycle.
    pub(super) fn leave(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let _entered = if Self::has_unfinished_tasks(slf)? {
            Self::enter(slf)?
        } else {
            Self::enter_quietly(slf)?
        };
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
        for task in tasks.iter().chain(&late) {
            unlink(task.bind(py))?;
        }
        let (hook, context) = {
            let mut this = slf.borrow_mut();
            let hook = std::mem::replace(&mut this.hook, py.None());
            (hook, std::mem::replace(&mut this.context, py.None()))
        };
        drop((
            tasks, late, pending, ready, main, effects, failure, hook, context,
        ));
        Ok(())
    }

    /// Whether there is a coroutine to close: not in a run that came to its end.
    fn has_unfinished_tasks(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let py = slf.py();
        let tasks: Vec<_> = slf
            .borrow()
            .tasks
            .iter()
            .map(|it| it.clone_ref(py))
            .collect();
        for task in &tasks {
            if !is_done(task.bind(py))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forget the tasks that are done.
    pub(super) fn sweep_tasks(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let tasks = std::mem::take(&mut slf.borrow_mut().tasks);
        let mut kept = Vec::with_capacity(tasks.len());
        let mut ended = Vec::new();
        for task in tasks {
            if is_done(task.bind(py))? {
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

fn is_done(task: &Bound<'_, PyAny>) -> PyResult<bool> {
    task.call_method0(pyo3::intern!(task.py(), "done"))?
        .is_truthy()
}

/// How often a task is asked to close in vain. Every time, it leaves one `finally` that awaits.
const CLOSE_TRIES: usize = 100;

/// Close the coroutine of an unfinished task, from the inside out: closed from the outside, a
/// `finally` that awaits would come to its caller as a RuntimeError, and go on when it is collected.
/// What refuses to end is kept for ever: collecting it would run its code outside of any run.
fn close_task(task: &Bound<'_, PyAny>) -> PyResult<()> {
    static GRAVEYARD: PyOnceLock<Py<PyList>> = PyOnceLock::new();
    let py = task.py();
    if is_done(task)? {
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
    // Nearly always the future of a command, which has no frame: not asked, as each no is an exception.
    awaited
        .ok()
        .filter(|it| !it.is_exact_instance_of::<CommandFuture>() && is_suspended(it))
}

/// Whether it has a frame left to close: one that runs or ended has none, and others do not say.
fn is_suspended(coroutine: &Bound<'_, PyAny>) -> bool {
    let frame = coroutine
        .getattr("cr_frame")
        .or_else(|_| coroutine.getattr("gi_frame"));
    frame.is_ok_and(|frame| !frame.is_none())
}

/// A task and what it waits for hold each other. Parted, counting references frees them; the garbage
/// collector would have to look at every run in memory first.
fn unlink(task: &Bound<'_, PyAny>) -> PyResult<()> {
    forget_callbacks(task)?;
    let Ok(awaited) = task.getattr("_fut_waiter") else {
        return Ok(());
    };
    if awaited.is_none() || awaited.is_instance_of::<CommandFuture>() {
        return Ok(());
    }
    forget_callbacks(&awaited)?;
    // A gather is known to its children, too.
    if let Ok(children) = awaited.getattr("_children") {
        for child in children.try_iter()? {
            let child = child?;
            if !child.is_instance_of::<CommandFuture>() {
                forget_callbacks(&child)?;
            }
        }
    }
    Ok(())
}

fn forget_callbacks(future: &Bound<'_, PyAny>) -> PyResult<()> {
    forget_waiters(future)?;
    let Ok(callbacks) = future.getattr("_callbacks") else {
        return Ok(());
    };
    if callbacks.is_none() {
        return Ok(());
    }
    for entry in callbacks.try_iter()? {
        let (callback, _context): (Bound<'_, PyAny>, Bound<'_, PyAny>) = entry?.extract()?;
        future.call_method1("remove_done_callback", (callback,))?;
    }
    Ok(())
}

/// Since 3.14 a future of asyncio holds the tasks and futures that await it, for tools that look.
fn forget_waiters(future: &Bound<'_, PyAny>) -> PyResult<()> {
    static DISCARD: PyOnceLock<Option<Py<PyAny>>> = PyOnceLock::new();
    let py = future.py();
    let discard = DISCARD.get_or_try_init(py, || {
        let module = py.import("asyncio")?;
        let found = module.getattr_opt("future_discard_from_awaited_by")?;
        Ok::<_, PyErr>(found.map(Bound::unbind))
    })?;
    let Some(discard) = discard else {
        return Ok(());
    };
    let Ok(waiters) = future.getattr("_asyncio_awaited_by") else {
        return Ok(());
    };
    if waiters.is_none() {
        return Ok(());
    }
    for waiter in waiters.try_iter()? {
        discard.call1(py, (future, waiter?))?;
    }
    Ok(())
}
