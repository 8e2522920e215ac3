//! Compares a sweep over real files of loggers with the second reader.

use crate::harness::{Site, file_of, points_in, samples, stored};
use crate::influx_double::Double;
use crate::second_reader::{self, Point, Refusal, Whole};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A sample and its content according to the second reader.
pub struct Sample {
    /// company/campaign/device/file
    pub path: PathBuf,
    pub company: String,
    pub campaign: String,
    pub read: Result<Whole, Refusal>,
}

pub fn read_all(dir: &Path) -> Vec<Sample> {
    let mut samples = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.expect("readable");
        if entry.path().extension().is_none_or(|e| e != "tsv") {
            continue;
        }
        let path = entry.path().strip_prefix(dir).expect("below").to_owned();
        let part = |i: usize| {
            path.iter()
                .nth(i)
                .expect("deep enough")
                .to_string_lossy()
                .into_owned()
        };
        let bytes = std::fs::read(entry.path()).expect("read");
        samples.push(Sample {
            company: part(0),
            campaign: part(1),
            read: second_reader::read(&bytes, &part(1), chrono_tz::Europe::Paris),
            path,
        });
    }
    samples
}

pub fn copy_to(site: &Site, dir: &Path, samples: &[Sample]) {
    for sample in samples {
        site.put_old(
            &sample.path,
            std::fs::read(dir.join(&sample.path)).expect("read"),
        );
    }
}

/// What the second reader expects in each company's bucket, in the order of the files.
pub fn expected(samples: &[Sample]) -> BTreeMap<String, Vec<Point>> {
    let mut buckets: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for sample in samples {
        if let Ok(whole) = &sample.read {
            buckets
                .entry(sample.company.clone())
                .or_default()
                .extend(whole.points.iter().cloned());
        }
    }
    buckets
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

fn check(site: &Site, samples: &[Sample]) {
    let report = site.report();
    let failed = samples.iter().filter(|s| s.read.is_err()).count();
    assert_eq!(report["nb_files_total"], samples.len());
    assert_eq!(report["nb_files_failed"], failed);
    assert_eq!(report["nb_files_success"], samples.len() - failed);
    assert_eq!(report["nb_files_skipped"], 0);
    assert_eq!(report["status"], "partial_failure");
    let mut total = 0;
    let mut tree = Vec::new();
    for sample in samples {
        let name = sample.path.to_string_lossy();
        let file = file_of(&report, &name);
        let at = |folder: &str| {
            let parent = sample.path.parent().expect("deep");
            parent
                .join(folder)
                .join(sample.path.file_name().expect("named"))
                .to_string_lossy()
                .into_owned()
        };
        assert_eq!(file["bucket"], sample.company.as_str(), "{name}");
        assert_eq!(file["campaign"], sample.campaign.as_str(), "{name}");
        let Ok(whole) = &sample.read else {
            assert_eq!(file["status"], "error", "{name}");
            tree.push(at("error"));
            tree.push(at("error") + ".error.json");
            continue;
        };
        tree.push(at("parsed"));
        total += whole.points.len();
        assert_eq!(file["status"], "success", "{name}");
        assert_eq!(file["error"], Value::Null, "{name}");
        assert_eq!(file["truncated"], whole.truncated, "{name}");
        for (key, expected) in whole.counters() {
            assert_eq!(file[key], expected, "{name} {key}");
        }
        let loss = file["loss_ratio"].as_f64().expect("a ratio");
        assert!(close(loss, whole.loss_ratio()), "{name}: {loss}");
        let (zone, source) = &whole.zones[0];
        assert_eq!(file["time_zone"], zone.as_str(), "{name}");
        assert_eq!(file["time_zone_source"], *source, "{name}");
        // The report has the serial number of the folder, the points that of the header.
        let folder = sample.path.iter().nth(2).expect("deep").to_string_lossy();
        assert_eq!(file["device_master_sn"], *folder, "{name}");
        assert_eq!(
            file["file_header_meta"],
            whole.file_header_meta.clone().unwrap_or_default(),
            "{name}"
        );
        let (first, last) = whole.time_range().expect("has points");
        for (key, epoch) in [("time_start", first), ("time_end", last)] {
            let got = chrono::DateTime::parse_from_rfc3339(file[key].as_str().expect("a time"))
                .expect("ISO 8601");
            assert_eq!(got.timestamp(), epoch, "{name} {key}");
        }
        let channels = file["channels"].as_object().expect("channels");
        assert_eq!(channels.len(), whole.channels.len(), "{name}");
        for (id, channel) in &whole.channels {
            let got = &channels[id];
            assert_eq!(
                got["channel_name"],
                channel.channel_name.as_str(),
                "{name} {id}"
            );
            assert_eq!(got["unit"], channel.unit.as_str(), "{name} {id}");
            assert_eq!(got["nb_points"], channel.values.len(), "{name} {id}");
            if channel.values.is_empty() {
                continue;
            }
            let min = channel.values.iter().copied().fold(f64::INFINITY, f64::min);
            let max = channel
                .values
                .iter()
                .copied()
                .fold(f64::NEG_INFINITY, f64::max);
            let mean = channel.values.iter().sum::<f64>() / channel.values.len() as f64;
            for (key, value) in [("min", min), ("max", max), ("mean", mean)] {
                let got = got[key].as_f64().expect("a number");
                assert!(close(got, value), "{name} {id} {key}: {got}, not {value}");
            }
        }
    }
    assert_eq!(report["nb_points_total"], total);
    tree.sort();
    assert_eq!(site.tree(), tree);
}

#[test]
fn a_sweep_over_all_samples_writes_exact_line_protocol() {
    let Some(dir) = samples() else { return };
    let samples = read_all(&dir);
    let site = Site::new();
    copy_to(&site, &dir, &samples);
    site.lp_run().run().expect(1);
    check(&site, &samples);
    for (bucket, points) in expected(&samples) {
        // One company's devices may be written side by side; here each has one device a campaign, so stored() is the
        // only thing that the order of files may change.
        assert_eq!(site.lp_points(&bucket).len(), points.len(), "{bucket}");
        assert_eq!(
            stored(&site.lp_points(&bucket)),
            stored(&points),
            "{bucket}"
        );
    }
}

#[test]
#[ignore = "slow: ingests all samples"]
fn a_sweep_over_all_samples_writes_exact_points_to_the_server() {
    let Some(dir) = samples() else { return };
    let samples = read_all(&dir);
    let site = Site::new();
    copy_to(&site, &dir, &samples);
    let double = Double::start();
    site.run_to(&double).run().expect(1);
    check(&site, &samples);
    for (bucket, points) in expected(&samples) {
        assert_eq!(points_in(&double, &bucket), stored(&points), "{bucket}");
    }
}

#[test]
fn the_samples_contain_the_cases_that_they_were_chosen_for() {
    // Guards the tests above: a reader that refuses everything would agree with a program that does.
    let Some(dir) = samples() else { return };
    let samples = read_all(&dir);
    assert_eq!(samples.len(), 12);
    let points: usize = samples
        .iter()
        .filter_map(|s| s.read.as_ref().ok())
        .map(|w| w.points.len())
        .sum();
    assert!(points > 14_000, "{points} points");
    assert!(
        samples
            .iter()
            .filter_map(|s| s.read.as_ref().ok())
            .any(|w| w.truncated)
    );
    assert_eq!(samples.iter().filter(|s| s.read.is_err()).count(), 3);
}
