//! Several elements of the extension at once: as many as the registers of the processor hold that this is built for, one by default.

use p3_field::{ExtensionField, Field, PackedFieldExtension, PackedValue as _};
use rayon::prelude::*;

use crate::field::{E, F};

/// As many elements as a register has lanes.
pub(crate) type Packed = <E as ExtensionField<F>>::ExtensionPacking;

/// The number of lanes.
pub(crate) const WIDTH: usize = <F as Field>::Packing::WIDTH;

/// Elements in packs; their number is a multiple of [`WIDTH`].
pub(crate) fn pack(values: &[E]) -> Vec<Packed> {
    values.par_chunks_exact(WIDTH).with_min_len(1 << 10).map(Packed::from_ext_slice).collect()
}

/// The elements of packs.
pub(crate) fn unpack(values: &[Packed]) -> Vec<E> {
    <Packed as PackedFieldExtension<F, E>>::to_ext_iter(values.iter().copied()).collect()
}

/// The sum of a pack's elements.
pub(crate) fn lanes(value: Packed) -> E {
    <Packed as PackedFieldExtension<F, E>>::to_ext_iter([value]).sum()
}
