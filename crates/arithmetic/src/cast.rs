//! Views of little-endian bytes as the words of a model, without a copy.
#![allow(unsafe_code)]

use crate::Scale;

/// Why bytes cannot be viewed as words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CastError {
    /// The length is not a multiple of the word's size.
    #[error("{length} bytes are not a whole number of {size}-byte words; the section is cut off")]
    Length {
        /// The number of bytes given.
        length: usize,
        /// The size of a word in bytes.
        size: usize,
    },
    /// The first byte is not aligned for the word, or this machine is big-endian.
    #[error("bytes are not aligned to {0}; map or copy the file to a 64-byte boundary")]
    Alignment(usize),
}

fn words<T>(bytes: &[u8]) -> Result<&[T], CastError> {
    let size = size_of::<T>();
    if !bytes.len().is_multiple_of(size) {
        return Err(CastError::Length { length: bytes.len(), size });
    }
    if !(bytes.as_ptr() as usize).is_multiple_of(align_of::<T>()) || cfg!(target_endian = "big") {
        return Err(CastError::Alignment(align_of::<T>()));
    }
    // SAFETY: length and alignment were checked above; the callers below name only types for which every bit pattern
    // is a value; the lifetime is that of the bytes.
    Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size) })
}

/// Views bytes as signed bytes. Never fails.
pub fn i8s(bytes: &[u8]) -> &[i8] {
    // SAFETY: `i8` and `u8` have the same size and alignment and every bit pattern is a value.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

/// Views little-endian bytes as 32-bit words.
///
/// # Errors
/// [`CastError`] if the length is not a multiple of 4 or the first byte is not aligned to 4.
pub fn i32s(bytes: &[u8]) -> Result<&[i32], CastError> {
    words(bytes)
}

/// Views bytes, 8 a scale as [`Scale::to_bytes`] writes them, as scales. The values are not checked: a reader of
/// untrusted bytes asks [`Scale::is_valid`] for each.
///
/// # Errors
/// [`CastError`] if the length is not a multiple of 8 or the first byte is not aligned to 4.
pub fn scales(bytes: &[u8]) -> Result<&[Scale], CastError> {
    words(bytes)
}
