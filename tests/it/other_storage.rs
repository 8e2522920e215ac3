//! A real SFTPGo (`SFTPGO_BIN`) that stores files in S3, of which there is a double.

use crate::harness::good_file;
use crate::influx_double;
use crate::s3_double::{BUCKET, Double};
use crate::sftpgo::{self, Setup, Site, wait_for};
use serde_json::Value;
use std::fs;
use std::process::Command;

fn start(
    program: &std::path::Path,
    upload_mode: &str,
    filesystem: Value,
    virtual_folder: Option<(&str, Value)>,
    influx: &influx_double::Double,
) -> Site {
    let site = Site::start(&Setup {
        settings: &[
            ("SFTPGO_COMMON__UPLOAD_MODE", upload_mode),
            ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "upload,rename,mkdir"),
            ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
        ],
        dot_env: &influx.dot_env(),
        companies: &["acme"],
        filesystem,
        virtual_folder,
        ..Setup::new(program)
    });
    fs::write(site.path("x.tsv"), good_file(1, 3)).expect("a file");
    site
}

/// The lines of the log without time and process, sorted.
fn messages(site: &Site) -> Vec<String> {
    let log = site.log();
    let mut lines: Vec<_> = log
        .lines()
        .map(|line| line.split_once("] ").expect("a process").1.to_owned())
        .collect();
    lines.sort();
    lines
}

/// The message about a file, which the user sees at another path than the key in S3.
fn refusal(site: &Site, s3: &Double, action: &str, key: &str, seen_as: &str) -> String {
    format!(
        "{action} {key}: not ingested: SFTPGo stores it in S3, bucket {BUCKET}, endpoint {}, where powerview cannot read it; set the storage of the user acme, or of the virtual folder that contains {seen_as}, to \"Local disk\" with a root directory in {} and upload the file again",
        s3.url,
        site.data().display()
    )
}

fn powerview(site: &Site, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(site.path("base/bin/powerview"))
        .env_clear()
        .current_dir(site.path("base"))
        .args(args)
        .arg("-d")
        .arg(site.data())
        .output()
        .expect("powerview starts");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn files_of_a_user_in_s3_are_named_by_the_hook_and_the_client_sees_no_error() {
    let Some(program) = sftpgo::program() else {
        return;
    };
    for upload_mode in ["0", "1"] {
        let (s3, influx) = (Double::start(), influx_double::Double::start());
        let site = start(&program, upload_mode, s3.filesystem("pv/"), None, &influx);
        let commands = "mkdir site\nmkdir site/02001171\nput x.tsv site/02001171/a.tsv\n\
                        put x.tsv site/02001171/b.tmp\nrename site/02001171/b.tmp site/02001171/b.tsv\n\
                        mkdir other\nrename other third\nput x.tsv site/channels.csv\n";
        let local = site.path("x.tsv").display().to_string();
        site.run_commands("acme", &commands.replace("x.tsv", &local));
        let keys = [
            "pv/site/02001171/a.tsv",
            "pv/site/02001171/b.tsv",
            "pv/site/channels.csv",
        ];
        assert_eq!(s3.keys(), keys);
        let refused = [("rename", 1), ("upload", 0), ("upload", 2)].map(|(action, file)| {
            let seen_as = keys[file].strip_prefix("pv").expect("the prefix");
            refusal(&site, &s3, action, keys[file], seen_as)
        });
        wait_for(
            "the refusals",
            30,
            || messages(&site) == refused,
            || site.log(),
        );
        // Nothing else is in the log folder, and nothing but the home of the user is in the data folder.
        assert_eq!(
            fs::read_dir(site.path("sftpgo/logs"))
                .expect("logs")
                .count(),
            1
        );
        let home = fs::read_dir(site.data().join("acme")).expect("the home");
        assert_eq!(home.count(), 0);
        let (code, printed) = powerview(&site, &[]);
        assert_eq!(code, Some(0), "{printed}");
        let (code, printed) = powerview(&site, &["status"]);
        assert_eq!(code, Some(1), "{printed}");
        assert!(printed.contains("EMPTY"), "{printed}");
    }
}

#[test]
fn files_of_a_virtual_folder_in_s3_are_named_and_those_beside_it_are_ingested() {
    let Some(program) = sftpgo::program() else {
        return;
    };
    let (s3, influx) = (Double::start(), influx_double::Double::start());
    let folder = Some(("/cloud", s3.filesystem("")));
    let site = start(&program, "1", Value::Null, folder, &influx);
    let local = site.path("x.tsv").display().to_string();
    let commands = "mkdir site\nmkdir site/02001171\nput x.tsv site/02001171/local.tsv\n\
                    mkdir cloud/02001171\nput x.tsv cloud/02001171/a.tsv\n";
    site.run_commands("acme", &commands.replace("x.tsv", &local));
    let moved = site.session(
        "acme",
        "rename cloud/02001171/a.tsv site/02001171/a.tsv\n",
        &[],
    );
    let moved = moved.wait_with_output().expect("an end");
    assert!(
        !moved.status.success(),
        "SFTPGo moves files between storages"
    );
    assert_eq!(s3.keys(), ["02001171/a.tsv"]);
    let line = refusal(
        &site,
        &s3,
        "upload",
        "02001171/a.tsv",
        "/cloud/02001171/a.tsv",
    );
    let parsed = site.data().join("acme/site/02001171/parsed/local.tsv");
    wait_for(
        "the refusal and the ingestion",
        30,
        || messages(&site).contains(&line) && parsed.exists(),
        || site.log(),
    );
    assert_eq!(influx.points("acme").len(), 6);
}
