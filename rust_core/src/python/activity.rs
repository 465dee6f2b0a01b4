//! The callable part of an activity definition.
#![forbid(unsafe_code)]

use std::cell::RefCell;

use pyo3::PyTraverseError;
use pyo3::exceptions::PyException;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use super::encode::{plain, put_arguments};
use super::future::Decoder;
use super::tools::Said;
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
    options: Option<Py<PyString>>,
    options_text: Option<String>,
    arity: (usize, usize),
    encode: Option<Py<PyAny>>,
    decode: Option<Py<PyAny>>,
    #[pyo3(get, set)]
    read: Option<Py<PyAny>>,
    #[pyo3(get, set)]
    records: Option<Py<PyDict>>,
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
        options: &Bound<'_, PyString>,
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
            options_text: Some(options.to_str()?.to_owned()).filter(|text| !text.is_empty()),
            options: Some(options.clone().unbind()),
            arity,
            encode: Some(encode),
            decode,
            read: None,
            records: None,
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
        let records = this.records.as_ref().map(|records| records.bind(py));
        if positional
            && put_arguments(args, records, &mut scratch)
            && scratch.len() <= PLAIN_BYTES_MAX
        {
            let future = Self::schedule(slf, &this, event_loop.bind(py), &scratch);
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
        let payload = payload.cast::<PyBytes>()?.as_bytes();
        Self::schedule(slf, &this, event_loop.bind(py), payload)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.r#fn)?;
        visit.call(&self.encode)?;
        visit.call(&self.decode)?;
        visit.call(&self.read)?;
        visit.call(&self.records)
    }

    fn __clear__(&mut self) {
        self.r#fn = None;
        self.encode = None;
        self.decode = None;
        self.read = None;
        self.records = None;
    }
}

impl ActivityBase {
    fn schedule(
        slf: &Bound<'_, Self>,
        this: &Self,
        event_loop: &Bound<'_, EventLoop>,
        payload: &[u8],
    ) -> PyResult<Py<PyAny>> {
        let command = Command {
            name: Some(&this.name_text),
            options: this.options_text.as_deref(),
            payload: Some(payload),
            ..Command::new(Kind::ActivityScheduled)
        };
        let decoder = this
            .decode
            .as_ref()
            .map(|_| Decoder::Activity(slf.clone().unbind()));
        let said = Said {
            name: Some(&this.name),
            options: this.options.as_ref(),
        };
        let (plain, wait_cancel) = (this.plain, this.wait_cancel);
        EventLoop::start(event_loop, &command, said, plain, decoder, wait_cancel).map(Py::into_any)
    }

    /// Decode a result. The quick way first: what it raises says less, so then the whole decoder
    /// is asked once more, for the error that it words.
    pub(super) fn decode(
        slf: &Bound<'_, Self>,
        payload: &Bound<'_, PyBytes>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let (read, decode) = {
            let this = slf.borrow();
            let of = |found: &Option<Py<PyAny>>| found.as_ref().map(|it| it.clone_ref(py));
            (of(&this.read), of(&this.decode))
        };
        if let Some(read) = read {
            match read.call1(py, (payload,)) {
                Err(error) if error.is_instance_of::<PyException>(py) => {}
                outcome => return outcome,
            }
        }
        decode.unwrap_or_else(|| py.None()).call1(py, (payload,))
    }
}
