//! Guesses of the next tokens, which one pass can check together: what follows the same words earlier in the text
//! (prompt look-up: Saxena, 2023; the checking: Leviathan, Kalman and Matias, "Fast Inference from Transformers via
//! Speculative Decoding", 2023).
//!
//! Nothing here can change an answer: a guess counts only if it is the token that the model itself chooses at that
//! position, and that choice is a function of logits, seed and position.

/// Lengths of the last words that are looked up, the longest first.
const WORDS: [usize; 2] = [3, 2];

/// How many rows more a pass takes for the time that a pass takes anyway: reading the weights and meeting at barriers.
/// Measured with the default model on two busy cores: between one half and three, by the encoding of the weights. The
/// smaller number errs on the side of plain decoding.
const FREE_ROWS: u64 = 1;

/// One, in the unit of shares.
pub(crate) const ONE: u64 = 1 << 16;

/// After a guess was wrong so often that it does not pay, it is tried again after so many chances.
const PAUSE: u32 = 16;
const PAUSE_MAX: u32 = 256;

/// How a sequence's guesses have turned out.
#[derive(Debug, Clone)]
pub(crate) struct Guess {
    /// The share of guesses that were right, of [`ONE`], the newest weighing most.
    right: u64,
    /// Chances to let pass before the next trial, and how many it will be after the next failure.
    pause: u32,
    next_pause: u32,
}

impl Default for Guess {
    fn default() -> Self {
        Guess { right: ONE * 3 / 5, pause: 0, next_pause: PAUSE }
    }
}

impl Guess {
    /// How many guesses are worth their time in a pass that has `rows` rows without them. A row more costs
    /// `1 / (FREE_ROWS + rows)` of the pass and brings a token with the probability that all guesses up to it are
    /// right; it pays if that is more than what the pass brings for the same time. To make the guess costs `cost` of a
    /// pass with one row, in units of [`ONE`].
    pub(crate) fn worth(&self, rows: usize, cost: u64, most: usize) -> usize {
        let rows = rows.max(1) as u64;
        let needed = (ONE + cost * (FREE_ROWS + 1) / rows) * rows / (FREE_ROWS + rows);
        let mut all_right = ONE;
        (0..most)
            .take_while(|_| {
                all_right = all_right * self.right / ONE;
                all_right >= needed
            })
            .count()
    }

    /// As [`Guess::worth`] when there is something to guess; once in a while 1 although it does not seem to pay, since
    /// the text may have changed.
    pub(crate) fn length(&mut self, rows: usize, cost: u64, most: usize) -> usize {
        match self.worth(rows, cost, most) {
            0 if most == 0 => 0,
            0 if self.pause == 0 => {
                self.pause = self.next_pause;
                self.next_pause = (2 * self.next_pause).min(PAUSE_MAX);
                1
            }
            0 => {
                self.pause -= 1;
                0
            }
            length => length,
        }
    }

    /// Notes that of `guessed` tokens the first `right` were chosen.
    pub(crate) fn learn(&mut self, guessed: usize, right: usize) {
        for _ in 0..right {
            self.right += (ONE - self.right) / 4;
            self.next_pause = PAUSE;
        }
        if right < guessed {
            self.right -= self.right / 4;
        }
    }
}

/// What followed the last words where they stood before, most recently; where the text ends there, it goes on with the
/// guess itself, so that a repetition is followed for as long as wanted.
pub(crate) fn look_up(tokens: &[u32], most: usize) -> Vec<u32> {
    for words in WORDS {
        if tokens.len() <= words {
            continue;
        }
        let (before, last) = (&tokens[..tokens.len() - 1], &tokens[tokens.len() - words..]);
        if let Some(at) = before.windows(words).rposition(|found| found == last) {
            let next = &tokens[at + words..];
            return next.iter().cycle().take(most).copied().collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_followed_last() {
        assert_eq!(look_up(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(look_up(&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 2), [5, 1]);
        assert_eq!(look_up(&[9, 2, 3, 4, 8, 2, 3], 6), [4, 8, 2, 3, 4, 8]);
        assert_eq!(look_up(&[7, 7, 7], 3), [7, 7, 7]);
        assert!(look_up(&[1, 2, 3, 4], 8).is_empty());
        assert!(look_up(&[1], 8).is_empty() && look_up(&[], 8).is_empty());
        assert!(look_up(&[1, 2, 3, 4, 1, 2, 3], 0).is_empty());
    }

    #[test]
    fn wrong_guesses_end_and_are_rarely_tried_again() {
        let mut guess = Guess::default();
        let mut rows = 0;
        for _ in 0..1000 {
            let length = guess.length(1, 0, 8);
            rows += length;
            if length > 0 {
                guess.learn(length, 0);
            }
        }
        assert!((4..20).contains(&rows), "{rows} rows of 1000 were wasted");
    }

    #[test]
    fn right_guesses_grow_and_full_passes_take_none() {
        let mut guess = Guess::default();
        for _ in 0..20 {
            let length = guess.length(1, 0, 8);
            guess.learn(length, length);
        }
        assert_eq!(guess.length(1, 0, 8), 8);
        assert_eq!(Guess::default().worth(200, 0, 8), 0);
        assert_eq!(guess.length(1, 0, 0), 0);
    }
}
