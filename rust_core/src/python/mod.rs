//! The Python face of the core. The only module that names `pyo3`.
//!
//! Rule: a borrow of an object's state is never held while Python code can run. So nothing here can
//! be re-entered half-way, there is no lock to order against the interpreter's, and a mistake shows
//! as an exception and not as a hang.

mod activity;
mod encode;
mod event_loop;
mod execution;
mod future;
mod generators;
mod handle;
mod tools;

use std::cell::RefCell;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::Error;
pub use activity::ActivityBase;
pub use event_loop::EventLoop;
pub use execution::{ExecutionBase, TurnShapes};
pub use future::CommandFuture;
pub use handle::{Handle, TimerHandle};

mod errors {
    pyo3::import_exception!(durable.errors, HistoryCorruptError);
    pyo3::import_exception!(durable.errors, HistoryUnsupportedError);
    pyo3::import_exception!(durable.errors, NonDeterminismError);
    pyo3::import_exception!(durable.errors, PayloadTooLargeError);
}

thread_local! {
    /// The loop whose workflow code runs on this thread.
    static CURRENT: RefCell<Option<Py<EventLoop>>> = const { RefCell::new(None) };
}

fn current_loop(py: Python<'_>) -> Option<Py<EventLoop>> {
    CURRENT.with_borrow(|current| current.as_ref().map(|event_loop| event_loop.clone_ref(py)))
}

fn is_running_code() -> bool {
    // The interpreter reports events until the very end of a thread.
    CURRENT
        .try_with(|current| current.try_borrow().is_ok_and(|current| current.is_some()))
        .unwrap_or(false)
}

fn to_py_err(py: Python<'_>, error: Error) -> PyErr {
    match error {
        Error::Corrupt {
            seq,
            offset,
            reason,
        } => errors::HistoryCorruptError::new_err((reason, seq, offset)),
        Error::Unsupported { seq, offset, what } => {
            errors::HistoryUnsupportedError::new_err((what, seq, offset))
        }
        Error::Invalid(reason) => pyo3::exceptions::PyValueError::new_err(reason),
        Error::TooLarge { what, size, limit } => {
            let message = format!("{what}: {size} is over the limit of {limit}");
            errors::PayloadTooLargeError::new_err((message, size, limit))
        }
        Error::Mismatch(mismatch) => {
            let mismatch = *mismatch;
            let args = (mismatch.event_id, mismatch.expected, mismatch.found);
            let error = errors::NonDeterminismError::new_err(args);
            let fill = || -> PyResult<()> {
                let value = error.value(py);
                value.setattr("around", pyo3::types::PyTuple::new(py, mismatch.around)?)?;
                value.setattr("time_us", mismatch.time)?;
                value.setattr("hint", mismatch.hint)?;
                value.setattr("source", user_frame(py))?;
                Ok(())
            };
            fill().err().unwrap_or(error)
        }
    }
}

/// `file:line in function` of the workflow code that is running: the innermost frame that is not
/// asyncio's or this package's. None when the engine itself made the command.
fn user_frame(py: Python<'_>) -> Option<String> {
    let mut frame = py
        .import("sys")
        .ok()?
        .call_method1("_getframe", (0,))
        .ok()?;
    while !frame.is_none() {
        let module: String = frame
            .getattr("f_globals")
            .and_then(|globals| globals.get_item("__name__"))
            .and_then(|name| name.extract())
            .unwrap_or_default();
        if module.starts_with("durable.engine.") {
            return None;
        }
        let inner = module == "durable" || module.starts_with("durable.");
        if !inner && module != "asyncio" && !module.starts_with("asyncio.") {
            let code = frame.getattr("f_code").ok()?;
            let file: String = code.getattr("co_filename").ok()?.extract().ok()?;
            let function: String = code.getattr("co_name").ok()?.extract().ok()?;
            let line: u32 = frame.getattr("f_lineno").ok()?.extract().ok()?;
            return Some(format!("{file}:{line} in {function}"));
        }
        frame = frame.getattr("f_back").ok()?;
    }
    None
}

fn run_id_bytes(bytes: &[u8]) -> PyResult<[u8; 16]> {
    bytes.try_into().map_err(|_| {
        pyo3::exceptions::PyValueError::new_err(format!(
            "a run id is the 16 bytes of a UUID, not {} bytes",
            bytes.len()
        ))
    })
}

fn optional_bytes(py: Python<'_>, bytes: Option<&[u8]>) -> Option<Py<PyBytes>> {
    bytes.map(|bytes| PyBytes::new(py, bytes).unbind())
}

/// Event-history decoding and replay matching for `durable`.
#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::activity::ActivityBase;
    #[pymodule_export]
    use super::event_loop::EventLoop;
    #[pymodule_export]
    use super::execution::{ExecutionBase, TurnShapes};
    #[pymodule_export]
    use super::future::CommandFuture;
    #[pymodule_export]
    use super::handle::{Handle, TimerHandle};
    #[pymodule_export]
    use super::tools::{current, decode, guard, start_batch, verify};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let kinds = pyo3::types::PyDict::new(module.py());
        for kind in crate::Kind::ALL {
            kinds.set_item(kind.name(), *kind as u8)?;
        }
        module.add("EVENT_KINDS", kinds)?;
        module.add("FORMAT_VERSION", crate::batch::FORMAT_VERSION)?;
        super::future::install_send(module.py());
        Ok(())
    }
}
