//! Alerts about failed units: from a silent logger to the message that a receiver on 127.0.0.1 gets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{Site, age, put_program};
use crate::heartbeat::Monitor;
use crate::skipped::installed;

const UNIT: &str = "powerview-status.service";

/// The value of a setting of a shipped unit, which has it once.
fn setting(unit: &str, key: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(unit);
    let text = fs::read_to_string(&path).expect("a unit");
    let values: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect();
    assert_eq!(values.len(), 1, "{key} of {unit}");
    values[0].to_owned()
}

/// A server with a silent logger. Doubles replace the journal and syslog; curl is the real one, and its arguments are
/// recorded.
struct Server {
    site: Site,
}

impl Server {
    /// Skips the calling test without curl.
    fn new() -> Option<Self> {
        if !installed("curl", "curl") {
            return None;
        }
        let server = Self { site: Site::new() };
        let file = server
            .site
            .put("acme/site/02001171/parsed/a.tsv", crate::status::file(30));
        age(&file, 30 * 3600);
        for (name, script) in [
            ("logger", "echo \"$@\" >>\"$OUT/log\""),
            ("journalctl", "cat \"$OUT/journal\""),
            (
                "curl",
                "echo \"$@\" >>\"$OUT/curl\"; exec /usr/bin/curl \"$@\"",
            ),
        ] {
            let path = server.path("bin").join(name);
            fs::create_dir_all(server.path("bin")).expect("a folder");
            put_program(&path, &format!("#!/bin/sh\n{script}\n"));
        }
        fs::create_dir_all(server.path("logs")).expect("a folder");
        Some(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn set_url(&self, url: &str) {
        let env = format!("POWERVIEW_ALERT_URL='{url}'\n");
        fs::write(self.path(".env"), env).expect("a file");
    }

    /// Runs the command of a unit as systemd does, with the paths of this test.
    fn run(&self, command: &str) -> Output {
        let root = env!("CARGO_MANIFEST_DIR");
        let command = command
            .replace(
                "/srv/powerview/bin/powerview",
                env!("CARGO_BIN_EXE_powerview"),
            )
            .replace("/srv/powerview/deploy", &format!("{root}/deploy"))
            .replace("/srv/sftpgo/data", &self.site.data().display().to_string());
        let mut words = command.split_whitespace();
        Command::new(words.next().expect("a program"))
            .args(words)
            .current_dir(self.site.dir.path())
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.path("bin").display()),
            )
            .env("OUT", self.site.dir.path())
            .env("STATE_DIRECTORY", self.site.dir.path())
            .env("SFTPGO_BASE", self.site.dir.path())
            .env("TSV_TIMEZONE", "UTC")
            .output()
            .expect("the program starts")
    }

    /// Starts the status unit, and the unit that its failure starts. Returns whether that one succeeded.
    fn status_fails(&self) -> bool {
        let status = self.run(&setting(UNIT, "ExecStart"));
        assert_eq!(status.status.code(), Some(1), "a logger is silent");
        fs::write(self.path("journal"), &status.stdout).expect("a file");
        assert_eq!(setting(UNIT, "OnFailure"), "powerview-failure@%n.service");
        let report = setting("powerview-failure@.service", "ExecStart").replace("%i", UNIT);
        self.run(&report).status.success()
    }

    /// Starts the unit that every sweep starts first.
    fn next_sweep(&self) -> bool {
        let wanted = setting("powerview-sweep.service", "Wants");
        assert!(wanted.contains("powerview-alerts.service"), "{wanted}");
        self.run(&setting("powerview-alerts.service", "ExecStart"))
            .status
            .success()
    }

    fn waiting(&self) -> usize {
        fs::read_dir(self.path("logs/alerts"))
            .expect("the queue")
            .count()
    }
}

/// Checks that a message names the logger and what to do.
fn assert_helpful(message: &str) {
    for part in [
        "powerview-status.service failed on ",
        "What to do: run powerview status -d ",
        "SILENT",
        "02001171",
        "check the logger's power",
    ] {
        assert!(message.contains(part), "{part} is missing in:\n{message}");
    }
}

#[test]
fn a_silent_logger_leads_to_one_message_at_the_webhook() {
    let Some(server) = Server::new() else { return };
    let webhook = Monitor::start(200);
    server.set_url(&webhook.url);
    assert!(server.status_fails());
    let (line, message) = webhook.next();
    assert_eq!(line, "POST /secret-path?beat=1");
    assert_helpful(&message);
    assert_eq!(server.waiting(), 0);

    // The unit fails every hour as long as the logger is silent.
    assert!(server.status_fails());
    assert!(webhook.is_silent(), "at most one message in 20 hours");
    assert!(server.next_sweep());
    assert!(webhook.is_silent());
}

#[test]
fn an_alert_that_cannot_be_sent_is_sent_with_the_next_sweep() {
    let Some(server) = Server::new() else { return };
    let refusing = Monitor::start(500);
    for (url, cause) in [
        (refusing.url.as_str(), "status 500"),
        ("http://127.0.0.1:1/secret-path", "exit status 7 of curl"),
    ] {
        server.set_url(url);
        assert!(!server.status_fails());
        assert_eq!(server.waiting(), 1, "after {url}");
        let log = server.read("log");
        assert!(log.contains("cannot post an alert to 127.0.0.1:"), "{log}");
        assert!(log.contains(cause), "{cause} is missing in {log}");
    }
    assert!(!server.next_sweep(), "the receiver is still away");

    let webhook = Monitor::start(200);
    server.set_url(&webhook.url);
    assert!(server.next_sweep());
    assert_helpful(&webhook.next().1);
    assert!(server.next_sweep());
    assert!(webhook.is_silent(), "it is sent once");
    assert_eq!(server.waiting(), 0);

    for place in ["log", "curl"] {
        let text = server.read(place);
        assert!(!text.is_empty(), "{place} is recorded");
        assert!(!text.contains("secret-path"), "{place}: {text}");
    }
}

#[test]
fn a_test_alert_says_that_it_is_one_and_is_sent_each_time() {
    let Some(server) = Server::new() else { return };
    let webhook = Monitor::start(200);
    server.set_url(&webhook.url);
    fs::write(server.path("journal"), "-- No entries --\n").expect("a file");
    let command = setting("powerview-failure@.service", "ExecStart");
    // systemd passes the part of the unit's name after the @.
    for instance in ["test", "test", "test.service"] {
        let output = server.run(&command.replace("%i", instance));
        assert!(output.status.success(), "{instance}");
        let message = webhook.next().1;
        let (subject, text) = message.split_once("\n\n").expect("a subject");
        assert!(subject.starts_with("test alert from "), "{message}");
        assert_eq!(
            text,
            "This is only a test: nothing failed, and there is nothing to do."
        );
    }
    assert_eq!(server.read("log"), "");

    // A test without a recipient fails, so that `systemctl start` shows it.
    fs::write(server.path(".env"), "").expect("a file");
    let output = server.run(&command.replace("%i", "test"));
    assert_eq!(output.status.code(), Some(1));
    let log = server.read("log");
    assert!(
        log.contains("no test alert is sent: set POWERVIEW_ALERT_URL"),
        "{log}"
    );
}

#[test]
fn slack_gets_its_json() {
    let Some(server) = Server::new() else { return };
    let webhook = Monitor::start(200);
    server.set_url(&webhook.url.replace("beat=1", "to=slack&quoted=\"\\"));
    assert!(server.status_fails());
    let body = webhook.next().1;
    let json: Value = serde_json::from_str(&body).expect("JSON");
    assert_helpful(json["text"].as_str().expect("a text"));
    assert_eq!(json, json!({"text": json["text"]}));
}

#[test]
fn an_alert_is_sent_although_the_queue_cannot_be_written() {
    let Some(server) = Server::new() else { return };
    let webhook = Monitor::start(200);
    server.set_url(&webhook.url);
    fs::remove_dir(server.path("logs")).expect("an empty folder");
    fs::write(server.path("logs"), "a file in its place").expect("a file");
    assert!(server.status_fails());
    assert_helpful(&webhook.next().1);
}

#[test]
fn without_a_url_nothing_is_queued() {
    let Some(server) = Server::new() else { return };
    fs::write(server.path(".env"), "POWERVIEW_ALERT_URL=\n").expect("a file");
    assert!(server.status_fails());
    assert_eq!(server.waiting(), 0);
    assert!(
        server
            .read("log")
            .contains("powerview-status.service failed")
    );
}
