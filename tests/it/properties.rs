//! Properties of the library's reader for arbitrary bytes, compared with the second reader.

use crate::harness::{FileBuilder, HEADER, headed};
use crate::line_protocol;
use crate::second_reader::{self, Point};
use chrono_tz::Tz;
use powerview::data_dir::Campaign;
use powerview::logger_file::{Channels, LoggerFile, ReadOptions, RowStats};
use powerview::points::{BatchBuilder, BatchOptions};
use powerview::points::{SeriesPrefix, append_row};
use powerview::time_zone::FileZones;
use proptest::prelude::*;

const ZONE: Tz = chrono_tz::Europe::Paris;
const CAMPAIGN: &str = "site, nord=1";

/// The result of reading bytes with the library.
struct Read {
    lines: String,
    stats: RowStats,
    /// The number of cells of the rows that were kept: one per row and channel.
    cells: u64,
    truncated: bool,
    /// There was no error up to the end.
    good: bool,
}

fn campaign() -> Campaign {
    Campaign::new(CAMPAIGN.as_ref()).expect("a good name")
}

fn prefixes(channels: &Channels) -> Vec<SeriesPrefix> {
    channels
        .list
        .iter()
        .map(|c| SeriesPrefix::new(&campaign(), &channels.master, c))
        .collect()
}

fn program(bytes: &[u8]) -> Option<Read> {
    let zones = FileZones::built_in(ZONE);
    let mut file = LoggerFile::open(bytes, &ReadOptions::new(&zones)).ok()?;
    let mut lines = Vec::new();
    let mut cells = 0;
    let mut good = true;
    loop {
        match file.next_row() {
            Ok(Some(row)) => {
                append_row(&mut lines, &prefixes(row.channels), &row);
                cells += row.values.len() as u64;
            }
            Ok(None) => break,
            Err(_) => {
                good = false;
                break;
            }
        }
    }
    Some(Read {
        lines: String::from_utf8(lines).expect("line protocol is UTF-8"),
        stats: file.stats(),
        cells,
        truncated: file.truncated() == Some(true),
        good: good && file.ensure_usable(second_reader::MAX_LOSS).is_ok(),
    })
}

fn points(lines: &str) -> Vec<Point> {
    line_protocol::all(lines)
        .into_iter()
        .map(|l| crate::harness::point(l, 1))
        .collect()
}

fn points_of(bytes: &[u8]) -> Vec<Point> {
    program(bytes).map(|r| points(&r.lines)).unwrap_or_default()
}

/// A cell of a header line, a time or a value. Most are valid.
fn label() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "(Ph [1-3] V|Voie[0-9] W|minipince W|Compteur)".prop_map(String::into_bytes),
        2 => "[ -~éèçœ€°]{1,12}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>().prop_filter("no separator", |b| !b"\t\n\r".contains(b)), 0..6),
    ]
}

fn serial() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "0[24]00117[1-3]".prop_map(String::into_bytes),
        1 => "[ -~]{0,6}".prop_map(String::into_bytes),
    ]
}

/// Wall times around the autumn change, many of them in the doubled hour.
fn time() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => (0u32..4, 0u32..60).prop_map(|(h, m)| format!("26/10/25 0{h}:{m:02}:00").into_bytes()),
        3 => (1u32..29, 1u32..13, 0u32..24, 0u32..60).prop_map(|(d, mo, h, m)| format!("{d:02}/{mo:02}/25 {h:02}:{m:02}:30").into_bytes()),
        2 => (0u32..60).prop_map(|m| format!("30/03/25 02:{m:02}:00").into_bytes()),
        1 => "[0-9/: ]{0,18}".prop_map(String::into_bytes),
        1 => "[ -~]{0,8}".prop_map(String::into_bytes),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "-?[0-9]{1,4}(\\.[0-9]{0,3})?".prop_map(String::into_bytes),
        2 => "[+-]?([0-9]{0,20}\\.[0-9]{0,20}|[0-9]{1,3})([eE][+-]?[0-9]{0,3})?".prop_map(String::into_bytes),
        1 => "[ -~]{0,6}".prop_map(String::into_bytes),
        1 => Just(Vec::new()),
    ]
}

fn joined(cells: Vec<Vec<u8>>) -> Vec<u8> {
    cells.join(&b'\t')
}

/// A file similar to a logger's.
fn file() -> impl Strategy<Value = Vec<u8>> {
    let columns = prop_oneof![9 => 1usize..5, 1 => 0usize..2];
    columns.prop_flat_map(|n| {
        let header = (
            proptest::collection::vec(serial(), n + 1),
            prop_oneof![20 => Just("MV_T302_V002"), 10 => Just("MV_T302_V003"), 1 => Just("MV_T202_V002")],
            proptest::collection::vec(label(), n),
        );
        let row = prop_oneof![
            12 => (time(), proptest::collection::vec(value(), n)),
            2 => (time(), proptest::collection::vec(value(), 0..n + 4)),
        ]
        .prop_map(|(time, mut values)| {
            values.insert(0, time);
            joined(values)
        });
        let rows = proptest::collection::vec(row, 0..14);
        let wrapping = prop_oneof![
            6 => Just(None),
            1 => Just(Some(r#"{"DataTimeSettings":"UTC"}"#)),
            1 => Just(Some(r#"{"TimeZoneName":"America/New_York"}"#)),
            1 => Just(Some(r#"{"TimeZoneName":"#)),
        ];
        (header, rows, wrapping, any::<bool>(), any::<bool>(), 0u8..12).prop_map(
            |((serials, marker, mut labels), rows, wrapping, bom, crlf, end)| {
                labels.insert(0, marker.as_bytes().to_vec());
                let mut lines = Vec::new();
                if let Some(json) = wrapping {
                    lines.extend([b"START_HEADER".to_vec(), json.into(), b"END_HEADER".to_vec(), b"START_DATA".to_vec()]);
                }
                lines.push(joined(serials));
                lines.push(joined(labels));
                lines.extend(rows);
                if wrapping.is_some() && end != 0 {
                    lines.push(b"END_DATA".to_vec());
                }
                let mut bytes = if bom { b"\xef\xbb\xbf".to_vec() } else { Vec::new() };
                bytes.extend(lines.join(if crlf { &b"\r\n"[..] } else { &b"\n"[..] }));
                if end != 1 {
                    bytes.extend(if crlf { &b"\r\n"[..] } else { &b"\n"[..] });
                }
                bytes
            },
        )
    })
}

fn counts_add_up(read: &Read) -> Result<(), TestCaseError> {
    prop_assert_eq!(read.stats.points + read.stats.invalid_values, read.cells);
    prop_assert_eq!(points(&read.lines).len() as u64, read.stats.points);
    Ok(())
}

/// The same file with a byte-order mark, CRLF line ends and trailing blanks.
fn with_blanks_and_crlf(bytes: &[u8]) -> Vec<u8> {
    let mut out = b"\xef\xbb\xbf".to_vec();
    for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        match line.strip_suffix(b"\n") {
            Some(line) => {
                out.extend_from_slice(line);
                // A tab would complete a row that is too short.
                out.extend_from_slice(if i % 2 == 0 { b"  \r\n" } else { b" \r\r\n" });
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

/// The number of cases per property, which `PROPTEST_CASES` sets.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|c| c.parse().ok())
        .unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_no_panic_and_no_invalid_line(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(read) = program(&bytes) {
            counts_add_up(&read)?;
        }
    }

    #[test]
    fn any_bytes_after_a_good_header_give_no_panic_and_no_invalid_line(rest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = HEADER.as_bytes().to_vec();
        bytes.extend(rest);
        counts_add_up(&program(&bytes).expect("a good header"))?;
    }

    #[test]
    fn files_like_a_loggers_are_read_as_the_second_reader_reads_them(bytes in file()) {
        let ours = program(&bytes);
        if let Some(read) = &ours {
            counts_add_up(read)?;
        }
        match second_reader::read(&bytes, CAMPAIGN, ZONE) {
            Ok(whole) => {
                let read = ours.expect("the second reader takes it");
                prop_assert!(read.good);
                prop_assert_eq!(points(&read.lines), whole.points);
                prop_assert_eq!(read.truncated, whole.truncated);
                prop_assert_eq!(read.stats.rows, whole.nb_rows);
                prop_assert_eq!(read.stats.malformed_rows, whole.nb_malformed_rows);
                prop_assert_eq!(read.stats.invalid_values, whole.nb_invalid_values);
                prop_assert_eq!(read.stats.invalid_timestamps, whole.nb_invalid_timestamps);
                prop_assert_eq!(read.stats.short_rows, whole.nb_short_rows);
                prop_assert_eq!(read.stats.lines_after_end, whole.nb_lines_after_end);
                prop_assert_eq!(read.stats.tables, whole.nb_tables);
                prop_assert_eq!(read.stats.cells, whole.nb_cells);
                prop_assert_eq!(read.stats.lost_cells, whole.nb_lost_cells);
            }
            Err(why) => prop_assert!(!ours.is_some_and(|r| r.good), "the second reader refuses it: {}", why),
        }
    }

    #[test]
    fn a_file_cut_at_any_byte_gives_a_prefix_of_the_whole_files_points(bytes in file(), at in any::<prop::sample::Index>()) {
        // The beginning of a row that is too long looks like a valid row.
        if program(&bytes).is_some_and(|r| r.stats.malformed_rows > 0) {
            return Ok(());
        }
        let whole = points_of(&bytes);
        let cut = points_of(&bytes[..at.index(bytes.len() + 1)]);
        prop_assert!(cut.len() <= whole.len(), "{} points of {}", cut.len(), whole.len());
        prop_assert_eq!(&cut[..], &whole[..cut.len()]);
    }

    #[test]
    fn line_ends_a_mark_and_trailing_blanks_change_nothing(bytes in file()) {
        // Starts from files without a byte-order mark and with LF.
        let plain: Vec<u8> = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes).iter().copied().filter(|b| *b != b'\r').collect();
        prop_assert_eq!(points_of(&with_blanks_and_crlf(&plain)), points_of(&plain));
    }

    #[test]
    fn batch_size_changes_no_point(bytes in file(), lines in 1u32..40, gzip in any::<bool>()) {
        let zones = FileZones::built_in(ZONE);
        let Ok(mut file) = LoggerFile::open(&bytes[..], &ReadOptions::new(&zones)) else { return Ok(()) };
        let prefixes = prefixes(file.channels());
        let mut builder = BatchBuilder::new(BatchOptions { gzip, lines });
        let mut text = Vec::new();
        let mut take = |builder: &mut BatchBuilder| {
            if let Some(batch) = builder.take().expect("in memory") {
                assert_eq!(batch.gzip, gzip);
                let plain = batch.text().expect("unpacked");
                assert_eq!(plain.iter().filter(|b| **b == b'\n').count(), batch.lines as usize);
                text.extend(plain);
            }
        };
        while let Ok(Some(row)) = file.next_row() {
            builder.push(&prefixes, &row).expect("in memory");
            if builder.is_full() {
                take(&mut builder);
            }
        }
        take(&mut builder);
        prop_assert_eq!(String::from_utf8(text).expect("UTF-8"), program(&bytes).expect("opened before").lines);
    }

    #[test]
    fn a_number_comes_back_as_the_same_double(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
        let file = FileBuilder::with_channels(["Ph 1 V"]).line(format_args!("03/08/25 03:20:00\t{value:e}")).build();
        let points = points_of(file.as_bytes());
        prop_assert_eq!(points[0].value.to_bits(), value.to_bits());
    }
}

#[test]
fn a_file_cut_at_every_byte_gives_a_prefix() {
    let rows = [40, 50, 0, 10, 20, 30, 40, 50]
        .map(|m| format!("26/10/25 02:{m:02}:00\t1{m}.25\t-{m}.5e1"));
    let text = FileBuilder::default().lines(rows).build();
    let headed = headed(r#"{"DataTimeSettings":"UTC"}"#, &text);
    for file in [&text, &headed, &text.replace('\n', "\r\n")] {
        let whole = points_of(file.as_bytes());
        assert_eq!(whole.len(), 16);
        for at in 0..file.len() {
            let cut = points_of(&file.as_bytes()[..at]);
            assert_eq!(cut, whole[..cut.len()], "cut at {at}");
        }
    }
}
