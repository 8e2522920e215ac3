//! The playbooks, run by Ansible with a double of Grafana and InfluxDB (`grafana_double`).

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::grafana::UID_OF_SITE;
use crate::grafana_double::{
    ADMIN_TOKEN, Double, ORG, PASSWORD, State, USER, headers_of_a_query, sign_in_of_the_proxy,
};
use crate::real_influx::{RealInflux, kept_in_long_shards};
use crate::skipped::skipped;

/// The paths of Ansible: the one in the environment, otherwise all that exist. Skips the calling test if there is none.
fn ansibles() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("ANSIBLE_PLAYBOOK_BIN") {
        return vec![named.into()];
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![
        root.join("target/ansible/bin/ansible-playbook"),
        "/usr/bin/ansible-playbook".into(),
    ];
    found.retain(|p| p.exists());
    if found.is_empty() {
        skipped("ansible-playbook", "apt install ansible-core");
    }
    found
}

/// A server for the playbooks: the double, a data folder, and Ansible.
pub struct Scene {
    pub double: Double,
    pub dir: tempfile::TempDir,
    ansible: PathBuf,
}

impl Scene {
    /// Returns `None` and skips the calling test without Ansible.
    pub fn new() -> Option<Self> {
        ansibles().into_iter().next().map(Self::with)
    }

    fn with(ansible: PathBuf) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("data")).expect("a folder");
        Self {
            double: Double::start(),
            dir,
            ansible,
        }
    }

    pub fn ansible(&self) -> &Path {
        &self.ansible
    }

    pub fn campaign(&self, company: &str, campaign: &str) -> PathBuf {
        let path = self.dir.path().join("data").join(company).join(campaign);
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    pub fn command(&self, playbook: &str, vars: &Value) -> Command {
        let mut command = self.command_without_inventory(playbook, vars);
        command.args(["-i", "localhost,"]);
        command
    }

    /// The command of the old hook, which passes no `-i`.
    fn command_without_inventory(&self, playbook: &str, vars: &Value) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana-automation");
        let mut command = Command::new(&self.ansible);
        command
            .arg(root.join("playbooks").join(playbook))
            .args(["-e", &vars.to_string()])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("LC_ALL", "C.UTF-8")
            .env("ANSIBLE_CONFIG", root.join("ansible.cfg"))
            .env("GRAFANA_URL", &self.double.url)
            .env("GRAFANA_USERNAME", USER)
            .env("GRAFANA_PASSWORD", PASSWORD)
            .env("INFLUXDB_HOST", &self.double.url)
            .env("INFLUXDB_ORG", ORG)
            .env("INFLUXDB_ADMIN_TOKEN", ADMIN_TOKEN)
            .env("GRAFANA_INFLUXDB_URL", "http://influxdb:8086")
            .env("SFTPGO_BASE", self.dir.path());
        command
    }

    fn create(&self, company: &str, campaign: &str) -> Output {
        self.campaign(company, campaign);
        run(&mut self.command("create_grafana_resources.yml", &names(company, campaign)))
    }

    fn created(&self, company: &str, campaign: &str) {
        let output = self.create(company, campaign);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn deleted(&self, company: &str) -> Output {
        let vars = json!({"company_name": company, "confirm_delete": "yes"});
        let output = run(&mut self.command("delete_grafana_resources.yml", &vars));
        assert!(output.status.success(), "{}", text(&output));
        output
    }
}

fn names(company: &str, campaign: &str) -> Value {
    json!({"company_name": company, "campaign_name": campaign})
}

fn run(command: &mut Command) -> Output {
    command.output().expect("Ansible starts")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Checks the result of a run for a campaign, whatever existed before.
fn assert_resources(state: &State, company: &str, campaign: &str) {
    let team = state.team_id(company).expect("a team");
    let view = json!([{"teamId": team, "permission": 1}]);
    let folder = state.folder_uid(company).expect("a folder");
    assert_eq!(json!(state.folders[&folder].1), view, "who sees the folder");

    let bucket = state.bucket_id(company).expect("a bucket");
    let (source, secrets) = &state.data_sources[&format!("influxdb_{company}")];
    assert_eq!(source["type"], "influxdb");
    assert_eq!(source["url"], "http://influxdb:8086");
    assert_eq!(source["jsonData"]["version"], "Flux");
    assert_eq!(source["jsonData"]["organization"], ORG);
    assert_eq!(source["jsonData"]["defaultBucket"], company);
    let held: Vec<&Value> = state
        .tokens
        .values()
        .filter(|t| t["token"] == secrets["token"])
        .collect();
    assert_eq!(
        held.len(),
        1,
        "the data source's token is one of InfluxDB's"
    );
    let permissions = held[0]["permissions"].as_array().expect("a list");
    assert_eq!(permissions.len(), 1);
    assert_eq!(permissions[0]["action"], "read");
    assert_eq!(permissions[0]["resource"]["type"], "buckets");
    assert_eq!(permissions[0]["resource"]["id"], json!(bucket));
    let of_company = state
        .tokens
        .values()
        .filter(|t| t["permissions"][0]["resource"]["id"] == json!(bucket));
    assert_eq!(of_company.count(), 1, "no token is left behind");

    for title in [campaign, OVERVIEW] {
        let titled: Vec<_> = state
            .dashboards
            .iter()
            .filter(|(_, d)| d.0 == folder && d.1["title"] == title)
            .collect();
        let [(uid, (_, model, rights))] = titled[..] else {
            panic!("{} dashboards {title} in the folder", titled.len())
        };
        assert_eq!(json!(rights), view, "who sees the dashboard {title}");
        // A dashboard that existed before is kept as it is.
        if uid.starts_with("pv-") {
            let reads = &model["templating"]["list"][0]["datasource"]["uid"];
            assert_eq!(*reads, source["uid"], "{title}");
        }
    }
}

const OVERVIEW: &str = "Vue d'ensemble";

fn assert_marked(scene: &Scene, company: &str, campaign: &str) {
    let marker = scene.campaign(company, campaign).join(".dashboard.created");
    assert!(fs::symlink_metadata(marker).expect("a marker").is_file());
}

#[test]
fn a_company_gets_its_resources_and_so_does_its_second_campaign() {
    for ansible in ansibles() {
        let scene = Scene::with(ansible);
        let mut command = scene.command(
            "create_grafana_resources.yml",
            &names("Société Été", "Atelier 1.a_b-c"),
        );
        scene.campaign("Société Été", "Atelier 1.a_b-c");
        let first = run(command.arg("-vvv"));
        let printed = text(&first);
        assert!(first.status.success(), "{printed}");
        assert_resources(&scene.double.state(), "Société Été", "Atelier 1.a_b-c");
        assert_marked(&scene, "Société Été", "Atelier 1.a_b-c");
        for secret in [PASSWORD, ADMIN_TOKEN, "read-secret-", "YWRtaW46"] {
            assert!(
                !printed.contains(secret),
                "{secret} in the output of -vvv:\n{printed}"
            );
        }

        scene.created("Société Été", "second");
        let token_before = scene.double.state().tokens.clone();
        {
            let state = scene.double.state();
            assert_resources(&state, "Société Été", "Atelier 1.a_b-c");
            assert_resources(&state, "Société Été", "second");
            let master = &state.folders["powerview"];
            assert!(
                master.1.is_empty(),
                "the master is for admins: {:?}",
                master.1
            );
        }

        let changes = scene.double.state().changes.len();
        let again = text(&scene.create("Société Été", "second"));
        assert!(
            again.contains("changed=0") && again.contains("failed=0"),
            "{again}"
        );
        let state = scene.double.state();
        assert_eq!(
            state.changes.len(),
            changes,
            "{:?}",
            &state.changes[changes..]
        );
        assert_eq!(state.tokens, token_before);
    }
}

/// Inventories that an operator may have for other machines. The playbooks ignore them.
const INVENTORIES: [(&str, &str); 3] = [
    ("no inventory", ""),
    (
        "an inventory without localhost, of hosts that are reached by SSH as root",
        "[web]\nweb1.invalid\n[all:vars]\nansible_connection=ssh\nansible_become=true\n\
         ansible_become_method=su\nansible_host=127.0.0.1\nansible_port=1\n",
    ),
    (
        "an inventory in which localhost is reached by SSH",
        "localhost ansible_connection=ssh ansible_port=1\n",
    ),
];

#[test]
#[ignore = "slow: several runs of Ansible"]
fn both_playbooks_run_on_this_machine_whatever_inventory_there_is() {
    for (n, ansible) in ansibles().into_iter().enumerate() {
        // A second Ansible runs the first case only, because each case takes two runs of a playbook.
        let cases = if n == 0 { INVENTORIES.len() } else { 1 };
        for (what, inventory) in INVENTORIES.into_iter().take(cases) {
            let scene = Scene::with(ansible.clone());
            let file = scene.dir.path().join("inventory");
            fs::write(&file, inventory).expect("an inventory");
            let on_this_machine = |playbook: &str, vars: &Value| {
                let mut command = scene.command_without_inventory(playbook, vars);
                if !inventory.is_empty() {
                    command.env("ANSIBLE_INVENTORY", &file);
                }
                let output = run(&mut command);
                assert!(output.status.success(), "{what}: {}", text(&output));
            };
            scene.campaign("acme", "one");
            on_this_machine("create_grafana_resources.yml", &names("acme", "one"));
            {
                let state = scene.double.state();
                assert!(state.team_id("acme").is_some(), "{what}: nothing is made");
                assert_resources(&state, "acme", "one");
            }
            assert_marked(&scene, "acme", "one");

            let vars = json!({"company_name": "acme", "confirm_delete": "yes"});
            on_this_machine("delete_grafana_resources.yml", &vars);
            let state = scene.double.state();
            assert_eq!(state.team_id("acme"), None, "{what}: nothing is deleted");
            assert_eq!(state.folder_uid("acme"), None, "{what}");
        }
    }
}

/// The number of changes that an undisturbed run makes.
fn number_of_changes(scene: &Scene) -> usize {
    scene.created("acme", "one");
    let changes = &scene.double.state().changes;
    assert!(changes.len() >= 11, "{changes:?}");
    changes.len()
}

/// Interrupts a run after each change whose number has this remainder, and runs the playbook again. Two tests share the
/// work, so that it takes half the time on two cores.
fn interrupted_after(remainder: usize) {
    static STEPS: OnceLock<usize> = OnceLock::new();
    let Some(whole) = Scene::new() else { return };
    let steps = *STEPS.get_or_init(|| number_of_changes(&whole));
    for n in (1..=steps).filter(|n| n % 2 == remainder) {
        let scene = Scene::new().expect("Ansible is there");
        scene.double.state().break_after = Some(n);
        let output = scene.create("acme", "one");
        assert!(
            !output.status.success(),
            "interrupted after {n} of {steps}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains("run this again"),
            "{}",
            text(&output)
        );
        let marker = scene.campaign("acme", "one").join(".dashboard.created");
        assert!(!marker.exists(), "the marker comes last");

        scene.double.state().break_after = None;
        scene.created("acme", "one");
        assert_resources(&scene.double.state(), "acme", "one");
        assert_marked(&scene, "acme", "one");
        let state = scene.double.state();
        assert_eq!(
            (
                state.teams.len(),
                state.folders.len(),
                state.dashboards.len()
            ),
            (1, 2, 4)
        );
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_run_interrupted_after_an_odd_step_can_be_repeated() {
    interrupted_after(1);
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_run_interrupted_after_an_even_step_can_be_repeated() {
    interrupted_after(0);
}

/// A server that was set up by hand: everything exists, visible to all viewers, with the admin token in the data
/// source.
#[test]
#[ignore = "slow: several runs of Ansible"]
fn existing_resources_are_kept_and_restricted() {
    let Some(scene) = Scene::new() else { return };
    {
        let mut state = scene.double.state();
        let id = state.id();
        state.teams.push((id, "acme".into()));
        state.add_folder("by-hand", "acme");
        state.add_dashboard(
            "old",
            "by-hand",
            json!({"title": "one", "panels": [{"title": "mine"}]}),
        );
        state.add_dashboard("elsewhere", "", json!({"title": "two"}));
        state
            .buckets
            .insert("00000000000000bb".into(), "acme".into());
        let source = json!({"id": 7, "uid": "src", "name": "influxdb_acme", "type": "influxdb", "access": "proxy",
            "url": "http://old:8086", "version": 3, "isDefault": true,
            "jsonData": {"version": "Flux", "organization": ORG, "defaultBucket": "acme", "maxSeries": 5000}});
        state.add_data_source("influxdb_acme", source, json!({"token": ADMIN_TOKEN}));
    }
    scene.created("acme", "one");
    scene.created("acme", "two");
    let state = scene.double.state();
    assert_resources(&state, "acme", "one");
    assert_resources(&state, "acme", "two");
    assert_eq!(
        state
            .folders
            .keys()
            .filter(|k| *k != "powerview")
            .collect::<Vec<_>>(),
        ["by-hand"]
    );
    assert_eq!(
        state.dashboards["old"].1["panels"],
        json!([{"title": "mine"}]),
        "an existing dashboard is not changed"
    );
    assert_eq!(
        state.dashboards["elsewhere"].0, "",
        "a dashboard of another folder is not taken"
    );
    let source = &state.data_sources["influxdb_acme"].0;
    assert_eq!(
        (&source["uid"], &source["isDefault"]),
        (&json!("src"), &json!(true))
    );
    assert_eq!(source["jsonData"]["maxSeries"], 5000);
}

/// Runs the create playbook with `GRAFANA_INFLUXDB_URL` as given.
fn created_with_url(scene: &Scene, campaign: &str, url: Option<&str>) -> String {
    scene.campaign("acme", campaign);
    let mut command = scene.command("create_grafana_resources.yml", &names("acme", campaign));
    match url {
        Some(url) => command.env("GRAFANA_INFLUXDB_URL", url),
        None => command.env_remove("GRAFANA_INFLUXDB_URL"),
    };
    let output = run(&mut command);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_data_source_keeps_its_url_unless_the_environment_names_one() {
    let Some(scene) = Scene::new() else { return };
    let url = || scene.double.state().data_sources["influxdb_acme"].0["url"].clone();
    // Made by hand: Grafana's container reaches InfluxDB under a name that this machine cannot resolve.
    let source = json!({"id": 7, "uid": "src", "name": "influxdb_acme", "type": "influxdb", "access": "proxy",
        "url": "http://influxdb-old:8086/", "version": 3,
        "jsonData": {"version": "Flux", "organization": ORG, "defaultBucket": "acme"}});
    let secrets = json!({"token": ADMIN_TOKEN});
    scene
        .double
        .state()
        .add_data_source("influxdb_acme", source, secrets);
    created_with_url(&scene, "one", None);
    assert_eq!(url(), "http://influxdb-old:8086/");
    let again = created_with_url(&scene, "one", Some(" "));
    assert_eq!(url(), "http://influxdb-old:8086/", "with a space");
    assert!(again.contains("changed=0"), "{again}");
    created_with_url(&scene, "one", Some("http://influxdb:8086/"));
    assert_eq!(url(), "http://influxdb:8086");

    // A data source without a URL, and a missing one, get the address that this machine uses.
    scene
        .double
        .state()
        .data_sources
        .get_mut("influxdb_acme")
        .expect("the data source")
        .0["url"] = json!("");
    created_with_url(&scene, "one", None);
    assert_eq!(url(), scene.double.url);
    scene.double.state().data_sources.clear();
    created_with_url(&scene, "one", None);
    assert_eq!(url(), scene.double.url);
}

/// A company of the versions from 0.4 to 0.6: a data source of their plugin, with a token that may write in two places, and
/// one of a user.
#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_data_source_of_the_old_plugin_becomes_one_of_influxdb_that_only_reads() {
    let Some(scene) = Scene::new() else { return };
    let plugin = "influxdb-adecwatts-datasource";
    {
        let mut state = scene.double.state();
        state
            .buckets
            .insert("00000000000000bb".into(), "acme".into());
        for name in ["influxdb_acme", "influxdb_acme_bob"] {
            let source = json!({"id": 7, "uid": format!("uid-of-{name}"), "name": name, "type": plugin, "access": "proxy",
                "url": "http://influxdb:8086", "version": 3, "isDefault": false,
                "jsonData": {"version": "Flux", "organization": ORG, "defaultBucket": "acme", "httpMode": "POST",
                    "httpHeaderName1": "Authorization", "tlsSkipVerify": true, "readOnly": true, "channelsList": [],
                    "seriesConfigApiUrl": "/api/datasources/proxy/25", "clientId": "acme_bob"}});
            let secrets =
                json!({"token": "read-write-1", "httpHeaderValue1": "Token read-write-1"});
            state.add_data_source(name, source, secrets);
        }
    }
    let of_user = scene.double.state().data_sources["influxdb_acme_bob"].clone();
    scene.created("acme", "one");
    let state = scene.double.state();
    assert_resources(&state, "acme", "one");
    let (source, secrets) = &state.data_sources["influxdb_acme"];
    assert_eq!(
        source["uid"], "uid-of-influxdb_acme",
        "dashboards refer to it by its uid"
    );
    let token = secrets["token"].as_str().expect("a token");
    let sent = headers_of_a_query(source, secrets);
    assert_eq!(sent["authorization"], format!("Token {token}"));
    assert!(!secrets.to_string().contains("read-write"), "{secrets}");
    let (_, dashboard, _) = &state.dashboards[state.dashboard("one").expect("a dashboard").0];
    assert!(
        !dashboard.to_string().contains(plugin),
        "the dashboard of the campaign needs no plugin"
    );
    assert_eq!(
        state.data_sources["influxdb_acme_bob"], of_user,
        "the data source of a user is deleted by old-system remove, not here"
    );
    drop(state);
    let again = text(&scene.create("acme", "one"));
    assert!(again.contains("changed=0"), "{again}");
}

/// The secrets of an older installation's data source; none of them may reach InfluxDB any more.
const OLD_SECRETS: [&str; 6] = [
    "read-write-1",
    "read-write-2",
    "read-write-3",
    "password-1",
    "password-2",
    "aws-1",
];

/// Creates a data source with these settings and secrets, runs the create playbook, and returns the new settings and
/// secrets.
fn taken_over(scene: &Scene, settings: Value, json_data: Value, secrets: Value) -> (Value, Value) {
    let mut source = json!({"id": 7, "uid": "src", "name": "influxdb_acme", "type": "influxdb", "access": "proxy",
        "url": "http://influxdb:8086", "version": 3});
    let mut all =
        json!({"version": "Flux", "organization": ORG, "defaultBucket": "acme", "maxSeries": 5000});
    for (target, more) in [(&mut source, settings), (&mut all, json_data)] {
        let more = more.as_object().expect("an object").clone();
        target.as_object_mut().expect("an object").extend(more);
    }
    source["jsonData"] = all;
    scene
        .double
        .state()
        .add_data_source("influxdb_acme", source, secrets);
    scene.created("acme", "one");
    {
        let state = scene.double.state();
        assert_resources(&state, "acme", "one");
        let (source, secrets) = &state.data_sources["influxdb_acme"];
        let token = secrets["token"].as_str().expect("a token");
        let sent = headers_of_a_query(source, secrets);
        assert_eq!(sent["authorization"], format!("Token {token}"), "{source}");
        let proxied = sign_in_of_the_proxy(source, secrets);
        assert_eq!(proxied.1, "", "a password goes out with {}", proxied.0);
        assert_eq!(proxied.0, "");
        let stored = secrets.to_string();
        for secret in OLD_SECRETS.iter().chain([&ADMIN_TOKEN]) {
            assert!(!stored.contains(secret), "{secret} is still stored");
        }
        assert_eq!(source["jsonData"]["maxSeries"], 5000);
    }
    scene.double.state().data_sources["influxdb_acme"].clone()
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_header_with_another_token_is_removed_and_no_other_header_gets_its_secret() {
    let Some(scene) = Scene::new() else { return };

    // The only header.
    let (source, _) = taken_over(
        &scene,
        json!({}),
        json!({"httpHeaderName1": "Authorization"}),
        json!({"token": ADMIN_TOKEN, "httpHeaderValue1": "Token read-write-1"}),
    );
    let names_of = |source: &Value| {
        let data = source["jsonData"].as_object().expect("an object").clone();
        let names = data
            .into_iter()
            .filter(|(key, _)| key.starts_with("httpHeader"));
        names.collect::<serde_json::Map<_, _>>()
    };
    assert!(names_of(&source).is_empty(), "{source}");

    // In any letter case, before, between and after others, which keep their own secrets.
    let (source, secrets) = taken_over(
        &scene,
        json!({}),
        json!({"httpHeaderName1": "AUTHORIZATION", "httpHeaderName2": "X-Org", "httpHeaderName3": "authorization",
            "httpHeaderName4": "X-Site", "httpHeaderName5": "aUTHORIZATION"}),
        json!({"token": ADMIN_TOKEN, "httpHeaderValue1": "Token read-write-1", "httpHeaderValue2": "org-secret",
            "httpHeaderValue3": "Token read-write-2", "httpHeaderValue4": "site-secret",
            "httpHeaderValue5": "Token read-write-3"}),
    );
    let sent = headers_of_a_query(&source, &secrets);
    assert_eq!(
        (sent["x-org"].as_str(), sent["x-site"].as_str()),
        ("org-secret", "site-secret")
    );
    for (name, value) in &sent {
        assert!(
            ["authorization", "x-org", "x-site"].contains(&name.as_str()) || value.is_empty(),
            "{name}: {value}"
        );
    }
    assert!(
        source["jsonData"].get("httpHeaderName5").is_none(),
        "{source}"
    );
    let again = text(&scene.create("acme", "one"));
    assert!(again.contains("changed=0"), "{again}");

    // Grafana sends no header after a gap in the numbers, until the gap is filled.
    let (source, secrets) = taken_over(
        &scene,
        json!({}),
        json!({"httpHeaderName1": "X-Org", "httpHeaderName3": "Authorization", "httpHeaderName12": "Authorization"}),
        json!({"token": ADMIN_TOKEN, "httpHeaderValue1": "org-secret", "httpHeaderValue3": "Token read-write-1",
            "httpHeaderValue12": "Token read-write-2"}),
    );
    assert_eq!(
        Value::Object(names_of(&source)),
        json!({"httpHeaderName1": "X-Org"})
    );
    assert_eq!(headers_of_a_query(&source, &secrets)["x-org"], "org-secret");

    // The name was removed by hand, but the secret still exists.
    let (_, secrets) = taken_over(
        &scene,
        json!({}),
        json!({}),
        json!({"token": ADMIN_TOKEN, "httpHeaderValue1": "Token read-write-1"}),
    );
    assert_eq!(secrets["httpHeaderValue1"], "");

    // Only other headers: they are not changed.
    let (source, secrets) = taken_over(
        &scene,
        json!({}),
        json!({"httpHeaderName1": "X-Org", "httpHeaderName2": "X-Authorization-Realm"}),
        json!({"token": ADMIN_TOKEN, "httpHeaderValue1": "org-secret", "httpHeaderValue2": "realm"}),
    );
    assert_eq!(
        Value::Object(names_of(&source)),
        json!({"httpHeaderName1": "X-Org", "httpHeaderName2": "X-Authorization-Realm"})
    );
    let sent = headers_of_a_query(&source, &secrets);
    assert_eq!(
        (
            sent["x-org"].as_str(),
            sent["x-authorization-realm"].as_str()
        ),
        ("org-secret", "realm")
    );
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn other_credentials_are_removed_from_the_data_source() {
    let Some(scene) = Scene::new() else { return };
    taken_over(
        &scene,
        json!({"user": "root", "withCredentials": true}),
        json!({}),
        json!({"token": ADMIN_TOKEN, "password": "password-1"}),
    );
    taken_over(
        &scene,
        json!({"basicAuth": true, "basicAuthUser": "root"}),
        json!({"oauthPassThru": true}),
        json!({"token": ADMIN_TOKEN, "basicAuthPassword": "password-2"}),
    );
    // A client certificate is kept, because a server may require one.
    let (source, secrets) = taken_over(
        &scene,
        json!({}),
        json!({"sigV4Auth": true, "tlsAuth": true}),
        json!({"token": ADMIN_TOKEN, "sigV4SecretKey": "aws-1", "tlsClientKey": "key"}),
    );
    assert_eq!(source["jsonData"].get("sigV4Auth"), None);
    assert_eq!(
        (&source["jsonData"]["tlsAuth"], &secrets["tlsClientKey"]),
        (&json!(true), &json!("key"))
    );

    // The token is correct already: credentials that were added later are removed too.
    let add = |change: fn(&mut Value, &mut Value)| {
        let mut state = scene.double.state();
        let (mut source, mut secrets) = state.data_sources["influxdb_acme"].clone();
        change(&mut source, &mut secrets);
        state.add_data_source("influxdb_acme", source, secrets);
    };
    let changes: [fn(&mut Value, &mut Value); 3] = [
        |source, _| source["basicAuth"] = json!(true),
        |source, _| source["user"] = json!("root"),
        |_, secrets| secrets["password"] = json!("password-1"),
    ];
    for change in changes {
        add(change);
        scene.created("acme", "one");
        let state = scene.double.state();
        let (source, secrets) = &state.data_sources["influxdb_acme"];
        assert_eq!(
            (&source["basicAuth"], &source["user"]),
            (&json!(false), &json!(""))
        );
        assert_eq!(secrets["password"].as_str().unwrap_or_default(), "");
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_token_with_too_many_permissions_or_a_missing_one_is_replaced() {
    let Some(scene) = Scene::new() else { return };
    scene.created("acme", "one");
    for spoil in [
        |token: &mut Value| token["permissions"][0]["action"] = json!("write"),
        |token: &mut Value| token["status"] = json!("inactive"),
        |token: &mut Value| *token = Value::Null,
    ] {
        let spoiled = {
            let mut state = scene.double.state();
            let id = state.tokens.keys().next().expect("a token").clone();
            spoil(state.tokens.get_mut(&id).expect("a token"));
            if state.tokens[&id].is_null() {
                state.tokens.remove(&id);
            }
            id
        };
        scene.created("acme", "one");
        let state = scene.double.state();
        assert!(!state.tokens.contains_key(&spoiled));
        assert_resources(&state, "acme", "one");
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn the_master_dashboard_in_grafana_takes_precedence_over_the_shipped_one() {
    let Some(scene) = Scene::new() else { return };
    let canary = scene.dir.path().join("canary");
    let code = format!("{{{{ lookup('pipe', 'touch {}') }}}}", canary.display());
    {
        let mut state = scene.double.state();
        let own = json!({"title": "ours", "description": code, "__inputs": [], "templating": {"list": [
                {"type": "datasource", "name": "ds", "query": "influxdb"},
                {"type": "query", "name": "channels", "datasource": {"type": "influxdb", "uid": "x"}}]},
            "annotations": {"list": [{"datasource": {"type": "grafana", "uid": "-- Grafana --"}}]},
            "panels": [{"datasource": {"type": "influxdb", "uid": "${ds}"}, "targets": [
                {"datasource": {"type": "influxdb", "uid": "x"}, "query": code}]}]});
        state.add_folder("powerview", "PowerView");
        state.add_folder("x7f", "PowerView - alertes");
        state.add_dashboard("powerview-master", "powerview", own);
    }
    scene.created("acme", "one");
    assert!(!canary.exists(), "text of a dashboard ran");
    let state = scene.double.state();
    let (uid, (_, made, _)) = state.dashboard("one").expect("the dashboard");
    let source = json!({"type": "influxdb", "uid": state.data_sources["influxdb_acme"].0["uid"]});
    assert_eq!(made["panels"][0]["datasource"], source);
    assert_eq!(
        made["panels"][0]["targets"][0],
        json!({"datasource": source, "query": code})
    );
    assert_eq!(
        made["annotations"]["list"][0]["datasource"]["uid"],
        "-- Grafana --"
    );
    assert_eq!(
        made["templating"]["list"],
        json!([{"type": "query", "name": "channels", "datasource": source}])
    );
    assert_eq!(
        (&made["description"], made.get("__inputs")),
        (&json!(code), None)
    );
    assert_ne!(uid, "powerview-master");
    assert_eq!(state.dashboards["powerview-master"].1["title"], "ours");
    for folder in ["powerview", "x7f"] {
        let rights = &state.folders[folder].1;
        assert!(rights.is_empty(), "{folder} is for admins: {rights:?}");
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_server_that_does_not_answer_is_named_with_the_remedy() {
    let Some(scene) = Scene::new() else { return };
    let cases = [
        (
            "GRAFANA_URL",
            "http://127.0.0.1:1",
            &[
                "Grafana does not answer",
                "docker compose up",
                "GRAFANA_URL",
            ][..],
        ),
        (
            "GRAFANA_PASSWORD",
            "wrong-secret-99",
            &["Grafana answered 401", "GRAFANA_PASSWORD"],
        ),
        (
            "INFLUXDB_HOST",
            "http://127.0.0.1:1",
            &["InfluxDB does not answer", "INFLUXDB_HOST"],
        ),
        (
            "INFLUXDB_ADMIN_TOKEN",
            "wrong-secret-99",
            &["InfluxDB answered 401", "INFLUXDB_ADMIN_TOKEN"],
        ),
        (
            "INFLUXDB_ORG",
            "nobody",
            &["InfluxDB answered 404", "INFLUXDB_ORG"],
        ),
    ];
    for (variable, value, words) in cases {
        let mut command = scene.command("create_grafana_resources.yml", &names("acme", "one"));
        let output = run(command.env(variable, value));
        let printed = text(&output);
        assert!(!output.status.success(), "{variable}: {printed}");
        for word in words {
            assert!(
                printed.contains(word),
                "{variable}: {word} is not in\n{printed}"
            );
        }
        assert!(!printed.contains("secret"), "{printed}");
    }
    assert_eq!(
        scene.double.state().changes,
        [""; 0],
        "nothing is made before both servers answered"
    );
}

/// Starts a server that sends these bytes to each client and closes the connection. Returns its URL.
fn server_of(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // A connection that is closed before the request is read is reset, and the answer may be lost.
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn an_answer_that_is_cut_or_no_json_is_reported_with_the_cause() {
    for ansible in ansibles() {
        let scene = Scene::with(ansible);
        for (answer, cause) in [
            ("", "does not answer at"),
            ("no HTTP\r\n\r\n", "does not answer at"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
                "does not answer at",
            ),
            (
                "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\n<h1>502</h1>",
                "answered 502; see the log of the server",
            ),
            (
                "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{\"message\": \"{{ 1 + 1 }} no\"}",
                "answered 403 ({{ 1 + 1 }} no); correct GRAFANA_USERNAME",
            ),
        ] {
            let mut command = scene.command("create_grafana_resources.yml", &names("acme", "one"));
            let output = run(command.env("GRAFANA_URL", server_of(answer)));
            let printed = text(&output);
            assert!(!output.status.success(), "{answer}: {printed}");
            assert!(
                printed.contains("connection and credentials of Grafana: Grafana "),
                "{printed}"
            );
            assert!(printed.contains(cause), "{answer}: {printed}");
        }
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn influxdb_3_is_refused_before_anything_is_created() {
    for ansible in ansibles() {
        let scene = Scene::with(ansible);
        let of_influxdb_3 =
            server_of("HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found");
        for (variable, value, reason) in [
            (
                "INFLUXDB_FLAVOR",
                "3",
                "the playbooks need InfluxDB 2, but INFLUXDB_FLAVOR is 3; see docs/influxdb-3.md",
            ),
            (
                "INFLUXDB_HOST",
                of_influxdb_3.as_str(),
                "InfluxDB answered 404; the playbooks need InfluxDB 2; correct INFLUXDB_HOST in .env, or set INFLUXDB_FLAVOR=3",
            ),
        ] {
            let mut command = scene.command("create_grafana_resources.yml", &names("acme", "one"));
            let output = run(command.env(variable, value));
            let printed = text(&output);
            assert!(!output.status.success(), "{printed}");
            assert!(printed.contains(reason), "{printed}");
            assert_eq!(scene.double.state().team_id("acme"), None);
        }
    }
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn two_companies_are_created_concurrently() {
    let Some(scene) = Scene::new() else { return };
    let companies = ["acme", "zenith"];
    let runs: Vec<_> = companies
        .map(|c| {
            scene.campaign(c, "one");
            let mut command = scene.command("create_grafana_resources.yml", &names(c, "one"));
            command
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("Ansible starts")
        })
        .into();
    for run in runs {
        let output = run.wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", text(&output));
    }
    for company in companies {
        assert_resources(&scene.double.state(), company, "one");
        assert_marked(&scene, company, "one");
    }
    let state = scene.double.state();
    assert_ne!(
        state.data_sources["influxdb_acme"].1,
        state.data_sources["influxdb_zenith"].1
    );
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn delete_asks_removes_the_resources_and_can_be_repeated() {
    let Some(scene) = Scene::new() else { return };
    scene.created("acme", "one");
    scene.created("zenith", "one");
    let changes = scene.double.state().changes.len();

    for vars in [
        json!({"company_name": "acme"}),
        json!({"company_name": "acme", "confirm_delete": "no"}),
    ] {
        let output = run(&mut scene.command("delete_grafana_resources.yml", &vars));
        assert!(!output.status.success(), "{}", text(&output));
        assert!(
            text(&output).contains("confirm_delete"),
            "{}",
            text(&output)
        );
    }
    assert_eq!(
        scene.double.state().changes.len(),
        changes,
        "nothing goes without consent"
    );

    scene.deleted("acme");
    {
        let state = scene.double.state();
        assert_eq!(
            (state.team_id("acme"), state.folder_uid("acme")),
            (None, None)
        );
        assert!(!state.data_sources.contains_key("influxdb_acme"));
        assert_eq!(
            state.tokens.len(),
            1,
            "only the other company's token is left"
        );
        assert!(state.bucket_id("acme").is_some(), "the measurements stay");
        assert_resources(&state, "zenith", "one");
    }
    assert!(
        !scene
            .campaign("acme", "one")
            .join(".dashboard.created")
            .exists()
    );
    assert_marked(&scene, "zenith", "one");

    let again = text(&scene.deleted("acme"));
    assert!(again.contains("changed=0"), "{again}");
    scene.created("acme", "one");
    assert_resources(&scene.double.state(), "acme", "one");
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_company_keeps_its_overview() {
    let Some(scene) = Scene::new() else { return };
    let template = json!({"title": "ours", "templating": {"list": [
        {"type": "query", "name": "campaign", "datasource": {"type": "influxdb", "uid": "x"}}]}});
    {
        let mut state = scene.double.state();
        state.add_folder("powerview", "PowerView");
        state.add_dashboard("powerview-overview", "powerview", template);
    }
    scene.created("acme", "site été");
    let uid = {
        let mut state = scene.double.state();
        assert_resources(&state, "acme", "site été");
        let (campaign, _) = state
            .dashboard("site été")
            .expect("the campaign's dashboard");
        assert_eq!(campaign, UID_OF_SITE, "the overview links to it");
        let (uid, (_, model, _)) = state.dashboard(OVERVIEW).expect("the overview");
        let uid = uid.clone();
        assert_eq!(
            model["templating"]["list"].as_array().map(Vec::len),
            Some(1)
        );
        assert_eq!(state.dashboards["powerview-overview"].1["title"], "ours");
        state.dashboards.get_mut(&uid).expect("the overview").1["description"] = json!("changed");
        uid
    };
    scene.created("acme", "two");
    {
        let state = scene.double.state();
        assert_resources(&state, "acme", "two");
        assert_eq!(state.dashboards[&uid].1["description"], "changed");
    }
    scene.deleted("acme");
    let left = &scene.double.state().dashboards;
    assert_eq!(
        left.keys().collect::<Vec<_>>(),
        ["powerview-master", "powerview-overview"]
    );
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn delete_keeps_dashboards_that_others_added_to_the_folder() {
    let Some(scene) = Scene::new() else { return };
    scene.created("acme", "one");
    let folder = scene.double.state().folder_uid("acme").expect("a folder");
    scene
        .double
        .state()
        .add_dashboard("mine", &folder, json!({"title": "by hand"}));
    let printed = text(&scene.deleted("acme"));
    assert!(printed.contains("by hand"), "{printed}");
    let state = scene.double.state();
    assert_eq!(
        state.dashboards.keys().collect::<Vec<_>>(),
        ["mine", "powerview-master", "powerview-overview"]
    );
    assert_eq!(state.folder_uid("acme"), Some(folder));
}

#[test]
#[ignore = "slow: several runs of Ansible"]
fn the_marker_is_not_written_through_links() {
    let Some(scene) = Scene::new() else { return };
    let outside = scene.dir.path().join("outside");
    fs::create_dir(&outside).expect("a folder");

    // The marker is a link: it is replaced, and its target is not changed.
    let campaign = scene.campaign("acme", "one");
    symlink(outside.join("planted"), campaign.join(".dashboard.created")).expect("a link");
    scene.created("acme", "one");
    assert_marked(&scene, "acme", "one");
    assert!(!outside.join("planted").exists());

    // The campaign folder is a link: nothing is written below its target.
    symlink(&outside, scene.dir.path().join("data/acme/two")).expect("a link");
    let output = run(&mut scene.command("create_grafana_resources.yml", &names("acme", "two")));
    assert!(!output.status.success());
    assert!(text(&output).contains("symbolic link"), "{}", text(&output));
    assert_eq!(fs::read_dir(&outside).expect("a folder").count(), 0);
}

/// Names that YAML or Python interpret as other types.
#[test]
#[ignore = "slow: several runs of Ansible"]
fn a_name_that_looks_like_another_type_is_a_string() {
    for ansible in ansibles() {
        let scene = Scene::with(ansible);
        scene.created("True", "1e9");
        scene.created("True", "False");
        let state = scene.double.state();
        assert_resources(&state, "True", "1e9");
        assert_resources(&state, "True", "False");
        assert!(state.bucket_id("True").is_some());
    }
}

#[test]
fn the_playbooks_refuse_names_by_themselves() {
    let Some(scene) = Scene::new() else { return };
    for (company, campaign) in [
        ("PowerView", "one"),
        ("../x", "one"),
        ("acme", "a\"b"),
        ("acme", ""),
        ("acme", "_x"),
        ("acme", "powerview_1h"),
        ("acme", "powerview_channels"),
        // The title of the overview.
        ("acme", OVERVIEW),
    ] {
        let output =
            run(&mut scene.command("create_grafana_resources.yml", &names(company, campaign)));
        assert!(!output.status.success());
        assert!(
            text(&output).contains("name is refused"),
            "{}",
            text(&output)
        );
    }
    assert_eq!(scene.double.state().requests, [""; 0]);
}

/// Sends a request to a real InfluxDB with a given token. Returns the status and the answer.
fn request_with_token(influx: &RealInflux, token: &str, path: &str, body: &str) -> (u16, String) {
    let address = influx.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).expect("a connection");
    let org = influx.org();
    let head = format!(
        "POST {path}org={org} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Token {token}\r\n\
         Content-Type: {}\r\nContent-Length: {}\r\n\r\n{body}",
        if path.contains("query") {
            "application/vnd.flux"
        } else {
            "text/plain"
        },
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    (answer[9..12].parse().expect("a status"), answer)
}

/// Checks that a token can only read its bucket.
pub fn assert_reads_only(influx: &RealInflux, token: &str, bucket: &str, other: &str) {
    let query = |bucket: &str| format!("from(bucket: \"{bucket}\") |> range(start: 0) |> first()");
    let own = request_with_token(influx, token, "/api/v2/query?", &query(bucket));
    assert!(own.0 == 200 && own.1.contains("_result"), "{own:?}");
    let not_found = request_with_token(influx, token, "/api/v2/query?", &query(other));
    assert!(
        !not_found.1.contains("_result") && not_found.0 == 404,
        "{not_found:?}"
    );
    for bucket in [bucket, other] {
        let url = url::form_urlencoded::byte_serialize(bucket.as_bytes()).collect::<String>();
        let written = request_with_token(
            influx,
            token,
            &format!("/api/v2/write?bucket={url}&"),
            "m value=1",
        );
        assert!(matches!(written.0, 401 | 403 | 404), "{written:?}");
    }
    let made = request_with_token(influx, token, "/api/v2/buckets?", "{\"name\": \"new\"}");
    assert!(matches!(made.0, 400 | 401 | 403), "{made:?}");
}

#[test]
fn a_bucket_is_not_created_while_it_is_rebuilt() {
    let Some(scene) = Scene::new() else { return };
    let Some(influx) = RealInflux::start() else {
        return;
    };
    influx.create_bucket("acme.rebuild", 0);
    scene.campaign("acme", "one");
    let create = || {
        let mut command = scene.command("create_grafana_resources.yml", &names("acme", "one"));
        command
            .env("INFLUXDB_HOST", influx.url())
            .env("INFLUXDB_ORG", influx.org());
        run(command.env("INFLUXDB_ADMIN_TOKEN", influx.token()))
    };
    let output = create();
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("being rebuilt"), "{}", text(&output));
    assert_eq!(influx.bucket_id("acme"), None);
    let id = influx.bucket_id("acme.rebuild").expect("a bucket");
    influx.rename_bucket(&id, "acme");
    assert!(create().status.success());
    assert_eq!(influx.bucket_id("acme"), Some(id));
}

#[test]
fn the_token_of_the_data_source_can_only_read_its_bucket_on_a_real_server() {
    let Some(scene) = Scene::new() else { return };
    let Some(influx) = RealInflux::start() else {
        return;
    };
    influx.write("zenith", "m value=1 1700000000", "s");
    influx.write("Société Été", "m value=1 1700000000", "s");
    let create = |company: &str| {
        scene.campaign(company, "one");
        let mut command = scene.command("create_grafana_resources.yml", &names(company, "one"));
        command
            .env("INFLUXDB_HOST", influx.url())
            .env("INFLUXDB_ORG", influx.org());
        let output = run(command.env("INFLUXDB_ADMIN_TOKEN", influx.token()));
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    create("Société Été");
    let token = || {
        let state = scene.double.state();
        state.data_sources["influxdb_Société Été"].1["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    };
    let first = token();
    assert_reads_only(&influx, &first, "Société Été", "zenith");
    assert!(
        create("Société Été").contains("changed=0"),
        "the second time nothing changes"
    );
    assert_eq!(token(), first);

    // A company whose bucket is missing, and one whose token was deleted in InfluxDB.
    create("new company");
    assert_eq!(influx.retention_rules("new company"), kept_in_long_shards());
    let id =
        scene.double.state().data_sources["influxdb_Société Été"].0["jsonData"]["powerviewTokenId"]
            .clone();
    let path = format!("/api/v2/authorizations/{}", id.as_str().expect("an id"));
    assert_eq!(influx.request("DELETE", &path, "", "").0, 204);
    create("Société Été");
    assert_ne!(token(), first);
    assert_reads_only(&influx, &token(), "Société Été", "zenith");

    // A bucket that was rebuilt has the name, but another id.
    let (former, second) = (influx.bucket_id("Société Été").expect("a bucket"), token());
    influx.rename_bucket(&former, "Société Été.before-2026-03-01");
    influx.write("Société Été", "m value=1 1700000000", "s");
    create("Société Été");
    assert_ne!(token(), second);
    assert_reads_only(
        &influx,
        &token(),
        "Société Été",
        "Société Été.before-2026-03-01",
    );

    let vars = json!({"company_name": "Société Été", "confirm_delete": "yes"});
    let mut command = scene.command("delete_grafana_resources.yml", &vars);
    command
        .env("INFLUXDB_HOST", influx.url())
        .env("INFLUXDB_ADMIN_TOKEN", influx.token());
    let (before, output) = (token(), run(&mut command));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(
        request_with_token(&influx, &before, "/api/v2/query?", "buckets()").0,
        401,
        "the token is taken back"
    );
    assert!(
        influx.bucket_id("Société Été").is_some(),
        "the measurements stay"
    );
}
