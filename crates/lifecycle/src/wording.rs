//! How times, durations and figures are written for people.

use std::time::Duration;

use tidegate_state::Timestamp;

/// `2026-03-01T12:00:00Z`, in UTC.
pub(crate) fn time(at: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(at) => at.to_string(),
        Err(_) => at.to_string(),
    }
}

/// `1 h 30 min`, `250 ms`: the two greatest units that are not zero.
pub(crate) fn duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0 s".to_owned();
    }
    let mut rest = milliseconds;
    let mut parts = Vec::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)] {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            parts.push(format!("{count} {unit}"));
        }
        if parts.len() == 2 {
            break;
        }
    }
    parts.join(" ")
}

/// `1,000,000`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A figure beside the limit that it broke, with one decimal, or as many as it takes to see that they differ.
pub(crate) fn beside(measured: f64, limit: f64) -> String {
    if !measured.is_finite() {
        return measured.to_string();
    }
    for decimals in 1..=6 {
        let text = format!("{measured:.decimals$}");
        if text.parse::<f64>() != Ok(limit) {
            return text;
        }
    }
    measured.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_their_two_greatest_units() {
        for (milliseconds, text) in
            [(0, "0 s"), (250, "250 ms"), (60_000, "1 min"), (5_400_000, "1 h 30 min"), (90_061_001, "1 d 1 h")]
        {
            assert_eq!(duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn a_figure_that_broke_its_limit_never_looks_like_it() {
        assert_eq!(beside(38.21, 5.0), "38.2");
        assert_eq!(beside(10.0001, 10.0), "10.0001");
        assert_eq!(beside(f64::NAN, 10.0), "NaN");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(count(999), "999");
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(time(Timestamp(1_772_366_400_000)), "2026-03-01T12:00:00Z");
    }
}
