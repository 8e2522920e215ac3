//! The binary `powerview`.
#![forbid(unsafe_code)]

fn main() {}
