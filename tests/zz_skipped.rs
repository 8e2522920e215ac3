//! The closing lines of `cargo test --tests`: which tests were skipped and why, and their number.
//!
//! It is a test target without a harness. Cargo runs the test targets in the order of their names, so this name has to
//! be the last one. Where a test fails, Cargo stops before it; `--no-fail-fast` goes on.
#![forbid(unsafe_code)]

mod skipped;

fn main() {
    // Tools that ask for a list of tests get an empty one.
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let run = skipped::Run::of(std::os::unix::process::parent_id());
    print!("{}", run.summary());
    skipped::remove_old_records();
}
