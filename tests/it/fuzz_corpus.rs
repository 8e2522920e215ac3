//! The corpus of the fuzz targets, replayed. Finding new inputs is `cargo +nightly fuzz run reader` (or `header`), by hand.

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
fn every_input_of_the_readers_corpus_holds() {
    replay("reader", invariants::reader);
}

#[test]
fn every_input_of_the_headers_corpus_holds() {
    replay("header", invariants::header);
}

#[test]
#[should_panic(expected = "b=")]
fn the_check_of_a_line_can_fail() {
    // An empty tag value is what a server refuses.
    invariants::check_line(b"m,a=1,b= value=1 1754191200\n");
}
