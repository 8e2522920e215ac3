//! Input that an SFTP user can create by accident or on purpose. It must not write to another company's bucket, read
//! outside its folder, stop a sweep or fill the log.

use crate::harness::{
    DEVICE, Device, FileBuilder, Site, bad_file, file_of, good_file, name, points_in,
};
use crate::influx_double::{Double, META};
use crate::skipped::{installed, skipped};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A device of another company, whose file must be ingested in any case.
const OTHER: Device = Device("zzz/site/02001171");

fn with_other(site: &Site) {
    site.put_old(OTHER.file("good.tsv"), good_file(500, 2));
}

#[track_caller]
fn assert_other_done(site: &Site) {
    assert!(
        site.exists(OTHER.parsed("good.tsv")),
        "the sweep stopped: {:?}",
        site.tree()
    );
}

#[test]
fn a_symbolic_link_that_is_named_like_a_file_is_not_followed() {
    let site = Site::new();
    let secret = site.dir.path().join("secret.tsv");
    std::fs::write(&secret, good_file(9000, 5)).expect("written");
    site.put_old("victim/site/02001171/v.tsv", good_file(7000, 2));
    site.link(&secret, DEVICE.file("x.tsv"));
    site.link("../../../victim/site/02001171/v.tsv", DEVICE.file("y.tsv"));
    site.link("nowhere", DEVICE.file("z.tsv"));
    with_other(&site);
    let double = Double::start();
    site.run_to(&double).ok();
    assert_other_done(&site);
    assert_eq!(points_in(&double, "acme"), []);
    assert_eq!(points_in(&double, "victim").len(), 4);
    assert!(secret.exists());

    // A link that is named is refused.
    let site = Site::new();
    site.link(&secret, DEVICE.file("x.tsv"));
    site.put_old("victim/site/02001171/v.tsv", good_file(7000, 2));
    site.link("../../../victim/site/02001171/v.tsv", DEVICE.file("y.tsv"));
    for n in ["x.tsv", "y.tsv"] {
        let run = site.run_to(&double).named(DEVICE.file(n)).run().expect(1);
        assert_eq!(points_in(&double, "acme"), [], "{n}: {run:?}");
    }
    assert!(secret.exists());
}

#[test]
fn a_device_folder_that_is_a_link_into_another_company_is_not_entered() {
    for (target, link) in [
        ("../../victim/site/02001171", DEVICE.0),
        ("../victim/site", "acme/site"),
        ("victim", "acme"),
    ] {
        let site = Site::new();
        site.put_old("victim/site/02001171/v.tsv", good_file(7000, 2));
        site.link(target, link);
        with_other(&site);
        let double = Double::start();
        site.run_to(&double).ok();
        assert_other_done(&site);
        assert_eq!(points_in(&double, "acme"), [], "{link}");
        assert_eq!(points_in(&double, "victim").len(), 4, "{link}");
        assert!(site.exists("victim/site/02001171/parsed/v.tsv"), "{link}");
    }
}

#[test]
fn a_named_file_behind_a_linked_folder_is_not_written_to_the_bucket_of_the_link() {
    let site = Site::new();
    site.put_old("victim/site/02001171/v.tsv", good_file(7000, 2));
    site.link("../../victim/site/02001171", DEVICE.0);
    let double = Double::start();
    site.run_to(&double)
        .named(DEVICE.file("v.tsv"))
        .run()
        .expect(1);
    assert_eq!(points_in(&double, "acme"), []);
}

#[test]
fn parsed_or_error_as_a_link_into_another_company_moves_nothing_there() {
    for (folder, text) in [("parsed", good_file(1, 2)), ("error", bad_file())] {
        let site = Site::new();
        site.make_dir("victim/site/02001171");
        site.put_old(DEVICE.file("a.tsv"), &text);
        site.link("../../../victim/site/02001171", DEVICE.file(folder));
        with_other(&site);
        let double = Double::start();
        site.run_to(&double).run().expect(1);
        assert_other_done(&site);
        let tree = site.tree();
        assert!(
            tree.iter().all(|p| !p.starts_with("victim/")),
            "{folder}: {tree:?}"
        );
        assert_eq!(
            site.read(DEVICE.file("a.tsv")),
            text.as_bytes(),
            "{folder}: left where it was"
        );
        // After another run, the victim's bucket is empty.
        site.run_to(&double).run().expect(1);
        assert_eq!(points_in(&double, "victim"), [], "{folder}");
    }
}

#[test]
fn a_fifo_or_a_folder_named_like_a_file_does_not_stop_a_sweep() {
    let site = Site::new();
    site.make_dir(DEVICE.file("dir.tsv/deep.tsv"));
    let fifo = site.path(DEVICE.file("fifo.tsv"));
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
    )
    .expect("a fifo");
    let socket = site.path(DEVICE.file("s.tsv"));
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    with_other(&site);
    site.lp_run().timeout(Duration::from_secs(20)).ok();
    assert_other_done(&site);
    assert!(site.exists(DEVICE.parsed("a.tsv")));
    for n in ["fifo.tsv", "dir.tsv", "s.tsv"] {
        site.lp_run()
            .named(DEVICE.file(n))
            .timeout(Duration::from_secs(20))
            .run()
            .expect(1);
    }
}

#[test]
fn parsed_that_is_a_file_leaves_the_input_raw_with_a_clear_error() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("parsed"), "I am a file");
    site.put_old("yyy/site/02001171/a.tsv", bad_file());
    site.put_old("yyy/site/02001171/error", "I am a file");
    with_other(&site);
    let run = site.lp_run().run().expect(1);
    assert_other_done(&site);
    assert!(site.exists(DEVICE.file("a.tsv")) && site.exists("yyy/site/02001171/a.tsv"));
    let report = site.report();
    assert_eq!(file_of(&report, &DEVICE.file("a.tsv"))["status"], "error");
    assert!(run.stderr.contains("parsed"), "{}", run.stderr);
}

#[test]
fn a_line_of_a_gigabyte_is_a_clear_error_with_little_memory() {
    for (n, head) in [
        (
            "in-the-data",
            FileBuilder::default()
                .line("03/08/25 03:20:00\t1\t2")
                .build(),
        ),
        ("from-the-start", String::new()),
    ] {
        let site = Site::new();
        let path = site.put(DEVICE.file(format_args!("{n}.tsv")), &head);
        let mut file = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("opened");
        file.seek(SeekFrom::Start(1 << 30)).expect("a hole");
        file.write_all(b"\n").expect("written");
        drop(file);
        crate::harness::age(&path, 3600);
        with_other(&site);
        let mut run = site.lp_run().start();
        let peak = run.peak_kib();
        let run = run.wait().expect(1);
        assert_other_done(&site);
        assert!(peak < 64 * 1024, "{peak} KiB");
        assert!(
            site.exists(DEVICE.error(format_args!("{n}.tsv"))),
            "{:?}",
            site.tree()
        );
        let report = site.report();
        let error = file_of(&report, &format!("{n}.tsv"))["error"]
            .as_str()
            .expect("an error")
            .to_lowercase();
        assert!(error.contains("line"), "{error}");
        assert!(error.len() < 1000 && run.stderr.len() < 10_000);
    }
}

#[test]
fn a_header_block_that_never_ends_is_a_clear_error_with_little_memory() {
    let site = Site::new();
    let path = site.put(DEVICE.file("a.tsv"), "START_HEADER\n");
    // A shell writes the lines, because a child of another test could inherit a file that this process has open for
    // writing, which is then left for the next run.
    let written = std::process::Command::new("sh")
        .args([
            "-c",
            "yes '\"a line of a header\",' | head -n 7500000 >> \"$0\"",
        ])
        .arg(&path)
        .status();
    assert!(written.expect("sh starts").success());
    let size = std::fs::metadata(&path).expect("a file").len();
    assert!(size > 100_000_000, "{size} bytes");
    crate::harness::age(&path, 3600);
    with_other(&site);
    let mut run = site.lp_run().start();
    let peak = run.peak_kib();
    run.wait().expect(1);
    assert_other_done(&site);
    assert!(peak < 64 * 1024, "{peak} KiB");
    assert!(site.exists(DEVICE.error("a.tsv")), "{:?}", site.tree());
}

#[test]
fn a_company_name_too_long_for_a_line_protocol_file_does_not_stop_a_sweep() {
    let long = "c".repeat(254);
    let site = Site::new();
    site.put_old(format!("{long}/site/02001171/a.tsv"), good_file(1, 1));
    with_other(&site);
    let run = site.lp_run().run().expect(1);
    assert_other_done(&site);
    let kept = site
        .tree()
        .into_iter()
        .filter(|p| p.starts_with('c') && p.ends_with("a.tsv"))
        .count();
    assert_eq!(kept, 1, "{:?}", site.tree());
    assert!(run.stderr.len() < 10_000);
}

#[test]
fn a_hundred_thousand_columns_do_not_stop_a_sweep() {
    let columns = 100_000;
    let channels = (0..columns).map(|_| "A W");
    let rows = (0..3).map(|minute| format!("03/08/25 03:{minute:02}:00{}", "\t1".repeat(columns)));
    let text = FileBuilder::with_channels(channels).lines(rows).build();
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), text);
    with_other(&site);
    let mut run = site.lp_run().start();
    let peak = run.peak_kib();
    run.wait().expect(1);
    assert_other_done(&site);
    assert!(peak < 400 * 1024, "{peak} KiB");
    assert!(site.exists(DEVICE.error("a.tsv")));
    assert_eq!(site.lp_points("acme"), []);
}

#[test]
fn thousands_of_empty_files_do_not_fill_the_log() {
    let site = Site::new();
    let n = 2000;
    for i in 0..n {
        site.put_old(DEVICE.file(format_args!("f{i:04}.tsv")), "");
    }
    with_other(&site);
    let run = site.lp_run().run().expect(1);
    assert_other_done(&site);
    assert_eq!(site.report()["nb_files_failed"], n);
    assert!(run.stderr.len() < n * 500, "{} bytes", run.stderr.len());
}

#[test]
fn files_with_unusual_names_are_ingested() {
    let names: [&[u8]; 12] = [
        b"line\nbreak.tsv",
        b"quote\"s.tsv",
        b"apos'trophe $(id) `id` {{x}}.tsv",
        b"\xff\xfe\xe9.tsv",
        b"esc\x1b[31mape.tsv",
        b" leading and trailing .tsv",
        b"back\\slash,comma=equals.tsv",
        b"-rf.tsv",
        b"--help.tsv",
        "unicode\u{202e}gpj.tsv".as_bytes(),
        b"....tsv",
        b"%s%n%00.tsv",
    ];
    let double = Double::start();
    let site = Site::new();
    for n in names {
        site.put_old(Path::new(DEVICE.0).join(name(n)), good_file(1, 1));
    }
    with_other(&site);
    let run = site.run_to(&double).ok();
    assert_other_done(&site);
    for n in names {
        if n.starts_with(b".") {
            continue; // hidden
        }
        let at = Path::new(DEVICE.0).join("parsed").join(name(n));
        assert!(site.exists(&at), "{at:?}: {:?}", site.tree());
    }
    assert!(
        !run.stderr.contains('\u{202e}'),
        "bidirectional controls are escaped"
    );
    // The report is written, and the meta points are valid.
    assert_eq!(site.report()["nb_files_success"], 12);
    let files = double
        .points(META)
        .iter()
        .filter(|l| l.measurement == "tsv_parser_file")
        .count();
    assert_eq!(files, 12);
}

#[test]
fn files_with_unusual_names_can_fail() {
    let names: [&[u8]; 4] = [
        b"line\nbreak.tsv",
        b"\xff\xfe\xe9.tsv",
        b"esc\x1b[31mape.tsv",
        b"quote\"s.tsv",
    ];
    let site = Site::new();
    for n in names {
        site.put_old(Path::new(DEVICE.0).join(name(n)), bad_file());
    }
    with_other(&site);
    site.lp_run().run().expect(1);
    assert_other_done(&site);
    for n in names {
        let at = Path::new(DEVICE.0).join("error").join(name(n));
        assert!(site.exists(&at), "{at:?}: {:?}", site.tree());
        let sidecar = Path::new(DEVICE.0)
            .join("error")
            .join(name(&[n, b".error.json"].concat()));
        assert!(site.exists(&sidecar), "{sidecar:?}");
    }
}

#[test]
fn a_named_file_may_have_any_name() {
    for n in [
        &b"line\nbreak.tsv"[..],
        b"\xff\xfe.tsv",
        b"--help.tsv",
        b"quote\"s.tsv",
    ] {
        let site = Site::new();
        site.put_old(Path::new(DEVICE.0).join(name(n)), good_file(1, 1));
        site.lp_run().named(Path::new(DEVICE.0).join(name(n))).ok();
        assert!(
            site.exists(Path::new(DEVICE.0).join("parsed").join(name(n))),
            "{n:?}"
        );
    }
}

#[test]
fn folders_of_invalid_utf_8_are_refused_and_do_not_stop_a_sweep() {
    let site = Site::new();
    for folder in [&b"ac\xffme/site/02001171"[..], b"acme/si\xffte/02001171"] {
        site.put_old(
            Path::new(std::ffi::OsStr::from_bytes(folder)).join("a.tsv"),
            good_file(1, 1),
        );
    }
    with_other(&site);
    let double = Double::start();
    site.run_to(&double).run().expect(1);
    assert_other_done(&site);
    assert_eq!(site.report()["nb_files_failed"], 2);
    // The second company is valid, but no bucket is created for a refused file.
    let mut buckets = double.bucket_names();
    buckets.sort();
    assert_eq!(buckets, ["_monitoring", "_tasks", META, "zzz"]);
}

#[test]
fn a_file_with_a_name_of_255_bytes_is_not_lost() {
    let long = format!("{}.tsv", "x".repeat(251));
    assert_eq!(long.len(), 255);
    // Two valid files: the name is taken for the second.
    let site = Site::new();
    with_other(&site);
    for from in [1, 2] {
        site.put_old(DEVICE.file(&long), good_file(from, 1));
        site.lp_run().ok();
    }
    assert_other_done(&site);
    let kept: Vec<Vec<u8>> = site
        .tree()
        .iter()
        .filter(|p| p.starts_with(DEVICE.0))
        .map(|p| site.read(p))
        .collect();
    for from in [1, 2] {
        assert!(
            kept.contains(&good_file(from, 1).into_bytes()),
            "{:?}",
            site.tree()
        );
    }
    assert_eq!(
        site.lp_points("acme")
            .iter()
            .filter(|p| p.value == 2.5)
            .count(),
        1
    );

    // An invalid file: the name of its sidecar would be longer than 255 bytes.
    let site = Site::new();
    with_other(&site);
    let text = bad_file();
    site.put_old(DEVICE.file(&long), &text);
    site.lp_run().run().expect(1);
    assert_other_done(&site);
    let kept: Vec<Vec<u8>> = site
        .tree()
        .iter()
        .filter(|p| p.ends_with(".tsv"))
        .map(|p| site.read(p))
        .collect();
    assert!(kept.contains(&text.into_bytes()), "{:?}", site.tree());

    // A file that fails in an outage and is retried.
    let double = Double::start();
    double.fault_writes(usize::MAX, crate::influx_double::Fault::status(503, "down"));
    let site = Site::new();
    site.put_old(DEVICE.file(&long), good_file(1, 1));
    site.run_to(&double).run().expect(1);
    double.clear_faults();
    site.run_to(&double).arg("--retry-errors").ok();
    assert_eq!(points_in(&double, "acme").len(), 2, "{:?}", site.tree());
}

#[test]
fn a_link_that_replaces_a_file_before_it_is_opened_is_not_followed() {
    let site = Site::new();
    let secret = site.put_old("victim/site/02001171/v.tsv", good_file(7000, 2));
    let path = site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let spare = site.path(DEVICE.file("a.spare"));
    let link = site.path(DEVICE.file("a.link"));
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (stop, secret) = (stop.clone(), secret.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _raced = std::os::unix::fs::symlink(&secret, &link);
                let _raced = std::fs::rename(&link, &path);
                let _raced = std::fs::write(&spare, good_file(1, 1));
                let _raced = std::fs::rename(&spare, &path);
            }
        })
    };
    let double = Double::start();
    for _ in 0..40 {
        site.run_to(&double)
            .named(DEVICE.file("a.tsv"))
            .env("TSV_INCOMPLETE_GRACE_S", "0")
            .run()
            .clean();
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().expect("ends");
    let got = points_in(&double, "acme");
    assert!(
        got.iter().all(|p| p.value.abs() < 7000.0),
        "another company's values: {got:?}"
    );
    assert_eq!(
        std::fs::read(&secret).expect("still there"),
        good_file(7000, 2).as_bytes()
    );
}

#[test]
fn a_report_that_cannot_be_written_is_a_warning() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let file = site.dir.path().join("a-file");
    std::fs::write(&file, "x").expect("written");
    let run = site
        .lp_run()
        .env("TSV_REPORT_DIR", file.join("reports"))
        .ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")));
    assert!(run.stderr.contains("WARN"), "{}", run.stderr);
}

#[test]
fn a_full_disk_for_the_line_protocol_leaves_the_input_raw() {
    if !Path::new("/dev/full").exists() {
        return skipped("/dev/full", "mknod /dev/full c 1 7");
    }
    let site = Site::new();
    std::fs::create_dir(site.lp_dir()).expect("made");
    std::os::unix::fs::symlink("/dev/full", site.lp_dir().join("acme.lp")).expect("linked");
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    with_other(&site);
    let run = site.lp_run().run().expect(1);
    assert!(site.exists(DEVICE.file("a.tsv")), "{:?}", site.tree());
    assert!(run.stderr.contains("acme"), "{}", run.stderr);
    assert_other_done(&site);
}

#[test]
fn a_full_disk_for_the_log_does_not_stop_the_run() {
    if !Path::new("/dev/full").exists() {
        return skipped("/dev/full", "mknod /dev/full c 1 7");
    }
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .expect("opened")
    };
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("bad.tsv"), bad_file());
    let run = |args: &[&str], stdout: std::process::Stdio| {
        std::process::Command::new(env!("CARGO_BIN_EXE_powerview"))
            .env_clear()
            .env("TSV_REPORT_DIR", site.reports_dir())
            .env("TSV_TIMEZONE", "Europe/Paris")
            .arg("-d")
            .arg(site.data())
            .arg("--line-protocol-dir")
            .arg(site.lp_dir())
            .args(args)
            .stdin(std::process::Stdio::null())
            .stdout(stdout)
            .stderr(full())
            .status()
            .expect("started")
            .code()
    };
    // A panic would be exit status 101.
    let dry = run(&["--dry-run"], full().into());
    assert_eq!(dry, Some(1));
    assert_eq!(run(&[], std::process::Stdio::null()), Some(1));
    assert!(site.exists(DEVICE.parsed("a.tsv")));
    assert!(site.exists(DEVICE.error("bad.tsv")));
    assert_eq!(site.reports().len(), 1);
}

#[test]
fn a_line_protocol_folder_that_cannot_be_created_leaves_the_input_raw() {
    let site = Site::new();
    std::fs::write(site.lp_dir(), "a file where the folder should be").expect("written");
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.lp_run().run().expect(2);
    assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
}

#[test]
fn a_company_cannot_write_out_of_the_line_protocol_folder() {
    let site = Site::new();
    site.put_old("..acme/site/02001171/a.tsv", good_file(1, 1));
    site.put_old("-rf/site/02001171/a.tsv", good_file(1, 1));
    site.put_old("a\\..\\b/site/02001171/a.tsv", good_file(1, 1));
    site.lp_run().ok();
    let beside: Vec<_> = std::fs::read_dir(site.dir.path())
        .expect("read")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|n| !["data", "cwd", "lp", "reports"].contains(&n.as_str()))
        .collect();
    assert_eq!(beside, Vec::<String>::new());
}

/// Runs as an unprivileged user with `closed` having the mode `mode`.
fn run_unprivileged(site: &Site, closed: &Path, mode: u32) -> Option<crate::harness::Run> {
    use std::os::unix::fs::PermissionsExt;
    let call = site.lp_run().unprivileged()?;
    std::fs::set_permissions(closed, std::fs::Permissions::from_mode(mode)).expect("closed");
    let run = call.run().clean();
    std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o755)).expect("opened");
    Some(run)
}

#[test]
fn an_unreadable_folder_does_not_stop_a_sweep() {
    for folder in [DEVICE.0, "acme/site", "acme"] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        with_other(&site);
        let Some(run) = run_unprivileged(&site, &site.path(folder), 0o000) else {
            return;
        };
        assert_eq!(run.code(), 1, "{run:?}");
        assert_other_done(&site);
        assert!(site.exists(DEVICE.file("a.tsv")));
        assert!(run.stderr.contains(folder), "{}", run.stderr);
    }
}

#[test]
fn an_unreadable_folder_below_a_device_is_an_error() {
    let site = Site::new();
    site.put_old(DEVICE.file("deeper/still/a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("b.tsv"), good_file(1, 1));
    with_other(&site);
    let Some(run) = run_unprivileged(&site, &site.path(DEVICE.file("deeper")), 0o000) else {
        return;
    };
    assert_eq!(run.code(), 1, "{run:?}");
    assert_other_done(&site);
    assert!(site.exists(DEVICE.parsed("b.tsv")));
    assert!(run.stderr.contains("/deeper"), "{}", run.stderr);
    assert_eq!(site.report()["nb_files_failed"], 1);
}

#[test]
fn a_named_file_in_an_unreadable_device_folder_can_be_retried() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let Some(call) = site.lp_run().arg("--tsvFile").arg(&path).unprivileged() else {
        return;
    };
    let closed = site.path(DEVICE.0);
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("closed");
    let run = call.run();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).expect("opened");
    let run = run.expect(1);
    assert!(
        run.stderr.contains("check its permissions"),
        "{}",
        run.stderr
    );
    assert_eq!(site.report()["files"][0]["retryable"], true);
    assert!(site.exists(DEVICE.file("a.tsv")));
}

#[test]
fn an_unreadable_error_folder_is_an_error_of_retry_errors() {
    let site = Site::new();
    site.put_old(DEVICE.error("a.tsv"), good_file(1, 1));
    let Some(call) = site.lp_run().arg("--retry-errors").unprivileged() else {
        return;
    };
    use std::os::unix::fs::PermissionsExt;
    let closed = site.path(DEVICE.file("error"));
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("closed");
    let run = call.run();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).expect("opened");
    let run = run.expect(1);
    assert!(run.stderr.contains("/error"), "{}", run.stderr);
}

/// A wrapper that makes listing `folder` fail with EIO. `None` if it is not available.
fn failing_disk(folder: &Path) -> Option<Vec<String>> {
    if !installed("strace", "strace") {
        return None;
    }
    let works = std::process::Command::new("strace")
        .args(["-f", "-o", "/dev/null", "true"])
        .output();
    if !works.is_ok_and(|out| out.status.success()) {
        skipped(
            "ptrace",
            "run the tests where strace may trace its children",
        );
        return None;
    }
    let mut wrapper = ["strace", "-f", "-q", "-o", "/dev/null", "-P"]
        .map(String::from)
        .to_vec();
    wrapper.push(folder.to_str().expect("UTF-8").to_owned());
    wrapper.extend(["-e", "inject=getdents64:error=EIO"].map(String::from));
    Some(wrapper)
}

#[test]
fn a_folder_that_a_failing_disk_cannot_list_is_an_error() {
    for folder in ["", "acme", "acme/site", DEVICE.0, &DEVICE.file("deeper")] {
        let site = Site::new();
        site.put_old(DEVICE.file("deeper/a.tsv"), good_file(1, 1));
        let path = site.path(folder);
        let Some(wrapper) = failing_disk(&path) else {
            return;
        };
        let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
        let run = site.lp_run().through(&wrapper).run().expect(1);
        assert!(
            run.stderr.contains(path.to_str().expect("UTF-8")),
            "{folder:?}: {}",
            run.stderr
        );
        assert!(run.stderr.contains("Input/output error"), "{}", run.stderr);
        let report = site.report();
        assert_eq!(report["status"], "partial_failure", "{folder:?}");
        assert!(site.exists(DEVICE.file("deeper/a.tsv")));
        let status = site
            .bare()
            .args(["status", "--dataFolder"])
            .arg(site.data())
            .through(&wrapper)
            .run()
            .expect(1);
        assert!(
            status.stdout.contains("Input/output error"),
            "{folder:?}: {}",
            status.stdout
        );
    }
}

#[test]
fn a_folder_that_cannot_be_listed_is_an_error_while_the_device_is_locked() {
    use rustix::fs::{FlockOperation, flock};
    let site = Site::new();
    site.put_old(DEVICE.file("deeper/a.tsv"), good_file(1, 1));
    let path = site.path(DEVICE.file("deeper"));
    let Some(wrapper) = failing_disk(&path) else {
        return;
    };
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let device = std::fs::File::open(site.path(DEVICE.0)).expect("opened");
    flock(&device, FlockOperation::LockExclusive).expect("locked");
    let run = site
        .lp_run()
        .env("TSV_LOCK_WAIT_S", "0.1")
        .through(&wrapper)
        .run()
        .expect(1);
    assert!(run.stderr.contains("Input/output error"), "{}", run.stderr);
    assert_eq!(site.report()["nb_files_failed"], 1);
}

#[test]
fn status_names_unreadable_files_and_folders() {
    use std::os::unix::fs::PermissionsExt;
    for (file, closed) in [
        ("a.tsv", "a.tsv"),
        ("deeper/a.tsv", "deeper"),
        ("parsed/a.tsv", "parsed"),
        ("parsed/a.tsv", "parsed/a.tsv"),
        ("error/a.tsv", "error"),
        ("error/a.tsv", "error/a.tsv.error.json"),
    ] {
        let site = Site::new();
        site.put(DEVICE.file(file), good_file(1, 1));
        site.put(DEVICE.sidecar("a.tsv"), "{}");
        let call = site
            .bare()
            .args(["status", "--dataFolder"])
            .arg(site.data());
        let Some(call) = call.unprivileged() else {
            return;
        };
        let path = site.path(DEVICE.file(closed));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("closed");
        let run = call.run();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("opened");
        let run = run.expect(1);
        assert!(
            run.stdout.to_lowercase().contains("permission denied"),
            "{closed}: {}",
            run.stdout
        );
    }
}

#[test]
fn a_file_below_thousands_of_folders_is_ingested() {
    // Its path is longer than PATH_MAX.
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let site = Site::new();
    site.make_dir(DEVICE.0);
    let device = std::fs::File::open(site.path(DEVICE.0)).expect("opened");
    let mut folder = rustix::fd::OwnedFd::from(device);
    for _ in 0..2100 {
        mkdirat(&folder, "d", Mode::from_raw_mode(0o755)).expect("made");
        folder = openat(
            &folder,
            "d",
            OFlags::DIRECTORY | OFlags::RDONLY,
            Mode::empty(),
        )
        .expect("opened");
    }
    let file = openat(
        &folder,
        "a.tsv",
        OFlags::CREATE | OFlags::WRONLY,
        Mode::from_raw_mode(0o644),
    )
    .expect("made");
    rustix::io::write(&file, good_file(1, 1).as_bytes()).expect("written");
    drop(file);
    site.lp_run().ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")), "not ingested");
    assert_eq!(site.lp_points("acme").len(), 2);
}

#[test]
fn an_unreadable_file_does_not_stop_a_sweep() {
    let site = Site::new();
    let path = site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("b.tsv"), good_file(1, 1));
    with_other(&site);
    let Some(run) = run_unprivileged(&site, &path, 0o000) else {
        return;
    };
    assert_eq!(run.code(), 1, "{run:?}");
    assert_other_done(&site);
    assert!(site.exists(DEVICE.parsed("b.tsv")));
    let kept: Vec<String> = site
        .tree()
        .into_iter()
        .filter(|p| p.ends_with("a.tsv"))
        .collect();
    assert_eq!(kept.len(), 1);
    assert!(run.stderr.contains("a.tsv"), "{}", run.stderr);
}

#[test]
fn an_unwritable_folder_leaves_the_input_raw() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    with_other(&site);
    let Some(run) = run_unprivileged(&site, &site.path(DEVICE.0), 0o555) else {
        return;
    };
    assert_eq!(run.code(), 1, "{run:?}");
    assert_other_done(&site);
    assert_eq!(
        site.tree(),
        [DEVICE.file("a.tsv"), OTHER.parsed("good.tsv")]
    );
    assert!(
        run.stderr.to_lowercase().contains("permission"),
        "{}",
        run.stderr
    );
    // With write access, the next run ingests the file.
    site.lp_run().ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")));
}

#[test]
fn an_unwritable_report_folder_is_a_warning() {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    std::fs::create_dir(site.reports_dir()).expect("made");
    let Some(run) = run_unprivileged(&site, &site.reports_dir(), 0o555) else {
        return;
    };
    assert_eq!(run.code(), 0, "{run:?}");
    assert!(site.exists(DEVICE.parsed("a.tsv")));
    assert!(run.stderr.contains("WARN"), "{}", run.stderr);
}

#[test]
fn an_unprivileged_sweep_ingests_a_recent_complete_file_of_its_own_user() {
    // SFTPGo's sweep after a session cannot inspect root's processes, but root did not upload the file.
    let site = Site::new();
    site.put(DEVICE.file("whole.tsv"), good_file(1, 3));
    site.put(DEVICE.file("cut.tsv"), good_file(9, 3).trim_end());
    let Some(call) = site.lp_run().unprivileged() else {
        return;
    };
    call.ok();
    assert_eq!(
        site.tree(),
        ["cut.tsv", "parsed/whole.tsv"].map(|n| DEVICE.file(n))
    );
}

#[test]
fn a_recent_file_of_another_user_is_skipped_if_its_processes_are_hidden() {
    if !rustix::process::geteuid().is_root() {
        return skipped("root", "run the tests as root: this one needs two users");
    }
    // The writer is this test, which is root. The program's user cannot inspect it.
    let site = Site::new();
    let path = site.put(DEVICE.file("a.tsv"), good_file(1, 3));
    let call = || site.lp_run().unprivileged();
    if call().is_none() {
        return;
    }
    let mine = || std::os::unix::fs::lchown(&path, Some(0), Some(0)).expect("chown");
    let mut writer = std::fs::File::options()
        .append(true)
        .open(&path)
        .expect("opened");
    let call = call().expect("as before");
    mine();
    call.ok();
    assert!(path.exists(), "{:?}", site.tree());
    writer
        .write_all(b"05/11/25 10:00:00\t7\t8\n")
        .expect("written");
    drop(writer);
    crate::harness::age(&path, 601);
    let call = site.lp_run().unprivileged().expect("as before");
    mine();
    call.ok();
    assert!(site.exists(DEVICE.parsed("a.tsv")), "{:?}", site.tree());
    assert_eq!(site.lp_points("acme").len(), 8);
}

#[test]
fn labels_with_control_characters_are_refused_and_not_shown() {
    // C1 control characters are valid UTF-8.
    let site = Site::new();
    site.put_old(
        DEVICE.file("a.tsv"),
        FileBuilder::with_channels(["Vo\u{9b}31mie W"])
            .line("03/08/25 03:20:00\t1")
            .build(),
    );
    let run = site.lp_run().run().expect(1);
    assert!(!run.stderr.contains('\u{9b}'));
    assert_eq!(site.lp_points("acme"), []);
}

#[test]
fn the_report_of_a_small_file_with_many_channels_is_a_small_multiple_of_the_file() {
    let columns = 4_096;
    let text = format!(
        "{}{}\nMV_T302_V002{}\n03/08/25 03:20:00\t1{}\n",
        "9".repeat(250),
        "\t1".repeat(columns),
        "\ta".repeat(columns),
        "\t".repeat(columns - 1)
    );
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), &text);
    site.lp_run().ok();
    let report = site.report();
    let file = file_of(&report, "a.tsv");
    assert_eq!(file["nb_channels"], columns);
    assert_eq!(file["nb_points"], 1);
    assert_eq!(file.get("channels"), None);
    let size = report.to_string().len();
    assert!(size <= 64 * 1024 + 16 * text.len(), "{size} bytes");
    assert_eq!(site.lp_points("acme").len(), 1);
}
