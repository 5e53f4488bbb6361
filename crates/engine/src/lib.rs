//! Bit-exact execution of integer language models.
