//! The cost of each stage of a conversion, compared with copying the same bytes.
//!
//!     cargo bench --bench conversion

#![allow(missing_docs, reason = "`criterion_group!` makes a public function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use powerview::data_dir::Campaign;
use powerview::logger_file::{LoggerFile, ReadOptions};
use powerview::points::{Batch, BatchBuilder, BatchOptions, compressed};
use powerview::points::{SeriesPrefix, append_row};
use powerview::time_zone::{FileZones, ZoneDatabase, ZoneSource};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const CHANNELS: usize = 30;

/// A logger file with `rows` rows at intervals of ten minutes.
fn file(rows: usize) -> Vec<u8> {
    let mut text = String::from("02001171");
    for channel in 0..CHANNELS {
        let _ = write!(
            text,
            "\t{:08}",
            if channel < 6 {
                2_001_171
            } else {
                4_000_000 + channel / 6
            }
        );
    }
    text.push_str("\nMV_T302_V002");
    for channel in 0..CHANNELS {
        let _ = write!(text, "\tVoie{} W", channel % 6 + 1);
    }
    text.push('\n');
    let mut seed = 1_u64;
    for row in 0..rows {
        let (day, minute) = (row / 144, row % 144 * 10);
        let (month, day) = (day / 28 % 12 + 1, day % 28 + 1);
        let _ = write!(
            text,
            "{day:02}/{month:02}/25 {:02}:{:02}:00",
            minute / 60,
            minute % 60
        );
        for _ in 0..CHANNELS {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let _ = write!(text, "\t{}.{}", seed >> 52, (seed >> 40) % 10);
        }
        text.push('\n');
    }
    text.into_bytes()
}

/// The time zones as in production: with the rules of the system, read once.
fn zones() -> &'static FileZones {
    static ZONES: LazyLock<FileZones> = LazyLock::new(|| {
        let database = ZoneDatabase::new("/usr/share/zoneinfo");
        let paris = database.zone("Europe/Paris").expect("a zone");
        FileZones::new(paris, ZoneSource::Setting, Arc::new(database))
    });
    &ZONES
}

fn prefixes(input: &[u8]) -> Vec<SeriesPrefix> {
    let file = LoggerFile::open(input, &ReadOptions::new(zones())).expect("a file");
    let campaign = Campaign::new(OsStr::new("site1")).expect("a campaign");
    let channels = file.channels();
    channels
        .list
        .iter()
        .map(|c| SeriesPrefix::new(&campaign, &channels.master, c))
        .collect()
}

fn read(input: &[u8]) -> u64 {
    let mut file = LoggerFile::open(input, &ReadOptions::new(zones())).expect("a file");
    while file.next_row().expect("a row").is_some() {}
    file.stats().points
}

fn lines(input: &[u8], prefixes: &[SeriesPrefix], out: &mut Vec<u8>) {
    out.clear();
    let mut file = LoggerFile::open(input, &ReadOptions::new(zones())).expect("a file");
    while let Some(row) = file.next_row().expect("a row") {
        append_row(out, prefixes, &row);
    }
}

fn batches(input: &[u8], gzip: bool) -> Vec<Batch> {
    let prefixes = prefixes(input);
    let mut file = LoggerFile::open(input, &ReadOptions::new(zones())).expect("a file");
    let mut builder = BatchBuilder::new(BatchOptions {
        gzip,
        lines: 10_000,
    });
    let mut done = Vec::new();
    while let Some(row) = file.next_row().expect("a row") {
        builder.push(&prefixes, &row).expect("memory");
        if builder.is_full() {
            // Dropped as soon as the next one is ready, as after a request.
            done.clear();
            done.extend(builder.take().expect("memory"));
        }
    }
    done.extend(builder.take().expect("memory"));
    done
}

fn conversion(c: &mut Criterion) {
    for (name, rows) in [("a day, 143 x 30", 143), ("20,000 x 30", 20_000)] {
        let input = file(rows);
        let prefixes = prefixes(&input);
        let mut out = Vec::new();
        lines(&input, &prefixes, &mut out);
        let mut group = c.benchmark_group(name);
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements((rows * CHANNELS) as u64));
        group.bench_function("reader", |b| b.iter(|| read(black_box(&input))));
        group.bench_function("reader and line protocol", |b| {
            let mut buffer = Vec::with_capacity(out.len());
            b.iter(|| lines(black_box(&input), &prefixes, &mut buffer));
        });
        group.bench_function("whole, plain bodies", |b| {
            b.iter(|| batches(black_box(&input), false));
        });
        group.bench_function("whole, gzip bodies", |b| {
            b.iter(|| batches(black_box(&input), true));
        });
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function("compression alone", |b| {
            b.iter(|| compressed(black_box(&out)));
        });
        group.bench_function("baseline: copying the lines", |b| {
            let mut buffer = vec![0_u8; out.len()];
            b.iter(|| black_box(&mut buffer).copy_from_slice(black_box(&out)));
        });
        group.finish();
    }
}

criterion_group!(benches, conversion);
criterion_main!(benches);
