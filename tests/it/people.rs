//! `powerview-company` and `powerview-user`, with a real SFTPGo (`SFTPGO_BIN`), Ansible and the double of Grafana.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::ansible::Scene;
use crate::grafana_double::{ADMIN_TOKEN, ORG, PASSWORD, USER, User};
use crate::postgres::Postgres;
use crate::sftp_client::Session;
use crate::sftpgo::{self, Setup};

const SFTPGO_PASSWORD: &str = "sftpgo-admin-secret-2718";

/// The servers, and a folder with their settings in `.env`.
struct Place {
    scene: Scene,
    sftpgo: Option<sftpgo::Site>,
}

impl Place {
    /// Without SFTPGo. Skips the calling test without Ansible.
    fn new() -> Option<Self> {
        let scene = Scene::new()?;
        let place = Self {
            scene,
            sftpgo: None,
        };
        place.write_env("http://127.0.0.1:1", SFTPGO_PASSWORD);
        Some(place)
    }

    /// With SFTPGo. Skips the calling test without one.
    fn with_sftpgo() -> Option<Self> {
        Self::with_sftp_users(&[], Value::Null)
    }

    /// With SFTPGo, and users of companies that were not created by `powerview-company`, with this storage.
    fn with_sftp_users(companies: &[&str], filesystem: Value) -> Option<Self> {
        let http_port = sftpgo::free_port().to_string();
        Self::with_settings(&http_port, companies, filesystem, &[])
    }

    /// With SFTPGo, whose API has this port, and more settings of it.
    fn with_settings(
        http_port: &str,
        companies: &[&str],
        filesystem: Value,
        more: &[(&str, &str)],
    ) -> Option<Self> {
        let program = sftpgo::program()?;
        let scene = Scene::new()?;
        let settings = [&admin_settings(http_port)[..], more].concat();
        let sftpgo = sftpgo::Site::start(&Setup {
            settings: &settings,
            companies,
            filesystem,
            ..Setup::new(&program)
        });
        let place = Self {
            scene,
            sftpgo: Some(sftpgo),
        };
        place.write_env(&format!("http://127.0.0.1:{http_port}"), SFTPGO_PASSWORD);
        Some(place)
    }

    fn sftpgo(&self) -> &sftpgo::Site {
        self.sftpgo.as_ref().expect("a place with SFTPGo")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.dir.path().join(name)
    }

    fn write_env(&self, sftpgo_url: &str, sftpgo_password: &str) {
        let base = match &self.sftpgo {
            Some(site) => site.path("sftpgo"),
            None => self.path(""),
        };
        let url = &self.scene.double.url;
        let env = format!(
            "GRAFANA_URL={url}\nGRAFANA_USERNAME={USER}\nGRAFANA_PASSWORD='{PASSWORD}'\n\
             INFLUXDB_HOST={url}\nINFLUXDB_ORG={ORG}\nINFLUXDB_ADMIN_TOKEN={ADMIN_TOKEN}\n\
             GRAFANA_INFLUXDB_URL=http://influxdb:8086\nSFTPGO_BASE={}\n\
             SFTPGO_URL={sftpgo_url}\nSFTPGO_ADMIN_USERNAME=operator\n\
             SFTPGO_ADMIN_PASSWORD=\"{sftpgo_password}\"\nANSIBLE_PLAYBOOK_BIN={}\n",
            base.display(),
            self.scene.ansible().display()
        );
        fs::write(self.path(".env"), env).expect("a file");
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(program));
        command
            .args(args)
            .current_dir(self.scene.dir.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("POWERVIEW_BASE", self.scene.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a program. Returns what it printed on stdout, or on stderr if it failed.
    fn run(&self, program: &str, args: &[&str], exit_code: i32) -> String {
        let output = self.command(program, args).output().expect("it starts");
        assert_eq!(
            output.status.code(),
            Some(exit_code),
            "{args:?}: {}",
            text(&output)
        );
        let shown = if exit_code == 0 {
            output.stdout
        } else {
            output.stderr
        };
        String::from_utf8(shown).expect("UTF-8")
    }

    fn company(&self, args: &[&str]) -> String {
        self.run("powerview-company", args, 0)
    }

    fn user(&self, args: &[&str]) -> String {
        self.run("powerview-user", args, 0)
    }

    fn user_is_refused(&self, args: &[&str]) -> String {
        let before = self.scene.double.state().changes.clone();
        let printed = self.run("powerview-user", args, 1);
        assert_eq!(self.scene.double.state().changes, before, "{args:?}");
        printed
    }

    /// Adds teams without the slow playbook. Returns their ids.
    fn add_teams<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        names.map(|name| self.scene.double.state().add_team(name))
    }

    fn stored_user(&self, mail: &str) -> User {
        let state = self.scene.double.state();
        state.user(mail).expect("the user exists").clone()
    }

    /// Runs SFTP commands with a password. Returns whether all succeeded.
    fn sftp(&self, user: &str, password: &str, commands: &str) -> bool {
        self.sftp_to(self.sftpgo(), user, password, commands)
    }

    fn sftp_to(&self, host: &sftpgo::Site, user: &str, password: &str, commands: &str) -> bool {
        let batch = self.path("batch");
        fs::write(&batch, commands).expect("a file");
        Command::new("sshpass")
            .args(["-e", "sftp", "-F", "none", "-o", "BatchMode=no", "-b"])
            .arg(&batch)
            .args(["-P", &host.port.to_string()])
            .args(["-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "PreferredAuthentications=password"])
            .arg(format!("{user}@127.0.0.1"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SSHPASS", password)
            .stdin(Stdio::null())
            .output()
            .expect("sftp starts")
            .status
            .success()
    }
}

/// The settings of an SFTPGo with an administrator and an API at this port.
fn admin_settings(http_port: &str) -> [(&str, &str); 5] {
    [
        ("SFTPGO_HTTPD__BINDINGS__0__PORT", http_port),
        ("SFTPGO_HTTPD__BINDINGS__0__ADDRESS", "127.0.0.1"),
        ("SFTPGO_DATA_PROVIDER__CREATE_DEFAULT_ADMIN", "true"),
        ("SFTPGO_DEFAULT_ADMIN_USERNAME", "operator"),
        ("SFTPGO_DEFAULT_ADMIN_PASSWORD", SFTPGO_PASSWORD),
    ]
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The password that a program showed.
fn password_in(printed: &str) -> String {
    let line = printed
        .lines()
        .find_map(|l| l.strip_prefix("password:"))
        .unwrap_or_else(|| panic!("no password in {printed}"));
    let password = line.split_whitespace().next().expect("a password");
    assert_eq!(password.len(), 24, "{printed}");
    assert!(password.chars().all(|c| c.is_ascii_alphanumeric()));
    password.to_owned()
}

/// Runs `work` and returns its result and the command lines of all processes meanwhile.
fn command_lines<T>(work: impl FnOnce() -> T) -> (T, BTreeSet<String>) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").expect("/proc").flatten() {
                    if let Ok(line) = fs::read(entry.path().join("cmdline")) {
                        seen.insert(String::from_utf8_lossy(&line).replace('\0', " "));
                    }
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, watcher.join().expect("the watcher"))
    })
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_company_gets_an_sftp_user_with_a_password_that_is_shown_once() {
    let Some(place) = Place::with_sftpgo() else {
        return;
    };
    let log = place.path("ansible.log");
    let (output, seen) = command_lines(|| {
        place
            .command("powerview-company", &["add", "Société Été"])
            .env("ANSIBLE_LOG_PATH", &log)
            .env("ANSIBLE_VERBOSITY", "3")
            .output()
            .expect("it starts")
    });
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    let password = password_in(&printed);
    assert!(seen.iter().any(|l| l.contains("add_company.yml")));
    let logged = fs::read_to_string(&log).expect("Ansible's log");
    for secret in [&password, SFTPGO_PASSWORD, PASSWORD, ADMIN_TOKEN] {
        let line = seen.iter().find(|l| l.contains(secret));
        assert_eq!(line, None, "a secret on a command line");
        assert!(!logged.contains(secret), "{logged}");
    }
    {
        let state = place.scene.double.state();
        assert!(state.team_id("Société Été").is_some());
        assert!(state.folder_uid("Société Été").is_some());
        assert!(state.bucket_id("Société Été").is_some());
        assert!(state.data_sources.contains_key("influxdb_Société Été"));
    }

    let home = place.sftpgo().data().join("Société Été");
    let batch = place.path("batch").display().to_string();
    let uploads = "mkdir site\nmkdir site/1\nput batch site/1/x.tsv\nrename site/1/x.tsv site/1/y.tsv\n\
                   put batch site/1/y.tsv\nget site/1/y.tsv\nls site\nput batch z\nrm z\nmkdir d\nrmdir d\n\
                   put batch site/1/.z.tsv\nput batch site/1/powerview-z.tsv\n";
    let uploads = uploads.replace("batch", &batch);
    let uploads = uploads.replace(
        "get site/1/y.tsv",
        &format!("get site/1/y.tsv {}", place.path("copy").display()),
    );
    assert!(place.sftp("Société Été", &password, &uploads));
    assert!(home.join("site/1/y.tsv").is_file());
    fs::write(home.join("site/1/.powerview-layout.json"), "{}").expect("a file");
    for refused in [
        "symlink site/1/y.tsv link\n",
        "chmod 777 site\n",
        "chown 0 site\n",
        // Names of the program.
        &format!("put {batch} site/1/.powerview-layout.json\n"),
        &format!("put {batch} site/1/.powerview-retired\n"),
        &format!("put {batch} site/1/.powerview-rollup.json\n"),
        &format!("put {batch} site/.dashboard.created\n"),
        "rename site/1/y.tsv site/1/.POWERVIEW-layout.json\n",
        "rename site/1/.powerview-layout.json site/1/z\n",
        "rm site/1/.powerview-layout.json\n",
        "mkdir site/1/.powerview-layout.tmp\n",
    ] {
        assert!(!place.sftp("Société Été", &password, refused), "{refused}");
    }
    assert!(!place.sftp("Société Été", "another", "ls\n"));

    let changes = place.scene.double.state().changes.len();
    let again = place.company(&["add", "Société Été"]);
    assert!(
        again.contains("unchanged; it keeps its password"),
        "{again}"
    );
    assert!(!again.contains("password:"), "{again}");
    assert_eq!(place.scene.double.state().changes.len(), changes);
    assert!(place.sftp("Société Été", &password, "ls\n"));

    let new = password_in(&place.company(&["add", "Société Été", "--new-password"]));
    assert!(place.sftp("Société Été", &new, "ls\n"));
    assert!(!place.sftp("Société Été", &password, "ls\n"));
    assert!(home.join("site/1/y.tsv").is_file());
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_company_logs_in_with_a_public_key() {
    let Some(place) = Place::with_sftpgo() else {
        return;
    };
    let key = place.path("key");
    let made = Command::new("ssh-keygen")
        .args([
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            "a {{ comment }}",
            "-f",
        ])
        .arg(&key)
        .status();
    assert!(made.expect("ssh-keygen starts").success());
    let public = format!("{}.pub", key.display());
    for _ in 0..2 {
        let printed = place.company(&["add", "acme", "--key", &public]);
        assert!(!printed.contains("password:"), "{printed}");
        let session = Session::connect("acme", place.sftpgo().port, &key).expect("a session");
        session.end().expect("an end");
    }
    let private = key.display().to_string();
    let refused = place.run("powerview-company", &["add", "acme", "--key", &private], 2);
    assert!(refused.contains("is not a public key"), "{refused}");
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn an_sftp_user_that_exists_is_no_longer_allowed_to_write_files_of_the_program() {
    let Some(place) = Place::with_sftp_users(&["acme"], Value::Null) else {
        return;
    };
    let batch = place.path("batch").display().to_string();
    let put = |name: &str| place.sftp("acme", sftpgo::PASSWORD, &format!("put {batch} {name}\n"));
    assert!(put(".powerview-retired"));
    let printed = place.company(&["add", "acme"]);
    assert!(
        printed.contains("updated; it keeps its password"),
        "{printed}"
    );
    assert!(!put(".powerview-retired"));
    assert!(put("x.tsv"));
    let printed = place.company(&["add", "acme"]);
    assert!(
        printed.contains("unchanged; it keeps its password"),
        "{printed}"
    );
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn removing_a_company_takes_away_access_and_keeps_measurements() {
    let Some(place) = Place::with_sftpgo() else {
        return;
    };
    let password = password_in(&place.company(&["add", "acme"]));
    place.company(&["add", "beta"]);
    assert!(place.sftp("acme", &password, "mkdir site\n"));
    let file = place.sftpgo().data().join("acme/site/x.tsv");
    fs::write(&file, "measurements").expect("a file");
    {
        let mut state = place.scene.double.state();
        let [acme, beta] = ["acme", "beta"].map(|name| state.team_id(name).expect("a team"));
        state.add_user("only@example.org").teams = vec![acme];
        state.add_user("both@example.org").teams = vec![acme, beta];
        let admin = state.add_user("admin@example.org");
        (admin.teams, admin.is_admin) = (vec![acme], true);
        let editor = state.add_user("editor@example.org");
        editor.teams = vec![acme];
        editor.orgs.insert(1, "Editor".into());
    }

    let before = place.scene.double.state().changes.len();
    let refused = place.run("powerview-company", &["remove", "acme"], 1);
    assert!(refused.contains("nothing removed"), "{refused}");
    assert_eq!(place.scene.double.state().changes.len(), before);
    assert!(place.sftp("acme", &password, "ls\n"));

    for _ in 0..2 {
        let printed = place.company(&["remove", "acme", "--yes"]);
        assert!(printed.contains("SFTP user 'acme': disabled"), "{printed}");
        assert!(!place.sftp("acme", &password, "ls\n"));
        assert_eq!(fs::read_to_string(&file).expect("kept"), "measurements");
        for (mail, is_disabled, teams) in [
            ("only@example.org", true, 0),
            ("both@example.org", false, 1),
            ("admin@example.org", false, 0),
            ("editor@example.org", false, 0),
        ] {
            let user = place.stored_user(mail);
            assert_eq!(user.is_disabled, is_disabled, "{mail}");
            assert_eq!(user.teams.len(), teams, "{mail}");
        }
        let state = place.scene.double.state();
        assert!(state.bucket_id("acme").is_some() && state.folder_uid("acme").is_some());
    }
    let listed = place.company(&["list"]);
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][0], "company");
    assert_eq!(rows[1], ["acme", "disabled", "0"]);
    assert_eq!(rows[2], ["beta", "enabled", "1"]);
    assert_eq!(rows.len(), 3, "{listed}");

    let again = place.company(&["add", "acme"]);
    assert!(again.contains("enabled again"), "{again}");
    assert!(place.sftp("acme", &password, "ls\n"));
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn an_sftp_user_of_another_folder_is_not_touched() {
    let Some(place) = Place::with_sftpgo() else {
        return;
    };
    let password = password_in(&place.company(&["add", "acme"]));
    // The same user, as seen by an installation with another data folder.
    let env = fs::read_to_string(place.path(".env")).expect("a file");
    let base = place.sftpgo().path("sftpgo").display().to_string();
    let elsewhere = env.replace(&format!("SFTPGO_BASE={base}"), "SFTPGO_BASE=/srv/elsewhere");
    assert_ne!(elsewhere, env);
    fs::write(place.path(".env"), elsewhere).expect("a file");
    let changes = place.scene.double.state().changes.len();
    for args in [&["add", "acme"][..], &["remove", "acme", "--yes"]] {
        let refused = place.run("powerview-company", args, 1);
        let wanted = format!("has the home {base}/data/acme, not /srv/elsewhere/data/acme");
        assert!(refused.contains(&wanted), "{refused}");
    }
    assert_eq!(place.scene.double.state().changes.len(), changes);
    assert!(place.sftp("acme", &password, "ls\n"));
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn an_sftp_user_with_another_storage_than_the_local_disk_is_refused() {
    let encrypted = json!({"provider": 4, "cryptconfig":
        {"passphrase": {"status": "Plain", "payload": "q8T3kV9zL2mX7pR4wN6yB1cF5hJ0dGsA"}}});
    let Some(place) = Place::with_sftp_users(&["acme"], encrypted) else {
        return;
    };
    let refused = place.run("powerview-company", &["add", "acme"], 1);
    for part in ["the user 'acme'", "set the storage to \"Local disk\""] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(place.scene.double.state().changes, [""; 0]);
    assert!(place.sftp("acme", sftpgo::PASSWORD, "ls\n"));
    // Its access can be taken away all the same.
    place.company(&["remove", "acme", "--yes"]);
    assert!(!place.sftp("acme", sftpgo::PASSWORD, "ls\n"));
}

/// Two hosts with an SFTPGo each share the users in a database. The programs are called on the first.
#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_company_that_one_host_adds_logs_in_at_the_other_until_it_is_removed() {
    let Some(program) = sftpgo::program() else {
        return;
    };
    let Some(postgres) = Postgres::start() else {
        return;
    };
    for are_nodes in [true, false] {
        let ports = [(); 2].map(|()| sftpgo::free_port().to_string());
        let mut shared = [postgres.settings().to_vec(), postgres.settings().to_vec()];
        if are_nodes {
            for (settings, port) in shared.iter_mut().zip(&ports) {
                settings.extend([
                    ("SFTPGO_HTTPD__BINDINGS__1__ADDRESS", "127.0.0.2"),
                    ("SFTPGO_HTTPD__BINDINGS__1__PORT", port),
                    ("SFTPGO_DATA_PROVIDER__NODE__HOST", "127.0.0.2"),
                    ("SFTPGO_DATA_PROVIDER__NODE__PORT", port),
                ]);
            }
        }
        let Some(place) = Place::with_settings(&ports[0], &[], Value::Null, &shared[0]) else {
            return;
        };
        let company = if are_nodes { "acme" } else { "base" };
        let settings = [&admin_settings(&ports[1])[..], &shared[1]].concat();
        let other = sftpgo::Site::start(&Setup {
            settings: &settings,
            ..Setup::new(&program)
        });

        let key = place.path("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.expect("ssh-keygen starts").success());
        let public = format!("{}.pub", key.display());
        place.company(&["add", company, "--key", &public]);
        let change = || password_in(&place.company(&["add", company, "--new-password"]));
        let first = change();
        assert!(place.sftp_to(&other, company, &first, "mkdir site\n"));
        assert!(place.sftpgo().data().join(company).join("site").is_dir());
        let second = change();
        assert!(place.sftp_to(&other, company, &second, "ls\n"));
        assert!(!place.sftp_to(&other, company, &first, "ls\n"));

        let mut session = Session::connect(company, other.port, &key).expect("a session");
        session.mkdir("site/1").expect("a folder");
        place.company(&["remove", company, "--yes"]);
        assert!(!place.sftp_to(&other, company, &second, "ls\n"));
        // The session at the other host ends only if the first one knows that host.
        assert_eq!(session.mkdir("site/2").is_err(), are_nodes);
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_company_that_could_not_be_added_completely_can_be_added_again() {
    let Some(place) = Place::with_sftpgo() else {
        return;
    };
    place.scene.double.state().break_after = Some(4);
    let failed = place.run("powerview-company", &["add", "acme"], 1);
    assert!(failed.contains("run this again"), "{failed}");
    place.scene.double.state().break_after = None;

    let env = fs::read_to_string(place.path(".env")).expect("a file");
    fs::write(place.path(".env"), env.replace(SFTPGO_PASSWORD, "wrong")).expect("a file");
    let failed = place.run("powerview-company", &["add", "acme"], 1);
    assert!(failed.contains("SFTPGo answered 401"), "{failed}");
    assert!(failed.contains("correct SFTPGO_ADMIN_USERNAME"), "{failed}");
    assert!(!failed.contains("wrong"), "{failed}");
    fs::write(place.path(".env"), env).expect("a file");

    let password = password_in(&place.company(&["add", "acme"]));
    assert!(place.sftp("acme", &password, "ls\n"));
}

#[test]
fn arguments_are_checked_before_anything_is_asked_of_a_server() {
    let Some(place) = Place::new() else { return };
    let canary = place.path("canary");
    let template = format!("{{{{ lookup('pipe', 'touch {}') }}}}", canary.display());
    for name in [
        &template,
        "../x",
        "-x",
        ".x",
        "a/b",
        "a\"b",
        "",
        "powerview_meta",
    ] {
        for args in [&["add", name][..], &["remove", name, "--yes"]] {
            place.run("powerview-company", args, 2);
        }
        place.run("powerview-user", &["add", name, "a@example.org"], 2);
    }
    for mail in [
        &template,
        "a",
        "a@b",
        "a b@example.org",
        "-a@example.org",
        "é@example.org",
        "",
    ] {
        place.run("powerview-user", &["add", "acme", mail], 2);
    }
    for args in [
        &["add"][..],
        &["add", "a", "b"],
        &["list", "a"],
        &["drop", "a"],
        &["add", "a", "--yes"],
        &["add", "a", "--move"],
        &["add", "a", "--key"],
        &[],
    ] {
        let refused = place.run("powerview-company", args, 2);
        assert!(refused.contains("powerview-company"), "{refused}");
    }
    assert!(!canary.exists());
    assert_eq!(place.scene.double.state().requests, [""; 0]);
    for program in ["powerview-company", "powerview-user"] {
        let help = place.run(program, &["--help"], 0);
        assert!(help.starts_with(&format!("Usage: {program} add")), "{help}");
    }
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let Some(place) = Place::new() else { return };
    let failed = place.run("powerview-company", &["add", "acme"], 1);
    assert!(
        failed.contains("SFTPGo does not answer at http://127.0.0.1:1"),
        "{failed}"
    );
    assert!(failed.contains("correct SFTPGO_URL in .env"), "{failed}");
    assert_eq!(place.scene.double.state().changes, [""; 0]);
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn users_of_a_company_get_passwords_that_are_shown_once() {
    let Some(place) = Place::new() else { return };
    let [team] = place.add_teams(["acme"]);
    let first = password_in(&place.user(&["add", "acme", "Anna@Example.org"]));
    let second = password_in(&place.user(&["add", "acme", "bob+x@example.org"]));
    assert_ne!(first, second);
    for (mail, password) in [("anna@example.org", &first), ("bob+x@example.org", &second)] {
        let user = place.stored_user(mail);
        assert_eq!(&user.password, password);
        assert_eq!(user.teams, [team]);
        assert_eq!(user.orgs[&1], "Viewer");
    }
    let listed = place.user(&["list", "acme"]);
    assert_eq!(listed, "anna@example.org\nbob+x@example.org\n");

    let changes = place.scene.double.state().changes.len();
    let again = place.user(&["add", "acme", "anna@example.org"]);
    assert!(again.contains("unchanged; the password is kept"), "{again}");
    assert_eq!(place.scene.double.state().changes.len(), changes);

    let new = password_in(&place.user(&["add", "acme", "anna@example.org", "--new-password"]));
    assert_eq!(place.stored_user("anna@example.org").password, new);
    assert_ne!(new, first);
    for request in &place.scene.double.state().requests {
        assert!(
            !request.contains(&new) && !request.contains(&first),
            "{request}"
        );
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn nobody_is_moved_unnoticed() {
    let Some(place) = Place::new() else { return };
    let [acme, beta] = place.add_teams(["acme", "beta"]);
    place
        .scene
        .double
        .state()
        .add_user("anna@example.org")
        .teams = vec![beta];
    let refused = place.user_is_refused(&["add", "acme", "anna@example.org"]);
    for part in ["belongs to 'beta'", "--move", "--also"] {
        assert!(refused.contains(part), "{refused}");
    }
    place.user(&["add", "acme", "anna@example.org", "--also"]);
    assert_eq!(place.stored_user("anna@example.org").teams, [beta, acme]);
    // A member of both stays in both.
    place.user(&["add", "acme", "anna@example.org"]);
    assert_eq!(place.stored_user("anna@example.org").teams, [beta, acme]);
    let moved = place.user(&["add", "acme", "anna@example.org", "--move"]);
    assert!(moved.contains("no longer in beta"), "{moved}");
    let user = place.stored_user("anna@example.org");
    assert_eq!(
        (user.teams, user.password.as_str()),
        (vec![acme], "of-the-user")
    );

    {
        let mut state = place.scene.double.state();
        state.add_user("other@example.org").orgs = [(2, "Viewer".to_owned())].into();
        state.add_user("boss@example.org").is_admin = true;
        state.add_user("editor@example.org").orgs = [(1, "Editor".to_owned())].into();
    }
    for option in [None, Some("--move")] {
        let args: Vec<&str> = ["add", "acme", "other@example.org"]
            .into_iter()
            .chain(option)
            .collect();
        let refused = place.user_is_refused(&args);
        assert!(
            refused.contains("another organisation of Grafana (Org 2)"),
            "{refused}"
        );
    }
    for mail in ["boss@example.org", "editor@example.org"] {
        let refused = place.user_is_refused(&["add", "acme", mail, "--also"]);
        assert!(refused.contains("can see all companies"), "{refused}");
    }
    place.user(&["add", "acme", "other@example.org", "--also"]);
    let user = place.stored_user("other@example.org");
    assert_eq!(user.teams, [acme]);
    assert_eq!(user.orgs.len(), 2, "it stays in the other organisation");
    assert_eq!(user.orgs[&1], "Viewer");

    let refused = place.user_is_refused(&["add", "acne", "new@example.org"]);
    assert!(refused.contains("there is no company 'acne'"), "{refused}");
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_user_who_is_removed_from_the_last_company_is_disabled() {
    let Some(place) = Place::new() else { return };
    let [acme, beta] = place.add_teams(["acme", "beta"]);
    place
        .scene
        .double
        .state()
        .add_user("anna@example.org")
        .teams = vec![acme, beta];
    let refused = place.user_is_refused(&["remove", "acme", "anna@example.org"]);
    assert!(refused.contains("nothing removed"), "{refused}");

    let printed = place.user(&["remove", "acme", "anna@example.org", "--yes"]);
    assert_eq!(printed, "user 'anna@example.org': removed\n");
    let user = place.stored_user("anna@example.org");
    assert_eq!((user.teams, user.is_disabled), (vec![beta], false));
    let printed = place.user(&["remove", "acme", "anna@example.org", "--yes"]);
    assert_eq!(printed, "user 'anna@example.org': is not in the company\n");
    let printed = place.user(&["remove", "acme", "nobody@example.org", "--yes"]);
    assert_eq!(printed, "user 'nobody@example.org': there is none\n");

    // The user was disabled, but not yet removed from the team.
    let changes = place.scene.double.state().changes.len();
    place.scene.double.state().break_after = Some(changes + 1);
    let failed = place.run(
        "powerview-user",
        &["remove", "beta", "anna@example.org", "--yes"],
        1,
    );
    assert!(failed.contains("run this again"), "{failed}");
    place.scene.double.state().break_after = None;
    place.user(&["remove", "beta", "anna@example.org", "--yes"]);
    let user = place.stored_user("anna@example.org");
    assert_eq!((user.teams, user.is_disabled), (vec![], true));

    let again = place.user(&["add", "acme", "anna@example.org"]);
    assert!(again.contains("added; enabled again"), "{again}");
    let user = place.stored_user("anna@example.org");
    assert_eq!((user.teams, user.is_disabled), (vec![acme], false));
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_user_who_could_not_be_added_completely_can_be_added_again() {
    // Create, make a viewer, add to the team.
    for changes in 1..=3 {
        let Some(place) = Place::new() else { return };
        let [acme] = place.add_teams(["acme"]);
        place.scene.double.state().break_after = Some(changes);
        let output = place
            .command("powerview-user", &["add", "acme", "anna@example.org"])
            .output()
            .expect("it starts");
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        // If the answer to the creation is lost, the password is, too.
        let shown = String::from_utf8_lossy(&output.stdout).contains("password:");
        assert_eq!(shown, changes > 1, "after {changes} changes");
        place.scene.double.state().break_after = None;

        let again = place.user(&["add", "acme", "anna@example.org"]);
        assert!(again.contains("--new-password replaces it"), "{again}");
        let user = place.stored_user("anna@example.org");
        assert_eq!((user.teams, user.orgs[&1].as_str()), (vec![acme], "Viewer"));
    }
}
