//! The heartbeat: requested after a successful sweep only. It never fails or delays a run.

use crate::harness::{DEVICE, Site, good_file};
use crate::influx_double::{Double, Fault};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Answers each request in the same way and sends its first line to the channel.
fn listen(answer: &'static str) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!(
        "http://{}/secret-path?beat=1",
        listener.local_addr().expect("address")
    );
    let (sender, heard) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut buffer = [0; 2048];
            let n = stream.read(&mut buffer).unwrap_or_default();
            let line = String::from_utf8_lossy(&buffer[..n])
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned();
            let _ = stream.write_all(answer.as_bytes());
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    (url, heard)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

#[test]
fn a_successful_sweep_sends_a_heartbeat() {
    let (url, heard) = listen(OK);
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.lp_run().env("TSV_HEARTBEAT_URL", &url).run().expect(0);
    let line = heard.recv_timeout(Duration::from_secs(5)).expect("heard");
    assert_eq!(line, "GET /secret-path?beat=1 HTTP/1.1");
}

#[test]
fn failures_dry_runs_and_named_files_send_no_heartbeat() {
    let (url, heard) = listen(OK);
    let site = Site::new();
    let named = DEVICE.file("named.tsv");
    site.put_old(&named, good_file(1, 3));
    site.lp_run()
        .named(&named)
        .env("TSV_HEARTBEAT_URL", &url)
        .run()
        .expect(0);
    site.call()
        .arg("--dry-run")
        .env("TSV_HEARTBEAT_URL", &url)
        .run()
        .expect(0);
    site.put_old(DEVICE.file("bad.tsv"), "nonsense\n");
    site.lp_run().env("TSV_HEARTBEAT_URL", &url).run().expect(1);
    assert!(heard.recv_timeout(Duration::from_millis(100)).is_err());
}

#[test]
fn an_outage_of_one_bucket_is_one_of_the_run_and_sends_no_heartbeat() {
    for on_outage in ["error", "keep"] {
        let (url, heard) = listen(OK);
        let double = Double::start();
        let forbidden = Fault::status(403, "forbidden");
        double.fault(
            |r| r.is_write() && r.bucket == "acme",
            0,
            usize::MAX,
            forbidden,
        );
        let site = Site::new();
        site.put_old("acme/site/1/a.tsv", good_file(1, 3));
        site.put_old("beta/site/2/a.tsv", good_file(1, 3));
        site.run_to(&double)
            .args(["--on-outage", on_outage])
            .env("TSV_HEARTBEAT_URL", &url)
            .run()
            .expect(1);
        let report = site.report();
        assert_eq!(report["outage"], true, "{on_outage}");
        assert_eq!(report["status"], "partial_failure", "{on_outage}");
        assert_eq!(report["nb_files_success"], 1, "{on_outage}");
        assert!(heard.recv_timeout(Duration::from_millis(100)).is_err());
    }
}

#[test]
fn a_failed_heartbeat_does_not_fail_the_run_or_show_its_path() {
    let site = Site::new();
    let (refused, _) =
        listen("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    for url in [refused.as_str(), "http://127.0.0.1:1/secret-path"] {
        let run = site.lp_run().env("TSV_HEARTBEAT_URL", url).run().expect(0);
        assert!(run.stderr.contains("heartbeat"), "{}", run.stderr);
        assert!(!run.stderr.contains("secret-path"), "{}", run.stderr);
    }
}
