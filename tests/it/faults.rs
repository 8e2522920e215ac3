//! Failures of the server: requests, outcome of the file, sidecar, exit status.

use crate::harness::{
    DEVICE, FileBuilder, Run, Site, age, bad_file, file_of, file_of_one_row, good_file, points_in,
    stored,
};
use crate::influx_double::{Double, Fault, Gate, META, ORG_ID, Request, Retention, is_data_write};
use crate::second_reader;
use std::time::Duration;

fn expected_points(file: &str) -> Vec<second_reader::Point> {
    let whole =
        second_reader::read(file.as_bytes(), "site", chrono_tz::Europe::Paris).expect("good");
    stored(&whole.points)
}

#[track_caller]
fn assert_parsed(site: &Site, what: &str) {
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")], "{what}");
}

#[track_caller]
fn assert_in_error(site: &Site, retryable: bool, what: &str) -> serde_json::Value {
    let file = DEVICE.error("a.tsv");
    assert_eq!(
        site.tree(),
        [file.clone(), format!("{file}.error.json")],
        "{what}"
    );
    let sidecar = site.sidecar(&file);
    assert_eq!(sidecar["retryable"], retryable, "{what}: {sidecar:#}");
    let reports = site.reports();
    let report = reports.last().expect("a report");
    let entry = file_of(report, "a.tsv");
    assert_eq!(entry["status"], "error", "{what}");
    assert_eq!(entry["retryable"], retryable, "{what}: {entry:#}");
    assert!(
        entry["error"]
            .as_str()
            .is_some_and(|e| !e.is_empty() && e.len() < 5000),
        "{what}: {entry:#}"
    );
    entry.clone()
}

/// Temporary faults, by name.
fn temporary_faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("reset before", Fault::ResetBefore),
        ("reset after the batch was stored", Fault::ResetAfterApply),
        ("answer cut off", Fault::CutAnswer),
        ("error body cut off", Fault::CutErrorBody(503)),
        ("no answer", Fault::Silence),
        (
            "no answer after the batch was stored",
            Fault::SilenceAfterApply,
        ),
        (
            "429",
            Fault::status(
                429,
                "org 6f9dd2f6ebb29ea7 has exceeded limited_write plan limit",
            ),
        ),
        ("500", Fault::status(500, "internal error")),
        (
            "500 disk full",
            Fault::status(
                500,
                "engine: error writing WAL entry: write /var/lib/influxdb2/engine/wal/1: no space left on device",
            ),
        ),
        ("502", Fault::status(502, "bad gateway")),
        ("503", Fault::status(503, "unavailable")),
        ("504", Fault::status(504, "gateway timeout")),
        ("502 page of a proxy", Fault::Html(502)),
        ("503 page of a proxy", Fault::Html(503)),
    ]
}

#[test]
fn a_temporary_fault_costs_one_more_request() {
    for (what, fault) in temporary_faults() {
        let double = Double::start();
        double.fault_writes(1, fault);
        let site = Site::new();
        let file = good_file(1, 5);
        site.put_old(DEVICE.file("a.tsv"), &file);
        site.run_to(&double)
            .env("TSV_RETRY_FOR", "20")
            .env("TSV_REQUEST_TIMEOUT_S", "0.4")
            .ok();
        assert_parsed(&site, what);
        assert_eq!(points_in(&double, "acme"), expected_points(&file), "{what}");
        let writes = double.data_writes();
        assert_eq!(writes.len(), 2, "{what}");
        if writes[0].wire > 0 {
            assert_eq!(
                writes[0].body, writes[1].body,
                "{what}: the same batch again"
            );
        }
        assert_eq!(site.report()["status"], "success", "{what}");
    }
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn a_lasting_fault_is_an_outage() {
    for (what, fault) in temporary_faults() {
        for on_outage in ["error", "keep"] {
            let what = format!("{what}, {on_outage}");
            let double = Double::start();
            double.fault_writes(usize::MAX, fault.clone());
            let site = Site::new();
            let file = good_file(1, 5);
            site.put_old(DEVICE.file("a.tsv"), &file);
            let run = site
                .run_to(&double)
                .args(["--on-outage", on_outage])
                .env("TSV_RETRY_FOR", "0.4")
                .env("TSV_REQUEST_TIMEOUT_S", "0.2")
                .run()
                .expect(1);
            assert!(run.took < Duration::from_secs(8), "{what}: {:?}", run.took);
            if on_outage == "error" {
                assert_in_error(&site, true, &what);
            } else {
                assert_eq!(site.tree(), [DEVICE.file("a.tsv")], "{what}");
                assert_eq!(site.read(DEVICE.file("a.tsv")), file.as_bytes(), "{what}");
            }
            assert!(!double.data_writes().is_empty(), "{what}");

            // When the server is available again, the next run ingests the file.
            double.clear_faults();
            let mut call = site.run_to(&double);
            if on_outage == "error" {
                call = call.arg("--retry-errors");
            }
            call.ok();
            assert_parsed(&site, &what);
            assert_eq!(points_in(&double, "acme"), expected_points(&file), "{what}");
        }
    }
}

#[test]
fn an_unreachable_server_is_an_outage() {
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("bound").port()
    };
    let plain = Double::start();
    for url in [
        format!("http://127.0.0.1:{free}"),
        plain.url().replace("http:", "https:"),
        "http://no-such-host.invalid:8086".to_owned(),
    ] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        let run = site.call_to(&url).run().expect(1);
        let entry = assert_in_error(&site, true, &url);
        assert!(run.took < Duration::from_secs(10), "{url}: {:?}", run.took);
        // The message names the server.
        let host = url
            .trim_start_matches("http://")
            .trim_start_matches("https://")
            .split(':')
            .next()
            .expect("a host")
            .to_owned();
        let reported = format!("{}{}", entry["error"], run.stderr);
        assert!(reported.contains(&host), "{reported}");

        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        site.call_to(&url)
            .env("TSV_ON_OUTAGE", "keep")
            .run()
            .expect(1);
        assert_eq!(site.tree(), [DEVICE.file("a.tsv")]);
    }
}

#[test]
fn a_server_that_accepts_no_connection_is_an_outage() {
    // The queue of connections is full, so a new one gets no answer.
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let any = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0);
    let listener = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&listener, &any).expect("bound");
    listen(&listener, 0).expect("listening");
    let address =
        std::net::SocketAddrV4::try_from(getsockname(&listener).expect("bound")).expect("IPv4");
    let mut waiting = Vec::new();
    while let Ok(stream) =
        std::net::TcpStream::connect_timeout(&address.into(), Duration::from_millis(200))
    {
        waiting.push(stream);
        assert!(waiting.len() < 1000, "the queue never fills");
    }
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let run = site
        .call_to(&format!("http://{address}"))
        .env("TSV_CONNECT_TIMEOUT_S", "0.2")
        .env("TSV_REQUEST_TIMEOUT_S", "30")
        .run()
        .expect(1);
    assert_in_error(&site, true, "no connection");
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
}

#[test]
fn a_server_that_never_answers_is_an_outage() {
    // The kernel accepts the connection, but no process answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let run = site
        .call_to(&url)
        .env("TSV_REQUEST_TIMEOUT_S", "0.2")
        .run()
        .expect(1);
    assert_in_error(&site, true, "no answer");
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
}

#[test]
fn an_outage_is_waited_for_once_and_not_per_file() {
    for on_outage in ["error", "keep"] {
        let double = Double::start();
        double.fault_all(Fault::status(503, "down"));
        let site = Site::new();
        for n in 0..500 {
            site.put_old(
                format!("acme{}/site/02001171/f{n:03}.tsv", n % 5),
                good_file(n, 1),
            );
        }
        let run = site
            .run_to(&double)
            .args(["--on-outage", on_outage])
            .env("TSV_RETRY_FOR", "1")
            .run()
            .expect(1);
        assert!(run.took < Duration::from_secs(100), "{:?}", run.took);
        assert!(
            double.requests().len() < 100,
            "{} requests",
            double.requests().len()
        );
        let report = site.report();
        assert_eq!(report["nb_files_total"], 500);
        if on_outage == "error" {
            assert_eq!(report["nb_files_failed"], 500);
            assert_eq!(
                site.tree()
                    .iter()
                    .filter(|p| p.ends_with(".tsv.error.json"))
                    .count(),
                500
            );
        } else {
            assert_eq!(site.tree().len(), 500);
            assert!(
                site.tree()
                    .iter()
                    .all(|p| !p.contains("/error/") && !p.contains("/parsed/"))
            );
        }
        assert!(
            run.stderr.len() < 500 * 400,
            "the log is short: {} bytes",
            run.stderr.len()
        );
    }
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn retry_after_does_not_extend_the_run() {
    for (code, seconds, times) in [
        (429, "1", 1),
        (503, "1", 1),
        (429, "3600", usize::MAX),
        (503, "3600", usize::MAX),
    ] {
        let double = Double::start();
        let fault = Fault::StatusWith(code, vec![("Retry-After", seconds.into())], "{}".into());
        double.fault_writes(times, fault);
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        let run = site.run_to(&double).env("TSV_RETRY_FOR", "3").run();
        assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
        if times == 1 {
            run.expect(0);
            assert_parsed(&site, seconds);
        } else {
            run.expect(1);
            assert_in_error(&site, true, seconds);
        }
    }
}

#[test]
fn nothing_is_retried_with_a_retry_time_of_0() {
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::status(503, "down"));
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.run_to(&double)
        .args(["--retry-for", "0"])
        .env("TSV_RETRY_FOR", "30")
        .run()
        .expect(1);
    assert_eq!(double.data_writes().len(), 1);
    assert_in_error(&site, true, "503");
}

#[test]
fn a_temporary_fault_of_the_bucket_requests_is_retried() {
    let lookup: fn(&Request) -> bool = |r| r.path == "/api/v2/buckets" && r.method == "GET";
    let create: fn(&Request) -> bool = |r| r.path == "/api/v2/buckets" && r.method == "POST";
    for (what, stage) in [("lookup", lookup), ("create", create)] {
        for fault in [
            Fault::status(503, "down"),
            Fault::ResetBefore,
            Fault::CutAnswer,
            Fault::ResetAfterApply,
        ] {
            let double = Double::start();
            double.fault(stage, 0, 1, fault);
            let site = Site::new();
            site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
            site.run_to(&double).env("TSV_RETRY_FOR", "20").ok();
            assert_parsed(&site, what);
            assert_eq!(points_in(&double, "acme").len(), 2, "{what}");
            assert_eq!(
                double
                    .bucket_names()
                    .iter()
                    .filter(|b| *b == "acme")
                    .count(),
                1,
                "{what}"
            );
        }
    }
}

#[test]
fn a_bucket_that_another_process_creates_first_is_used() {
    // The look-up finds no bucket, but creating it is a conflict.
    let double = Double::start();
    double.add_bucket("acme");
    let not_yet = Fault::status(404, "bucket \"acme\" not found");
    double.fault(
        |r| r.path == "/api/v2/buckets" && r.param("name") == Some("acme"),
        0,
        1,
        not_yet,
    );
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.run_to(&double).ok();
    assert_parsed(&site, "conflict");
    let posts = double
        .requests()
        .into_iter()
        .filter(|r| r.path == "/api/v2/buckets" && r.method == "POST");
    assert_eq!(
        posts
            .filter(|r| r.text().contains("\"acme\""))
            .map(|r| r.status)
            .collect::<Vec<_>>(),
        [422]
    );
    assert_eq!(points_in(&double, "acme").len(), 2);
}

#[test]
fn a_batch_that_is_too_large_is_halved() {
    let double = Double::start();
    double.max_body(4000);
    let site = Site::new();
    let file = good_file(1, 300);
    site.put_old(DEVICE.file("a.tsv"), &file);
    site.run_to(&double).env("TSV_GZIP", "0").ok();
    assert_parsed(&site, "413");
    assert_eq!(points_in(&double, "acme"), expected_points(&file));
    let writes = double.data_writes();
    assert!(writes.iter().any(|w| w.status == 413));
    let first = writes[0].nb_lines();
    assert_eq!(first, 600);
    assert!(
        writes.iter().any(|w| w.nb_lines() == 300),
        "half of it next"
    );
}

#[test]
fn a_single_line_that_is_too_large_fails_its_file() {
    let double = Double::start();
    double.max_body(10);
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 2));
    let run = site.run_to(&double).env("TSV_GZIP", "0").run().expect(1);
    let entry = assert_in_error(&site, false, "413");
    assert!(double.data_writes().iter().any(|w| w.nb_lines() == 1));
    let error = entry["error"].as_str().expect("text");
    assert!(error.contains("too large"), "{error}");
    assert!(run.took < Duration::from_secs(10));
}

#[test]
fn a_refused_line_fails_its_file_with_the_servers_message() {
    let message = "unable to parse 'site,campaign=site value=1.5 1754006400': bad timestamp";
    for code in [400, 405, 409, 418] {
        let double = Double::start();
        double.fault_writes(usize::MAX, Fault::status(code, message));
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 5));
        site.put_old("other/site/02001171/b.tsv", good_file(1, 1));
        site.run_to(&double)
            .env("TSV_RETRY_FOR", "20")
            .run()
            .expect(1);
        let report = site.report();
        let entry = file_of(&report, "a.tsv");
        let error = entry["error"].as_str().expect("text");
        assert!(
            error.contains("unable to parse") && error.contains("acme"),
            "{code}: {error}"
        );
        assert!(
            error.contains("1754006400"),
            "{code}: the line that the server names: {error}"
        );
        assert_eq!(entry["retryable"], false, "{code}");
        assert_eq!(double.data_writes().len(), 2, "{code}: one try a file");
        assert!(site.exists(DEVICE.sidecar("a.tsv")));
    }
}

#[test]
fn a_very_long_error_message_is_truncated_and_escaped() {
    let message = format!(
        "unable to parse \u{1b}[31m{}",
        "é\u{202e}\n".repeat(500_000)
    );
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::status(400, &message));
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 5));
    let run = site.run_to(&double).run().expect(1);
    let entry = assert_in_error(&site, false, "400");
    assert!(
        entry["error"]
            .as_str()
            .expect("text")
            .contains("unable to parse"),
        "{entry:#}"
    );
    assert!(run.stderr.len() < 10_000 && !run.stderr.contains('\u{202e}'));
}

#[test]
fn after_a_partial_write_the_other_batches_are_still_sent() {
    let double = Double::start();
    double.fault_nth_write(1, Fault::PartialWrite);
    let site = Site::new();
    let file = good_file(1, 50);
    site.put_old(DEVICE.file("a.tsv"), &file);
    site.run_to(&double)
        .env("TSV_BATCH_LINES", "20")
        .run()
        .expect(1);
    let entry = assert_in_error(&site, false, "422");
    assert!(
        entry["error"]
            .as_str()
            .expect("text")
            .contains("partial write"),
        "{entry:#}"
    );
    assert_eq!(
        points_in(&double, "acme").len(),
        99,
        "all but the one that was dropped"
    );
    assert_eq!(double.data_writes().len(), 5);
}

#[test]
fn a_field_type_conflict_is_reported_with_the_servers_message() {
    let double = Double::start();
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 2));
    site.run_to(&double).ok();
    // The measurement has a string field already.
    double.delete_bucket("acme");
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 2));
    double.fault_writes(
        1,
        Fault::Status(
            422,
            r#"{"code":"unprocessable entity","message":"failure writing points to database: partial write: field type conflict: input field \"value\" on measurement \"site\" is type float, already exists as type string dropped=4"}"#.into(),
        ),
    );
    site.run_to(&double).run().expect(1);
    let entry = assert_in_error(&site, false, "422");
    assert!(
        entry["error"]
            .as_str()
            .expect("text")
            .contains("field type conflict"),
        "{entry:#}"
    );
}

#[test]
fn a_wrong_token_is_reported_once_and_the_files_are_retryable() {
    for on_outage in ["error", "keep"] {
        for code in [401, 403] {
            let double = Double::start();
            let site = Site::new();
            for n in 0..5 {
                site.put_old(DEVICE.file(format_args!("f{n}.tsv")), good_file(1, 1));
            }
            let mut call = site
                .run_to(&double)
                .args(["--on-outage", on_outage])
                .env("TSV_RETRY_FOR", "30");
            if code == 401 {
                call = call.env("INFLUXDB_ADMIN_TOKEN", "not-the-right-token-0123456789");
            } else {
                double.forbid_writing();
            }
            let run = call.run().expect(1);
            assert!(
                run.took < Duration::from_secs(10),
                "{code}: not retried: {:?}",
                run.took
            );
            assert!(
                !run.stderr.contains("not-the-right-token"),
                "{}",
                run.stderr
            );
            let tree = site.tree();
            if on_outage == "error" {
                assert_eq!(tree.len(), 10, "{tree:?}");
                assert_eq!(site.sidecar(&DEVICE.error("f0.tsv"))["retryable"], true);
            } else {
                assert_eq!(tree.len(), 5, "{tree:?}");
                assert!(tree.iter().all(|p| !p.contains("/error/")), "{tree:?}");
            }
            let text = std::fs::read_to_string(
                std::fs::read_dir(site.reports_dir())
                    .expect("reports")
                    .next()
                    .expect("one")
                    .expect("entry")
                    .path(),
            )
            .expect("read");
            assert!(!text.contains("not-the-right-token"));
            let word = if code == 401 {
                "unauthorized"
            } else {
                "insufficient permissions"
            };
            // Once in the log. The list of failures at the end and the warning about the meta points do not count.
            let log = run
                .stderr
                .lines()
                .filter(|l| l.contains("WARN") || l.contains("ERROR"));
            let reported = log
                .filter(|l| l.contains(word) && !l.contains("about this run"))
                .count();
            assert_eq!(reported, 1, "reported once: {}", run.stderr);
            assert!(double.data_writes().len() <= 2, "not tried for every file");
        }
    }
}

#[test]
fn a_file_is_retryable_if_the_token_may_not_create_buckets() {
    let double = Double::start();
    double.forbid_creating();
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.run_to(&double).run().expect(1);
    assert_in_error(&site, true, "401 on create");
}

#[test]
fn a_file_is_retryable_if_the_organisation_is_missing() {
    let double = Double::start();
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let run = site
        .run_to(&double)
        .env("INFLUXDB_ORG", "missing-org")
        .env("TSV_RETRY_FOR", "30")
        .run()
        .expect(1);
    let entry = assert_in_error(&site, true, "no organisation");
    let reported = format!("{} {}", run.stderr, entry["error"]);
    assert!(reported.contains("missing-org"), "{reported}");
    assert!(run.took < Duration::from_secs(10));
}

#[test]
fn a_bucket_that_is_deleted_during_the_run_is_created_again_once() {
    let double = Double::start();
    double.add_bucket("acme");
    let site = Site::new();
    let file = good_file(1, 40);
    site.put_old(DEVICE.file("a.tsv"), &file);
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::Gate(gate.clone()));
    let run = site.run_to(&double).start();
    gate.wait_for(1);
    double.delete_bucket("acme");
    gate.open();
    run.wait().expect(0);
    assert_parsed(&site, "404");
    assert_eq!(points_in(&double, "acme"), expected_points(&file));
}

#[test]
fn a_bucket_that_stays_missing_fails_the_file_after_a_few_writes() {
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::status(404, "bucket \"acme\" not found"));
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    let run = site.run_to(&double).run().expect(1);
    assert!(site.exists(DEVICE.error("a.tsv")));
    assert!(
        double.data_writes().len() <= 3,
        "{} writes",
        double.data_writes().len()
    );
    assert!(run.took < Duration::from_secs(10));
}

#[test]
fn an_html_page_of_a_proxy_is_an_error() {
    for code in [200, 403, 404] {
        let double = Double::start();
        double.fault_writes(usize::MAX, Fault::Html(code));
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        site.run_to(&double).run().expect(1);
        assert!(
            site.exists(DEVICE.error("a.tsv")),
            "{code}: {:?}",
            site.tree()
        );
        assert_eq!(points_in(&double, "acme"), [], "{code}");
    }
    // A page for each request, as of a captive portal.
    let double = Double::start();
    double.fault_all(Fault::Html(200));
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.run_to(&double).run().expect(1);
    assert!(!site.exists(DEVICE.parsed("a.tsv")));
}

#[test]
fn a_redirect_is_not_followed() {
    for code in [301, 302, 307, 308] {
        let elsewhere = Double::start();
        let id = elsewhere.add_bucket("acme");
        let double = Double::start();
        let to = format!(
            "{}/api/v2/write?org=powerview&precision=s&bucket={id}",
            elsewhere.url()
        );
        double.fault_writes(usize::MAX, Fault::Redirect(code, to));
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        site.run_to(&double).run().expect(1);
        assert!(site.exists(DEVICE.error("a.tsv")), "{code}");
        assert_eq!(
            elsewhere.requests().len(),
            0,
            "{code}: neither data nor token are sent elsewhere"
        );
    }
}

#[test]
fn a_failed_write_of_meta_points_does_not_change_the_outcome() {
    for fault in [
        Fault::status(400, "no"),
        Fault::status(503, "down"),
        Fault::status(403, "no"),
        Fault::CutAnswer,
    ] {
        let double = Double::start();
        double.fault(|r| r.is_write() && r.bucket == META, 0, usize::MAX, fault);
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        let run = site.run_to(&double).ok();
        assert_parsed(&site, "meta");
        assert!(run.stderr.contains("WARN"), "a warning: {}", run.stderr);
        assert_eq!(site.report()["status"], "success");
    }
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn meta_points_that_fail_during_a_long_run_move_no_file_to_error() {
    // Reports of 300 columns fill a batch of meta points after a few files, so that it fails before all files are read.
    let columns = 300;
    let text = file_of_one_row((0..columns).map(|i| format!("Une voie au nom assez long {i} W")));
    let files = 40;
    for (what, fault) in [
        (
            "403",
            Fault::status(403, "insufficient permissions for write"),
        ),
        ("500", Fault::status(500, "internal error")),
        ("no answer", Fault::Silence),
    ] {
        let double = Double::start();
        double.fault(|r| r.is_write() && r.bucket == META, 0, usize::MAX, fault);
        let site = Site::new();
        for n in 0..files {
            site.put_old(format!("acme/site/{n:08}/a.tsv"), &text);
        }
        let run = site
            .run_to(&double)
            .env("TSV_RETRY_FOR", "4")
            .env("TSV_REQUEST_TIMEOUT_S", "4")
            .ok();
        let tree = site.tree();
        assert_eq!(tree.len(), files, "{what}: {tree:?}");
        assert!(
            tree.iter().all(|path| path.contains("/parsed/")),
            "{what}: {tree:?}"
        );
        let requests = double.requests();
        let first_meta = requests.iter().position(|r| r.bucket == META);
        let last_data = requests.iter().rposition(is_data_write);
        assert!(
            first_meta.is_some() && first_meta < last_data,
            "{what}: it fails before the end"
        );
        let reported = run
            .stderr
            .lines()
            .filter(|l| l.contains("about this run"))
            .count();
        assert_eq!(reported, 1, "{what}: reported once: {}", run.stderr);
        assert_eq!(site.report()["status"], "success", "{what}");
    }
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn a_run_does_not_wait_long_for_a_meta_bucket_that_hangs() {
    let double = Double::start();
    double.fault(
        |r| r.is_write() && r.bucket == META,
        0,
        usize::MAX,
        Fault::Silence,
    );
    let site = Site::new();
    site.put(DEVICE.file("a.tsv"), good_file(1, 1));
    let run = site
        .run_to(&double)
        .named(DEVICE.file("a.tsv"))
        .env("TSV_RETRY_FOR", "60")
        .env("TSV_REQUEST_TIMEOUT_S", "60")
        .ok();
    assert_parsed(&site, "meta");
    assert!(run.took < Duration::from_secs(20), "{:?}", run.took);
}

#[test]
fn a_partial_write_ends_the_outage() {
    // A 503, then a 422 that takes longer than the retry time, then another 503, which must be retried too.
    let double = Double::start();
    double.fault_nth_write(1, Fault::status(503, "down"));
    let gate = Gate::new();
    let site = Site::new();
    for n in 0..3 {
        site.put_old(
            DEVICE.file(format_args!("{n}.tsv")),
            good_file(1 + 10 * n, 3),
        );
    }
    // Writes: 503 and 422 for the first file, a delayed 422 for the second, 503 and success for the third.
    double.fault_nth_write(1, Fault::PartialWrite);
    double.fault_nth_write(
        1,
        Fault::GateThen(gate.clone(), 422, "partial write: dropped=1"),
    );
    double.fault_nth_write(1, Fault::status(503, "down"));
    let run = site.run_to(&double).env("TSV_RETRY_FOR", "2").start();
    gate.wait_for(1);
    std::thread::sleep(Duration::from_millis(2500));
    gate.open();
    run.wait().expect(1);
    assert_eq!(double.data_writes().len(), 5, "the last 503 is tried again");
    assert!(site.exists(DEVICE.parsed("2.tsv")), "{:?}", site.tree());
    assert_eq!(site.report()["nb_files_failed"], 2);
}

#[test]
fn retry_errors_ingests_retryable_files_only() {
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::status(503, "down"));
    let site = Site::new();
    site.put_old(DEVICE.file("outage.tsv"), good_file(1, 2));
    site.put_old(DEVICE.file("a-rubbish.tsv"), bad_file());
    site.put_old(DEVICE.error("by-hand.tsv"), good_file(50, 1));
    site.put_old(DEVICE.error("odd.tsv"), good_file(60, 1));
    site.put_old(DEVICE.sidecar("odd.tsv"), "{not json");
    site.put_old(DEVICE.sidecar("alone.tsv"), r#"{"retryable":true}"#);
    site.run_to(&double).run().expect(1);
    double.clear_faults();

    let before = site.tree();
    site.run_to(&double).ok();
    assert_eq!(
        site.tree(),
        before,
        "a sweep without the flag leaves error/ alone"
    );

    site.run_to(&double).arg("--retry-errors").ok();
    let tree = site.tree();
    assert!(tree.contains(&DEVICE.parsed("outage.tsv")), "{tree:?}");
    assert!(
        !tree.contains(&DEVICE.sidecar("outage.tsv")),
        "the sidecar is removed with its file: {tree:?}"
    );
    for left in [
        "by-hand.tsv",
        "odd.tsv",
        "odd.tsv.error.json",
        "a-rubbish.tsv",
        "a-rubbish.tsv.error.json",
    ] {
        assert!(tree.contains(&DEVICE.error(left)), "{left}: {tree:?}");
    }
    assert_eq!(
        points_in(&double, "acme"),
        expected_points(&good_file(1, 2))
    );
}

#[test]
fn a_correction_of_the_same_name_wins_after_an_outage() {
    // Both versions of x.tsv failed in the outage, the later one as x.1.tsv.
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::status(503, "down"));
    let site = Site::new();
    for from in [1, 100] {
        site.put_old(DEVICE.file("x.tsv"), good_file(from, 2));
        site.run_to(&double)
            .args(["--retry-for", "0"])
            .run()
            .expect(1);
    }
    double.clear_faults();
    site.run_to(&double).arg("--retry-errors").ok();
    assert_eq!(
        points_in(&double, "acme"),
        expected_points(&good_file(100, 2))
    );
}

#[test]
fn a_retry_during_the_outage_keeps_one_retryable_file() {
    let double = Double::start();
    double.fault_writes(usize::MAX, Fault::status(503, "down"));
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 2));
    site.run_to(&double).run().expect(1);
    for on_outage in ["error", "keep", "error"] {
        site.run_to(&double)
            .args(["--retry-errors", "--on-outage", on_outage])
            .run()
            .expect(1);
        let file = DEVICE.error("a.tsv");
        assert_eq!(
            site.tree(),
            [file.clone(), format!("{file}.error.json")],
            "{on_outage}"
        );
        assert_eq!(site.sidecar(&file)["retryable"], true, "{on_outage}");
    }
    double.clear_faults();
    site.run_to(&double).arg("--retry-errors").ok();
    assert_parsed(&site, "healed");
}

#[test]
fn incident_an_outage_of_a_week_was_not_noticed() {
    // Exit status, log, report and sidecar show it.
    let double = Double::start();
    double.fault_all(Fault::status(502, "bad gateway"));
    for on_outage in ["error", "keep"] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        let run = site
            .run_to(&double)
            .args(["-q", "--on-outage", on_outage])
            .run()
            .expect(1);
        assert!(run.stderr.contains("502"), "{on_outage}: {}", run.stderr);
        let report = site.report();
        assert_eq!(report["status"], "partial_failure", "{on_outage}");
        assert!(
            report.to_string().contains("502"),
            "{on_outage}: {report:#}"
        );
    }
}

#[test]
fn incident_files_stayed_in_error_after_an_outage() {
    // A week without the server, with a run each hour. Then it is available again.
    let double = Double::start();
    double.fault_all(Fault::status(502, "bad gateway"));
    let site = Site::new();
    for hour in 0..6 {
        site.put_old(
            DEVICE.file(format_args!("f{hour}.tsv")),
            good_file(hour * 10, 3),
        );
        let run = site
            .run_to(&double)
            .arg("--retry-errors")
            .env("TSV_RETRY_FOR", "0")
            .run()
            .expect(1);
        assert!(run.stderr.contains("502"), "{}", run.stderr);
    }
    double.clear_faults();
    site.run_to(&double).arg("--retry-errors").ok();
    let tree = site.tree();
    assert_eq!(
        tree,
        (0..6)
            .map(|h| DEVICE.parsed(format_args!("f{h}.tsv")))
            .collect::<Vec<_>>()
    );
    let all: Vec<_> = (0..6)
        .flat_map(|h| {
            second_reader::read(
                good_file(h * 10, 3).as_bytes(),
                "site",
                chrono_tz::Europe::Paris,
            )
            .expect("good")
            .points
        })
        .collect();
    assert_eq!(points_in(&double, "acme"), stored(&all));
}

#[test]
fn an_outage_during_the_run_applies_to_the_remaining_files() {
    let double = Double::start();
    double.fault(is_data_write, 3, usize::MAX, Fault::status(503, "down"));
    let site = Site::new();
    for n in 0..10 {
        site.put_old(DEVICE.file(format_args!("f{n}.tsv")), good_file(n * 10, 1));
    }
    let run = site
        .run_to(&double)
        .env("TSV_RETRY_FOR", "0.5")
        .env("TSV_JOBS", "1")
        .run()
        .expect(1);
    let report = site.report();
    assert_eq!(report["nb_files_success"], 3);
    assert_eq!(report["nb_files_failed"], 7);
    assert!(run.took < Duration::from_secs(8), "{:?}", run.took);
    for n in 0..3 {
        assert!(site.exists(DEVICE.parsed(format_args!("f{n}.tsv"))));
    }
    for n in 3..10 {
        assert_eq!(
            site.sidecar(&DEVICE.error(format_args!("f{n}.tsv")))["retryable"],
            true
        );
    }
}

#[test]
fn a_run_killed_before_the_answer_is_repeated_by_the_next_run() {
    let double = Double::start();
    let gate = Gate::new();
    double.fault_nth_write(1, Fault::GateAfter(gate.clone()));
    let site = Site::new();
    let file = good_file(1, 30);
    let path = site.put_old(DEVICE.file("a.tsv"), &file);
    let run = site.run_to(&double).start();
    gate.wait_for(1);
    let killed: Run = run.kill();
    assert_eq!(killed.code(), 137);
    gate.open();
    assert!(path.exists(), "{:?}", site.tree());
    age(&path, 3600);
    site.run_to(&double).ok();
    assert_parsed(&site, "killed");
    assert_eq!(points_in(&double, "acme"), expected_points(&file));
}

/// The time-out of requests in seconds. Only a server that does not answer is to reach it, not a machine under load.
fn request_timeout(fault: &Fault) -> &'static str {
    if matches!(fault, Fault::Silence) {
        "5"
    } else {
        "60"
    }
}

/// A write of measurements of the campaign `poison`.
fn is_poisoned(request: &Request) -> bool {
    is_data_write(request) && request.text().contains(",campaign=poison,")
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn batches_that_the_server_never_takes_fail_only_their_files() {
    for (what, fault) in [
        ("500", Fault::status(500, "internal error")),
        ("503", Fault::status(503, "unavailable")),
        ("429", Fault::status(429, "too many requests")),
        ("page of a proxy", Fault::Html(502)),
        ("reset", Fault::ResetAfterApply),
        ("answer cut off", Fault::CutAnswer),
        ("no answer", Fault::Silence),
    ] {
        for on_outage in ["error", "keep"] {
            let what = format!("{what}, {on_outage}");
            let double = Double::start();
            double.fault(is_poisoned, 0, usize::MAX, fault.clone());
            let site = Site::new();
            // They come first in the sweep.
            let poisoned = ["acme/poison/02001171", "beta/poison/02001171"];
            for device in poisoned {
                site.put_old(format!("{device}/bad.tsv"), good_file(1, 5));
            }
            for (n, company) in (0..12).zip(["acme", "beta", "gamma"].into_iter().cycle()) {
                site.put_old(format!("{company}/site/{n:08}/good.tsv"), good_file(n, 5));
            }
            site.run_to(&double)
                .args(["--on-outage", on_outage])
                .env("TSV_RETRY_FOR", "1")
                .env("TSV_REQUEST_TIMEOUT_S", request_timeout(&fault))
                .run()
                .expect(1);
            let report = site.report();
            assert_eq!(report["nb_files_success"], 12, "{what}: {report:#}");
            assert_eq!(report["nb_files_failed"], 2, "{what}");
            assert_eq!(report["outage"], false, "{what}");
            for device in poisoned {
                let file = format!("{device}/error/bad.tsv");
                assert_eq!(site.sidecar(&file)["retryable"], true, "{what}");
                let entry = file_of(&report, &format!("{device}/bad.tsv"));
                assert_eq!(entry["retryable"], true, "{what}");
                assert_eq!(entry["nb_points"], 0, "{what}");
            }
            for bucket in ["acme", "beta"] {
                let probes = double.probes();
                assert!(
                    probes.iter().any(|r| r.bucket == bucket && r.status == 204),
                    "{what}: a probe of {bucket}"
                );
            }

            double.clear_faults();
            site.run_to(&double).arg("--retry-errors").ok();
            assert!(
                site.tree().iter().all(|path| path.contains("/parsed/")),
                "{what}: {:?}",
                site.tree()
            );
        }
    }
}

#[test]
#[ignore = "slow: waits for time-outs"]
fn an_outage_of_one_bucket_is_none_of_the_others() {
    let write: fn(&Request) -> bool = |r| r.is_write() && r.bucket == "acme";
    let look_up: fn(&Request) -> bool =
        |r| r.path == "/api/v2/buckets" && r.param("name") == Some("acme");
    for (what, stage, fault) in [
        ("403", write, Fault::status(403, "insufficient permissions")),
        ("503", write, Fault::status(503, "unavailable")),
        ("500", write, Fault::status(500, "internal error")),
        ("429", write, Fault::status(429, "too many requests")),
        ("page of a proxy", write, Fault::Html(502)),
        ("reset", write, Fault::ResetBefore),
        ("no answer", write, Fault::Silence),
        (
            "403 for the look-up",
            look_up,
            Fault::status(403, "forbidden"),
        ),
    ] {
        for on_outage in ["error", "keep"] {
            let what = format!("{what}, {on_outage}");
            let double = Double::start();
            double.fault(stage, 0, usize::MAX, fault.clone());
            let site = Site::new();
            for n in 0..10 {
                site.put_old(format!("acme/site/{n:08}/a.tsv"), good_file(n, 1));
                site.put_old(format!("beta{}/site/{n:08}/a.tsv", n % 5), good_file(n, 1));
            }
            let run = site
                .run_to(&double)
                .args(["--on-outage", on_outage])
                .env("TSV_RETRY_FOR", "1")
                .env("TSV_REQUEST_TIMEOUT_S", request_timeout(&fault))
                .run()
                .expect(1);
            let report = site.report();
            assert_eq!(report["nb_files_success"], 10, "{what}: {report:#}");
            assert_eq!(report["nb_files_failed"], 10, "{what}");
            assert_eq!(report["outage"], true, "{what}");
            for n in 0..10 {
                let device = format!("acme/site/{n:08}");
                if on_outage == "error" {
                    let file = format!("{device}/error/a.tsv");
                    assert_eq!(site.sidecar(&file)["retryable"], true, "{what}");
                } else {
                    assert!(site.exists(format!("{device}/a.tsv")), "{what}");
                }
                assert!(
                    site.exists(format!("beta{}/site/{n:08}/parsed/a.tsv", n % 5)),
                    "{what}"
                );
            }
            let reported = run.stderr.lines().filter(|l| l.contains("giving up"));
            let reported: Vec<_> = reported.collect();
            assert!(
                reported.len() == 1 && reported[0].contains("\"acme\""),
                "{what}: once: {}",
                run.stderr
            );
        }
    }
}

#[test]
fn an_outage_of_the_server_is_logged_once_for_all_buckets() {
    for fault in [
        Fault::status(503, "down"),
        Fault::Html(502),
        Fault::ResetBefore,
    ] {
        let double = Double::start();
        double.fault_all(fault);
        let site = Site::new();
        for n in 0..30 {
            site.put_old(format!("company{n}/site/02001171/a.tsv"), good_file(n, 1));
        }
        let run = site.run_to(&double).run().expect(1);
        assert_eq!(site.report()["nb_files_failed"], 30);
        assert_eq!(site.report()["outage"], true);
        let reported = run.stderr.lines().filter(|l| l.contains("giving up"));
        let reported: Vec<_> = reported.collect();
        assert!(
            reported.len() == 1 && reported[0].contains("giving up on the server"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn an_outage_is_logged_when_it_begins() {
    let double = Double::start();
    double.fault_all(Fault::status(503, "down"));
    let site = Site::new();
    for n in 0..3 {
        site.put_old(format!("acme{n}/site/02001171/a.tsv"), good_file(1, 1));
    }
    let run = site
        .run_to(&double)
        .env("TSV_RETRY_FOR", "60")
        .env("TSV_LOG_LEVEL", "WARN")
        .start();
    let start = std::time::Instant::now();
    while double.requests().len() < 4 {
        assert!(start.elapsed() < Duration::from_secs(30), "no retries");
        std::thread::sleep(Duration::from_millis(10));
    }
    let run = run.kill();
    let reported = run.stderr.lines().filter(|l| l.contains("retrying"));
    let reported: Vec<_> = reported.collect();
    assert!(
        reported.len() == 1 && reported[0].contains("status 503: down"),
        "once, long before the minute is over: {}",
        run.stderr
    );
}

#[test]
fn nb_points_counts_only_what_the_server_accepted() {
    let unknown = Fault::status(422, "partial write: something else");
    // The file has 5 batches of 20 points.
    for (what, nth, fault, accepted) in [
        ("outage", 1, Fault::status(503, "down"), 0),
        ("refused at once", 1, Fault::status(400, "no"), 0),
        ("refused in the middle", 3, Fault::status(400, "no"), 40),
        ("reset in the middle", 3, Fault::ResetBefore, 40),
        ("partial write", 2, Fault::PartialWrite, 99),
        ("422 without a number", 2, unknown, 80),
    ] {
        let double = Double::start();
        let times = if what.contains("partial") || what.contains("422") {
            1
        } else {
            usize::MAX
        };
        double.fault(is_data_write, nth - 1, times, fault);
        let site = Site::new();
        let row = |n: usize| format!("03/08/25 03:{n:02}:00\t1.5\t2.5");
        // Each batch begins with the last second of the one before it, so that they are sent one after another.
        let text = (0..50).fold(FileBuilder::default(), |file, n| file.line(row(n - n / 10)));
        site.put_old(DEVICE.file("a.tsv"), text.build());
        site.run_to(&double)
            .env("TSV_BATCH_LINES", "20")
            .run()
            .expect(1);
        let report = site.report();
        let entry = file_of(&report, "a.tsv");
        assert_eq!(entry["nb_points"], accepted, "{what}: {entry:#}");
        assert_eq!(report["nb_points_total"], accepted, "{what}");
    }
}

#[test]
fn nb_points_counts_the_accepted_half_of_a_batch_that_is_too_large() {
    // One line of the second half is longer than the limit.
    let double = Double::start();
    let labels = [
        "A W".to_owned(),
        "B W".to_owned(),
        format!("{} W", "C".repeat(250)),
    ];
    let text = file_of_one_row(labels);
    double.max_body(300);
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), text);
    site.run_to(&double).env("TSV_GZIP", "0").run().expect(1);
    let entry = assert_in_error(&site, false, "413");
    assert_eq!(points_in(&double, "acme").len(), 2);
    assert_eq!(entry["nb_points"], 2);
}

/// A file with the given ages of its rows in seconds, in UTC.
pub fn file_of_ages(ages: &[i64]) -> String {
    let now = chrono::Utc::now();
    let rows = ages.iter().fold(FileBuilder::default(), |file, age| {
        let time = now - chrono::TimeDelta::seconds(*age);
        file.line(format_args!(
            "{}\t1.5\t2.5",
            time.format("%d/%m/%y %H:%M:%S")
        ))
    });
    rows.build()
}

#[test]
fn rows_older_than_the_retention_are_not_sent_and_no_failure() {
    const DAY: i64 = 86_400;
    let shown = Retention {
        shown: DAY,
        applied: DAY,
    };
    // The retention was shortened after the look-up.
    let changed = Retention {
        shown: 0,
        applied: DAY,
    };
    let old = 400 * DAY;
    let mixed = [old, 100, old + 60, 200, 300, 2 * DAY];
    for (what, retention, ages, young) in [
        ("some", shown, &mixed[..], 3),
        ("all", shown, &[old, old + 60, 2 * DAY], 0),
        ("none", shown, &[100, 200, 300], 3),
        ("some, not known", changed, &mixed[..], 3),
        ("all, not known", changed, &[old, old + 60, 2 * DAY], 0),
        ("for ever", Retention::default(), &mixed[..], 6),
    ] {
        for (gzip, lines) in [("1", "10000"), ("0", "10000"), ("1", "2"), ("0", "4")] {
            let what = format!("{what}, gzip {gzip}, {lines} lines");
            let double = Double::start();
            double.add_bucket_with_retention("acme", retention);
            let site = Site::new();
            site.put_old(DEVICE.file("a.tsv"), file_of_ages(ages));
            let run = site
                .run_to(&double)
                .env("TSV_TIMEZONE", "UTC")
                .env("TSV_GZIP", gzip)
                .env("TSV_BATCH_LINES", lines)
                .ok();
            assert_parsed(&site, &what);
            let report = site.report();
            let entry = file_of(&report, "a.tsv");
            let expired = 2 * (ages.len() - young);
            assert_eq!(points_in(&double, "acme").len(), 2 * young, "{what}");
            assert_eq!(entry["status"], "success", "{what}: {entry:#}");
            assert_eq!(entry["nb_points"], 2 * young, "{what}");
            assert_eq!(entry["nb_points_expired"], expired, "{what}");
            let warnings = run.stderr.lines().filter(|l| l.contains("retention"));
            assert_eq!(
                warnings.count(),
                usize::from(expired > 0),
                "{what}: {}",
                run.stderr
            );
            if retention.shown > 0 {
                let sent: usize = double.data_writes().iter().map(Request::nb_lines).sum();
                assert_eq!(sent, 2 * young, "{what}: old rows are not sent");
            }
        }
    }
}

#[test]
fn expired_rows_do_not_hide_another_partial_write() {
    let double = Double::start();
    let retention = Retention {
        shown: 0,
        applied: 86_400,
    };
    double.add_bucket_with_retention("acme", retention);
    double.fault_nth_write(2, Fault::PartialWrite);
    let site = Site::new();
    site.put_old(
        DEVICE.file("a.tsv"),
        file_of_ages(&[200_000, 100, 160, 150]),
    );
    // The second batch overlaps the first one, so that it is sent after it.
    site.run_to(&double)
        .env("TSV_TIMEZONE", "UTC")
        .env("TSV_BATCH_LINES", "4")
        .run()
        .expect(1);
    let entry = assert_in_error(&site, false, "field type conflict");
    assert_eq!(entry["nb_points"], 5, "{entry:#}");
    assert_eq!(entry["nb_points_expired"], 2, "{entry:#}");
}

#[test]
fn an_organisation_named_like_an_id_is_addressed_by_its_id() {
    let double = Double::start();
    double.rename_org("0123456789abcdef");
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site.run_to(&double)
        .env("INFLUXDB_ORG", "0123456789abcdef")
        .ok();
    assert_parsed(&site, "written");
    let writes = double.requests();
    let mut writes = writes.iter().filter(|r| r.is_write());
    assert!(writes.all(|r| r.param("org") == Some(ORG_ID)));
    assert!(!double.points(META).is_empty());
}

#[test]
fn an_endless_answer_does_not_fill_the_memory() {
    let write: fn(&Request) -> bool = is_data_write;
    let look_up: fn(&Request) -> bool = |r| r.path == "/api/v2/buckets" && r.method == "GET";
    let health: fn(&Request) -> bool = |r| r.path == "/health" || r.is_write();
    for (what, stage, status) in [
        ("refused write", write, 400),
        ("partial write", write, 422),
        ("unavailable", write, 503),
        ("not InfluxDB", write, 200),
        ("look-up", look_up, 400),
        ("look-up with success", look_up, 200),
        ("health", health, 503),
    ] {
        let double = Double::start();
        double.fault(stage, 0, usize::MAX, Fault::Flood(status));
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
        let mut run = site.run_to(&double).start();
        let peak = run.peak_kib();
        run.wait().clean();
        assert!(peak < 64 * 1024, "{what}: {peak} KiB");
    }
}
