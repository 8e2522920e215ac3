//! The last upload wins, in whatever order files are ingested, and a file is identified by more than its name. See
//! docs/specification.md, sections 1 and 9.

use crate::harness::{
    Call, DEVICE, FileBuilder, Run, Site, age, bad_file, file_of, good_file, points_in, stored,
    with_hidden_processes,
};
use crate::influx_double::{Double, Fault, Gate, Request, is_data_write};
use crate::second_reader::{self, Point};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A file of three rows with this value at 1 August 2025, `hour`:00, :20 and :40.
fn file(value: u32, hour: u32) -> String {
    let rows = [0, 20, 40].map(|m| format!("01/08/25 {hour:02}:{m:02}:00\t{value}.5\t{value}"));
    FileBuilder::default().lines(rows).build()
}

/// The points in the database after these files were written in this order.
fn state(files: &[String]) -> Vec<Point> {
    let points = files.iter().flat_map(|file| {
        second_reader::read(file.as_bytes(), "site", chrono_tz::Europe::Paris)
            .expect("good")
            .points
    });
    stored(&points.collect::<Vec<_>>())
}

/// Writes a file that was uploaded some minutes ago.
fn upload(site: &Site, path: &str, content: impl AsRef<[u8]>, minutes_ago: u64) {
    let path = site.put(path, content);
    age(&path, 60 * minutes_ago);
}

/// Fails the files of the device in an outage, so that they are in `error/`.
fn fail_all(site: &Site, double: &Double) {
    double.fault_writes(usize::MAX, Fault::status(503, "down"));
    site.run_to(double)
        .args(["--retry-for", "0"])
        .run()
        .expect(1);
    double.clear_faults();
}

fn retry(site: &Site, double: &Double) -> Run {
    site.run_to(double).arg("--retry-errors").ok()
}

/// The lines that `action` makes the program send.
fn lines_sent(double: &Double, action: impl FnOnce()) -> usize {
    let before = double.data_writes().len();
    action();
    let sent = &double.data_writes()[before..];
    sent.iter().map(Request::nb_lines).sum()
}

#[test]
fn a_retried_file_does_not_override_a_correction_that_was_ingested_meanwhile() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
    fail_all(&site, &double);
    upload(&site, &DEVICE.file("x.tsv"), file(2, 10), 40);
    upload(&site, &DEVICE.file("other.tsv"), file(3, 12), 30);
    site.run_to(&double).ok();
    let sent = lines_sent(&double, || {
        let run = retry(&site, &double);
        assert!(
            run.stderr.contains("parsed/x.tsv: 6 points written again"),
            "{}",
            run.stderr
        );
    });
    assert_eq!(
        points_in(&double, "acme"),
        state(&[file(1, 10), file(2, 10), file(3, 12)])
    );
    assert_eq!(sent, 12, "only what overlaps is sent");
    let reports = site.reports();
    let report = reports.last().expect("a report");
    assert_eq!(report["nb_files_total"], 1, "{report:#}");
    assert_eq!(file_of(report, "error/x.tsv")["nb_points"], 6);
    assert_eq!(
        site.tree(),
        ["other.tsv", "x.1.tsv", "x.tsv"].map(|name| DEVICE.parsed(name))
    );
}

#[test]
fn later_uploads_are_written_again_in_the_order_of_their_uploads_and_only_where_they_overlap() {
    // Each file overlaps the next by one row, and the names are against the order of the uploads.
    let (site, double) = (Site::new(), Double::start());
    let rows = |value: u32, first: u32, last: u32| {
        let rows = (first..=last).map(|m| format!("01/08/25 10:{m:02}:00\t{value}.5\t{value}"));
        FileBuilder::default().lines(rows).build()
    };
    let files = [
        rows(1, 0, 9),
        rows(2, 5, 19),
        rows(3, 8, 29),
        rows(4, 28, 39),
    ];
    upload(&site, &DEVICE.file("d.tsv"), &files[0], 50);
    fail_all(&site, &double);
    upload(&site, &DEVICE.file("c.tsv"), &files[1], 40);
    upload(&site, &DEVICE.file("b.tsv"), &files[2], 30);
    upload(&site, &DEVICE.file("a.tsv"), &files[3], 20);
    site.run_to(&double).ok();
    let sent = lines_sent(&double, || {
        retry(&site, &double);
    });
    assert_eq!(points_in(&double, "acme"), state(&files));
    // Ten rows of the late file, and the rows up to its end of those that overlap it.
    assert_eq!(sent, 2 * (10 + 5 + 2));
}

#[test]
fn a_late_file_of_any_kind_does_not_override_a_later_upload() {
    for kind in ["kept", "named", "named in error", "named in parsed", "left"] {
        let (site, double) = (Site::new(), Double::start());
        let late = match kind {
            "named in error" => DEVICE.error("x.tsv"),
            "named in parsed" => DEVICE.parsed("x.tsv"),
            _ => DEVICE.file("x.tsv"),
        };
        upload(&site, &late, file(1, 10), 50);
        let writer = (kind == "left").then(|| {
            std::fs::File::options()
                .append(true)
                .open(site.path(&late))
                .expect("opened")
        });
        if kind == "kept" {
            double.fault_writes(usize::MAX, Fault::status(503, "down"));
            site.run_to(&double)
                .args(["--on-outage", "keep", "--retry-for", "0"])
                .run()
                .expect(1);
            double.clear_faults();
        }
        upload(&site, &DEVICE.file("y.tsv"), file(2, 10), 40);
        upload(&site, &DEVICE.file("sub/z.tsv"), file(3, 10), 30);
        site.run_to(&double).named(DEVICE.file("sub/z.tsv")).ok();
        site.run_to(&double).named(DEVICE.file("y.tsv")).ok();
        drop(writer);
        let call = site.run_to(&double);
        if kind.starts_with("named") {
            call.named(&late).ok();
        } else {
            call.ok();
        }
        assert_eq!(points_in(&double, "acme"), state(&[file(3, 10)]), "{kind}");
        assert_eq!(
            site.tree(),
            ["x.tsv", "y.tsv", "z.tsv"].map(|name| DEVICE.parsed(name)),
            "{kind}"
        );
    }
}

#[test]
fn versions_of_one_stem_are_ingested_in_the_order_of_their_uploads() {
    // The numbers are against the order of the uploads, some files are raw and some in error/.
    for named in [false, true] {
        let (site, double) = (Site::new(), Double::start());
        let versions = ["x.2.tsv", "x.tsv", "x.10.tsv", "x.1.tsv"];
        for (i, name) in versions.iter().enumerate().take(2) {
            upload(&site, &DEVICE.file(name), file(i as u32, 10), 60 - i as u64);
        }
        fail_all(&site, &double);
        for (i, name) in versions.iter().enumerate().skip(2) {
            upload(&site, &DEVICE.file(name), file(i as u32, 10), 60 - i as u64);
        }
        let before = double.data_writes().len();
        let call = site.run_to(&double);
        if named {
            let paths = [
                DEVICE.file("x.1.tsv"),
                DEVICE.error("x.tsv"),
                DEVICE.error("x.2.tsv"),
                DEVICE.file("x.10.tsv"),
            ];
            paths.iter().fold(call, Call::named).ok();
        } else {
            call.arg("--retry-errors").ok();
        }
        let sent: Vec<_> = double.data_writes()[before..]
            .iter()
            .map(Request::text)
            .collect();
        let values: Vec<_> = sent.iter().map(|t| t.split("value=").nth(1)).collect();
        let values: Vec<_> = values
            .iter()
            .map(|v| v.expect("a value")[..3].to_owned())
            .collect();
        assert_eq!(values, ["0.5", "1.5", "2.5", "3.5"], "named {named}");
        assert_eq!(points_in(&double, "acme"), state(&[file(3, 10)]));
    }
}

#[test]
fn replaying_parsed_ends_with_the_last_upload_and_writes_each_file_once() {
    let (site, double) = (Site::new(), Double::start());
    let names = ["x.tsv", "x.1.tsv", "a.tsv", "x.10.tsv", "x.2.tsv"];
    for (i, name) in names.iter().enumerate() {
        upload(
            &site,
            &DEVICE.parsed(name),
            file(i as u32, 10),
            60 - i as u64,
        );
    }
    for order in [names, ["x.2.tsv", "x.10.tsv", "a.tsv", "x.1.tsv", "x.tsv"]] {
        let before = double.data_writes().len();
        let call = site.run_to(&double);
        order
            .iter()
            .fold(call, |call, name| call.named(DEVICE.parsed(name)))
            .ok();
        assert_eq!(points_in(&double, "acme"), state(&[file(4, 10)]));
        assert_eq!(double.data_writes().len() - before, names.len());
    }
}

#[test]
fn versions_with_the_same_time_are_ordered_by_their_numbers() {
    // A client sets the modification time of both.
    let (site, double) = (Site::new(), Double::start());
    let time = SystemTime::now() - Duration::from_hours(1);
    let put = |path: &str, value| set_modified(&site.put(path, file(value, 10)), time);
    put(&DEVICE.file("x.tsv"), 1);
    fail_all(&site, &double);
    put(&DEVICE.parsed("x.2.tsv"), 2);
    put(&DEVICE.parsed("x.10.tsv"), 3);
    retry(&site, &double);
    assert_eq!(points_in(&double, "acme"), state(&[file(3, 10)]));
}

#[test]
fn the_modification_time_decides_also_if_a_client_sets_it() {
    // The file that comes last has the earlier time.
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("new.tsv"), file(2, 10), 10);
    site.run_to(&double).named(DEVICE.file("new.tsv")).ok();
    upload(&site, &DEVICE.file("old.tsv"), file(1, 10), 600);
    site.run_to(&double).named(DEVICE.file("old.tsv")).ok();
    assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
}

/// Sets the time of a file as a client with a wrong clock does.
fn set_modified(path: &Path, time: SystemTime) {
    let file = std::fs::File::options().append(true).open(path);
    file.expect("opened").set_modified(time).expect("set");
}

/// Writes a file that its client dates a year ahead.
fn upload_dated_ahead(site: &Site, path: &str, content: String) {
    let path = site.put(path, content);
    set_modified(&path, SystemTime::now() + Duration::from_hours(365 * 24));
}

#[test]
fn a_file_dated_in_the_future_does_not_override_a_later_upload() {
    let (site, double) = (Site::new(), Double::start());
    upload_dated_ahead(&site, &DEVICE.file("x.tsv"), file(1, 10));
    fail_all(&site, &double);
    std::thread::sleep(Duration::from_millis(50));
    site.put(DEVICE.file("x.tsv"), file(2, 10));
    site.run_to(&double).ok();
    retry(&site, &double);
    assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
    // Nor when parsed/ is replayed, in any order.
    for names in [["x.tsv", "x.1.tsv"], ["x.1.tsv", "x.tsv"]] {
        let call = names.iter().fold(site.run_to(&double), |call, name| {
            call.named(DEVICE.parsed(name))
        });
        call.ok();
        assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
    }
    // Nor when it is named alone.
    for name in ["x.tsv", "x.1.tsv"] {
        site.run_to(&double).named(DEVICE.parsed(name)).ok();
        assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]), "{name}");
    }
}

/// Gives all folders to the user of [`with_hidden_processes`], who can neither take a lease on files of others nor see who writes
/// to them. Files are young for two seconds.
fn call_without_proof<'a>(
    site: &'a Site,
    double: &'a Double,
    wrapper: &'a [String],
) -> impl Fn() -> Call<'a> {
    let _owner = site.call().unprivileged().expect("root");
    move || {
        let call = site.run_to(double).env("TSV_INCOMPLETE_GRACE_S", "2");
        call.through(wrapper)
    }
}

#[test]
fn a_file_dated_in_the_future_stays_in_parsed_where_no_lease_is_possible() {
    let Some(wrapper) = with_hidden_processes() else {
        return;
    };
    let (site, double) = (Site::new(), Double::start());
    std::fs::create_dir_all(site.path(DEVICE.to_string())).expect("a folder");
    let call = call_without_proof(&site, &double, &wrapper);
    let (waiting, parsed) = (DEVICE.file("x.tsv"), DEVICE.parsed("x.tsv"));
    let old = || std::thread::sleep(Duration::from_millis(2_100));
    upload_dated_ahead(&site, &waiting, file(1, 10));
    old();
    call().ok();
    assert!(site.exists(&parsed));
    // The move is as recent as an upload.
    site.put(&waiting, file(2, 10));
    call().named(&waiting).ok();
    assert_eq!(site.tree(), [parsed, waiting]);
    old();
    call().ok();
    assert_eq!(
        site.tree(),
        ["x.1.tsv", "x.tsv"].map(|name| DEVICE.parsed(name))
    );
    assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
}

#[test]
fn a_young_file_that_cannot_be_moved_back_is_a_failure() {
    let Some(wrapper) = with_hidden_processes() else {
        return;
    };
    let (site, double) = (Site::new(), Double::start());
    let folder = site.path(DEVICE.parsed(""));
    std::fs::create_dir_all(&folder).expect("a folder");
    let call = call_without_proof(&site, &double, &wrapper);
    // It was written to after its move.
    site.put(DEVICE.parsed("x.tsv"), file(1, 10));
    let named = || {
        let call = call().env("TSV_INCOMPLETE_GRACE_S", "600");
        call.named(DEVICE.file("x.tsv"))
    };
    let set_mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&folder, mode).expect("set");
    };
    set_mode(0o555);
    let run = named().run().expect(1);
    let reason = "and the file cannot be moved back: Permission denied";
    assert!(run.stderr.contains(reason), "{}", run.stderr);
    // No run looks for it there.
    assert!(!run.stderr.contains("next run"), "{}", run.stderr);
    assert_eq!(site.tree(), [DEVICE.parsed("x.tsv")]);
    set_mode(0o755);
    named().ok();
    assert_eq!(site.tree(), [DEVICE.file("x.tsv")]);
}

#[test]
fn a_file_dated_in_the_future_is_warned_of_and_keeps_the_time_of_its_upload() {
    let site = Site::new();
    let start = SystemTime::now();
    upload_dated_ahead(&site, &DEVICE.file("x.tsv"), file(1, 10));
    let uploaded = SystemTime::now();
    let dry_run = site.call().arg("--dry-run").ok();
    let modified = |path: &str| {
        let file = std::fs::metadata(site.path(path)).expect("a file");
        file.modified().expect("a time")
    };
    assert!(
        modified(&DEVICE.file("x.tsv")) > uploaded,
        "a dry run changes nothing"
    );
    let run = site.lp_run().ok();
    for run in [dry_run, run] {
        let warnings = run.stderr.matches("SFTPGO_COMMON__SETSTAT_MODE=1").count();
        assert_eq!(warnings, 1, "{}", run.stderr);
    }
    // The clock of a file system advances in steps.
    let modified = modified(&DEVICE.parsed("x.tsv"));
    let step = Duration::from_millis(20);
    assert!(
        modified >= start - step && modified <= uploaded,
        "{modified:?}"
    );
    // Its hook comes again: there is nothing to do.
    let run = site.lp_run().named(DEVICE.file("x.tsv")).ok();
    assert!(run.stderr.contains("already processed"), "{}", run.stderr);
}

#[test]
fn a_late_file_that_is_refused_in_mid_file_does_not_override_a_later_upload() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("new.tsv"), file(2, 10), 10);
    site.run_to(&double).ok();
    let late = file(1, 10) + "MV_T302_V002\tPh 1 V\n";
    upload(&site, &DEVICE.file("late.tsv"), late, 60);
    site.run_to(&double).run().expect(1);
    assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
    assert_eq!(site.sidecar(&DEVICE.error("late.tsv"))["retryable"], false);
}

#[test]
fn a_late_file_fails_if_a_later_upload_cannot_be_written_again() {
    for (fault, on_outage, place) in [
        (Fault::status(503, "down"), "error", DEVICE.error("x.tsv")),
        (Fault::status(503, "down"), "keep", DEVICE.file("x.tsv")),
        (Fault::status(400, "no"), "keep", DEVICE.error("x.tsv")),
    ] {
        let (site, double) = (Site::new(), Double::start());
        upload(&site, &DEVICE.file("y.tsv"), file(2, 10), 10);
        upload(&site, &DEVICE.file("z.tsv"), file(3, 11), 10);
        site.run_to(&double).ok();
        upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 60);
        double.fault(is_data_write, 1, usize::MAX, fault);
        site.run_to(&double)
            .args(["--on-outage", on_outage, "--retry-for", "0"])
            .run()
            .expect(1);
        double.clear_faults();
        assert!(site.exists(&place), "{place}: {:?}", site.tree());
        let reports = site.reports();
        let entry = file_of(reports.last().expect("a report"), "x.tsv");
        assert_eq!(
            (&entry["status"], &entry["retryable"]),
            (&"error".into(), &true.into())
        );
        retry(&site, &double);
        assert_eq!(
            points_in(&double, "acme"),
            state(&[file(2, 10), file(3, 11)]),
            "{place}"
        );
    }
}

#[test]
fn a_run_killed_before_the_later_upload_is_written_again_is_repeated() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
    fail_all(&site, &double);
    upload(&site, &DEVICE.file("x.tsv"), file(2, 10), 40);
    site.run_to(&double).ok();
    let gate = Gate::new();
    double.fault(is_data_write, 1, 1, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).arg("--retry-errors").start();
    gate.wait_for(1);
    assert_eq!(
        points_in(&double, "acme"),
        state(&[file(1, 10)]),
        "the late file is written"
    );
    run.kill();
    assert!(site.exists(DEVICE.error("x.tsv")), "{:?}", site.tree());
    gate.open();
    retry(&site, &double);
    assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
    assert_eq!(
        site.tree(),
        ["x.1.tsv", "x.tsv"].map(|name| DEVICE.parsed(name))
    );
}

#[test]
fn a_dry_run_writes_nothing_again() {
    let site = Site::new();
    upload(&site, &DEVICE.parsed("y.tsv"), file(2, 10), 10);
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 60);
    let run = site.call().arg("--dry-run").ok();
    let report: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(report["nb_points_total"], 6);
    assert!(!run.stderr.contains("written again"), "{}", run.stderr);
}

#[test]
fn files_after_one_whose_request_got_no_answer_are_written_again() {
    // The server may carry out the first request later than the write of the second file.
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
    upload(&site, &DEVICE.file("y.tsv"), file(2, 10), 40);
    upload(&site, &DEVICE.file("z.tsv"), file(3, 12), 40);
    double.fault_nth_write(1, Fault::SilenceAfterApply);
    site.run_to(&double)
        .env("TSV_REQUEST_TIMEOUT_S", "1")
        .env("TSV_RETRY_FOR", "20")
        .ok();
    let sent: Vec<_> = double.data_writes().iter().map(Request::text).collect();
    let of = |value: &str| sent.iter().filter(|t| t.contains(value)).count();
    assert_eq!(
        (of("value=1.5"), of("value=2.5"), of("value=3.5")),
        (2, 2, 1)
    );
    let last = sent.last().expect("a write");
    assert!(last.contains("value=2.5"), "{last}");
}

/// A version that is moved under another name is not taken for a later upload of itself.
#[test]
fn a_version_whose_request_got_no_answer_is_not_written_again_after_itself() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("y.tsv"), file(9, 10), 60);
    site.run_to(&double).ok();
    upload(&site, &DEVICE.file("y.tsv"), file(1, 10), 50);
    upload(&site, &DEVICE.file("x.tsv"), file(2, 10), 40);
    let before = double.data_writes().len();
    double.fault_nth_write(1, Fault::SilenceAfterApply);
    site.run_to(&double)
        .env("TSV_REQUEST_TIMEOUT_S", "1")
        .env("TSV_RETRY_FOR", "20")
        .ok();
    let sent: Vec<_> = double.data_writes()[before..]
        .iter()
        .map(Request::text)
        .collect();
    let values: Vec<_> = sent
        .iter()
        .map(|text| if text.contains("value=1.5") { 1 } else { 2 })
        .collect();
    assert_eq!(values, [1, 1, 2, 2]);
}

/// A later upload that cannot be written again is an error of the run: the server may still write the earlier one.
#[test]
fn a_file_that_cannot_be_written_again_after_a_request_without_an_answer_is_an_error() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
    upload(&site, &DEVICE.file("y.tsv"), file(2, 10), 40);
    double.fault_nth_write(1, Fault::SilenceAfterApply);
    // The repetition, the later upload, and that again.
    double.fault_nth_write(3, Fault::status(400, "no"));
    let run = site
        .run_to(&double)
        .env("TSV_REQUEST_TIMEOUT_S", "1")
        .env("TSV_RETRY_FOR", "20")
        .run()
        .expect(1);
    let report = site.report();
    let errors: Vec<_> = report["files"]
        .as_array()
        .expect("files")
        .iter()
        .filter(|file| file["status"] == "error")
        .collect();
    assert_eq!(errors.len(), 1, "{}", run.stderr);
    let error = errors[0]["error"].as_str().expect("an error");
    assert!(error.contains("--tsvFile"), "{error}");
    assert!(
        errors[0]["file_path"]
            .as_str()
            .is_some_and(|path| path.ends_with("/parsed/y.tsv")),
        "{report:#}"
    );
}

/// The double of a move that was killed between its link and its unlink.
fn link(site: &Site, from: &str, to: &str) {
    let to = site.path(to);
    std::fs::create_dir_all(to.parent().expect("a folder")).expect("made");
    std::fs::hard_link(site.path(from), to).expect("linked");
}

#[test]
fn a_move_that_was_killed_between_link_and_unlink_is_finished() {
    for named in [false, true] {
        let (site, double) = (Site::new(), Double::start());
        let run = |expected| {
            let call = site.run_to(&double);
            let call = if named {
                call.named(DEVICE.file("x.tsv"))
            } else {
                call
            };
            call.run().expect(expected);
        };
        upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
        link(&site, &DEVICE.file("x.tsv"), &DEVICE.parsed("x.tsv"));
        run(0);
        assert_eq!(site.tree(), [DEVICE.parsed("x.tsv")], "named {named}");

        // The name in parsed/ was taken.
        upload(&site, &DEVICE.file("x.tsv"), file(2, 10), 40);
        link(&site, &DEVICE.file("x.tsv"), &DEVICE.parsed("x.1.tsv"));
        run(0);
        assert_eq!(
            site.tree(),
            ["x.1.tsv", "x.tsv"].map(|name| DEVICE.parsed(name))
        );
        assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
    }
}

#[test]
fn a_move_to_or_from_error_that_was_killed_between_link_and_unlink_is_finished() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("bad.tsv"), bad_file(), 50);
    site.run_to(&double).run().expect(1);
    link(&site, &DEVICE.error("bad.tsv"), &DEVICE.file("bad.tsv"));
    let failed = [DEVICE.error("bad.tsv"), DEVICE.sidecar("bad.tsv")];
    site.run_to(&double).run().expect(1);
    assert_eq!(site.tree(), failed, "not ingested for ever");
    site.run_to(&double).ok();

    // Out of error/, after a retry.
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
    fail_all(&site, &double);
    link(&site, &DEVICE.error("x.tsv"), &DEVICE.parsed("x.tsv"));
    retry(&site, &double);
    let [file, sidecar] = failed;
    assert_eq!(site.tree(), [file, sidecar, DEVICE.parsed("x.tsv")]);
}

#[test]
fn an_upload_into_a_file_whose_move_was_killed_is_ingested() {
    // The content was written after the link.
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
    link(&site, &DEVICE.file("x.tsv"), &DEVICE.parsed("x.tsv"));
    std::fs::write(site.path(DEVICE.file("x.tsv")), file(2, 10)).expect("written");
    site.run_to(&double).ok();
    assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
    assert_eq!(site.tree(), [DEVICE.parsed("x.tsv")]);
}

#[test]
fn a_file_with_a_hard_link_elsewhere_is_ingested() {
    let (site, double) = (Site::new(), Double::start());
    upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
    let backup = site.dir.path().join("backup.tsv");
    std::fs::hard_link(site.path(DEVICE.file("x.tsv")), &backup).expect("linked");
    site.run_to(&double).ok();
    assert_eq!(points_in(&double, "acme"), state(&[file(1, 10)]));
    assert_eq!(site.tree(), [DEVICE.parsed("x.tsv")]);
    assert!(Path::new(&backup).exists());
}

#[test]
fn an_upload_into_a_moved_file_is_noticed_if_its_client_sets_the_time_back() {
    for in_error in [false, true] {
        let (site, double) = (Site::new(), Double::start());
        upload(&site, &DEVICE.file("x.tsv"), file(1, 10), 50);
        let moved = if in_error {
            fail_all(&site, &double);
            DEVICE.error("x.tsv")
        } else {
            site.run_to(&double).ok();
            DEVICE.parsed("x.tsv")
        };
        let path = site.path(&moved);
        let before = std::fs::metadata(&path)
            .and_then(|m| m.modified())
            .expect("a time");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(file(1, 10).len(), file(2, 10).len());
        let mut writer = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("opened");
        std::io::Write::write_all(&mut writer, file(2, 10).as_bytes()).expect("written");
        writer.set_modified(before).expect("set back");
        drop(writer);
        // The hook of that upload.
        site.run_to(&double).named(DEVICE.file("x.tsv")).ok();
        assert_eq!(points_in(&double, "acme"), state(&[file(2, 10)]));
        assert_eq!(site.tree(), [DEVICE.parsed("x.tsv")]);
        // Another one has nothing to do.
        let sent = lines_sent(&double, || {
            site.run_to(&double).named(DEVICE.file("x.tsv")).ok();
        });
        assert_eq!(sent, 0);
    }
}

#[test]
#[ignore = "slow: 40,000 files"]
fn a_backlog_that_comes_after_later_uploads_takes_linear_time() {
    let seconds = |files: u32| {
        let site = Site::new();
        for n in 0..files {
            upload(
                &site,
                &DEVICE.file(format_args!("r{n:06}.tsv")),
                good_file(n, 1),
                600,
            );
            upload(
                &site,
                &DEVICE.parsed(format_args!("p{n:06}.tsv")),
                file(n, 10),
                10,
            );
        }
        let run = site.lp_run().timeout(Duration::from_mins(10)).ok();
        run.took.as_secs_f64()
    };
    let (few, many) = (seconds(5_000), seconds(20_000));
    assert!(many < 8.0 * few, "{few} s and {many} s");
}
