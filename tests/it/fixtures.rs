//! The folders of `fixtures/`: a file and its expected result.

use crate::harness::{Site, file_of, points_in, stored};
use crate::influx_double::Double;
use crate::line_protocol;
use crate::second_reader;
use crate::second_reader::Point;
use chrono::Utc;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A fixture.
pub struct Fixture {
    pub name: String,
    pub input: Vec<u8>,
    pub lines: Option<String>,
    pub report: Option<Value>,
    pub error: Option<String>,
    pub company: String,
    pub campaign: String,
    pub device: String,
    /// `None` removes the variable.
    pub env: BTreeMap<String, Option<String>>,
}

impl Fixture {
    fn read(dir: &Path) -> Self {
        let text = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
        let json = |file: &str| -> Option<Value> {
            text(file).map(|t| {
                serde_json::from_str(&t).unwrap_or_else(|e| panic!("{}/{file}: {e}", dir.display()))
            })
        };
        let settings = json("settings.json").unwrap_or_default();
        let setting = |key: &str, usual: &str| settings[key].as_str().unwrap_or(usual).to_owned();
        Self {
            name: dir
                .file_name()
                .expect("has a name")
                .to_string_lossy()
                .into_owned(),
            input: std::fs::read(dir.join("input.tsv")).expect("input.tsv"),
            lines: text("expected.lp"),
            report: json("expected.json"),
            error: text("expected_error.txt"),
            company: setting("company", "acme"),
            campaign: setting("campaign", "site"),
            device: setting("device", "02001171"),
            env: serde_json::from_value(settings["env"].clone()).unwrap_or_default(),
        }
    }

    pub fn folder(&self) -> String {
        format!("{}/{}/{}", self.company, self.campaign, self.device)
    }

    /// The points of `expected.lp`.
    pub fn points(&self) -> Vec<Point> {
        let lines = line_protocol::all(self.lines.as_deref().unwrap_or_default());
        lines
            .into_iter()
            .map(|l| crate::harness::point(l, 1))
            .collect()
    }

    pub fn zone(&self) -> chrono_tz::Tz {
        let zone = match self.env.get("TSV_TIMEZONE") {
            Some(None) => self.env["TZ"].as_deref(),
            Some(zone) => zone.as_deref(),
            None => Some("Europe/Paris"),
        };
        zone.and_then(|z| z.parse().ok()).expect("a zone")
    }

    fn max_loss(&self) -> f64 {
        let setting = self.env.get("TSV_MAX_LOSS").and_then(Option::as_ref);
        setting.map_or(second_reader::MAX_LOSS, |s| s.parse().expect("a number"))
    }
}

pub fn all() -> Vec<Fixture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("fixtures")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.join("input.tsv").is_file())
        .collect();
    dirs.sort();
    let fixtures: Vec<Fixture> = dirs.iter().map(|d| Fixture::read(d)).collect();
    assert!(fixtures.len() > 70, "only {} fixtures", fixtures.len());
    for f in &fixtures {
        assert!(
            f.lines.is_some() != f.error.is_some(),
            "{}: lines or an error",
            f.name
        );
    }
    fixtures
}

/// Checks all fixtures and reports all failures together.
fn each(check: impl Fn(&Fixture) -> Result<(), String>) {
    let wrong: Vec<String> = all()
        .iter()
        .filter_map(|f| check(f).err().map(|e| format!("{}: {e}", f.name)))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} fixtures are wrong\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), String> {
    if got == expected {
        Ok(())
    } else {
        Err(format!("{what}:\n     got {got:?}\nexpected {expected:?}"))
    }
}

#[test]
fn the_second_reader_agrees_with_the_expected_results() {
    each(|f| {
        let whole = second_reader::read_upload(&f.input, &f.campaign, f.zone(), Utc::now());
        match (&f.lines, whole.failure_with(f.max_loss())) {
            (Some(_), None) => {
                same("points", &whole.points, &f.points())?;
                let Some(report) = &f.report else {
                    return Ok(());
                };
                for (key, got) in whole.counters() {
                    if let Some(expected) = report[key].as_u64() {
                        same(key, got, expected)?;
                    }
                }
                if let Some(zone) = report["time_zone"].as_str() {
                    same("time_zone", whole.zones[0].0.as_str(), zone)?;
                }
                if let Some(source) = report["time_zone_source"].as_str() {
                    same("time_zone_source", whole.zones[0].1, source)?;
                }
                if let Some(expected) = report["truncated"].as_bool() {
                    same("truncated", whole.truncated, expected)?;
                }
                Ok(())
            }
            (None, Some(_)) => Ok(()),
            (Some(_), Some(e)) => Err(format!("refused: {e}")),
            (None, None) => Err("taken".into()),
        }
    });
}

fn ingest(f: &Fixture, double: Option<&Double>) -> (Site, crate::harness::Run) {
    let site = Site::new();
    site.put_old(format!("{}/input.tsv", f.folder()), &f.input);
    let mut call = match double {
        None => site.lp_run(),
        Some(double) => site.run_to(double),
    };
    for (key, value) in &f.env {
        call = match value {
            Some(value) => call.env(key, value),
            None => call.no_env(key),
        };
    }
    let run = call.run().clean();
    (site, run)
}

fn check_report(f: &Fixture, site: &Site, run: &crate::harness::Run) -> Result<(), String> {
    let report = site.report();
    let file = file_of(&report, "input.tsv");
    if let Some(expected) = &f.error {
        same("exit status", run.code(), 1)?;
        same("status", file["status"].as_str(), Some("error"))?;
        same(
            "run status",
            report["status"].as_str(),
            Some("partial_failure"),
        )?;
        same("retryable", file["retryable"].as_bool(), Some(false))?;
        let error = file["error"].as_str().unwrap_or_default().to_lowercase();
        for line in expected.lines() {
            if !error.contains(&line.to_lowercase()) {
                return Err(format!("the error {error:?} lacks {line:?}"));
            }
        }
        if error.trim().is_empty() {
            return Err("the error is empty".into());
        }
        let moved = format!("{}/error/input.tsv", f.folder());
        same(
            "tree",
            site.tree(),
            vec![moved.clone(), format!("{moved}.error.json")],
        )?;
        same("bytes", site.read(&moved), f.input.clone())?;
        return Ok(());
    }
    same("exit status", run.code(), 0).map_err(|e| format!("{e}\n{}", run.stderr))?;
    same("run status", report["status"].as_str(), Some("success"))?;
    let moved = format!("{}/parsed/input.tsv", f.folder());
    same("tree", site.tree(), vec![moved.clone()]).map_err(|e| format!("{e}\n{}", run.stderr))?;
    same("bytes", site.read(&moved), f.input.clone())?;
    for (key, expected) in f
        .report
        .iter()
        .flat_map(|r| r.as_object().expect("an object"))
    {
        if key.starts_with("time_") {
            let instant = |v: &Value| {
                v.as_str()
                    .and_then(|t| chrono::DateTime::parse_from_rfc3339(t).ok())
            };
            same(key, instant(&file[key]), instant(expected))
                .map_err(|e| format!("{e} from {}", file[key]))?;
        } else {
            same(key, &file[key], expected)?;
        }
    }
    Ok(())
}

#[test]
fn each_fixture_gives_its_expected_line_protocol() {
    each(|f| {
        let (site, run) = ingest(f, None);
        check_report(f, &site, &run)?;
        let got = site.lp_text(&f.company);
        // The text before the value must be equal. The value may be written in any equivalent way.
        let series = |text: &str| -> Vec<String> {
            text.lines()
                .map(|l| {
                    l.rsplit_once("value=")
                        .map_or(l, |(series, _)| series)
                        .to_owned()
                })
                .collect()
        };
        same(
            "series",
            series(&got),
            series(f.lines.as_deref().unwrap_or_default()),
        )?;
        same("points", site.lp_points(&f.company), f.points())
    });
}

#[test]
fn each_fixture_is_written_to_the_server() {
    each(|f| {
        let double = Double::start();
        let (site, run) = ingest(f, Some(&double));
        check_report(f, &site, &run)?;
        same(
            "points",
            points_in(&double, &f.company),
            stored(&f.points()),
        )
    });
}

#[test]
fn each_refusal_has_its_own_message() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for f in all().iter().filter(|f| f.error.is_some()) {
        // These differ in the position of the defect only.
        if f.name.contains("in-a-headed-file")
            || f.name.contains("windows-1252")
            || f.name.contains("byte-order-mark")
        {
            continue;
        }
        let (site, _) = ingest(f, None);
        let report = site.report();
        let error = file_of(&report, "input.tsv")["error"]
            .as_str()
            .expect("an error")
            .to_owned();
        assert!(!error.contains('\n'), "{}: one sentence: {error:?}", f.name);
        seen.insert(f.name.clone(), error);
    }
    // One fixture of each cause in the specification.
    let kinds = [
        "refused-empty-file",
        "refused-header-only",
        "refused-header-lines-of-different-length",
        "refused-no-channel",
        "refused-empty-serial",
        "refused-empty-label",
        "refused-control-character-in-a-label",
        "refused-header-never-closed",
        "refused-no-valid-point",
        "refused-unknown-marker",
        "refused-json-without-a-zone",
        "refused-gzip",
        "refused-zip",
        "refused-utf-16",
        "refused-semicolons",
        "refused-commas",
        "refused-lines-end-in-cr-alone",
    ];
    let words: std::collections::BTreeSet<&String> = kinds.iter().map(|k| &seen[*k]).collect();
    assert_eq!(words.len(), kinds.len(), "{seen:#?}");
}
