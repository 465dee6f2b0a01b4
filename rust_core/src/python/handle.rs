//! What `call_soon` and `call_at` return.
#![forbid(unsafe_code)]

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::EventLoop;

/// A callback with its arguments and the context it runs in.
pub(super) struct Call {
    pub callback: Py<PyAny>,
    pub args: Py<PyTuple>,
    pub context: Py<PyAny>,
}

impl Call {
    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.callback)?;
        visit.call(&self.args)?;
        visit.call(&self.context)
    }
}

/// A callback that is ready to run, unless it is cancelled first.
#[pyclass(module = "durable._core", freelist = 128)]
pub struct Handle {
    call: Option<Call>,
    cancelled: bool,
}

impl Handle {
    pub(super) fn new(call: Call) -> Self {
        Self {
            call: Some(call),
            cancelled: false,
        }
    }

    pub(super) fn take(&mut self) -> Option<Call> {
        self.call.take()
    }
}

#[pymethods]
impl Handle {
    fn cancel(&mut self) {
        self.cancelled = true;
        self.call = None;
    }

    fn cancelled(&self) -> bool {
        self.cancelled
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.call.as_ref().map_or(Ok(()), |call| call.visit(&visit))
    }

    fn __clear__(&mut self) {
        self.call = None;
    }
}

/// A durable timer with a callback: what `asyncio.sleep` and `asyncio.timeout` stand on.
#[pyclass(module = "durable._core")]
pub struct TimerHandle {
    event_loop: Option<Py<EventLoop>>,
    id: u32,
    due: u64,
    call: Option<Call>,
    cancelled: bool,
}

impl TimerHandle {
    pub(super) fn new(event_loop: Py<EventLoop>, due: u64, call: Call) -> Self {
        Self {
            event_loop: Some(event_loop),
            id: 0,
            due,
            call: Some(call),
            cancelled: false,
        }
    }

    pub(super) fn set_id(&mut self, id: u32) {
        self.id = id;
    }

    pub(super) fn take(&mut self) -> Option<Call> {
        self.event_loop = None;
        self.call.take()
    }
}

#[pymethods]
impl TimerHandle {
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (event_loop, call, id) = {
            let mut this = slf.borrow_mut();
            this.cancelled = true;
            (this.event_loop.take(), this.call.take(), this.id)
        };
        drop(call);
        match event_loop {
            Some(event_loop) if id != 0 => EventLoop::cancel_timer(event_loop.bind(slf.py()), id),
            _ => Ok(()),
        }
    }

    fn cancelled(&self) -> bool {
        self.cancelled
    }

    /// Call it: a timer that was due when it was made.
    fn _run(slf: &Bound<'_, Self>) -> PyResult<()> {
        let call = slf.borrow_mut().take();
        if let Some(call) = call {
            call.callback
                .bind(slf.py())
                .call1(call.args.bind(slf.py()).clone())?;
        }
        Ok(())
    }

    fn when(&self) -> f64 {
        self.due as f64 / 1e6
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        self.call.as_ref().map_or(Ok(()), |call| call.visit(&visit))
    }

    fn __clear__(&mut self) {
        self.event_loop = None;
        self.call = None;
    }
}
