//! Several files and folders with `--tsvFile`.

use crate::harness::{DEVICE, Site, age, file_of, good_file};

/// Device folders of two companies, each with a waiting file `a.tsv`.
fn site_of(devices: &[&str]) -> Site {
    let site = Site::new();
    for device in devices {
        site.put_old(format!("{device}/a.tsv"), good_file(1, 1));
    }
    site
}

const DEVICES: [&str; 4] = [
    "acme/site1/02001171",
    "acme/site1/02001172",
    "acme/site2/02001171",
    "beta/site1/02001171",
];

/// The device folders whose `a.tsv` was ingested.
fn ingested(site: &Site) -> Vec<&'static str> {
    let mut devices = DEVICES.to_vec();
    devices.retain(|device| {
        let is_parsed = site.exists(format!("{device}/parsed/a.tsv"));
        assert_ne!(
            is_parsed,
            site.exists(format!("{device}/a.tsv")),
            "{device}"
        );
        is_parsed
    });
    devices
}

#[test]
fn several_files_follow_one_option_and_the_option_can_be_repeated() {
    let site = site_of(&DEVICES);
    let file = |n: usize| site.path(DEVICES[n]).join("a.tsv");
    site.lp_run()
        .arg("-t")
        .args([file(0), file(3)])
        .arg("--tsvFile")
        .arg(file(2))
        .ok();
    assert_eq!(ingested(&site), [DEVICES[0], DEVICES[2], DEVICES[3]]);
    assert_eq!(site.report()["nb_files_success"], 3);
}

#[test]
fn a_company_campaign_or_device_folder_is_swept() {
    for (folders, expected) in [
        (&["acme"][..], &DEVICES[..3]),
        (&["acme/site1/"], &DEVICES[..2]),
        (&["acme/site2/02001171"], &DEVICES[2..3]),
        (&["acme/site2", "beta"], &DEVICES[2..]),
        (&["."], &DEVICES),
        // One within another is swept once.
        (
            &["acme/site1/02001172", "acme", "acme/site2"],
            &DEVICES[..3],
        ),
    ] {
        let site = site_of(&DEVICES);
        let mut call = site.lp_run().arg("-t");
        for folder in folders {
            call = call.arg(site.path(folder));
        }
        let run = call.ok();
        assert_eq!(ingested(&site), expected, "{folders:?}: {}", run.stderr);
        assert_eq!(
            site.report()["nb_files_total"],
            expected.len(),
            "{folders:?}"
        );
    }
}

#[test]
fn a_folder_is_found_from_the_working_directory_and_its_misplaced_files_are_reported() {
    let site = site_of(&DEVICES);
    site.put_old("acme/site1/b.tsv", good_file(1, 1));
    site.put_old("beta/b.tsv", good_file(1, 1));
    let run = site
        .lp_run()
        .cwd(site.data())
        .args(["-t", "acme"])
        .run()
        .expect(1);
    assert_eq!(ingested(&site), &DEVICES[..3], "{}", run.stderr);
    let report = site.report();
    assert_eq!(file_of(&report, "b.tsv")["status"], "error");
    assert_eq!(report["nb_files_total"], 4);
}

#[test]
fn the_files_of_parsed_and_error_are_taken_like_named_files() {
    let site = Site::new();
    for name in ["a.tsv", "b.TSV", "old/c.tsv"] {
        site.put_old(DEVICE.error(name), good_file(1, 1));
    }
    site.put_old(DEVICE.error("a.tsv.error.json"), "{}");
    site.put_old(DEVICE.error(".hidden.tsv"), good_file(1, 1));
    site.put_old(DEVICE.file("waiting.tsv"), good_file(2, 1));
    site.lp_run()
        .arg("-t")
        .arg(site.path(DEVICE.error("")))
        .ok();
    assert_eq!(
        site.tree(),
        [
            DEVICE.error(".hidden.tsv"),
            DEVICE.parsed("a.tsv"),
            DEVICE.parsed("b.TSV"),
            DEVICE.parsed("c.tsv"),
            DEVICE.file("waiting.tsv"),
        ]
    );
    let points = site.lp_points("acme").len();
    site.lp_run()
        .arg("-t")
        .arg(site.path(DEVICE.parsed("")))
        .ok();
    assert_eq!(site.lp_points("acme").len(), 2 * points);
    assert!(site.exists(DEVICE.file("waiting.tsv")));
}

#[test]
fn files_of_a_folder_and_named_files_are_written_in_the_order_of_their_uploads() {
    let site = Site::new();
    // The later upload corrects the value of the same time.
    for (path, value, seconds) in [
        (DEVICE.error("z.tsv"), 1, 300),
        (DEVICE.error("a.tsv"), 2, 200),
        (DEVICE.file("m.tsv"), 3, 100),
    ] {
        age(&site.put(path, good_file(value, 1)), seconds);
    }
    site.lp_run()
        .arg("-t")
        .arg(site.path(DEVICE.file("m.tsv")))
        .arg(site.path(DEVICE.error("")))
        .ok();
    let points = site.lp_points("acme");
    let values: Vec<f64> = points
        .iter()
        .map(|p| p.value)
        .filter(|v| *v > 0.0)
        .collect();
    assert_eq!(values, [1.5, 2.5, 3.5]);
}

#[test]
fn retry_errors_applies_to_the_named_folders_only() {
    let site = Site::new();
    for device in ["acme/site/02001171", "beta/site/02001171"] {
        site.put_old(format!("{device}/error/a.tsv"), good_file(1, 1));
        let sidecar =
            r#"{"error": "x", "retryable": true, "time": "2025-01-01T00:00:00Z", "run_id": "r"}"#;
        site.put_old(format!("{device}/error/a.tsv.error.json"), sidecar);
    }
    site.lp_run()
        .arg("--retry-errors")
        .arg("-t")
        .arg(site.path("beta"))
        .ok();
    assert!(site.exists("beta/site/02001171/parsed/a.tsv"));
    assert!(site.exists("acme/site/02001171/error/a.tsv"));
}

#[test]
fn a_folder_that_cannot_contain_devices_of_this_data_folder_is_an_error() {
    let site = site_of(&DEVICES);
    let outside = site.dir.path().join("other");
    std::fs::create_dir(&outside).expect("a folder");
    site.link("../acme/site1", "beta/link");
    site.make_dir("acme/parsed");
    for (folder, words) in [
        (outside, "outside the data folder"),
        (site.path("beta/link"), "symbolic link"),
        (site.path("acme/parsed"), "reserved"),
        (site.path("acme/missing"), "'.tsv'"),
    ] {
        let run = site.lp_run().arg("-t").arg(&folder).run().expect(1);
        assert!(
            run.stderr.contains(words),
            "{}: {}",
            folder.display(),
            run.stderr
        );
    }
    assert_eq!(ingested(&site), [""; 0]);
}

#[test]
fn an_empty_folder_is_no_failure() {
    let site = Site::new();
    site.make_dir(DEVICE.file(""));
    site.lp_run().arg("-t").arg(site.path("acme")).ok();
    assert_eq!(site.report()["nb_files_total"], 0);
}
