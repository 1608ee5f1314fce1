//! What is known about the values of each field.
//!
//! Invariant: statistics are a function of the set of records alone. Accumulators can be merged
//! in any order and grouping with the same result, floating point sums included.

use tidegate_api::manifest::{Field, FieldStatistics, FieldType, ScalarType, VectorStatistics};
use xxhash_rust::xxh3::xxh3_64;

use crate::exact_sum::ExactSum;
use crate::value::{Cell, ListCell, Scalar, json};

/// How much of a text or binary value `min` and `max` keep.
const BOUND_BYTES_MAX: usize = 256;

/// An approximate count of distinct values: a HyperLogLog with 4096 registers.
#[derive(Clone, Debug)]
pub(crate) struct DistinctCount {
    registers: Box<[u8; Self::REGISTERS]>,
}

impl DistinctCount {
    const INDEX_BITS: u32 = 12;
    const REGISTERS: usize = 1 << Self::INDEX_BITS;

    fn new() -> Self {
        Self { registers: Box::new([0; Self::REGISTERS]) }
    }

    #[inline]
    fn add(&mut self, hash: u64) {
        let register = &mut self.registers[(hash >> (64 - Self::INDEX_BITS)) as usize];
        let rank = ((hash << Self::INDEX_BITS) | (1 << (Self::INDEX_BITS - 1))).leading_zeros() + 1;
        *register = (*register).max(rank as u8);
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.registers.iter_mut().zip(other.registers.iter()) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// The estimate, by linear counting as long as registers are empty in numbers.
    fn estimate(&self) -> u64 {
        let registers = Self::REGISTERS as f64;
        let zeros = self.registers.iter().filter(|rank| **rank == 0).count();
        let sum: f64 = self.registers.iter().map(|rank| 1.0 / (1u64 << rank) as f64).sum();
        let alpha = 0.7213 / (1.0 + 1.079 / registers);
        let raw = alpha * registers * registers / sum;
        let estimate =
            if raw <= 2.5 * registers && zeros > 0 { registers * (registers / zeros as f64).ln() } else { raw };
        estimate.round() as u64
    }
}

/// Smallest and greatest value, in the order of the type.
#[derive(Clone, Debug, PartialEq)]
enum Bounds {
    Integers(i64, i64),
    Numbers(f64, f64),
    Bytes(Vec<u8>, Vec<u8>),
}

impl Bounds {
    fn widen_integer(bounds: &mut Option<Self>, value: i64) {
        match bounds {
            Some(Bounds::Integers(min, max)) => {
                *min = (*min).min(value);
                *max = (*max).max(value);
            }
            _ => *bounds = Some(Bounds::Integers(value, value)),
        }
    }

    fn widen_number(bounds: &mut Option<Self>, value: f64) {
        // −0 and 0 are equal, so which of them was first must not be seen.
        let value = value + 0.0;
        match bounds {
            Some(Bounds::Numbers(min, max)) => {
                *min = min.min(value);
                *max = max.max(value);
            }
            _ => *bounds = Some(Bounds::Numbers(value, value)),
        }
    }

    fn widen_bytes(bounds: &mut Option<Self>, value: &[u8]) {
        match bounds {
            Some(Bounds::Bytes(min, max)) => {
                if value < min.as_slice() {
                    *min = value.to_vec();
                }
                if value > max.as_slice() {
                    *max = value.to_vec();
                }
            }
            _ => *bounds = Some(Bounds::Bytes(value.to_vec(), value.to_vec())),
        }
    }

    fn merge(bounds: &mut Option<Self>, other: &Option<Self>) {
        match other {
            None => {}
            Some(Bounds::Integers(min, max)) => {
                Self::widen_integer(bounds, *min);
                Self::widen_integer(bounds, *max);
            }
            Some(Bounds::Numbers(min, max)) => {
                Self::widen_number(bounds, *min);
                Self::widen_number(bounds, *max);
            }
            Some(Bounds::Bytes(min, max)) => {
                Self::widen_bytes(bounds, min);
                Self::widen_bytes(bounds, max);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Vectors {
    norms: ExactSum,
    count: u64,
    with_nan: u64,
    lengths: Option<(u64, u64)>,
}

impl Vectors {
    fn add(&mut self, list: &ListCell<'_>) {
        let length = list.length as u64;
        let (min, max) = self.lengths.unwrap_or((length, length));
        self.lengths = Some((min.min(length), max.max(length)));
        let mut squares = 0.0f64;
        for element in list.elements().flatten() {
            let component = match element {
                Scalar::Float(value) => f64::from(value),
                Scalar::Double(value) => value,
                _ => 0.0,
            };
            squares += component * component;
        }
        if squares.is_nan() {
            self.with_nan += 1;
        } else {
            self.count += 1;
            self.norms.add(squares.sqrt());
        }
    }

    fn merge(&mut self, other: &Self) {
        self.norms.merge(&other.norms);
        self.count += other.count;
        self.with_nan += other.with_nan;
        self.lengths = match (self.lengths, other.lengths) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (one, other) => one.or(other),
        };
    }

    fn finish(&self) -> VectorStatistics {
        let (length_min, length_max) = self.lengths.unwrap_or((0, 0));
        VectorStatistics { mean_norm: mean(&self.norms, self.count), with_nan: self.with_nan, length_min, length_max }
    }
}

fn mean(sum: &ExactSum, count: u64) -> Option<f64> {
    (count > 0).then(|| Some(sum.total()? / count as f64))?
}

/// Gathers the statistics of one field.
#[derive(Clone, Debug)]
pub(crate) struct FieldAccumulator {
    data_type: FieldType,
    count: u64,
    nulls: u64,
    nans: u64,
    bytes: u64,
    bounds: Option<Bounds>,
    distinct: DistinctCount,
    sum: ExactSum,
    vectors: Vectors,
    scratch: Vec<u8>,
}

impl FieldAccumulator {
    pub(crate) fn new(data_type: FieldType) -> Self {
        Self {
            data_type,
            count: 0,
            nulls: 0,
            nans: 0,
            bytes: 0,
            bounds: None,
            distinct: DistinctCount::new(),
            sum: ExactSum::default(),
            vectors: Vectors::default(),
            scratch: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn add(&mut self, cell: &Cell<'_>) {
        match cell {
            Cell::Null => self.nulls += 1,
            Cell::Scalar(scalar) => {
                self.count += 1;
                self.bytes += scalar.payload_bytes();
                self.add_scalar(*scalar);
            }
            Cell::List(list) => {
                self.count += 1;
                self.bytes += list.payload_bytes();
                self.scratch.clear();
                for element in list.elements() {
                    self.scratch.push(u8::from(element.is_some()));
                    if let Some(scalar) = element {
                        scalar.encode(&mut self.scratch);
                    }
                }
                self.distinct.add(xxh3_64(&self.scratch));
                if self.data_type.is_vector() {
                    self.vectors.add(list);
                }
            }
        }
    }

    #[inline]
    fn add_scalar(&mut self, scalar: Scalar<'_>) {
        match scalar {
            Scalar::Boolean(value) => {
                self.distinct.add(xxh3_64(&[u8::from(value)]));
                Bounds::widen_integer(&mut self.bounds, i64::from(value));
            }
            Scalar::Int(value) => self.add_integer(i64::from(value), true),
            Scalar::Long(value) => self.add_integer(value, true),
            Scalar::Date(value) => self.add_integer(i64::from(value), false),
            Scalar::Timestamp(value) => self.add_integer(value, false),
            Scalar::Float(value) => self.add_number(f64::from(value)),
            Scalar::Double(value) => self.add_number(value),
            Scalar::String(text) => {
                self.distinct.add(xxh3_64(text.as_bytes()));
                let end = text.floor_char_boundary(BOUND_BYTES_MAX);
                Bounds::widen_bytes(&mut self.bounds, &text.as_bytes()[..end]);
            }
            Scalar::Binary(bytes) => {
                self.distinct.add(xxh3_64(bytes));
                let end = bytes.len().min(BOUND_BYTES_MAX);
                Bounds::widen_bytes(&mut self.bounds, &bytes[..end]);
            }
        }
    }

    #[inline]
    fn add_integer(&mut self, value: i64, is_number: bool) {
        self.distinct.add(xxh3_64(&value.to_le_bytes()));
        Bounds::widen_integer(&mut self.bounds, value);
        if is_number {
            self.sum.add(value as f64);
        }
    }

    #[inline]
    fn add_number(&mut self, value: f64) {
        let canonical = if value.is_nan() { f64::NAN } else { value };
        self.distinct.add(xxh3_64(&canonical.to_bits().to_le_bytes()));
        if value.is_nan() {
            self.nans += 1;
        } else {
            Bounds::widen_number(&mut self.bounds, value);
            self.sum.add(value);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.nulls += other.nulls;
        self.nans += other.nans;
        self.bytes += other.bytes;
        Bounds::merge(&mut self.bounds, &other.bounds);
        self.distinct.merge(&other.distinct);
        self.sum.merge(&other.sum);
        self.vectors.merge(&other.vectors);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn finish(&self, field: &Field) -> FieldStatistics {
        let bound = |greatest: bool| Some(self.bound(self.bounds.as_ref()?, greatest));
        let is_number =
            matches!(self.data_type, FieldType::INT | FieldType::LONG | FieldType::FLOAT | FieldType::DOUBLE);
        FieldStatistics {
            name: field.name.clone(),
            count: self.count,
            nulls: self.nulls,
            min: bound(false),
            max: bound(true),
            mean: is_number.then(|| mean(&self.sum, self.count - self.nans)).flatten(),
            // It is an estimate, and may come out above the number of values that there are.
            distinct: self.distinct.estimate().min(self.count),
            nans: self.nans,
            vectors: self.data_type.is_vector().then(|| self.vectors.finish()),
            bytes: self.bytes,
        }
    }

    fn bound(&self, bounds: &Bounds, greatest: bool) -> serde_json::Value {
        let data_type = match self.data_type {
            FieldType::Scalar(scalar) | FieldType::List(scalar) => scalar,
        };
        let scalar = match bounds {
            Bounds::Integers(min, max) => {
                let value = if greatest { *max } else { *min };
                match data_type {
                    ScalarType::Boolean => Scalar::Boolean(value != 0),
                    ScalarType::Date => Scalar::Date(value as i32),
                    ScalarType::Timestamp { .. } => Scalar::Timestamp(value),
                    _ => Scalar::Long(value),
                }
            }
            Bounds::Numbers(min, max) => {
                let value = if greatest { *max } else { *min };
                match data_type {
                    ScalarType::Float => Scalar::Float(value as f32),
                    _ => Scalar::Double(value),
                }
            }
            Bounds::Bytes(min, max) => {
                let bytes = if greatest { max } else { min };
                match std::str::from_utf8(bytes) {
                    Ok(text) if data_type == ScalarType::String => Scalar::String(text),
                    _ => Scalar::Binary(bytes),
                }
            }
        };
        json::from_scalar(scalar, data_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{ValueEncoder, ValueReader};

    fn gather(data_type: FieldType, cells: &[Cell<'_>]) -> FieldStatistics {
        let mut accumulator = FieldAccumulator::new(data_type);
        cells.iter().for_each(|cell| accumulator.add(cell));
        // Split and merged the other way round, it is the same.
        let (head, tail) = cells.split_at(cells.len() / 2);
        let (mut first, mut second) = (FieldAccumulator::new(data_type), FieldAccumulator::new(data_type));
        head.iter().for_each(|cell| first.add(cell));
        tail.iter().for_each(|cell| second.add(cell));
        second.merge(&first);
        let field = Field::nullable("f", data_type);
        assert_eq!(accumulator.finish(&field), second.finish(&field));
        accumulator.finish(&field)
    }

    #[test]
    fn counts_bounds_and_means_leave_out_what_is_no_value() {
        let cells = [
            Cell::Null,
            Cell::Scalar(Scalar::Double(1.5)),
            Cell::Scalar(Scalar::Double(f64::NAN)),
            Cell::Scalar(Scalar::Double(-0.5)),
        ];
        let found = gather(FieldType::DOUBLE, &cells);
        assert_eq!((found.count, found.nulls, found.nans), (3, 1, 1));
        assert_eq!(found.min, Some((-0.5).into()));
        assert_eq!(found.max, Some(1.5.into()));
        assert_eq!(found.mean, Some(0.5));
        assert_eq!((found.distinct, found.bytes), (3, 24));
        let empty = gather(FieldType::STRING, &[Cell::Null]);
        assert_eq!((empty.min, empty.mean, empty.distinct), (None, None, 0));
    }

    #[test]
    fn g39_norms_of_vectors_are_known_and_nan_is_counted_apart() {
        let vectors: [&[f32]; 3] = [&[3.0, 4.0], &[f32::NAN, 1.0], &[0.0, 0.0, 1.0]];
        let data_type = FieldType::List(ScalarType::Float);
        let encoded: Vec<Vec<u8>> = vectors
            .iter()
            .map(|vector| {
                let mut value = Vec::new();
                ValueEncoder::new(&mut value, 1).list(vector.iter().map(|component| Some(Scalar::Float(*component))));
                value
            })
            .collect();
        let cells: Vec<_> = encoded.iter().map(|value| ValueReader::new(value, 1).next(data_type).unwrap()).collect();
        let found = gather(data_type, &cells);
        let vectors = found.vectors.unwrap();
        assert_eq!(vectors.mean_norm, Some(3.0));
        assert_eq!(vectors.with_nan, 1);
        assert_eq!((vectors.length_min, vectors.length_max), (2, 3));
        assert_eq!((found.bytes, found.distinct, found.min), (28, 3, None));
    }

    #[test]
    fn there_are_never_more_distinct_values_than_values() {
        let mut accumulator = FieldAccumulator::new(FieldType::LONG);
        let field = Field::nullable("f", FieldType::LONG);
        let mut over = 0;
        for value in 0..5_000 {
            accumulator.add(&Cell::Scalar(Scalar::Long(value)));
            over += u64::from(accumulator.distinct.estimate() > accumulator.count);
            let found = accumulator.finish(&field);
            assert!(found.distinct <= found.count, "{} of {}", found.distinct, found.count);
        }
        assert!(over > 0, "the estimate alone never was above it");
    }

    #[test]
    fn the_distinct_count_is_within_five_standard_errors() {
        for distinct in [1u64, 10, 100, 5_000, 20_000, 300_000] {
            let mut count = DistinctCount::new();
            for value in 0..distinct {
                count.add(xxh3_64(&value.to_le_bytes()));
                count.add(xxh3_64(&value.to_le_bytes()));
            }
            let error = (count.estimate() as f64 / distinct as f64 - 1.0).abs();
            assert!(error < 0.08, "{distinct}: {}", count.estimate());
        }
    }
}
