//! Replays the corpus of the fuzz targets. `cargo +nightly fuzz run TARGET` finds new inputs.

use std::path::Path;

#[path = "../../fuzz/invariants.rs"]
mod invariants;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        check(&std::fs::read(path).expect("an input"));
        count += 1;
    }
    assert!(count >= 10, "the corpus of {target} has {count} inputs");
}

#[test]
fn the_invariants_hold_for_the_corpus_of_the_reader() {
    replay("reader", invariants::reader);
}

#[test]
fn the_invariants_hold_for_the_corpus_of_the_header() {
    replay("header", invariants::header);
}

#[test]
fn the_invariants_hold_for_the_corpus_of_documents() {
    replay("documents", invariants::documents);
}

#[test]
fn the_invariants_hold_for_the_corpus_of_zones() {
    replay("zones", invariants::zones);
}

#[test]
#[should_panic(expected = "b=")]
fn the_check_of_a_line_can_fail() {
    // A server refuses an empty tag value.
    invariants::check_line(b"m,a=1,b= value=1 1754191200\n");
}
