//! Damaged files of loggers: the program reads them as the second reader does.

use crate::harness::{FileBuilder, Site, good_file, headed, samples};
use crate::second_reader::{self, Point, Whole};
use chrono::Utc;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

const ZONE: chrono_tz::Tz = chrono_tz::Europe::Paris;

/// A generator of pseudo-random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, or 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn choose<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    /// A range of at most `longest` of `len`.
    fn range(&mut self, len: usize, longest: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..(start + self.below(longest + 1)).min(len)
    }
}

/// Undamaged files of all forms.
fn good_files() -> Vec<Vec<u8>> {
    let plain = good_file(1, 12);
    let other = plain
        .replace("02001171\t04000466", "04000466\t02001171")
        .replace(
            "MV_T302_V002\tPh 1 V\tVoie1 W",
            "MV_T302_V003\tVoie1 W\tPh 1 V",
        );
    let mut wide = FileBuilder::with_channels(["Ph 1 V", "Ph 2 V", "Ph 3 V", "Voie1 W"]);
    for minute in 10..22 {
        wide = wide.line(format_args!(
            "03/08/25 03:{minute}:00\t24{minute}.5\t\tNaN\t-1.5e{minute}"
        ));
    }
    let autumn = [40, 50, 0, 10, 20, 30, 40, 50, 0]
        .map(|m| format!("26/10/25 02:{m:02}:00\t1{m}.25\t-{m}.5e1"));
    let autumn = FileBuilder::default().lines(autumn).build();
    let utc = r#"{"DataTimeSettings":"UTC","TimeZone":"CET-1CEST,M3.5.0,M10.5.0/3"}"#;
    let named = r#"{"DataTimeSettings":"LOCAL","TimeZoneName":"america/new_york","FileVersion":3}"#;
    let posix = r#"{"DataTimeSettings":"LOCAL","TimeZone":"AEST-10AEDT,M10.1.0,M4.1.0/3"}"#;
    [
        plain.clone(),
        plain.replace('\n', "\r\n"),
        format!("\u{feff}{plain}"),
        wide.build(),
        autumn.clone(),
        plain.clone() + &other,
        headed(utc, &plain),
        headed(named, &autumn),
        headed(posix, &other),
        headed(utc, &plain) + &headed(named, &other),
        plain.clone() + &headed(utc, &other),
        headed(posix, &(plain + &other)),
    ]
    .map(String::into_bytes)
    .into()
}

/// The samples that can be ingested, shortened to a header and a few rows.
fn shortened_samples(random: &mut Random) -> Option<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(samples()?).sort_by_file_name() {
        let path = entry.expect("readable").into_path();
        if path.extension().is_none_or(|e| e != "tsv") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("read");
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        for _ in 0..4 {
            // A headed file has six lines before its rows.
            let start = 6 + random.below(lines.len().saturating_sub(20));
            let mut short = lines[..lines.len().min(6)].to_vec();
            short.extend(lines.iter().skip(start).take(14));
            let short = short.concat();
            if second_reader::read(&short, "site", ZONE).is_ok() {
                files.push(short);
            }
        }
    }
    Some(files)
}

const FRAGMENTS: [&[u8]; 18] = [
    b"\t",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b" ",
    b",",
    b";",
    b"\xc2\xa0",
    b"\xe9",
    b"\xef\xbb\xbf",
    b"NaN",
    b"03/08/25 05:20:00",
    b"START_HEADER",
    b"END_HEADER\n",
    b"START_DATA\n",
    b"END_DATA\n",
    b"MV_T302_V003\t",
];

/// Damages a file once.
fn damage(bytes: &mut Vec<u8>, random: &mut Random, others: &[Vec<u8>]) {
    let length = bytes.len();
    let mut lines: Vec<Vec<u8>> = bytes
        .split_inclusive(|b| *b == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let (line, other_line) = (random.below(lines.len()), random.below(lines.len()));
    match random.below(16) {
        // Bytes.
        0 => drop(bytes.drain(random.range(length, 30))),
        1 => {
            let copy = bytes[random.range(length, 30)].to_vec();
            let at = random.below(length + 1);
            drop(bytes.splice(at..at, copy));
        }
        2 if length > 0 => bytes.swap(random.below(length), random.below(length)),
        3 if length > 0 => bytes[random.below(length)] = random.next() as u8,
        4 | 5 => {
            let at = random.below(length + 1);
            let fragment = random.choose(&FRAGMENTS.each_ref().map(|f| *f));
            drop(bytes.splice(at..at, fragment.iter().copied()));
        }
        6 => bytes.truncate(random.below(length + 1)),
        7 => bytes.resize(length + 1 + random.below(5000), 0),
        8 => {
            let other = &others[random.below(others.len())];
            bytes.truncate(length - random.below(length + 1).min(random.below(60)));
            bytes.extend_from_slice(other);
        }
        // Lines.
        _ if lines.is_empty() => {}
        9 => {
            lines.remove(line);
            *bytes = lines.concat();
        }
        10 => {
            let copy = lines[line].clone();
            lines.insert(other_line, copy);
            *bytes = lines.concat();
        }
        11 => {
            lines.swap(line, other_line);
            *bytes = lines.concat();
        }
        12 => {
            // Glues the line, or its beginning, to the next one.
            let keep = random.below(lines[line].len());
            lines[line].truncate(keep);
            *bytes = lines.concat();
        }
        13 => {
            // Cuts the line before its line break.
            let keep = random.below(lines[line].len());
            lines[line].truncate(keep);
            lines[line].push(b'\n');
            *bytes = lines.concat();
        }
        // Blocks of lines.
        14 => {
            let block = random.range(lines.len(), 8);
            lines.drain(block);
            *bytes = lines.concat();
        }
        _ => {
            let block = lines[random.range(lines.len(), 8)].to_vec();
            drop(lines.splice(other_line..other_line, block));
            *bytes = lines.concat();
        }
    }
}

fn damaged_files(count: usize, random: &mut Random, good: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let one = |_| {
        let mut bytes = good[random.below(good.len())].clone();
        for _ in 0..=random.below(3) {
            damage(&mut bytes, random, good);
        }
        bytes
    };
    (0..count).map(one).collect()
}

fn lines_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let lines = bytes.split_inclusive(|b| *b == b'\n');
    lines.map(<[u8]>::to_vec).collect()
}

/// Documents one after another, the first perhaps without its beginning, with damage to the lines around them.
fn documents_with_damaged_boundaries(random: &mut Random, good: &[Vec<u8>]) -> Vec<u8> {
    let mut lines = Vec::new();
    if random.below(3) > 0 {
        let mut rest = lines_of(&good[random.below(good.len())]);
        rest.drain(..rest.len() - 1 - random.below(6));
        let first = &mut rest[0];
        first.drain(..random.below(3) * random.below(first.len()) / 2);
        let last = rest.last_mut().expect("a line");
        last.truncate(last.len() - random.below(3) * random.below(last.len()) / 2);
        lines.append(&mut rest);
    }
    for _ in 0..=random.below(2) {
        // The other half of these files are plain.
        lines.extend(lines_of(
            &good[good.len() / 2 + random.below(good.len() / 2)],
        ));
    }
    for _ in 0..random.below(2) {
        let is_boundary = |line: &Vec<u8>| {
            [b"START_", &b"END_"[..], b"{"]
                .iter()
                .any(|s| line.starts_with(s))
        };
        let boundaries: Vec<usize> = (0..lines.len())
            .filter(|i| is_boundary(&lines[*i]))
            .collect();
        if boundaries.is_empty() {
            break;
        }
        let at = boundaries[random.below(boundaries.len())];
        let line = &mut lines[at];
        match random.below(8) {
            0 => drop(lines.remove(at)),
            1 | 2 => drop(line.remove(random.below(line.len() - 1))),
            3 => line.make_ascii_lowercase(),
            4 => line
                .iter_mut()
                .filter(|b| **b == b'_')
                .for_each(|b| *b = b' '),
            5 => line.insert(random.below(line.len()), b'x'),
            6 => drop(line.pop()),
            _ if at > 0 => {
                let before = &mut lines[at - 1];
                before.truncate(random.below(before.len()));
            }
            _ => {}
        }
    }
    lines.concat()
}

fn compare_boundaries(seed: u64, count: usize) {
    let good = good_files();
    let mut random = Random(seed);
    let one = |_| documents_with_damaged_boundaries(&mut random, &good);
    compare(&(0..count).map(one).collect::<Vec<_>>());
}

/// The differences between the report of a file and the second reader.
fn differences(file: &Value, points: &[Point], whole: &Whole) -> String {
    let mut text = String::new();
    let mut compare = |key: &str, got: &Value, expected: Value| {
        if *got != expected {
            writeln!(text, "{key}: {got}, not {expected}").expect("written");
        }
    };
    let failure = whole.failure_with(second_reader::MAX_LOSS);
    let status = if failure.is_some() {
        "error"
    } else {
        "success"
    };
    compare("status", &file["status"], status.into());
    // What is known of a file that ends in an error is only what was read before it.
    if whole.failure.is_none() {
        for (key, expected) in whole.counters() {
            compare(key, &file[key], expected.into());
        }
        compare("truncated", &file["truncated"], whole.truncated.into());
        let ratio = file["loss_ratio"].as_f64().unwrap_or(f64::NAN);
        let close = (ratio - whole.loss_ratio()).abs() < 1e-4;
        compare("loss_ratio is right", &close.into(), true.into());
    } else {
        compare("nb_points", &file["nb_points"], whole.points.len().into());
    }
    if points != whole.points {
        let (got, expected) = (points.len(), whole.points.len());
        writeln!(text, "points: {got}, not {expected}, or others").expect("written");
    }
    if !text.is_empty() {
        let error = &file["error"];
        writeln!(text, "the second reader: {failure:?}, the program: {error}").expect("written");
    }
    text
}

/// Ingests the files, each as that of a device of its own, and compares points and counters.
fn compare(files: &[Vec<u8>]) {
    let site = Site::new();
    for (i, bytes) in files.iter().enumerate() {
        site.put_old(format!("acme/c{i}/02001171/a.tsv"), bytes);
    }
    let uploaded = Utc::now() - chrono::Duration::hours(1);
    let timeout = std::time::Duration::from_mins(5);
    site.lp_run().timeout(timeout).run().clean();
    let report = site.report();
    let mut points: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for point in site.lp_points("acme") {
        points
            .entry(point.measurement.clone())
            .or_default()
            .push(point);
    }
    let of_campaign: HashMap<&str, &Value> = report["files"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|f| (f["campaign"].as_str().expect("a name"), f))
        .collect();
    let (mut wrong, mut failed, mut damaged) = (Vec::new(), 0, 0);
    for (i, bytes) in files.iter().enumerate() {
        let campaign = format!("c{i}");
        let whole = second_reader::read_upload(bytes, &campaign, ZONE, uploaded);
        failed += usize::from(whole.failure.is_some());
        damaged += usize::from(whole.nb_lost_cells > 0);
        let points = points.remove(&campaign).unwrap_or_default();
        let text = differences(of_campaign[campaign.as_str()], &points, &whole);
        if !text.is_empty() {
            wrong.push(format!("file {i}:\n{}\n{text}", bytes.escape_ascii()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} files\n{}",
        wrong.len(),
        files.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    // Guards the comparison: most files are read, and many of them lose something.
    assert!(failed < files.len() / 2, "{failed} files fail");
    assert!(damaged > files.len() / 10, "{damaged} files lose something");
}

fn compare_generated(seed: u64, count: usize) {
    let good = good_files();
    compare(&damaged_files(count, &mut Random(seed), &good));
}

fn compare_samples(seed: u64, count: usize) {
    let mut random = Random(seed);
    if let Some(good) = shortened_samples(&mut random) {
        compare(&damaged_files(count, &mut random, &good));
    }
}

#[test]
fn the_files_to_damage_are_good_ones() {
    let good = good_files();
    for bytes in &good {
        let whole = second_reader::read(bytes, "site", ZONE).expect("good");
        assert_eq!(whole.nb_lost_cells, 0);
        assert!(whole.points.len() >= 18 && !whole.truncated);
    }
}

#[test]
fn damaged_generated_files_are_read_as_the_second_reader_reads_them() {
    compare_generated(1, 300);
}

#[test]
fn damaged_samples_are_read_as_the_second_reader_reads_them() {
    compare_samples(2, 150);
}

#[test]
fn damaged_boundaries_of_documents_are_read_as_the_second_reader_reads_them() {
    compare_boundaries(5, 300);
}

#[test]
#[ignore = "slow: ingests 2,000 files"]
fn many_damaged_boundaries_of_documents_are_read_as_the_second_reader_reads_them() {
    compare_boundaries(6, 2_000);
}

#[test]
#[ignore = "slow: ingests 2,000 files"]
fn many_damaged_generated_files_are_read_as_the_second_reader_reads_them() {
    compare_generated(3, 2_000);
}

#[test]
#[ignore = "slow: ingests 1,000 files"]
fn many_damaged_samples_are_read_as_the_second_reader_reads_them() {
    compare_samples(4, 1_000);
}
