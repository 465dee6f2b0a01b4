//! The callable part of an activity definition.
#![forbid(unsafe_code)]

use std::cell::RefCell;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use super::encode::{plain, put_arguments};
use super::{EventLoop, current_loop};
use crate::event::{Command, Kind};

/// A longer argument list goes to the codec, which knows the limits and names the argument.
const PLAIN_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Called in a workflow it makes ACTIVITY_SCHEDULED and returns its future; elsewhere it calls the
/// function.
#[pyclass(module = "durable._core", subclass, dict, weakref)]
pub struct ActivityBase {
    #[pyo3(get)]
    name: Py<PyString>,
    #[pyo3(get)]
    r#fn: Option<Py<PyAny>>,
    name_text: String,
    options: Option<String>,
    arity: (usize, usize),
    encode: Option<Py<PyAny>>,
    decode: Option<Py<PyAny>>,
    plain: u8,
    wait_cancel: bool,
}

#[pymethods]
impl ActivityBase {
    #[new]
    #[pyo3(signature = (name, r#fn, options, *, arity, encode, decode, plain=None, wait_cancel=false))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of the Python constructor
    fn new(
        name: &Bound<'_, PyString>,
        r#fn: Py<PyAny>,
        options: String,
        arity: (usize, usize),
        encode: Py<PyAny>,
        decode: Option<Py<PyAny>>,
        plain: Option<u8>,
        wait_cancel: bool,
    ) -> PyResult<Self> {
        let plain = plain.unwrap_or(if decode.is_none() { plain::ALL } else { 0 });
        Ok(Self {
            name_text: name.to_str()?.to_owned(),
            name: name.clone().unbind(),
            r#fn: Some(r#fn),
            options: Some(options).filter(|options| !options.is_empty()),
            arity,
            encode: Some(encode),
            decode,
            plain,
            wait_cancel,
        })
    }

    #[pyo3(signature = (*args, **kwargs))]
    fn __call__(
        slf: &Bound<'_, Self>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let this = slf.borrow();
        let Some(event_loop) = current_loop(py) else {
            let function = this.r#fn.as_ref().map(|function| function.clone_ref(py));
            drop(this);
            let function = function.unwrap_or_else(|| py.None());
            return Ok(function.bind(py).call(args, kwargs)?.unbind());
        };
        let count = args.len();
        let positional = kwargs.is_none_or(|kwargs| kwargs.is_empty())
            && count >= this.arity.0
            && count <= this.arity.1;
        let mut scratch = SCRATCH.take();
        scratch.clear();
        if positional && put_arguments(args, &mut scratch) && scratch.len() <= PLAIN_BYTES_MAX {
            let future = this.schedule(event_loop.bind(py), &scratch);
            SCRATCH.set(scratch);
            return future;
        }
        SCRATCH.set(scratch);
        let encode = this
            .encode
            .as_ref()
            .map_or_else(|| py.None(), |it| it.clone_ref(py));
        let empty = PyDict::new(py);
        let payload = encode.bind(py).call1((args, kwargs.unwrap_or(&empty)))?;
        this.schedule(event_loop.bind(py), payload.cast::<PyBytes>()?.as_bytes())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.r#fn)?;
        visit.call(&self.encode)?;
        visit.call(&self.decode)
    }

    fn __clear__(&mut self) {
        self.r#fn = None;
        self.encode = None;
        self.decode = None;
    }
}

impl ActivityBase {
    fn schedule(&self, event_loop: &Bound<'_, EventLoop>, payload: &[u8]) -> PyResult<Py<PyAny>> {
        let command = Command {
            name: Some(&self.name_text),
            options: self.options.as_deref(),
            payload: Some(payload),
            ..Command::new(Kind::ActivityScheduled)
        };
        let decoder = self
            .decode
            .as_ref()
            .map(|decode| decode.clone_ref(event_loop.py()));
        EventLoop::start(event_loop, &command, self.plain, decoder, self.wait_cancel)
            .map(Py::into_any)
    }
}
