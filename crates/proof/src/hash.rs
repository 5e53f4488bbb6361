//! BLAKE3 as Merkle trees and transcript use it. Many equally long messages are hashed side by side, by the vector
//! instructions that the `blake3` crate has for the parts of one long message.

use std::sync::OnceLock;

use blake3::platform::Platform;
use blake3::{BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN};
use p3_symmetric::CryptographicHasher;

/// Initial value and flags (BLAKE3, section 2.2): first and last block of a chunk, and a chunk that is a whole message.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const ROOT: u8 = 1 << 3;

/// The hash function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blake3;

impl CryptographicHasher<u8, [u8; OUT_LEN]> for Blake3 {
    const LANES: usize = 16;

    fn hash_iter<I: IntoIterator<Item = u8>>(&self, input: I) -> [u8; OUT_LEN] {
        let (mut hasher, mut buffer, mut filled) = (blake3::Hasher::new(), [0; 8 * BLOCK_LEN], 0);
        for byte in input {
            buffer[filled] = byte;
            filled += 1;
            if filled == buffer.len() {
                hasher.update(&buffer);
                filled = 0;
            }
        }
        hasher.update(&buffer[..filled]).finalize().into()
    }

    fn hash_iter_slices<'a, I: IntoIterator<Item = &'a [u8]>>(&self, input: I) -> [u8; OUT_LEN] {
        let mut hasher = blake3::Hasher::new();
        for part in input {
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    fn hash_many(&self, input: &[u8], out: &mut [[u8; OUT_LEN]]) {
        if out.is_empty() {
            return;
        }
        let length = input.len() / out.len();
        assert_eq!(length * out.len(), input.len(), "messages of one length");
        // The lengths of nodes, and of the rows of a commitment: 16 or 32 elements of either field.
        match length {
            64 => side_by_side::<64>(input, out),
            128 => side_by_side::<128>(input, out),
            320 => side_by_side::<320>(input, out),
            640 => side_by_side::<640>(input, out),
            _ => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = blake3::hash(&input[i * length..(i + 1) * length]).into();
                }
            }
        }
    }
}

/// Hashes messages of `N` bytes: whole blocks, at most a chunk.
fn side_by_side<const N: usize>(input: &[u8], out: &mut [[u8; OUT_LEN]]) {
    const { assert!(N.is_multiple_of(BLOCK_LEN) && N <= CHUNK_LEN) };
    static PLATFORM: OnceLock<Platform> = OnceLock::new();
    let platform = PLATFORM.get_or_init(Platform::detect);
    let (messages, _) = input.as_chunks::<N>();
    const GROUP: usize = <Blake3 as CryptographicHasher<u8, [u8; OUT_LEN]>>::LANES;
    for (messages, out) in messages.chunks(GROUP).zip(out.chunks_mut(GROUP)) {
        let mut group = [&messages[0]; GROUP];
        for (place, message) in group.iter_mut().zip(messages) {
            *place = message;
        }
        platform.hash_many(
            &group[..messages.len()],
            &IV,
            0,
            IncrementCounter::No,
            0,
            CHUNK_START,
            CHUNK_END | ROOT,
            out.as_flattened_mut(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference is the `blake3` crate's own function, which is tested against the published vectors.
    #[test]
    fn many_messages_have_the_hashes_of_each() {
        let bytes: Vec<u8> = (0..50 * 700usize).map(|i| (i * i % 251) as u8).collect();
        for length in [0, 1, 63, 64, 65, 128, 320, 640, 700] {
            for count in [0, 1, 3, 16, 17, 50] {
                let input = &bytes[..length * count];
                let mut out = vec![[0; OUT_LEN]; count];
                Blake3.hash_many(input, &mut out);
                for (i, out) in out.iter().enumerate() {
                    let message = &input[i * length..(i + 1) * length];
                    assert_eq!(out, blake3::hash(message).as_bytes(), "{count} of {length}");
                    assert_eq!(*out, Blake3.hash_iter(message.iter().copied()));
                    assert_eq!(*out, Blake3.hash_iter_slices(message.chunks(7)));
                }
            }
        }
    }
}
