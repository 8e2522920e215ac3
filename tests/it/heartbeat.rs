//! The heartbeat: `<url>/start` before a sweep, then the URL or `<url>/fail`. It never fails a run.

use crate::harness::{DEVICE, Site, age, good_file};
use crate::influx_double::{Double, Fault};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tiny_http::{Response, Server};

/// A receiver of requests on 127.0.0.1, which answers each of them in the same way.
pub struct Monitor {
    pub url: String,
    received: Receiver<(String, String)>,
}

impl Monitor {
    pub fn start(status: u16) -> Self {
        let server = Server::http("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/secret-path?beat=1", server.server_addr());
        let (sender, received) = channel();
        std::thread::spawn(move || {
            for mut request in server.incoming_requests() {
                let line = format!("{} {}", request.method(), request.url());
                let mut body = String::new();
                request.as_reader().read_to_string(&mut body).expect("text");
                let _ = request.respond(Response::empty(status));
                if sender.send((line, body)).is_err() {
                    return;
                }
            }
        });
        Self { url, received }
    }

    /// The next request as "METHOD path", and its body.
    pub fn next(&self) -> (String, String) {
        self.received
            .recv_timeout(Duration::from_secs(5))
            .expect("a heartbeat")
    }

    pub fn is_silent(&self) -> bool {
        self.received
            .recv_timeout(Duration::from_millis(100))
            .is_err()
    }
}

pub const START: &str = "GET /secret-path/start?beat=1";
pub const SUCCESS: &str = "GET /secret-path?beat=1";
const FAIL: &str = "POST /secret-path/fail?beat=1";

#[test]
fn a_sweep_reports_its_start_and_its_success() {
    let monitor = Monitor::start(200);
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.lp_run()
        .env("TSV_HEARTBEAT_URL", &monitor.url)
        .run()
        .expect(0);
    assert_eq!(monitor.next(), (START.to_owned(), String::new()));
    assert_eq!(monitor.next(), (SUCCESS.to_owned(), String::new()));
    assert!(monitor.is_silent());
}

#[test]
fn a_failed_sweep_reports_what_failed_and_what_to_do() {
    let monitor = Monitor::start(200);
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.put_old(DEVICE.file("bad.tsv"), "nonsense\n");
    site.lp_run()
        .env("TSV_HEARTBEAT_URL", &monitor.url)
        .run()
        .expect(1);
    assert_eq!(monitor.next().0, START);
    let (line, body) = monitor.next();
    assert_eq!(line, FAIL);
    let wanted = format!(
        "1 of 2 files failed; run powerview status -d {} for the reasons and remedies",
        site.data().display()
    );
    assert_eq!(body, wanted);
    assert!(monitor.is_silent());
}

#[test]
fn dry_runs_and_named_files_send_no_heartbeat() {
    let monitor = Monitor::start(200);
    let site = Site::new();
    let named = DEVICE.file("named.tsv");
    site.put_old(&named, good_file(1, 3));
    site.lp_run()
        .named(&named)
        .env("TSV_HEARTBEAT_URL", &monitor.url)
        .run()
        .expect(0);
    site.call()
        .arg("--dry-run")
        .env("TSV_HEARTBEAT_URL", &monitor.url)
        .run()
        .expect(0);
    assert!(monitor.is_silent());
}

#[test]
fn status_reports_problems_and_nothing_else() {
    let monitor = Monitor::start(200);
    let site = Site::new();
    let file = site.put(DEVICE.file("parsed/a.tsv"), crate::status::file(3));
    age(&file, 3 * 3600);
    let data = site.data().display().to_string();
    let status = |folder: &str, silent_after: &str, expected| {
        site.bare()
            .args(["status", "-d", folder, "--silent-after", silent_after])
            .env("TSV_TIMEZONE", "UTC")
            .env("TSV_HEARTBEAT_URL", &monitor.url)
            .run()
            .expect(expected)
    };
    status(&data, "26h", 0);
    assert!(monitor.is_silent(), "it would hide a failed sweep");

    let printed = status(&data, "1h", 1);
    assert!(printed.stdout.contains("SILENT"), "{}", printed.stdout);
    let (line, body) = monitor.next();
    assert_eq!(line, FAIL);
    let wanted = format!(
        "1 of 1 device needs attention; run powerview status -d {data} for the problems and remedies"
    );
    assert_eq!(body, wanted);

    status("/nonexistent", "26h", 2);
    let (line, body) = monitor.next();
    assert_eq!(line, FAIL);
    assert!(body.contains("correct --dataFolder"), "{body}");
}

#[test]
fn an_outage_of_one_bucket_is_one_of_the_run_and_reported_as_failure() {
    for on_outage in ["error", "keep"] {
        let monitor = Monitor::start(200);
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
            .env("TSV_HEARTBEAT_URL", &monitor.url)
            .run()
            .expect(1);
        let report = site.report();
        assert_eq!(report["outage"], true, "{on_outage}");
        assert_eq!(report["status"], "partial_failure", "{on_outage}");
        assert_eq!(report["nb_files_success"], 1, "{on_outage}");
        assert_eq!(monitor.next().0, START);
        assert_eq!(monitor.next().0, FAIL);
    }
}

#[test]
fn a_failed_heartbeat_does_not_fail_the_run_or_show_its_path() {
    let site = Site::new();
    let refused = Monitor::start(500);
    for url in [refused.url.as_str(), "http://127.0.0.1:1/secret-path"] {
        let run = site.lp_run().env("TSV_HEARTBEAT_URL", url).run().expect(0);
        assert!(run.stderr.contains("heartbeat"), "{}", run.stderr);
        assert!(!run.stderr.contains("secret-path"), "{}", run.stderr);
    }
}
