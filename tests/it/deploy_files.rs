//! The files of an installation: compose.yaml, .env.sample and the files of `deploy/`, each checked by the program that
//! reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::put_program;
use crate::skipped::{installed, skipped};

const SECRETS: [&str; 3] = [
    "INFLUXDB_ADMIN_TOKEN",
    "INFLUXDB_ADMIN_PASSWORD",
    "GRAFANA_PASSWORD",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A copy of compose.yaml with a `.env` of these lines.
fn compose_folder(env: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("compose.yaml"), read("compose.yaml")).expect("a file");
    fs::write(dir.path().join(".env"), env).expect("a file");
    dir
}

/// The sample with all secrets but one.
fn filled_in(without: &str) -> String {
    let fill = |line: &str| match SECRETS.iter().find(|s| line == format!("# {s}=")) {
        Some(secret) if *secret != without => format!("{secret}=s3cret-{}", secret.len()),
        _ => line.to_owned(),
    };
    read(".env.sample")
        .lines()
        .map(|l| fill(l) + "\n")
        .collect()
}

/// `docker compose` if the client has it, otherwise Debian's docker-compose.
fn docker_compose() -> Option<Command> {
    let plugin = Command::new("docker")
        .args(["compose", "version"])
        .output()
        .is_ok_and(|o| o.status.success());
    let mut command = Command::new(if plugin { "docker" } else { "docker-compose" });
    if plugin {
        command.arg("compose");
    } else if !installed("docker-compose", "docker-compose") {
        return None;
    }
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent");
    Some(command)
}

#[test]
fn compose_is_valid_with_the_sample_and_listens_on_this_machine_only() {
    let dir = compose_folder(&filled_in(""));
    let Some(mut command) = docker_compose() else {
        return;
    };
    let output = command
        .arg("config")
        .current_dir(dir.path())
        .output()
        .expect("compose starts");
    assert!(output.status.success(), "{}", text(&output));
    let shown = text(&output);
    for secret in SECRETS {
        assert!(
            shown.contains(&format!("s3cret-{}", secret.len())),
            "{secret} is not used:\n{shown}"
        );
    }
    let compose = read("compose.yaml");
    let ports: Vec<&str> = compose
        .lines()
        .map(str::trim)
        .filter(|l| l.starts_with("- \"") && l.contains(':'))
        .collect();
    assert_eq!(
        ports,
        ["- \"127.0.0.1:8086:8086\"", "- \"127.0.0.1:8088:3000\""]
    );
    let images: Vec<&str> = compose
        .lines()
        .filter_map(|l| l.trim().strip_prefix("image: "))
        .collect();
    assert_eq!(images.len(), 2);
    for image in images {
        let tag = image.rsplit(':').next().expect("a tag");
        assert_eq!(tag.split('.').count(), 3, "{image} is not pinned");
    }
    assert_eq!(compose.matches("healthcheck:").count(), 2);
    let mounts: Vec<&str> = compose
        .lines()
        .filter_map(|l| l.trim().strip_prefix("- ./"))
        .collect();
    assert_eq!(mounts.len(), 4);
    for mount in mounts {
        let (here, there) = mount.split_once(':').expect("a mount");
        assert!(root().join(here).exists(), "{here} is not there");
        assert!(there.ends_with(":ro"), "{mount}");
    }
}

#[test]
fn compose_does_not_start_without_a_secret() {
    for missing in SECRETS {
        let Some(mut command) = docker_compose() else {
            return;
        };
        let dir = compose_folder(&filled_in(missing));
        let output = command
            .arg("config")
            .current_dir(dir.path())
            .output()
            .expect("compose starts");
        assert!(!output.status.success(), "started without {missing}");
        assert!(
            text(&output).contains(&format!("{missing} is not set in .env")),
            "{}",
            text(&output)
        );
        // An empty variable is not set.
        let empty = filled_in(missing).replace(&format!("# {missing}="), &format!("{missing}="));
        fs::write(dir.path().join(".env"), empty).expect("a file");
        let mut command = docker_compose().expect("it is there");
        let output = command
            .arg("config")
            .current_dir(dir.path())
            .output()
            .expect("compose starts");
        assert!(!output.status.success(), "started with an empty {missing}");
    }
}

/// compose.yaml as compose reads it with this `.env`.
pub fn compose_config(env: &str) -> Option<serde_json::Value> {
    let dir = compose_folder(env);
    let mut command = docker_compose()?;
    let output = command.arg("config").current_dir(dir.path()).output();
    let output = output.expect("compose starts");
    assert!(output.status.success(), "{}", text(&output));
    Some(serde_yaml_ng::from_slice(&output.stdout).expect("YAML"))
}

#[test]
fn the_names_of_the_volumes_are_kept_and_can_be_set() {
    let names = |config: &serde_json::Value| {
        ["influxdb-data", "influxdb-config", "grafana-data"].map(|volume| {
            config["volumes"][volume]["name"]
                .as_str()
                .map(str::to_owned)
        })
    };
    // The names that compose made of the folder /srv/powerview when the file had none.
    let Some(config) = compose_config(&filled_in("")) else {
        return;
    };
    let expected = [
        "powerview_influxdb-data",
        "powerview_influxdb-config",
        "powerview_grafana-data",
    ];
    assert_eq!(names(&config), expected.map(|name| Some(name.to_owned())));
    for service in ["influxdb", "grafana"] {
        assert_eq!(
            config["services"][service]["restart"], "always",
            "{service}"
        );
    }
    let env =
        filled_in("") + "INFLUXDB_DATA_VOLUME=a\nINFLUXDB_CONFIG_VOLUME=b\nGRAFANA_DATA_VOLUME=c\n";
    let config = compose_config(&env).expect("compose is there");
    assert_eq!(
        names(&config),
        ["a", "b", "c"].map(|name| Some(name.to_owned()))
    );
}

/// Runs the command that starts InfluxDB in its container, with the container's folders below `dir`.
fn start_influxdb(dir: &Path, ignore_old_volume: &str) -> Output {
    let compose: serde_json::Value =
        serde_yaml_ng::from_str(&read("compose.yaml")).expect("compose.yaml is YAML");
    let words = |key: &str| {
        let words = compose["services"]["influxdb"][key].as_array();
        let words = words.expect("a list").iter();
        words
            .map(|word| word.as_str().expect("a text").replace("$$", "$"))
            .collect::<Vec<_>>()
    };
    let folders = ["/old/", "/var/lib/influxdb2/", "/entrypoint.sh"];
    let command: Vec<String> = words("entrypoint")
        .iter()
        .chain(&words("command"))
        .map(|word| {
            folders.iter().fold(word.clone(), |word, folder| {
                word.replace(folder, &format!("{}{folder}", dir.display()))
            })
        })
        .collect();
    Command::new(&command[0])
        .args(&command[1..])
        .env_clear()
        .env("POWERVIEW_IGNORE_OLD_VOLUME", ignore_old_volume)
        .output()
        .expect("a shell starts")
}

#[test]
fn influxdb_does_not_start_empty_beside_the_database_of_an_older_installation() {
    for old in ["old/named", "old/project"] {
        let dir = tempfile::tempdir().expect("a folder");
        for folder in ["old/named", "old/project", "var/lib/influxdb2"] {
            fs::create_dir_all(dir.path().join(folder)).expect("a folder");
        }
        put_program(
            &dir.path().join("entrypoint.sh"),
            "#!/bin/sh\necho started \"$@\"\n",
        );
        let started = |output: Output| {
            let is_started = text(&output) == "started influxd\n";
            assert_eq!(is_started, output.status.success(), "{}", text(&output));
            is_started
        };
        // A new server.
        assert!(started(start_influxdb(dir.path(), "0")));
        // An old database, and none of this installation.
        fs::write(dir.path().join(old).join("influxd.bolt"), "").expect("a file");
        let output = start_influxdb(dir.path(), "0");
        for word in ["INFLUXDB_DATA_VOLUME", "POWERVIEW_IGNORE_OLD_VOLUME=1"] {
            assert!(text(&output).contains(word), "{}", text(&output));
        }
        assert!(!started(output));
        assert!(started(start_influxdb(dir.path(), "1")));
        // Both, as after the move.
        fs::write(dir.path().join("var/lib/influxdb2/influxd.bolt"), "").expect("a file");
        assert!(started(start_influxdb(dir.path(), "0")));
    }
    // The container has the old volumes there, by their names.
    let compose: serde_json::Value =
        serde_yaml_ng::from_str(&read("compose.yaml")).expect("compose.yaml is YAML");
    let mounts = compose["services"]["influxdb"]["volumes"]
        .as_array()
        .expect("volumes");
    for (mount, name) in [
        ("influxdb-old-named:/old/named:ro", "influxdb2-data"),
        (
            "influxdb-old-project:/old/project:ro",
            "powerview_influxdb2-data",
        ),
    ] {
        assert!(mounts.iter().any(|m| m == mount), "{mount}");
        let volume = mount.split(':').next().expect("a volume");
        assert_eq!(compose["volumes"][volume]["name"], name);
    }
}

/// podman-compose has no `config`. Its dry run prints the commands. A script replaces podman.
#[test]
fn podman_compose_accepts_it() {
    if !installed("podman-compose", "podman-compose") {
        return;
    }
    let up = |env: &str| {
        let dir = compose_folder(env);
        let podman = dir.path().join("podman");
        put_program(&podman, "#!/bin/sh\necho podman version 4.3.1\n");
        let mut command = Command::new("podman-compose");
        command
            .args(["--dry-run", "up", "-d"])
            .current_dir(dir.path())
            .env_clear();
        command
            .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
            .output()
            .expect("it starts")
    };
    let output = up(&filled_in(""));
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    // podman-compose 1.0 leaves an empty default as it is, and 1.3 each default of a variable that .env does not set.
    assert!(!shown.contains("${"), "{shown}");
    assert!(
        shown.contains("-p 127.0.0.1:8088:3000") && shown.contains("-p 127.0.0.1:8086:8086"),
        "{shown}"
    );
    assert!(
        shown.contains("GF_SECURITY_ADMIN_PASSWORD=s3cret-16"),
        "{shown}"
    );
    assert!(
        shown.contains("--healthcheck-command /bin/sh -c 'influx ping'"),
        "{shown}"
    );
    assert!(
        shown.contains("-v powerview_influxdb-data:/var/lib/influxdb2 ")
            && shown.contains("exec /entrypoint.sh \\\"$@\\\"")
            && shown.contains(" docker.io/library/influxdb:2.9.1 influxd\n"),
        "{shown}"
    );
    for missing in SECRETS {
        let output = up(&filled_in(missing));
        assert!(
            !output.status.success(),
            "started without {missing}: {}",
            text(&output)
        );
    }
}

#[test]
fn caddy_accepts_the_caddyfile() {
    if !installed("caddy", "caddy") {
        return;
    }
    let home = tempfile::tempdir().expect("a folder");
    let output = Command::new("caddy")
        .args(["validate", "--adapter", "caddyfile", "--config"])
        .arg(root().join("deploy/Caddyfile"))
        .env("HOME", home.path())
        .output()
        .expect("caddy starts");
    assert!(output.status.success(), "{}", text(&output));
    for port in ["8080", "8086", "8088"] {
        assert!(
            read("deploy/Caddyfile").contains(&format!("reverse_proxy 127.0.0.1:{port}")),
            "{port}"
        );
    }
}

#[test]
fn systemd_accepts_every_unit() {
    if !installed("systemd-analyze", "systemd") {
        return;
    }
    let units = [
        "powerview-sweep.service",
        "powerview-sweep.timer",
        "powerview-status.service",
        "powerview-failure@.service",
        "powerview-alerts.service",
        "powerview-verify.service",
        "powerview-verify.timer",
    ];
    // The programs of the units are not installed on this machine. Everything else is checked unchanged.
    let dir = tempfile::tempdir().expect("a folder");
    let program = format!("{}/deploy/report-failure", env!("CARGO_MANIFEST_DIR"));
    for unit in units {
        let here = read(&format!("deploy/{unit}"))
            .replace(
                "/srv/powerview/bin/powerview",
                env!("CARGO_BIN_EXE_powerview"),
            )
            .replace("/srv/powerview/deploy/report-failure", &program);
        fs::write(dir.path().join(unit), here).expect("a file");
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(units.map(|unit| unit.replace("@.", "@x.")))
        .current_dir(dir.path())
        .env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()))
        .output()
        .expect("systemd-analyze starts");
    let complaints: Vec<String> = text(&output)
        .lines()
        .filter(|l| l.contains("powerview-"))
        .map(str::to_owned)
        .collect();
    assert!(
        output.status.success() && complaints.is_empty(),
        "{}",
        text(&output)
    );

    for (unit, lines) in [
        (
            "powerview-sweep.service",
            vec![
                "ExecStart=/srv/powerview/bin/powerview --dataFolder /srv/sftpgo/data --retry-errors",
                "Wants=network-online.target powerview-alerts.service",
                "OnSuccess=powerview-status.service",
                "OnFailure=powerview-failure@%n.service powerview-status.service",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                "ReadWritePaths=/srv/sftpgo/data /srv/sftpgo/logs",
                "User=sftpgo",
            ],
        ),
        (
            "powerview-status.service",
            vec![
                "ExecStart=/srv/powerview/bin/powerview status --dataFolder /srv/sftpgo/data --silent-after 26h",
                "OnFailure=powerview-failure@%n.service",
                "ProtectSystem=strict",
                "ReadWritePaths=/srv/sftpgo/data /srv/sftpgo/logs",
            ],
        ),
        (
            "powerview-verify.service",
            vec![
                "ExecStart=-/srv/powerview/bin/powerview rollup --since 8d",
                "ExecStart=/srv/powerview/bin/powerview verify --dataFolder /srv/sftpgo/data --since 8d",
                "OnFailure=powerview-failure@%n.service",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                "ReadWritePaths=/srv/sftpgo/logs",
                "User=sftpgo",
            ],
        ),
        (
            "powerview-verify.timer",
            vec!["OnCalendar=Sun 03:00", "WantedBy=timers.target"],
        ),
    ] {
        let text = read(&format!("deploy/{unit}"));
        for line in lines {
            assert!(text.lines().any(|l| l == line), "{unit}: {line}");
        }
    }
}

/// Runs `deploy/report-failure` with doubles of the programs that it calls. Returns what was logged and mailed.
fn report_failure(dir: &std::path::Path, env_file: &str, times: usize) -> (String, String) {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).expect("a folder");
    for (name, script) in [
        ("logger", "echo \"$@\" >>\"$OUT/log\""),
        ("sendmail", "cat >>\"$OUT/mail\""),
        ("journalctl", "echo 'the reason in the journal'"),
    ] {
        let path = bin.join(name);
        put_program(&path, &format!("#!/bin/sh\n{script}\n"));
    }
    fs::write(dir.join(".env"), env_file).expect("a file");
    for _ in 0..times {
        let output = Command::new(format!(
            "{}/deploy/report-failure",
            env!("CARGO_MANIFEST_DIR")
        ))
        .arg("powerview-sweep.service")
        .current_dir(dir)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("OUT", dir)
        .env("STATE_DIRECTORY", dir)
        .env("SFTPGO_BASE", dir)
        .output()
        .expect("report-failure starts");
        assert!(output.status.success(), "{}", text(&output));
    }
    let printed = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    (printed("log"), printed("mail"))
}

#[test]
fn a_failed_unit_is_logged_each_time_and_mailed_once_if_env_has_an_address() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, mail) = report_failure(
        dir.path(),
        "POWERVIEW_ALERT_EMAIL='a@example.org;b@example.org'\n",
        2,
    );
    assert_eq!(
        log.matches("powerview-sweep.service failed").count(),
        2,
        "{log}"
    );
    assert!(mail.contains("To: a@example.org, b@example.org"), "{mail}");
    assert!(mail.contains("the reason in the journal"), "{mail}");
    assert_eq!(
        mail.matches("Subject:").count(),
        1,
        "one mail, not one an hour: {mail}"
    );
}

#[test]
fn without_an_address_a_failed_unit_is_only_logged_and_env_is_not_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let canary = dir.path().join("canary");
    let env = format!(
        "# POWERVIEW_ALERT_EMAIL=x@example.org\nOTHER=$(touch {})\n",
        canary.display()
    );
    let (log, mail) = report_failure(dir.path(), &env, 1);
    assert!(log.contains("powerview-sweep.service failed"), "{log}");
    assert_eq!(mail, "");
    assert!(!canary.exists());
}

/// A root folder in which the user sftpgo is the user of the tests.
fn with_sftpgo() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(dir.path().join("etc")).expect("a folder");
    let id = |flag: &str| {
        let output = Command::new("id").arg(flag).output().expect("id starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let (user, group) = (id("-u"), id("-g"));
    fs::write(
        dir.path().join("etc/passwd"),
        format!("sftpgo:x:{user}:{group}::/:/bin/false\n"),
    )
    .expect("a file");
    fs::write(dir.path().join("etc/group"), format!("sftpgo:x:{group}:\n")).expect("a file");
    dir
}

#[test]
fn reports_are_removed_after_ninety_days_and_alerts_after_seven() {
    if !installed("systemd-tmpfiles", "systemd") {
        return;
    }
    let dir = with_sftpgo();
    let logs = dir.path().join("srv/sftpgo/logs");
    let tmpfiles = |what: &str| {
        let mut command = Command::new("systemd-tmpfiles");
        command
            .arg(format!("--root={}", dir.path().display()))
            .arg(what)
            .arg(root().join("deploy/tmpfiles.conf"));
        let output = command.output().expect("systemd-tmpfiles starts");
        assert!(output.status.success(), "{}", text(&output));
    };
    tmpfiles("--create");
    let old = |path: PathBuf, days: &str| {
        fs::write(&path, "{}").expect("a file");
        let set = Command::new("touch")
            .args(["-d", &format!("{days} days ago")])
            .arg(&path)
            .status();
        assert!(set.expect("touch starts").success());
        path
    };
    let gone = old(logs.join("reports/tsv_parser_old.json"), "91");
    let kept = old(logs.join("reports/tsv_parser_young.json"), "89");
    let log = old(logs.join("uploads.log"), "400");
    let old_alert = old(logs.join("alerts/old.post"), "8");
    let alert = old(logs.join("alerts/young.post"), "6");
    tmpfiles("--clean");
    assert!(!gone.exists() && kept.exists() && log.exists());
    assert!(!old_alert.exists() && alert.exists());
}

#[test]
fn logrotate_accepts_its_file() {
    if !installed("logrotate", "logrotate") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let id = |flag: &str| {
        let output = Command::new("id").arg(flag).output().expect("id starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let shipped = read("deploy/logrotate");
    let logs = dir.path().join("srv/sftpgo/logs");
    fs::create_dir_all(&logs).expect("a folder");
    fs::write(logs.join("uploads.log"), "a line\n").expect("a file");
    // The test has no user sftpgo, and another path of the log.
    let here = shipped
        .replace("sftpgo sftpgo", &format!("{} {}", id("-un"), id("-gn")))
        .replace("/srv/sftpgo/logs", &logs.display().to_string());
    let file = dir.path().join("logrotate");
    fs::write(&file, here).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
    let rotate = |option: &str| {
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        let mut command = Command::new("logrotate");
        command
            .arg(option)
            .arg("--state")
            .arg(dir.path().join("state"))
            .arg(&file)
            .env("PATH", path);
        let output = command.output().expect("logrotate starts");
        assert!(
            output.status.success() && !text(&output).contains("error:"),
            "{}",
            text(&output)
        );
        text(&output)
    };
    let printed = rotate("--debug");
    assert!(
        printed.contains("considering log") && printed.contains("uploads.log"),
        "{printed}"
    );
    rotate("--force");
    assert!(logs.join("uploads.log.1").exists(), "the rotation itself");
}

/// The names after each `before` in a text.
fn names_after<'a>(text: &'a str, before: &str) -> impl Iterator<Item = &'a str> {
    text.match_indices(before).map(|(at, found)| {
        let rest = &text[at + found.len()..];
        let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path, endings));
        } else if endings.iter().any(|e| path.to_string_lossy().ends_with(e)) {
            all.push(path);
        }
    }
    all
}

/// The variables that the binary, the hook, the wrapper script, compose and the playbooks read, with the files.
fn variables_read() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let ours = |name: &str| {
        ["TZ", "TZDIR"].contains(&name)
            || [
                "TSV_",
                "INFLUXDB_",
                "GRAFANA_",
                "POWERVIEW_",
                "SFTPGO_",
                "ANSIBLE_PLAYBOOK_",
                "GF_SMTP_",
            ]
            .iter()
            .any(|p| name.starts_with(p) && name.len() > p.len())
    };
    let mut note = |name: &str, place: &Path| {
        // Variables from SFTPGo to its hook, and from the hook to Ansible, are not settings.
        if ours(name)
            && !name.starts_with("SFTPGO_ACTION")
            && !name.starts_with("SFTPGO_CONNECTION")
        {
            found.insert(name.to_owned(), place.display().to_string());
        }
    };
    for var in powerview::config::env_vars::ALL {
        note(var.name, Path::new("powerview"));
    }
    for path in files(
        &root().join("grafana-automation"),
        &[".yml", ".yaml", ".py", ".cfg"],
    ) {
        let text = fs::read_to_string(&path).expect("a source file");
        names_after(&text, ".env', '").for_each(|n| note(n, &path));
        names_after(&text, "$__env{").for_each(|n| note(n, &path));
        names_after(&text, "environ[\"").for_each(|n| note(n, &path));
    }
    for name in [
        "compose.yaml",
        "on-upload.sh",
        "tsv_parser.py",
        "deploy/report-failure",
    ] {
        let text = read(name);
        for before in ["${", "environ.get(\"", "environ[\""] {
            names_after(&text, before).for_each(|n| note(n, Path::new(name)));
        }
    }
    found
}

/// The variables of `.env.sample`, active or commented out. Each must be below a comment.
fn variables_of_the_sample() -> BTreeSet<String> {
    let text = read(".env.sample");
    let name_of = |line: &str| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        let (name, _) = line.split_once('=')?;
        let is_name = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        is_name.then(|| name.to_owned())
    };
    let mut names = BTreeSet::new();
    let mut before = "";
    for line in text.lines() {
        if let Some(name) = name_of(line) {
            assert!(
                before.starts_with("# ") && name_of(before).is_none(),
                "{name} has no line of comment before it"
            );
            assert!(names.insert(name), "{line} stands twice");
        }
        before = line;
    }
    names
}

#[test]
fn the_sample_lists_exactly_the_variables_that_are_read() {
    let read = variables_read();
    assert!(read.len() > 25, "{read:?}");
    let listed = variables_of_the_sample();
    for (name, place) in &read {
        assert!(
            listed.contains(name),
            "{place} reads {name}, which .env.sample lacks"
        );
    }
    for name in &listed {
        assert!(
            read.contains_key(name),
            ".env.sample has {name}, which nothing reads"
        );
    }
}

#[test]
fn the_table_of_variables_has_every_variable() {
    let page = read("docs/operations.md");
    let section = page.split_once("\n## Variables\n").expect("the section").1;
    let rows: BTreeSet<String> = section
        .lines()
        .filter_map(|l| l.strip_prefix("| `"))
        .filter_map(|l| l.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .filter(|n| {
            n.chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        })
        .collect();
    assert_eq!(rows, variables_of_the_sample());
}

/// The first block of shell commands in a section of the installation.
fn commands_of_step(title: &str) -> Vec<String> {
    let page = read("docs/installation.md");
    let step = page.split_once(title).expect("the step").1;
    let block = step.split_once("```sh\n").expect("commands").1;
    let block = block.split_once("```").expect("an end of the commands").0;
    block.lines().map(str::to_owned).collect()
}

/// The commands of the installation that set owners and modes below `/srv/powerview`.
fn commands_for_rights() -> Vec<String> {
    let sets_rights = |line: &String| {
        let sets = ["chown ", "chmod ", "find "];
        sets.iter().any(|s| line.starts_with(s)) && line.contains("/srv/powerview")
    };
    let mut commands = commands_of_step("\n## With a checkout\n");
    commands.retain(|line| line.contains(" .env.sample .env"));
    commands.extend(
        commands_of_step("\n### Rights of a checkout\n")
            .into_iter()
            .filter(sets_rights),
    );
    commands
}

/// All files and folders below a folder.
fn everything_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(everything_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Whether a process of this user and this group alone can read a file or list a folder.
fn can_read(path: &Path, uid: u32, gid: u32) -> bool {
    let reads = Command::new(if path.is_dir() { "ls" } else { "cat" })
        .arg(path)
        .uid(uid)
        .gid(gid)
        .output()
        .expect("the reader starts");
    reads.status.success()
}

/// Whether such a process can change a file or the content of a folder.
fn can_write(path: &Path, uid: u32, gid: u32) -> bool {
    let writes = Command::new("test")
        .arg("-w")
        .arg(path)
        .uid(uid)
        .gid(gid)
        .status();
    writes.expect("test starts").success()
}

#[test]
fn the_installation_lets_grafana_read_what_compose_mounts_but_no_secret() {
    let user = Command::new("id").arg("-u").output().expect("id starts");
    if user.stdout != b"0\n" {
        return skipped("root", "run the tests as root: owners are set");
    }
    // In its container, Grafana has the group root only.
    const GRAFANA: (u32, u32) = (472, 0);
    // Debian's "daemon" replaces the group sftpgo, which may not exist.
    const SFTPGO: (u32, u32) = (65_533, 1);
    let compose: serde_json::Value =
        serde_yaml_ng::from_str(&read("compose.yaml")).expect("compose.yaml is YAML");
    let volumes = compose["services"].as_object().expect("services").values();
    let mounted: Vec<String> = volumes
        .flat_map(|service| service["volumes"].as_array().into_iter().flatten())
        .filter_map(|volume| {
            let source = volume.as_str().expect("a short volume").split(':').next()?;
            source.strip_prefix("./").map(str::to_owned)
        })
        .collect();
    assert!(mounted.len() >= 4, "{mounted:?}");
    let commands = commands_for_rights();
    assert!(commands.len() >= 3, "{commands:?}");

    for umask in ["022", "027", "077"] {
        let dir = tempfile::tempdir().expect("a folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let base = dir.path().join("powerview");
        let files = "README.md compose.yaml .env.sample on-upload.sh tsv_parser.py deploy grafana-automation";
        let sh = |script: &str| {
            let output = Command::new("sh")
                .args(["-euc", script])
                .current_dir(&base)
                .output();
            let output = output.expect("sh starts");
            assert!(output.status.success(), "{script}: {}", text(&output));
        };
        let copied = Command::new("sh")
            .args([
                "-euc",
                &format!("umask {umask}; mkdir \"$0\"; cp -R {files} \"$0\""),
            ])
            .arg(&base)
            .current_dir(root())
            .output()
            .expect("sh starts");
        assert!(copied.status.success(), "{}", text(&copied));
        // Copies of .env made by editors contain the same secrets, and the URL of the repository may contain a
        // password.
        fs::write(base.join(".env.old"), "INFLUXDB_ADMIN_TOKEN=secret\n").expect("a file");
        fs::create_dir(base.join(".git")).expect("a folder");
        fs::write(
            base.join(".git/config"),
            "url = https://me:secret@example.org/\n",
        )
        .expect("a file");
        let outside = dir.path().join("outside");
        fs::write(&outside, "").expect("a file");
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).expect("a mode");
        std::os::unix::fs::symlink(&outside, base.join("link")).expect("a link");

        for command in &commands {
            let here = command
                .replace("/srv/powerview", &base.display().to_string())
                .replace(":sftpgo", ":daemon")
                .replace("-g sftpgo", "-g daemon");
            sh(&format!("umask {umask}; {here}"));
        }

        for path in &mounted {
            let all = everything_below(&base.join(path));
            assert!(all.len() > 1, "{path} is empty");
            for file in all {
                let what = format!("{} with umask {umask}", file.display());
                assert!(
                    can_read(&file, GRAFANA.0, GRAFANA.1),
                    "Grafana cannot read {what}"
                );
                assert!(
                    !can_write(&file, GRAFANA.0, GRAFANA.1),
                    "Grafana can change {what}"
                );
            }
        }
        for secret in [".env", ".env.old"] {
            let secret = base.join(secret);
            let what = format!("{} with umask {umask}", secret.display());
            assert!(
                !can_read(&secret, GRAFANA.0, GRAFANA.1),
                "Grafana reads {what}"
            );
            assert!(
                can_read(&secret, SFTPGO.0, SFTPGO.1),
                "the hook cannot read {what}"
            );
        }
        for (uid, gid) in [GRAFANA, SFTPGO] {
            assert!(
                !can_read(&base.join(".git/config"), uid, gid),
                "with umask {umask}"
            );
        }
        fs::remove_dir_all(base.join(".git")).expect("a folder");
        for file in everything_below(&base).iter().filter(|f| !f.is_symlink()) {
            let what = format!("{} with umask {umask}", file.display());
            assert!(
                can_read(file, SFTPGO.0, SFTPGO.1),
                "the hook cannot read {what}"
            );
            assert!(
                !can_write(file, SFTPGO.0, SFTPGO.1),
                "the hook can change {what}"
            );
        }
        let hook = fs::metadata(base.join("on-upload.sh")).expect("the hook");
        assert_eq!(
            hook.permissions().mode() & 0o777,
            0o755,
            "with umask {umask}"
        );
        let compose = fs::metadata(base.join("compose.yaml")).expect("a file");
        assert_eq!(
            compose.permissions().mode() & 0o777,
            0o644,
            "with umask {umask}"
        );
        let outside = fs::metadata(&outside).expect("a file");
        assert_eq!(
            outside.permissions().mode() & 0o777,
            0o600,
            "a link was followed"
        );
    }
}

#[test]
fn the_files_agree_on_the_paths() {
    let sftpgo = read("deploy/sftpgo.env");
    let settings: Vec<&str> = sftpgo
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .collect();
    for line in [
        "SFTPGO_COMMON__ACTIONS__EXECUTE_ON=upload,rename,mkdir",
        "SFTPGO_COMMON__ACTIONS__HOOK=/srv/powerview/on-upload.sh",
        "SFTPGO_COMMON__UPLOAD_MODE=1",
        "SFTPGO_DATA_PROVIDER__USERS_BASE_DIR=/srv/sftpgo/data",
    ] {
        assert!(settings.contains(&line), "{line}");
    }
    for line in [
        "SFTPGO_COMMON__POST_DISCONNECT_HOOK=/srv/powerview/on-upload.sh",
        "SFTPGO_COMMAND__COMMANDS__0__ENV=SFTPGO_ACTION=upload",
        "SFTPGO_COMMAND__COMMANDS__0__HOOK=post_disconnect",
    ] {
        assert!(sftpgo.contains(&format!("# {line}")), "{line}");
    }
}
