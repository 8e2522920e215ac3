//! Files that are being uploaded, or uploaded again during their ingestion. In its default mode, SFTPGo writes an
//! upload of an existing name into the same inode, even if the file has been moved since.

use crate::harness::{
    Call, DEVICE, FileBuilder, NOBODY, Site, age, file_of, good_file, headed, points_in,
    with_hidden_processes,
};
use crate::influx_double::{Double, Fault, Gate, is_data_write};
use crate::second_reader::{self, Point};
use crate::skipped::{installed, skipped};
use rustix::process::Signal;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

fn points_of(file: &str) -> Vec<Point> {
    second_reader::read(file.as_bytes(), "site", chrono_tz::Europe::Paris)
        .expect("good")
        .points
}

#[track_caller]
fn assert_contains(double: &Double, files: &[&str]) {
    let got = points_in(double, "acme");
    for file in files {
        for point in points_of(file) {
            assert!(got.contains(&point), "{point:?} is missing");
        }
    }
}

/// The first of two contents whose times do not overlap, so that the database can hold both.
fn first() -> String {
    good_file(1, 10)
}

fn second() -> String {
    let rows = (0..14).map(|i| format!("05/11/25 10:{:02}:00\t{i}.125\t{i}", i * 4));
    FileBuilder::default().lines(rows).build()
}

fn begin_overwrite(path: &Path) -> File {
    File::options()
        .write(true)
        .truncate(true)
        .open(path)
        .expect("opened for writing")
}

#[test]
fn a_sweep_skips_a_file_that_is_open_for_writing() {
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("b.tsv"), good_file(1, 1));
    let writer = File::options().append(true).open(&path).expect("opened");
    site.lp_run().ok();
    assert_eq!(site.tree(), [DEVICE.file("a.tsv"), DEVICE.parsed("b.tsv")]);
    let report = site.report();
    assert_eq!(file_of(&report, "a.tsv")["status"], "skipped");
    assert_eq!(report["nb_files_skipped"], 1);
    assert_eq!(report["status"], "success");
    drop(writer);
    site.lp_run().ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")));
}

#[test]
fn a_file_that_is_open_for_reading_is_ingested() {
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let _reader = File::open(&path).expect("opened");
    site.lp_run().ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")));
}

#[test]
fn a_recent_truncated_file_is_skipped() {
    let cut = good_file(1, 3).trim_end().to_owned();
    let site = Site::new();
    let path = site.put(DEVICE.file("a.tsv"), &cut);
    let headed = site.put(
        DEVICE.file("h.tsv"),
        headed("{}", &good_file(9, 2)).replace("END_DATA\n", ""),
    );
    site.put(DEVICE.file("whole.tsv"), good_file(20, 1));
    site.lp_run().ok();
    assert_eq!(
        site.tree(),
        ["a.tsv", "h.tsv", "parsed/whole.tsv"].map(|n| DEVICE.file(n))
    );
    let report = site.report();
    for name in ["a.tsv", "h.tsv"] {
        assert_eq!(file_of(&report, name)["status"], "skipped", "{name}");
    }
    assert_eq!(
        site.lp_points("acme").len(),
        2,
        "nothing of them is written"
    );
    age(&path, 599);
    site.lp_run().ok();
    assert!(path.exists());
    age(&path, 601);
    age(&headed, 601);
    site.lp_run().ok();
    assert_eq!(
        site.tree(),
        ["parsed/a.tsv", "parsed/h.tsv", "parsed/whole.tsv"].map(|n| DEVICE.file(n))
    );
}

#[test]
fn the_grace_period_is_a_setting() {
    let cut = good_file(1, 3).trim_end().to_owned();
    let site = Site::new();
    let path = site.put(DEVICE.file("a.tsv"), &cut);
    age(&path, 30);
    site.lp_run().env("TSV_INCOMPLETE_GRACE_S", "60").ok();
    assert!(path.exists());
    site.lp_run().env("TSV_INCOMPLETE_GRACE_S", "20").ok();
    assert!(!path.exists());
}

#[test]
fn a_file_with_a_modification_time_in_the_future_is_ingested() {
    // The server's clock was set back. The file must not be left for ever.
    let site = Site::new();
    let path = site.put(DEVICE.file("a.tsv"), good_file(1, 3));
    let file = File::options().append(true).open(&path).expect("opened");
    file.set_modified(SystemTime::now() + Duration::from_hours(24))
        .expect("set");
    drop(file);
    site.lp_run().ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")));
}

#[test]
fn a_recent_truncated_file_is_ingested_if_it_is_named() {
    let site = Site::new();
    site.put(DEVICE.file("a.tsv"), good_file(1, 3).trim_end());
    site.lp_run().named(DEVICE.file("a.tsv")).ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    assert_eq!(site.lp_points("acme").len(), 5);
}

#[test]
fn incident_files_were_read_while_they_were_still_being_uploaded() {
    let double = Double::start();
    let site = Site::new();
    let whole = first();
    let (a, b) = whole.split_at(whole.len() / 2);
    let path = site.put(DEVICE.file("a.tsv"), a);
    let mut writer = File::options().append(true).open(&path).expect("opened");
    site.run_to(&double).ok();
    writer.write_all(b.as_bytes()).expect("written");
    site.run_to(&double).ok();
    drop(writer);
    site.run_to(&double).ok();
    assert_contains(&double, &[&whole]);
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

/// Whether the program is called with the name of the file, or sweeps.
const CALLS: [bool; 2] = [true, false];

/// A run that names `a.tsv`, or a sweep.
fn call<'a>(site: &'a Site, double: &Double, named: bool) -> Call<'a> {
    let call = site.run_to(double);
    if named {
        call.named(DEVICE.file("a.tsv"))
    } else {
        call
    }
}

#[test]
fn overwritten_before_it_is_read() {
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        site.run_to(&double).ok();
        let path = {
            assert!(!path.exists());
            site.put_old(DEVICE.file("a.tsv"), second())
        };
        call(&site, &double, named).ok();
        assert!(!path.exists());
        assert_contains(&double, &[&first(), &second()]);
        assert_eq!(site.tree(), ["a.1.tsv", "a.tsv"].map(|n| DEVICE.parsed(n)));
    }
}

#[test]
fn overwritten_between_read_and_move() {
    // The upload happens after the first content was read, while it is written to the server.
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        let run = call(&site, &double, named).start();
        gate.wait_for(1);
        let mut writer = begin_overwrite(&path);
        writer.write_all(second().as_bytes()).expect("written");
        drop(writer);
        gate.open();
        run.wait().expect(0);
        assert!(
            path.exists(),
            "moved back, named {named}: {:?}",
            site.tree()
        );
        age(&path, 3600);
        site.run_to(&double).ok();
        assert_contains(&double, &[&first(), &second()]);
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")], "named {named}");
    }
}

#[test]
fn overwritten_during_the_read() {
    // The file is larger than a batch. Its end is replaced after its beginning was read.
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        let long = good_file(1, 4000);
        let path = site.put_old(DEVICE.file("a.tsv"), &long);
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        let call = site.run_to(&double).env("TSV_BATCH_LINES", "10");
        let run = if named {
            call.named(DEVICE.file("a.tsv"))
        } else {
            call
        }
        .start();
        gate.wait_for(1);
        let mut writer = begin_overwrite(&path);
        writer.write_all(second().as_bytes()).expect("written");
        gate.open();
        let run = run.wait().expect(0);
        assert!(
            path.exists(),
            "moved back, named {named}: {:?}, {}",
            site.tree(),
            run.stderr
        );
        drop(writer);
        age(&path, 3600);
        site.run_to(&double).ok();
        assert_contains(&double, &[&second()]);
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")], "named {named}");
        // Each point is from one of the two contents.
        let both: Vec<Point> = points_of(&long)
            .into_iter()
            .chain(points_of(&second()))
            .collect();
        let invented: Vec<_> = points_in(&double, "acme")
            .into_iter()
            .filter(|p| !both.contains(p))
            .take(3)
            .collect();
        assert_eq!(invented, [], "named {named}");
    }
}

#[test]
fn an_upload_that_ends_after_the_move_is_ingested_by_the_next_run() {
    // The upload begins before the file is moved and ends after the run.
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        let run = call(&site, &double, named).start();
        gate.wait_for(1);
        let mut writer = begin_overwrite(&path);
        let text = second();
        let (a, b) = text.split_at(text.len() / 3);
        writer.write_all(a.as_bytes()).expect("written");
        gate.open();
        run.wait().expect(0);
        writer.write_all(b.as_bytes()).expect("written");
        drop(writer);
        assert!(
            path.exists(),
            "moved back, named {named}: {:?}",
            site.tree()
        );
        // The hook of the upload.
        site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
        assert_contains(&double, &[&first(), &second()]);
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    }
}

#[test]
fn an_upload_that_keeps_a_named_file_open_during_the_run_is_not_lost() {
    // The hook of the first upload runs late, when the second upload has opened the file. That one ends after the run.
    let double = Double::start();
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), first());
    let mut writer = begin_overwrite(&path);
    let text = second();
    let (a, b) = text.split_at(text.len() / 3);
    writer.write_all(a.as_bytes()).expect("written");
    site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    writer.write_all(b.as_bytes()).expect("written");
    drop(writer);
    site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    assert_contains(&double, &[&second()]);
}

#[test]
fn a_file_that_is_replaced_by_a_rename_during_the_run_is_ingested() {
    // A client renames a new file to the name of the one that is being ingested.
    let double = Double::start();
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), first());
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).named(DEVICE.file("a.tsv")).start();
    gate.wait_for(1);

    let new = site.put_old(DEVICE.file("new.tmp"), second());
    std::fs::rename(&new, &path).expect("renamed over it");
    gate.open();
    run.wait().expect(0);
    // The old inode has no name any more. The new file must be ingested by the next run.
    site.run_to(&double).run().expect(0);
    assert_contains(&double, &[&first(), &second()]);
    let tree = site.tree();
    assert!(
        tree.iter()
            .any(|p| site.read(p) == second().as_bytes() && p.contains("/parsed/")),
        "{tree:?}"
    );
}

#[test]
fn appended_to_between_read_and_move() {
    let double = Double::start();
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), first());
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).start();
    gate.wait_for(1);
    let mut writer = File::options().append(true).open(&path).expect("opened");
    writer
        .write_all(b"05/11/25 10:00:00\t7\t8\n")
        .expect("written");
    drop(writer);
    gate.open();
    run.wait().expect(0);
    assert!(path.exists(), "moved back: {:?}", site.tree());
    age(&path, 3600);
    site.run_to(&double).ok();
    let whole = first() + "05/11/25 10:00:00\t7\t8\n";
    assert_contains(&double, &[&whole]);
    assert_eq!(site.read(DEVICE.parsed("a.tsv")), whole.as_bytes());
}

#[test]
fn touched_between_read_and_move() {
    let double = Double::start();
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), first());
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).start();
    gate.wait_for(1);
    age(&path, 1800);
    gate.open();
    run.wait().expect(0);
    assert!(path.exists(), "moved back: {:?}", site.tree());
    site.run_to(&double).ok();
    assert_contains(&double, &[&first()]);
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn overwritten_before_it_goes_to_error() {
    // The server refuses the first content, or is unavailable. The second content is valid.
    for (status, message) in [(400, "unable to parse"), (503, "down")] {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::GateThen(gate.clone(), status, message));
        let run = site.run_to(&double).args(["--retry-for", "0"]).start();
        gate.wait_for(1);
        let mut writer = begin_overwrite(&path);
        writer.write_all(second().as_bytes()).expect("written");
        gate.open();
        run.wait().expect(0);
        assert!(path.exists(), "{status}: moved back: {:?}", site.tree());
        drop(writer);
        age(&path, 3600);
        site.run_to(&double).ok();
        assert_contains(&double, &[&second()]);
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")], "{status}");
    }
}

#[test]
fn a_file_that_is_moved_back_to_error_is_retried() {
    for named in CALLS {
        let double = Double::start();
        double.fault_writes(usize::MAX, Fault::status(503, "down"));
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), first());
        site.run_to(&double)
            .args(["--retry-for", "0"])
            .run()
            .expect(1);
        double.clear_faults();
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        let path = site.path(DEVICE.error("a.tsv"));
        let call = site.run_to(&double);
        let run = if named {
            call.named(DEVICE.error("a.tsv"))
        } else {
            call.arg("--retry-errors")
        }
        .start();
        gate.wait_for(1);
        // Opened during the run, written to after it.
        let mut writer = File::options().append(true).open(&path).expect("opened");
        gate.open();
        run.wait().expect(0);
        let rows = second()
            .lines()
            .skip(2)
            .map(|l| format!("{l}\n"))
            .collect::<String>();
        writer.write_all(rows.as_bytes()).expect("written");
        drop(writer);
        assert!(
            path.exists(),
            "moved back, named {named}: {:?}",
            site.tree()
        );
        assert_eq!(site.sidecar(&DEVICE.error("a.tsv"))["retryable"], true);
        age(&path, 3600);
        site.run_to(&double).arg("--retry-errors").ok();
        assert_contains(&double, &[&first(), &second()]);
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    }
}

#[test]
fn a_named_file_that_is_open_for_writing_is_left_to_the_hook_of_its_upload() {
    // The hook of an earlier upload runs after the next upload has truncated the file.
    let double = Double::start();
    let site = Site::new();
    let path = site.put(DEVICE.file("a.tsv"), first());
    let mut writer = begin_overwrite(&path);
    site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
    let report = site.report();
    let entry = file_of(&report, "a.tsv");
    assert_eq!(entry["status"], "skipped", "{entry:#}");
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    writer.write_all(second().as_bytes()).expect("written");
    drop(writer);
    site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
    assert_contains(&double, &[&second()]);
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn an_upload_that_ended_in_a_moved_file_is_ingested_by_its_hook() {
    // A client opened the file before the move and wrote it afterwards, in parsed/ or error/, under any number.
    for (place, moved_as) in [
        ("parsed", "a.tsv"),
        ("parsed", "a.1.tsv"),
        ("parsed", "a.7.tsv"),
        ("error", "a.tsv"),
        ("error", "a.1.tsv"),
    ] {
        let double = Double::start();
        let site = Site::new();
        // Versions of the name, moved like ingested files and not written to since.
        for name in ["a.tsv", "a.1.tsv", "a.7.tsv"] {
            let raw = site.put(DEVICE.file("raw.tmp"), first());
            age(&raw, 7200);
            site.rename(raw, DEVICE.file(format_args!("{place}/{name}")));
        }
        let moved = site.path(DEVICE.file(format_args!("{place}/{moved_as}")));
        begin_overwrite(&moved)
            .write_all(second().as_bytes())
            .expect("written");
        site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
        assert_contains(&double, &[&second()]);
        let points = points_in(&double, "acme").len();
        assert_eq!(
            points,
            points_of(&second()).len(),
            "{place}/{moved_as}: versions without a new upload are not ingested"
        );
        // In the second run everything is processed.
        let writes = double.data_writes().len();
        let run = site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
        assert_eq!(double.data_writes().len(), writes, "{place}/{moved_as}");
        assert!(run.stderr.contains("already processed"), "{}", run.stderr);
    }
}

#[test]
fn several_uploads_that_ended_in_moved_files_are_ingested_in_order() {
    let double = Double::start();
    let site = Site::new();
    let file = |value: usize| {
        let row = format!("05/11/25 10:00:00\t{value}\t{value}");
        FileBuilder::default().line(row).build()
    };
    for (n, name) in ["a.2.tsv", "a.tsv", "a.1.tsv"].iter().enumerate() {
        let raw = site.put(DEVICE.file("raw.tmp"), first());
        let moved = site.rename(raw, DEVICE.parsed(name));
        std::thread::sleep(Duration::from_millis(20));
        begin_overwrite(&moved)
            .write_all(file(n + 1).as_bytes())
            .expect("written");
    }
    site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
    let values: Vec<f64> = points_in(&double, "acme").iter().map(|p| p.value).collect();
    assert_eq!(values, [3.0, 3.0], "the last upload wins");
}

#[test]
fn an_upload_that_ended_in_a_moved_file_is_not_hidden_by_a_later_one_of_its_name() {
    for named in CALLS {
        for (place, moved_as) in [
            ("parsed", "a.tsv"),
            ("parsed", "a.1.tsv"),
            ("error", "a.tsv"),
        ] {
            let double = Double::start();
            let site = Site::new();
            let raw = site.put(DEVICE.file("raw.tmp"), good_file(500, 3));
            let moved = site.rename(raw, DEVICE.file(format_args!("{place}/{moved_as}")));
            std::thread::sleep(Duration::from_millis(20));
            begin_overwrite(&moved)
                .write_all(second().as_bytes())
                .expect("written");
            site.put(DEVICE.file("a.tsv"), first());
            call(&site, &double, named).ok();
            assert_contains(&double, &[&first(), &second()]);
        }
    }
}

#[test]
fn a_moved_file_that_is_being_written_is_moved_back() {
    let double = Double::start();
    let site = Site::new();
    let raw = site.put(DEVICE.file("raw.tmp"), first());
    let moved = site.rename(raw, DEVICE.parsed("a.1.tsv"));
    let mut writer = begin_overwrite(&moved);
    // The hook of another upload of the name.
    site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    writer.write_all(second().as_bytes()).expect("written");
    drop(writer);
    site.run_to(&double).named(DEVICE.file("a.tsv")).ok();
    assert_contains(&double, &[&second()]);
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn a_second_upload_into_the_inode_of_the_first_is_not_lost() {
    // parsed/a.tsv exists. The second upload opens the inode of the first before the hook of the first runs.
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(500, 3));
        site.run_to(&double).ok();
        let path = site.put(DEVICE.file("a.tsv"), first());
        let mut writer = begin_overwrite(&path);
        let text = second();
        let (a, b) = text.split_at(text.len() / 17);
        writer.write_all(a.as_bytes()).expect("written");
        let call = || {
            if named {
                site.run_to(&double).named(DEVICE.file("a.tsv"))
            } else {
                site.run_to(&double)
            }
        };
        call().ok();
        writer.write_all(b.as_bytes()).expect("written");
        drop(writer);
        call().ok();
        assert_contains(&double, &[&second()]);
        assert_eq!(
            site.tree(),
            ["a.1.tsv", "a.tsv"].map(|n| DEVICE.parsed(n)),
            "named {named}"
        );
    }
}

#[test]
fn an_upload_does_not_wait_for_a_slow_write_to_the_server() {
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        // The kernel would let the upload wait for 45 s.
        let run = call(&site, &double, named).env("TSV_REQUEST_TIMEOUT_S", "50");
        let run = run.start();
        gate.wait_for(1);
        let asked = std::time::Instant::now();
        let mut writer = begin_overwrite(&path);
        assert!(
            asked.elapsed() < Duration::from_secs(20),
            "the upload waits for {:?}",
            asked.elapsed()
        );
        gate.open();
        let run = run.wait();
        assert_eq!(run.code(), 0, "not ended by SIGIO: {}", run.stderr);
        writer.write_all(second().as_bytes()).expect("written");
        drop(writer);
        assert_eq!(site.tree(), [DEVICE.file("a.tsv")], "named {named}");
    }
}

#[test]
fn a_file_whose_mode_changes_during_the_run_is_ingested() {
    // A client may set mode or time after its upload. The content does not change.
    use std::os::unix::fs::PermissionsExt;
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        let run = call(&site, &double, named).start();
        gate.wait_for(1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("set");
        gate.open();
        run.wait().expect(0);
        assert_contains(&double, &[&first()]);
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
        let report = site.report();
        assert_eq!(report["nb_files_total"], 1, "reported once: {report:#}");
        assert_eq!(report["nb_files_success"], 1);
    }
}

#[test]
fn a_write_of_the_same_size_with_the_same_time_is_noticed() {
    for named in CALLS {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        let before = std::fs::metadata(&path)
            .and_then(|m| m.modified())
            .expect("a time");
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        let run = call(&site, &double, named).start();
        gate.wait_for(1);
        let other = first().replace(".5\t", ".7\t");
        assert_eq!(other.len(), first().len());
        let mut writer = File::options().write(true).open(&path).expect("opened");
        writer.write_all(other.as_bytes()).expect("written");
        writer.set_modified(before).expect("set back");
        drop(writer);
        gate.open();
        run.wait().expect(0);
        site.run_to(&double).ok();
        assert_contains(&double, &[&other]);
        assert_eq!(site.read(DEVICE.parsed("a.tsv")), other.as_bytes());
    }
}

/// A process that has a file open for writing until it is dropped.
struct Writer(std::process::Child);

impl Writer {
    fn start(command: &[&str], path: &Path) -> Self {
        use std::io::Read;
        let mut child = std::process::Command::new(command[0])
            .args(&command[1..])
            .args(["sh", "-c", "exec 3>>\"$1\"; echo ready; read line", "sh"])
            .arg(path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().expect("piped");
        stdout.read_exact(&mut ready).expect("it is ready");
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("it ends");
    }
}

#[test]
fn a_file_that_a_process_with_a_capability_writes_is_skipped() {
    // As SFTPGo under systemd: the sweep has the same user, but cannot see the open files of that process.
    if !rustix::process::geteuid().is_root() {
        return skipped(
            "root",
            "run the tests as root: this one gives a process a capability",
        );
    }
    let nobody = NOBODY.to_string();
    let with_capability = [
        "setpriv",
        "--reuid",
        &nobody,
        "--regid",
        &nobody,
        "--clear-groups",
        "--inh-caps=+net_bind_service",
        "--ambient-caps=+net_bind_service",
    ];
    // The user's own file, for which a lease is possible, and another user's, for which only /proc is.
    for (owner, mode) in [(NOBODY, 0o644), (0, 0o666)] {
        use std::os::unix::fs::PermissionsExt;
        let site = Site::new();
        let path = site.put(DEVICE.file("a.tsv"), good_file(1, 3));
        let Some(call) = site.lp_run().unprivileged() else {
            return;
        };
        std::os::unix::fs::lchown(&path, Some(owner), Some(owner)).expect("chown");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        let writer = Writer::start(&with_capability, &path);
        call.ok();
        assert_eq!(
            site.tree(),
            [DEVICE.file("a.tsv")],
            "owner {owner}: {:#}",
            site.report()
        );
        drop(writer);
        age(&path, 601);
        site.lp_run().unprivileged().expect("as before");
        std::os::unix::fs::lchown(&path, Some(owner), Some(owner)).expect("chown");
        site.lp_run().ok();
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    }
}

#[test]
fn a_recent_named_file_of_another_user_is_skipped() {
    // There is no lease, and some processes cannot be inspected. Being named does not suffice.
    if !rustix::process::geteuid().is_root() {
        return skipped("root", "run the tests as root: this one needs two users");
    }
    let site = Site::new();
    let path = site.put(DEVICE.file("a.tsv"), good_file(1, 3));
    let call = || {
        let call = site.lp_run().named(DEVICE.file("a.tsv")).unprivileged()?;
        std::os::unix::fs::lchown(&path, Some(0), Some(0)).expect("chown");
        Some(call)
    };
    let Some(first) = call() else {
        return;
    };
    first.ok();
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    age(&path, 601);
    call().expect("as before").ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn a_file_that_a_process_outside_of_the_pid_namespace_writes_is_skipped() {
    let isolated = ["unshare", "--pid", "--fork", "--mount-proc"];
    let works = std::process::Command::new(isolated[0])
        .args(&isolated[1..])
        .arg("true")
        .output();
    if !works.is_ok_and(|out| out.status.success()) {
        return skipped("pid-namespace", "run the tests as a user who may make one");
    }
    for by_lease in [true, false] {
        let site = Site::new();
        let path = site.put(DEVICE.file("a.tsv"), good_file(1, 3));
        let writer = File::options().append(true).open(&path).expect("opened");
        if by_lease {
            site.lp_run().through(&isolated).ok();
        } else {
            // Another user gets no lease.
            let nobody = NOBODY.to_string();
            let mut wrapper = isolated.to_vec();
            wrapper.extend(["setpriv", "--reuid", &nobody, "--regid", &nobody]);
            wrapper.extend(["--clear-groups"]);
            let Some(call) = site.lp_run().unprivileged() else {
                return;
            };
            std::os::unix::fs::lchown(&path, Some(0), Some(0)).expect("chown");
            call.through(&wrapper).ok();
        }
        assert_eq!(
            site.tree(),
            [DEVICE.file("a.tsv")],
            "by lease {by_lease}: {:#}",
            site.report()
        );
        drop(writer);
    }
}

#[test]
fn a_file_whose_writer_is_hidden_by_hidepid_is_skipped() {
    let Some(wrapper) = with_hidden_processes() else {
        return;
    };
    // The user's own file, for which a lease is possible, and another user's, for which only /proc is.
    for owner in [NOBODY, 0] {
        let site = Site::new();
        let path = site.put(DEVICE.file("a.tsv"), good_file(1, 3));
        let writer = File::options().append(true).open(&path).expect("opened");
        let Some(call) = site.lp_run().unprivileged() else {
            return;
        };
        std::os::unix::fs::lchown(&path, Some(owner), Some(owner)).expect("chown");
        call.through(&wrapper).ok();
        assert_eq!(
            site.tree(),
            [DEVICE.file("a.tsv")],
            "owner {owner}: {:#}",
            site.report()
        );
        drop(writer);
    }
}

#[test]
fn a_mapped_file_without_an_open_descriptor_is_skipped() {
    // /proc/PID/fd does not show this writer.
    if !installed("python3", "python3") {
        return;
    }
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let size = std::fs::metadata(&path).expect("a size").len();
    // Python's own mmap would keep a descriptor.
    let script = format!(
        "import ctypes, os, sys\n\
         fd = os.open(sys.argv[1], os.O_RDWR)\n\
         mmap = ctypes.CDLL(None, use_errno=True).mmap\n\
         mmap.restype = ctypes.c_void_p\n\
         mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\n\
         assert mmap(None, {size}, 3, 1, fd, 0) != ctypes.c_void_p(-1).value\n\
         os.close(fd)\n\
         print('ready', flush=True)\n\
         sys.stdin.read()\n"
    );
    let child = std::process::Command::new("python3")
        .args(["-c", &script])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut child = child.expect("python3 starts");
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut ready).expect("ready");
    site.lp_run().ok();
    let stayed = site.tree();
    drop(child.stdin.take());
    child.wait().expect("ended");
    assert_eq!(stayed, [DEVICE.file("a.tsv")]);
    site.lp_run().ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
}

#[test]
fn a_new_file_of_the_same_name_is_not_moved_instead() {
    // An atomic upload of the same name renames a file over it.
    for (fault_status, retry) in [(None, "20"), (Some(400), "20"), (Some(503), "0")] {
        let double = Double::start();
        let site = Site::new();
        let path = site.put_old(DEVICE.file("a.tsv"), first());
        let gate = Gate::new();
        let fault = match fault_status {
            None => Fault::Gate(gate.clone()),
            Some(status) => Fault::GateThen(gate.clone(), status, "no"),
        };
        double.fault_nth_write(1, fault);
        let run = site.run_to(&double).args(["--retry-for", retry]).start();
        gate.wait_for(1);
        let upload = site.put_old(DEVICE.file(".sftpgo-upload.x.a.tsv"), second());
        std::fs::rename(upload, &path).expect("renamed");
        gate.open();
        run.wait().expect(0);
        assert_eq!(
            site.tree(),
            [DEVICE.file("a.tsv")],
            "{fault_status:?}: it is never moved"
        );
        let report = site.report();
        let entry = file_of(&report, "a.tsv");
        assert_eq!(entry["status"], "skipped", "{entry:#}");
        assert!(
            entry["error"]
                .as_str()
                .is_some_and(|e| e.contains("took its name") && !e.contains("moved back")),
            "{entry:#}"
        );
        double.clear_faults();
        site.run_to(&double).ok();
        assert_contains(&double, &[&second()]);
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    }
}

#[test]
fn a_recent_headed_file_without_its_end_is_skipped_whatever_precedes_it() {
    let site = Site::new();
    let text = headed("{}", &good_file(9, 2)).replace("END_DATA\n", "");
    for (n, before) in ["\n", "\r\n \n", "\u{feff}\n\n", "\u{feff}\u{feff}"]
        .iter()
        .enumerate()
    {
        site.put(
            DEVICE.file(format_args!("{n}.tsv")),
            format!("{before}{text}"),
        );
    }
    site.lp_run().ok();
    assert_eq!(
        site.tree(),
        ["0", "1", "2", "3"].map(|n| DEVICE.file(format_args!("{n}.tsv")))
    );
}

#[test]
fn a_process_that_hangs_does_not_block_others_for_ever() {
    let double = Double::start();
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), first());
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let hanging = site
        .run_to(&double)
        .named(DEVICE.file("a.tsv"))
        .env("TSV_REQUEST_TIMEOUT_S", "50")
        .start();
    gate.wait_for(1);
    site.put_old(DEVICE.file("b.tsv"), second());
    site.put_old("other/site/02001171/c.tsv", first());
    let run = site
        .run_to(&double)
        .env("TSV_LOCK_WAIT_S", "0.3")
        .run()
        .expect(1);
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
    assert!(
        run.stderr.contains(&hanging.pid().to_string()),
        "the holder's pid is named: {}",
        run.stderr
    );
    assert!(
        site.exists("other/site/02001171/parsed/c.tsv"),
        "other devices are ingested"
    );
    assert!(site.exists(DEVICE.file("a.tsv")) && site.exists(DEVICE.file("b.tsv")));
    gate.open();
    hanging.wait().expect(0);
    site.run_to(&double).ok();
    assert_contains(&double, &[&first(), &second()]);
}

#[test]
fn removed_by_the_client_while_it_is_read() {
    let double = Double::start();
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), first());
    site.put_old(DEVICE.file("b.tsv"), second());
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).start();
    gate.wait_for(1);
    std::fs::remove_file(&path).expect("removed");
    gate.open();
    run.wait().expect(0);
    assert_eq!(site.tree(), [DEVICE.parsed("b.tsv")]);
}

#[test]
fn the_last_upload_of_each_name_is_never_lost() {
    // Clients overwrite the same names repeatedly, in pieces, in the same inode. Each upload is followed by its hook.
    // Some hooks are killed, sweeps run at the same time, and the server is unreliable. An upload may be overwritten
    // before it is read, but the last upload of a name must not be lost.
    let random = RandomState::new();
    let double = Double::start();
    for fault in [
        Fault::status(503, "down"),
        Fault::ResetAfterApply,
        Fault::ResetBefore,
    ]
    .into_iter()
    .cycle()
    .take(30)
    {
        double.fault(is_data_write, 3, 1, fault);
    }
    let site = Site::new();
    let names = ["a.tsv", "b.tsv", "c.tsv"];
    let uploads = 12;
    let content = |name: usize, upload: usize| {
        let rows = (0..20).map(|row| {
            // Each row of each upload has a unique time and value.
            let second = (name * uploads + upload) * 20 + row;
            format!(
                "07/11/25 {:02}:{:02}:{:02}\t{second}.5\t{second}",
                second / 3600,
                second / 60 % 60,
                second % 60
            )
        });
        FileBuilder::default().lines(rows).build()
    };
    let call = || {
        site.run_to(&double)
            .args(["--retry-errors", "--retry-for", "0.2"])
            .env("TSV_BATCH_LINES", "16")
            .env("TSV_INCOMPLETE_GRACE_S", "1")
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                call().run().clean();
            }
        });
        let clients: Vec<_> = (0..names.len())
            .map(|n| {
                let (random, site, content, call) = (&random, &site, &content, &call);
                scope.spawn(move || {
                    let pause = |what: usize, upload: usize, most: u64| {
                        std::thread::sleep(Duration::from_micros(
                            random.hash_one((n, what, upload)) % most,
                        ));
                    };
                    let path = site.path(DEVICE.file(names[n]));
                    site.make_dir(DEVICE.0);
                    for upload in 0..uploads {
                        let mut file = File::create(&path).expect("opened");
                        for (i, piece) in content(n, upload).as_bytes().chunks(150).enumerate() {
                            file.write_all(piece).expect("written");
                            pause(i, upload, 3000);
                        }
                        drop(file);
                        let hook = call().named(DEVICE.file(names[n])).start();
                        pause(1000, upload, 60_000);
                        if random.hash_one((n, upload)) % 3 == 0 {
                            hook.kill();
                        } else {
                            // It runs at the same time as the next upload.
                            scope.spawn(move || hook.wait().clean());
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("no client fails");
        }
        done.store(true, Ordering::Relaxed);
    });
    double.clear_faults();
    for path in site.tree().iter().filter(|p| p.ends_with(".tsv")) {
        age(&site.path(path), 3600);
    }
    call().ok();
    let tree = site.tree();
    for (n, name) in names.iter().enumerate() {
        let last = content(n, uploads - 1);
        assert_contains(&double, &[&last]);
        assert!(
            tree.iter()
                .any(|p| p.contains("/parsed/") && site.read(p) == last.as_bytes()),
            "{name}: the last upload is not in parsed/: {tree:?}"
        );
    }
    assert!(
        tree.iter().all(|p| p.contains("/parsed/")),
        "files are left: {tree:?}"
    );
    // Each point is from one of the uploads.
    let all: Vec<Point> = (0..names.len())
        .flat_map(|n| (0..uploads).flat_map(move |u| points_of(&content(n, u))))
        .collect();
    let invented: Vec<Point> = points_in(&double, "acme")
        .into_iter()
        .filter(|p| !all.contains(p))
        .collect();
    assert_eq!(invented, []);
}

#[test]
fn the_first_signal_ends_the_run_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let double = Double::start();
        let site = Site::new();
        let of = |n: u32| good_file(n * 10, 3).replace("02001171", &format!("0200117{n}"));
        for n in 0..5 {
            site.put_old(format!("acme/site/0200117{n}/a.tsv"), of(n));
        }
        let gate = Gate::new();
        double.fault_nth_write(1, Fault::Gate(gate.clone()));
        let run = site.run_to(&double).env("TSV_JOBS", "1").start();
        gate.wait_for(1);
        run.signal(signal);
        std::thread::sleep(Duration::from_millis(100));
        gate.open();
        let run = run.wait().expect(1);
        assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
        let tree = site.tree();
        assert!(tree.iter().all(|p| !p.contains("/error/")), "{tree:?}");
        assert!(
            tree.iter().filter(|p| !p.contains("/parsed/")).count() >= 4,
            "the run continues after the signal: {tree:?}"
        );
        assert_eq!(site.reports().len(), 1, "the report is written");
        double.clear_faults();
        site.run_to(&double).ok();
        for n in 0..5 {
            assert_contains(&double, &[&of(n)]);
            assert!(site.exists(format!("acme/site/0200117{n}/parsed/a.tsv")));
        }
    }
}

#[test]
fn a_signal_ends_a_run_over_many_named_files() {
    let site = Site::new();
    let mut call = site.lp_run();
    let files = 1500;
    for n in 0..files {
        site.put(DEVICE.file(format_args!("{n:04}.tsv")), good_file(n, 40));
        call = call.named(DEVICE.file(format_args!("{n:04}.tsv")));
    }
    let run = call.start();
    let parsed = site.path(DEVICE.file("parsed"));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(&parsed).map_or(0, Iterator::count) < 5 {
        assert!(std::time::Instant::now() < deadline, "no file was taken");
        std::thread::sleep(Duration::from_millis(1));
    }
    run.signal(Signal::TERM);
    run.wait().expect(1);
    let done = std::fs::read_dir(&parsed).expect("parsed").count();
    assert!(done < files as usize, "the run continues after the signal");
    assert_eq!(site.tree().len(), files as usize, "none is lost");
    assert_eq!(site.report()["nb_files_total"], done);
}

#[test]
fn a_signal_ends_the_wait_for_an_unavailable_server() {
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::status(503, "down"));
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), first());
    let run = site.run_to(&double).env("TSV_RETRY_FOR", "50").start();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while double.data_writes().is_empty() {
        assert!(std::time::Instant::now() < deadline, "no write came");
        std::thread::sleep(Duration::from_millis(5));
    }
    run.signal(Signal::TERM);
    let run = run.wait().expect(1);
    assert!(run.took < Duration::from_secs(25), "{:?}", run.took);
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")], "left in place");
    assert_eq!(site.reports().len(), 1);
}

#[test]
fn a_second_signal_ends_the_run_at_once() {
    let double = Double::start();
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), first());
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let mut run = site
        .run_to(&double)
        .env("TSV_REQUEST_TIMEOUT_S", "50")
        .start();
    gate.wait_for(1);
    run.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    assert!(!run.is_done(), "the first signal waits for the answer");
    run.signal(Signal::TERM);
    run.wait().expect(1);
    // After the first signal alone, it would write a report.
    assert!(site.reports().is_empty());
    gate.open();
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    site.run_to(&double).ok();
    assert_contains(&double, &[&first()]);
}
