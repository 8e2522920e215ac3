//! Replays the corpus of the fuzz targets. `cargo +nightly fuzz run TARGET` finds new inputs.

use proptest::prelude::*;
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
fn the_invariants_hold_for_the_corpus_of_catalogues() {
    replay("catalogue", invariants::catalogue);
}

proptest! {
    // `PROPTEST_CASES` sets the number of cases.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_for_catalogues_of_random_cells(
        lines in prop::collection::vec(prop::collection::vec(prop::sample::select(CELLS), 1..12), 0..8),
    ) {
        let lines: Vec<_> = lines.iter().map(|cells| cells.join(";")).collect();
        invariants::catalogue(format!("1{}", lines.join("\n")).as_bytes());
    }

    #[test]
    fn what_is_written_of_any_channels_is_accepted(
        channels in prop::collection::vec([tag(), tag(), tag(), tag()], 0..8),
        first in 0_usize..8,
    ) {
        invariants::written_catalogue(&channels, first);
    }

    #[test]
    fn the_invariants_hold_for_catalogues_of_the_corpus_with_random_changes(
        input in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(PIECES), 0_usize..4), 1..6),
    ) {
        let inputs = catalogues();
        let mut bytes = inputs[input.index(inputs.len())].clone();
        for (place, piece, removed) in changes {
            let place = place.index(bytes.len() + 1);
            let end = (place + removed).min(bytes.len());
            bytes.splice(place..end, piece.bytes());
        }
        invariants::catalogue(&bytes);
    }
}

/// The value of a tag, mostly with what is special in spreadsheets, catalogues or texts.
fn tag() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => prop::sample::select(PIECES).prop_map(str::to_owned),
        3 => prop::sample::select(&["@", "\\", "\t", "\u{3000}", "\u{7f}", "\u{200b}", "sep=;", ",", "L1"][..])
            .prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => (100_usize..1_100).prop_map(|length| "x".repeat(length)),
        1 => (100_usize..1_100).prop_map(|length| "€".repeat(length)),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

/// The corpus of catalogues.
fn catalogues() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/catalogue");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let inputs = paths
        .iter()
        .map(|path| std::fs::read(path).expect("an input"));
    inputs.collect()
}

/// What random changes put into catalogues.
const PIECES: &[&str] = &[
    "",
    ";",
    "\"",
    "\n",
    "\r",
    "\r\n",
    "'",
    "=",
    "+",
    "-",
    "[",
    "]",
    " ",
    "V_",
    "Ch1",
    "Ch2",
    "V_a",
    "_M1",
    "é",
    "\u{1}",
    "\u{feff}",
    "until",
    " until 2026-03-01",
    "total",
    "x",
    "channel_id",
    "\u{a0}",
    "S3_Ch1_M1\n",
    ";;;;;;;;;;\n",
];

/// Cells of catalogues, of which some are valid in most columns.
const CELLS: &[&str] = &[
    "",
    "",
    "",
    "M1_Ch2_M1",
    "M1_Ch3_M1",
    "S2_Ch1_M1",
    "S3_Ch1_M1",
    "V_a",
    "V_b",
    "a",
    "b",
    "total",
    "oui",
    "L1",
    "Ch2 + Ch3",
    "V_a - Ch2",
    "formula: V_b + [Sa + b_Ch1_M1]",
    "-Ch1",
    "S3_Ch1 until 2026-03-01",
    "Ch2 jusqu'au 01/04/2026",
    "'=x",
    "\"x;\"\"y\"",
    "=x",
    "é",
    "\"",
    "x\u{1}",
];

#[test]
#[should_panic(expected = "b=")]
fn the_check_of_a_line_can_fail() {
    // A server refuses an empty tag value.
    invariants::check_line(b"m,a=1,b= value=1 1754191200\n");
}
