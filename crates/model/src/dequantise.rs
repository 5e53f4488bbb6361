//! The tensor types of GGUF and safetensors: their integers with what those stand for, or decoded to `f32`.
//!
//! Blocks of 32 ("legacy") carry one or two half floats and packed integers. Super-blocks of 256 ("K") carry half
//! floats for the whole and small integer scales for their sub-blocks. All numbers are little-endian. Every operation
//! is one IEEE 754 multiplication, addition or subtraction on `f32`, so the results are the same on every machine.

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)] // the format's own names
pub(crate) enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Elements in a K super-block.
const SUPER: usize = 256;

impl TensorType {
    /// The type with this number in a GGUF file.
    pub(crate) fn from_gguf(number: u32) -> Option<TensorType> {
        Some(match number {
            0 => TensorType::F32,
            1 => TensorType::F16,
            2 => TensorType::Q4_0,
            3 => TensorType::Q4_1,
            6 => TensorType::Q5_0,
            7 => TensorType::Q5_1,
            8 => TensorType::Q8_0,
            12 => TensorType::Q4_K,
            13 => TensorType::Q5_K,
            14 => TensorType::Q6_K,
            30 => TensorType::BF16,
            _ => return None,
        })
    }

    /// Elements and bytes of a block.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            TensorType::F32 => (1, 4),
            TensorType::F16 | TensorType::BF16 => (1, 2),
            TensorType::Q4_0 => (32, 2 + 16),
            TensorType::Q4_1 => (32, 4 + 16),
            TensorType::Q5_0 => (32, 2 + 4 + 16),
            TensorType::Q5_1 => (32, 4 + 4 + 16),
            TensorType::Q8_0 => (32, 2 + 32),
            TensorType::Q4_K => (SUPER, 4 + 12 + 128),
            TensorType::Q5_K => (SUPER, 4 + 12 + 32 + 128),
            TensorType::Q6_K => (SUPER, 128 + 64 + 16 + 2),
        }
    }

    /// Bytes of `elements` elements; `None` unless they fill whole blocks and the size fits.
    pub(crate) fn bytes(self, elements: u64) -> Option<u64> {
        let (block, bytes) = self.block();
        if !elements.is_multiple_of(block as u64) {
            return None;
        }
        (elements / block as u64).checked_mul(bytes as u64)
    }

    /// Decodes `bytes`, which hold exactly `out.len()` elements.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            TensorType::F32 => {
                for (y, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *y = f32::from_le_bytes(*b);
                }
            }
            TensorType::F16 => out.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(y, b)| *y = half(b)),
            TensorType::BF16 => {
                for (y, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *y = f32::from_le_bytes([0, 0, b[0], b[1]]);
                }
            }
            _ => {
                let mut integers = vec![0; out.len()];
                let mut runs = Vec::new();
                self.integers(bytes, &mut integers, &mut runs);
                let length = self.run();
                for ((y, q), run) in out.chunks_mut(length).zip(integers.chunks(length)).zip(runs) {
                    y.iter_mut().zip(q).for_each(|(y, q)| *y = run.step * f32::from(*q) + run.offset);
                }
            }
        }
    }

    /// Elements that share a step and an offset; 32 for floats, which have none.
    pub(crate) fn run(self) -> usize {
        if self == TensorType::Q6_K { 16 } else { 32 }
    }

    /// The integers of a quantised type as the file has them, and what they stand for. `bytes` hold exactly `q.len()`
    /// elements; a run is appended for each [`TensorType::run`] of them. Floats have no integers and give nothing.
    pub(crate) fn integers(self, bytes: &[u8], q: &mut [i8], runs: &mut Vec<Run>) {
        let (elements, size) = self.block();
        debug_assert_eq!(bytes.len() / size * elements, q.len());
        for (b, q) in bytes.chunks_exact(size).zip(q.chunks_exact_mut(elements)) {
            match self {
                TensorType::F32 | TensorType::F16 | TensorType::BF16 => {}
                TensorType::Q4_0 => {
                    runs.push(Run { step: half(b), offset: NONE });
                    nibbles(&b[2..], q, |four, _| four as i8 - 8);
                }
                TensorType::Q4_1 => {
                    runs.push(Run { step: half(b), offset: half(&b[2..]) });
                    nibbles(&b[4..], q, |four, _| four as i8);
                }
                TensorType::Q5_0 => {
                    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
                    runs.push(Run { step: half(b), offset: NONE });
                    nibbles(&b[6..], q, |four, i| (four | fifth_bit(high, i)) as i8 - 16);
                }
                TensorType::Q5_1 => {
                    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
                    runs.push(Run { step: half(b), offset: half(&b[2..]) });
                    nibbles(&b[8..], q, |four, i| (four | fifth_bit(high, i)) as i8);
                }
                TensorType::Q8_0 => {
                    runs.push(Run { step: half(b), offset: NONE });
                    q.iter_mut().zip(&b[2..]).for_each(|(q, byte)| *q = *byte as i8);
                }
                TensorType::Q4_K => k_4_or_5(b, None, &b[16..], q, runs),
                TensorType::Q5_K => k_4_or_5(b, Some(&b[16..48]), &b[48..], q, runs),
                TensorType::Q6_K => k_6(b, q, runs),
            }
        }
    }
}

/// What the integers of a run stand for: `step · q + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Run {
    pub(crate) step: f32,
    pub(crate) offset: f32,
}

/// The offset of types that have none: negative zero changes no sum, not even that of negative zeros.
const NONE: f32 = -0.0;

/// The half float at the front of `b`.
fn half(b: &[u8]) -> f32 {
    let bits = u32::from(b[0]) | u32::from(b[1]) << 8;
    let (sign, exponent, fraction) = (bits >> 15 << 31, bits >> 10 & 31, bits & 0x3ff);
    match exponent {
        // Subnormal: the fraction counts units of 2^-24; the product is exact.
        0 => f32::from_bits(sign | (fraction as f32 * (1.0 / 16_777_216.0)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// Sixteen bytes hold elements 0 to 15 in their low and 16 to 31 in their high halves.
fn nibbles(packed: &[u8], q: &mut [i8], value: impl Fn(u8, usize) -> i8) {
    let (low, high) = q.split_at_mut(16);
    for (i, ((low, high), byte)) in low.iter_mut().zip(high).zip(packed).enumerate() {
        *low = value(byte & 15, i);
        *high = value(byte >> 4, i + 16);
    }
}

/// Bit `i` of `high` as the fifth bit of an element.
fn fifth_bit(high: u32, i: usize) -> u8 {
    ((high >> i & 1) as u8) << 4
}

/// The 6-bit scale and minimum of sub-block `i` (0 to 7), packed in 12 bytes: those of the first four in the low six
/// bits of a byte each; of the last four, the low halves in the last four bytes and the two high bits in the spare bits
/// of the first eight.
fn k_scale(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// Q4_K and Q5_K: each 32 packed bytes hold two sub-blocks of 32, in their low and high halves; the fifth bits of
/// sub-block `i` are bit `i` of the 32 bytes `high`.
fn k_4_or_5(b: &[u8], high: Option<&[u8]>, packed: &[u8], q: &mut [i8], runs: &mut Vec<Run>) {
    let (d, dmin, scales) = (half(b), half(&b[2..]), &b[4..16]);
    for (i, q) in q.chunks_exact_mut(32).enumerate() {
        let (scale, min) = k_scale(scales, i);
        runs.push(Run { step: d * scale, offset: -(dmin * min) });
        let bytes = &packed[i / 2 * 32..];
        for (j, q) in q.iter_mut().enumerate() {
            let low = if i & 1 == 0 { bytes[j] & 15 } else { bytes[j] >> 4 };
            *q = (low | high.map_or(0, |high| (high[j] >> i & 1) << 4)) as i8;
        }
    }
}

/// Q6_K: two halves of 128 elements; in each, four runs of 32 share 64 bytes of low halves and 32 bytes of high pairs of
/// bits, and each run of 16 has a signed 8-bit scale.
fn k_6(b: &[u8], q: &mut [i8], runs: &mut Vec<Run>) {
    let d = half(&b[208..]);
    runs.extend(b[192..208].iter().map(|scale| Run { step: d * f32::from(*scale as i8), offset: NONE }));
    for (n, q) in q.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&b[n * 64..], &b[128 + n * 32..]);
        for (run, q) in q.chunks_exact_mut(32).enumerate() {
            for (j, q) in q.iter_mut().enumerate() {
                let byte = low[(run & 1) * 32 + j];
                let four = if run < 2 { byte & 15 } else { byte >> 4 };
                let two = high[j] >> (2 * run) & 3;
                *q = (four | two << 4) as i8 - 32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(kind: TensorType, bytes: &[u8]) -> Vec<f32> {
        let (elements, size) = kind.block();
        let mut out = vec![f32::NAN; bytes.len() / size * elements];
        kind.decode(bytes, &mut out);
        out
    }

    /// Half floats written by hand: 1, 0.5, -2, 0.25.
    const ONE: [u8; 2] = [0x00, 0x3c];
    const HALF: [u8; 2] = [0x00, 0x38];
    const MINUS_TWO: [u8; 2] = [0x00, 0xc0];
    const QUARTER: [u8; 2] = [0x00, 0x34];

    #[test]
    fn plain_floats() {
        assert_eq!(decode(TensorType::F32, &1.5f32.to_le_bytes()), [1.5]);
        assert_eq!(decode(TensorType::BF16, &[0xc0, 0xbf]), [-1.5]);
        let halves =
            [ONE, HALF, MINUS_TWO, [0xff, 0x7b], [0x01, 0x00], [0x01, 0x80], [0x00, 0x04], [0x00, 0x80]];
        let expected = [1.0, 0.5, -2.0, 65504.0, 5.960_464_5e-8, -5.960_464_5e-8, 6.103_515_6e-5, -0.0];
        assert_eq!(decode(TensorType::F16, &halves.concat()), expected);
        assert!(decode(TensorType::F16, &[0x00, 0x7c])[0].is_infinite());
        assert!(decode(TensorType::F16, &[0x01, 0x7e])[0].is_nan());
    }

    #[test]
    fn q4_0_and_q4_1() {
        // Byte i has i in its low and 15 - i in its high half.
        let packed: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let y = decode(TensorType::Q4_0, &[&HALF[..], &packed].concat());
        for i in 0..16 {
            assert_eq!(y[i], 0.5 * (i as f32 - 8.0));
            assert_eq!(y[i + 16], 0.5 * (7.0 - i as f32));
        }
        let y = decode(TensorType::Q4_1, &[&HALF[..], &MINUS_TWO, &packed].concat());
        for i in 0..16 {
            assert_eq!(y[i], 0.5 * i as f32 - 2.0);
            assert_eq!(y[i + 16], 0.5 * (15.0 - i as f32) - 2.0);
        }
    }

    #[test]
    fn q5_0_and_q5_1() {
        let packed: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        // The fifth bit is set for elements 0, 5, 16 and 31.
        let high = (1u32 | 1 << 5 | 1 << 16 | 1 << 31).to_le_bytes();
        let five = |i: usize| {
            let low = if i < 16 { i } else { 31 - i };
            (low + if [0, 5, 16, 31].contains(&i) { 16 } else { 0 }) as f32
        };
        let y = decode(TensorType::Q5_0, &[&QUARTER[..], &high, &packed].concat());
        assert!((0..32).all(|i| y[i] == 0.25 * (five(i) - 16.0)));
        let y = decode(TensorType::Q5_1, &[&QUARTER[..], &ONE, &high, &packed].concat());
        assert!((0..32).all(|i| y[i] == 0.25 * five(i) + 1.0));
    }

    #[test]
    fn q8_0() {
        let packed: Vec<u8> = (0..32u8).map(|i| i.wrapping_mul(8)).collect();
        let y = decode(TensorType::Q8_0, &[&HALF[..], &packed].concat());
        assert_eq!((y[0], y[1], y[15], y[16], y[31]), (0.0, 4.0, 60.0, -64.0, -4.0));
    }

    /// Packs eight 6-bit scales and minima by the format's definition.
    fn pack_scales(scales: [u8; 8], mins: [u8; 8]) -> Vec<u8> {
        let mut out = vec![0; 12];
        for i in 0..4 {
            out[i] = scales[i] | (scales[i + 4] >> 4) << 6;
            out[i + 4] = mins[i] | (mins[i + 4] >> 4) << 6;
            out[i + 8] = (scales[i + 4] & 15) | (mins[i + 4] & 15) << 4;
        }
        out
    }

    #[test]
    fn q4_k_and_q5_k() {
        let (scales, mins) = ([1, 2, 3, 63, 17, 33, 48, 62], [0, 1, 63, 5, 16, 31, 47, 60]);
        let front = [&HALF[..], &QUARTER, &pack_scales(scales, mins)].concat();
        // Element e of 256 holds e * 7 mod 16 (Q4), and e * 11 mod 32 (Q5).
        let pack = |value: &dyn Fn(usize) -> usize| -> Vec<u8> {
            (0..128)
                .map(|b| {
                    let (pair, j) = (b / 32, b % 32);
                    ((value(pair * 64 + j) & 15) | (value(pair * 64 + 32 + j) & 15) << 4) as u8
                })
                .collect()
        };
        let four = |e: usize| e * 7 % 16;
        let y = decode(TensorType::Q4_K, &[&front[..], &pack(&four)].concat());
        for (e, y) in y.iter().enumerate() {
            let (scale, min) = (f32::from(scales[e / 32]), f32::from(mins[e / 32]));
            assert_eq!(*y, 0.5 * scale * four(e) as f32 - 0.25 * min, "element {e}");
        }
        let five = |e: usize| e * 11 % 32;
        let high: Vec<u8> =
            (0..32).map(|j| (0..8).fold(0, |byte, s| byte | ((five(s * 32 + j) >> 4) as u8) << s)).collect();
        let y = decode(TensorType::Q5_K, &[&front[..], &high, &pack(&five)].concat());
        for (e, y) in y.iter().enumerate() {
            let (scale, min) = (f32::from(scales[e / 32]), f32::from(mins[e / 32]));
            assert_eq!(*y, 0.5 * scale * five(e) as f32 - 0.25 * min, "element {e}");
        }
    }

    #[test]
    fn q6_k() {
        let six = |e: usize| e * 13 % 64;
        let scale = |run: usize| (run as i32 * 15 - 120) as i8;
        let mut block = vec![0u8; 210];
        for e in 0..256 {
            let (half, run, j) = (e / 128, e % 128 / 32, e % 32);
            block[half * 64 + run % 2 * 32 + j] |= ((six(e) & 15) << (run / 2 * 4)) as u8;
            block[128 + half * 32 + j] |= ((six(e) >> 4) << (run * 2)) as u8;
        }
        for run in 0..16 {
            block[192 + run] = scale(run) as u8;
        }
        block[208..].copy_from_slice(&HALF);
        for (e, y) in decode(TensorType::Q6_K, &block).iter().enumerate() {
            assert_eq!(*y, 0.5 * f32::from(scale(e / 16)) * (six(e) as f32 - 32.0), "element {e}");
        }
    }

    #[test]
    fn sizes_must_fill_blocks() {
        assert_eq!(TensorType::Q4_K.bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.bytes(128), None);
        assert_eq!(TensorType::F32.bytes(u64::MAX), None);
    }

    /// Blocks of random bytes against another implementation, bit by bit.
    #[test]
    fn random_blocks_agree_with_the_reference() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../../docs/vectors/dequantise.json")).unwrap();
        let unhex = |value: &serde_json::Value| -> Vec<u8> {
            let (pairs, _) = value.as_str().unwrap().as_bytes().as_chunks::<2>();
            pairs
                .iter()
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        };
        let types = [
            ("F16", TensorType::F16),
            ("BF16", TensorType::BF16),
            ("Q4_0", TensorType::Q4_0),
            ("Q4_1", TensorType::Q4_1),
            ("Q5_0", TensorType::Q5_0),
            ("Q5_1", TensorType::Q5_1),
            ("Q8_0", TensorType::Q8_0),
            ("Q4_K", TensorType::Q4_K),
            ("Q5_K", TensorType::Q5_K),
            ("Q6_K", TensorType::Q6_K),
        ];
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), types.len());
        for (case, (name, kind)) in cases.iter().zip(types) {
            assert_eq!(case["type"], name);
            let values = unhex(&case["values"]);
            let ours: Vec<u8> =
                decode(kind, &unhex(&case["bytes"])).iter().flat_map(|x| x.to_le_bytes()).collect();
            assert!(ours == values, "{name}");
        }
    }
}
