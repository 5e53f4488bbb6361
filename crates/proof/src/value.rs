//! What the verifier computes with: the prover's messages as they are, or hidden ones.
//!
//! A hiding prover sends `m + v` in place of a message `m`, where the pad `v` is committed beforehand together with a blind `b`. Much later
//! it learns a challenge `γ` and says `v* = b + γ v`. So whoever has `v*` can compute `γ m - b = γ (m + v) - v*`, and from such numbers those
//! of every linear function of messages: the verifier's arithmetic stays what it is, on polynomials in `γ` of degree 1 with `m` as the
//! leading coefficient. A check that a product is equal to something becomes a polynomial of degree 2, whose leading
//! coefficient is zero when the check on the messages holds. [`hiding`](crate::hiding) looks at all of them at once.

use std::iter::Sum;
use std::ops::{Add, Mul, Sub};

use p3_field::PrimeCharacteristicRing as _;

use crate::Error;
use crate::field::{Challenger, E, absorb, observe};

/// What is left of checks on hidden messages: their coefficients of 1, `γ` and `γ²`. Empty without hiding.
pub(crate) type Residuals = Vec<[E; 3]>;

/// A message, or what was computed from messages by linear functions.
pub(crate) trait Value:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<E, Output = Self> + Sum
{
    /// A sum of products of two.
    type Product: Copy + Add<Output = Self::Product> + Mul<E, Output = Self::Product>;

    /// What everybody knows.
    fn known(value: E) -> Self;

    fn times(self, other: Self) -> Self::Product;

    /// Absorbs messages as they were sent.
    fn absorb(messages: &[Self], challenger: &mut Challenger);

    /// Checks that `product` is `value`.
    ///
    /// # Errors
    /// [`Error::Rejected`] with these words, when it can be told already.
    fn equal(
        product: Self::Product,
        value: Self,
        residuals: &mut Residuals,
        otherwise: &'static str,
    ) -> Result<(), Error>;
}

impl Value for E {
    type Product = E;

    fn known(value: E) -> E {
        value
    }

    fn times(self, other: E) -> E {
        self * other
    }

    fn absorb(messages: &[E], challenger: &mut Challenger) {
        observe(challenger, messages);
    }

    fn equal(product: E, value: E, _: &mut Residuals, otherwise: &'static str) -> Result<(), Error> {
        if product == value { Ok(()) } else { Err(Error::Rejected(otherwise)) }
    }
}

/// A hidden message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hidden {
    /// What was sent in its place; of no meaning in what was computed.
    pub(crate) sent: E,
    /// `γ m - b`: the coefficients of 1 and of `γ`, for whoever is to compute it.
    pub(crate) masked: [E; 2],
}

impl Hidden {
    fn map(self, other: Hidden, with: impl Fn(E, E) -> E) -> Hidden {
        let ([a, b], [c, d]) = (self.masked, other.masked);
        Hidden { sent: with(self.sent, other.sent), masked: [with(a, c), with(b, d)] }
    }
}

impl Add for Hidden {
    type Output = Hidden;

    fn add(self, other: Hidden) -> Hidden {
        self.map(other, |a, b| a + b)
    }
}

impl Sub for Hidden {
    type Output = Hidden;

    fn sub(self, other: Hidden) -> Hidden {
        self.map(other, |a, b| a - b)
    }
}

impl Mul<E> for Hidden {
    type Output = Hidden;

    fn mul(self, factor: E) -> Hidden {
        self.map(self, |a, _| a * factor)
    }
}

impl Sum for Hidden {
    fn sum<I: Iterator<Item = Hidden>>(values: I) -> Hidden {
        values.fold(Hidden::known(E::ZERO), Add::add)
    }
}

/// A polynomial of degree 2 in `γ`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Square([E; 3]);

impl Add for Square {
    type Output = Square;

    fn add(self, other: Square) -> Square {
        Square(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
}

impl Mul<E> for Square {
    type Output = Square;

    fn mul(self, factor: E) -> Square {
        Square(self.0.map(|coefficient| coefficient * factor))
    }
}

impl Value for Hidden {
    type Product = Square;

    fn known(value: E) -> Hidden {
        Hidden { sent: value, masked: [E::ZERO, value] }
    }

    fn times(self, other: Hidden) -> Square {
        let ([a, b], [c, d]) = (self.masked, other.masked);
        Square([a * c, a * d + b * c, b * d])
    }

    fn absorb(messages: &[Hidden], challenger: &mut Challenger) {
        let sent: Vec<E> = messages.iter().map(|message| message.sent).collect();
        absorb(&mut challenger.sponge, &sent);
    }

    fn equal(
        product: Square,
        value: Hidden,
        residuals: &mut Residuals,
        _: &'static str,
    ) -> Result<(), Error> {
        // `γ` times the value, so that the leading coefficients are those of one degree.
        let (Square([zero, one, two]), [low, high]) = (product, value.masked);
        residuals.push([zero, one - low, two - high]);
        Ok(())
    }
}
