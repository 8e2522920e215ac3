//! End-to-end tests with real servers: an SFTP client, SFTPGo with both configurations, the hook, the binary, InfluxDB
//! and Ansible with a double of Grafana. They need `INFLUXD_BIN` and `SFTPGO_BIN`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use influxdb_line_protocol::parse_lines;

use crate::ansible;
use crate::grafana_double::{Double, PASSWORD, USER};
use crate::harness::samples;
use crate::real_influx::RealInflux;
use crate::sftpgo::{self, Setup, Site, wait_for};

const COMPANIES: [&str; 3] = ["base", "client_v003", "company1"];

impl Site {
    /// Starts an SFTP session of a company with these commands.
    pub fn session(&self, company: &str, commands: &str, options: &[&str]) -> Child {
        let batch = tempfile::NamedTempFile::new_in(self.dir.path()).expect("a file");
        fs::write(batch.path(), commands).expect("a file");
        let (_, batch) = batch.keep().expect("a file");
        Command::new("sshpass")
            .args([
                "-p",
                sftpgo::PASSWORD,
                "sftp",
                "-q",
                "-P",
                &self.port.to_string(),
            ])
            .args([
                "-oBatchMode=no",
                "-oStrictHostKeyChecking=no",
                "-oUserKnownHostsFile=/dev/null",
            ])
            .args(options)
            .arg("-b")
            .arg(batch)
            .arg(format!("{company}@127.0.0.1"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("sshpass starts")
    }

    pub fn run_commands(&self, company: &str, commands: &str) {
        let status = self.session(company, commands, &[]).wait().expect("an end");
        assert!(status.success(), "{company}: {commands}");
    }
}

/// The relative paths of the measurement files below a folder.
fn measurement_files(folder: &Path) -> BTreeSet<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "tsv") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, &mut found);
    found
        .into_iter()
        .filter_map(|p| p.strip_prefix(folder).map(Path::to_path_buf).ok())
        .collect()
}

type Points = BTreeMap<(String, String, i64), f64>;

/// The files and points of the samples after one uninterrupted sweep to line-protocol files.
fn undisturbed(samples: &Path) -> (BTreeSet<PathBuf>, BTreeMap<String, Points>) {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    for file in measurement_files(samples) {
        let to = data.join(&file);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::write(to, fs::read(samples.join(file)).expect("a sample")).expect("a copy");
    }
    let out = dir.path().join("lp");
    fs::create_dir(&out).expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_powerview"));
    command
        .arg("-d")
        .arg(&data)
        .arg("--line-protocol-dir")
        .arg(&out)
        .current_dir(dir.path());
    command
        .env_clear()
        .env("TSV_TIMEZONE", "Europe/Paris")
        .env("TSV_INCOMPLETE_GRACE_S", "0");
    let output = command.output().expect("powerview starts");
    assert_eq!(
        output.status.code(),
        Some(1),
        "some of the samples cannot be ingested"
    );
    let mut all = BTreeMap::new();
    for company in COMPANIES {
        let text = fs::read_to_string(out.join(format!("{company}.lp"))).expect("line protocol");
        let mut points = Points::new();
        for line in parse_lines(&text) {
            let line = line.expect("a valid line");
            let tag = |key: &str| {
                line.tag_value(key)
                    .map(std::string::ToString::to_string)
                    .unwrap_or_default()
            };
            let value = match line.field_value("value").expect("a value") {
                influxdb_line_protocol::FieldValue::F64(v) => *v,
                other => panic!("{other:?}"),
            };
            points.insert(
                (
                    tag("campaign"),
                    tag("channel_id"),
                    line.timestamp.expect("a time"),
                ),
                value,
            );
        }
        all.insert(company.to_owned(), points);
    }
    (measurement_files(&data), all)
}

/// The points of a company in the database.
fn stored(influx: &RealInflux, company: &str) -> Points {
    let flux = format!(
        "from(bucket: \"{company}\") |> range(start: 0) |> filter(fn: (r) => r._field == \"value\")"
    );
    let rows = influx.rows(&flux);
    let mut points = Points::new();
    for row in &rows {
        assert_eq!(row["_measurement"], row["campaign"]);
        assert_eq!(row["device"], row["device_sn"]);
        let time = chrono::DateTime::parse_from_rfc3339(&row["_time"])
            .expect("a time")
            .timestamp();
        let value = row["_value"].parse().expect("a number");
        points.insert(
            (row["campaign"].clone(), row["channel_id"].clone(), time),
            value,
        );
    }
    assert_eq!(
        points.len(),
        rows.len(),
        "{company}: a series stands there twice, under different tags"
    );
    points
}

struct Servers {
    influx: RealInflux,
    sftpgo: PathBuf,
    samples: PathBuf,
}

fn servers() -> Option<Servers> {
    let sftpgo = sftpgo::program()?;
    let samples = samples()?;
    Some(Servers {
        influx: RealInflux::start()?,
        sftpgo,
        samples,
    })
}

impl Servers {
    fn start(&self, settings: &[(&str, &str)], more: &str) -> Site {
        Site::start(&Setup {
            settings,
            dot_env: &self.dot_env(more),
            companies: &COMPANIES,
            ..Setup::new(&self.sftpgo)
        })
    }

    fn dot_env(&self, more: &str) -> String {
        format!(
            "INFLUXDB_HOST={}\nINFLUXDB_ORG={}\nINFLUXDB_ADMIN_TOKEN={}\nTSV_TIMEZONE=Europe/Paris\n{more}",
            self.influx.url(),
            self.influx.org(),
            self.influx.token()
        )
    }

    /// Sends all samples, half of them under temporary names that are then renamed, in two concurrent sessions per
    /// company.
    fn send_samples(&self, site: &Site) {
        let mut sessions = Vec::new();
        for company in COMPANIES {
            let files = measurement_files(&self.samples.join(company));
            let folders: BTreeSet<_> = files.iter().flat_map(|f| f.ancestors().skip(1)).collect();
            let mut mkdirs = String::new();
            for folder in folders.into_iter().filter(|f| !f.as_os_str().is_empty()) {
                mkdirs += &format!("-mkdir \"{}\"\n", folder.display());
            }
            site.run_commands(company, &mkdirs);
            let mut batches = [String::new(), String::new()];
            for (at, file) in files.iter().enumerate() {
                let local = self.samples.join(company).join(file);
                let (local, remote) = (local.display(), file.display());
                batches[at / 2 % 2] += &if at % 2 == 0 {
                    format!("put \"{local}\" \"{remote}\"\n")
                } else {
                    format!(
                        "put \"{local}\" \"{remote}.tmp\"\nrename \"{remote}.tmp\" \"{remote}\"\n"
                    )
                };
            }
            sessions.extend(batches.iter().map(|b| site.session(company, b, &[])));
        }
        for mut session in sessions {
            assert!(session.wait().expect("an end").success());
        }
    }

    fn compare(&self, site: &Site) {
        let (files, points) = undisturbed(&self.samples);
        let data = site.path("sftpgo/data");
        wait_for(
            "the moves of all files",
            180,
            || measurement_files(&data) == files,
            || {
                format!(
                    "there are {:#?}\nand the log is\n{}",
                    measurement_files(&data),
                    site.log()
                )
            },
        );
        for company in COMPANIES {
            let (want, got) = (&points[company], stored(&self.influx, company));
            assert!(!want.is_empty());
            assert_eq!(want.len(), got.len(), "{company}");
            assert!(*want == got, "{company}: other points than the samples'");
        }
    }
}

#[test]
fn the_recommended_configuration_ingests_all_samples() {
    let Some(servers) = servers() else { return };
    let double = Double::start();
    let with_ansible = ansible::Scene::new();
    let mut more = format!(
        "GRAFANA_URL={}\nGRAFANA_USERNAME={USER}\nGRAFANA_PASSWORD={PASSWORD}\nANSIBLE_PLAYBOOK_BIN=/bin/true\n",
        double.url
    );
    if let Some(scene) = &with_ansible {
        more = more.replace("/bin/true", &scene.ansible().display().to_string());
    }
    let site = servers.start(
        &[
            ("SFTPGO_COMMON__UPLOAD_MODE", "1"),
            ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "upload,rename,mkdir"),
            ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
        ],
        &more,
    );

    // An interrupted upload leaves no file, and the hook is called.
    let sample = servers
        .samples
        .join("company1/campaign1/02001084/T302_251012_031720.tsv");
    site.run_commands("company1", "mkdir campaign1\nmkdir campaign1/02001084\n");
    let put = format!("put \"{}\" campaign1/02001084/cut.tsv\n", sample.display());
    let mut cut = site.session("company1", &put, &["-l", "16", "-B", "1024"]);
    let device = site.path("sftpgo/data/company1/campaign1/02001084");
    let begun = || {
        let files = fs::read_dir(&device).into_iter().flatten().flatten();
        files
            .into_iter()
            .any(|f| f.metadata().is_ok_and(|m| m.is_file() && m.len() > 0))
    };
    wait_for("the upload's beginning", 30, begun, || site.log());
    cut.kill().expect("sshpass ends");
    cut.wait().expect("an end");
    wait_for(
        "the end of the transfer",
        30,
        || site.log().contains("transfer failed"),
        || site.log(),
    );
    assert!(!device.join("cut.tsv").exists() && !device.join("error").exists());

    servers.send_samples(&site);
    servers.compare(&site);

    let Some(_) = with_ansible else { return };
    let campaigns = [
        "base/camp_base",
        "client_v003/mono",
        "client_v003/tri",
        "company1/campaign1",
    ]
    .map(|c| site.path("sftpgo/data").join(c));
    let marked = || {
        campaigns
            .iter()
            .all(|c| c.join(".dashboard.created").exists())
    };
    wait_for("four dashboards", 300, marked, || site.log());
    for company in COMPANIES {
        let state = double.state();
        let (_, secrets) = &state.data_sources[&format!("influxdb_{company}")];
        let token = secrets["token"].as_str().expect("a token").to_owned();
        drop(state);
        ansible::assert_reads_only(&servers.influx, &token, company, "powerview_meta");
    }
}

#[test]
fn the_configuration_in_use_today_ingests_all_samples() {
    let Some(servers) = servers() else { return };
    let site = servers.start(
        &[
            ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "mkdir"),
            ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
            ("SFTPGO_COMMON__POST_DISCONNECT_HOOK", "HOOK"),
            ("SFTPGO_COMMAND__COMMANDS__0__PATH", "HOOK"),
            ("SFTPGO_COMMAND__COMMANDS__0__ENV", "SFTPGO_ACTION=upload"),
            ("SFTPGO_COMMAND__COMMANDS__0__HOOK", "post_disconnect"),
        ],
        // Some samples are truncated, and there is no later run.
        "ANSIBLE_PLAYBOOK_BIN=/bin/true\nTSV_INCOMPLETE_GRACE_S=0\n",
    );
    servers.send_samples(&site);
    servers.compare(&site);
}

/// The users' storage is a local disk that SFTPGo encrypts: it is named in the log of the hook, and by a sweep.
#[test]
fn files_that_sftpgo_encrypts_are_named_by_the_hook_and_by_the_sweep() {
    let Some(sftpgo) = sftpgo::program() else {
        return;
    };
    let site = Site::start(&Setup {
        settings: &[
            ("SFTPGO_COMMON__UPLOAD_MODE", "1"),
            ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "upload,rename,mkdir"),
            ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
        ],
        dot_env: "TSV_TIMEZONE=Europe/Paris\nANSIBLE_PLAYBOOK_BIN=/bin/true\n",
        companies: &["company1"],
        filesystem: serde_json::json!({"provider": 4,
            "cryptconfig": {"passphrase": {"status": "Plain", "payload": "q8T3kV9zL2mX7pR4wN6yB1cF5hJ0dGsA"}}}),
        ..Setup::new(&sftpgo)
    });
    let plain = site.path("plain.tsv");
    fs::write(&plain, crate::harness::good_file(1, 3)).expect("a file");
    let commands = format!(
        "mkdir site\nmkdir site/02001171\nput \"{}\" site/02001171/a.tsv\n",
        plain.display()
    );
    site.run_commands("company1", &commands);
    let uploaded = site.data().join("company1/site/02001171/a.tsv");
    let line = format!(
        "upload {}: not ingested: SFTPGo stores it encrypted on the local disk, where powerview cannot read it; set the storage of the user company1, or of the virtual folder that contains /site/02001171/a.tsv, to \"Local disk\" with a root directory in {} and upload the file again",
        uploaded.display(),
        site.data().display()
    );
    wait_for(
        "the refusal",
        30,
        || site.log().contains(&line),
        || site.log(),
    );
    assert!(uploaded.exists());
    let lp = site.path("lp");
    let sweep = Command::new(env!("CARGO_BIN_EXE_powerview"))
        .env_clear()
        .env("TSV_TIMEZONE", "Europe/Paris")
        .env("TSV_INCOMPLETE_GRACE_S", "0")
        .args([
            "--line-protocol-dir".as_ref(),
            lp.as_os_str(),
            "-d".as_ref(),
        ])
        .arg(site.data())
        .output()
        .expect("powerview starts");
    let stderr = String::from_utf8_lossy(&sweep.stderr);
    assert!(
        stderr.contains(
            "not a logger file but encrypted by SFTPGo; set the storage of the user to \"Local disk\""
        ),
        "{stderr}"
    );
}
