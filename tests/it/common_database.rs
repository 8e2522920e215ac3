//! Two hosts with a real SFTPGo (`SFTPGO_BIN`) each, which share the users in a PostgreSQL, and one data folder.

use crate::file_builder::FileBuilder;
use crate::harness::points_in;
use crate::hosts::may_have_namespaces;
use crate::influx_double::Double;
use crate::postgres::Postgres;
use crate::sftpgo::{self, Setup, Site, wait_for};
use std::fs;

const COMPANIES: [&str; 2] = ["acme", "base"];
const DEVICES: [&str; 2] = ["02001171", "02001172"];
/// Files that each host receives of each device.
const FILES: usize = 4;
const ROWS: usize = 3;

/// A file that a host receives.
struct Upload {
    company: &'static str,
    /// The path in the folder of the company.
    path: String,
    /// Each file of a company has a day of its own.
    day: usize,
}

impl Upload {
    fn value(&self, row: usize) -> usize {
        100 * self.day + row
    }

    fn content(&self) -> String {
        (0..ROWS)
            .fold(FileBuilder::default(), |file, row| {
                let (day, value) = (self.day, self.value(row));
                file.line(format_args!(
                    "{day:02}/08/25 08:{row:02}:00\t{value}\t-{value}"
                ))
            })
            .build()
    }
}

fn uploads_to(host: usize) -> Vec<Upload> {
    let mut uploads = Vec::new();
    for company in COMPANIES {
        for number in 0..DEVICES.len() * FILES {
            let day = 1 + host * DEVICES.len() * FILES + number;
            let path = format!("site/{}/{day}.tsv", DEVICES[number % DEVICES.len()]);
            uploads.push(Upload { company, path, day });
        }
    }
    uploads
}

/// The paths in the data folder of the files that a host has ingested, by its reports.
fn ingested(site: &Site) -> Vec<String> {
    let data = format!("{}/", site.data().display());
    let mut files = Vec::new();
    for report in fs::read_dir(site.path("sftpgo/logs/reports"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let text = fs::read_to_string(report.path()).expect("a report");
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for file in report["files"].as_array().expect("files") {
            if file["status"] == "success" {
                let path = file["file_path"].as_str().expect("a path");
                files.push(path.replace(&data, ""));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn two_hosts_with_a_common_database_ingest_each_upload_once() {
    let Some(program) = sftpgo::program() else {
        return;
    };
    if !may_have_namespaces() {
        return;
    }
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let influx = Double::start();
    let mut settings = postgres.settings().to_vec();
    settings.extend([
        ("SFTPGO_COMMON__UPLOAD_MODE", "1"),
        ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "upload,rename,mkdir"),
        ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
    ]);
    // The first one creates the tables and the users.
    let first = Site::start(&Setup {
        settings: &settings,
        dot_env: &influx.dot_env(),
        companies: &COMPANIES,
        ..Setup::new(&program)
    });
    let second = Site::start(&Setup {
        settings: &settings,
        dot_env: &influx.dot_env(),
        shares_data_of: Some(&first),
        ..Setup::new(&program)
    });
    let hosts = [&first, &second];
    for company in COMPANIES {
        let mkdirs = DEVICES.map(|device| format!("mkdir site/{device}\n"));
        first.run_commands(company, &format!("mkdir site\n{}", mkdirs.concat()));
    }

    let mut sessions = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        for company in COMPANIES {
            let mut commands = String::new();
            for upload in uploads_to(number).iter().filter(|u| u.company == company) {
                let local = host.path(&format!("{company}-{}.tsv", upload.day));
                fs::write(&local, upload.content()).expect("a file");
                commands += &format!("put {} {}\n", local.display(), upload.path);
            }
            sessions.push(host.session(company, &commands, &[]));
        }
    }
    for mut session in sessions {
        assert!(session.wait().expect("an end").success());
    }
    for (number, host) in hosts.iter().enumerate() {
        let uploads = uploads_to(number);
        let mut received: Vec<_> = uploads
            .iter()
            .map(|u| format!("{}/{}", u.company, u.path))
            .collect();
        received.sort();
        wait_for(
            "the ingestion of what a host received",
            120,
            || ingested(host) == received,
            || format!("{:?}\n{}", ingested(host), host.log()),
        );
    }
    for company in COMPANIES {
        let uploads = (0..hosts.len()).flat_map(uploads_to);
        let mut wanted: Vec<_> = uploads
            .filter(|upload| upload.company == company)
            .flat_map(|upload| (0..ROWS).map(move |row| upload.value(row) as f64))
            .flat_map(|value| [value, -value])
            .collect();
        wanted.sort_by(f64::total_cmp);
        let mut values: Vec<_> = points_in(&influx, company)
            .iter()
            .map(|p| p.value)
            .collect();
        values.sort_by(f64::total_cmp);
        assert_eq!(values, wanted, "{company}");
    }
}
