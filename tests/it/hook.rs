//! `on-upload.sh`, called like by SFTPGo: with nothing but `SFTPGO_ACTION_*` (and the paths) in the environment.
//! Scripts that record their calls replace the two programs that it starts.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::file_builder::good_file;
use crate::harness::{LAYOUT_FILE, Tmpfs, put_program};
use crate::hosts::without_locks;
use crate::influx_double::{Double, ORG, TOKEN};
use crate::names::{INVALID, VALID};
use crate::skipped::installed;

const HOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/on-upload.sh");

/// Records its arguments and its environment, separated by NUL, in a new folder, which appears when it is complete.
/// Then it writes to both outputs. With a file `wait` beside it, it waits for `go`. `status` contains its exit status.
const RECORDER: &str = r#"#!/bin/bash
here=${0%/*}
[[ -e $here/wait ]] && until [[ -e $here/go ]]; do read -rt 0.02 <> <(:); done
call=$(mktemp -d "$here/calls/.XXXXXXXX")
printf '%s\0' "$@" >"$call/args"
env -0 >"$call/env"
pwd >"$call/pwd"
mv "$call" "$here/calls/${call##*/.}"
echo "output of ${0##*/}"
echo "and on stderr" >&2
exit "$(cat "$here/status" 2>/dev/null || echo 0)"
"#;

struct Call {
    args: Vec<OsString>,
    env: Vec<OsString>,
}

impl Call {
    fn env(&self, key: &str) -> Option<String> {
        let prefix = format!("{key}=");
        let line = self
            .env
            .iter()
            .find(|e| e.as_bytes().starts_with(prefix.as_bytes()))?;
        Some(String::from_utf8_lossy(&line.as_bytes()[prefix.len()..]).into_owned())
    }
}

/// The folders of a server in a temporary folder: `base` (`POWERVIEW_BASE`), `sftpgo/data`, `sftpgo/logs`.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in [
            "base",
            "sftpgo/data",
            "sftpgo/logs",
            "powerview/calls",
            "ansible/calls",
        ] {
            fs::create_dir_all(dir.path().join(folder)).expect("a folder");
        }
        let place = Self { dir };
        for (folder, name) in [("powerview", "powerview"), ("ansible", "ansible-playbook")] {
            let program = place.path(folder).join(name);
            put_program(&program, RECORDER);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path("sftpgo/data").join(name.as_ref())
    }

    fn hook(&self) -> Command {
        let mut command = Command::new(HOOK);
        command
            .env_clear()
            .env("POWERVIEW_BASE", self.path("base"))
            .env("SFTPGO_BASE", self.path("sftpgo"))
            .env("POWERVIEW_BIN", self.path("powerview/powerview"))
            .env(
                "ANSIBLE_PLAYBOOK_BIN",
                self.path("ansible/ansible-playbook"),
            )
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Runs the hook in the foreground for an action.
    fn act(
        &self,
        action: &str,
        path: impl AsRef<OsStr>,
        target: impl AsRef<OsStr>,
        status: &str,
    ) -> ExitStatus {
        let mut command = self.hook();
        command
            .env("POWERVIEW_HOOK_FOREGROUND", "1")
            .env("SFTPGO_ACTION", action)
            .env("SFTPGO_ACTION_PATH", path)
            .env("SFTPGO_ACTION_TARGET", target)
            .env("SFTPGO_ACTION_STATUS", status);
        command.status().expect("the hook starts")
    }

    fn calls(&self, program: &str) -> Vec<Call> {
        let split = |file: PathBuf| -> Vec<OsString> {
            let all = fs::read(file).expect("a record");
            let mut parts: Vec<_> = all
                .split(|b| *b == 0)
                .map(|b| OsString::from_vec(b.to_vec()))
                .collect();
            parts.pop();
            parts
        };
        let folders = fs::read_dir(self.path(program).join("calls")).expect("a folder");
        folders
            .map(|f| f.expect("an entry").path())
            .filter(|f| {
                !f.file_name()
                    .is_some_and(|n| n.as_bytes().starts_with(b"."))
            })
            .map(|f| Call {
                args: split(f.join("args")),
                env: split(f.join("env")),
            })
            .collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("sftpgo/logs/uploads.log")).unwrap_or_default()
    }

    /// Waits up to a minute for a result of the hook's background work.
    fn until(&self, what: &str, there: impl Fn() -> bool) {
        let start = Instant::now();
        while !there() {
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "{what}; the log is:\n{}",
                self.log()
            );
            sleep(Duration::from_millis(10));
        }
    }
}

fn has_time(line: &str) -> bool {
    let shape = |c: char| if c.is_ascii_digit() { '0' } else { c };
    let start: String = line.chars().take(24).map(shape).collect();
    ["0000-00-00T00:00:00+0000", "0000-00-00T00:00:00-0000"].contains(&start.as_str())
}

#[test]
fn an_upload_is_passed_to_powerview() {
    let place = Place::new();
    let file = place.data("acme/été 1/02001171/a b'c$(id).tsv");
    assert!(place.act("upload", &file, "", "1").success());
    let calls = place.calls("powerview");
    assert_eq!(calls.len(), 1);
    let data = place.path("sftpgo/data").into_os_string();
    assert_eq!(
        calls[0].args,
        [
            "--dataFolder".into(),
            data,
            "--tsvFile".into(),
            file.into_os_string()
        ]
    );
    assert!(
        calls[0].env("PATH").is_some_and(|p| p.contains("/usr/bin")),
        "SFTPGo gives no PATH"
    );
}

/// The environment that SFTPGo 2.7 passes for an upload.
#[test]
fn the_environment_of_a_real_call_is_accepted() {
    let place = Place::new();
    let file = place.data("acme/c/02001171/x.tsv");
    let mut hook = place.hook();
    for (key, value) in [
        ("ACTION", "upload"),
        ("ACTION_BUCKET", ""),
        ("ACTION_ELAPSED", "0"),
        ("ACTION_ENDPOINT", ""),
        ("ACTION_FILE_SIZE", "5"),
        ("ACTION_FS_PROVIDER", "0"),
        ("ACTION_IP", "127.0.0.1"),
        ("ACTION_OPEN_FLAGS", "0"),
        ("ACTION_PROTOCOL", "SFTP"),
        ("ACTION_ROLE", ""),
        ("ACTION_SESSION_ID", "SFTP_ff0f71f7_1"),
        ("ACTION_SSH_CMD", ""),
        ("ACTION_STATUS", "1"),
        ("ACTION_TARGET", ""),
        ("ACTION_TIMESTAMP", "1795458403667644821"),
        ("ACTION_USERNAME", "acme"),
        ("ACTION_VIRTUAL_PATH", "/c/02001171/x.tsv"),
        ("ACTION_VIRTUAL_TARGET", ""),
    ] {
        hook.env(format!("SFTPGO_{key}"), value);
    }
    assert!(
        hook.env("SFTPGO_ACTION_PATH", &file)
            .status()
            .expect("the hook starts")
            .success()
    );
    place.until("powerview is called", || {
        place.calls("powerview").len() == 1
    });
}

#[test]
fn files_in_other_storage_of_sftpgo_are_refused_with_its_name() {
    // What SFTPGo 2.7 passes: the number of the storage, its bucket or container, its endpoint, and the key of an object.
    for (provider, bucket, endpoint, path, named) in [
        (
            "1",
            "meter",
            "http://127.0.0.1:9000",
            "c/02001171/x.tsv",
            "in S3, bucket meter, endpoint http://127.0.0.1:9000",
        ),
        (
            "2",
            "meter",
            "",
            "c/02001171/x.tsv",
            "in Google Cloud Storage, bucket meter",
        ),
        (
            "3",
            "box",
            "",
            "c/02001171/x.tsv",
            "in Azure Blob Storage, bucket box",
        ),
        (
            "4",
            "",
            "",
            "DATA/acme/c/02001171/x.tsv",
            "encrypted on the local disk",
        ),
        (
            "5",
            "",
            "sftp.example:22",
            "/c/02001171/x.tsv",
            "on another SFTP server, endpoint sftp.example:22",
        ),
        (
            "6",
            "",
            "https://files.example",
            "/c/02001171/x.tsv",
            "on an HTTP server, endpoint https://files.example",
        ),
        ("9", "", "", "/c/02001171/x.tsv", "in storage 9"),
    ] {
        for (action, target, seen_as) in [
            ("upload", "", "/c/02001171/x.tsv"),
            ("rename", "new.tsv", "/c/02001171/new.tsv"),
            ("mkdir", "", "/c/02001171/x.tsv"),
        ] {
            let place = Place::new();
            let data = place.path("sftpgo/data");
            let path = path.replace("DATA", &data.display().to_string());
            let mut hook = place.hook();
            hook.env("POWERVIEW_HOOK_FOREGROUND", "1")
                .env("SFTPGO_ACTION", action)
                .env("SFTPGO_ACTION_PATH", &path)
                .env("SFTPGO_ACTION_TARGET", target)
                .env("SFTPGO_ACTION_VIRTUAL_PATH", "/c/02001171/x.tsv")
                .env("SFTPGO_ACTION_STATUS", "1")
                .env("SFTPGO_ACTION_USERNAME", "acme")
                .env("SFTPGO_ACTION_FS_PROVIDER", provider)
                .env("SFTPGO_ACTION_BUCKET", bucket)
                .env("SFTPGO_ACTION_ENDPOINT", endpoint);
            if !target.is_empty() {
                hook.env("SFTPGO_ACTION_VIRTUAL_TARGET", seen_as);
            }
            assert_eq!(hook.status().expect("the hook starts").code(), Some(1));
            let log = place.log();
            let shown = if target.is_empty() { &path } else { target };
            let line = format!(
                "{action} {shown}: not ingested: SFTPGo stores it {named}, where powerview cannot read it; set the storage of the user acme, or of the virtual folder that contains {seen_as}, to \"Local disk\" with a root directory in {} and upload the file again",
                data.display()
            );
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(log.contains(&line), "{log}");
            assert!(place.calls("powerview").is_empty() && place.calls("ansible").is_empty());
            assert!(!place.path("sftpgo/logs/queue").exists());
        }
    }
}

#[test]
fn a_queue_that_cannot_be_locked_is_logged_and_the_file_is_ingested() {
    if !installed("flock", "util-linux") || !installed("setsid", "util-linux") {
        return;
    }
    let Some(wrapper) = without_locks(Errno::NOLCK) else {
        return;
    };
    for foreground in ["1", "0"] {
        let place = Place::new();
        let file = place.data("acme/c/02001171/x.tsv");
        let hook = place.hook();
        let mut call = Command::new("/usr/bin/env");
        call.arg("-i").args(
            hook.get_envs()
                .map(|(key, value)| [key, value.unwrap_or_default()].join(OsStr::new("="))),
        );
        call.args([
            "SFTPGO_ACTION=upload".into(),
            [OsStr::new("SFTPGO_ACTION_PATH"), file.as_os_str()].join(OsStr::new("=")),
            format!("POWERVIEW_HOOK_FOREGROUND={foreground}").into(),
            OsString::from("PATH=/usr/bin:/bin"),
        ]);
        call.args(&wrapper).arg(HOOK);
        assert!(call.status().expect("the hook starts").success());
        place.until("powerview is called", || {
            place.calls("powerview").len() == 1
        });
        let log = place.log();
        assert!(
            log.contains("cannot be locked: No locks available; mount the file system with locks"),
            "{log}"
        );
        // Nothing is left that a later call would do again.
        assert_eq!(notes_left(&place), 0);
    }
}

#[test]
fn the_end_of_a_session_starts_a_sweep() {
    let place = Place::new();
    let mut hook = place.hook();
    hook.env("POWERVIEW_HOOK_FOREGROUND", "1")
        .env("SFTPGO_ACTION", "upload");
    hook.env("SFTPGO_CONNECTION_USERNAME", "acme")
        .env("SFTPGO_CONNECTION_DURATION", "1007");
    assert!(hook.status().expect("the hook starts").success());
    let calls = place.calls("powerview");
    assert_eq!(calls.len(), 1);
    assert_eq!(
        calls[0].args,
        [
            OsString::from("--dataFolder"),
            place.path("sftpgo/data").into()
        ]
    );
}

#[test]
fn only_complete_measurement_files_are_ingested() {
    for (action, path, target, status, taken) in [
        ("upload", "a/c/d/x.tsv", "", "1", true),
        ("upload", "a/c/d/x.tsv", "", "", true),
        ("upload", "a/c/d/x.tsv", "", "2", false),
        ("upload", "a/c/d/x.tsv", "", "3", false),
        ("upload", "a/c/d/x.TSV", "", "1", true),
        ("upload", "a/c/d/x.tsv.gz", "", "1", false),
        ("upload", "a/c/d/tsv", "", "1", false),
        ("upload", "a/c/d/x.tmp", "", "1", false),
        ("upload", "a/c/d/x.tsv.filepart", "", "1", false),
        ("upload", "a/c/d/.x.tsv", "", "1", false),
        ("upload", "a/c/d/x.tsv\nx", "", "1", false),
        ("rename", "a/c/d/x.tmp", "a/c/d/x.tsv", "1", true),
        ("rename", "a/c/d/x.tmp", "a/c/d/x.Tsv", "1", true),
        ("rename", "a/c/d/x.tmp", "a/c/d/x.tsv", "3", false),
        ("rename", "a/c/d/x.tmp", "a/c/d/.x.tsv", "1", false),
        ("rename", "a/c/d/x.tsv", "a/c/d/x.old", "1", false),
        ("rename", "a/c/d/x.tsv", "a/c/x.tsv", "1", false),
        ("rename", "a/c/d/x.tsv", "a/c/d/parsed/x.tsv", "1", false),
        ("rename", "a/c/d/x.tsv", "a/c/parsed/x.tsv", "1", false),
        ("rename", "a/c/d/x.tsv", "a/c/../d/x.tsv", "1", false),
        ("rename", "a/c/d/x.tsv", "", "1", false),
        ("delete", "a/c/d/x.tsv", "", "1", false),
        ("download", "a/c/d/x.tsv", "", "1", false),
        ("", "a/c/d/x.tsv", "", "1", false),
    ] {
        let place = Place::new();
        let target = if target.is_empty() {
            PathBuf::new()
        } else {
            place.data(target)
        };
        let exit = place.act(action, place.data(path), &target, status);
        let case = format!("{action} {path} {status}");
        assert!(exit.success(), "{case}");
        let calls = place.calls("powerview");
        assert_eq!(calls.len(), usize::from(taken), "{case}");
        if taken {
            let named = if action == "rename" {
                target
            } else {
                place.data(path)
            };
            assert_eq!(calls[0].args[3], named.as_os_str(), "{case}");
        }
        let broke_off = matches!(status, "2" | "3");
        assert_eq!(
            place.log().contains(&format!("status {status}")),
            broke_off,
            "{case}: {}",
            place.log()
        );
        assert!(place.calls("ansible").is_empty(), "{case}");
    }
}

/// Puts a catalogue into a campaign folder.
fn put_catalogue(place: &Place, campaign: &str) {
    fs::create_dir_all(place.data(campaign)).expect("a folder");
    fs::write(place.data(campaign).join("channels.csv"), "x").expect("a file");
}

#[test]
fn a_catalogue_that_is_gone_is_no_failure() {
    let place = Place::new();
    let path = place.data("acme/c/channels.csv");
    assert!(place.act("upload", &path, "", "1").success());
    assert!(place.calls("powerview").is_empty());
    assert!(
        place.log().contains(
            "upload acme/c/channels.csv: not there any more; what was applied before stays in force"
        ),
        "{}",
        place.log()
    );
    // What is there, but no file, has to be refused.
    fs::create_dir_all(place.data("acme/c")).expect("a folder");
    std::os::unix::fs::symlink("/nowhere", &path).expect("a link");
    assert!(place.act("upload", &path, "", "1").success());
    assert_eq!(place.calls("powerview").len(), 1);
}

#[test]
fn a_catalogue_of_channels_is_applied() {
    let catalogue = "acme/été 1 -x/channels.csv";
    for (action, path, target, status, applied) in [
        ("upload", catalogue, "", "1", true),
        ("upload", catalogue, "", "", true),
        ("upload", catalogue, "", "2", false),
        ("upload", "acme/channels.csv", "", "1", false),
        ("upload", "acme/c/d/channels.csv", "", "1", false),
        ("upload", "acme/parsed/channels.csv", "", "1", false),
        ("upload", "acme/c/other.csv", "", "1", false),
        ("upload", "acme/c/.channels.csv", "", "1", false),
        ("upload", "acme/../c/channels.csv", "", "1", false),
        ("rename", "acme/été 1 -x/new.csv", catalogue, "1", true),
        ("rename", "acme/été 1 -x/new.csv", catalogue, "3", false),
        ("rename", catalogue, "acme/c/old.csv", "1", false),
        ("delete", catalogue, "", "1", false),
    ] {
        let place = Place::new();
        let new_path = match target {
            "" => PathBuf::new(),
            target => place.data(target),
        };
        put_catalogue(&place, "acme/été 1 -x");
        assert!(
            place
                .act(action, place.data(path), new_path, status)
                .success()
        );
        let case = format!("{action} {path} {target} {status}");
        let calls = place.calls("powerview");
        assert_eq!(calls.len(), usize::from(applied), "{case}");
        if applied {
            let data = place.path("sftpgo/data").into_os_string();
            assert_eq!(
                calls[0].args,
                [
                    "channels".into(),
                    "--apply".into(),
                    "--dataFolder".into(),
                    data,
                    "--company=acme".into(),
                    OsString::from("--campaign=été 1 -x"),
                ],
                "{case}"
            );
        }
        assert!(place.calls("ansible").is_empty(), "{case}");
    }
}

#[test]
fn a_refused_catalogue_is_logged_and_its_status_returned() {
    let place = Place::new();
    fs::write(place.path("powerview/status"), "1").expect("a file");
    put_catalogue(&place, "acme/c");
    let status = place.act("upload", place.data("acme/c/channels.csv"), "", "1");
    assert_eq!(status.code(), Some(1));
    assert!(
        place.log().contains("powerview failed with exit status 1"),
        "{}",
        place.log()
    );
    assert_eq!(notes_left(&place), 0);
}

#[test]
fn only_a_new_campaign_gets_a_dashboard() {
    if !installed("python3", "python3") {
        return;
    }
    for (path, status, made) in [
        ("acme/campaign", "1", true),
        ("acme/campaign/", "1", true),
        ("acme/campaign", "2", false),
        ("acme", "1", false),
        ("acme/campaign/02001171", "1", false),
        ("acme/parsed", "1", false),
        ("acme/error", "1", false),
        ("acme/campaign/02001171/parsed", "1", false),
        ("acme//campaign", "1", false),
        ("acme/..", "1", false),
        ("../x", "1", false),
        ("./x", "1", false),
        ("acme/../../etc", "1", false),
        ("powerview_meta/x", "1", false),
    ] {
        let place = Place::new();
        assert!(
            place
                .act("mkdir", place.path("sftpgo/data").join(path), "", status)
                .success(),
            "{path}"
        );
        let calls = place.calls("ansible");
        assert_eq!(
            calls.len(),
            usize::from(made),
            "{path} {status}: {}",
            place.log()
        );
        assert!(place.calls("powerview").is_empty());
    }
    for elsewhere in ["/etc/x/y", "relative/x", "", "/"] {
        let place = Place::new();
        assert!(place.act("mkdir", elsewhere, "", "1").success());
        assert!(place.calls("ansible").is_empty(), "{elsewhere}");
    }
}

#[test]
fn valid_names_reach_ansible_as_one_json_document() {
    if !installed("python3", "python3") {
        return;
    }
    for name in VALID {
        let place = Place::new();
        assert!(
            place
                .act("mkdir", place.data(format!("{name}/{name}")), "", "1")
                .success()
        );
        let calls = place.calls("ansible");
        assert_eq!(calls.len(), 1, "{name}: {}", place.log());
        let args: Vec<String> = calls[0]
            .args
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        let playbook = place.path("base/grafana-automation/playbooks/create_grafana_resources.yml");
        assert_eq!(
            args[..4],
            [&playbook.display().to_string(), "-i", "localhost,", "-e"]
        );
        let vars: Value = serde_json::from_str(&args[4]).expect("JSON");
        assert_eq!(vars, json!({"company_name": name, "campaign_name": name}));
        assert_eq!(args.len(), 5);
        assert!(
            calls[0].env("HOME").is_some_and(|h| !h.is_empty()),
            "Ansible needs a home"
        );
    }
}

#[test]
fn companies_that_are_named_like_buckets_that_are_rebuilt_get_no_dashboard() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    for name in [
        "acme.rebuild",
        "acme.before-2026-03-01",
        "acme.before-2026-03-01-2",
    ] {
        assert!(
            place
                .act(
                    "mkdir",
                    place.path("sftpgo/data").join(name).join("one"),
                    "",
                    "1"
                )
                .success()
        );
        assert!(
            place
                .log()
                .contains(&format!("{name}/one: the company name is refused")),
            "{name}"
        );
    }
    assert!(place.calls("ansible").is_empty());
    // As a campaign, it is no bucket.
    assert!(
        place
            .act("mkdir", place.data("acme").join("x.rebuild"), "", "1")
            .success()
    );
    assert_eq!(place.calls("ansible").len(), 1);
}

#[test]
fn a_campaign_that_is_named_like_a_measurement_of_the_program_gets_no_dashboard() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    for name in ["powerview_1h", "powerview_channels"] {
        let folder = place.data("acme").join(name);
        assert!(place.act("mkdir", folder, "", "1").success());
        let log = place.log();
        let refusal = format!("acme/{name}: the campaign name is refused: the name is reserved");
        assert!(log.contains(&refusal), "{log}");
    }
    assert!(place.calls("ansible").is_empty());
    // As a company, it is no measurement.
    let folder = place.data("powerview_1h").join("site");
    assert!(place.act("mkdir", folder, "", "1").success());
    assert_eq!(place.calls("ansible").len(), 1);
}

#[test]
fn with_influxdb_3_no_playbook_is_started() {
    if !installed("python3", "python3") || !installed("flock", "util-linux") {
        return;
    }
    let (place, _) = place_with_playbook();
    fs::write(place.path("base/.env"), "INFLUXDB_FLAVOR=3\n").expect("a file");
    let campaign = place.data("acme/c");
    fs::create_dir_all(campaign.join("02001171")).expect("a folder");
    assert!(place.act("mkdir", &campaign, "", "1").success());
    let log = place.log();
    let reason = "mkdir acme/c: no dashboard created, because dashboards need InfluxDB 2 and INFLUXDB_FLAVOR is 3";
    assert!(log.contains(reason), "{log}");
    let file = campaign.join("02001171/a.tsv");
    assert!(place.act("upload", file, "", "1").success());
    assert!(place.calls("ansible").is_empty());
    assert_eq!(place.calls("powerview").len(), 1);
    assert_eq!(place.log().matches("no dashboard created").count(), 1);
}

#[test]
#[ignore = "slow: hundreds of calls of the hook"]
fn invalid_names_are_refused_and_none_of_them_runs() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    let canary = place.path("canary");
    assert!(INVALID.len() >= 60);
    for (at, name) in INVALID.iter().enumerate() {
        let canary_name = canary.to_string_lossy().replace('/', "%");
        let name = String::from_utf8(name.to_vec())
            .map_or_else(std::string::FromUtf8Error::into_bytes, |n| {
                n.replace("CANARY", &canary_name).into_bytes()
            });
        let name = OsStr::from_bytes(&name);
        for path in [
            place.data("acme").join(name),
            place.path("sftpgo/data").join(name).join("campaign"),
        ] {
            let before = place.log().lines().count();
            assert!(place.act("mkdir", &path, "", "1").success());
            if name.as_bytes().contains(&b'/') || matches!(name.as_bytes(), b"." | b"..") {
                continue; // not the name of one folder: the path is another one, for which nothing is done
            }
            let log = place.log();
            let new: Vec<&str> = log.lines().skip(before).collect();
            assert_eq!(new.len(), 1, "name {at} has exactly one line: {new:?}");
            assert!(new[0].contains("name is refused"), "name {at}: {new:?}");
            assert!(new[0].is_ascii() && !new[0].contains('\x1b'), "{new:?}");
        }
        // The binary gets the same name unchanged.
        let file = place
            .data("acme/c/d")
            .join([name.as_bytes(), b".tsv"].concat().to_os());
        place.act("upload", &file, "", "1");
        place.act("rename", place.data("x"), &file, "1");
    }
    assert!(place.calls("ansible").is_empty());
    for call in place.calls("powerview") {
        assert_eq!(call.args.len(), 4);
    }
    assert!(place.log().lines().all(has_time));
    let ran = |dir: &Path| {
        fs::read_dir(dir).expect("a folder").any(|f| {
            f.expect("an entry")
                .file_name()
                .to_string_lossy()
                .contains("canary")
        })
    };
    assert!(
        !canary.exists() && !ran(Path::new("/")) && !ran(place.dir.path()),
        "a name ran"
    );
}

trait ToOs {
    fn to_os(self) -> OsString;
}

impl ToOs for Vec<u8> {
    fn to_os(self) -> OsString {
        OsString::from_vec(self)
    }
}

#[test]
fn a_name_that_cannot_be_checked_is_not_called_wrong() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    let plugins = place.path("base/grafana-automation/playbooks/filter_plugins");
    fs::create_dir_all(&plugins).expect("a folder");
    fs::write(
        plugins.join("powerview.py"),
        "raise OSError('no such thing')\n",
    )
    .expect("a file");
    fs::create_dir_all(place.data("acme/site1")).expect("a folder");
    let status = place.act("mkdir", place.data("acme/site1"), "", "1");
    assert_eq!(status.code(), Some(1));
    let log = place.log();
    assert!(
        log.contains(
            "acme/site1: the name cannot be checked: OSError: no such thing; install python3"
        ),
        "{log}"
    );
    assert!(!log.contains("rename the folder"), "{log}");
    assert!(place.calls("ansible").is_empty());
}

#[test]
fn a_failing_program_is_logged_and_its_status_returned() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    fs::write(place.path("powerview/status"), "7").expect("a file");
    fs::write(place.path("ansible/status"), "4").expect("a file");
    assert_eq!(
        place
            .act("upload", place.data("a/c/d/x.tsv"), "", "1")
            .code(),
        Some(7)
    );
    assert_eq!(
        place.act("mkdir", place.data("a/c"), "", "1").code(),
        Some(4)
    );
    let log = place.log();
    for line in [
        "output of powerview",
        "and on stderr",
        "powerview failed with exit status 7",
        "output of ansible-playbook",
        "ansible-playbook failed with exit status 4",
    ] {
        assert!(
            log.lines().any(|l| l.ends_with(line)),
            "{line} is not in\n{log}"
        );
    }
    assert!(log.lines().all(has_time), "{log}");
}

#[test]
fn a_program_that_is_missing_is_logged() {
    let place = Place::new();
    fs::remove_file(place.path("powerview/powerview")).expect("a file");
    assert_eq!(
        place
            .act("upload", place.data("a/c/d/x.tsv"), "", "1")
            .code(),
        Some(127)
    );
    assert!(
        place
            .log()
            .contains("powerview failed with exit status 127"),
        "{}",
        place.log()
    );
}

#[test]
fn the_hook_returns_at_once_and_its_work_continues() {
    if !installed("setsid", "util-linux") {
        return;
    }
    let place = Place::new();
    fs::write(place.path("powerview/wait"), "").expect("a file");
    let mut hook = place.hook();
    hook.env("SFTPGO_ACTION", "upload")
        .env("SFTPGO_ACTION_PATH", place.data("a/c/d/x.tsv"));
    let start = Instant::now();
    let mut child = hook.process_group(0).spawn().expect("the hook starts");
    assert!(child.wait().expect("an end").success());
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "the hook waited for its work"
    );
    // Like SFTPGo after its time-out, kill the process group of the hook, if it still exists.
    let group = Pid::from_child(&child);
    let killed = kill_process_group(group, Signal::KILL);
    assert!(
        matches!(killed, Ok(()) | Err(Errno::SRCH)),
        "the group is killed: {killed:?}"
    );
    assert!(
        place.calls("powerview").is_empty(),
        "the work is still waiting"
    );
    fs::write(place.path("powerview/go"), "").expect("a file");
    place.until("the work is finished", || {
        place.log().contains("output of powerview")
    });
    assert_eq!(place.calls("powerview").len(), 1);
}

#[test]
fn twenty_concurrent_uploads_are_ingested_and_logged_line_by_line() {
    if !installed("setsid", "util-linux") {
        return;
    }
    let place = Place::new();
    let children: Vec<_> = (0..20)
        .map(|n| {
            let mut hook = place.hook();
            hook.env("SFTPGO_ACTION", "upload")
                .env("SFTPGO_ACTION_STATUS", "1");
            hook.env("SFTPGO_ACTION_PATH", place.data(format!("a/c/d{n}/x.tsv")))
                .spawn()
                .expect("the hook starts")
        })
        .collect();
    for mut child in children {
        assert!(child.wait().expect("an end").success());
    }
    place.until("all lines are there", || place.log().lines().count() == 40);
    let mut files: Vec<_> = place
        .calls("powerview")
        .iter()
        .map(|c| c.args[3].clone())
        .collect();
    files.sort();
    files.dedup();
    assert_eq!(files.len(), 20);
    let log = place.log();
    assert!(log.lines().all(
        |l| has_time(l) && (l.ends_with("output of powerview") || l.ends_with("and on stderr"))
    ));
}

/// A client that creates ten campaigns must not start ten concurrent runs of Ansible.
#[test]
fn ansible_runs_one_at_a_time() {
    if !installed("python3", "python3") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    let playbooks = place.path("base/grafana-automation/playbooks");
    fs::create_dir_all(&playbooks).expect("a folder");
    fs::write(playbooks.join("create_grafana_resources.yml"), "").expect("a file");
    let busy = "#!/bin/bash\nhere=${0%/*}\nmkdir \"$here/busy\" || touch \"$here/two\"\nread -rt 0.1 <> <(:)\n\
        rmdir \"$here/busy\"\necho done >>\"$here/count\"\n";
    fs::write(place.path("ansible/ansible-playbook"), busy).expect("a script");
    for n in 0..5 {
        let mut hook = place.hook();
        hook.env("SFTPGO_ACTION", "mkdir")
            .env("SFTPGO_ACTION_PATH", place.data(format!("acme/c{n}")));
        assert!(hook.status().expect("the hook starts").success());
    }
    let count = || {
        fs::read_to_string(place.path("ansible/count"))
            .unwrap_or_default()
            .lines()
            .count()
    };
    place.until("five runs are done", || count() == 5);
    assert!(!place.path("ansible/two").exists());
}

#[test]
fn an_upload_is_ingested_even_if_nothing_can_be_logged() {
    for spoil in [
        |logs: PathBuf| fs::remove_dir(logs),
        |logs: PathBuf| fs::create_dir(logs.join("uploads.log")),
        |logs: PathBuf| fs::remove_dir(&logs).and_then(|()| fs::write(logs, "a file")),
        // A full disk.
        |logs: PathBuf| std::os::unix::fs::symlink("/dev/full", logs.join("uploads.log")),
    ] {
        let place = Place::new();
        spoil(place.path("sftpgo/logs")).expect("spoiling");
        assert!(
            place
                .act("upload", place.data("a/c/d/x.tsv"), "", "1")
                .success()
        );
        assert_eq!(place.calls("powerview").len(), 1);
    }
}

#[test]
fn dot_env_is_data() {
    let place = Place::new();
    let canary = place.path("canary");
    let touch = format!("touch {}", canary.display());
    let text = format!(
        "# a comment\n\n\
         INFLUXDB_HOST=http://127.0.0.1:8086 # the server\r\n\
         export INFLUXDB_ORG = power view  \n\
         TSV_A='single $({touch}) `{touch}` \"x\" # y'\n\
         TSV_B=\"double $({touch}) \\\"x\\\" \\\\ \\$HOME\" # z\n\
         TSV_C=bare $({touch}) `{touch}` a#b; {touch}\n\
         TSV_D=\n\
         TSV_E=\"two\\nlines\"\n\
         TSV_F=from the file\n\
         GRAFANA_PASSWORD=p=a=s=s\n\
         not a line\n\
         1X=y\n\
         A B=c\n\
         $({touch})\n\
         PATH=/nowhere\n\
         LD_PRELOAD={0}\n\
         BASH_ENV={0}\n\
         SFTPGO_ACTION=mkdir\n\
         TSV_G=no line break",
        place.path("evil").display()
    );
    fs::write(place.path("base/.env"), text).expect("a file");
    fs::write(place.path("evil"), &touch).expect("a file");
    let mut hook = place.hook();
    hook.env("POWERVIEW_HOOK_FOREGROUND", "1")
        .env("TSV_F", "from the environment");
    hook.env("SFTPGO_ACTION", "upload")
        .env("SFTPGO_ACTION_PATH", place.data("a/c/d/x.tsv"));
    assert!(hook.status().expect("the hook starts").success());
    let calls = place.calls("powerview");
    for (key, value) in [
        ("INFLUXDB_HOST", "http://127.0.0.1:8086".to_owned()),
        ("INFLUXDB_ORG", "power view".to_owned()),
        ("TSV_A", format!("single $({touch}) `{touch}` \"x\" # y")),
        ("TSV_B", format!("double $({touch}) \"x\" \\ $HOME")),
        ("TSV_C", format!("bare $({touch}) `{touch}` a#b; {touch}")),
        ("TSV_D", String::new()),
        ("TSV_E", "two\nlines".to_owned()),
        ("TSV_F", "from the environment".to_owned()),
        ("TSV_G", "no line break".to_owned()),
        ("GRAFANA_PASSWORD", "p=a=s=s".to_owned()),
    ] {
        assert_eq!(calls[0].env(key), Some(value), "{key}");
    }
    for key in ["LD_PRELOAD", "BASH_ENV", "1X", "A B"] {
        assert_eq!(calls[0].env(key), None, "{key}");
    }
    assert!(calls[0].env("PATH").is_some_and(|p| p.contains("/usr/bin")));
    assert!(!canary.exists(), "a value ran");
}

/// Hook and binary must read the file in the same way: the last line of a variable counts, an empty variable of the
/// environment is not set, and comments may have any encoding.
#[test]
fn dot_env_is_read_as_the_binary_reads_it() {
    let place = Place::new();
    let text = b"\xef\xbb\xbfTSV_F=behind-a-mark\n# soci\xe9t\xe9\nTSV_A=first\nTSV_B=first\nTSV_C=from-the-file\nTSV_D=1 # \xe9t\xe9\nTSV_E=first\nTSV_A=last\nTSV_B=last\nTSV_E=\n";
    fs::write(place.path("base/.env"), text).expect("a file");
    let variables = [
        ("TSV_A", "last"),
        ("TSV_B", "from the environment"),
        ("TSV_C", "from-the-file"),
        ("TSV_D", "1"),
        ("TSV_E", ""),
        ("TSV_F", "behind-a-mark"),
    ];
    for foreground in ["1", ""] {
        let before = place.calls("powerview").len();
        let mut hook = place.hook();
        hook.env("POWERVIEW_HOOK_FOREGROUND", foreground)
            .env("TSV_B", "from the environment")
            .env("TSV_C", "")
            .env("SFTPGO_ACTION", "upload");
        assert!(hook.status().expect("the hook starts").success());
        place.until("powerview is called", || {
            place.calls("powerview").len() > before
        });
        for call in place.calls("powerview") {
            for (key, value) in variables {
                assert_eq!(call.env(key).as_deref(), Some(value), "{key}");
            }
        }
    }

    let env = |key: &str| match key {
        "TSV_B" => Some("from the environment"),
        "TSV_C" => Some(""),
        _ => None,
    };
    let site = crate::harness::Site::new();
    for (key, value) in variables {
        // The error about an invalid value shows the value.
        let text = String::from_utf8_lossy(text).replace(key, "TSV_TIMEZONE");
        assert!(text.starts_with('\u{feff}'));
        fs::write(site.dir.path().join("cwd/.env"), text).expect("a file");
        let mut call = site.call().arg("--dry-run").no_env("TSV_TIMEZONE");
        if let Some(value) = env(key) {
            call = call.env("TSV_TIMEZONE", value);
        }
        let run = call.env("TZ", "UTC").run();
        assert_eq!(run.code(), if value.is_empty() { 0 } else { 2 }, "{key}");
        assert!(run.stderr.contains(value), "{key}: {}", run.stderr);
    }
}

/// Lines with quotes, backslashes, `$` and comments, and the value that both programs must read. `None`: the binary refuses
/// the file, and the hook does not set the variable.
const QUOTED_VALUES: [(&str, Option<&str>); 17] = [
    (r"'C:\data\' # comment", Some(r"C:\data\")),
    (r"'C:\data\'", Some(r"C:\data\")),
    (r"'a\'b' # it's", None),
    (r"'a b' # it's", Some("a b")),
    (r"'a # b'", Some("a # b")),
    ("'open", None),
    ("'a'b", None),
    ("'a'#b", None),
    (r#""a\\" # x"#, Some(r"a\")),
    (r#""a\"b\x\'" # x"#, Some(r#"a"b\x\'"#)),
    (r#""a$HOME\$x" "#, Some("a$HOME$x")),
    (r#""open\""#, None),
    (r"a\b\ # x", Some(r"a\b\")),
    ("a$HOME${HOME}", Some("a$HOME${HOME}")),
    ("a'b\"c", Some("a'b\"c")),
    ("a#b", Some("a#b")),
    ("x\t# y", Some("x")),
];

#[test]
fn quotes_and_backslashes_in_dot_env_mean_the_same_to_hook_and_binary() {
    let site = crate::harness::Site::new();
    for (text, expected) in QUOTED_VALUES {
        // The line that follows must not become a part of the value.
        let file = format!("TSV_TIMEZONE={text}\nTSV_NEXT='next'\n");
        let place = Place::new();
        fs::write(place.path("base/.env"), &file).expect("a file");
        assert!(place.act("upload", "", "", "1").success());
        let calls = place.calls("powerview");
        assert_eq!(calls[0].env("TSV_TIMEZONE").as_deref(), expected, "{text}");
        assert_eq!(calls[0].env("TSV_NEXT").as_deref(), Some("next"), "{text}");

        fs::write(site.dir.path().join("cwd/.env"), &file).expect("a file");
        let call = site.call().arg("--dry-run").no_env("TSV_TIMEZONE");
        let run = call.env("HOME", "/home/x").run().expect(2);
        // The error about an invalid value shows the value.
        let message = match expected {
            Some(value) => format!("TSV_TIMEZONE is {value:?}, which is not a time zone"),
            None => ".env, line 1: not KEY=VALUE".to_owned(),
        };
        assert!(run.stderr.contains(&message), "{text}: {}", run.stderr);
    }
}

#[test]
fn paths_may_end_in_a_slash() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    for (base, sftpgo) in [("base/", "sftpgo/"), ("base//", "sftpgo//")] {
        for (action, path, target) in [
            ("mkdir", "acme/c", ""),
            ("rename", "acme/c/d/x.tmp", "acme/c/d/x.tsv"),
        ] {
            let mut hook = place.hook();
            hook.env("POWERVIEW_HOOK_FOREGROUND", "1")
                .env("POWERVIEW_BASE", place.path(base))
                .env("SFTPGO_BASE", place.path(sftpgo))
                .env("SFTPGO_ACTION", action)
                .env("SFTPGO_ACTION_PATH", place.data(path))
                .env("SFTPGO_ACTION_TARGET", place.data(target));
            assert!(hook.status().expect("the hook starts").success());
        }
    }
    assert_eq!(place.calls("ansible").len(), 2);
    assert_eq!(place.calls("powerview").len(), 2);
    for call in place.calls("powerview") {
        assert_eq!(call.args[1], place.path("sftpgo/data").as_os_str());
    }
}

#[test]
fn a_missing_playbook_is_logged() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    let mut hook = place.hook();
    hook.env("POWERVIEW_HOOK_FOREGROUND", "1")
        .env("SFTPGO_ACTION", "mkdir")
        .env("SFTPGO_ACTION_PATH", place.data("acme/c"));
    let output = hook.output().expect("the hook starts");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let log = place.log();
    assert!(
        log.lines().any(|line| has_time(line)
            && line.contains(
                "create_grafana_resources.yml cannot be opened: No such file or directory"
            )),
        "{log}"
    );
}

#[test]
fn the_binary_of_the_base_folder_takes_precedence_over_the_path() {
    let place = Place::new();
    fs::create_dir_all(place.path("base/bin")).expect("a folder");
    fs::rename(
        place.path("powerview/powerview"),
        place.path("base/bin/powerview"),
    )
    .expect("a move");
    fs::create_dir(place.path("base/bin/calls")).expect("a folder");
    let mut hook = place.hook();
    hook.env_remove("POWERVIEW_BIN")
        .env("POWERVIEW_HOOK_FOREGROUND", "1")
        .env("SFTPGO_ACTION", "upload");
    assert!(hook.status().expect("the hook starts").success());
    assert_eq!(place.calls("base/bin").len(), 1);
}

/// A command that runs a program with an /etc of its own, which has the file `/etc/powerview/.env`.
fn with_package_settings(text: &str, program: &Path) -> Command {
    const SCRIPT: &str = r#"
        mount -t tmpfs tmpfs /etc
        mkdir /etc/powerview
        printf %s "$0" >/etc/powerview/.env
        exec "$@""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-euc", SCRIPT, text])
        .arg(program)
        .env_clear()
        .current_dir("/");
    command
}

/// A checkout has `.env` beside the hook, the package in /etc/powerview.
#[test]
fn hook_and_stand_in_find_env_and_binary_from_where_they_really_are() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    if Tmpfs::mount(place.path("base"), "size=64k").is_none() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let layout = place.path("layout");
    fs::create_dir_all(layout.join("bin/calls")).expect("a folder");
    fs::create_dir(place.path("links")).expect("a folder");
    for name in ["on-upload.sh", "tsv_parser.py"] {
        fs::copy(root.join(name), layout.join(name)).expect("a copy");
        symlink(layout.join(name), place.path("links").join(name)).expect("a link");
    }
    put_program(&layout.join("bin/powerview"), RECORDER);

    for (beside, expected) in [(true, "beside"), (false, "package")] {
        let env_file = layout.join(".env");
        if beside {
            fs::write(&env_file, "TSV_LOG_LEVEL=beside\n").expect("a file");
        } else {
            fs::remove_file(&env_file).expect("a file");
        }
        let settings = "TSV_LOG_LEVEL=package\n";

        let hook = place.path("links/on-upload.sh");
        let mut hook = with_package_settings(settings, &hook);
        hook.env("POWERVIEW_HOOK_FOREGROUND", "1")
            .env("SFTPGO_BASE", place.path("sftpgo"))
            .env("SFTPGO_ACTION", "upload");
        assert!(hook.status().expect("the hook starts").success());
        let calls = place.calls("layout/bin");
        let levels: Vec<_> = calls.iter().map(|c| c.env("TSV_LOG_LEVEL")).collect();
        assert_eq!(levels, [Some(expected.to_owned())]);
        fs::remove_dir_all(layout.join("bin/calls")).expect("a folder");
        fs::create_dir(layout.join("bin/calls")).expect("a folder");

        // No level has such a name, and the message repeats it.
        let stand_in = place.path("links/tsv_parser.py");
        let output = with_package_settings(settings, &stand_in)
            .env("POWERVIEW_BIN", env!("CARGO_BIN_EXE_powerview"))
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .arg("check")
            .output()
            .expect("the stand-in starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(&format!("\"{expected}\"")), "{message}");
    }
}

#[test]
fn shellcheck_passes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !installed("shellcheck", "shellcheck") {
        return;
    }
    let output = Command::new("shellcheck")
        .current_dir(root)
        .args([
            "on-upload.sh",
            "powerview-company",
            "powerview-setup",
            ".ci/run",
            ".ci/setup-deploy",
            ".ci/setup-dashboards",
        ])
        .args(["deploy/report-failure", "fixtures/demo/run"])
        .args([".ci/setup-package", "packaging/generate"])
        .args(["packaging/debian/postinst", "packaging/debian/prerm"])
        .arg("packaging/debian/postrm")
        .output()
        .expect("shellcheck starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// The commands of the old system's hook. `tsv_parser.py` now starts the binary.
#[test]
fn the_old_hook_works_with_the_wrapper_script() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    let base = place.path("base");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::copy(root.join("tsv_parser.py"), base.join("tsv_parser.py")).expect("a copy");
    fs::write(
        base.join(".env"),
        "INFLUXDB_HOST=http://127.0.0.1:8086\nINFLUXDB_ORG='power view'\n",
    )
    .expect("a file");
    let venv = Command::new("python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(base.join("venv"))
        .status();
    assert!(venv.expect("python3 starts").success());
    fs::create_dir_all(base.join("bin")).expect("a folder");
    fs::create_dir(base.join("bin/calls")).expect("a folder");
    fs::rename(
        place.path("powerview/powerview"),
        base.join("bin/powerview"),
    )
    .expect("a move");

    let old = r#"source "$BASE/venv/bin/activate"; set -a; source "$BASE/.env"; set +a
        python3 "$BASE/tsv_parser.py" --dataFolder "$DATA" --tsvFile "$FILE""#;
    let file = place.data("acme/c/d/été 1.tsv");
    let old_hook = || {
        let mut command = Command::new("bash");
        command
            .args(["-c", old])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("BASE", &base);
        command
            .env("DATA", place.path("sftpgo/data"))
            .env("FILE", &file)
            .stderr(Stdio::piped());
        command
    };
    assert!(old_hook().status().expect("bash starts").success());
    let calls = place.calls("base/bin");
    let data = place.path("sftpgo/data").into_os_string();
    assert_eq!(
        calls[0].args,
        [
            "--dataFolder".into(),
            data,
            "--tsvFile".into(),
            file.clone().into_os_string()
        ]
    );
    assert_eq!(calls[0].env("INFLUXDB_ORG").as_deref(), Some("power view"));

    // The exit status is the binary's, POWERVIEW_BIN takes precedence, and without a binary the message names the
    // remedy.
    fs::write(base.join("bin/status"), "1").expect("a file");
    assert_eq!(old_hook().status().expect("bash starts").code(), Some(1));
    assert_eq!(
        old_hook()
            .env("POWERVIEW_BIN", "/bin/false")
            .status()
            .expect("bash starts")
            .code(),
        Some(1)
    );
    assert_eq!(place.calls("base/bin").len(), 2);
    fs::remove_file(base.join("bin/powerview")).expect("a file");
    let output = old_hook().output().expect("bash starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("POWERVIEW_BIN"));
}

/// The old script read the `.env` in its own folder, in any working directory.
#[test]
fn the_wrapper_script_finds_the_dot_env_beside_it() {
    if !installed("python3", "python3") {
        return;
    }
    let place = Place::new();
    let base = place.path("base");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::copy(root.join("tsv_parser.py"), base.join("tsv_parser.py")).expect("a copy");
    fs::write(base.join(".env"), "INFLUXDB_HOST=ftp://beside\n").expect("a file");
    fs::write(place.path("named"), "INFLUXDB_HOST=ftp://named\n").expect("a file");
    let wrapper = |args: &[&str], org: &str| {
        let mut command = Command::new("python3");
        command
            .arg(base.join("tsv_parser.py"))
            .args(["--dataFolder", "data"])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("POWERVIEW_BIN", env!("CARGO_BIN_EXE_powerview"))
            .current_dir(place.path("sftpgo"));
        if !org.is_empty() {
            command.env("INFLUXDB_ORG", org);
        }
        let output = command.output().expect("python3 starts");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let named = place.path("named").display().to_string();
    for (args, org, words) in [
        (&[][..], "", "ftp://beside"),
        (&["--env-file", &named], "", "ftp://named"),
        (&[&format!("--env-file={named}")], "", "ftp://named"),
        // With settings in the environment, no `.env` file is passed.
        (&[], "o", "INFLUXDB_HOST is not set"),
    ] {
        let printed = wrapper(args, org);
        assert!(printed.contains(words), "{args:?}: {printed}");
    }
    fs::write(
        place.path("sftpgo/.env"),
        "INFLUXDB_HOST=ftp://working-directory\n",
    )
    .expect("a file");
    let printed = wrapper(&[], "");
    assert!(printed.contains("ftp://working-directory"), "{printed}");
}

/// The real binary in the hook's minimal environment, with its settings from `.env`. The server is unreachable.
#[test]
fn the_real_binary_finds_its_settings_and_its_messages_are_logged() {
    let place = Place::new();
    let device = place.data("acme/c/02001171");
    fs::create_dir_all(&device).expect("a folder");
    let rows = "02001171\t02001171\nMV_T302_V002\tVoie1 W\n03/08/25 03:20:00\t31.5\n";
    fs::write(device.join("x.tsv"), rows).expect("a file");
    fs::write(
        place.path("base/.env"),
        "INFLUXDB_HOST=http://127.0.0.1:1\nINFLUXDB_ORG=o\nINFLUXDB_ADMIN_TOKEN='s3cret#token'\nTSV_RETRY_FOR=0.2\n",
    )
    .expect("a file");
    let mut hook = place.hook();
    hook.env("POWERVIEW_BIN", env!("CARGO_BIN_EXE_powerview"))
        .env("POWERVIEW_HOOK_FOREGROUND", "1")
        .env("SFTPGO_ACTION", "upload")
        .env("SFTPGO_ACTION_STATUS", "1")
        .env("SFTPGO_ACTION_PATH", device.join("x.tsv"));
    assert_eq!(hook.status().expect("the hook starts").code(), Some(1));
    let log = place.log();
    assert!(log.contains("127.0.0.1:1"), "the server is named: {log}");
    assert!(log.contains("powerview failed with exit status 1"), "{log}");
    assert!(!log.contains("s3cret#token"), "{log}");
    assert!(log.lines().all(has_time));
    assert!(device.join("error/x.tsv").exists() && device.join("error/x.tsv.error.json").exists());
    let reports = fs::read_dir(place.path("sftpgo/logs/reports")).expect("the reports' folder");
    assert_eq!(reports.count(), 1);
}

/// The processes whose environment names this place, and the memory of all together in KiB.
fn processes_of(place: &Place) -> (usize, u64) {
    let needle = place.path("base").into_os_string();
    let mut count = 0;
    let mut kib = 0;
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if memchr_find(&environ, needle.as_bytes()) {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            count += 1;
            kib += line
                .and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    (count, kib)
}

fn memchr_find(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The files that powerview was called with, sorted, each once.
fn ingested(place: &Place) -> Vec<OsString> {
    let mut files: Vec<_> = place
        .calls("powerview")
        .into_iter()
        .flat_map(|call| call.args.into_iter().skip(3).step_by(2))
        .collect();
    files.sort();
    files.dedup();
    files
}

fn notes_left(place: &Place) -> usize {
    let queues = walkdir::WalkDir::new(place.path("sftpgo/logs/queue")).into_iter();
    queues
        .flatten()
        .filter(|entry| {
            entry.file_type().is_file()
                && entry.file_name() != ".lock"
                && !["tried", "turns"]
                    .map(OsStr::new)
                    .contains(&entry.path().parent().unwrap().file_name().unwrap())
        })
        .count()
}

/// Starts a call in the background, like SFTPGo.
fn start(place: &Place, action: &str, path: impl AsRef<Path>) -> std::process::Child {
    place
        .hook()
        .env("SFTPGO_ACTION", action)
        .env("SFTPGO_ACTION_PATH", path.as_ref())
        .env("SFTPGO_ACTION_STATUS", "1")
        .spawn()
        .expect("the hook starts")
}

/// The owner of the queues may put a link in place of a lock. A call of root that follows it would give the target away. A pipe
/// can be locked like a file.
#[test]
fn a_link_in_place_of_the_lock_of_a_queue_is_not_followed_and_a_pipe_not_waited_for() {
    if !installed("flock", "util-linux") || !installed("setsid", "util-linux") {
        return;
    }
    let place = Place::new();
    let upload = |name: &str| {
        let mut hook = place.hook();
        hook.env("SFTPGO_ACTION", "upload")
            .env("SFTPGO_ACTION_STATUS", "1")
            .env(
                "SFTPGO_ACTION_PATH",
                place.data(format!("acme/c/02001171/{name}")),
            );
        assert!(hook.status().expect("the hook starts").success());
    };
    upload("a.tsv");
    place.until("powerview is called", || {
        place.calls("powerview").len() == 1
    });
    let queues = fs::read_dir(place.path("sftpgo/logs/queue")).expect("queues");
    let queue = queues.flatten().map(|entry| entry.path());
    let queue = queue
        .filter(|path| path.join(".lock").exists())
        .collect::<Vec<_>>();
    let lock = queue[0].join(".lock");
    place.until("the worker has ended", || {
        let file = fs::File::open(&lock).expect("the lock");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    let target = place.path("of another");
    fs::write(&target, "kept").expect("a file");
    fs::remove_file(&lock).expect("removed");
    symlink(&target, &lock).expect("a link");
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&queue[0], Some(12_345), None).expect("another owner");
    }
    upload("b.tsv");
    place.until("powerview is called", || {
        place.calls("powerview").len() == 2
    });
    assert_eq!(fs::read(&target).expect("the file"), b"kept");
    let owner = fs::metadata(&target).expect("the file").uid();
    assert_eq!(owner, rustix::process::geteuid().as_raw());
    assert!(
        place
            .log()
            .contains("cannot be locked: .lock is a symbolic link"),
        "{}",
        place.log()
    );
    fs::remove_file(&lock).expect("removed");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &lock, mode).expect("a pipe");
    upload("c.tsv");
    place.until("powerview is called", || {
        place.calls("powerview").len() == 3
    });
}

/// While one call works, `calls` others leave their files to it and end.
fn calls_for_one_device(calls: usize) {
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    fs::write(place.path("powerview/wait"), "").expect("a file");
    let file = |n: usize| place.data(format!("a/c/02001171/{n:04}.tsv"));
    for chunk in (0..calls).collect::<Vec<_>>().chunks(100) {
        let children: Vec<_> = chunk
            .iter()
            .map(|n| start(&place, "upload", file(*n)))
            .collect();
        for mut child in children {
            assert!(child.wait().expect("an end").success());
        }
    }
    let (processes, kib) = processes_of(&place);
    assert!(
        (1..=6).contains(&processes),
        "{processes} processes work or wait"
    );
    assert!(kib < 100 * 1024, "{kib} KiB");
    fs::write(place.path("powerview/go"), "").expect("a file");
    place.until("all files are passed on", || {
        ingested(&place).len() == calls
    });
    place.until("the worker has ended", || processes_of(&place).0 == 0);
    assert_eq!(
        ingested(&place),
        (0..calls)
            .map(|n| file(n).into_os_string())
            .collect::<Vec<_>>()
    );
    assert!(
        place.calls("powerview").len() <= 1 + calls.div_ceil(200) + 1,
        "files are passed in groups"
    );
    assert_eq!(notes_left(&place), 0);
}

/// The number of turns, as in the hook.
const TURNS: usize = 32;

/// The files of the turns, with a lock on each until they are dropped.
fn taken_turns(place: &Place) -> Vec<fs::File> {
    let folder = place.path("sftpgo/logs/queue/turns");
    fs::create_dir_all(&folder).expect("a folder");
    (0..TURNS)
        .map(|turn| {
            let file = fs::File::create(folder.join(turn.to_string())).expect("a file");
            file.lock().expect("a lock");
            file
        })
        .collect()
}

/// The processes of a place that wait for a turn.
fn waiting_for_a_turn(place: &Place) -> usize {
    let needle = place.path("base").into_os_string();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let read = |process: &fs::DirEntry, name: &str| {
        fs::read(process.path().join(name)).unwrap_or_default()
    };
    processes
        .filter(|process| {
            read(process, "cmdline").starts_with(b"flock\0-w\0")
                && memchr_find(&read(process, "environ"), needle.as_bytes())
        })
        .count()
}

#[test]
fn a_crowd_of_devices_is_ingested_in_turns() {
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    let devices = 3 * TURNS;
    let program = place.path("powerview/powerview");
    let waits = RECORDER.replace(
        "[[ -e $here/wait ]] &&",
        "mktemp \"$here/started.XXXXXX\"\n",
    );
    put_program(&program, &waits);
    let started = || {
        let files = fs::read_dir(place.path("powerview")).expect("a folder");
        let names = files.flatten().map(|entry| entry.file_name());
        names
            .filter(|name| name.as_bytes().starts_with(b"started"))
            .count()
    };
    let file = |n: usize| place.data(format!("a/c/{n:08}/a.tsv"));
    for n in 0..devices {
        let mut call = start(&place, "upload", file(n));
        assert!(call.wait().expect("an end").success());
    }
    place.until("each worker runs or waits", || {
        started() + waiting_for_a_turn(&place) == devices
    });
    assert!((1..=TURNS).contains(&started()), "{} calls run", started());
    fs::write(place.path("powerview/go"), "").expect("a file");
    place.until("all files are passed on", || {
        ingested(&place).len() == devices
    });
    place.until("the workers have ended", || processes_of(&place).0 == 0);
    assert_eq!(notes_left(&place), 0);
}

#[test]
#[ignore = "slow: waits a minute for a turn"]
fn a_turn_is_waited_for_a_minute() {
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    let taken = taken_turns(&place);
    let file = place.data("a/c/02001171/a.tsv");
    let begin = Instant::now();
    assert!(place.act("upload", &file, "", "1").success());
    assert!(begin.elapsed() >= Duration::from_mins(1));
    assert_eq!(ingested(&place), [file.as_os_str()]);
    drop(taken);
}

#[test]
fn what_is_in_place_of_the_file_of_a_turn_is_not_followed_and_not_waited_for() {
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    let target = place.path("of another");
    fs::write(&target, "kept").expect("a file");
    let turns = place.path("sftpgo/logs/queue/turns");
    fs::create_dir_all(&turns).expect("a folder");
    let of = |turn: usize| turns.join(turn.to_string());
    for turn in 0..TURNS {
        symlink(&target, of(turn)).expect("a link");
    }
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(&turns, Some(12_345), None).expect("another owner");
    }
    let file = place.data("a/c/02001171/a.tsv");
    assert!(place.act("upload", &file, "", "1").success());
    assert_eq!(fs::read(&target).expect("the file"), b"kept");
    let owner = fs::metadata(&target).expect("the file").uid();
    assert_eq!(owner, rustix::process::geteuid().as_raw());
    for turn in 0..TURNS {
        fs::remove_file(of(turn)).expect("removed");
        if turn % 2 == 0 {
            fs::create_dir(of(turn)).expect("a folder");
        } else {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, of(turn), mode).expect("a pipe");
        }
    }
    let other = place.data("a/c/02001171/b.tsv");
    assert!(place.act("upload", &other, "", "1").success());
    assert_eq!(ingested(&place), [file.as_os_str(), other.as_os_str()]);
}

#[test]
fn calls_for_one_device_leave_their_files_to_the_one_that_works() {
    calls_for_one_device(40);
}

#[test]
#[ignore = "slow: a thousand calls of the hook"]
fn a_thousand_calls_for_one_device_leave_no_process_and_no_file_behind() {
    calls_for_one_device(1_000);
}

/// The real binary, called by a thousand uploads to one device at once. Samples the memory of all processes together,
/// in which shared pages count once.
#[test]
#[ignore = "slow: a thousand calls of the hook"]
fn a_thousand_calls_at_once_with_the_real_binary_need_100_mib_and_leave_no_file_raw() {
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    const CALLS: u32 = 1_000;
    let double = Double::start();
    let place = Place::new();
    let env = format!(
        "INFLUXDB_HOST={}\nINFLUXDB_ORG={ORG}\nINFLUXDB_ADMIN_TOKEN={TOKEN}\nTSV_TIMEZONE=UTC\n",
        double.url()
    );
    fs::write(place.path("base/.env"), env).expect("a file");
    let device = place.data("acme/c/02001171");
    fs::create_dir_all(&device).expect("a folder");
    for n in 0..CALLS {
        fs::write(device.join(format!("{n:04}.tsv")), good_file(n, 1)).expect("a file");
    }
    let peak = std::thread::scope(|scope| {
        for first in 0..16 {
            let (place, device) = (&place, &device);
            scope.spawn(move || {
                let mut children = Vec::new();
                for n in (first..CALLS).step_by(16) {
                    let mut hook = place.hook();
                    hook.env("POWERVIEW_BIN", env!("CARGO_BIN_EXE_powerview"))
                        .env("SFTPGO_ACTION", "upload")
                        .env("SFTPGO_ACTION_STATUS", "1")
                        .env("SFTPGO_ACTION_PATH", device.join(format!("{n:04}.tsv")));
                    children.push(hook.spawn().expect("the hook starts"));
                }
                for mut child in children {
                    assert!(child.wait().expect("an end").success());
                }
            });
        }
        let mut peak = (0, 0);
        // A process that is being started has no environment for a moment.
        let mut without_process = 0;
        while without_process < 50 {
            let now = pss_of(&place);
            peak = peak.max(now);
            if now.1 == 0 && peak.1 > 0 {
                without_process += 1;
                std::thread::sleep(Duration::from_millis(100));
            } else {
                without_process = 0;
            }
        }
        peak
    });
    let raw = fs::read_dir(&device).expect("the folder").flatten();
    let raw: Vec<_> = raw
        .map(|entry| entry.file_name())
        .filter(|name| name != "parsed" && name != LAYOUT_FILE)
        .collect();
    assert!(raw.is_empty(), "{raw:?}: {}", place.log());
    assert_eq!(
        fs::read_dir(device.join("parsed")).expect("parsed").count(),
        CALLS as usize
    );
    assert_eq!(notes_left(&place), 0);
    eprintln!("{} KiB in {} processes", peak.0, peak.1);
    assert!(peak.0 < 100 * 1024);
}

/// The memory of the processes whose environment names this place, in KiB, and their number.
fn pss_of(place: &Place) -> (u64, usize) {
    let needle = place.path("base").into_os_string();
    let mut all = (0, 0);
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if memchr_find(&environ, needle.as_bytes()) {
            let memory = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
            let line = memory.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            all = (all.0 + kib.unwrap_or(0), all.1 + 1);
        }
    }
    all
}

/// A call may leave its file at the moment at which the worker ends.
#[test]
fn no_file_is_forgotten_when_a_worker_ends() {
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    for n in 0..60 {
        let mut child = start(&place, "upload", place.data(format!("a/c/d/{n}.tsv")));
        if n % 3 == 0 {
            assert!(child.wait().expect("an end").success());
        } else {
            std::thread::spawn(move || child.wait());
        }
    }
    place.until("all files are passed on", || ingested(&place).len() == 60);
    place.until("no note is left", || notes_left(&place) == 0);
}

#[test]
fn the_next_call_takes_what_a_killed_worker_left() {
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    fs::write(place.path("powerview/wait"), "").expect("a file");
    for name in ["1.tsv", "2.tsv"] {
        let mut child = start(&place, "upload", place.data("a/c/d").join(name));
        assert!(child.wait().expect("an end").success());
    }
    assert_eq!(notes_left(&place), 2);
    // Kills the worker and what it started and still starts, by the id of each.
    let needle = place.path("base").into_os_string();
    place.until("the worker is gone", || {
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            if let Some(pid) = pid.and_then(Pid::from_raw)
                && memchr_find(&environ, needle.as_bytes())
            {
                let _already_gone = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        processes_of(&place).0 == 0
    });
    assert!(place.calls("powerview").is_empty());
    fs::write(place.path("powerview/go"), "").expect("a file");
    assert!(
        place
            .act("upload", place.data("a/c/d/3.tsv"), "", "1")
            .success()
    );
    let names = ["1.tsv", "2.tsv", "3.tsv"];
    assert_eq!(
        ingested(&place),
        names.map(|name| place.data("a/c/d").join(name).into_os_string())
    );
    assert_eq!(notes_left(&place), 0);
}

#[test]
fn many_new_campaigns_of_a_company_have_one_worker() {
    if !installed("python3", "python3") || !installed("flock", "util-linux") {
        return;
    }
    let place = Place::new();
    fs::write(place.path("ansible/wait"), "").expect("a file");
    for n in 0..12 {
        let mut child = start(&place, "mkdir", place.data(format!("acme/c{n}")));
        assert!(child.wait().expect("an end").success());
    }
    let (processes, _) = processes_of(&place);
    assert!(
        (1..=6).contains(&processes),
        "{processes} processes work or wait"
    );
    fs::write(place.path("ansible/go"), "").expect("a file");
    place.until("all dashboards are made", || {
        place.calls("ansible").len() == 12
    });
    place.until("no note is left", || notes_left(&place) == 0);
}

/// A place with the playbook and the rule for names, and a hook that waits one second for the lock on the playbook.
fn place_with_playbook() -> (Place, PathBuf) {
    let place = Place::new();
    let playbooks = place.path("base/grafana-automation/playbooks");
    fs::create_dir_all(playbooks.join("filter_plugins")).expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = "filter_plugins/powerview.py";
    fs::copy(
        root.join("grafana-automation/playbooks").join(names),
        playbooks.join(names),
    )
    .expect("a copy");
    let playbook = playbooks.join("create_grafana_resources.yml");
    fs::write(&playbook, "").expect("a file");
    (place, playbook)
}

#[test]
fn ansible_does_not_run_without_its_lock() {
    if !installed("python3", "python3") || !installed("flock", "util-linux") {
        return;
    }
    let (place, playbook) = place_with_playbook();
    let text = fs::read_to_string(HOOK).expect("the hook");
    assert!(text.contains("ANSIBLE_SECONDS=1200"));
    let hook = place.path("base/on-upload.sh");
    fs::write(
        &hook,
        text.replace("ANSIBLE_SECONDS=1200", "ANSIBLE_SECONDS=1"),
    )
    .expect("a script");
    let mkdir = || {
        let mut command = Command::new("bash");
        command
            .arg(&hook)
            .env_clear()
            .envs(place.hook().get_envs().filter_map(|(k, v)| Some((k, v?))));
        command
            .env("POWERVIEW_HOOK_FOREGROUND", "1")
            .env("SFTPGO_ACTION", "mkdir")
            .env("SFTPGO_ACTION_PATH", place.data("acme/c"));
        command.status().expect("the hook starts")
    };
    let lock = fs::File::open(&playbook).expect("the playbook");
    lock.lock().expect("the lock");
    assert!(!mkdir().success());
    assert!(place.calls("ansible").is_empty(), "it ran at the same time");
    assert!(
        place
            .log()
            .contains("another run of Ansible did not end in 1 s"),
        "{}",
        place.log()
    );
    assert_eq!(notes_left(&place), 1);
    drop(lock);
    assert!(mkdir().success());
    assert_eq!(
        place.calls("ansible").len(),
        1,
        "the note and the call are the same campaign"
    );
    assert_eq!(notes_left(&place), 0);
}

/// The worker of one company did not get the lock of Ansible; the next event is one of another company.
#[test]
fn dashboards_that_were_left_are_made_at_the_next_event_of_any_company() {
    if !installed("python3", "python3") || !installed("flock", "util-linux") {
        return;
    }
    let (place, _) = place_with_playbook();
    let left = place.data("acme/c");
    fs::create_dir_all(place.path("sftpgo/logs/queue/dashboards-left")).expect("a folder");
    let note = [left.as_os_str().as_bytes(), b"\0"].concat();
    fs::write(place.path("sftpgo/logs/queue/dashboards-left/1.1"), note).expect("a note");
    assert!(place.act("mkdir", place.data("beta/c"), "", "1").success());
    let campaigns: Vec<String> = place
        .calls("ansible")
        .iter()
        .map(|call| {
            call.args
                .last()
                .expect("variables")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(campaigns.len(), 2, "{campaigns:?}");
    for company in ["acme", "beta"] {
        let made = campaigns.iter().filter(|vars| vars.contains(company));
        assert_eq!(made.count(), 1, "{company}: {campaigns:?}");
    }
    assert_eq!(notes_left(&place), 0);
}

/// A client makes "New folder" and renames it.
#[test]
fn a_folder_that_is_renamed_to_a_campaign_gets_a_dashboard() {
    if !installed("python3", "python3") {
        return;
    }
    for (target, status, made) in [
        ("acme/campaign", "1", true),
        ("acme/campaign/", "1", true),
        ("acme/campaign", "3", false),
        ("acme/file.tsv", "1", false),
        ("acme/link", "1", false),
        ("acme", "1", false),
        ("acme/campaign/02001171", "1", false),
        ("acme/parsed", "1", false),
        ("acme/..", "1", false),
    ] {
        let place = Place::new();
        fs::create_dir_all(place.data("acme/campaign/02001171")).expect("a folder");
        fs::write(place.data("acme/file.tsv"), "").expect("a file");
        std::os::unix::fs::symlink("campaign", place.data("acme/link")).expect("a link");
        let target_path = place.path("sftpgo/data").join(target);
        let exit = place.act("rename", place.data("acme/New folder"), target_path, status);
        assert!(exit.success(), "{target}");
        let calls = place.calls("ansible").len();
        assert_eq!(
            calls,
            usize::from(made),
            "{target} {status}: {}",
            place.log()
        );
        assert!(place.calls("powerview").is_empty());
    }
}

#[test]
fn an_upload_into_a_campaign_without_a_dashboard_creates_it_at_most_once_an_hour() {
    if !installed("python3", "python3") || !installed("flock", "util-linux") {
        return;
    }
    let (place, _) = place_with_playbook();
    fs::create_dir_all(place.data("acme/c/02001171")).expect("a folder");
    let upload = |name: &str| {
        let file = place.data("acme/c/02001171").join(name);
        assert!(place.act("upload", file, "", "1").success());
        place.calls("ansible").len()
    };
    fs::write(place.path("ansible/status"), "4").expect("a file");
    assert_eq!(upload("1.tsv"), 1);
    let vars = place.calls("ansible")[0].args[4]
        .to_string_lossy()
        .into_owned();
    let vars: Value = serde_json::from_str(&vars).expect("JSON");
    assert_eq!(vars, json!({"company_name": "acme", "campaign_name": "c"}));
    assert_eq!(upload("2.tsv"), 1, "the attempt was less than an hour ago");
    let tried = fs::read_dir(place.path("sftpgo/logs/queue/tried")).expect("a folder");
    for file in tried {
        let at = std::time::SystemTime::now() - Duration::from_secs(3_601);
        let at = at
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a time")
            .as_secs();
        fs::write(file.expect("an entry").path(), format!("{at}\n")).expect("a file");
    }
    assert_eq!(upload("3.tsv"), 2);
    fs::remove_dir_all(place.path("sftpgo/logs/queue/tried")).expect("a folder");
    fs::write(place.data("acme/c/.dashboard.created"), "").expect("a file");
    assert_eq!(upload("4.tsv"), 2, "it has its dashboard");
}
