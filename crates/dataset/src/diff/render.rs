//! A report as text for people.

use std::fmt;

use serde_json::Value;
use tidegate_api::manifest::FieldStatistics;

use super::{DiffReport, DiffSide, FieldDiff};
use crate::key::shorten;

/// 28298 as `28 298`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `1 record`, `28 298 records`.
fn counted(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::from("–");
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

fn value(value: Option<&Value>) -> String {
    let text = match value {
        None => return String::from("–"),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    match text.char_indices().nth(20) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What of a field is shown: one text per side.
fn figures(field: &FieldDiff) -> Vec<(&'static str, String, String)> {
    let both = |figure: &dyn Fn(&FieldStatistics) -> String| {
        let side =
            |statistics: &Option<FieldStatistics>| statistics.as_ref().map_or_else(|| String::from("absent"), figure);
        (side(&field.a), side(&field.b))
    };
    let mut shown = Vec::new();
    let mut show = |name, always: bool, figure: &dyn Fn(&FieldStatistics) -> String| {
        let (a, b) = both(figure);
        if always || a != b {
            shown.push((name, a, b));
        }
    };
    show("nulls", true, &|f| format!("{} ({})", grouped(f.nulls), percent(f.nulls, f.count + f.nulls)));
    show("distinct ≈", false, &|f| grouped(f.distinct));
    show("min", false, &|f| value(f.min.as_ref()));
    show("max", false, &|f| value(f.max.as_ref()));
    show("mean", false, &|f| f.mean.map_or_else(|| String::from("–"), |mean| format!("{mean:.6}")));
    show("NaN", false, &|f| grouped(f.nans));
    show("mean norm", false, &|f| {
        let norm = f.vectors.as_ref().and_then(|vectors| vectors.mean_norm);
        norm.map_or_else(|| String::from("–"), |norm| format!("{norm:.6}"))
    });
    show("vectors with NaN", false, &|f| f.vectors.as_ref().map_or_else(|| String::from("–"), |v| grouped(v.with_nan)));
    shown
}

impl fmt::Display for DiffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, side) in [("A", &self.a), ("B", &self.b)] {
            let DiffSide { name, records, duplicates, data_bytes } = side;
            write!(f, "{letter}  {name}: {}, {}", counted(*records, "record"), counted(*data_bytes, "byte"))?;
            if *duplicates > 0 {
                write!(f, ", {}", counted(*duplicates, "repeated row"))?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        for (name, count) in
            [("added", self.added), ("removed", self.removed), ("changed", self.changed), ("unchanged", self.unchanged)]
        {
            let share = percent(count, self.a.records);
            writeln!(f, "{name:<10} {:>14}  {share:>8} of A", grouped(count))?;
        }
        writeln!(f)?;
        let width = self.fields.iter().map(|field| field.name.chars().count());
        let width = width.max().unwrap_or(0).max(5);
        for field in &self.fields {
            let data_type = |side: Option<tidegate_api::manifest::FieldType>| {
                side.map_or_else(|| String::from("absent"), |found| found.to_string())
            };
            let (type_a, type_b) = (data_type(field.type_a), data_type(field.type_b));
            let types = if type_a == type_b { type_a } else { format!("{type_a} → {type_b}") };
            write!(f, "{:<width$}  {types}", field.name)?;
            if field.changed > 0 {
                write!(f, ", changed in {}", counted(field.changed, "record"))?;
            }
            for (name, a, b) in figures(field) {
                let arrow = if a == b { String::new() } else { format!(" → {b}") };
                write!(f, "\n{:width$}    {name} {a}{arrow}", "")?;
            }
            writeln!(f)?;
        }
        for (title, keys) in [("added", &self.added_keys), ("removed", &self.removed_keys)] {
            if !keys.is_empty() {
                let keys: Vec<_> = keys.iter().map(|key| shorten(key)).collect();
                writeln!(f, "\n{title}, for example: {}", keys.join(", "))?;
            }
        }
        if !self.changed_records.is_empty() {
            writeln!(f, "\nchanged, for example:")?;
        }
        for record in &self.changed_records {
            for field in &record.fields {
                let (a, b) = (value(Some(&field.a)), value(Some(&field.b)));
                writeln!(f, "  {}  {}: {a} → {b}", shorten(&record.key), field.name)?;
            }
        }
        Ok(())
    }
}
