//! The plain values that need no Python to cross: None, bool, int, plain str.
//!
//! What is written here is byte for byte what compact orjson writes, so that a value takes either
//! way without a difference in history.
#![forbid(unsafe_code)]

use std::io::Write;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyList, PyString, PyTuple};

/// Append `[a,b,…]`; false when some value needs the codec (`out` is then unspecified).
pub(super) fn put_arguments(args: &Bound<'_, PyTuple>, out: &mut Vec<u8>) -> bool {
    out.push(b'[');
    for (index, value) in args.iter_borrowed().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if !put_plain(&value, out) {
            return false;
        }
    }
    out.push(b']');
    true
}

fn put_plain(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    if value.is_exact_instance_of::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else {
            return false;
        };
        put_int(number, out);
        true
    } else if value.is_exact_instance_of::<PyString>() {
        let Ok(text) = value.cast::<PyString>() else {
            return false;
        };
        match text.to_str() {
            Ok(text) if is_plain(text.as_bytes()) => {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
                true
            }
            _ => false,
        }
    } else if value.is_none() {
        out.extend_from_slice(b"null");
        true
    } else if value.is_exact_instance_of::<PyBool>() {
        let text: &[u8] = if value.is_truthy().unwrap_or(false) {
            b"true"
        } else {
            b"false"
        };
        out.extend_from_slice(text);
        true
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        // Flat lists only: depth is the codec's business.
        out.push(b'[');
        for (index, item) in list.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if item.is_exact_instance_of::<PyList>() || !put_plain(&item, out) {
                return false;
            }
        }
        out.push(b']');
        true
    } else {
        false
    }
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

/// ASCII that JSON does not escape.
fn is_plain(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|&byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\')
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
