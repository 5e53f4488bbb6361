//! The integer arithmetic of Assay: kernels and tables.
