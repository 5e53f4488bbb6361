//! Checks of linear layers without their weights (R. Freivalds, *Probabilistic machines can use less running time*, 1977).
//!
//! For a secret random vector `r` over a prime field, whoever keeps `r` and `u = rᵀW` tests whether claimed sums `y` are
//! `W · x` by `r·y = u·x`: one product for each row and each column instead of one for each weight. If any sum is wrong,
//! `r·(y - W·x)` is uniform, so the test passes with probability `1/P`, whatever the other sums are.
//!
//! The field is that of [`P`], `2^61 - 1`. It exceeds twice the largest sum, so two different sums differ in it too.

/// The prime, `2^61 - 1`.
pub const P: u64 = (1 << 61) - 1;

/// The largest magnitude of a sum that may be tested.
pub const SUM_MAX: i64 = 1 << 52;

/// Products that are added before they are reduced: `2^12 · 2^61 · 2^52 < 2^127`.
const RUN: usize = 1 << 12;

/// The residue of a sum.
fn reduce(value: i128) -> u64 {
    let size = value.unsigned_abs();
    let folded = (size as u64 & P) + ((size >> 61) as u64 & P) + (size >> 122) as u64;
    let folded = (folded & P) + (folded >> 61);
    let residue = if folded >= P { folded - P } else { folded };
    if value < 0 && residue != 0 { P - residue } else { residue }
}

/// `r · y` for exact sums, within ±[`SUM_MAX`], and elements below [`P`]. What one slice has more than the other does not
/// count.
pub fn of_sums(r: &[u64], y: &[i64]) -> u64 {
    let run = |(r, y): (&[u64], &[i64])| {
        r.iter().zip(y).fold(0i128, |sum, (&r, &y)| sum + i128::from(r as i64) * i128::from(y))
    };
    let runs = r.chunks(RUN).zip(y.chunks(RUN)).map(run).map(reduce);
    runs.fold(0, |sum, part| reduce(i128::from(sum) + i128::from(part)))
}

/// `u · x` for quantised activations, or any 16-bit numbers, and elements below [`P`].
pub fn of_values(u: &[u64], x: &[i16]) -> u64 {
    // At most 2^20 products of 61 and 15 bits.
    reduce(u.iter().zip(x).fold(0i128, |sum, (&u, &x)| sum + i128::from(u as i64) * i128::from(x)))
}

/// `u = rᵀW` row by row, in one pass over a matrix.
#[derive(Debug, Clone)]
pub struct Projection {
    sums: Vec<i128>,
}

impl Projection {
    /// Nothing, for a matrix of so many columns.
    pub fn new(cols: usize) -> Projection {
        Projection { sums: vec![0; cols] }
    }

    /// Adds a row of 16-bit weights times its element of `r`, below [`P`]. At most `2^40` rows.
    pub fn add(&mut self, r: u64, row: &[i16]) {
        for (sum, &w) in self.sums.iter_mut().zip(row) {
            *sum += i128::from(r as i64) * i128::from(w);
        }
    }

    /// Adds what was made of other rows of the same matrix.
    pub fn merge(&mut self, other: &Projection) {
        for (sum, other) in self.sums.iter_mut().zip(&other.sums) {
            *sum += other;
        }
    }

    /// `u`.
    pub fn finish(self) -> Vec<u64> {
        self.sums.into_iter().map(reduce).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn residues_are_those_of_division() {
        let p = i128::from(P);
        for value in
            [0, 1, -1, p, -p, p + 1, 2 * p - 1, i128::MAX, i128::MIN + 1, p * p, 1 << 122, -(1 << 122)]
        {
            assert_eq!(i128::from(reduce(value)), value.rem_euclid(p), "{value}");
        }
    }

    fn element() -> impl Strategy<Value = u64> {
        prop_oneof![0..P, Just(P - 1), Just(0)]
    }

    proptest! {
        #[test]
        fn dot_products_are_those_of_the_field(
            r in proptest::collection::vec(element(), 0..9),
            y in proptest::collection::vec(-SUM_MAX..=SUM_MAX, 0..9),
        ) {
            let p = i128::from(P);
            let slow = |terms: &mut dyn Iterator<Item = (u64, i64)>| terms.fold(0, |sum: i128, (r, y)| {
                (sum + i128::from(r) * i128::from(y).rem_euclid(p)) % p
            });
            prop_assert_eq!(i128::from(of_sums(&r, &y)), slow(&mut r.iter().copied().zip(y.iter().copied())));
            let x: Vec<i16> = y.iter().map(|&y| y as i16).collect();
            let wide = x.iter().map(|&x| i64::from(x));
            prop_assert_eq!(i128::from(of_values(&r, &x)), slow(&mut r.iter().copied().zip(wide)));
        }

        #[test]
        fn what_is_multiplied_right_passes_and_nothing_else(
            rows in 1usize..6, cols in 1usize..6, seed: u64, row: prop::sample::Index, error in 1i64..1 << 40,
        ) {
            let number = |i: usize| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(2 * i as u64 + 1) >> 3;
            let w: Vec<Vec<i16>> =
                (0..rows).map(|r| (0..cols).map(|c| number(r * cols + c) as i16).collect()).collect();
            let x: Vec<i16> = (0..cols).map(|c| number(99 + c) as i16).collect();
            let r: Vec<u64> = (0..rows).map(|i| number(999 + i) % (P - 1) + 1).collect();
            let mut y: Vec<i64> = w
                .iter()
                .map(|w| w.iter().zip(&x).map(|(&w, &x)| i64::from(w) * i64::from(x)).sum())
                .collect();
            let (first, rest) = w.split_at(rows / 2);
            let mut whole = Projection::new(cols);
            for (part, skip) in [(first, 0), (rest, rows / 2)] {
                let mut projection = Projection::new(cols);
                part.iter().zip(&r[skip..]).for_each(|(w, &r)| projection.add(r, w));
                whole.merge(&projection);
            }
            let u = whole.finish();
            prop_assert_eq!(of_sums(&r, &y), of_values(&u, &x));
            y[row.index(rows)] += error;
            prop_assert_ne!(of_sums(&r, &y), of_values(&u, &x));
        }
    }

    #[test]
    fn long_rows_do_not_overflow() {
        let (r, y) = (vec![P - 1; 3 * RUN + 1], vec![SUM_MAX; 3 * RUN + 1]);
        let expected =
            (i128::from(P) - (1i128 << 52) * (3 * RUN as i128 + 1) % i128::from(P)) % i128::from(P);
        assert_eq!(i128::from(of_sums(&r, &y)), expected);
        let y = vec![-SUM_MAX; 3 * RUN + 1];
        assert_eq!(i128::from(of_sums(&r, &y)), i128::from(P) - expected);
    }
}
