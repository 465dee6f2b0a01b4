//! The plain values that need no codec to cross: None, bool, int, float, plain str; on the way out
//! lists, dicts and records of them too.
//!
//! What is written here is byte for byte what the codec writes, so that a value takes either way
//! without a difference in history.
#![forbid(unsafe_code)]

use std::io::Write;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

/// Levels of lists, dicts and records that are written here; deeper is the codec's business.
const DEPTH_MAX: usize = 16;

/// Append `[a,b,…]`; false when some value needs the codec (`out` is then unspecified).
pub(super) fn put_arguments(
    args: &Bound<'_, PyTuple>,
    records: Option<&Bound<'_, PyDict>>,
    out: &mut Vec<u8>,
) -> bool {
    put_list(args.iter(), records, out, 0)
}

fn put_list<'py>(
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    records: Option<&Bound<'py, PyDict>>,
    out: &mut Vec<u8>,
    depth: usize,
) -> bool {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if !put_plain(&item, records, out, depth) {
            return false;
        }
    }
    out.push(b']');
    true
}

fn put_plain(
    value: &Bound<'_, PyAny>,
    records: Option<&Bound<'_, PyDict>>,
    out: &mut Vec<u8>,
    depth: usize,
) -> bool {
    if value.is_exact_instance_of::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else {
            return false;
        };
        put_int(number, out);
        true
    } else if let Ok(text) = value.cast_exact::<PyString>() {
        put_text(text, out)
    } else if value.is_none() {
        out.extend_from_slice(b"null");
        true
    } else if let Ok(truth) = value.cast_exact::<PyBool>() {
        let text: &[u8] = if truth.is_true() { b"true" } else { b"false" };
        out.extend_from_slice(text);
        true
    } else if let Ok(number) = value.cast_exact::<PyFloat>() {
        put_float(number.value(), out)
    } else if depth >= DEPTH_MAX {
        false
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        put_list(list.iter(), records, out, depth + 1)
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        put_dict(dict, records, out, depth + 1)
    } else {
        records.is_some_and(|records| put_record(value, records, out, depth + 1))
    }
}

fn put_text(text: &Bound<'_, PyString>, out: &mut Vec<u8>) -> bool {
    match text.to_str() {
        Ok(text) if is_plain(text.as_bytes()) => {
            out.push(b'"');
            out.extend_from_slice(text.as_bytes());
            out.push(b'"');
            true
        }
        _ => false,
    }
}

/// A float whose shortest text has no exponent: how those look is a matter of taste.
fn put_float(number: f64, out: &mut Vec<u8>) -> bool {
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        return false;
    }
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number:?}");
    true
}

fn put_dict(
    dict: &Bound<'_, PyDict>,
    records: Option<&Bound<'_, PyDict>>,
    out: &mut Vec<u8>,
    depth: usize,
) -> bool {
    // A copy: writing a record may run code that changes the dict.
    let items = dict.items();
    out.push(b'{');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let Ok((key, value)) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() else {
            return false;
        };
        let Ok(key) = key.cast_exact::<PyString>() else {
            return false;
        };
        if !put_text(key, out) {
            return false;
        }
        out.push(b':');
        if !put_plain(&value, records, out, depth) {
            return false;
        }
    }
    out.push(b'}');
    true
}

/// A value of a type whose fields are known: `records` has them as pairs of a name and the JSON
/// before its value, or None where the type is written in another way.
fn put_record(
    value: &Bound<'_, PyAny>,
    records: &Bound<'_, PyDict>,
    out: &mut Vec<u8>,
    depth: usize,
) -> bool {
    let Some(fields) = fields_of(value, records) else {
        return false;
    };
    out.push(b'{');
    for (index, pair) in fields.iter_borrowed().enumerate() {
        let Ok(pair) = pair.cast_exact::<PyTuple>() else {
            return false;
        };
        let (Ok(name), Ok(key)) = (pair.get_borrowed_item(0), pair.get_borrowed_item(1)) else {
            return false;
        };
        // What raises here raises again in the codec, which says where.
        let (Ok(name), Ok(key)) = (name.cast::<PyString>(), key.cast::<PyBytes>()) else {
            return false;
        };
        let Ok(field) = value.getattr(name) else {
            return false;
        };
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(key.as_bytes());
        if !put_plain(&field, Some(records), out, depth) {
            return false;
        }
    }
    out.push(b'}');
    true
}

fn fields_of<'py>(
    value: &Bound<'py, PyAny>,
    records: &Bound<'py, PyDict>,
) -> Option<Bound<'py, PyTuple>> {
    let cls = value.get_type();
    let known = match records.get_item(&cls).ok()? {
        Some(known) => known,
        // By way of `__missing__`, which finds out and remembers.
        None => records.as_any().get_item(&cls).ok()?,
    };
    known.cast_into_exact::<PyTuple>().ok()
}

fn put_int(number: i64, out: &mut Vec<u8>) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    // Writing to a Vec cannot fail.
    let _ = out.write(&digits[at..]);
}

/// UTF-8 that JSON does not escape.
pub(super) fn is_plain(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|&byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
}

/// Which JSON scalars an annotation takes as they are.
pub(super) mod plain {
    pub const NULL: u8 = 1;
    pub const BOOL: u8 = 2;
    pub const INT: u8 = 4;
    pub const STR: u8 = 8;
    pub const ALL: u8 = 15;
}

/// Decode a plain scalar that `allowed` admits; None when it needs the codec.
pub(super) fn get_plain(py: Python<'_>, json: &[u8], allowed: u8) -> Option<Py<PyAny>> {
    match json {
        b"null" if allowed & plain::NULL != 0 => Some(py.None()),
        b"true" if allowed & plain::BOOL != 0 => Some(PyBool::new(py, true).to_owned().into()),
        b"false" if allowed & plain::BOOL != 0 => Some(PyBool::new(py, false).to_owned().into()),
        [b'"', inner @ .., b'"'] if allowed & plain::STR != 0 && is_plain(inner) => {
            Some(PyString::new(py, std::str::from_utf8(inner).ok()?).into())
        }
        [b'-' | b'0'..=b'9', ..] if allowed & plain::INT != 0 && json.len() <= 19 => {
            let number = get_int(json)?;
            Some(number.into_pyobject(py).ok()?.into_any().unbind())
        }
        _ => None,
    }
}

/// A JSON integer of at most 18 digits.
fn get_int(json: &[u8]) -> Option<i64> {
    let (negative, digits) = match json {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 || (digits[0] == b'0' && digits.len() > 1) {
        return None;
    }
    let mut number = 0_i64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + i64::from(digit - b'0');
    }
    if negative && number == 0 {
        return None;
    }
    Some(if negative { -number } else { number })
}
