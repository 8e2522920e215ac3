//! Scarce resources: open files, threads, disk space, and many names in a folder.

use crate::harness::{Call, DEVICE, Site, Tmpfs, bad_file, good_file};
use crate::influx_double::Double;
use crate::skipped::skipped;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The smallest limit of open files that a run accepts. The three standard streams are among them.
const FEWEST_FILES: u64 = 31;

/// Devices with more files than may be open: some are invalid, in subfolders, or have several batches. Returns the
/// number of points.
fn put_devices(site: &Site) -> usize {
    let mut points = 0;
    for device in 0..3 {
        let mut put = |n: u32, name: String, rows: u32| {
            let path = format!("acme/site/{device:08}/{name}");
            // Each point has a value of its own.
            site.put_old(path, good_file(10_000 * device + 100 * n, rows));
            points += 2 * rows as usize;
        };
        for n in 0..40 {
            put(n, format!("{n:02}.tsv"), 2);
        }
        for n in 40..44 {
            put(n, format!("a/b/c/{n}.tsv"), 2);
        }
        put(44, "long.tsv".to_owned(), 30);
        for n in 0..4 {
            site.put_old(format!("acme/site/{device:08}/bad{n}.tsv"), bad_file());
        }
    }
    points
}

/// Closes the files that the tests have inherited, and sets the limit `$0`.
const LIMIT_OPEN_FILES: &str = r#"
for fd in /proc/self/fd/*; do
  ((${fd##*/} < 3)) || eval "exec ${fd##*/}>&-"
done
ulimit -n "$0"
exec "$@"
"#;

fn with_open_files(call: Call<'_>, limit: u64) -> Call<'_> {
    call.through(&["bash", "-c", LIMIT_OPEN_FILES, &limit.to_string()])
}

/// The lines of measurements that were sent.
fn sent(double: &Double) -> Vec<String> {
    let writes = double.data_writes().into_iter();
    writes
        .flat_map(|write| write.text().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn raw_files(site: &Site) -> Vec<String> {
    let mut files = site.tree();
    files.retain(|path| !path.contains("/parsed/") && !path.contains("/error/"));
    files
}

#[test]
fn with_few_open_files_all_files_are_moved_and_no_point_is_sent_twice() {
    for (limit, jobs) in [
        (FEWEST_FILES, "1"),
        (32, "4"),
        (40, "4"),
        (64, "1"),
        (64, "4"),
        (100, "64"),
    ] {
        let what = format!("{limit} open files, {jobs} jobs");
        let double = Double::start();
        let site = Site::new();
        let points = put_devices(&site);
        let call = site
            .run_to(&double)
            .args(["--jobs", jobs])
            .env("TSV_BATCH_LINES", "10");
        let run = with_open_files(call, limit).run().expect(1);
        let report = site.report();
        assert_eq!(report["nb_files_success"], 3 * 45, "{what}: {}", run.stderr);
        assert_eq!(report["nb_files_failed"], 3 * 4, "{what}: {}", run.stderr);
        assert!(raw_files(&site).is_empty(), "{what}: {:?}", site.tree());
        let sent = sent(&double);
        assert_eq!(sent.len(), points, "{what}");
        assert_eq!(sent.iter().collect::<BTreeSet<_>>().len(), points, "{what}");
    }
}

/// Versions that were written to after their move are processed in the group of the new file, however many there are.
#[test]
fn a_group_with_more_files_than_may_be_open_is_processed_in_parts() {
    let double = Double::start();
    let site = Site::new();
    for n in 1..60 {
        site.put(DEVICE.parsed(format!("x.{n}.tsv")), good_file(n, 1));
    }
    // The times of files advance in steps of up to 10 ms.
    std::thread::sleep(Duration::from_millis(20));
    site.put(DEVICE.file("x.tsv"), good_file(0, 1));
    let run = with_open_files(site.run_to(&double), FEWEST_FILES).ok();
    assert!(!run.stderr.contains("open files"), "{}", run.stderr);
    assert_eq!(site.report()["nb_files_success"], 60);
    assert!(raw_files(&site).is_empty());
    let sent = sent(&double);
    let values = |n: u32| [format!("value={n}.5"), format!("value=-{n}.25")];
    let expected: Vec<_> = (1..60).chain([0]).flat_map(values).collect();
    // A version may be sent again after the ones before it, because it lies in parsed/ already.
    let mut found = Vec::new();
    for line in sent.iter().rev() {
        let value = line.rsplit(' ').nth(1).expect("a field");
        if !found.contains(&value) {
            found.insert(0, value);
        }
    }
    assert_eq!(found, expected, "in the order of their uploads");
}

#[test]
fn with_too_few_open_files_nothing_is_sent_and_the_limit_is_named() {
    for limit in [8, 16, 20, 24, FEWEST_FILES - 1] {
        let double = Double::start();
        let site = Site::new();
        put_devices(&site);
        let before = site.tree();
        let run = with_open_files(site.run_to(&double), limit).run().expect(2);
        let expected = format!("the limit of open files is too low: {limit}, but 31 are needed");
        for part in [&expected, "ulimit -n", "LimitNOFILE="] {
            assert!(run.stderr.contains(part), "{limit}: {}", run.stderr);
        }
        assert_eq!(site.tree(), before);
        assert!(double.requests().is_empty());
    }
}

/// Runs as a user of its own, who may have `limit` processes and threads. Returns `None` and skips the calling test if
/// that user cannot be had.
fn with_processes(call: Call<'_>, user: u32, limit: u32) -> Option<Call<'_>> {
    if !rustix::process::geteuid().is_root() {
        skipped(
            "root",
            "run the tests as root: the limit counts all processes of a user",
        );
        return None;
    }
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    let processes = format!("--nproc={limit}");
    let wrapper = [
        "setpriv",
        &uid,
        &gid,
        "--clear-groups",
        "prlimit",
        &processes,
    ];
    Some(call.by_user(user)?.through(&wrapper))
}

fn put_files_of_devices(site: &Site) {
    for device in 0..6 {
        let path = format!("acme/site/{device:08}/a.tsv");
        site.put_old(path, good_file(device, 2));
    }
}

#[test]
fn without_a_thread_for_the_network_the_run_does_not_start() {
    let double = Double::start();
    let site = Site::new();
    put_files_of_devices(&site);
    let before = site.tree();
    let Some(call) = with_processes(site.run_to(&double), 654_001, 1) else {
        return;
    };
    let run = call.run().expect(1);
    for part in ["cannot start the network thread", "ulimit -u", "TasksMax="] {
        assert!(run.stderr.contains(part), "{}", run.stderr);
    }
    assert_eq!(site.tree(), before);
    assert!(double.requests().is_empty());
}

#[test]
fn with_few_threads_the_devices_wait_for_each_other() {
    for (limit, started) in [(2, 0), (3, 1), (4, 2)] {
        let double = Double::start();
        let site = Site::new();
        put_files_of_devices(&site);
        let call = site.run_to(&double).args(["--jobs", "4"]);
        let Some(call) = with_processes(call, 654_002, limit) else {
            return;
        };
        let run = call.ok();
        let expected = format!("{started} of 4 threads can be started");
        for part in [&expected, "ulimit -u"] {
            assert!(run.stderr.contains(part), "{limit}: {}", run.stderr);
        }
        assert!(raw_files(&site).is_empty(), "{limit}: {:?}", site.tree());
        assert_eq!(sent(&double).len(), 24, "{limit}");
    }
}

#[test]
fn without_any_thread_line_protocol_is_written() {
    let site = Site::new();
    put_files_of_devices(&site);
    let Some(call) = with_processes(site.lp_run(), 654_003, 1) else {
        return;
    };
    call.ok();
    assert!(raw_files(&site).is_empty(), "{:?}", site.tree());
    assert_eq!(site.lp_points("acme").len(), 24);
}

#[test]
fn without_a_thread_for_the_look_up_of_a_name_the_files_stay() {
    let double = Double::start();
    let site = Site::new();
    put_files_of_devices(&site);
    let before = site.tree();
    let url = double.url().replace("127.0.0.1", "localhost");
    let call = site
        .call_to(&url)
        .args(["--on-outage", "keep"])
        .env("TSV_RETRY_FOR", "1");
    let Some(call) = with_processes(call, 654_004, 2) else {
        return;
    };
    let run = call.run().expect(1);
    assert!(
        run.stderr.contains("cannot start a thread"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(site.tree(), before);
    assert_eq!(site.report()["outage"], true);
}

/// Fills the disk with empty files until no more can be made.
fn use_all_inodes(disk: &Path) -> Vec<PathBuf> {
    let names = (0..).map(|n| disk.join(format!("filler{n}")));
    names
        .take_while(|path| std::fs::write(path, "").is_ok())
        .collect()
}

#[test]
fn a_full_disk_has_its_own_remedy_and_loses_nothing() {
    for (what, content, to, code) in [
        (
            "a move to parsed/",
            good_file(0, 1),
            DEVICE.parsed("a.tsv"),
            0,
        ),
        ("a sidecar", bad_file(), DEVICE.error("a.tsv"), 1),
    ] {
        let site = Site::new();
        let Some(disk) = Tmpfs::mount(site.data(), "size=1m,nr_inodes=40") else {
            return;
        };
        site.put_old(DEVICE.file("a.tsv"), content);
        let fillers = use_all_inodes(&site.data());
        assert!(!fillers.is_empty());
        let run = site.lp_run().run().expect(1);
        for part in ["No space left on device", "free disk space or inodes"] {
            assert!(run.stderr.contains(part), "{what}: {}", run.stderr);
        }
        assert!(
            !run.stderr.contains("permissions"),
            "{what}: {}",
            run.stderr
        );
        assert!(site.exists(DEVICE.file("a.tsv")), "{what}");
        for filler in fillers {
            std::fs::remove_file(filler).expect("removed");
        }
        site.lp_run().run().expect(code);
        assert!(site.exists(to), "{what}: {:?}", site.tree());
        drop(disk);
    }
}

#[test]
fn a_disk_that_is_read_only_has_its_own_remedy() {
    let site = Site::new();
    let Some(disk) = Tmpfs::mount(site.data(), "size=1m") else {
        return;
    };
    site.put_old(DEVICE.file("a.tsv"), good_file(0, 1));
    disk.set_read_only(true);
    let run = site.lp_run().run().expect(1);
    for part in ["read-only file system", "mount the file system writable"] {
        assert!(run.stderr.contains(part), "{}", run.stderr);
    }
    disk.set_read_only(false);
    site.lp_run().ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")));
}

#[test]
fn a_full_disk_for_line_protocol_and_reports_has_its_own_remedy() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(0, 40));
    for (dir, message) in [
        (site.lp_dir(), "cannot write"),
        (site.reports_dir(), "cannot write the report"),
    ] {
        std::fs::create_dir_all(&dir).expect("a folder");
        let Some(disk) = Tmpfs::mount(&dir, "size=64k") else {
            return;
        };
        let filled = std::fs::write(dir.join("filler"), vec![0; 1 << 20]);
        assert!(filled.is_err(), "the disk is full");
        let run = site.lp_run().run();
        let line = run.stderr.lines().find(|line| line.contains(message));
        let line = line.unwrap_or_else(|| panic!("{message}: {}", run.stderr));
        assert!(line.contains("free disk space or inodes"), "{line}");
        assert!(!line.contains("permissions"), "{line}");
        drop(disk);
    }
    assert!(
        site.exists(DEVICE.parsed("a.tsv")),
        "the report is lost, the file is not"
    );
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_does_not_end_the_run() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(0, 40));
    let run = site.lp_run().through(&["prlimit", "--fsize=1000"]).run();
    let run = run.expect(1);
    assert!(run.stderr.contains("ulimit -f"), "{}", run.stderr);
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    site.lp_run().ok();
    assert_eq!(site.lp_points("acme").len(), 80);
}
