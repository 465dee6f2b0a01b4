//! The outcome of a command, as a future that asyncio takes for its own. At the end is what else takes
//! the interpreter's C interface: tracking, contexts, the audit hook.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::PyTraverseError;
#[cfg(not(feature = "abi3"))]
use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyStopIteration;
#[cfg(not(feature = "abi3"))]
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
#[cfg(feature = "abi3")]
use pyo3::types::PyTuple;
use pyo3::types::{PyBool, PyBytes, PyCFunction, PyDict};
use smallvec::SmallVec;

use super::event_loop::Ready;
use super::generators::note_event;
use super::tools::judge_event;
use super::{ActivityBase, EventLoop, is_running_code};
use crate::event::Kind;

pyo3::import_exception!(asyncio.exceptions, CancelledError);
pyo3::import_exception!(asyncio.exceptions, InvalidStateError);

enum State {
    Pending,
    Value(Py<PyAny>),
    Failed(Py<PyAny>),
    Cancelled(Option<Py<PyAny>>),
}

/// What turns the bytes of a result into its value.
pub(super) enum Decoder {
    /// Any callable.
    Call(Py<PyAny>),
    /// What the definition of the activity says.
    Activity(Py<ActivityBase>),
}

impl Decoder {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Call(callable) => Self::Call(callable.clone_ref(py)),
            Self::Activity(activity) => Self::Activity(activity.clone_ref(py)),
        }
    }

    pub(super) fn decode(&self, payload: &Bound<'_, PyBytes>) -> PyResult<Py<PyAny>> {
        let py = payload.py();
        match self {
            Self::Call(callable) => callable.call1(py, (payload,)),
            Self::Activity(activity) => ActivityBase::decode(activity.bind(py), payload),
        }
    }
}

/// The outcome of a command.
///
/// It has no `send`, `throw` and `close`, so nothing takes it for a coroutine. Its hash is the
/// command's event id: sets of futures iterate in the same order in every process.
#[pyclass(module = "durable._core", freelist = 256, weakref)]
pub struct CommandFuture {
    event_loop: Option<Py<EventLoop>>,
    id: u32,
    kind: Kind,
    state: State,
    blocking: bool,
    wait_cancel: bool,
    cancel_requested: bool,
    plain: u8,
    decoder: Option<Decoder>,
    /// With their contexts. Nearly always one: the task that waits.
    callbacks: SmallVec<[(Py<PyAny>, Py<PyAny>); 1]>,
}

/// What a step of an awaiting coroutine meets.
enum Poll {
    Value(Py<PyAny>),
    Raise(PyErr),
    Suspend,
}

impl CommandFuture {
    pub(super) fn new(
        event_loop: Py<EventLoop>,
        kind: Kind,
        plain: u8,
        decoder: Option<Decoder>,
        wait_cancel: bool,
    ) -> Self {
        Self {
            event_loop: Some(event_loop),
            id: 0,
            kind,
            state: State::Pending,
            blocking: false,
            wait_cancel,
            cancel_requested: false,
            plain,
            decoder,
            callbacks: SmallVec::new(),
        }
    }

    pub(super) fn set_id(&mut self, id: u32) {
        self.id = id;
    }

    /// Which plain scalars its result may be without a look of its decoder.
    pub(super) fn plain(&self) -> u8 {
        self.plain
    }

    /// What decodes its result; None: it is plain JSON.
    pub(super) fn decoder(&self, py: Python<'_>) -> Option<Decoder> {
        self.decoder.as_ref().map(|decoder| decoder.clone_ref(py))
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending)
    }

    /// Set the outcome and wake who waits. A no-op when it is done already.
    pub(super) fn settle(slf: &Bound<'_, Self>, outcome: PyResult<Py<PyAny>>) {
        let py = slf.py();
        let state = match outcome {
            Ok(value) => State::Value(value),
            Err(error) => Self::failed(py, error),
        };
        let old = {
            let mut this = slf.borrow_mut();
            if !this.is_pending() {
                return;
            }
            std::mem::replace(&mut this.state, state)
        };
        drop(old);
        Self::wake(slf);
    }

    /// Queue the callbacks.
    fn wake(slf: &Bound<'_, Self>) {
        let (event_loop, callbacks) = {
            let mut this = slf.borrow_mut();
            if this.callbacks.is_empty() {
                return;
            }
            let event_loop = this.event_loop.as_ref().map(|it| it.bind(slf.py()).clone());
            (event_loop, std::mem::take(&mut this.callbacks))
        };
        let Some(event_loop) = event_loop else { return };
        for (callback, context) in callbacks {
            let future = slf.clone().unbind();
            let refused = event_loop.borrow_mut().push_ready(Ready::Wake {
                callback,
                future,
                context,
            });
            drop(refused);
        }
    }

    /// The state after an error. A cancellation keeps its message, as asyncio's own does.
    fn failed(py: Python<'_>, error: PyErr) -> State {
        let value = error.into_value(py).into_bound(py);
        if !value.is_instance_of::<CancelledError>() {
            return State::Failed(value.into_any().unbind());
        }
        let message = value.getattr("args").and_then(|args| args.get_item(0));
        State::Cancelled(message.ok().map(Bound::unbind))
    }

    /// What a callback is called with: the future that it was added to. To asyncio's own task, which is
    /// told no more by it than that it is to go on, any future that is done is as good, and of its own
    /// kind it takes one without a method call (1,300 instructions for each step). The task then asks
    /// this one for its value. An error it is to throw into the coroutine: that it takes from here.
    pub(super) fn given<'py>(
        slf: &Bound<'py, Self>,
        callback: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let has_value = matches!(slf.borrow().state, State::Value(_));
        if has_value && is_wake_up(callback) {
            return done_future(slf.py()).cloned();
        }
        Ok(slf.clone().into_any())
    }

    /// Let go of everything that could keep a cycle alive.
    pub(super) fn abandon(slf: &Bound<'_, Self>) {
        let callbacks = std::mem::take(&mut slf.borrow_mut().callbacks);
        drop(callbacks);
    }

    fn cancelled_error(py: Python<'_>, message: &Option<Py<PyAny>>) -> PyErr {
        match message {
            Some(message) => CancelledError::new_err((message.clone_ref(py),)),
            None => CancelledError::new_err(()),
        }
    }

    fn outcome(&self, py: Python<'_>) -> Option<PyResult<Py<PyAny>>> {
        match &self.state {
            State::Pending => None,
            State::Value(value) => Some(Ok(value.clone_ref(py))),
            State::Failed(error) => Some(Err(PyErr::from_value(error.bind(py).clone()))),
            State::Cancelled(message) => Some(Err(Self::cancelled_error(py, message))),
        }
    }

    fn poll(slf: &Bound<'_, Self>) -> Poll {
        let py = slf.py();
        let event_loop = {
            let this = slf.borrow();
            match this.outcome(py) {
                Some(Ok(value)) => return Poll::Value(value),
                Some(Err(error)) => return Poll::Raise(error),
                None => this.event_loop.as_ref().map(|it| it.bind(py).clone()),
            }
        };
        if let Some(event_loop) = event_loop
            && let Some(outcome) = EventLoop::outcome_at_hand(&event_loop, slf)
        {
            // Nothing else could run before this outcome: the code goes on without suspending.
            // The state is kept for those who ask again.
            let state = match outcome {
                Ok(value) => {
                    slf.borrow_mut().state = State::Value(value.clone_ref(py));
                    return Poll::Value(value);
                }
                Err(error) => Self::failed(py, error),
            };
            slf.borrow_mut().state = state;
            return match slf.borrow().outcome(py) {
                Some(Err(error)) => Poll::Raise(error),
                _ => Poll::Suspend,
            };
        }
        slf.borrow_mut().blocking = true;
        Poll::Suspend
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn has_callbacks(&self) -> bool {
        !self.callbacks.is_empty()
    }
}

#[pymethods]
impl CommandFuture {
    #[getter]
    fn event_id(&self) -> u32 {
        self.id
    }

    #[getter(_asyncio_future_blocking)]
    fn get_blocking(&self) -> bool {
        self.blocking
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&mut self, blocking: bool) {
        self.blocking = blocking;
    }

    #[getter]
    fn _loop(&self, py: Python<'_>) -> Option<Py<EventLoop>> {
        self.event_loop.as_ref().map(|it| it.clone_ref(py))
    }

    fn get_loop(&self, py: Python<'_>) -> PyResult<Py<EventLoop>> {
        self._loop(py)
            .ok_or_else(|| InvalidStateError::new_err("the run was evicted"))
    }

    fn done(&self) -> bool {
        !self.is_pending()
    }

    fn cancelled(&self) -> bool {
        matches!(self.state, State::Cancelled(_))
    }

    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.outcome(py)
            .unwrap_or_else(|| Err(InvalidStateError::new_err("Result is not set.")))
    }

    fn exception(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        match &self.state {
            State::Pending => Err(InvalidStateError::new_err("Exception is not set.")),
            State::Value(_) => Ok(None),
            State::Failed(error) => Ok(Some(error.clone_ref(py))),
            State::Cancelled(message) => Err(Self::cancelled_error(py, message)),
        }
    }

    fn _make_cancelled_error(&self, py: Python<'_>) -> Py<PyAny> {
        let message = match &self.state {
            State::Cancelled(message) => message,
            _ => &None,
        };
        Self::cancelled_error(py, message).into_value(py).into_any()
    }

    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        let (event_loop, id, kind, wait, again) = {
            let this = slf.borrow();
            if !this.is_pending() {
                return Ok(false);
            }
            let event_loop = this.event_loop.as_ref().map(|it| it.clone_ref(slf.py()));
            (
                event_loop,
                this.id,
                this.kind,
                this.wait_cancel,
                this.cancel_requested,
            )
        };
        if let Some(event_loop) = event_loop
            && !again
        {
            EventLoop::cancel_command(event_loop.bind(slf.py()), id, kind, wait)?;
        }
        if wait {
            slf.borrow_mut().cancel_requested = true;
            return Ok(true);
        }
        slf.borrow_mut().state = State::Cancelled(msg);
        Self::wake(slf);
        Ok(true)
    }

    #[pyo3(signature = (callback, *, context=None))]
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        callback: Py<PyAny>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let context = match context {
            Some(context) => context,
            None => copy_context(py)?,
        };
        slf.borrow_mut().callbacks.push((callback, context));
        if !slf.borrow().is_pending() {
            Self::wake(slf);
        }
        Ok(())
    }

    fn remove_done_callback(slf: &Bound<'_, Self>, callback: &Bound<'_, PyAny>) -> PyResult<usize> {
        let callbacks = std::mem::take(&mut slf.borrow_mut().callbacks);
        let before = callbacks.len();
        let mut kept = SmallVec::new();
        for (registered, context) in callbacks {
            if !registered.bind(slf.py()).eq(callback)? {
                kept.push((registered, context));
            }
        }
        let removed = before - kept.len();
        slf.borrow_mut().callbacks = kept;
        Ok(removed)
    }

    fn __await__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(slf: Bound<'_, Self>) -> PyResult<Option<Bound<'_, Self>>> {
        match Self::poll(&slf) {
            Poll::Suspend => Ok(Some(slf)),
            Poll::Raise(error) => Err(error),
            Poll::Value(value) => {
                // A tuple as the argument would be taken apart into several.
                let stop = slf.py().get_type::<PyStopIteration>().call1((value,))?;
                Err(PyErr::from_value(stop))
            }
        }
    }

    fn __hash__(&self) -> isize {
        self.id as isize
    }

    fn __repr__(&self) -> String {
        let state = match self.state {
            State::Pending => "pending",
            State::Value(_) => "finished",
            State::Failed(_) => "failed",
            State::Cancelled(_) => "cancelled",
        };
        format!(
            "<CommandFuture {} of event {} {state}>",
            self.kind.name(),
            self.id
        )
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        match &self.decoder {
            Some(Decoder::Call(callable)) => visit.call(callable)?,
            Some(Decoder::Activity(activity)) => visit.call(activity)?,
            None => {}
        }
        for (callback, context) in &self.callbacks {
            visit.call(callback)?;
            visit.call(context)?;
        }
        match &self.state {
            State::Value(object) | State::Failed(object) => visit.call(object),
            State::Cancelled(Some(message)) => visit.call(message),
            _ => Ok(()),
        }
    }

    fn __clear__(&mut self) {
        self.event_loop = None;
        self.decoder = None;
        self.callbacks.clear();
        if let State::Value(_) | State::Failed(_) = self.state {
            self.state = State::Cancelled(None);
        }
    }
}

/// `Py::new` for a class with a free list: memory that PyO3 takes from the list is not known to the
/// garbage collector, and a cycle through it would never be freed.
#[allow(unsafe_code)]
pub(super) fn new_tracked<T>(py: Python<'_>, value: T) -> PyResult<Py<T>>
where
    T: pyo3::PyClass + Into<pyo3::PyClassInitializer<T>>,
{
    let object = Py::new(py, value)?;
    // SAFETY: attached; the object is whole, of a type with `__traverse__`, and untracked.
    unsafe {
        if pyo3::ffi::PyObject_GC_IsTracked(object.as_ptr()) == 0 {
            pyo3::ffi::PyObject_GC_Track(object.as_ptr().cast());
        }
    }
    Ok(object)
}

pub(super) fn copy_context(py: Python<'_>) -> PyResult<Py<PyAny>> {
    static COPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    Ok(COPY
        .import(py, "contextvars", "copy_context")?
        .call0()?
        .unbind())
}

/// Give the type the `am_send` slot, by which an `await` takes a result without a StopIteration.
///
/// PyO3 has no method for that slot; without it everything works the same through `__next__`.
#[cfg(not(feature = "abi3"))]
#[allow(unsafe_code)]
pub(super) fn install_send(py: Python<'_>) {
    let type_object = py.get_type::<CommandFuture>();
    let type_pointer = type_object.as_type_ptr();
    // SAFETY: the type was made from a spec with `am_await`, so it is a heap type whose
    // `tp_as_async` points into itself; nobody uses it yet while its module is being built.
    unsafe {
        let slots = (*type_pointer).tp_as_async;
        if !slots.is_null() {
            (*slots).am_send = Some(send_slot);
        }
    }
}

#[cfg(feature = "abi3")]
pub(super) fn install_send(_py: Python<'_>) {}

#[cfg(not(feature = "abi3"))]
#[allow(unsafe_code)]
unsafe extern "C" fn send_slot(
    slf: *mut ffi::PyObject,
    _value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: the interpreter calls a slot attached, with an instance of the type (or a subclass)
    // and room for one result, of which it takes ownership.
    unsafe {
        let py = Python::assume_attached();
        let any = Bound::from_borrowed_ptr(py, slf);
        let future = any.cast_unchecked::<CommandFuture>();
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| CommandFuture::poll(future)));
        match outcome {
            Ok(Poll::Value(value)) => {
                *result = value.into_ptr();
                ffi::PySendResult::PYGEN_RETURN
            }
            Ok(Poll::Suspend) => {
                *result = future.clone().into_ptr();
                ffi::PySendResult::PYGEN_NEXT
            }
            Ok(Poll::Raise(error)) => {
                error.restore(py);
                *result = std::ptr::null_mut();
                ffi::PySendResult::PYGEN_ERROR
            }
            Err(_) => {
                pyo3::panic::PanicException::new_err("the core panicked").restore(py);
                *result = std::ptr::null_mut();
                ffi::PySendResult::PYGEN_ERROR
            }
        }
    }
}

/// Call `callback(*args)` inside `context`, as `Context.run` does.
#[cfg(not(feature = "abi3"))]
#[allow(unsafe_code)]
pub(super) fn run_in_context<'py>(
    context: &Bound<'py, PyAny>,
    callback: &Bound<'py, PyAny>,
    args: impl PyCallArgs<'py>,
) -> PyResult<()> {
    let py = context.py();
    // SAFETY: attached; entering fails cleanly on anything that is not a context, and what was
    // entered is left again on the same thread.
    unsafe {
        if ffi::PyContext_Enter(context.as_ptr()) != 0 {
            return Err(PyErr::fetch(py));
        }
    }
    let outcome = callback.call1(args);
    // SAFETY: as above.
    unsafe {
        if ffi::PyContext_Exit(context.as_ptr()) != 0 {
            return Err(PyErr::fetch(py));
        }
    }
    outcome.map(drop)
}

/// The same through the stable ABI.
#[cfg(feature = "abi3")]
pub(super) fn run_in_context<'py>(
    context: &Bound<'py, PyAny>,
    callback: &Bound<'py, PyAny>,
    args: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>>,
) -> PyResult<()> {
    let mut all = vec![callback.clone()];
    all.extend(args.into_pyobject(context.py()).map_err(Into::into)?.iter());
    let all = PyTuple::new(context.py(), all)?;
    context
        .call_method1(pyo3::intern!(context.py(), "run"), all)
        .map(drop)
}

/// Whether a callback is that by which asyncio's own task is woken up.
///
/// It is known by its C function, which is seen once by name: the type and the name are asked for in
/// Python's words, so an interpreter where they are others has no such callback, and all works the same.
#[allow(unsafe_code)]
fn is_wake_up(callback: &Bound<'_, PyAny>) -> bool {
    static WAKE_UP: AtomicUsize = AtomicUsize::new(0);
    static TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if !callback.is_exact_instance_of::<PyCFunction>() {
        return false;
    }
    // SAFETY: attached, and it is a builtin function. The address is compared, and never called.
    let function = unsafe { pyo3::ffi::PyCFunction_GetFunction(callback.as_ptr()) };
    let address = function.map_or(0, |function| function as usize);
    let known = WAKE_UP.load(Ordering::Relaxed);
    if known != 0 {
        return known == address;
    }
    let py = callback.py();
    let is_it = || -> PyResult<bool> {
        let name = callback.getattr("__name__")?;
        let task = TASK.import(py, "asyncio", "Task")?;
        Ok(name.eq("task_wakeup")? && callback.getattr("__self__")?.is_instance(task)?)
    };
    let found = is_it().unwrap_or(false);
    if found {
        WAKE_UP.store(address, Ordering::Relaxed);
    }
    found
}

/// A future of asyncio's own kind that is done, and says nothing but that.
fn done_future(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static DONE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let done = DONE.get_or_try_init(py, || {
        // All that it wants of its loop is whether to note where it was made.
        let kwargs = PyDict::new(py);
        kwargs.set_item("get_debug", py.get_type::<PyBool>())?;
        let event_loop = py.import("types")?.getattr("SimpleNamespace")?;
        let event_loop = event_loop.call((), Some(&kwargs))?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("loop", event_loop)?;
        let future = py.import("asyncio")?.getattr("Future")?;
        let future = future.call((), Some(&kwargs))?;
        future.call_method1("set_result", (py.None(),))?;
        Ok::<_, PyErr>(future.unbind())
    })?;
    Ok(done.bind(py))
}

#[allow(unsafe_code)]
unsafe extern "C" {
    /// Public since 3.8; `pyo3::ffi` does not have it.
    fn PySys_AddAuditHook(
        hook: unsafe extern "C" fn(*const c_char, *mut pyo3::ffi::PyObject, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

/// Have the core hear of every audit event of this process. Not by `sys.addaudithook`: for a hook in
/// Python the interpreter makes the event's name and arguments into objects each time.
#[allow(unsafe_code)]
pub(super) fn add_audit_hook(py: Python<'_>) -> PyResult<()> {
    // SAFETY: attached; the hook is a function of this library, which is never unloaded.
    if unsafe { PySys_AddAuditHook(audit_hook, std::ptr::null_mut()) } < 0 {
        return Err(PyErr::fetch(py));
    }
    IS_HEARING.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether the core is told when a thread gets other hooks for async generators.
pub(super) fn hears_of_hooks() -> bool {
    IS_HEARING.load(Ordering::Relaxed)
}

static IS_HEARING: AtomicBool = AtomicBool::new(false);

#[allow(unsafe_code)]
unsafe extern "C" fn audit_hook(
    event: *const c_char,
    args: *mut pyo3::ffi::PyObject,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the interpreter gives a text that ends in a zero, and keeps it until this returns.
    note_event(unsafe { CStr::from_ptr(event) });
    // Events come from threads that are not attached, too, and from an interpreter that ends.
    if !is_running_code() {
        return 0;
    }
    // SAFETY: workflow code runs on this thread, so it is attached; the interpreter gives a text that
    // ends in a zero and a tuple, which it keeps until this returns.
    unsafe {
        let py = Python::assume_attached();
        let args = Bound::from_borrowed_ptr(py, args);
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            judge_event(CStr::from_ptr(event), &args)
        }));
        let error = match judged {
            Ok(Ok(())) => return 0,
            Ok(Err(error)) => error,
            Err(_) => pyo3::panic::PanicException::new_err("the core panicked"),
        };
        error.restore(py);
        -1
    }
}
