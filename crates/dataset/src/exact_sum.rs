//! Sums of floating point numbers that do not depend on the order of the terms.
//!
//! Statistics must be a function of the set of records, not of how a build happened to be split.
//! Floating point addition rounds at every step; here terms are added as the integers that they
//! are (a multiple of 2⁻¹⁰⁷⁴), so there is nothing to round before the end.

const LIMB_BITS: u32 = 32;
/// 2098 bits hold any finite number, and so many more terms as carries may add.
const LIMBS: usize = 68;
/// Each term adds less than 2³² to a limb, so that after 2³⁰ of them an `i64` is still far from
/// its end.
const TERMS_PER_CARRY: u32 = 1 << 30;

/// An exact sum.
#[derive(Clone, Debug)]
pub(crate) struct ExactSum {
    /// Little-endian, of weight 2^(32 × position − 1074).
    limbs: Box<[i64; LIMBS]>,
    terms: u32,
    not_finite: bool,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { limbs: Box::new([0; LIMBS]), terms: 0, not_finite: false }
    }
}

impl ExactSum {
    pub(crate) fn add(&mut self, value: f64) {
        if !value.is_finite() {
            self.not_finite = true;
            return;
        }
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7ff) as u32;
        let fraction = bits & ((1 << 52) - 1);
        // A subnormal number has the weight of the smallest normal one, without the hidden bit.
        let (mantissa, shift) = match exponent {
            0 => (fraction, 0),
            _ => (fraction | 1 << 52, exponent - 1),
        };
        let wide = u128::from(mantissa) << (shift % LIMB_BITS);
        let first = (shift / LIMB_BITS) as usize;
        for piece in 0..3 {
            let part = (wide >> (LIMB_BITS * piece)) as u32;
            let part = if value.is_sign_negative() { -i64::from(part) } else { i64::from(part) };
            self.limbs[first + piece as usize] += part;
        }
        self.terms += 1;
        if self.terms == TERMS_PER_CARRY {
            self.carry();
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        self.carry();
        other.carry();
        for (limb, term) in self.limbs.iter_mut().zip(other.limbs.iter()) {
            *limb += term;
        }
        self.terms = 2;
        self.not_finite |= other.not_finite;
    }

    /// Brings every limb but the last into 0 ..= 2³² − 1: the one form that a sum has.
    fn carry(&mut self) {
        let mut carry = 0i64;
        for limb in self.limbs.iter_mut().take(LIMBS - 1) {
            let sum = *limb + carry;
            *limb = sum & 0xffff_ffff;
            carry = sum >> LIMB_BITS;
        }
        self.limbs[LIMBS - 1] += carry;
        self.terms = 0;
    }

    /// The sum, rounded once or twice in its last digit; `None` if a term was not finite.
    pub(crate) fn total(&self) -> Option<f64> {
        if self.not_finite {
            return None;
        }
        let mut sum = self.clone();
        sum.carry();
        let negative = sum.limbs[LIMBS - 1] < 0;
        if negative {
            for limb in sum.limbs.iter_mut() {
                *limb = -*limb;
            }
            sum.carry();
        }
        // From the greatest limb down; what is below the fourth that counts can't be seen.
        let mut total = 0.0f64;
        let mut seen = 0;
        for (position, limb) in sum.limbs.iter().enumerate().rev() {
            if seen > 0 || *limb != 0 {
                seen += 1;
                total += *limb as f64 * power_of_two(position as i32 * 32 - 1074);
            }
            if seen == 4 {
                break;
            }
        }
        total.is_finite().then_some(if negative { -total } else { total })
    }
}

/// 2^`exponent`, exactly, for all that a finite `f64` can be (and infinity beyond).
fn power_of_two(exponent: i32) -> f64 {
    match exponent {
        -1074..=-1023 => f64::from_bits(1 << (exponent + 1074)),
        -1022..=1023 => f64::from_bits(((exponent + 1023) as u64) << 52),
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(terms: &[f64]) -> Option<f64> {
        let mut sum = ExactSum::default();
        for term in terms {
            sum.add(*term);
        }
        sum.total()
    }

    #[test]
    fn sums_are_exact_where_floating_point_is_not() {
        assert_eq!(sum(&[]), Some(0.0));
        assert_eq!(sum(&[1e300, 1.0, -1e300]), Some(1.0));
        assert_eq!(sum(&[0.1; 10]), Some(1.0));
        assert_eq!(sum(&[5e-324, 5e-324]), Some(1e-323));
        assert_eq!(sum(&[-1.5, -2.25]), Some(-3.75));
        assert_eq!(sum(&[f64::MAX, -f64::MAX]), Some(0.0));
        assert_eq!(sum(&[1.0, f64::INFINITY]), None);
        assert_eq!(sum(&[1.0, f64::NAN]), None);
    }

    proptest! {
        #[test]
        fn neither_order_nor_grouping_counts(
            terms in proptest::collection::vec(any::<f64>().prop_filter("finite", |x| x.abs() < 1e300), 0..40),
            split in 0usize..40,
        ) {
            let split = split.min(terms.len());
            let mut reversed = terms.clone();
            reversed.reverse();
            let (mut left, mut right) = (ExactSum::default(), ExactSum::default());
            terms[..split].iter().for_each(|term| left.add(*term));
            terms[split..].iter().for_each(|term| right.add(*term));
            left.merge(&right);
            prop_assert_eq!(sum(&terms), sum(&reversed));
            prop_assert_eq!(sum(&terms), left.total());
        }

        #[test]
        fn one_term_is_itself(term in any::<f64>().prop_filter("finite", |x| x.is_finite())) {
            prop_assert_eq!(sum(&[term]), Some(term));
        }
    }
}
