//! The part of an execution that each step passes: a fact goes in, what is new comes out.
#![forbid(unsafe_code)]

use pyo3::PyTraverseError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::EventLoop;
use super::event_loop::NewFact;
use crate::event::Kind;

/// The classes of what a step gives, and what reads the options of an activity. One for a process.
#[pyclass(module = "durable._core", frozen)]
pub struct TurnShapes {
    turn: Py<PyAny>,
    activity: Py<PyAny>,
    options_of: Py<PyAny>,
    /// The options of an activity that has none of its own, and the values of them that are asked for.
    no_options: (Py<PyAny>, Py<PyAny>, Py<PyAny>),
}

#[pymethods]
impl TurnShapes {
    #[new]
    fn new(
        py: Python<'_>,
        turn: Py<PyAny>,
        activity: Py<PyAny>,
        options_of: Py<PyAny>,
    ) -> PyResult<Self> {
        let no_options = Self::asked_for(options_of.bind(py).call1(("",))?)?;
        Ok(Self {
            turn,
            activity,
            options_of,
            no_options,
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.turn)?;
        visit.call(&self.activity)?;
        visit.call(&self.options_of)
    }
}

impl TurnShapes {
    fn asked_for(options: Bound<'_, PyAny>) -> PyResult<(Py<PyAny>, Py<PyAny>, Py<PyAny>)> {
        let py = options.py();
        let queue = options.getattr(pyo3::intern!(py, "queue"))?.unbind();
        let priority = options.getattr(pyo3::intern!(py, "priority"))?.unbind();
        Ok((options.unbind(), queue, priority))
    }

    /// The activity of an ACTIVITY_SCHEDULED.
    fn activity<'py>(
        &self,
        event: &Bound<'py, PyTuple>,
        queue: &Bound<'py, PyAny>,
        now_us: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = event.py();
        let (id, text) = (event.get_borrowed_item(0)?, event.get_borrowed_item(5)?);
        let own;
        let (options, own_queue, priority) = if text.is_none() {
            &self.no_options
        } else {
            own = Self::asked_for(self.options_of.bind(py).call1((text,))?)?;
            &own
        };
        let payload = event.get_borrowed_item(7)?;
        let arguments = (
            id,
            event.get_borrowed_item(4)?,
            if own_queue.is_none(py) {
                queue
            } else {
                own_queue.bind(py)
            },
            priority,
            options,
            if text.is_none() {
                pyo3::intern!(py, "").as_any().as_borrowed()
            } else {
                text
            },
            if payload.is_none() {
                PyBytes::new(py, b"[]").into_any()
            } else {
                payload.to_owned()
            },
            now_us,
        );
        self.activity.bind(py).call1(arguments)
    }
}

/// What an execution does for every step, in Rust because every step does it. All else, a subclass
/// in Python does, which is asked through the methods that begin with an underscore.
#[pyclass(module = "durable._core", subclass)]
pub struct ExecutionBase {
    event_loop: Option<Py<EventLoop>>,
    shapes: Option<Py<TurnShapes>>,
    #[pyo3(get, set, name = "_queue")]
    queue: Option<Py<PyAny>>,
    #[pyo3(get, set, name = "_ended")]
    ended: Option<Py<PyAny>>,
    #[pyo3(get, set, name = "_responses")]
    responses: Option<Py<PyList>>,
}

#[pymethods]
impl ExecutionBase {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            event_loop: None,
            shapes: None,
            queue: None,
            ended: None,
            responses: None,
        }
    }

    fn _join(&mut self, event_loop: Py<EventLoop>, shapes: Py<TurnShapes>) {
        self.event_loop = Some(event_loop);
        self.shapes = Some(shapes);
    }

    #[pyo3(signature = (kind, r#ref, time_us, name=None, meta=None, payload=None))]
    fn deliver(
        slf: &Bound<'_, Self>,
        kind: u8,
        r#ref: u32,
        time_us: i64,
        name: Option<String>,
        meta: Option<Py<PyBytes>>,
        payload: Option<Py<PyBytes>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        match Kind::from_number(kind) {
            Some(kind) if kind.is_inbound() && kind != Kind::CancelRequested => {
                let fact = NewFact {
                    kind,
                    reference: r#ref,
                    // No clock is before 1970; what is, is raised to the run's time like all that is past.
                    time_us: u64::try_from(time_us).unwrap_or(0),
                    name,
                    meta,
                    payload,
                };
                EventLoop::offer_fact(&Self::event_loop(slf)?, fact)
                    .map(|_| None)
                    .map_err(|error| Self::died(slf, error))
            }
            _ => {
                let arguments = (kind, r#ref, time_us, name, meta, payload);
                let answer = slf.call_method1(pyo3::intern!(py, "_deliver_other"), arguments)?;
                Ok((!answer.is_none()).then(|| answer.unbind()))
            }
        }
    }

    fn take(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        let event_loop = Self::event_loop(slf)?;
        let (has_more, queue, shapes) = {
            let this = slf.borrow();
            let responses = this.responses.as_ref().map_or(0, |it| it.bind(py).len());
            let has_more = this.ended.is_some() || responses > 0;
            let queue = this.queue.as_ref().map(|queue| queue.bind(py).clone());
            let shapes = this.shapes.as_ref().map(|it| it.bind(py).clone());
            (has_more, queue, shapes)
        };
        let taken = EventLoop::take_new(&event_loop)?;
        if let (Some(taken), Some(queue), Some(shapes), false) = (&taken, queue, shapes, has_more)
            && let [event] = &taken.events[..]
        {
            let event = event.bind(py);
            if event.get_borrowed_item(1)?.extract::<u8>()? == Kind::ActivityScheduled as u8 {
                // Nearly every turn is that of a step: one activity to start, and nothing besides.
                let shapes = shapes.get();
                let now_us = event_loop.borrow().now();
                let activity = shapes.activity(event, &queue, now_us)?;
                let only = PyTuple::new(py, [activity])?;
                let (batch, chain) = (&taken.batch, taken.chain);
                let arguments = (batch, chain, taken.first_id, taken.count, only);
                return Ok(Some(shapes.turn.call1(py, arguments)?));
            }
        }
        if taken.is_none() && !has_more {
            return Ok(None);
        }
        let taken = taken.map(|taken| taken.into_tuple(py)).transpose()?;
        let turn = slf.call_method1(pyo3::intern!(py, "_sorted"), (taken,))?;
        Ok((!turn.is_none()).then(|| turn.unbind()))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.shapes)?;
        visit.call(&self.queue)?;
        visit.call(&self.ended)?;
        visit.call(&self.responses)
    }

    fn __clear__(&mut self) {
        self.event_loop = None;
        self.shapes = None;
        self.queue = None;
        self.ended = None;
        self.responses = None;
    }
}

impl ExecutionBase {
    fn event_loop<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, EventLoop>> {
        let this = slf.borrow();
        match &this.event_loop {
            Some(event_loop) => Ok(event_loop.bind(slf.py()).clone()),
            None => Err(PyRuntimeError::new_err("this execution has no loop")),
        }
    }

    /// After an error out of the core: what the execution makes of it, or what came up meanwhile.
    fn died(slf: &Bound<'_, Self>, error: PyErr) -> PyErr {
        let py = slf.py();
        match slf.call_method1(pyo3::intern!(py, "_died"), (error.into_value(py),)) {
            Ok(said) => {
                let error = PyErr::from_value(said);
                error.set_cause(py, None);
                error
            }
            Err(other) => other,
        }
    }
}
