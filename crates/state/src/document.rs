//! A stored document: JSON text, and beside it the typed value, decoded when it is first read.
//!
//! Invariants: reading never changes the text; fields that this build does not know outlive its read-modify-write; a
//! document that can't be read is an error for those who read it and for nobody else.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::driver::StoredDocument;
use crate::entity::Entity;
use crate::float_check;
use crate::path::Path;
use crate::record::Record;
use crate::revision::Revision;

/// The longest JSON text of one entity.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// The longest JSON text of one record.
pub(crate) const RECORD_BYTES_MAX: usize = 32 << 20;

/// The content of an entity at one revision: JSON, read as a type on demand. It knows the path that it stands under, so
/// that a map of documents needs no other key. Cheap to clone.
#[derive(Clone)]
pub struct Document(Arc<Inner>);

// In this order: what a read looks at first lies first, next to the count of the `Arc`.
#[repr(C)]
struct Inner {
    path: Path,
    decoded: OnceLock<Decoded>,
    json: Arc<str>,
    written_at: Revision,
    format: u32,
}

/// The text read as one type. Nearly always the only one; two builds' types for one collection within one process chain.
struct Decoded {
    /// A value of the type, or [`Unreadable`] of it. The type is known by the value's own vtable, which is nearer than a
    /// field would be.
    value: Arc<dyn Any + Send + Sync>,
    next: OnceLock<Box<Decoded>>,
    /// Encoding the value gives the whole text: no field is unknown to the type.
    exact: bool,
}

/// Why a text can't be read as a type.
struct Unreadable<E> {
    reason: Arc<str>,
    entity: PhantomData<fn() -> E>,
}

/// How a type's documents are brought to its current form; what [`Entity`] and [`Record`] have in common.
pub(crate) struct Form {
    pub(crate) format: u32,
    pub(crate) upgrade: fn(&mut Map<String, Value>, u32) -> Result<(), String>,
}

impl Form {
    pub(crate) fn of_entity<E: Entity>() -> Form {
        Form { format: E::FORMAT, upgrade: E::upgrade }
    }

    pub(crate) fn of_record<R: Record>() -> Form {
        Form { format: R::FORMAT, upgrade: R::upgrade }
    }
}

/// Why a value can't be made a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EncodeError {
    /// A float is not a number, or infinite: JSON has no form for it.
    NotANumber { field: String },
    /// The type's own serialization failed.
    Failed { reason: String },
}

impl Decoded {
    fn is_of<E: Entity>(&self) -> bool {
        self.value.is::<E>() || self.value.is::<Unreadable<E>>()
    }

    fn reason<E: Entity>(&self) -> Arc<str> {
        let unreadable = self.value.downcast_ref::<Unreadable<E>>();
        unreadable.map_or_else(|| "it can't be read".into(), |unreadable| unreadable.reason.clone())
    }
}

impl Document {
    /// What a driver stored, read apart from the tree.
    pub(crate) fn stored(path: Path, document: &StoredDocument) -> Document {
        Document::stored_at(path, document, Revision::ZERO)
    }

    /// What a driver stored, written by the transaction of this revision.
    pub(crate) fn stored_at(path: Path, document: &StoredDocument, written_at: Revision) -> Document {
        let StoredDocument { format, json } = document.clone();
        Document(Arc::new(Inner { path, format, written_at, json, decoded: OnceLock::new() }))
    }

    /// What a driver is to store.
    pub(crate) fn to_stored(&self) -> StoredDocument {
        StoredDocument { format: self.0.format, json: self.0.json.clone() }
    }

    /// Encodes a value. Fields of `before` that the type does not know are carried over (design: documents survive
    /// rolling upgrades).
    pub(crate) fn encode<E: Entity>(
        path: Path,
        value: E,
        before: Option<&Document>,
        written_at: Revision,
    ) -> Result<Document, EncodeError> {
        let json = encode_json(&value)?;
        let known: Arc<str> = json.into();
        let (json, format) = match before {
            Some(before) => match before.carry_over::<E>(&known) {
                Some(merged) => (merged, before.0.format.max(E::FORMAT)),
                None => (known.clone(), before.0.format.max(E::FORMAT)),
            },
            None => (known.clone(), E::FORMAT),
        };
        let exact = Arc::ptr_eq(&json, &known);
        let decoded = Decoded { value: Arc::new(value), next: OnceLock::new(), exact };
        Ok(Document(Arc::new(Inner { path, format, written_at, json, decoded: OnceLock::from(decoded) })))
    }

    /// The same, written by the transaction of this revision.
    pub(crate) fn written(mut self, written_at: Revision) -> Document {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.written_at = written_at;
            return self;
        }
        let Inner { path, decoded, json, format, .. } = &*self.0;
        let decoded = match decoded.get() {
            Some(Decoded { value, exact, .. }) => {
                OnceLock::from(Decoded { value: value.clone(), next: OnceLock::new(), exact: *exact })
            }
            None => OnceLock::new(),
        };
        let (path, json) = (path.clone(), json.clone());
        Document(Arc::new(Inner { path, decoded, json, written_at, format: *format }))
    }

    /// The text with the fields that `E` does not know, or none if there are no such fields.
    fn carry_over<E: Entity>(&self, known: &str) -> Option<Arc<str>> {
        let decoded = self.decoded::<E>();
        if decoded.exact {
            return None;
        }
        let value = decoded.value.downcast_ref::<E>()?;
        let was_known = encode_json(value).ok()?;
        if *was_known == *self.0.json {
            return None;
        }
        let was: Value = self.upgraded(&Form::of_entity::<E>()).ok()?;
        let was_known: Value = serde_json::from_str(&was_known).ok()?;
        let mut now: Value = serde_json::from_str(known).ok()?;
        if !carry(&was, &was_known, &mut now) {
            return None;
        }
        Some(serde_json::to_string(&now).ok()?.into())
    }

    /// Where it stands.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// The JSON text as stored.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.0.json
    }

    /// The version of the form that the text is in.
    #[must_use]
    pub fn format(&self) -> u32 {
        self.0.format
    }

    /// The revision of the transaction that wrote it.
    #[must_use]
    pub(crate) fn written_at(&self) -> Revision {
        self.0.written_at
    }

    /// Whether two documents are the same in content: the same text in the same form.
    #[must_use]
    pub fn same(&self, other: &Document) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.format == other.0.format && self.0.json == other.0.json)
    }

    /// For tests of what is let go.
    pub(crate) fn downgrade(&self) -> WeakDocument {
        WeakDocument(Arc::downgrade(&self.0))
    }

    /// The value, decoded at most once; the error is the reason.
    pub(crate) fn get<E: Entity>(&self) -> Result<&E, Arc<str>> {
        // Nearly always it has been read before, and as this type.
        if let Some(value) = self.0.decoded.get().and_then(|decoded| decoded.value.downcast_ref::<E>()) {
            return Ok(value);
        }
        let decoded = self.decoded::<E>();
        match decoded.value.downcast_ref::<E>() {
            Some(value) => Ok(value),
            None => Err(decoded.reason::<E>()),
        }
    }

    /// As [`Document::get`], shared.
    pub(crate) fn get_arc<E: Entity>(&self) -> Result<Arc<E>, Arc<str>> {
        let decoded = self.decoded::<E>();
        Arc::downcast(decoded.value.clone()).map_err(|_| decoded.reason::<E>())
    }

    fn decoded<E: Entity>(&self) -> &Decoded {
        let mut decoded = self.0.decoded.get_or_init(|| self.decode::<E>());
        while !decoded.is_of::<E>() {
            decoded = decoded.next.get_or_init(|| Box::new(self.decode::<E>()));
        }
        decoded
    }

    #[cold]
    fn decode<E: Entity>(&self) -> Decoded {
        let value: Arc<dyn Any + Send + Sync> =
            match decode_json::<E>(&self.0.json, self.0.format, &Form::of_entity::<E>()) {
                Ok(value) => Arc::new(value),
                Err(reason) => Arc::new(Unreadable::<E> { reason: reason.into(), entity: PhantomData }),
            };
        Decoded { value, next: OnceLock::new(), exact: false }
    }

    fn upgraded(&self, form: &Form) -> Result<Value, String> {
        upgraded(&self.0.json, self.0.format, form)
    }
}

/// Says whether a document is still held by anyone.
pub(crate) struct WeakDocument(std::sync::Weak<Inner>);

impl WeakDocument {
    pub(crate) fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.json)
    }
}

/// Reads a JSON text of any age as its current type.
pub(crate) fn decode_json<T: DeserializeOwned>(json: &str, format: u32, form: &Form) -> Result<T, String> {
    // A type's own deserialization and upgrade steps are foreign code: a panic in them is this document's error.
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        if format >= form.format {
            return serde_json::from_str(json).map_err(|error| describe(json, &error));
        }
        let current = upgraded(json, format, form)?.to_string();
        serde_json::from_str(&current).map_err(|error| describe(&current, &error))
    }));
    decoded.unwrap_or_else(|panic| Err(format!("reading it panicked: {}", panic_message(&*panic))))
}

fn upgraded(json: &str, format: u32, form: &Form) -> Result<Value, String> {
    let mut value: Value = serde_json::from_str(json).map_err(|error| describe(json, &error))?;
    if let Value::Object(document) = &mut value {
        for from in format..form.format {
            (form.upgrade)(document, from)
                .map_err(|reason| format!("it can't be upgraded from format {from} to {}: {reason}", from + 1))?;
        }
    }
    Ok(value)
}

/// The text of a value, or which of its fields JSON has no form for.
pub(crate) fn encode_json<T: Serialize + ?Sized>(value: &T) -> Result<String, EncodeError> {
    let json = serde_json::to_string(value).map_err(|error| EncodeError::Failed { reason: error.to_string() })?;
    // A float that is no number is written as null, so a text without null has none.
    if json.contains("null")
        && let Some(field) = float_check::not_a_number(value)
    {
        return Err(EncodeError::NotANumber { field });
    }
    Ok(json)
}

/// Puts what `was` has and `was_known` lacks into `now`, at the same places. Says whether there was anything.
fn carry(was: &Value, was_known: &Value, now: &mut Value) -> bool {
    match (was, was_known, now) {
        (Value::Object(was), Value::Object(was_known), Value::Object(now)) => {
            let mut carried = false;
            for (field, value) in was {
                match (was_known.get(field), now.get_mut(field)) {
                    (None, None) => {
                        now.insert(field.clone(), value.clone());
                        carried = true;
                    }
                    (Some(known), Some(now)) => carried |= carry(value, known, now),
                    // The type knows the field, and has dropped it or sets it now.
                    (Some(_), None) | (None, Some(_)) => {}
                }
            }
            carried
        }
        (Value::Array(was), Value::Array(was_known), Value::Array(now)) if was.len() == was_known.len() => {
            let same_length = now.len() == was.len();
            let mut carried = false;
            let mut taken = vec![false; was.len()];
            for (position, now) in now.iter_mut().enumerate() {
                // Elements have no names: one that is as it was is the same one; else the one in the same place.
                let same = (0..was.len()).find(|&at| !taken[at] && was_known[at] == *now);
                let from = same.or_else(|| (same_length && !taken[position]).then_some(position));
                if let Some(from) = from {
                    taken[from] = true;
                    carried |= carry(&was[from], &was_known[from], now);
                }
            }
            carried
        }
        _ => false,
    }
}

/// The error of a decoder with the field at which it arose.
fn describe(json: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned();
    match field_at(json, error.line(), error.column()) {
        Some(field) => format!("field {field}: {text}"),
        None => text,
    }
}

/// Which field a place in a JSON text lies in, `a.b[2].c`; none for the whole.
fn field_at(json: &str, line: usize, column: usize) -> Option<String> {
    let start: usize = json.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let end = (start + column).min(json.len());
    let bytes = &json.as_bytes()[..end];
    let mut stack: Vec<Place> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => stack.push(Place::Object { field: None, reading_key: true }),
            b'[' => stack.push(Place::Array(0)),
            // A place right behind a closing bracket belongs to what was closed.
            b'}' | b']' if at + 1 < bytes.len() => {
                stack.pop();
            }
            b',' => match stack.last_mut() {
                Some(Place::Object { field, reading_key }) => {
                    *field = None;
                    *reading_key = true;
                }
                Some(Place::Array(index)) => *index += 1,
                None => {}
            },
            b':' => {
                if let Some(Place::Object { reading_key, .. }) = stack.last_mut() {
                    *reading_key = false;
                }
            }
            b'"' => {
                let begin = at + 1;
                at = begin;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if let Some(Place::Object { field, reading_key: true }) = stack.last_mut() {
                    *field = Some(String::from_utf8_lossy(&bytes[begin..at.min(bytes.len())]).into_owned());
                }
            }
            _ => {}
        }
        at += 1;
    }
    let mut named = String::new();
    for place in &stack {
        match place {
            Place::Object { field: Some(field), .. } => {
                if !named.is_empty() {
                    named.push('.');
                }
                named.push_str(field);
            }
            Place::Object { field: None, .. } => {}
            Place::Array(index) => named.push_str(&format!("[{index}]")),
        }
    }
    (!named.is_empty()).then_some(named)
}

enum Place {
    Object { field: Option<String>, reading_key: bool },
    Array(usize),
}

/// The message of a caught panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
