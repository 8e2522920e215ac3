//! Reads arbitrary bytes as the header of a logger file that has one valid row.
#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::header(bytes));
