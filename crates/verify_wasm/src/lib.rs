//! The verifiers as WebAssembly: the same checks as `assay verify`, in the browser, so that a page does not have to be
//! believed by the server that sent it.
//!
//! A module imports nothing and exports a plain C interface: `alloc(len) -> ptr`, `free(ptr, len)` and calls of the form
//! `(ptr, len) -> (ptr << 32 | len)`. The caller allocates, writes, calls, which takes over that buffer, reads the JSON that
//! comes back and frees it.
//!
//! - `check` (feature `receipt`, the module `assay_verify.wasm`) takes UTF-8 JSON as `assay_verify::answer` does;
//!   `web/src/verify.ts` calls it. It does not replay answers: that needs the model.
//! - `check_proof` (feature `proof`, the module `assay_proof.wasm`) takes the length of a model's file or of its key in
//!   four bytes, little-endian, that file and the proof's, and answers as `assay verify --json` does: `valid`, and then what
//!   was proved, or else the `reason`. The module needs about 4 MB of memory more than the two files.
//! - `check_answer` (feature `answer`, the module `assay_answer.wasm`) takes the length of a model's key in four bytes, little-endian, that
//!   file, the proof of an answer in text likewise, and JSON with the `bundle` and what is `expected` of it. It answers with the
//!   report of `assay verify --json` and the id of the `key`, or with an `error`.
//! - `check_finality` (feature `finality`, the module `assay_finality.wasm`) takes JSON: the `genesis`'s hash, block 0's `header`
//!   and `committee`, for each epoch to follow its last block's `headers` and `finalization` and the next `committee`, in
//!   `epochs`, and then the `headers` and the `finalization` of the block in question, all as `0x…`, as a node's
//!   `assay_getFinalization` and `assay_getCommittee` have them. It answers with `final`, and then the block, or else the `reason`.

#[cfg(feature = "answer")]
mod answer;
#[cfg(feature = "finality")]
mod finality;
#[cfg(feature = "proof")]
mod proof;

/// The C interface. It is the only way into a WebAssembly module without generated glue, and it cannot be written in
/// safe Rust: exported names and raw memory are both the caller's responsibility.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod exports {
    use std::alloc::{Layout, alloc as allocate, dealloc};

    /// Reserves `len` bytes; traps when there is no memory. `len` 0 reserves one byte.
    // SAFETY: the name is exported by no other item of this module, which links nothing but Rust.
    #[unsafe(no_mangle)]
    extern "C" fn alloc(len: usize) -> *mut u8 {
        // SAFETY: the layout is never of size zero.
        let pointer = unsafe { allocate(layout(len)) };
        assert!(!pointer.is_null(), "out of memory");
        pointer
    }

    /// Releases what `alloc` or `check` returned, with the same length.
    // SAFETY: the name is exported by no other item of this module.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn free(pointer: *mut u8, len: usize) {
        // SAFETY: the caller passes a pointer of `alloc` or `check`, both of which use this very layout, once.
        unsafe { dealloc(pointer, layout(len)) }
    }

    /// Answers the call in the `len` bytes at `pointer`, which must come from `alloc(len)` and are freed. Returns the
    /// answer's pointer in the upper and its length in the lower 32 bits; the caller frees it.
    ///
    /// # Safety
    /// The caller wrote `len` bytes to the block that `alloc(len)` gave it, and passes it once.
    unsafe fn call(pointer: *mut u8, len: usize, answer: impl FnOnce(&[u8]) -> Vec<u8>) -> u64 {
        // SAFETY: as above, and nothing else uses the block while this call runs, since a module instance has one thread.
        let answer = answer(unsafe { std::slice::from_raw_parts(pointer, len) });
        // SAFETY: the block came from `alloc(len)`, and nothing borrows from it any more.
        unsafe { free(pointer, len) };
        let out = alloc(answer.len());
        // SAFETY: `out` is a fresh block of at least that many bytes, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(answer.as_ptr(), out, answer.len()) };
        (out as u64) << 32 | answer.len() as u64
    }

    /// Checks receipts.
    // SAFETY: the name is exported by no other item of this module.
    #[cfg(feature = "receipt")]
    #[unsafe(no_mangle)]
    unsafe extern "C" fn check(pointer: *mut u8, len: usize) -> u64 {
        // SAFETY: the caller keeps to the interface.
        unsafe { call(pointer, len, |request| assay_verify::answer(request).into()) }
    }

    /// Checks a proof.
    // SAFETY: the name is exported by no other item of this module.
    #[cfg(feature = "proof")]
    #[unsafe(no_mangle)]
    unsafe extern "C" fn check_proof(pointer: *mut u8, len: usize) -> u64 {
        // SAFETY: the caller keeps to the interface.
        unsafe { call(pointer, len, |request| crate::proof::answer(request).into_bytes()) }
    }

    /// Checks the proof of an answer in text.
    // SAFETY: the name is exported by no other item of this module.
    #[cfg(feature = "answer")]
    #[unsafe(no_mangle)]
    unsafe extern "C" fn check_answer(pointer: *mut u8, len: usize) -> u64 {
        // SAFETY: the caller keeps to the interface.
        unsafe { call(pointer, len, |request| crate::answer::answer(request).into_bytes()) }
    }

    /// What hash tables get as their seed, and nothing else asks: zeros, since a module without imports has no randomness. Whoever writes
    /// a key for whose tokenizer the tables are slow only slows the check of that key.
    ///
    /// # Safety
    /// `getrandom` gives `len` bytes at `out` that it owns.
    // SAFETY: the name and the type are those that `getrandom` 0.3 declares for its backend "custom".
    #[cfg(feature = "answer")]
    #[unsafe(no_mangle)]
    unsafe extern "Rust" fn __getrandom_v03_custom(out: *mut u8, len: usize) -> Result<(), getrandom::Error> {
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(out, 0, len) };
        Ok(())
    }

    /// Follows a chain and checks that a block is final.
    // SAFETY: the name is exported by no other item of this module.
    #[cfg(feature = "finality")]
    #[unsafe(no_mangle)]
    unsafe extern "C" fn check_finality(pointer: *mut u8, len: usize) -> u64 {
        // SAFETY: the caller keeps to the interface.
        unsafe { call(pointer, len, |request| crate::finality::answer(request).into_bytes()) }
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<u8>(len.max(1)).expect("a length in a 32-bit memory below 2 GiB")
    }
}
