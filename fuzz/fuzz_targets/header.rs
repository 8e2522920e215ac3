//! Any bytes, as the head of a logger's file with one good row behind it.
#![no_main]

#[path = "../invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::header(bytes));
