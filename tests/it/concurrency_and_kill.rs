//! Concurrent processes, and processes that are killed at random times.

use crate::harness::{
    Call, DEVICE, FileBuilder, HEADER, LAYOUT_FILE, Site, Tmpfs, bad_file, number_from_env,
    points_in, stored,
};
use crate::influx_double::{Double, Fault, is_data_write};
use crate::second_reader::{self, Point};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Files of several companies and devices, one of them invalid. Each value occurs once.
pub struct Load {
    /// The path below the data folder, and the content.
    files: Vec<(String, String)>,
}

impl Load {
    /// With `overlap`, each file of a device begins in the middle of the one before it, so that the later file must
    /// win. This holds for sweeps, but not for hooks that name files in any order.
    pub fn new(companies: u32, devices: u32, files: u32, rows: u32, overlap: bool) -> Self {
        let mut out = Vec::new();
        let mut value = 0;
        for c in 0..companies {
            for d in 0..devices {
                for f in 0..files {
                    let mut text = HEADER.replace("02001171", &format!("0200{d:04}"));
                    for r in 0..rows {
                        value += 1;
                        let minute = f * if overlap { rows / 2 } else { rows } + r;
                        text.push_str(&format!(
                            "{:02}/11/25 {:02}:{:02}:00\t{value}.5\t{value}\n",
                            1 + minute / 1440,
                            minute / 60 % 24,
                            minute % 60
                        ));
                    }
                    out.push((format!("company{c}/site/0200{d:04}/f{f:02}.tsv"), text));
                }
            }
        }
        out.push(("company0/site/02000000/bad.tsv".to_owned(), bad_file()));
        Self { files: out }
    }

    pub fn put(&self, site: &Site) {
        for (path, text) in &self.files {
            site.put_old(path, text);
        }
    }

    /// The points in a company's bucket after an uninterrupted run.
    pub fn points(&self, company: &str) -> Vec<Point> {
        let of = self
            .files
            .iter()
            .filter(|(p, _)| p.starts_with(&format!("{company}/")));
        let points: Vec<Point> = of
            .filter_map(|(_, text)| {
                second_reader::read(text.as_bytes(), "site", chrono_tz::Europe::Paris).ok()
            })
            .flat_map(|w| w.points)
            .collect();
        stored(&points)
    }

    pub fn companies(&self) -> BTreeSet<String> {
        self.files
            .iter()
            .map(|(p, _)| p.split('/').next().expect("a company").to_owned())
            .collect()
    }

    fn tree(&self) -> Vec<String> {
        let mut tree: Vec<String> = Vec::new();
        for (path, text) in &self.files {
            let (folder, name) = path.rsplit_once('/').expect("deep");
            if text.contains("rubbish") {
                tree.push(format!("{folder}/error/{name}"));
                tree.push(format!("{folder}/error/{name}.error.json"));
            } else {
                tree.push(format!("{folder}/parsed/{name}"));
            }
        }
        tree.sort();
        tree
    }

    /// The exit status of a run that finishes the work: 1 if the bad file still waits for its first run.
    fn exit_code(&self, site: &Site) -> i32 {
        let waits = |(path, text): &(String, String)| text.contains("rubbish") && site.exists(path);
        i32::from(self.files.iter().any(waits))
    }

    /// The number of files, with the one that is not valid.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    #[track_caller]
    pub fn assert_moved(&self, site: &Site, what: &str) {
        assert_eq!(site.tree(), self.tree(), "{what}");
        for (path, text) in &self.files {
            let (folder, name) = path.rsplit_once('/').expect("deep");
            let at = if text.contains("rubbish") {
                "error"
            } else {
                "parsed"
            };
            assert_eq!(
                site.read(format!("{folder}/{at}/{name}")),
                text.as_bytes(),
                "{what}: {path}"
            );
        }
    }

    #[track_caller]
    fn assert_arrived(&self, double: &Double, what: &str) {
        for company in self.companies() {
            assert!(
                points_in(double, &company) == self.points(&company),
                "{what}: the points of {company} differ"
            );
        }
    }
}

#[test]
fn concurrent_sweeps_and_hooks_ingest_and_move_each_file_once() {
    let load = Load::new(3, 4, 6, 40, false);
    let double = Double::start();
    let site = Site::new();
    load.put(&site);
    let mut runs = Vec::new();
    for i in 0..28 {
        let mut call = site
            .run_to(&double)
            .env("TSV_BATCH_LINES", "20")
            .env("TSV_RETRY_FOR", "20")
            .timeout(Duration::from_mins(2));
        if i % 7 != 0 && i % 7 != 3 {
            let (path, _) = &load.files[(i * 7) % (load.files.len() - 1)];
            call = call.named(path);
        }
        runs.push((i, call.start()));
    }
    let mut successes = 0;
    let mut codes = Vec::new();
    for (i, run) in runs {
        let run = run.wait().clean();
        assert!(
            !run.stderr.to_lowercase().contains("no such file"),
            "{i}: {}",
            run.stderr
        );
        codes.push(run.code());
    }
    codes.sort_unstable();
    let mut expected = vec![0; codes.len()];
    expected[codes.len() - 1] = 1;
    assert_eq!(codes, expected, "exactly one run met the bad file");
    for report in site.reports() {
        successes += report["nb_files_success"].as_u64().expect("a number");
    }
    assert_eq!(
        successes,
        load.files.len() as u64 - 1,
        "each file was processed once"
    );
    load.assert_moved(&site, "concurrent runs");
    load.assert_arrived(&double, "concurrent runs");
}

#[test]
fn concurrent_runs_write_complete_lines_to_line_protocol_files() {
    let load = Load::new(2, 3, 4, 40, true);
    let site = Site::new();
    load.put(&site);
    let runs: Vec<_> = (0..10)
        .map(|_| site.lp_run().env("TSV_BATCH_LINES", "20").start())
        .collect();
    let mut failed = 0;
    for run in runs {
        failed += run.wait().clean().code();
    }
    assert_eq!(failed, 1, "exactly one run met the bad file");
    assert_eq!(site.tree(), load.tree());
    for company in load.companies() {
        assert!(
            stored(&site.lp_points(&company)) == load.points(&company),
            "{company}"
        );
    }
}

#[test]
fn a_lock_held_by_a_process_that_hangs_does_not_block_for_ever() {
    // This process holds a lock on the device's folder and on each folder above it.
    let site = Site::new();
    site.put_old(
        DEVICE.file("a.tsv"),
        FileBuilder::default()
            .line("03/08/25 03:20:00\t1\t2")
            .build(),
    );
    let mut held = Vec::new();
    for folder in [DEVICE.0, "acme/site", "acme", ""] {
        let dir = std::fs::File::open(site.path(folder)).expect("opened");
        rustix::fs::flock(&dir, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .expect("locked");
        held.push(dir);
    }
    let run = site
        .lp_run()
        .env("TSV_LOCK_WAIT_S", "0.3")
        .timeout(Duration::from_secs(20))
        .run()
        .expect(1);
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    let reason = format!(
        "{}: device folder is locked by process {} (waited 0 s); file left in place, check that process",
        DEVICE.file("a.tsv"),
        std::process::id()
    );
    assert!(run.stderr.contains(&reason), "{}", run.stderr);
    drop(held);
    site.lp_run().ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    assert_eq!(site.lp_points("acme").len(), 2);
}

fn kills() -> u32 {
    u32::try_from(number_from_env("KILLS", 40)).expect("few")
}

/// Kills runs at random times until `kills()` were killed. Each tree of files is finished by an uninterrupted run and
/// then checked.
pub fn kill_and_check(
    call: impl for<'a> Fn(&'a Site) -> Call<'a>,
    mut check: impl FnMut(&Load, &Site, &str),
) {
    let random = RandomState::new();
    let mut left_over: Vec<String> = Vec::new();
    let mut killed = 0;
    let mut round = 0;
    let mut longest = Duration::from_millis(60);
    while killed < kills() {
        round += 1;
        assert!(
            round < 20 + 4 * kills(),
            "the program is too fast to be killed: {killed} in {round} rounds"
        );
        let load = Load::new(2, 2, 3, 60, true);
        let site = Site::new();
        load.put(&site);
        let call = || {
            call(&site)
                .env("TSV_BATCH_LINES", "20")
                .env("TSV_RETRY_FOR", "20")
                .env("TSV_LOCK_WAIT_S", "20")
        };
        // Up to five kills per tree, then an uninterrupted run.
        let mut done = false;
        for _ in 0..5 {
            let micros = random.hash_one((round, killed))
                % u64::try_from(longest.as_micros()).expect("short");
            let mut run = call().start();
            std::thread::sleep(Duration::from_micros(micros));
            if run.is_done() {
                longest = run.wait().clean().took.max(Duration::from_millis(10));
                done = true;
                break;
            }
            run.kill();
            killed += 1;
            // A file in `error/` has a complete sidecar at any time. The sidecar is written first, so one without a
            // file may be incomplete.
            for path in site
                .tree()
                .iter()
                .filter(|p| p.contains("/error/") && p.ends_with(".tsv"))
            {
                assert_eq!(
                    site.sidecar(path)["retryable"],
                    false,
                    "round {round}: {path}"
                );
            }
        }
        if !done {
            let expected = load.exit_code(&site);
            call().run().expect(expected);
        }
        let what = format!("round {round}, {killed} kills");
        for report in site.reports() {
            assert!(report["run_id"].is_string(), "{what}: whole reports only");
        }
        for path in site.tree().into_iter().filter(|p| p.contains("/.")) {
            std::fs::remove_file(site.path(&path)).expect("removed");
            left_over.push(path);
        }
        let reports = std::fs::read_dir(site.reports_dir())
            .into_iter()
            .flatten()
            .map(|e| e.expect("entry").file_name());
        left_over.extend(
            reports
                .map(|n| n.to_string_lossy().into_owned())
                .filter(|n| !n.ends_with(".json")),
        );
        load.assert_moved(&site, &what);
        check(&load, &site, &what);
    }
    eprintln!("{killed} kills in {round} rounds");
    assert_eq!(
        left_over,
        Vec::<String>::new(),
        "temporary files are left over"
    );
}

#[test]
fn after_a_kill_another_run_gives_the_points_of_an_uninterrupted_run() {
    let double = Double::start();
    kill_and_check(
        |site| site.run_to(&double),
        |load, _, what| {
            load.assert_arrived(&double, what);
            // The next round writes the same series.
            for company in load.companies() {
                double.delete_bucket(&company);
            }
        },
    );
}

#[test]
fn after_a_kill_line_protocol_files_are_complete() {
    kill_and_check(Site::lp_run, |load, site, what| {
        for company in load.companies() {
            assert!(
                stored(&site.lp_points(&company)) == load.points(&company),
                "{what}: the points of {company} differ"
            );
        }
    });
}

#[test]
fn after_a_kill_during_an_outage_nothing_is_lost_or_left_over() {
    // Runs are killed while they move files to error/ and write sidecars. Then the server is available again.
    let random = RandomState::new();
    let double = Double::start();
    let mut killed = 0;
    let mut longest = Duration::from_millis(60);
    while killed < kills() {
        let mut load = Load::new(2, 1, 6, 5, false);
        load.files.retain(|(_, text)| !text.contains("rubbish"));
        let site = Site::new();
        load.put(&site);
        double.fault(
            super::influx_double::Request::is_write,
            0,
            usize::MAX,
            Fault::status(503, "down"),
        );
        for round in 0..4 {
            let call = site
                .run_to(&double)
                .args(["--retry-for", "0", "--retry-errors"]);
            let micros = random.hash_one((round, killed))
                % u64::try_from(longest.as_micros()).expect("short");
            let mut run = call.start();
            std::thread::sleep(Duration::from_micros(micros));
            if run.is_done() {
                longest = run.wait().clean().took.max(Duration::from_millis(10));
            } else {
                run.kill();
                killed += 1;
            }
            for path in site
                .tree()
                .iter()
                .filter(|p| p.contains("/error/") && p.ends_with(".tsv"))
            {
                assert_eq!(
                    site.sidecar(path)["retryable"],
                    true,
                    "{path}: {:?}",
                    site.tree()
                );
            }
        }
        double.clear_faults();
        site.run_to(&double).arg("--retry-errors").ok();
        let what = format!("after {killed} kills");
        load.assert_moved(&site, &what);
        load.assert_arrived(&double, &what);
        for company in load.companies() {
            double.delete_bucket(&company);
        }
    }
}

#[test]
fn concurrent_runs_with_an_unreliable_server_lose_nothing() {
    let load = Load::new(3, 3, 5, 30, false);
    let double = Double::start();
    // About every third write fails.
    let faults = [
        Fault::status(503, "down"),
        Fault::ResetBefore,
        Fault::ResetAfterApply,
        Fault::CutAnswer,
        Fault::status(500, "internal error"),
    ];
    for (i, fault) in faults.into_iter().cycle().take(60).enumerate() {
        double.fault(is_data_write, 2 + i % 2, 1, fault);
    }
    let site = Site::new();
    load.put(&site);
    for _ in 0..2 {
        let runs: Vec<_> = (0..8)
            .map(|i| {
                site.run_to(&double)
                    .args([
                        "--retry-errors",
                        "--on-outage",
                        if i % 2 == 0 { "error" } else { "keep" },
                    ])
                    .env("TSV_BATCH_LINES", "20")
                    .env("TSV_RETRY_FOR", if i % 3 == 0 { "0" } else { "0.5" })
                    .timeout(Duration::from_mins(2))
                    .start()
            })
            .collect();
        for run in runs {
            run.wait().clean();
        }
    }
    double.clear_faults();
    let expected = load.exit_code(&site);
    site.run_to(&double)
        .arg("--retry-errors")
        .run()
        .expect(expected);
    load.assert_moved(&site, "unreliable server");
    load.assert_arrived(&double, "unreliable server");
}

#[test]
fn no_lock_file_is_left_over() {
    let site = Site::new();
    site.put_old(
        DEVICE.file("a.tsv"),
        FileBuilder::default()
            .line("03/08/25 03:20:00\t1\t2")
            .build(),
    );
    site.lp_run().ok();
    let names: Vec<String> = walkdir::WalkDir::new(site.data())
        .into_iter()
        .filter_map(Result::ok)
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name != LAYOUT_FILE)
        .collect();
    assert_eq!(
        names,
        ["data", "acme", "site", "02001171", "parsed", "a.tsv"]
    );
}

#[test]
fn a_move_to_another_file_system_fails_with_a_clear_error() {
    // `parsed` is on another file system. This needs the right to mount one.
    let site = Site::new();
    let path = site.put_old(
        DEVICE.file("a.tsv"),
        FileBuilder::default()
            .line("03/08/25 03:20:00\t1\t2")
            .build(),
    );
    let parsed = path.with_file_name("parsed");
    std::fs::create_dir(&parsed).expect("made");
    let Some(disk) = Tmpfs::mount(&parsed, "size=64k") else {
        return;
    };
    let run = site.lp_run().run();
    let tree = site.tree();
    drop(disk);
    let run = run.expect(1);
    assert_eq!(tree, [DEVICE.file("a.tsv")]);
    assert!(run.stderr.contains("file system"), "{}", run.stderr);
}

#[test]
fn a_full_disk_for_the_report_is_a_warning() {
    let site = Site::new();
    site.put_old(
        DEVICE.file("a.tsv"),
        FileBuilder::default()
            .line("03/08/25 03:20:00\t1\t2")
            .build(),
    );
    let reports = site.reports_dir();
    std::fs::create_dir(&reports).expect("made");
    let Some(disk) = Tmpfs::mount(&reports, "size=64k") else {
        return;
    };
    let filled = std::fs::write(reports.join("filler"), vec![0; 1 << 20]);
    let run = site.lp_run().run();
    let left: Vec<_> = std::fs::read_dir(&reports)
        .expect("read")
        .map(|e| e.expect("entry").file_name())
        .collect();
    drop(disk);
    assert!(filled.is_err(), "the disk is full");
    let run = run.expect(0);
    assert!(run.stderr.contains("WARN"), "{}", run.stderr);
    assert!(site.exists(DEVICE.parsed("a.tsv")));
    assert!(
        left.iter().all(|n| !n.to_string_lossy().ends_with(".json")),
        "no half report: {left:?}"
    );
}
