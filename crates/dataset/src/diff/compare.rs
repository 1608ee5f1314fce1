//! Reading two sides in key order, side by side.

use std::cmp::Ordering;
use std::fs::File;

use tidegate_api::manifest::{FieldType, Part};

use super::sides::Side;
use super::{ChangedField, ChangedRecord, DiffError, DiffOptions, DiffReport, DiffSide, FieldDiff};
use crate::input::InputError;
use crate::key::KeyCodec;
use crate::progress::{Cancel, OnProgress, Phase, Progress};
use crate::records::{ParquetRows, Record};
use crate::schema::SchemaError;
use crate::value::{Cell, Malformed, ValueReader, json};

pub(super) fn compare(
    a: &Side,
    b: &Side,
    options: &DiffOptions,
    progress: OnProgress<'_>,
    cancel: &Cancel,
) -> Result<DiffReport, DiffError> {
    let codec = |side: &Side| {
        KeyCodec::new(&side.manifest.schema, &side.manifest.key_columns).map_err(|error| DiffError::Build {
            side: side.name.clone(),
            source: Box::new(SchemaError::from(error).into()),
        })
    };
    let (keys_a, keys_b) = (codec(a)?, codec(b)?);
    let mut comparison = Comparison {
        fields: fields(a, b),
        a,
        b,
        keys_a: &keys_a,
        keys_b: &keys_b,
        options,
        report: empty_report(a, b),
    };
    let total = a.manifest.record_count + b.manifest.record_count;
    let mut done = 0u64;
    for (part_a, part_b) in a.manifest.parts.iter().zip(&b.manifest.parts) {
        let mut rows_a = rows(a, part_a, &keys_a)?;
        let mut rows_b = rows(b, part_b, &keys_b)?;
        let (mut next_a, mut next_b) = (rows_a.next()?, rows_b.next()?);
        loop {
            if done.is_multiple_of(1024) {
                if cancel.is_cancelled() {
                    return Err(DiffError::Cancelled);
                }
                progress(Progress { phase: Phase::Comparing, done, total, records: done });
            }
            done += 1;
            let order = match (&next_a, &next_b) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.key.cmp(b.key),
            };
            match (order, &next_a, &next_b) {
                (Ordering::Less, Some(record), _) => comparison.removed(record)?,
                (Ordering::Greater, _, Some(record)) => comparison.added(record)?,
                (_, Some(a), Some(b)) => comparison.both(a, b)?,
                _ => break,
            }
            if order != Ordering::Greater {
                next_a = rows_a.next()?;
            }
            if order != Ordering::Less {
                next_b = rows_b.next()?;
            }
        }
    }
    Ok(comparison.finish())
}

fn rows<'a>(side: &'a Side, part: &Part, keys: &'a KeyCodec) -> Result<ParquetRows<'a>, DiffError> {
    let path = side.folder.join(&part.name);
    let file = File::open(&path)
        .map_err(|source| DiffError::Input(InputError::Read { path: path.display().to_string(), source }))?;
    Ok(ParquetRows::open(file, &path, &side.manifest.schema, keys)?)
}

/// A field of the value, where each side has it.
struct Place {
    name: String,
    /// Position among the fields of the value, and type.
    a: Option<(usize, FieldType)>,
    b: Option<(usize, FieldType)>,
    changed: u64,
}

fn value_fields(side: &Side) -> impl Iterator<Item = (usize, &tidegate_api::manifest::Field)> {
    let manifest = &side.manifest;
    manifest.schema.fields.iter().filter(|field| !manifest.key_columns.contains(&field.name)).enumerate()
}

fn fields(a: &Side, b: &Side) -> Vec<Place> {
    let find = |side: &Side, name: &str| {
        value_fields(side).find(|(_, field)| field.name == name).map(|(position, field)| (position, field.data_type))
    };
    let of_a = value_fields(a).map(|(_, field)| field);
    let of_b = value_fields(b).map(|(_, field)| field).filter(|field| find(a, &field.name).is_none());
    of_a.chain(of_b)
        .map(|field| Place { name: field.name.clone(), a: find(a, &field.name), b: find(b, &field.name), changed: 0 })
        .collect()
}

fn empty_report(a: &Side, b: &Side) -> DiffReport {
    let side = |side: &Side| DiffSide {
        name: side.name.clone(),
        records: side.manifest.record_count,
        duplicates: side.manifest.duplicate_count,
        data_bytes: side.manifest.data_bytes,
    };
    DiffReport {
        a: side(a),
        b: side(b),
        added: 0,
        removed: 0,
        changed: 0,
        unchanged: 0,
        fields: Vec::new(),
        added_keys: Vec::new(),
        removed_keys: Vec::new(),
        changed_records: Vec::new(),
    }
}

struct Comparison<'a> {
    fields: Vec<Place>,
    a: &'a Side,
    b: &'a Side,
    keys_a: &'a KeyCodec,
    keys_b: &'a KeyCodec,
    options: &'a DiffOptions,
    report: DiffReport,
}

fn damaged(side: &Side) -> impl Fn(Malformed) -> DiffError + '_ {
    |malformed| DiffError::Artifact { folder: side.folder.display().to_string(), why: malformed.to_string() }
}

/// Whether two fields hold the same; NaN is the same as itself.
fn is_same(a: Cell<'_>, type_a: FieldType, b: Cell<'_>, type_b: FieldType) -> bool {
    if a == b {
        return true;
    }
    json::from_cell(a, type_a) == json::from_cell(b, type_b)
}

impl Comparison<'_> {
    fn removed(&mut self, record: &Record<'_>) -> Result<(), DiffError> {
        self.report.removed += 1;
        if self.report.removed_keys.len() < self.options.examples_max {
            let key = self.keys_a.to_text(record.key).map_err(damaged(self.a))?;
            self.report.removed_keys.push(key);
        }
        Ok(())
    }

    fn added(&mut self, record: &Record<'_>) -> Result<(), DiffError> {
        self.report.added += 1;
        if self.report.added_keys.len() < self.options.examples_max {
            let key = self.keys_b.to_text(record.key).map_err(damaged(self.b))?;
            self.report.added_keys.push(key);
        }
        Ok(())
    }

    fn both(&mut self, a: &Record<'_>, b: &Record<'_>) -> Result<(), DiffError> {
        let cells_a = cells(self.a, self.keys_a, a.value).map_err(damaged(self.a))?;
        let cells_b = cells(self.b, self.keys_b, b.value).map_err(damaged(self.b))?;
        let mut differing = Vec::new();
        for (index, place) in self.fields.iter_mut().enumerate() {
            if let (Some((a, type_a)), Some((b, type_b))) = (place.a, place.b)
                && !is_same(cells_a[a], type_a, cells_b[b], type_b)
            {
                place.changed += 1;
                differing.push(index);
            }
        }
        if differing.is_empty() {
            self.report.unchanged += 1;
            return Ok(());
        }
        self.report.changed += 1;
        if self.report.changed_records.len() < self.options.examples_max {
            let fields = differing.iter().filter_map(|index| {
                let place = &self.fields[*index];
                let ((a, type_a), (b, type_b)) = (place.a?, place.b?);
                Some(ChangedField {
                    name: place.name.clone(),
                    a: json::from_cell(cells_a[a], type_a),
                    b: json::from_cell(cells_b[b], type_b),
                })
            });
            let changed =
                ChangedRecord { key: self.keys_a.to_text(a.key).map_err(damaged(self.a))?, fields: fields.collect() };
            self.report.changed_records.push(changed);
        }
        Ok(())
    }

    fn finish(self) -> DiffReport {
        let Self { mut report, fields, a, b, .. } = self;
        let describe = |name: &str, changed| {
            let statistics = |side: &Side| side.manifest.field_statistics(name).cloned();
            let data_type = |side: &Side| side.manifest.schema.field(name).map(|f| f.data_type);
            FieldDiff {
                name: name.to_owned(),
                type_a: data_type(a),
                type_b: data_type(b),
                changed,
                a: statistics(a),
                b: statistics(b),
            }
        };
        let changed_of = |name: &str| {
            let place = fields.iter().find(|place| place.name == name);
            place.map_or(0, |place| place.changed)
        };
        let of_a = a.manifest.schema.fields.iter();
        let only_b = b.manifest.schema.fields.iter();
        let only_b = only_b.filter(|field| a.manifest.schema.field(&field.name).is_none());
        report.fields = of_a.chain(only_b).map(|field| describe(&field.name, changed_of(&field.name))).collect();
        report
    }
}

fn cells<'v>(side: &Side, keys: &KeyCodec, value: &'v [u8]) -> Result<Vec<Cell<'v>>, Malformed> {
    let mut reader = ValueReader::new(value, keys.value_field_count());
    value_fields(side).map(|(_, field)| reader.next(field.data_type)).collect()
}
