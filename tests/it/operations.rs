//! The commands of docs/operations.md for backup, restore and a new token, with a real InfluxDB, its client `influx`, and
//! stand-ins for containers, systemd and packages. They need `INFLUXD_BIN` and `INFLUX_BIN`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use crate::harness::{age, good_file, put_program};
use crate::real_influx::RealInflux;
use crate::real_server::points;
use crate::skipped::{installed, skipped};

/// A folder on the page's server, of a device.
const DEVICE: &str = "srv/sftpgo/data/acme/site1/02001171";

/// The programs that the commands call and that a test machine does not have. A container is the machine itself.
const STAND_INS: [(&str, &str); 6] = [
    (
        "docker",
        r#"case $1 in
             exec) [ "$4" != backup ] || sh "$HOME/before-backup"
                   shift 2; exec "$@" ;;
             cp) [ ! -e "$HOME/before-copy" ] || sh "$HOME/before-copy"
                 exec cp -r "${2#influxdb:}" "${3#influxdb:}" ;;
           esac"#,
    ),
    (
        "docker-compose",
        r#"[ "$1" = run ] || exit 0
           while [ "$1" != grafana ]; do shift; done
           shift; exec tar "$@""#,
    ),
    ("sudo", r#"shift 2; exec "$@""#),
    ("apt", ""),
    (
        "systemctl",
        r#"[ "$2" != powerview-sweep ] || exec powerview -q -d "$HOME/srv/sftpgo/data""#,
    ),
    ("powerview-setup", ""),
];

/// The `sh` blocks below a heading of the page. No line in them may begin with `#`.
fn blocks(heading: &str) -> Vec<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md"))
        .expect("the page");
    let section = page
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"))
        .1;
    let section = section.split("\n#").next().unwrap_or_default();
    let blocks = section.split("```sh\n").skip(1);
    blocks
        .map(|b| b.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

/// Starts a database, and a machine that uses it. Returns `None` and skips the calling test if something is missing.
fn server_and_machine() -> Option<(RealInflux, Machine)> {
    let server = RealInflux::start()?;
    let machine = Machine::new()?;
    machine.configure(&server);
    Some((server, machine))
}

/// A server whose file system is a temporary folder.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    /// Returns `None` and skips the calling test without `INFLUX_BIN` or a tool.
    fn new() -> Option<Self> {
        let Some(influx) = std::env::var_os("INFLUX_BIN").filter(|p| !p.is_empty()) else {
            skipped(
                "INFLUX_BIN",
                "set it to the path of influx, the client of InfluxDB",
            );
            return None;
        };
        if !installed("python3", "python3") {
            return None;
        }
        let machine = Self {
            root: tempfile::tempdir().expect("a folder"),
        };
        for folder in [
            "bin",
            "tmp",
            "etc/powerview",
            "etc/sftpgo",
            "etc/caddy",
            "var/lib/sftpgo",
            "var/lib/grafana",
            "srv/sftpgo/data",
            "srv/sftpgo/logs/reports",
        ] {
            fs::create_dir_all(machine.path(folder)).expect("a folder");
        }
        for (name, text) in STAND_INS {
            put_program(
                &machine.path(&format!("bin/{name}")),
                &format!("#!/bin/sh\n{text}\n"),
            );
        }
        symlink(influx, machine.path("bin/influx")).expect("a link");
        symlink(
            env!("CARGO_BIN_EXE_powerview"),
            machine.path("bin/powerview"),
        )
        .expect("a link");
        Some(machine)
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    fn put(&self, relative: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }

    fn read(&self, relative: &str) -> Vec<u8> {
        let path = self.path(relative);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Writes `.env`, and the configuration that InfluxDB's container makes for `influx`.
    fn configure(&self, server: &RealInflux) {
        let (token, org) = (server.token(), server.org());
        self.put(
            "etc/powerview/.env",
            format!("INFLUXDB_ADMIN_TOKEN={token}\nINFLUXDB_ORG={org}\nTSV_TIMEZONE=UTC\n"),
        );
        let create = format!(
            "influx config create --config-name default --host-url {} --token {token} --org {org} --active",
            server.url()
        );
        self.run(server, &create);
    }

    /// Runs commands of the page in /etc/powerview, which must succeed. Returns what they print to stdout.
    #[track_caller]
    fn run(&self, server: &RealInflux, commands: &str) -> String {
        let root = self.root.path().display().to_string();
        let mut commands = commands.replace(" -C / ", &format!(" -C {root} "));
        for folder in ["/etc/", "/srv/", "/tmp/", "/var/"] {
            commands = commands.replace(folder, &format!("{root}{folder}"));
        }
        // The paths of the temporary folder have been replaced, too.
        commands = commands.replace(&format!("{root}{root}"), &root);
        let output = Command::new("bash")
            .args(["-euc", &commands])
            .env_clear()
            .env("PATH", format!("{root}/bin:/usr/bin:/bin"))
            .env("HOME", &root)
            .env("INFLUX_CONFIGS_PATH", self.path("configs"))
            .env("INFLUX_HOST", server.url())
            .env("INFLUXDB_HOST", server.url())
            .current_dir(self.path("etc/powerview"))
            .stdin(Stdio::null())
            .output()
            .expect("bash starts");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{commands}\n{stdout}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    fn sweep(&self, server: &RealInflux) {
        self.run(server, "powerview -q -d /srv/sftpgo/data");
    }

    /// The files below a folder, with their content and modification time.
    fn files(&self, folder: &str) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let folder = self.path(folder);
        let entries = walkdir::WalkDir::new(&folder).into_iter();
        entries
            .map(|entry| entry.expect("an entry"))
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| {
                let path = entry.path().strip_prefix(&folder).expect("below");
                let time = entry.metadata().expect("metadata").modified();
                let content = fs::read(entry.path()).expect("a file");
                (path.to_owned(), (content, time.expect("a time")))
            })
            .collect()
    }
}

/// Runs Python with the database of SFTPGo's users.
fn sftpgo_users(machine: &Machine, statement: &str) -> String {
    let script = format!(
        "import sqlite3; d = sqlite3.connect('{}'); print(d.execute(\"{statement}\").fetchall()); d.commit()",
        machine.path("var/lib/sftpgo/sftpgo.db").display()
    );
    let output = Command::new("python3")
        .args(["-c", &script])
        .output()
        .expect("python3 starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A file with 10 points on a day of August.
fn file_of_day(day: u32) -> String {
    good_file(day, 5).replace("01/08/25", &format!("{day:02}/08/25"))
}

/// The token in the output of `influx auth create --json`.
fn token_of(json: &str) -> String {
    let created: serde_json::Value = serde_json::from_str(json).expect("JSON");
    created["token"].as_str().expect("a token").to_owned()
}

/// The number of points of `acme` that a token can read.
fn points_read_with(machine: &Machine, server: &RealInflux, token: &str) -> usize {
    let query = "influx query --raw 'from(bucket: \"acme\") |> range(start: 2000-01-01T00:00:00Z)'";
    let csv = machine.run(server, &format!("INFLUX_TOKEN={token} {query}"));
    csv.matches(",value,site1,").count()
}

#[test]
fn a_backup_is_restored_to_an_empty_server() {
    let Some((old, machine)) = server_and_machine() else {
        return;
    };
    machine.put(&format!("{DEVICE}/a.tsv"), file_of_day(1));
    machine.put(&format!("{DEVICE}/b.tsv"), file_of_day(2));
    age(&machine.path(&format!("{DEVICE}/a.tsv")), 7200);
    machine.put(&format!("{DEVICE}/error/c.tsv"), "not a logger file");
    machine.sweep(&old);
    let read_token = token_of(&machine.run(
        &old,
        "influx auth create --json --read-bucket $(influx bucket list --name acme --hide-headers | cut -f 1)",
    ));
    machine.put("etc/sftpgo/sftpgo.env", "SFTPGO_COMMON__UPLOAD_MODE=1\n");
    machine.put("etc/caddy/Caddyfile", "grafana.example.org\n");
    machine.put("var/lib/sftpgo/id_ed25519", "host key");
    machine.put("var/lib/grafana/grafana.db", "dashboards");
    sftpgo_users(&machine, "CREATE TABLE users AS SELECT 'acme' AS username");

    // Two files wait when the files are copied. One is ingested before the database is copied, the other one after that.
    for (day, name) in [(3, "backup"), (4, "copy")] {
        let file = format!("{DEVICE}/{name}.tsv");
        machine.put(&file, file_of_day(day));
        let (data, file) = (machine.path("srv/sftpgo/data"), machine.path(&file));
        let ingest = format!("powerview -q -d {} -t {}", data.display(), file.display());
        machine.put(&format!("before-{name}"), ingest);
    }
    machine.run(&old, &blocks("### Backup")[0]);
    assert!(machine.path(&format!("{DEVICE}/parsed/copy.tsv")).exists());
    let expected = points(&old, "acme");
    assert_eq!(expected.len(), 40);
    drop(old);

    let new = RealInflux::start().expect("started before");
    let empty = Machine::new().expect("made before");
    empty.configure(&new);
    fs::remove_file(empty.path("etc/powerview/.env")).expect("removed");
    let copies = machine.path("var/backups/powerview");
    let copy = fs::read_dir(&copies).expect("a folder").next();
    let copy = copy.expect("a backup").expect("an entry").path();
    let restore = &blocks("### Restore")[0];
    let example = "/var/backups/powerview/2026-11-26-0130";
    assert!(restore.contains(example), "{restore}");
    // The copy comes from elsewhere, as it should.
    let elsewhere = empty.path("copy");
    fs::rename(copy, &elsewhere).expect("moved");
    empty.run(
        &new,
        &restore.replace(example, &elsewhere.display().to_string()),
    );

    for file in [
        "etc/powerview/.env",
        "etc/sftpgo/sftpgo.env",
        "etc/caddy/Caddyfile",
        "var/lib/grafana/grafana.db",
        "var/lib/sftpgo/id_ed25519",
    ] {
        assert_eq!(empty.read(file), machine.read(file), "{file}");
    }
    assert_eq!(
        sftpgo_users(&empty, "SELECT username FROM users"),
        "[('acme',)]\n"
    );
    assert_eq!(points_read_with(&empty, &new, &read_token), 30);
    // The sweep after the restore ingests the files that waited.
    empty.sweep(&new);
    assert_eq!(
        empty.files("srv/sftpgo/data"),
        machine.files("srv/sftpgo/data")
    );
    assert_eq!(points(&new, "acme"), expected);
}

#[test]
fn points_that_the_database_lacks_are_ingested_from_parsed() {
    let Some((old, machine)) = server_and_machine() else {
        return;
    };
    for (name, day, days_ago) in [("a.tsv", 1, 30), ("b.tsv", 2, 0)] {
        machine.put(&format!("{DEVICE}/{name}"), file_of_day(day));
        age(
            &machine.path(&format!("{DEVICE}/{name}")),
            days_ago * 86_400 + 3600,
        );
    }
    machine.sweep(&old);
    let expected = points(&old, "acme");
    assert_eq!(expected.len(), 20);

    let replay = blocks("### Without a copy of the database");
    let lost = RealInflux::start().expect("started before");
    machine.run(&lost, &replay[0]);
    assert_eq!(points(&lost, "acme"), expected);

    let older = RealInflux::start().expect("started before");
    let date = "2026-11-25 01:30";
    assert!(replay[1].contains(date), "{}", replay[1]);
    machine.run(&older, &replay[1].replace(date, "2 days ago"));
    // 2025-08-02, the day of the newer file.
    let newer = expected.into_iter().filter(|p| p.epoch >= 1_754_092_800);
    assert_eq!(points(&older, "acme"), newer.collect::<Vec<_>>());
    assert_eq!(machine.files(&format!("{DEVICE}/parsed")).len(), 2);
}

#[test]
fn the_admin_token_is_replaced() {
    let Some((server, machine)) = server_and_machine() else {
        return;
    };
    machine.put(&format!("{DEVICE}/a.tsv"), file_of_day(1));
    machine.sweep(&server);
    let read_token = token_of(&machine.run(
        &server,
        "influx auth create --json --read-bucket $(influx bucket list --name acme --hide-headers | cut -f 1)",
    ));

    let rotate = blocks("## A new admin token");
    let created = machine.run(&server, &rotate[0]);
    let token = created
        .split_whitespace()
        .find(|word| word.len() == 88)
        .unwrap_or_else(|| panic!("no token: {created}"));
    let before = String::from_utf8(machine.read("etc/powerview/.env")).expect("UTF-8");
    machine.put("etc/powerview/.env", before.replace(server.token(), token));
    // This machine lacks what other lines of the check are about.
    let check = "powerview check -d /srv/sftpgo/data";
    assert!(rotate[1].contains(check), "{}", rotate[1]);
    let check = rotate[1].replace(check, &format!("{check} || :"));
    let checked = machine.run(&server, &check);
    assert!(
        checked.contains("the token can write to bucket \"powerview_meta\""),
        "{checked}"
    );
    let old = checked
        .lines()
        .find(|line| line.contains("admin's Token"))
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or_else(|| panic!("no old token: {checked}"));
    let id = "0123456789abcdef";
    assert!(rotate[2].contains(id), "{}", rotate[2]);
    machine.run(&server, &rotate[2].replace(id, old));

    // Without a body, because the server closes the connection before it has read one.
    assert_eq!(server.request("GET", "/api/v2/buckets", "", "").0, 401);
    assert_eq!(points_read_with(&machine, &server, &read_token), 10);
    machine.put(&format!("{DEVICE}/b.tsv"), file_of_day(2));
    machine.sweep(&server);
    assert_eq!(points_read_with(&machine, &server, &read_token), 20);
}

#[test]
fn the_measurements_of_a_logger_are_moved_to_another_campaign() {
    let Some((server, machine)) = server_and_machine() else {
        return;
    };
    machine.put(&format!("{DEVICE}/a.tsv"), file_of_day(1));
    machine.sweep(&server);
    server.write(
        "acme",
        "site1,device_master_sn=02001172 value=1 1754184000",
        "s",
    );

    let commands = blocks("## Loggers come and go");
    machine.run(&server, &commands[3]);
    let measurements: Vec<_> = points(&server, "acme")
        .into_iter()
        .map(|point| point.measurement)
        .collect();
    let expected = [vec!["site1"], vec!["site2"; 10]].concat();
    assert_eq!(measurements, expected);
    machine.run(&server, &commands[2]);
    assert!(!machine.path(DEVICE).exists());
    assert!(
        machine
            .path("srv/sftpgo/archive/acme/site1/02001171")
            .exists()
    );
}
