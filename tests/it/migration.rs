//! The move from both old systems: `deploy/old-system`, and the commands of docs/migration.md, which are run as they are on
//! the page, except for the folders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use chrono::{NaiveDateTime, TimeZone as _};
use chrono_tz::Europe::Paris;
use serde_json::{Value, json};

use crate::deploy_files::compose_config;
use crate::grafana_double::{Double, PASSWORD as GRAFANA_PASSWORD};
use crate::harness::{DEVICE, FileBuilder, Site, good_file, put_program, samples, stored};
use crate::real_influx::RealInflux;
use crate::real_server::{assert_same, points};
use crate::second_reader::{Point, read_upload};
use crate::skipped::installed;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One of the old systems.
#[derive(Clone, Copy, PartialEq)]
enum Old {
    /// The script of December 2025.
    A,
    /// The versions from 0.4 to 0.6.
    B,
}

const A_PARSER: &str = "from influxdb_client import InfluxDBClient\n# measurement = campaign\n";
const B_PARSER: &str =
    "from influxdb_client import InfluxDBClient\nparse(table_name=\"electrical\")\n";

const COMPOSE: &str = "services:\n  grafana:\n    user: \"1000\"\n    environment:\n      \
    GF_SERVER_ROOT_URL: \"%(protocol)s://charts.example.net/\"\n      GF_SERVER_DOMAIN: \"charts.example.net\"\n";

const SFTPGO: &str = "SFTPGO_HTTPD__BINDINGS__0__PORT=8099\nSFTPGO_COMMON__ACTIONS__EXECUTE_ON=mkdir\n\
    SFTPGO_COMMON__ACTIONS__HOOK={old}/on-upload.sh\nSFTPGO_COMMON__POST_DISCONNECT_HOOK={old}/on-upload.sh\n\
    SFTPGO_COMMAND__COMMANDS__0__PATH={old}/on-upload.sh\nSFTPGO_COMMAND__COMMANDS__0__ENV=SFTPGO_ACTION=upload\n\
    SFTPGO_COMMAND__COMMANDS__0__HOOK=post_disconnect\nSFTPGO_COMMAND__COMMANDS__1__PATH=/usr/bin/true\n";

/// Docker: runs the script of `docker run` with the folders `volume/<name>` as volumes.
const DOCKER: &str = r#"echo "docker $*" >>"$PLACE/calls"
case $1 in
  volume) [[ $2 != ls ]] || cat "$PLACE/volumes" ;;
  ps) echo 'influxdb|influxdb:2|Up 3 weeks' ;;
  run)
    for word; do
      case $word in
        *:/from:ro) from=$PLACE/volume/${word%%:*} ;;
        *:/to) to=$PLACE/volume/${word%%:*} ;;
      esac
    done
    mkdir -p "$from" "$to"
    script=${*: -1} script=${script//\/from/$from}
    bash -c "${script//\/to/$to}"
    ;;
esac"#;

/// `crontab` with a file per user in `cron/`.
const CRONTAB: &str = r#"user=root list=
for word; do
  case $word in
    -u | -) ;;
    -l) list=1 ;;
    *) user=$word ;;
  esac
done
file=$PLACE/cron/$user
if [[ -n $list ]]; then cat "$file" 2>/dev/null; else cat >"$file.new" && mv "$file.new" "$file"; fi"#;

/// A server with an old system, in a temporary folder.
struct Place {
    site: Site,
}

impl Place {
    /// The old system in `old/`, with this `.env`, and folders for the new one. Skips the calling test without Python.
    fn new(old: Old, env: &str) -> Option<Self> {
        if !installed("python3", "python3") {
            return None;
        }
        let place = Self { site: Site::new() };
        let parser = if old == Old::A { A_PARSER } else { B_PARSER };
        place.put("old/tsv_parser.py", parser);
        place.put("old/.env", env);
        place.put("old/docker-compose.yml", COMPOSE);
        place.put("old/on-upload.sh", "#!/bin/bash\n");
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(place.path("old/on-upload.sh"), executable).expect("a mode");
        let folder = place.path("old").display().to_string();
        place.put(
            "root/etc/sftpgo/sftpgo.env",
            SFTPGO.replace("{old}", &folder),
        );
        place.put("cron/root", "");
        place.put("volumes", "");
        place.put("passwd", "");
        place.put("new/README", "");
        symlink(
            root().join("grafana-automation"),
            place.path("new/grafana-automation"),
        )
        .expect("a link");
        for (name, script) in [
            ("apt", "echo \"apt $*\" >>\"$PLACE/calls\""),
            (
                "docker-compose",
                "echo \"docker-compose $* in $PWD\" >>\"$PLACE/calls\"",
            ),
            ("systemctl", "echo \"systemctl $*\" >>\"$PLACE/calls\""),
            (
                "powerview-user",
                "echo \"powerview-user $*\" >>\"$PLACE/calls\"",
            ),
            (
                "ansible-playbook",
                "printf '%s\\n' \"${@: -1}\" >>\"$PLACE/dashboards\"",
            ),
            ("docker", DOCKER),
            ("podman", "exit 1"),
            ("getent", "cat \"$PLACE/passwd\""),
            ("crontab", CRONTAB),
            (
                "runuser",
                "while [[ $1 != -- ]]; do shift; done\nshift\nexec \"$@\"",
            ),
            // What powerview-setup does for this option before it sets up the server.
            (
                "powerview-setup",
                "shift\nexec \"$OLD_SYSTEM\" convert \"$@\"",
            ),
            (
                "powerview",
                concat!("exec ", env!("CARGO_BIN_EXE_powerview"), " \"$@\""),
            ),
        ] {
            fs::create_dir_all(place.path("bin")).expect("a folder");
            put_program(
                &place.path("bin").join(name),
                &format!("#!/bin/bash\n{script}\n"),
            );
        }
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.dir.path().join(name)
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, text).expect("a file");
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.path("bin").display()),
            )
            .env("LC_ALL", "C.UTF-8")
            .env("PLACE", self.site.dir.path())
            .env("OLD_SYSTEM", root().join("deploy/old-system"))
            .env("DESTDIR", self.path("root"))
            .env("POWERVIEW_BASE", self.path("new"))
            .env("POWERVIEW_BIN", self.path("bin/powerview"))
            .env("ANSIBLE_PLAYBOOK_BIN", self.path("bin/ansible-playbook"))
            .env("SFTPGO_BASE", self.site.dir.path())
            .env("TSV_TIMEZONE", "Europe/Paris")
            .current_dir(self.path("cwd"));
        command
    }

    fn old_system(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(root().join("deploy/old-system"));
        command.args(arguments).output().expect("it starts")
    }

    /// Converts `old/`, and returns what it prints.
    #[track_caller]
    fn convert(&self, options: &[&str]) -> String {
        let old = self.path("old");
        let mut arguments = vec!["convert", old.to_str().expect("UTF-8")];
        arguments.extend(options);
        succeeded(&self.old_system(&arguments))
    }

    /// Runs blocks of commands of the page. Returns what they print and, sorted, which programs failed.
    #[track_caller]
    fn run_page(&self, blocks: &[String]) -> (String, Vec<String>) {
        let mut script = "set -uE\ntrap 'echo \"FAILED ${BASH_COMMAND%% *}\"' ERR\n".to_owned()
            + &blocks.concat();
        for (of_page, here) in [
            ("/usr/share/powerview", root().to_path_buf()),
            ("/srv/sftpgo", self.site.dir.path().to_path_buf()),
            ("/srv/powerview", self.path("old")),
            ("/etc/sftpgo", self.path("root/etc/sftpgo")),
            ("/etc/powerview", self.path("new")),
        ] {
            script = script.replace(of_page, &here.display().to_string());
        }
        let mut child = self
            .command("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash starts");
        // An answer to each question. A program reads some in advance.
        let mut stdin = child.stdin.take().expect("the input");
        let answers = std::thread::spawn(move || {
            let _ended = stdin.write_all(&b"yes\n".repeat(20_000));
        });
        let output = child.wait_with_output().expect("bash ends");
        answers.join().expect("the answers");
        let printed = text(&output);
        let mut failed: Vec<_> = printed
            .lines()
            .filter_map(|l| l.strip_prefix("FAILED "))
            .map(str::to_owned)
            .collect();
        failed.sort();
        (printed, failed)
    }

    /// All files below the place, with their content and mode, except logs of this test and reports.
    fn snapshot(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
        let entries = walkdir::WalkDir::new(self.site.dir.path()).into_iter();
        let files = entries
            .map(|e| e.expect("an entry"))
            .filter(|e| e.file_type().is_file());
        files
            .filter(|e| !e.path().starts_with(self.path("logs")) && e.file_name() != "calls")
            .map(|e| {
                let mode = e.metadata().expect("metadata").permissions().mode();
                let bytes = fs::read(e.path()).expect("a file");
                (e.into_path(), (bytes, mode))
            })
            .collect()
    }

    /// The points of all files of a company that can be ingested, read by the second reader.
    fn expected(&self, company: &str) -> Vec<Point> {
        let mut points = Vec::new();
        for name in self
            .site
            .tree()
            .iter()
            .filter(|n| n.starts_with(&format!("{company}/")))
        {
            if !name.ends_with(".tsv") {
                continue;
            }
            let campaign = name.split('/').nth(1).expect("a campaign");
            let bytes = self.site.read(name);
            let uploaded = self
                .site
                .path(name)
                .metadata()
                .expect("metadata")
                .modified();
            let whole = read_upload(&bytes, campaign, Paris, uploaded.expect("a time").into());
            if whole.failure.is_none() {
                points.extend(whole.points);
            }
        }
        stored(&points)
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

fn page() -> String {
    fs::read_to_string(root().join("docs/migration.md")).expect("the page")
}

/// The blocks of commands in a section of the page.
fn commands_of(section: &str) -> Vec<String> {
    let page = page();
    let start = format!("\n## {section}\n");
    let rest = page
        .split_once(&start)
        .unwrap_or_else(|| panic!("no section {section}"))
        .1;
    let body = rest.split_once("\n## ").map_or(rest, |(body, _)| body);
    let blocks = body.split("```sh\n").skip(1);
    let commands: Vec<String> = blocks
        .map(|block| block.split_once("```").expect("an end").0.to_owned())
        .collect();
    assert!(!commands.is_empty(), "{section}");
    commands
}

/// The value of a variable as the hook reads it.
fn as_the_hook_reads(file: &Path, name: &str) -> String {
    let script = format!(". \"$1\"; read_env_file \"$2\"; printf %s \"${{{name}-unset}}\"");
    let output = Command::new("bash")
        .args(["-c", &script, "-"])
        .arg(root().join("on-upload.sh"))
        .arg(file)
        .env_clear()
        .output()
        .expect("bash starts");
    succeeded(&output)
}

const HOSTILE: [(&str, &str, &str); 6] = [
    (
        "INFLUXDB_PASSWORD",
        "'a $b \"c\" # d \\ `e`'",
        "a $b \"c\" # d \\ `e`",
    ),
    (
        "GRAFANA_PASSWORD",
        "\"it's \\\"5\\\" \\$ # \\\\\"",
        "it's \"5\" $ # \\",
    ),
    ("INFLUXDB_ADMIN_TOKEN", "'==tok/en+$$=='", "==tok/en+$$=="),
    ("INFLUXDB_USERNAME", "  anna b   # a comment", "anna b"),
    ("INFLUXDB_ORG", "power#view", "power#view"),
    ("SMTP_SECRET", "'no $reader'", "no $reader"),
];

fn hostile_env() -> String {
    let lines = HOSTILE
        .iter()
        .map(|(name, written, _)| format!("{name}={written}\n"));
    let rest = "# a comment\nexport INFLUXDB_BUCKET=powerview\nINFLUXDB_URL='http://influxdb:8086'\n\
        INFLUXDB_HOST='http://127.0.0.1:1'\nGRAFANA_URL=http://127.0.0.1:1\nGRAFANA_API_TOKEN=glsa_of-admin\n";
    lines.collect::<String>() + rest
}

#[test]
fn the_conversion_keeps_every_value_under_its_new_name_and_shows_none() {
    let Some(place) = Place::new(Old::B, &hostile_env()) else {
        return;
    };
    place.put(
        "old/.monitoring.env",
        "NTFY_TOPIC=topic-4711\nNTFY_SERVER=https://ntfy.example.org/\nHEALTHCHECKS_PING_URL='https://hc.example.org/ping-4711'\n",
    );
    place.put(
        "new/.env",
        "# of the operator\nGRAFANA_PASSWORD=of-the-package\nTSV_JOBS=3\n",
    );
    let printed = place.convert(&[]);
    let file = place.path("new/.env");
    let renamed = |name| match name {
        "INFLUXDB_PASSWORD" => "INFLUXDB_ADMIN_PASSWORD",
        "INFLUXDB_USERNAME" => "INFLUXDB_ADMIN_USER",
        same => same,
    };
    for (name, _, value) in HOSTILE {
        assert_eq!(as_the_hook_reads(&file, renamed(name)), value, "{name}");
        assert!(!printed.contains(value), "{name} is shown: {printed}");
    }
    for (name, value) in [
        ("POWERVIEW_ALERT_URL", "https://ntfy.example.org/topic-4711"),
        ("TSV_HEARTBEAT_URL", "https://hc.example.org/ping-4711"),
        ("GRAFANA_ROOT_URL", "https://charts.example.net"),
        ("GRAFANA_USER", "1000"),
        ("TSV_JOBS", "3"),
        ("INFLUXDB_BUCKET", "unset"),
        ("INFLUXDB_URL", "unset"),
        ("GRAFANA_API_TOKEN", "unset"),
        ("NTFY_TOPIC", "unset"),
    ] {
        assert_eq!(as_the_hook_reads(&file, name), value, "{name}");
    }
    for secret in ["4711", "glsa_", "of-the-package"] {
        assert!(!printed.contains(secret), "{secret} is shown: {printed}");
    }
    for line in [
        "INFLUXDB_ADMIN_USER, which was INFLUXDB_USERNAME",
        "SMTP_SECRET is kept, but PowerView does not read it",
        "GRAFANA_PASSWORD has quotes or backslashes that versions of compose read differently",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert_eq!(
        place.read("old/.env"),
        hostile_env(),
        "the old file is not changed"
    );
    let copies: Vec<_> = fs::read_dir(place.path("new"))
        .expect("a folder")
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .filter(|name| name.starts_with(".env.before-"))
        .collect();
    assert_eq!(copies.len(), 1, "{copies:?}");
    assert!(
        place
            .read(&format!("new/{}", copies[0]))
            .contains("of-the-package")
    );

    let before = place.snapshot();
    let again = place.convert(&[]);
    assert!(again.contains("converted already"), "{again}");
    assert!(place.snapshot() == before, "a second run changes nothing");
}

#[test]
fn compose_reads_the_converted_values_like_the_hook() {
    let env = hostile_env().replace(HOSTILE[1].1, "it's-10%");
    let Some(place) = Place::new(Old::B, &env) else {
        return;
    };
    let printed = place.convert(&[]);
    assert!(!printed.contains("read differently"), "{printed}");
    let Some(config) = compose_config(&place.read("new/.env")) else {
        return;
    };
    for (service, variable, value) in [
        ("influxdb", "DOCKER_INFLUXDB_INIT_PASSWORD", HOSTILE[0].2),
        ("grafana", "GF_SECURITY_ADMIN_PASSWORD", "it's-10%"),
        ("influxdb", "DOCKER_INFLUXDB_INIT_ADMIN_TOKEN", HOSTILE[2].2),
        ("influxdb", "DOCKER_INFLUXDB_INIT_USERNAME", HOSTILE[3].2),
        ("influxdb", "DOCKER_INFLUXDB_INIT_ORG", HOSTILE[4].2),
    ] {
        let shown = &config["services"][service]["environment"][variable];
        // `config` doubles each $.
        let read = shown.as_str().expect("a text").replace("$$", "$");
        assert_eq!(read, value, "{variable}");
    }
    assert_eq!(config["services"]["grafana"]["user"], "1000");
}

#[test]
fn a_checkout_is_converted_in_place_and_a_dry_run_changes_nothing() {
    let Some(place) = Place::new(Old::A, &hostile_env()) else {
        return;
    };
    fs::remove_dir_all(place.path("new")).expect("removed");
    symlink(place.path("old"), place.path("new")).expect("a link");
    let before = place.snapshot();
    let planned = place.convert(&["--dry-run"]);
    assert!(
        planned.contains("dry run: nothing was changed"),
        "{planned}"
    );
    assert!(place.snapshot() == before, "{planned}");

    place.convert(&[]);
    let file = place.path("new/.env");
    assert_eq!(
        as_the_hook_reads(&file, "INFLUXDB_ADMIN_PASSWORD"),
        HOSTILE[0].2
    );
    assert_eq!(as_the_hook_reads(&file, "INFLUXDB_PASSWORD"), "unset");
    assert!(
        place
            .read("old/.env")
            .contains("# Organisation in InfluxDB;"),
        "the comments of the sample"
    );
}

#[test]
fn lines_that_programs_read_differently_are_named_without_their_values() {
    let env = "INFLUXDB_HOST=http://127.0.0.1:1\nINFLUXDB_ADMIN_TOKEN=abc$def\nGRAFANA_PASSWORD=\"not closed\nsecret words\n\
        GF_AUTH_GOOGLE_CLIENT_SECRET='g'\n";
    let Some(place) = Place::new(Old::A, env) else {
        return;
    };
    let printed = place.convert(&[]);
    for line in [
        "line 2: INFLUXDB_ADMIN_TOKEN is kept with its $",
        "line 3 cannot be read",
        "line 4 cannot be read",
        "GF_AUTH_GOOGLE_CLIENT_SECRET is kept, but PowerView does not read it; the old compose passed it to Grafana",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    for secret in ["abc", "not closed", "secret words"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    assert_eq!(
        as_the_hook_reads(&place.path("new/.env"), "INFLUXDB_ADMIN_TOKEN"),
        "abc$def"
    );
}

#[test]
fn sftpgo_loses_the_settings_that_call_the_old_hook_and_no_other() {
    let Some(place) = Place::new(Old::A, &hostile_env()) else {
        return;
    };
    let before = place.read("root/etc/sftpgo/sftpgo.env");
    place.convert(&[]);
    assert_eq!(
        place.read("root/etc/sftpgo/sftpgo.env"),
        "SFTPGO_HTTPD__BINDINGS__0__PORT=8099\nSFTPGO_COMMAND__COMMANDS__1__PATH=/usr/bin/true\n"
    );
    let folder = fs::read_dir(place.path("root/etc/sftpgo")).expect("a folder");
    let copy = folder
        .map(|e| e.expect("an entry").path())
        .find(|p| p.to_string_lossy().contains("sftpgo.env.before-"))
        .expect("a dated copy");
    assert_eq!(fs::read_to_string(copy).expect("a copy"), before);
}

#[test]
fn the_conversion_says_what_there_is() {
    let Some(place) = Place::new(Old::B, &hostile_env()) else {
        return;
    };
    place.put("old/_version.py", "__version__ = \"0.6.2\"\n");
    place.put("volumes", "other_influxdb2-data\nold_influxdb2-data\nold_influxdb2-config\nold_grafana-data\nunrelated\n");
    place.put("cron/root", "*/5 * * * * /srv/powerview/tools/monitoring/stack_watchdog.sh\n# 1 * * * * check_ingestion.py\n");
    place.put(
        "root/etc/cron.d/powerview",
        "0 * * * * sftpgo python3 tools/check_ingestion.py --secret\n",
    );
    place.put(
        "passwd",
        format!(
            "ubuntu:x:1000:1000::{}:/bin/bash\n",
            place.path("home").display()
        ),
    );
    fs::create_dir_all(
        place.path("home/.local/share/containers/storage/volumes/rootless_influxdb2-data"),
    )
    .expect("a folder");
    place.put("data/acme/.company.created", "");
    place.put("data/acme/site/02001171/a.tsv", "");
    place.put("data/acme/site/02001171/parsed/b.tsv", "");
    place.put("data/acme/site/02001171/error/c.tsv", "");
    place.put("data/acme/site/02001171/error/d.tsv", "");
    place.put("data/acme/site/02001171/error/d.tsv.error.json", "{}");
    place.put("data/b\u{1b}[31m/site/.dashboard.created", "");
    let printed = place.convert(&[]);
    for line in [
        "system      tsv_parser.py 0.6.2; measurement electrical, see (b)",
        "volume      old_influxdb2-data, of docker",
        "volume      rootless_influxdb2-data, of podman of the user ubuntu",
        "volume      there are several databases; old_influxdb2-data is taken",
        "container   influxdb, of docker: influxdb:2, Up 3 weeks",
        "company     acme: 1 campaign; 1 waiting; 1 in parsed/; 2 in error/, 1 of them without a reason; markers: .company.created",
        "markers: .dashboard.created",
        "cron job    stack_watchdog.sh of the user root",
        "cron job    check_ingestion.py in ",
        "SFTPGo      SFTPGO_COMMON__POST_DISCONNECT_HOOK is removed",
        "InfluxDB    not asked: InfluxDB does not answer",
        "Grafana     not asked: Grafana does not answer",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert!(
        !printed.contains('\u{1b}') && !printed.contains("--secret"),
        "{printed}"
    );
    let file = place.path("new/.env");
    assert_eq!(
        as_the_hook_reads(&file, "INFLUXDB_DATA_VOLUME"),
        "old_influxdb2-data"
    );
    assert_eq!(
        as_the_hook_reads(&file, "INFLUXDB_CONFIG_VOLUME"),
        "old_influxdb2-config"
    );
    assert_eq!(
        as_the_hook_reads(&file, "GRAFANA_DATA_VOLUME"),
        "old_grafana-data"
    );
}

#[test]
fn the_table_of_the_page_says_what_becomes_of_each_variable() {
    let page = page();
    let table = page
        .split_once("\n## Old and new names\n")
        .expect("the table")
        .1;
    let names = |cell: &str| -> Vec<String> {
        let spans = cell.split('`').skip(1).step_by(2).map(str::to_owned);
        let is_variable = |s: &String| {
            s.contains('_')
                && s.chars()
                    .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        };
        spans.filter(is_variable).collect()
    };
    let mut old_names = BTreeSet::new();
    let mut rows = Vec::new();
    for row in table.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').collect();
        let (old, new) = (names(cells[1]), cells[2].trim().to_owned());
        if old.is_empty() || cells[1].contains("docker-compose") {
            continue;
        }
        old_names.extend(old.iter().cloned());
        rows.push((old, new));
    }
    assert!(old_names.len() > 18, "{old_names:?}");
    let env: String = old_names
        .iter()
        .map(|name| format!("{name}=v-{name}\n"))
        .collect();
    let Some(place) = Place::new(Old::B, &env) else {
        return;
    };
    place.convert(&[]);
    let file = place.path("new/.env");
    for (old, new) in rows {
        let renamed = names(new.split(';').next().expect("a first part"));
        for name in &old {
            let expected = if new.starts_with("dropped") {
                "unset"
            } else {
                &format!("v-{name}")
            };
            if new.starts_with("the same") || new.starts_with("dropped") {
                assert_eq!(as_the_hook_reads(&file, name), expected, "{name}: {new}");
            } else if old.len() == 1 {
                assert_eq!(
                    as_the_hook_reads(&file, &renamed[0]),
                    expected,
                    "{name}: {new}"
                );
                assert_eq!(as_the_hook_reads(&file, name), "unset", "{name}");
            } else {
                let both: Vec<_> = old.iter().map(|name| format!("v-{name}")).collect();
                assert_eq!(
                    as_the_hook_reads(&file, &renamed[0]),
                    both.join("/"),
                    "{new}"
                );
            }
        }
    }
}

#[test]
fn files_that_the_old_script_left_in_error_are_ingested_only_if_their_folder_is_named() {
    let site = Site::new();
    site.put_old(DEVICE.error("a.tsv"), good_file(1, 3));
    site.lp_run().arg("--retry-errors").ok();
    assert_eq!(site.tree(), [DEVICE.error("a.tsv")]);
    site.lp_run().named(format!("{DEVICE}/error")).ok();
    assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
    assert_eq!(site.lp_points("acme").len(), 6);
}

// --- databases of the old systems -----------------------------------------------------------------------------------

/// The header lines and the data rows of a logger file.
fn table(bytes: &[u8]) -> (Vec<String>, Vec<String>, Vec<Vec<String>>) {
    let text = String::from_utf8_lossy(bytes).replace('\r', "");
    let table = text
        .split_once("START_DATA\n")
        .map_or(text.as_str(), |(_, rest)| rest);
    let table = table.split("END_DATA").next().expect("a table");
    let mut lines = table.lines().filter(|l| !l.is_empty());
    let mut cells = || {
        lines
            .next()
            .expect("a header line")
            .split('\t')
            .map(str::to_owned)
            .collect()
    };
    let (serials, labels) = (cells(), cells());
    let rows = lines
        .map(|l| l.split('\t').map(str::to_owned).collect())
        .collect();
    (serials, labels, rows)
}

fn escaped(tag: &str) -> String {
    tag.replace(',', "\\,")
        .replace('=', "\\=")
        .replace(' ', "\\ ")
}

/// The line protocol that the old systems made of a file, at which the line after it is read with the month first in (a),
/// and as UTC in (b).
fn old_points(old: Old, file_name: &str, bytes: &[u8], campaign: &str) -> String {
    let (serials, labels, rows) = table(bytes);
    let master = &serials[0];
    let mut lines = String::new();
    for row in &rows {
        let read = |form| NaiveDateTime::parse_from_str(&row[0], form);
        let Some(epoch) = (match old {
            Old::A => read("%m/%d/%y %H:%M:%S")
                .or_else(|_| read("%d/%m/%y %H:%M:%S"))
                .ok()
                .map(|time| {
                    // The first of two hours.
                    Paris
                        .from_local_datetime(&time)
                        .earliest()
                        .expect("a time")
                        .timestamp()
                }),
            Old::B => read("%d/%m/%y %H:%M:%S")
                .ok()
                .map(|time| time.and_utc().timestamp()),
        }) else {
            continue;
        };
        let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
        for (column, serial) in serials.iter().enumerate().skip(1) {
            let number = numbers.entry(serial).or_default();
            *number += 1;
            let Some(value) = row.get(column).and_then(|cell| cell.parse::<f64>().ok()) else {
                continue;
            };
            let (name, unit) = labels[column]
                .rsplit_once(' ')
                .unwrap_or((&labels[column], ""));
            let (name, campaign) = (escaped(name), escaped(campaign));
            let is_master = serial == master;
            lines += &match old {
                Old::A => {
                    let (kind, letter) = if is_master {
                        ("master", "M")
                    } else {
                        ("slave", "S")
                    };
                    format!(
                        "{campaign},campaign={campaign},channel_id={letter}{serial}_Ch{number}_M{master},channel_name={name},\
                         channel_number={number},channel_type={kind},device_master_sn={master},device_sn={serial},\
                         file_name={file_name},unit={unit} value={value} {epoch}\n"
                    )
                }
                Old::B => {
                    let label = if is_master {
                        format!("U{number}")
                    } else {
                        format!("S{serial}_Ch{number}")
                    };
                    let kind = if is_master {
                        "master,device_subtype=tri"
                    } else {
                        "slave"
                    };
                    format!(
                        "electrical,campaign={campaign},channel_id=M{master}_{label},channel_label={label},channel_name={name},\
                         channel_unit={unit},device=MV2,device_master_sn={master},device_sn={serial},device_type={kind} \
                         M{master}_{label}_{unit}={value} {epoch}\n"
                    )
                }
            };
        }
    }
    lines
}

/// The night in which the clocks are set back, with 02:00 to 02:59 twice.
fn autumn_night() -> String {
    let mut file = FileBuilder::default();
    let mut value = 0;
    for hour in [1, 2, 2, 3] {
        for minute in (0..60).step_by(10) {
            value += 1;
            file = file.line(format_args!(
                "26/10/25 {hour:02}:{minute:02}:00\t{value}.5\t{value}.25"
            ));
        }
    }
    file.build()
}

/// A server with an old system that has ingested files: a sample with swapped dates, a night with an hour twice, a file that
/// is cut in a number; and with files that it refused, that an outage has sent to error/, and that wait.
struct Moved {
    place: Place,
    influx: RealInflux,
    grafana: Double,
    old_points: Vec<Point>,
}

fn moved(old: Old) -> Option<Moved> {
    let samples = samples()?;
    let influx = RealInflux::start()?;
    let grafana = Double::start();
    let env = format!(
        "INFLUXDB_URL='http://influxdb:8086'\nINFLUXDB_HOST='{}'\nINFLUXDB_USERNAME=admin\nINFLUXDB_PASSWORD='of a test'\n\
         INFLUXDB_ORG={}\nINFLUXDB_BUCKET=first\nINFLUXDB_ADMIN_TOKEN='{}'\nGRAFANA_URL='{}'\nGRAFANA_USERNAME='admin'\n\
         GRAFANA_PASSWORD='{GRAFANA_PASSWORD}'\nGRAFANA_API_TOKEN='glsa_x'\n",
        influx.url(),
        influx.org(),
        influx.token(),
        grafana.url
    );
    let place = Place::new(old, &env)?;
    let swapped = fs::read(samples.join("company1/campaign1/02001084/T302_251012_031720.tsv"))
        .expect("a sample");
    let with_header = fs::read(samples.join("client_v003/tri/02000800/T302_260208_211459_UTC.tsv"))
        .expect("a sample");
    let cut = FileBuilder::default()
        .line("14/08/25 03:20:00\t242.5\t31.25")
        .line("14/08/25 03:30:00\t242.5\t12")
        .build();
    let cut = cut.trim_end().to_owned();
    let outage = FileBuilder::default()
        .line("20/08/25 03:20:00\t242.5\t31.25")
        .build();
    let waiting = FileBuilder::default()
        .line("21/08/25 03:20:00\t242.5\t31.25")
        .build();
    let mut in_parsed: Vec<(&str, &[u8])> = vec![
        (
            "acme/atelier 1/02001084/parsed/T302_251012_031720.tsv",
            &swapped,
        ),
        ("acme/site/02001171/parsed/T302_251026_031500.tsv", b""),
        (
            "acme/site/02001171/parsed/T302_250814_033000.tsv",
            cut.as_bytes(),
        ),
        (
            "acme_1d/site/02001171/parsed/T302_250814_033000.tsv",
            cut.as_bytes(),
        ),
    ];
    let night = autumn_night();
    in_parsed[1].1 = night.as_bytes();
    let with_header_in = match old {
        // The script of December 2025 did not know this container.
        Old::A => "acme/site/02000800/error/T302_260208_211459_UTC.tsv",
        Old::B => "acme/site/02000800/parsed/T302_260208_211459_UTC.tsv",
    };
    let of_all: Vec<(&str, &[u8])> = vec![
        (with_header_in, &with_header),
        (
            "acme/site/02001171/error/T302_250820_033000.tsv",
            outage.as_bytes(),
        ),
        ("acme/site/02001171/error/rubbish.tsv", b"no logger file\n"),
        (
            "acme/site/02001171/T302_250821_033000.tsv",
            waiting.as_bytes(),
        ),
    ];
    for (name, bytes) in in_parsed.iter().chain(&of_all) {
        place.site.put_old(name, bytes);
        let parts: Vec<_> = name.split('/').collect();
        if parts[3] == "parsed" {
            let lines = old_points(old, parts[4], bytes, parts[1]);
            influx.write(parts[0], &lines, "s");
        }
    }
    let meta = "tsv_parser_run,status=success base_folder=\"/srv\",duration_s=1.5,nb_files_failed=0i,nb_files_success=1i,\
        nb_files_total=1i,nb_points_total=9i 1760000000\ntsv_parser_file,bucket=acme,campaign=site,device_master_sn=1,\
        file_name=x.tsv,status=success nb_channels=2i,nb_invalid_timestamps=0i,nb_invalid_values=0i,nb_points=9i,nb_rows=1i 1760000000\n";
    influx.write("powerview_meta", meta, "s");
    place.put(
        "cron/ubuntu",
        "*/5 * * * * /srv/powerview/tools/monitoring/stack_watchdog.sh\n0 1 * * * backup\n",
    );
    place.put(
        "cron/sftpgo",
        "17 * * * * tools/monitoring/check_ingestion.py\n30 1 * * * other\n",
    );
    let old_points = points(&influx, "acme");
    Some(Moved {
        place,
        influx,
        grafana,
        old_points,
    })
}

const LOOK: &str = "1. Look";
const CHANGE_OVER: &str = "2. Change over";
const INGEST: &str = "3. Ingest all files again";
const COMPARE: &str = "4. Compare";
const DASHBOARDS: &str = "5. Create the dashboards";
const USERS: &str = "6. Change the passwords of the users";
const CRON_JOBS: &str = "7. Remove the cron jobs";
const DELETE: &str = "8. Delete what is left";
const GO_BACK: &str = "Going back";

impl Moved {
    /// Runs the commands of a section, all of which must succeed.
    #[track_caller]
    fn step(&self, section: &str) -> String {
        self.blocks(&commands_of(section))
    }

    #[track_caller]
    fn blocks(&self, blocks: &[String]) -> String {
        let (printed, failed) = self.place.run_page(blocks);
        assert!(failed.is_empty(), "{printed}");
        printed
    }

    /// Runs the commands that ingest all files again. One file is refused.
    #[track_caller]
    fn ingest(&self, old: Old) -> String {
        let mut blocks = commands_of(INGEST);
        assert!(blocks[0].contains("archive"), "the first block is for (a)");
        if old == Old::B {
            blocks.remove(0);
        }
        let (printed, failed) = self.place.run_page(&blocks);
        assert_eq!(failed, ["find"], "{printed}");
        printed
    }

    /// The points of PowerView in a bucket.
    fn new_points(&self, bucket: &str) -> Vec<Point> {
        let mut all = points(&self.influx, bucket);
        all.retain(|p| p.measurement != "electrical");
        all
    }

    #[track_caller]
    fn assert_points_of_the_files(&self, company: &str) {
        let (got, expected) = (self.new_points(company), self.place.expected(company));
        assert!(!expected.is_empty());
        assert_same(got, expected, company);
    }

    fn bucket_names(&self) -> BTreeSet<String> {
        let (_, answer) = self
            .influx
            .request("GET", "/api/v2/buckets?limit=100", "", "");
        let buckets: Value = serde_json::from_str(&answer).expect("JSON");
        let names = buckets["buckets"].as_array().expect("a list").iter();
        names
            .map(|b| b["name"].as_str().expect("a name").to_owned())
            .filter(|n| !n.starts_with('_'))
            .collect()
    }
}

/// The first word of each line of `compare`, by campaign.
fn compared(printed: &str) -> BTreeMap<String, (u64, u64)> {
    let lines = printed.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let counts = (words.first()?.parse().ok()?, words.get(1)?.parse().ok()?);
        Some((words[2..].join(" "), counts))
    });
    lines.collect()
}

#[test]
fn a_server_with_the_script_of_december_2025_is_moved_with_the_commands_of_the_page() {
    let Some(moved) = moved(Old::A) else { return };
    let place = &moved.place;
    // The old database is wrong in the ways that the page lists.
    let swapped = "2025-03-08T02:20:00Z"
        .parse::<chrono::DateTime<chrono::Utc>>()
        .expect("a time")
        .timestamp();
    assert!(
        moved.old_points.iter().any(|p| p.epoch == swapped),
        "3 August is on 8 March"
    );
    let of_night = |points: &[Point]| {
        points
            .iter()
            .filter(|p| (1_761_433_200..1_761_447_600).contains(&p.epoch))
            .count()
    };
    assert_eq!(
        of_night(&moved.old_points),
        18 * 2,
        "the second hour has overwritten the first"
    );

    let looked = moved.step(LOOK);
    assert!(
        looked.contains("see (a)")
            && looked.contains("acme: 2 campaigns; 1 waiting; 3 in parsed/; 3 in error/"),
        "{looked}"
    );
    moved.step(CHANGE_OVER);
    let mode = place
        .path("old/on-upload.sh")
        .metadata()
        .expect("metadata")
        .permissions()
        .mode();
    assert_eq!(mode & 0o111, 0, "SFTPGo does not start the old hook");
    moved.ingest(Old::A);
    moved.assert_points_of_the_files("acme");
    moved.assert_points_of_the_files("acme_1d");
    assert_eq!(of_night(&moved.new_points("acme")), 24 * 2);
    assert!(
        place
            .site
            .exists("acme/site/02001171/parsed/T302_250820_033000.tsv"),
        "the file of the outage"
    );
    assert!(
        place
            .site
            .exists("acme/site/02001171/error/rubbish.tsv.error.json")
    );

    let archived: Vec<_> = moved
        .bucket_names()
        .into_iter()
        .filter(|n| n.contains(".tsv_parser-"))
        .collect();
    assert_eq!(archived.len(), 2, "{archived:?}");
    assert!(
        points(&moved.influx, &archived[0]) == moved.old_points,
        "the old points are kept"
    );

    let (printed, _) = place.run_page(&commands_of(COMPARE));
    let counts = compared(&printed);
    let old_of = |campaign: &str| {
        moved
            .old_points
            .iter()
            .filter(|p| p.measurement == campaign)
            .count() as u64
    };
    let new_of = |campaign: &str| {
        place
            .expected("acme")
            .iter()
            .filter(|p| p.measurement == campaign)
            .count() as u64
    };
    assert_eq!(
        counts["atelier 1"],
        (old_of("atelier 1"), new_of("atelier 1")),
        "{printed}"
    );

    // A second run changes nothing.
    let tree = place.site.tree();
    let blocks = commands_of(INGEST);
    let (again, _) = place.run_page(&blocks);
    assert!(again.contains("acme is archived already"), "{again}");
    assert_eq!(place.site.tree(), tree);
    moved.assert_points_of_the_files("acme");

    let runs = "from(bucket: \"powerview_meta\") |> range(start: 0) |> filter(fn: (r) => r._measurement == \"tsv_parser_run\" \
        and r._field == \"nb_points_total\")";
    assert!(
        moved.influx.rows(runs).len() > 1,
        "the points about runs are beside those of the old script"
    );

    moved.step(DASHBOARDS);
    let made = place.read("dashboards");
    for (company, campaign) in [("acme", "atelier 1"), ("acme", "site"), ("acme_1d", "site")] {
        let line = json!({"company_name": company, "campaign_name": campaign});
        assert!(
            made.lines()
                .any(|l| serde_json::from_str::<Value>(l).ok() == Some(line.clone())),
            "{made}"
        );
    }
    moved.step(USERS);
    moved.step(CRON_JOBS);
    assert_eq!(place.read("cron/ubuntu"), "0 1 * * * backup\n");
    assert_eq!(place.read("cron/sftpgo"), "30 1 * * * other\n");

    let deleted = moved.step(DELETE);
    assert!(
        deleted.contains(&format!("deleted     bucket {}", archived[0])),
        "{deleted}"
    );
    assert_eq!(
        moved.bucket_names(),
        ["acme", "acme_1d", "first", "powerview_meta"]
            .map(str::to_owned)
            .into()
    );
    moved.assert_points_of_the_files("acme");
    assert!(place.path("old.old/.env").exists());
}

/// Makes what the newest old system makes beside the points, and returns the ids of the tokens.
fn add_old_resources(moved: &Moved) {
    let influx = &moved.influx;
    let post = |path: &str, body: &Value| {
        let (status, answer) = influx.request("POST", path, "application/json", &body.to_string());
        assert_eq!(status, 201, "{path}: {answer}");
    };
    let (_, orgs) = influx.request("GET", "/api/v2/orgs", "", "");
    let orgs: Value = serde_json::from_str(&orgs).expect("JSON");
    let org = &orgs["orgs"][0]["id"];
    for level in ["1h", "1w"] {
        influx.ensure_bucket(&format!("acme_{level}"));
        let flux = format!(
            "option task = {{name: \"downsample_acme_{level}\", every: {level}}}\nfrom(bucket: \"acme\") |> range(start: -task.every) \
             |> filter(fn: (r) => r._measurement == \"electrical\") |> aggregateWindow(every: {level}, fn: mean, createEmpty: false) \
             |> to(bucket: \"acme_{level}\")"
        );
        post("/api/v2/tasks", &json!({"orgID": org, "flux": flux}));
    }
    for company in ["acme", "acme_1d"] {
        let id = influx.bucket_id(company).expect("a bucket");
        let permissions = ["read", "write"].map(|action| json!({"action": action, "resource": {"type": "buckets", "id": id, "orgID": org}}));
        let description = format!("powerview_token_for_bucket_{company}");
        post(
            "/api/v2/authorizations",
            &json!({"orgID": org, "description": description, "permissions": permissions}),
        );
    }
    let mut state = moved.grafana.state();
    for (name, bucket) in [
        ("acme", "acme"),
        ("acme_bob", "acme"),
        ("acme_1d", "acme_1d"),
        ("acme_1d_eve", "acme_1d"),
    ] {
        let name = format!("influxdb_{name}");
        let source = json!({"id": 7, "uid": format!("uid-{name}"), "name": name, "type": "influxdb-adecwatts-datasource",
            "jsonData": {"defaultBucket": bucket, "httpHeaderName1": "Authorization"}});
        state.add_data_source(
            &name,
            source,
            json!({"token": "writes", "httpHeaderValue1": "Token writes"}),
        );
    }
    for company in ["acme", "acme_1d"] {
        state.add_folder(company, company);
        for uid in [
            format!("powerview_{company}"),
            format!("powerview_{company}_eve"),
            format!("other-{company}"),
        ] {
            state.add_dashboard(&uid, company, json!({"title": uid}));
        }
    }
}

/// The names of tasks and the descriptions of tokens.
fn tasks_and_tokens(influx: &RealInflux) -> (Vec<String>, Vec<String>) {
    let names = |path: &str, list: &str, key: &str| {
        let (_, answer) = influx.request("GET", path, "", "");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let items = answer[list].as_array().expect("a list").iter();
        let mut names: Vec<_> = items
            .map(|i| i[key].as_str().unwrap_or_default().to_owned())
            .collect();
        names.sort();
        names
    };
    let tasks = names("/api/v2/tasks", "tasks", "name");
    let mut tokens = names("/api/v2/authorizations", "authorizations", "description");
    tokens.retain(|t| t.starts_with("powerview"));
    (tasks, tokens)
}

#[test]
fn a_server_with_the_newest_old_system_is_moved_with_the_commands_of_the_page() {
    let Some(moved) = moved(Old::B) else { return };
    let place = &moved.place;
    // A campaign with the name of the old measurement.
    let file = FileBuilder::default()
        .line("22/08/25 03:20:00\t242.5\t31.25")
        .build();
    place
        .site
        .put_old("acme/electrical/02001171/parsed/x.tsv", &file);
    moved.influx.write(
        "acme",
        &old_points(Old::B, "x.tsv", file.as_bytes(), "electrical"),
        "s",
    );
    add_old_resources(&moved);
    let all_old = points(&moved.influx, "acme");

    let looked = moved.step(LOOK);
    for line in [
        "see (b)",
        "Grafana     acme: data source influxdb_acme_bob",
        "InfluxDB    acme: token powerview_token_for_bucket_acme",
        "InfluxDB    acme: task downsample_acme_1h",
        "InfluxDB    acme: bucket acme_1w",
        "InfluxDB    acme: measurement electrical in the bucket acme",
    ] {
        assert!(looked.contains(line), "{line}: {looked}");
    }
    moved.step(CHANGE_OVER);
    moved.ingest(Old::B);
    moved.assert_points_of_the_files("acme_1d");
    let of_files = place.expected("acme");
    let mut both = all_old.clone();
    both.extend(of_files.clone());
    assert!(
        points(&moved.influx, "acme") == stored(&both),
        "the new points are beside the old ones"
    );

    let (printed, _) = place.run_page(&commands_of(COMPARE));
    let counts = compared(&printed);
    assert_eq!(counts["electrical"], (2, 2), "{printed}");
    assert!(!counts.contains_key("powerview_1h"), "{printed}");
    let new = of_files
        .iter()
        .filter(|p| p.measurement == "atelier 1")
        .count() as u64;
    let old = all_old
        .iter()
        .filter(|p| p.tags["campaign"] == "atelier 1")
        .count() as u64;
    assert_eq!(counts["atelier 1"], (old, new), "{printed}");

    let removed = moved.step(DASHBOARDS);
    assert!(
        removed.contains("deleted     data source influxdb_acme_bob"),
        "{removed}"
    );
    let (tasks, tokens) = tasks_and_tokens(&moved.influx);
    assert_eq!((tasks.len(), tokens.len()), (2, 0), "{removed}");
    assert!(
        points(&moved.influx, "acme") == stored(&both),
        "the points are still there"
    );

    let deleted = moved.step(DELETE);
    assert!(points(&moved.influx, "acme") == of_files, "{deleted}");
    moved.assert_points_of_the_files("acme_1d");
    assert_eq!(
        moved.bucket_names(),
        ["acme", "acme_1d", "first", "powerview_meta"]
            .map(str::to_owned)
            .into(),
        "acme_1d is a company"
    );
    assert_eq!(tasks_and_tokens(&moved.influx), (vec![], vec![]));
    let state = moved.grafana.state();
    assert_eq!(
        state.data_sources.keys().collect::<Vec<_>>(),
        ["influxdb_acme", "influxdb_acme_1d"]
    );
    assert_eq!(
        state.dashboards.keys().collect::<Vec<_>>(),
        ["other-acme", "other-acme_1d"]
    );
    drop(state);

    let again = moved.place.old_system(&["remove", "acme"]);
    assert!(succeeded(&again).contains("nothing"), "{}", text(&again));
}

#[test]
fn nothing_is_deleted_without_a_yes_and_campaigns_that_would_be_lost_are_named() {
    let Some(moved) = moved(Old::B) else { return };
    moved.step(CHANGE_OVER);
    let mut command = moved.place.command(root().join("deploy/old-system"));
    let output = command
        .args(["remove", "acme"])
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(
        printed.contains("LOST        all points of the campaign atelier 1"),
        "{printed}"
    );
    assert!(points(&moved.influx, "acme") == moved.old_points);

    let compared = moved.place.old_system(&["compare", "acme"]);
    assert_eq!(compared.status.code(), Some(1), "{}", text(&compared));
}

#[test]
fn the_buckets_of_a_rebuild_and_those_of_the_old_system_are_told_apart() {
    let Some(moved) = moved(Old::A) else { return };
    let (place, influx) = (&moved.place, &moved.influx);
    let rebuild = |arguments: &[&str]| {
        let call = place.site.subcommand("rebuild").arg("--company=acme");
        let call = call.server(&influx.url(), influx.token(), influx.org());
        call.args(arguments).run()
    };
    let old = influx.bucket_id("acme").expect("a bucket");
    moved.step(CHANGE_OVER);
    moved.ingest(Old::A);
    let archived = |id: &str| {
        let (_, answer) = influx.request("GET", &format!("/api/v2/buckets/{id}"), "", "");
        let bucket: Value = serde_json::from_str(&answer).expect("JSON");
        bucket["name"].as_str().expect("a name").to_owned()
    };
    let archive = archived(&old);

    // The archive is no former bucket of a rebuild.
    let run = rebuild(&["--undo"]).expect(1);
    assert!(
        run.stderr.contains("nothing can be undone"),
        "{}",
        run.stderr
    );
    assert_eq!(archived(&old), archive);

    // The former bucket of a rebuild is nothing of the old system.
    let rebuilt = influx.bucket_id("acme").expect("a bucket");
    influx.write("acme", "other x=1 1754184000", "s");
    rebuild(&["--yes"]).expect(0);
    let former = archived(&rebuilt);
    assert!(former.starts_with("acme.before-"), "{former}");
    succeeded(&place.old_system(&["remove", "acme", "--yes"]));
    let names = moved.bucket_names();
    assert!(
        names.contains(&former) && !names.contains(&archive),
        "{names:?}"
    );

    // It does not prevent another archive, and is none to restore.
    let restored = place.old_system(&["restore", "acme"]);
    assert_eq!(restored.status.code(), Some(1), "{}", text(&restored));
    let current = influx.bucket_id("acme").expect("a bucket");
    succeeded(&place.old_system(&["archive", "acme"]));
    succeeded(&place.old_system(&["restore", "acme"]));
    assert_eq!(influx.bucket_id("acme"), Some(current));
}

#[test]
fn the_old_system_can_be_restored() {
    let Some(moved) = moved(Old::A) else { return };
    let place = &moved.place;
    let before = (
        place.read("old/.env"),
        place.read("root/etc/sftpgo/sftpgo.env"),
    );
    let volumes = ["influxdb2-data", "influxdb2-config", "grafana-data"];
    for name in volumes {
        place.put(&format!("volume/powerview_{name}/database"), "old");
    }
    moved.step(CHANGE_OVER);
    for name in volumes {
        place.put(&format!("volume/powerview_{name}/database"), "new");
        place.put(&format!("volume/powerview_{name}/added"), "new");
    }
    moved.step(CHANGE_OVER);
    moved.ingest(Old::A);
    assert_ne!(place.read("root/etc/sftpgo/sftpgo.env"), before.1);

    let blocks = commands_of(GO_BACK);
    assert_eq!(
        blocks.len(),
        3,
        "the system, the files since then, a bucket"
    );
    moved.blocks(&blocks[..1]);
    assert_eq!(
        (
            place.read("old/.env"),
            place.read("root/etc/sftpgo/sftpgo.env")
        ),
        before
    );
    let mode = place
        .path("old/on-upload.sh")
        .metadata()
        .expect("metadata")
        .permissions()
        .mode();
    assert_eq!(mode & 0o111, 0o111, "SFTPGo can start the old hook");
    let calls = place.read("calls");
    let down = calls
        .find("docker-compose down")
        .expect("the old containers are stopped");
    let restored = calls.rfind("docker run").expect("the copies back");
    assert!(
        down < restored && calls.trim_end().ends_with("systemctl restart sftpgo"),
        "{calls}"
    );
    for name in volumes {
        let folder = format!("volume/powerview_{name}");
        assert_eq!(place.read(&format!("{folder}/database")), "old", "{name}");
        assert!(!place.path(&format!("{folder}/added")).exists(), "{name}");
    }

    let since = chrono::Local::now() - chrono::TimeDelta::minutes(10);
    let since = since.format("%Y-%m-%d %H:%M").to_string();
    let files = blocks[1].replace("2026-11-26 08:00", &since);
    assert_ne!(files, blocks[1]);
    moved.blocks(&[files]);
    let waiting = place.site.tree();
    for name in ["T302_250821_033000.tsv", "T302_250820_033000.tsv"] {
        assert!(
            waiting.contains(&format!("acme/site/02001171/{name}")),
            "{waiting:#?}"
        );
    }

    moved.blocks(&blocks[2..]);
    assert!(points(&moved.influx, "acme") == moved.old_points);

    let ten_years = 10 * 365 * 86_400;
    moved.influx.create_bucket("beta", ten_years);
    succeeded(&place.old_system(&["archive", "beta"]));
    let (_, answer) = moved
        .influx
        .request("GET", "/api/v2/buckets?name=beta", "", "");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let rules = &answer["buckets"][0]["retentionRules"][0];
    assert_eq!(
        rules["everySeconds"], ten_years,
        "the new bucket has the retention of the old one"
    );
    let week = 604_800;
    assert_eq!(
        rules["shardGroupDurationSeconds"], week,
        "and its shards, as it has a retention"
    );
    assert_eq!(
        moved
            .bucket_names()
            .iter()
            .filter(|n| n.starts_with("acme.powerview-"))
            .count(),
        1
    );
}
