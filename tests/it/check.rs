//! `powerview check`: rights, free space, time zone, Grafana and SFTPGo.

use crate::grafana_double::{Double, PASSWORD, USER};
use crate::harness::{Call, DEVICE, NOBODY, Run, Site, Tmpfs, good_file, put_program};
use crate::influx_double::{self, Fault};
use crate::skipped::skipped;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

fn site() -> Site {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    site
}

fn check(site: &Site) -> Call<'_> {
    site.bare()
        .env("SFTPGO_CONFIG_DIR", site.dir.path().join("sftpgo"))
        .args(["check", "-d"])
        .arg(site.data())
}

/// The lines of a check, such as `FAIL Grafana ...`, without the blanks after the mark and the name.
#[track_caller]
fn lines(run: Run, name: &str) -> Vec<String> {
    let run = run.clean();
    let lines: Vec<String> = run
        .stdout
        .lines()
        .filter(|line| line[5..].starts_with(name))
        .map(|line| {
            let message = line[5 + name.len()..].trim_start();
            format!("{} {message}", line[..5].trim_end())
        })
        .collect();
    assert!(
        !lines.is_empty(),
        "no line {name}: {}{}",
        run.stdout,
        run.stderr
    );
    lines
}

#[track_caller]
fn assert_line(run: Run, name: &str, mark: &str, words: &[&str]) {
    let found = lines(run, name);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with(&format!("{mark} ")),
        "not {mark}: {}",
        found[0]
    );
    for word in words {
        assert!(found[0].contains(word), "{word:?} is not in: {}", found[0]);
    }
}

// ------------------------------------------------------------------------------------------------- time zone

#[test]
fn utc_that_was_not_chosen_is_a_warning() {
    let site = site();
    let zone = |tz: &str, setting: &str| {
        let call = check(&site).env("TZ", tz).env("TSV_TIMEZONE", setting);
        call.run()
    };
    for tz in ["UTC", "Etc/UTC", "UTC0", ":Zulu"] {
        assert_line(zone(tz, ""), "time zone", "warn", &["set TSV_TIMEZONE"]);
        assert_line(zone(tz, "UTC"), "time zone", "ok", &["UTC (TSV_TIMEZONE)"]);
    }
    assert_line(
        zone("Europe/Paris", ""),
        "time zone",
        "ok",
        &["Europe/Paris"],
    );
    // A place whose time is that of UTC was chosen.
    assert_line(
        zone("Africa/Abidjan", ""),
        "time zone",
        "ok",
        &["Africa/Abidjan"],
    );
}

// ------------------------------------------------------------------------------------------------- rights

/// Gives the site to the user of the hook. Returns false and skips the calling test if this process is not root.
fn give_to_hook_user(site: &Site) -> bool {
    if !rustix::process::geteuid().is_root() {
        skipped("root", "run the tests as root: another user is needed");
        return false;
    }
    for entry in walkdir::WalkDir::new(site.dir.path()) {
        let entry = entry.expect("an entry");
        std::os::unix::fs::lchown(entry.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    true
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn root_checks_the_rights_of_the_owner_of_the_data_folder() {
    let site = site();
    for folder in [DEVICE.parsed(""), DEVICE.error("")] {
        site.make_dir(folder);
    }
    // Found before the .env beside the program, whose folder may be closed to the user.
    fs::write(site.dir.path().join("cwd/.env"), "").expect("a file");
    if !give_to_hook_user(&site) {
        return;
    }
    let run = check(&site).run();
    assert!(!run.stdout.contains("device folders"), "{}", run.stdout);
    assert_line(run, "user", "ok", &["nobody"]);
    assert_line(check(&site).run(), "reports", "ok", &[]);

    // Root can write to all of these, their user cannot.
    for (folder, name) in [
        (site.path(DEVICE.file("")), "device folders"),
        (site.path(DEVICE.parsed("")), "device folders"),
        (site.path(DEVICE.error("")), "device folders"),
        (site.reports_dir(), "reports"),
        (site.data(), "data folder"),
    ] {
        std::os::unix::fs::chown(&folder, Some(0), Some(0)).expect("chown");
        set_mode(&folder, 0o755);
        // The device folders tell the owner if the data folder belongs to root.
        let run = check(&site).run();
        assert_eq!(run.code(), 1, "{}", run.stdout);
        let shown = folder.display().to_string();
        assert_line(run, name, "FAIL", &[shown.trim_end_matches('/')]);
        std::os::unix::fs::chown(&folder, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
}

#[test]
fn root_checks_that_the_hook_can_be_executed_and_dot_env_read_by_its_user() {
    let site = site();
    let base = site.dir.path().join("base");
    fs::create_dir(&base).expect("a folder");
    put_program(&base.join("on-upload.sh"), "#!/bin/sh\n");
    fs::write(base.join(".env"), "TSV_JOBS=1\n").expect("a file");
    if !give_to_hook_user(&site) {
        return;
    }
    let run = || check(&site).env("POWERVIEW_BASE", &base).run();
    assert_line(run(), "hook", "ok", &["on-upload.sh is executable"]);
    for file in ["on-upload.sh", ".env"] {
        std::os::unix::fs::chown(base.join(file), Some(0), Some(0)).expect("chown");
    }
    set_mode(&base.join("on-upload.sh"), 0o744);
    assert_line(run(), "hook", "FAIL", &["chmod +x"]);
    set_mode(&base.join(".env"), 0o600);
    let run = run().expect(2);
    assert!(
        run.stderr.contains("cannot read") && run.stderr.contains("base/.env"),
        "{}",
        run.stderr
    );
}

// ------------------------------------------------------------------------------------------------- space

#[test]
fn a_full_or_almost_full_file_system_is_reported() {
    let site = Site::new();
    let Some(disk) = Tmpfs::mount(site.data(), "size=4m") else {
        return;
    };
    let filler = site.path("filler");
    let fill = |kibibytes: usize| {
        fs::write(&filler, vec![0; kibibytes * 1024]).expect("a file");
        check(&site).run()
    };
    let data_line = |run: Run| lines(run, "free space").remove(0);
    let line = data_line(fill(2048));
    assert!(line.starts_with("ok 2 MiB are free"), "{line}");
    // Five percent of 4 MiB are 205 KiB.
    let line = data_line(fill(4096 - 128));
    assert!(line.starts_with("warn only 0 MiB of 4 MiB"), "{line}");
    let run = fill(4096);
    assert_eq!(run.code(), 1);
    let line = data_line(run);
    assert!(line.starts_with("FAIL no space is free"), "{line}");
    drop(disk);

    // The reports are on another disk.
    let Some(_disk) = Tmpfs::mount(site.data(), "size=4m,nr_inodes=3") else {
        return;
    };
    let line = data_line(check(&site).run());
    assert!(line.starts_with("ok "), "{line}");
    for name in ["a", "b"] {
        site.put(name, "");
    }
    let line = data_line(check(&site).run());
    assert!(line.starts_with("FAIL no inode is free"), "{line}");
}

#[test]
fn the_file_system_of_the_reports_is_checked_too_if_it_is_another() {
    let site = site();
    fs::create_dir(site.reports_dir()).expect("a folder");
    assert_eq!(lines(check(&site).run(), "free space").len(), 1);
    let Some(_disk) = Tmpfs::mount(site.reports_dir(), "size=1m") else {
        return;
    };
    let found = lines(check(&site).run(), "free space");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[1].contains("reports"), "{found:#?}");
}

// ------------------------------------------------------------------------------------------------- Grafana

/// The uids of the alert rules that are provisioned.
pub fn shipped_rules() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("grafana-automation/provisioning/alerting/rules.yaml");
    let rules: serde_json::Value =
        serde_yaml_ng::from_str(&fs::read_to_string(file).expect("rules")).expect("YAML");
    let groups = rules["groups"].as_array().expect("groups").iter();
    groups
        .flat_map(|group| group["rules"].as_array().expect("rules"))
        .map(|rule| rule["uid"].as_str().expect("a uid").to_owned())
        .collect()
}

fn with_grafana<'a>(site: &'a Site, url: &str) -> Call<'a> {
    check(site)
        .env("GRAFANA_URL", url)
        .env("GRAFANA_USERNAME", USER)
        .env("GRAFANA_PASSWORD", PASSWORD)
}

#[test]
fn the_user_and_the_provisioning_of_grafana_are_checked() {
    let site = site();
    let double = Double::start();
    let run = || with_grafana(&site, &double.url).run();
    assert_line(run(), "Grafana", "ok", &[&double.url, "admin"]);
    assert_line(
        run(),
        "provisioning",
        "FAIL",
        &["powerview-meta", "uid 472"],
    );

    let source = json!({"uid": "powerview-meta", "type": "influxdb"});
    let add = |token: &str| {
        let secrets = json!({ "token": token });
        double
            .state()
            .add_data_source("powerview_meta", source.clone(), secrets);
    };
    add("");
    assert_line(
        run(),
        "provisioning",
        "warn",
        &["POWERVIEW_META_READ_TOKEN"],
    );
    add("read-secret");
    let rules = shipped_rules();
    assert!(rules.len() >= 5, "{rules:?}");
    assert_line(
        run(),
        "provisioning",
        "FAIL",
        &rules.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    double.state().rules = rules[1..].to_vec();
    assert_line(run(), "provisioning", "FAIL", &[&rules[0]]);
    double.state().rules = rules;
    assert_line(run(), "provisioning", "ok", &["alert rules"]);
    assert_eq!(double.state().changes, [""; 0]);
}

#[test]
fn what_hinders_the_sign_in_to_grafana_is_named() {
    let site = site();
    let double = Double::start();
    let call = || with_grafana(&site, &double.url);
    for call in [
        call().env("GRAFANA_PASSWORD", "wrong"),
        call().env("GRAFANA_USERNAME", "nobody"),
    ] {
        let run = call.run();
        assert!(!run.stdout.contains("provisioning"), "{}", run.stdout);
        assert_line(
            run,
            "Grafana",
            "FAIL",
            &["refuses the user", "GRAFANA_PASSWORD"],
        );
    }
    let run = call().no_env("GRAFANA_PASSWORD").run();
    assert_line(run, "Grafana", "FAIL", &["GRAFANA_PASSWORD is not set"]);
    assert_line(
        call().env("GRAFANA_URL", "grafana").run(),
        "Grafana",
        "FAIL",
        &["GRAFANA_URL is"],
    );
    let run = with_grafana(&site, "http://127.0.0.1:1").run();
    assert_line(run, "Grafana", "FAIL", &["refused", "start Grafana"]);
    // Something else answers there.
    let influx = influx_double::Double::start();
    influx.fault_all(Fault::Html(200));
    assert_line(
        with_grafana(&site, &influx.url()).run(),
        "Grafana",
        "FAIL",
        &["is not Grafana"],
    );
    assert_line(check(&site).run(), "Grafana", "-", &["not configured"]);
}

#[test]
fn a_redirection_of_grafana_is_not_followed() {
    let site = site();
    let double = Double::start();
    let server = tiny_http::Server::http("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", server.server_addr());
    let target = format!("Location: {}/api/org", double.url);
    std::thread::spawn(move || {
        for request in server.incoming_requests() {
            let location: tiny_http::Header = target.parse().expect("a header");
            let response = tiny_http::Response::empty(302).with_header(location);
            let _ = request.respond(response);
        }
    });
    assert_line(
        with_grafana(&site, &url).run(),
        "Grafana",
        "FAIL",
        &["status 302"],
    );
    assert_eq!(double.state().requests, [""; 0]);
}

// ------------------------------------------------------------------------------------------------- SFTPGo

/// The hook and the settings of SFTPGo of a site.
struct Sftpgo {
    site: Site,
    hook: PathBuf,
}

impl Sftpgo {
    fn new() -> Self {
        let site = site();
        let base = site.dir.path().join("base");
        for folder in ["base", "sftpgo", "sftpgo/env.d"] {
            fs::create_dir(site.dir.path().join(folder)).expect("a folder");
        }
        let hook = base.join("on-upload.sh");
        put_program(&hook, "#!/bin/sh\n");
        Self { site, hook }
    }

    /// Writes a file of settings, in which `HOOK` is the path of the hook.
    fn write(&self, name: &str, text: &str) {
        let text = text.replace("HOOK_PATH", &self.hook.display().to_string());
        fs::write(self.site.dir.path().join("sftpgo").join(name), text).expect("a file");
    }

    fn run(&self) -> Run {
        let base = self.hook.parent().expect("a folder");
        check(&self.site).env("POWERVIEW_BASE", base).run()
    }
}

#[test]
fn both_shipped_settings_of_sftpgo_call_the_hook() {
    let sftpgo = Sftpgo::new();
    assert_line(
        sftpgo.run(),
        "SFTPGo",
        "-",
        &["not configured", "SFTPGO_CONFIG_DIR"],
    );
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/sftpgo.env");
    let shipped = fs::read_to_string(shipped)
        .expect("the settings")
        .replace("/srv/powerview/on-upload.sh", "HOOK_PATH");
    sftpgo.write("sftpgo.env", &shipped);
    assert_line(
        sftpgo.run(),
        "SFTPGo",
        "ok",
        &["each upload, rename and mkdir"],
    );
    // The alternative at its end.
    let alternative = shipped.replace("\n# SFTPGO_", "\nSFTPGO_");
    sftpgo.write("sftpgo.env", &alternative);
    assert_line(
        sftpgo.run(),
        "SFTPGo",
        "ok",
        &["each mkdir and after each session"],
    );
    for line in alternative.lines().filter(|line| {
        line.starts_with("SFTPGO_COMMON__POST") || line.starts_with("SFTPGO_COMMAND__")
    }) {
        sftpgo.write("sftpgo.env", &alternative.replace(line, ""));
        assert_line(sftpgo.run(), "SFTPGo", "FAIL", &["for upload and rename"]);
    }
}

#[test]
fn settings_of_sftpgo_that_do_not_call_the_hook_fail() {
    let sftpgo = Sftpgo::new();
    let actions = "SFTPGO_COMMON__ACTIONS__EXECUTE_ON";
    let hook = "SFTPGO_COMMON__ACTIONS__HOOK";
    for (text, words) in [
        (String::new(), "it calls no hook"),
        (
            format!("{actions}=upload,rename,mkdir\n"),
            "it calls no hook",
        ),
        (
            format!("{hook}=HOOK_PATH\n"),
            "for upload and rename and mkdir",
        ),
        (
            format!("{hook}=HOOK_PATH\n{actions}=upload,mkdir\n"),
            "for rename;",
        ),
        (
            format!("{hook}=/bin/true\n{actions}=upload,rename,mkdir\n"),
            "it calls /bin/true, which is not",
        ),
        (
            format!("{hook}=HOOK_PATH.old\n{actions}=upload,rename,mkdir\n"),
            "which is not",
        ),
    ] {
        sftpgo.write("sftpgo.env", &text);
        let run = sftpgo.run();
        assert_eq!(run.code(), 1, "{}", run.stdout);
        assert_line(run, "SFTPGo", "FAIL", &[words, "restart SFTPGo"]);
    }
}

#[test]
fn the_json_file_of_sftpgo_is_read_and_variables_take_precedence() {
    let sftpgo = Sftpgo::new();
    let json = r#"{"common": {"setstat_mode": 1, "actions": {"execute_on": ["upload", "rename", "mkdir"], "hook": "HOOK_PATH"}}}"#;
    sftpgo.write("sftpgo.json", json);
    assert_line(sftpgo.run(), "SFTPGo", "ok", &["each upload"]);
    sftpgo.write("env.d/hook.env", "SFTPGO_COMMON__ACTIONS__HOOK=/bin/true\n");
    assert_line(sftpgo.run(), "SFTPGo", "FAIL", &["/bin/true"]);
    sftpgo.write("sftpgo.env", "SFTPGO_COMMON__ACTIONS__HOOK='HOOK_PATH'\n");
    assert_line(sftpgo.run(), "SFTPGo", "ok", &["each upload"]);
    sftpgo.write("sftpgo.json", "{");
    assert_line(
        sftpgo.run(),
        "SFTPGo",
        "warn",
        &["sftpgo.json", "correct it"],
    );
}

#[test]
fn a_link_to_the_hook_is_the_hook() {
    let sftpgo = Sftpgo::new();
    let link = sftpgo.site.dir.path().join("link");
    std::os::unix::fs::symlink(&sftpgo.hook, &link).expect("a link");
    let text = format!(
        "SFTPGO_COMMON__ACTIONS__EXECUTE_ON=mkdir, upload, rename\nSFTPGO_COMMON__ACTIONS__HOOK={}\nSFTPGO_COMMON__SETSTAT_MODE=1\n",
        link.display()
    );
    sftpgo.write("sftpgo.env", &text.replace(", ", ","));
    assert_line(sftpgo.run(), "SFTPGo", "ok", &[]);
}

#[test]
fn settings_of_sftpgo_that_let_clients_set_times_are_a_warning() {
    let sftpgo = Sftpgo::new();
    let hook = "SFTPGO_COMMON__ACTIONS__EXECUTE_ON=upload,rename,mkdir\nSFTPGO_COMMON__ACTIONS__HOOK=HOOK_PATH\n";
    // Mode 2 ignores the times of files in cloud storage only.
    for mode in [
        "",
        "SFTPGO_COMMON__SETSTAT_MODE=0\n",
        "SFTPGO_COMMON__SETSTAT_MODE=2\n",
    ] {
        sftpgo.write("sftpgo.env", &format!("{hook}{mode}"));
        let run = sftpgo.run();
        assert_line(run, "SFTPGo", "warn", &["SFTPGO_COMMON__SETSTAT_MODE=1"]);
    }
}
