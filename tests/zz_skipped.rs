//! Prints which tests were skipped and why, and their number, at the end of `cargo test --tests`.
//!
//! This is a test target without a harness. Cargo runs test targets in the order of their names, so this name must be
//! the last one. If a test fails, Cargo stops before this target, unless it runs with `--no-fail-fast`.
#![forbid(unsafe_code)]

mod skipped;

fn main() {
    // Tools that request a list of tests get an empty one.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let run = skipped::Run::of(std::os::unix::process::parent_id());
    print!("{}", run.summary());
    skipped::remove_old_records();
}
