//! The dashboards, the alert rules and their provisioning: as files, against Grafana's types, and with each query run
//! on a real InfluxDB that the program has filled.

use crate::grafana::{self, Choice, View, panel, panels, queries, shipped};
use crate::harness::{number_from_env, samples};
use crate::real_influx::RealInflux;
use crate::skipped::{installed, skipped};
use chrono::{DateTime, Datelike, Duration, NaiveDate, NaiveDateTime, Timelike, Utc};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const SHIPPED: [&str; 3] = ["master", "overview", "reception"];

// ------------------------------------------------------------------------------------------------- the files

#[test]
fn the_dashboards_have_their_uids_titles_and_variables() {
    let master = grafana::dashboard("master");
    let reception = grafana::dashboard("reception");
    assert_eq!(master["uid"], "powerview-master");
    assert_eq!(
        (&reception["uid"], &reception["title"]),
        (
            &json!("powerview-reception"),
            &json!("PowerView - réception")
        )
    );
    let overview = grafana::dashboard("overview");
    assert_eq!(overview["uid"], "powerview-overview");
    for dashboard in [&master, &overview, &reception] {
        assert_eq!(dashboard["timezone"], "browser");
        assert!(
            dashboard["id"].is_null() && dashboard["version"].is_null(),
            "of one server's database"
        );
        assert!(
            dashboard["__inputs"].is_null(),
            "would have to be asked for at import"
        );
    }
    let variables = master["templating"]["list"].as_array().expect("variables");
    for name in ["channels", "device", "total"] {
        let v = variables.iter().find(|v| v["name"] == name).expect(name);
        assert_eq!(
            (&v["type"], &v["multi"], &v["includeAll"]),
            (&json!("query"), &json!(true), &json!(true))
        );
        assert_eq!(
            v["refresh"], 2,
            "the channels are those of the period shown"
        );
    }
    let power = panel(&master, "timeseries", "Puissance par voie");
    assert_eq!(power["fieldConfig"]["defaults"]["unit"], "watt");
    let voltage = panel(&master, "timeseries", "Tensions");
    assert_eq!(voltage["fieldConfig"]["defaults"]["unit"], "volt");
}

#[test]
fn each_panel_has_a_position_a_title_a_unit_and_a_data_source() {
    for name in SHIPPED {
        let dashboard = grafana::dashboard(name);
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        let rows = dashboard["panels"]
            .as_array()
            .expect("panels")
            .iter()
            .filter(|p| p["type"] == "row");
        for p in panels(&dashboard).into_iter().chain(rows) {
            let title = p["title"].as_str().expect("a title");
            assert!(!title.trim().is_empty());
            assert!(
                ids.insert(p["id"].as_u64().expect("an id")),
                "{title}: the id is another panel's"
            );
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|k| p["gridPos"][k].as_u64().expect(k));
            assert!(w > 0 && h > 0 && x + w <= 24, "{title}: outside the grid");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{title}: overlaps another panel");
            }
        }
        for p in panels(&dashboard) {
            let title = p["title"].as_str().expect("a title");
            assert!(
                p["description"].as_str().is_some_and(|d| d.len() > 20),
                "{title}: no description"
            );
            let columns = p["fieldConfig"]["overrides"].as_array().expect("overrides");
            let unit = p["fieldConfig"]["defaults"]["unit"].as_str();
            assert!(unit.is_some() || p["type"] == "table", "{title}: no unit");
            assert!(
                unit.is_some() || !columns.is_empty(),
                "{title}: no unit for any column"
            );
            let shared = grafana::shares(p);
            let wanted = match shared {
                Some(_) => json!({"type": "datasource", "uid": "-- Dashboard --"}),
                None => json!({"type": "influxdb", "uid": "powerview-meta"}),
            };
            for source in std::iter::once(p).chain(p["targets"].as_array().expect("targets")) {
                assert_eq!(source["datasource"], wanted, "{title}");
            }
            if let Some(id) = shared {
                let source = dashboard["panels"].as_array().expect("panels").iter();
                let source = source.filter(|p| p["id"] == *id && grafana::shares(p).is_none());
                assert_eq!(source.count(), 1, "{title}: shows the answer of no panel");
            }
        }
    }
}

/// Grafana would replace such a tag by a setting of the data source.
#[test]
fn no_tag_looks_like_a_setting_of_the_data_source() {
    let mut all = alert_queries();
    for name in SHIPPED {
        let dashboard = grafana::dashboard(name);
        all.extend(
            panels(&dashboard)
                .into_iter()
                .flat_map(queries)
                .map(str::to_owned),
        );
    }
    let macros = [
        "timeRangeStart",
        "timeRangeStop",
        "windowPeriod",
        "bucket",
        "defaultBucket",
        "organization",
    ];
    for query in all {
        for word in grafana::words_with_a_dot(&query) {
            let (before, after) = word.split_once('.').expect("a dot");
            assert!(
                before == "v" || !macros.contains(&after),
                "{word} in\n{query}"
            );
        }
    }
}

#[test]
fn nothing_is_specific_to_one_installation() {
    for name in SHIPPED {
        let text = grafana::dashboard(name).to_string();
        let digits = text
            .split(|c: char| !c.is_ascii_digit())
            .find(|run| run.len() == 8);
        assert_eq!(digits, None, "{name}: as long as a serial number");
        for label in ["Voie1", "Voie 1", "Ph 1", "Ph1", "minipince"] {
            assert!(!text.contains(label), "{name}: names the channel {label}");
        }
    }
}

#[test]
fn the_dashboards_conform_to_the_types_of_grafana() {
    let Some(check) = schema_check() else { return };
    for name in SHIPPED {
        let path = shipped(&format!("dashboards/{name}.json"));
        assert_eq!(check(&path), Ok(()), "{name}");
    }
    // The check can fail: Grafana ignores each of these mistakes silently.
    let dir = tempfile::tempdir().expect("a temporary directory");
    type Spoil = fn(&mut Value);
    let wrong: [(&str, Spoil); 5] = [
        ("an unknown key", |d| d["panels"][0]["titel"] = json!("x")),
        ("a number for a text", |d| {
            d["panels"][0]["title"] = json!(5);
        }),
        ("an unknown time picker setting", |d| {
            d["timepicker"]["refresh"] = json!(5);
        }),
        ("a style of drawing that there is not", |d| {
            let i = d["panels"]
                .as_array()
                .expect("panels")
                .iter()
                .position(|p| p["type"] == "timeseries");
            d["panels"][i.expect("a time series")]["fieldConfig"]["defaults"]["custom"]["drawStyle"] =
                json!("stairs");
        }),
        ("an option of another kind of panel", |d| {
            d["panels"][0]["options"]["xField"] = json!("x");
        }),
    ];
    for (what, spoil) in wrong {
        let mut spoilt = grafana::dashboard("master");
        spoil(&mut spoilt);
        let path = dir.path().join("spoilt.json");
        std::fs::write(&path, spoilt.to_string()).expect("written");
        assert!(check(&path).is_err(), "{what} is not noticed");
    }
}

/// A check of a file against Grafana's types. Returns `None` and skips the calling test if `.ci/setup-dashboards` was
/// not run.
fn schema_check() -> Option<impl Fn(&Path) -> Result<(), String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("GRAFANA_SCHEMA_DIR")
        .map_or_else(|| root.join("target/grafana-schema"), PathBuf::from);
    if !folder.join("schema.json").is_file() {
        skipped("grafana-schema", ".ci/setup-dashboards makes it");
        return None;
    }
    if !installed("node", "nodejs") {
        return None;
    }
    Some(move |file: &Path| {
        let script = root.join(".ci/dashboards/check.mjs");
        let printed = Command::new("node")
            .arg(script)
            .arg(&folder)
            .arg(file)
            .output()
            .expect("node runs");
        if printed.status.success() {
            return Ok(());
        }
        Err(format!(
            "{}{}",
            String::from_utf8_lossy(&printed.stdout),
            String::from_utf8_lossy(&printed.stderr)
        ))
    })
}

// ------------------------------------------------------------------------------------------------- provisioning

/// A file of the provisioning folder, read like by Grafana: `$NAME` and `${NAME}` are variables, `$$` is a dollar.
fn provisioned(path: &str, environment: &BTreeMap<&str, &str>) -> Value {
    let text = std::fs::read_to_string(shipped("provisioning").join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut value: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    expand(&mut value, environment);
    value
}

fn expand(value: &mut Value, environment: &BTreeMap<&str, &str>) {
    match value {
        Value::String(text) => {
            let parts: Vec<String> = text
                .split("$$")
                .map(|part| {
                    let mut pieces = part.split('$');
                    let mut out = pieces.next().expect("a first piece").to_owned();
                    for piece in pieces {
                        let braced = piece.strip_prefix('{').and_then(|p| p.split_once('}'));
                        let end = piece
                            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                            .unwrap_or(piece.len());
                        let (name, rest) = braced.unwrap_or(piece.split_at(end));
                        out.push_str(environment.get(name).copied().unwrap_or_default());
                        out.push_str(rest);
                    }
                    out
                })
                .collect();
            *text = parts.join("$");
        }
        Value::Array(values) => values.iter_mut().for_each(|v| expand(v, environment)),
        Value::Object(values) => values.values_mut().for_each(|v| expand(v, environment)),
        _ => {}
    }
}

pub fn rules() -> Vec<Value> {
    let file = provisioned("alerting/rules.yaml", &BTreeMap::new());
    let groups = file["groups"].as_array().expect("groups");
    groups
        .iter()
        .flat_map(|g| g["rules"].as_array().expect("rules").clone())
        .collect()
}

fn alert_queries() -> Vec<String> {
    rules()
        .iter()
        .map(|r| {
            r["data"][0]["model"]["query"]
                .as_str()
                .expect("Flux")
                .to_owned()
        })
        .collect()
}

#[test]
fn the_data_source_reads_the_meta_bucket_with_its_own_token() {
    let environment = BTreeMap::from([
        ("GRAFANA_INFLUXDB_URL", "http://influxdb:8086"),
        ("INFLUXDB_ORG", "org"),
        ("TSV_META_BUCKET", "meta"),
        ("POWERVIEW_META_READ_TOKEN", "read-only"),
        ("INFLUXDB_ADMIN_TOKEN", "admin"),
    ]);
    let file = provisioned("datasources/powerview.yaml", &environment);
    assert_eq!(file["apiVersion"], 1);
    let source = &file["datasources"][0];
    assert_eq!(source["uid"], "powerview-meta");
    assert_eq!(source["url"], "http://influxdb:8086");
    assert_eq!(
        source["jsonData"],
        json!({"version": "Flux", "organization": "org", "defaultBucket": "meta"})
    );
    assert_eq!(source["secureJsonData"], json!({"token": "read-only"}));
}

#[test]
fn the_dashboards_are_provisioned_into_their_own_folder() {
    let file = provisioned("dashboards/powerview.yaml", &BTreeMap::new());
    let provider = &file["providers"][0];
    assert_eq!(
        (&provider["folder"], &provider["folderUid"]),
        (&json!("PowerView"), &json!("powerview"))
    );
    assert_eq!(
        provider["allowUiUpdates"], true,
        "an admin may change the master"
    );
    // Grafana creates the folder of the rules first, with a generated uid, so this folder needs another title.
    let rules = provisioned("alerting/rules.yaml", &BTreeMap::new());
    assert_ne!(rules["groups"][0]["folder"], provider["folder"]);
}

#[test]
fn the_alert_rules_refer_to_existing_panels_and_steps() {
    let rules = rules();
    let wanted = [
        (
            "Enregistreur muet depuis 26 h",
            "Enregistreurs muets",
            "OK",
            26.0,
        ),
        ("Fichiers en erreur", "Fichiers en erreur", "OK", 0.0),
        ("Fichiers endommagés", "Fichiers endommagés", "OK", 0.0),
        (
            "Voies douteuses ou modifiées",
            "Voies douteuses ou modifiées",
            "OK",
            0.0,
        ),
        (
            "powerview n'a pas tourné depuis 26 h",
            "Dernière exécution",
            "Alerting",
            26.0,
        ),
    ];
    assert_eq!(rules.len(), wanted.len());
    let reception = grafana::dashboard("reception");
    let text = std::fs::read_to_string(shipped("provisioning/alerting/rules.yaml")).expect("rules");
    let own: String = text
        .lines()
        .filter(|l| !l.trim_start().starts_with('#'))
        .collect();
    assert!(
        !own.contains('$'),
        "Grafana would take it for a variable of the environment"
    );
    for (rule, (title, of, no_data, limit)) in rules.iter().zip(wanted) {
        assert_eq!(
            (&rule["title"], &rule["noDataState"]),
            (&json!(title), &json!(no_data))
        );
        assert_eq!(rule["dashboardUid"], "powerview-reception");
        let shown = panels(&reception)
            .into_iter()
            .find(|p| p["id"] == rule["panelId"])
            .expect("the rule's panel");
        assert_eq!(shown["title"], of);
        let steps = rule["data"].as_array().expect("steps");
        assert_eq!(
            steps.iter().map(|s| &s["refId"]).collect::<Vec<_>>(),
            ["A", "B", "C"]
        );
        assert_eq!(rule["condition"], "C");
        for step in steps {
            assert_eq!(step["refId"], step["model"]["refId"]);
        }
        assert_eq!(steps[0]["datasourceUid"], "powerview-meta");
        assert_eq!(
            (&steps[1]["model"]["type"], &steps[1]["model"]["expression"]),
            (&json!("reduce"), &json!("A"))
        );
        assert_eq!(
            (&steps[2]["model"]["type"], &steps[2]["model"]["expression"]),
            (&json!("threshold"), &json!("B"))
        );
        let evaluator = &steps[2]["model"]["conditions"][0]["evaluator"];
        assert_eq!(
            (&evaluator["type"], evaluator["params"][0].as_f64()),
            (&json!("gt"), Some(limit))
        );
    }
    let uids: BTreeSet<_> = rules.iter().map(|r| r["uid"].to_string()).collect();
    assert_eq!(uids.len(), rules.len());
}

#[test]
fn the_alerts_are_sent_to_the_address_in_the_environment() {
    let environment = BTreeMap::from([("POWERVIEW_ALERT_EMAIL", "a@example.org;b@example.org")]);
    let file = provisioned("alerting/contact.yaml", &environment);
    let contact = &file["contactPoints"][0];
    assert_eq!(contact["receivers"][0]["type"], "email");
    assert_eq!(
        contact["receivers"][0]["settings"]["addresses"],
        "a@example.org;b@example.org"
    );
    assert_eq!(file["policies"][0]["receiver"], contact["name"]);
}

/// Grafana ignores unknown settings of a webhook, and does not start without its URL.
#[test]
fn the_alerts_are_posted_to_the_url_in_the_environment() {
    const SECRET_URL: &str = "https://hooks.slack.com/services/T0/B0/x";
    let environment = BTreeMap::from([("POWERVIEW_ALERT_URL", SECRET_URL)]);
    let file = provisioned("alerting/contact.yaml", &environment);
    let webhook = &file["contactPoints"][0]["receivers"][1];
    assert_eq!(webhook["type"], "webhook");
    let settings = webhook["settings"].as_object().expect("settings");
    assert_eq!(
        settings.keys().map(String::as_str).collect::<Vec<_>>(),
        ["url", "httpMethod", "payload"]
    );
    assert_eq!(settings["url"], SECRET_URL);
    assert_eq!(settings["httpMethod"], "POST");
    assert_eq!(settings["payload"]["vars"], json!({"url": SECRET_URL}));

    let template = settings["payload"]["template"]
        .as_str()
        .expect("a template");
    let group = &file["templates"][0];
    let text = group["template"].as_str().expect("a template");
    let define = "{{ define \"powerview.text\" }}";
    assert!(text.starts_with(define), "{text}");
    // Both kinds of body are made of the template that exists.
    for used in [
        "tmpl.Exec \"powerview.text\" .",
        "template \"powerview.text\" .",
    ] {
        assert_eq!(template.matches(used).count(), 1, "{template}");
    }
    for (text, opened) in [(template, "if"), (text, "range")] {
        let actions = |word: &str| text.matches(&format!("{{{{ {word}")).count();
        assert_eq!(
            actions("end }}"),
            actions(opened) + actions("define"),
            "{text}"
        );
    }
    // What the message shows exists in each rule, and says what to do.
    for annotation in ["summary", "description"] {
        assert!(text.contains(&format!("{{{{ .Annotations.{annotation} }}}}")));
        for rule in rules() {
            let shown = rule["annotations"][annotation].as_str().unwrap_or_default();
            assert!(!shown.is_empty(), "{annotation} of {}", rule["title"]);
        }
    }

    let compose = std::fs::read_to_string(shipped("../compose.yaml")).expect("compose.yaml");
    assert!(
        compose.contains("POWERVIEW_ALERT_URL: ${POWERVIEW_ALERT_URL:-http://127.0.0.1:9}"),
        "Grafana would not start without a URL"
    );
}

// ------------------------------------------------------------------------------------------------- the client's dashboard

/// The channel of a point.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Channel {
    pub master: &'static str,
    pub device: &'static str,
    pub name: &'static str,
    pub unit: &'static str,
    /// Its position among the columns of the device, from 1.
    pub number: u32,
}

impl Channel {
    pub fn point(&self, measurement: &str, time: DateTime<Utc>, value: f64) -> String {
        let tag = format!(",device={},device_master_sn", self.device);
        let old = self.old_point(measurement, time, value);
        old.replace(",device_master_sn", &tag)
    }

    /// The tag `channel_id`.
    pub fn id(&self) -> String {
        let letter = if self.device == self.master { 'M' } else { 'S' };
        format!("{letter}{}_Ch{}_M{}", self.device, self.number, self.master)
    }

    /// A point of the script of December 2025: without the tag `device`.
    fn old_point(&self, measurement: &str, time: DateTime<Utc>, value: f64) -> String {
        let escaped = |text: &str| text.replace(',', "\\,").replace(' ', "\\ ");
        let campaign = escaped(measurement);
        let kind = if self.device == self.master {
            "master"
        } else {
            "slave"
        };
        let unit = match self.unit {
            "" => String::new(),
            unit => format!(",unit={unit}"),
        };
        format!(
            "{campaign},campaign={campaign},channel_id={},channel_name={},channel_number={},\
             channel_type={kind},device_master_sn={},device_sn={}{unit} value={value:?} {}\n",
            self.id(),
            escaped(self.name),
            self.number,
            self.master,
            self.device,
            time.timestamp()
        )
    }
}

/// A campaign of two masters: the files, and the measured values, from which the expected results follow.
struct Campaign {
    points: BTreeMap<Channel, Vec<(DateTime<Utc>, f64)>>,
    files: Vec<(String, String)>,
}

pub const TRI: &str = "02001171";
pub const SLAVE: &str = "04000466";
pub const MONO: &str = "02001311";
/// Local midnights in Paris. The clocks go back on the 26th.
const FROM: &str = "2025-10-24T22:00:00Z";
const TO: &str = "2025-10-27T23:00:00Z";

pub fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

/// Three days with a row each ten minutes. The second master has a gap of four hours on the second day and of one hour
/// on the third.
fn campaign() -> Campaign {
    let tri = [
        (TRI, "Ph 1", "V"),
        (TRI, "Ph 2", "V"),
        (TRI, "Ph 3", "V"),
        (TRI, "Voie1", "W"),
        (TRI, "Voie2", "W"),
        (TRI, "Voie3", "W"),
        (SLAVE, "Voie1", "W"),
        (SLAVE, "Pompe (1/2)+", "W"),
        (SLAVE, "Compteur", "Wh"),
        (SLAVE, "Débit", ""),
    ];
    let mono = [
        (MONO, "Ph 1", "V"),
        (MONO, "Voie1", "W"),
        (MONO, "Four", "kW"),
    ];
    let mut made = Campaign {
        points: BTreeMap::new(),
        files: Vec::new(),
    };
    for (master, channels) in [(TRI, &tri[..]), (MONO, &mono[..])] {
        // The serial of the master is above the marker, those of the devices above the labels.
        let serials: Vec<_> = std::iter::once(master)
            .chain(channels.iter().map(|c| c.0))
            .collect();
        let labels: Vec<_> = channels
            .iter()
            .map(|c| format!("{} {}", c.1, c.2).trim().to_owned())
            .collect();
        let mut text = format!(
            "START_HEADER\n{{\"DataTimeSettings\":\"UTC\"}}\nEND_HEADER\nSTART_DATA\n{}\nMV_T302_V003\t{}\n",
            serials.join("\t"),
            labels.join("\t")
        );
        let (mut time, mut row) = (at(FROM), 0_u32);
        while time < at(TO) {
            let silent = time > at("2025-10-26T05:00:00Z") && time < at("2025-10-26T09:00:00Z")
                || time > at("2025-10-27T10:00:00Z") && time < at("2025-10-27T11:00:00Z");
            if master == TRI || !silent {
                text.push_str(&time.format("%d/%m/%y %H:%M:%S").to_string());
                for (i, &(device, name, unit)) in channels.iter().enumerate() {
                    let value = measured(
                        u32::try_from(i).expect("few channels"),
                        row,
                        time.hour(),
                        unit,
                    );
                    text.push_str(&format!("\t{value}"));
                    let same = channels[..=i].iter().filter(|c| c.0 == device);
                    let channel = Channel {
                        master,
                        device,
                        name,
                        unit,
                        number: u32::try_from(same.count()).expect("few channels"),
                    };
                    made.points.entry(channel).or_default().push((time, value));
                }
                text.push('\n');
            }
            time += Duration::minutes(10);
            row += 1;
        }
        text.push_str("END_DATA\n");
        made.files
            .push((format!("acme/site été/{master}/T302.tsv"), text));
    }
    made
}

/// A value that differs by row and channel. Powers have a sign and a daily profile, counters grow.
fn measured(channel: u32, row: u32, hour: u32, unit: &str) -> f64 {
    let (channel, row, hour) = (f64::from(channel), f64::from(row), f64::from(hour));
    match unit {
        "V" => 230.0 + channel + (row % 7.0) / 4.0,
        "Wh" => 1000.0 + 25.0 * row,
        "kW" => 0.25 + (row % 11.0) / 8.0,
        _ if channel == 5.0 => -5.0 + (row % 3.0) * 2.5,
        _ => 100.0 * channel + 10.0 * hour + (row * 37.0) % 101.0,
    }
}

impl Campaign {
    /// The files with these rows only.
    fn files_with(&self, keep: impl Fn(DateTime<Utc>) -> bool) -> Vec<(String, String)> {
        let time = |line: &str| {
            let stamp = line.split('\t').next().expect("a first cell");
            NaiveDateTime::parse_from_str(stamp, "%d/%m/%y %H:%M:%S").map(|t| t.and_utc())
        };
        let part = |text: &str| {
            let lines = text.lines().filter(|l| time(l).map_or(true, &keep));
            lines.map(|l| format!("{l}\n")).collect()
        };
        self.files
            .iter()
            .map(|(path, text)| (path.clone(), part(text)))
            .collect()
    }

    /// The rows of these times in the format of the script of December 2025.
    fn old_points(&self, keep: impl Fn(DateTime<Utc>) -> bool) -> String {
        let mut lines = String::new();
        for (channel, points) in &self.points {
            for (time, value) in points.iter().filter(|p| keep(p.0)) {
                lines.push_str(&channel.old_point("site été", *time, *value));
            }
        }
        lines
    }

    fn powers(&self) -> impl Iterator<Item = (&Channel, Vec<(DateTime<Utc>, f64)>)> {
        self.points
            .iter()
            .filter(|(c, _)| ["W", "kW"].contains(&c.unit))
            .map(|(c, points)| {
                let scale = if c.unit == "kW" { 1000.0 } else { 1.0 };
                (c, points.iter().map(|&(t, v)| (t, v * scale)).collect())
            })
    }

    /// What the summaries must hold of each power. Each program has a series of its own, and an hour counts once.
    fn hours(&self, by: impl Fn(DateTime<Utc>) -> By) -> Hours {
        let of = |points: &[(DateTime<Utc>, f64)], other: By| {
            let own: Vec<_> = points
                .iter()
                .filter(|p| by(p.0) != other)
                .copied()
                .collect();
            integrated(&own)
        };
        self.powers()
            .map(|(channel, points)| {
                let mut hours = of(&points, By::Old);
                for (hour, known) in of(&points, By::Ours) {
                    let own = hours.entry(hour).or_default();
                    *own = own.max(known);
                }
                (channel.clone(), hours)
            })
            .collect()
    }

    /// The total power: the sum of the means of the channels in each step of a number of seconds.
    fn totals(&self, step: i64) -> BTreeMap<DateTime<Utc>, f64> {
        let mut totals = BTreeMap::new();
        for (_, points) in self.powers() {
            for (start, values) in steps(&points, step) {
                *totals.entry(start).or_insert(0.0) += mean(&values);
            }
        }
        totals
    }
}

/// What is known of a power in an hour.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    pub seconds: f64,
    /// Integral of the positive part in kWh.
    pub drawn: f64,
    /// Integral of the negative part in kWh.
    pub returned: f64,
}

impl Known {
    pub fn net(self) -> f64 {
        self.drawn - self.returned
    }

    fn max(self, other: Self) -> Self {
        Self {
            seconds: self.seconds.max(other.seconds),
            drawn: self.drawn.max(other.drawn),
            returned: self.returned.max(other.returned),
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            seconds: self.seconds + other.seconds,
            drawn: self.drawn + other.drawn,
            returned: self.returned + other.returned,
        }
    }
}

pub type Hours = BTreeMap<Channel, BTreeMap<DateTime<Utc>, Known>>;

/// Integrates a power in W minute by minute. Its points lie on whole minutes.
pub fn integrated(points: &[(DateTime<Utc>, f64)]) -> BTreeMap<DateTime<Utc>, Known> {
    let minutes = |pair: &[(DateTime<Utc>, f64)]| (pair[1].0 - pair[0].0).num_minutes();
    let mut lengths: BTreeMap<NaiveDate, Vec<i64>> = BTreeMap::new();
    for pair in points.windows(2) {
        lengths
            .entry(pair[0].0.date_naive())
            .or_default()
            .push(minutes(pair));
    }
    let mut found: BTreeMap<_, Known> = BTreeMap::new();
    for pair in points.windows(2) {
        let mut of_day = lengths[&pair[0].0.date_naive()].clone();
        of_day.sort_unstable();
        let limit = (3 * of_day[(of_day.len() - 1) / 2]).clamp(15, 120);
        let length = minutes(pair);
        if length > limit {
            continue;
        }
        let value = |minute: i64| {
            let share = f64::from(i32::try_from(minute).expect("few"))
                / f64::from(i32::try_from(length).expect("few"));
            pair[0].1 + (pair[1].1 - pair[0].1) * share
        };
        for minute in 0..length {
            let (from, to) = (value(minute), value(minute + 1));
            let positive = |from: f64, to: f64| match (from > 0.0, to > 0.0) {
                (true, true) => f64::midpoint(from, to),
                (true, false) => from * from / (from - to) / 2.0,
                (false, true) => to * to / (to - from) / 2.0,
                (false, false) => 0.0,
            };
            let time = pair[0].0 + Duration::minutes(minute);
            let hour = found.entry(hour_of(time)).or_default();
            *hour = hour.plus(Known {
                seconds: 60.0,
                drawn: positive(from, to) / 60_000.0,
                returned: positive(-from, -to) / 60_000.0,
            });
        }
    }
    found
}

pub fn hour_of(time: DateTime<Utc>) -> DateTime<Utc> {
    time - Duration::seconds(time.timestamp().rem_euclid(3600))
}

/// The sum over the hours that a period touches.
pub fn known<'a>(
    hours: impl IntoIterator<Item = (&'a DateTime<Utc>, &'a Known)>,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
) -> Known {
    let of_period = hours
        .into_iter()
        .filter(|(hour, _)| **hour >= hour_of(from) && **hour < to);
    of_period.fold(Known::default(), |sum, (_, known)| sum.plus(*known))
}

pub fn steps(points: &[(DateTime<Utc>, f64)], step: i64) -> BTreeMap<DateTime<Utc>, Vec<f64>> {
    let mut found: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for &(time, value) in points {
        let start = time.timestamp().div_euclid(step) * step;
        found
            .entry(DateTime::from_timestamp(start, 0).expect("a time"))
            .or_default()
            .push(value);
    }
    found
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / f64::from(u32::try_from(values.len()).expect("few values"))
}

fn name(c: &Channel) -> String {
    format!("{} ({})", c.name, c.device)
}

/// Like `near`, for numbers that are shown.
#[track_caller]
pub fn six_digits(found: f64, wanted: f64, what: &str) {
    assert!(
        (found - wanted).abs() <= 5e-7 * wanted.abs().max(1e-3),
        "{what}: {found}, not {wanted}"
    );
}

#[track_caller]
pub fn near(found: f64, wanted: f64, what: &str) {
    assert!(
        (found - wanted).abs() <= 1e-9 * wanted.abs().max(1.0),
        "{what}: {found}, not {wanted}"
    );
}

pub fn number(text: &str) -> f64 {
    text.parse().expect("a number")
}

/// A server with the ingested `files` (path below the data folder, text).
fn ingested(
    files: &[(String, String)],
    touch: impl Fn(&Path),
) -> Option<(RealInflux, tempfile::TempDir)> {
    let server = RealInflux::start()?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("data");
    for (path, text) in files {
        let path = data.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        std::fs::write(&path, text).expect("a file");
        touch(&path);
    }
    run(&server, dir.path());
    Some((server, dir))
}

/// Sets a modification time old enough for a complete upload.
fn an_hour_old(path: &Path) {
    aged(path, Duration::hours(1));
}

fn aged(path: &Path, age: Duration) {
    let file = std::fs::File::options()
        .append(true)
        .open(path)
        .expect("a file");
    file.set_modified((Utc::now() - age).into())
        .expect("a time");
}

/// Runs the program on the data folder. Some files may fail.
fn run(server: &RealInflux, dir: &Path) {
    let printed = Command::new(env!("CARGO_BIN_EXE_powerview"))
        .env_clear()
        .env("INFLUXDB_HOST", server.url())
        .env("INFLUXDB_ADMIN_TOKEN", server.token())
        .env("INFLUXDB_ORG", server.org())
        .args(["--timezone", "Europe/Paris", "-d"])
        .arg(dir.join("data"))
        .current_dir(dir)
        .output()
        .expect("powerview runs");
    eprintln!("{}", String::from_utf8_lossy(&printed.stderr));
    assert_ne!(printed.status.code(), Some(2), "not even a run");
}

/// Computes the hourly summaries of points that were written directly.
pub fn rollup(server: &RealInflux) {
    let printed = Command::new(env!("CARGO_BIN_EXE_powerview"))
        .env_clear()
        .env("INFLUXDB_HOST", server.url())
        .env("INFLUXDB_ADMIN_TOKEN", server.token())
        .env("INFLUXDB_ORG", server.org())
        .args(["rollup", "--company", "acme"])
        .output()
        .expect("powerview runs");
    assert!(
        printed.status.success(),
        "{}",
        String::from_utf8_lossy(&printed.stderr)
    );
}

#[test]
fn the_master_dashboard_shows_what_was_measured() {
    let campaign = campaign();
    let Some((server, _dir)) = ingested(&campaign.files, |_| ()) else {
        return;
    };
    let master = grafana::dashboard("master");
    shows_what_was_measured(&server, &master, &campaign, |_| By::Ours);
    the_curve_is_the_sum_of_the_channels(&server, &master, &campaign, &[3600, 7200]);
}

fn shows_what_was_measured(
    server: &RealInflux,
    master: &Value,
    campaign: &Campaign,
    by: impl Fn(DateTime<Utc>) -> By,
) {
    let all = View::of(master, "acme", "site été", (FROM, TO), 1800);
    variables_offer_what_there_is(server, &all);
    series_are_the_channels(server, master, &all, campaign);
    the_curve_is_the_sum_of_the_channels(server, master, campaign, &[1800]);
    let hours = campaign.hours(by);
    energies_are_integrated(server, master, &all, &hours);
    peaks_and_profiles(server, master, &all, campaign, &hours);
    choices_and_zones(server, master, &all, &hours);
}

/// The program that wrote the points of a time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Old,
    Ours,
    Both,
}

/// The name of a mixture, and the program that wrote its n-th step.
type Mixture = (&'static str, fn(i64) -> By);

/// Mixtures of the points of both programs. Each half hour is written by one program, because otherwise its mean would
/// depend on the number of points of each.
const MIXTURES: [Mixture; 4] = [
    ("the old script first", |half_hour| {
        if half_hour < 70 { By::Old } else { By::Ours }
    }),
    ("the old script last", |half_hour| {
        if half_hour < 70 { By::Ours } else { By::Old }
    }),
    ("in turn", |half_hour| {
        if half_hour % 2 == 0 {
            By::Old
        } else {
            By::Ours
        }
    }),
    ("all points by both", |_| By::Both),
];

/// The script of December 2025 wrote no tag `device`, so each of its channels is a separate series.
#[test]
fn the_master_dashboard_joins_the_points_of_the_old_script_and_ours() {
    let campaign = campaign();
    let master = grafana::dashboard("master");
    for (what, by) in MIXTURES {
        let by = |time: DateTime<Utc>| by((time - at(FROM)).num_minutes() / 30);
        let ours = campaign.files_with(|t| by(t) != By::Old);
        let Some((server, _dir)) = ingested(&ours, |_| ()) else {
            return;
        };
        eprintln!("{what}");
        server.write("acme", &campaign.old_points(|t| by(t) != By::Ours), "s");
        rollup(&server);
        shows_what_was_measured(&server, &master, &campaign, by);
    }
}

/// A channel with 1 kW for six days is 144 kWh and 1 kW everywhere, for each mixture of both programs.
#[test]
fn a_kilowatt_for_six_days_is_144_kwh_for_points_of_both_programs() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    let channel = Channel {
        master: MONO,
        device: MONO,
        name: "Voie1",
        unit: "W",
        number: 1,
    };
    let (from, days) = (at("2025-12-01T23:00:00Z"), 6);
    let mixtures: [Mixture; 7] = [
        ("ours", |_| By::Ours),
        ("old", |_| By::Old),
        ("old_first", |i| if i < 400 { By::Old } else { By::Ours }),
        ("ours_first", |i| if i < 400 { By::Ours } else { By::Old }),
        ("in_turn", |i| if i % 2 == 0 { By::Old } else { By::Ours }),
        ("both", |_| By::Both),
        ("overlap", |i| match i {
            0..300 => By::Old,
            300..500 => By::Both,
            _ => By::Ours,
        }),
    ];
    for (campaign, by) in mixtures {
        let mut lines = String::new();
        for i in 0..=days * 144 {
            let time = from + Duration::minutes(10 * i);
            let old = channel.old_point(campaign, time, 1000.0);
            let ours = channel.point(campaign, time, 1000.0);
            lines += &match by(i) {
                By::Old => old,
                By::Ours => ours,
                By::Both => old + &ours,
            };
        }
        server.write("acme", &lines, "s");
        rollup(&server);

        // The last interval ends with the period.
        let stop = "2025-12-07T23:00:00Z";
        // The old program ends, and ours begins, in the middle of an hour, of which the longer part counts.
        let total = if campaign.ends_with("_first") {
            143.5
        } else {
            144.0
        };
        let week = View::of(
            &master,
            "acme",
            campaign,
            ("2025-12-01T23:00:00Z", stop),
            3600,
        );
        let long = View::of(
            &master,
            "acme",
            campaign,
            ("2025-09-01T00:00:00Z", stop),
            3600,
        );
        for (view, peak) in [(&week, "Pointe (kW)"), (&long, "Pointe horaire (kW)")] {
            let what = format!("{campaign}, from {}", view.range.0);
            let rows = |kind: &str, title: &str| view.rows(&server, panel(&master, kind, title));
            let energy = rows("stat", "Énergie").remove(0);
            near(number(&energy["Soutirée (kWh)"]), total, &what);
            near(number(&energy["Injectée (kWh)"]), 0.0, &what);
            let power = rows("stat", "Puissance totale").remove(0);
            near(number(&power["Moyenne (kW)"]), 1.0, &what);
            near(number(&power[peak]), 1.0, &what);
            let peak_ms = number(&power["Heure de la pointe"]);
            assert_eq!(
                peak_ms,
                f64::from(i32::try_from(from.timestamp()).expect("before 2038")) * 1000.0,
                "{what}: the first of equal peaks"
            );
            let found = rows("barchart", "Énergie par phase (kWh)");
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            near(number(&found[0]["Énergie"]), total, &what);
            let found = rows("table", "Bilan par voie");
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            near(number(&found[0]["Énergie (kWh)"]), total, &what);
            near(number(&found[0]["Moyenne (W)"]), 1000.0, &what);
            near(number(&found[0]["Pointe (W)"]), 1000.0, &what);
            assert_eq!(at(&found[0]["Heure de la pointe"]), from, "{what}");
            let hours = rows("table", "Profil de la semaine (kW)");
            assert_eq!(hours.len(), 144, "{what}");
            let shares = rows("barchart", "Monotone de charge (kW)");
            for row in hours.iter().chain(&shares) {
                near(number(&row["Puissance"]), 1.0, &what);
            }

            let bars = week.rows(
                &server,
                panel(
                    &master,
                    "barchart",
                    "Énergie par jour, semaine ou mois (kWh)",
                ),
            );
            let found: Vec<_> = bars
                .iter()
                .map(|r| (&*r["Date"], number(&r[MONO])))
                .collect();
            assert_eq!(
                found.iter().map(|d| d.0).collect::<Vec<_>>(),
                ["02/12", "03/12", "04/12", "05/12", "06/12", "07/12"]
            );
            near(found.iter().map(|d| d.1).sum(), total, &what);
            let whole = found.iter().filter(|d| (d.1 - 24.0).abs() < 1e-9).count();
            assert_eq!(
                whole,
                if total < 144.0 { 5 } else { 6 },
                "{what}: {found:?}"
            );
            let lines = view.series(&server, panel(&master, "timeseries", "Puissance par voie"));
            let [(_, line)] = &lines[..] else {
                panic!("{what}: {lines:?}")
            };
            let shown: Vec<_> = line.iter().filter_map(|p| p.1).collect();
            assert_eq!(shown.len(), 144, "{what}: an hour each");
            for value in &shown {
                near(*value, 1000.0, &what);
            }
            let latest = view.value(&server, panel(&master, "stat", "Dernière mesure"));
            assert_eq!(
                at(&latest.expect("a time")),
                from + Duration::days(days) - Duration::minutes(10)
            );
        }
    }
}

fn variables_offer_what_there_is(server: &RealInflux, all: &View) {
    let set = |values: &[&str]| {
        values
            .iter()
            .map(|v| (*v).to_owned())
            .collect::<BTreeSet<_>>()
    };
    let texts = |view: &View, name: &str| {
        let offered = view.offered(server, name).into_iter();
        offered.map(|o| o.0).collect::<BTreeSet<_>>()
    };
    assert_eq!(texts(all, "device"), set(&[TRI, SLAVE, MONO]));
    let of = |device: &str, names: &[&str]| -> Vec<String> {
        names.iter().map(|n| format!("{n} ({device})")).collect()
    };
    let powers = [
        of(TRI, &["Voie1", "Voie2", "Voie3"]),
        of(SLAVE, &["Voie1", "Pompe (1/2)+"]),
        of(MONO, &["Voie1", "Four"]),
    ]
    .concat();
    let others = of(SLAVE, &["Compteur", "Débit"]);
    let all_texts = powers.iter().chain(&others).cloned().collect();
    assert_eq!(texts(all, "channels"), all_texts);
    assert_eq!(texts(all, "total"), powers.iter().cloned().collect());
    let values: BTreeSet<_> = all.offered(server, "channels").into_iter().collect();
    let oven = (format!("Four ({MONO})"), format!("M{MONO}_Ch3_M{MONO}"));
    assert!(values.contains(&oven), "{values:?}");
    let one = all.clone().with("device", Choice::Some(vec![MONO.into()]));
    let of_one = of(MONO, &["Voie1", "Four"]).into_iter().collect();
    assert_eq!(texts(&one, "channels"), of_one);
    assert_eq!(texts(&one, "total"), of_one);
}

fn series_are_the_channels(server: &RealInflux, master: &Value, all: &View, campaign: &Campaign) {
    let last = |values: &[f64]| *values.last().expect("a value");
    let scaled = |by: f64, fold: fn(&[f64]) -> f64| move |values: &[f64]| fold(values) * by;
    type Fold = Box<dyn Fn(&Channel, &[f64]) -> f64>;
    let shown: [(&str, &[&str], Fold); 4] = [
        (
            "Puissance par voie",
            &["W", "kW"],
            Box::new(move |c, v| scaled(if c.unit == "kW" { 1000.0 } else { 1.0 }, mean)(v)),
        ),
        ("Tensions", &["V"], Box::new(|_, v| mean(v))),
        (
            "Index des compteurs",
            &["Wh"],
            Box::new(move |_, v| last(v) / 1000.0),
        ),
        ("Autres mesures", &[""], Box::new(|_, v| mean(v))),
    ];
    for (title, units, fold) in shown {
        let found = all.series(server, panel(master, "timeseries", title));
        let wanted: BTreeMap<String, _> = campaign
            .points
            .iter()
            .filter(|(c, _)| units.contains(&c.unit))
            .map(|(c, p)| (name(c), (c, p)))
            .collect();
        assert_eq!(
            found.iter().map(|s| &s.0).collect::<Vec<_>>(),
            wanted.keys().collect::<Vec<_>>(),
            "{title}"
        );
        for (name, points) in found {
            let (channel, measured) = wanted[&name];
            let values: Vec<_> = points
                .iter()
                .filter_map(|(t, v)| v.map(|v| (at(t), v)))
                .collect();
            let means = steps(measured, 1800);
            assert_eq!(
                values.len(),
                means.len(),
                "{name}: one value each half hour in which there is one"
            );
            for ((time, value), (start, of)) in values.into_iter().zip(&means) {
                assert_eq!(time, *start, "{name}");
                near(value, fold(channel, of), &name);
            }
            // A half hour without a measurement is a gap in the line.
            assert_eq!(
                points.len(),
                73 * 2,
                "{name}: every half hour of three days and an hour"
            );
        }
    }
    let latest = all
        .value(server, panel(master, "stat", "Dernière mesure"))
        .expect("a time");
    assert_eq!(at(&latest), at(TO) - Duration::minutes(10));
}

/// The total power in windows. From an hour on, it is made of the means of hours.
fn the_curve_is_the_sum_of_the_channels(
    server: &RealInflux,
    master: &Value,
    campaign: &Campaign,
    windows: &[i64],
) {
    for &window in windows {
        let mut wanted: BTreeMap<_, f64> = BTreeMap::new();
        for (_, points) in campaign.powers() {
            let hours = steps(&points, 3600).into_iter();
            let hours: Vec<_> = hours.map(|(hour, values)| (hour, mean(&values))).collect();
            let of = if window < 3600 { &points } else { &hours };
            for (start, values) in steps(of, window) {
                *wanted.entry(start).or_default() += mean(&values);
            }
        }
        let seconds = u64::try_from(window).expect("positive");
        let view = View::of(master, "acme", "site été", (FROM, TO), seconds);
        let series = view.series(server, panel(master, "timeseries", "Puissance totale"));
        let [(_, line)] = &series[..] else {
            panic!("{series:?}")
        };
        let found: Vec<_> = line.iter().filter_map(|p| Some((at(&p.0), p.1?))).collect();
        assert_eq!(found.len(), wanted.len(), "{window} s");
        for (time, value) in found {
            near(value, wanted[&time], &format!("{window} s, {time}"));
        }
    }
}

/// All panels show the same energy, which is that of the hours of the period.
fn energies_are_integrated(server: &RealInflux, master: &Value, view: &View, hours: &Hours) {
    let period = (at(&view.range.0), at(&view.range.1));
    let what = format!("{} to {}", period.0, period.1);
    let of_channels: BTreeMap<_, _> = hours.iter().map(|(c, h)| (c, known(h, period))).collect();
    let total = of_channels
        .values()
        .fold(Known::default(), |sum, k| sum.plus(*k));
    let found = view
        .rows(server, panel(master, "stat", "Énergie"))
        .remove(0);
    six_digits(number(&found["Soutirée (kWh)"]), total.drawn, &what);
    six_digits(number(&found["Injectée (kWh)"]), total.returned, &what);

    let rows = view.rows(server, panel(master, "table", "Bilan par voie"));
    assert_eq!(rows.len(), hours.len(), "{what}");
    let order: Vec<_> = rows.iter().map(|r| number(&r["Énergie (kWh)"])).collect();
    assert!(
        order.is_sorted_by(|a, b| a >= b),
        "the largest first: {order:?}"
    );
    let length = f64::from(
        i32::try_from((period.1 - hour_of(period.0)).num_seconds()).expect("a short period"),
    );
    for (channel, known) in &of_channels {
        let row = rows
            .iter()
            .find(|r| r["Appareil"] == channel.device && r["Voie"] == channel.name);
        let row = row.expect("a row");
        let what = format!("{}, {what}", name(channel));
        six_digits(number(&row["Énergie (kWh)"]), known.net(), &what);
        six_digits(
            number(&row["Moyenne (W)"]),
            known.net() * 3_600_000.0 / known.seconds,
            &what,
        );
        six_digits(
            number(&row["Connue (%)"]),
            known.seconds / length * 100.0,
            &what,
        );
    }
    let connue = number(
        &view
            .value(server, panel(master, "stat", "Mesures connues (%)"))
            .expect("a share"),
    );
    let seconds: Vec<_> = of_channels
        .values()
        .map(|k| k.seconds / length * 100.0)
        .collect();
    six_digits(connue, mean(&seconds), &what);

    let circuits = view.rows(server, panel(master, "table", "Énergie par circuit"));
    let sum = circuits.iter().map(|r| number(&r["Énergie (kWh)"])).sum();
    six_digits(sum, total.net(), &format!("circuits, {what}"));

    // By position: the three voltages of one master are three phases, the voltage of the other is one.
    let phase = |c: &Channel| match (c.device, c.name) {
        (TRI, "Voie2") | (SLAVE, "Pompe (1/2)+") => "Phase 2",
        (TRI, "Voie3") => "Phase 3",
        _ => "Phase 1",
    };
    let mut wanted = BTreeMap::new();
    for (channel, known) in &of_channels {
        *wanted.entry(phase(channel)).or_insert(0.0) += known.net();
    }
    let rows = view.rows(server, panel(master, "barchart", "Énergie par phase (kWh)"));
    assert_eq!(
        rows.iter().map(|r| r["Phase"].as_str()).collect::<Vec<_>>(),
        wanted.keys().copied().collect::<Vec<_>>()
    );
    for row in rows {
        six_digits(
            number(&row["Énergie"]),
            wanted[row["Phase"].as_str()],
            &row["Phase"],
        );
    }

    let mut wanted: BTreeMap<(NaiveDate, &str), Known> = BTreeMap::new();
    for (channel, of_channel) in hours {
        for (hour, known) in of_channel
            .iter()
            .filter(|(h, _)| **h >= hour_of(period.0) && **h < period.1)
        {
            let day = hour.with_timezone(&chrono_tz::Europe::Paris).date_naive();
            let sum = wanted.entry((day, channel.device)).or_default();
            *sum = sum.plus(*known);
        }
    }
    let rows = view.rows(
        server,
        panel(
            master,
            "barchart",
            "Énergie par jour, semaine ou mois (kWh)",
        ),
    );
    let dates: BTreeSet<_> = wanted.keys().map(|(day, _)| *day).collect();
    assert_eq!(
        rows.iter().map(|r| r["Date"].clone()).collect::<Vec<_>>(),
        dates
            .iter()
            .map(|d| d.format("%d/%m").to_string())
            .collect::<Vec<_>>()
    );
    for ((day, device), known) in wanted {
        let row = rows
            .iter()
            .find(|r| r["Date"] == day.format("%d/%m").to_string())
            .expect("a day");
        six_digits(
            number(&row[device]),
            known.net(),
            &format!("{device}, {day}"),
        );
    }
}

fn peaks_and_profiles(
    server: &RealInflux,
    master: &Value,
    all: &View,
    campaign: &Campaign,
    hours: &Hours,
) {
    let totals = campaign.totals(600);
    let highest = totals.values().copied().fold(f64::NEG_INFINITY, f64::max);
    let power = all
        .rows(server, panel(master, "stat", "Puissance totale"))
        .remove(0);
    near(number(&power["Pointe (kW)"]) * 1000.0, highest, "peak");
    let time = DateTime::from_timestamp_millis(number(&power["Heure de la pointe"]) as i64)
        .expect("a time");
    near(totals[&time], highest, "the time of the peak");
    assert!(
        !power.contains_key("De la souscrite (%)"),
        "no subscribed power is set"
    );
    let against = all.clone().with("souscrite", Choice::One(" 1,25 ".into()));
    let power = against
        .rows(server, panel(master, "stat", "Puissance totale"))
        .remove(0);
    near(
        number(&power["De la souscrite (%)"]),
        highest / 12.5,
        "share of the subscribed power",
    );
    // Hours in which a device is missing do not lower the mean.
    let means: f64 = hours
        .values()
        .map(|h| known(h, (at(FROM), at(TO))))
        .map(|k| k.net() * 3600.0 / k.seconds)
        .sum();
    six_digits(number(&power["Moyenne (kW)"]), means, "mean power");

    let rows = all.rows(server, panel(master, "table", "Bilan par voie"));
    for (channel, points) in campaign.powers() {
        let row = rows
            .iter()
            .find(|r| r["Appareil"] == channel.device && r["Voie"] == channel.name)
            .expect("a row");
        let (time, peak) = *points
            .iter()
            .rev()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("points");
        near(number(&row["Pointe (W)"]), peak, "peak");
        assert_eq!(
            at(&row["Heure de la pointe"]),
            time,
            "{}: the first of equal peaks",
            name(channel)
        );
    }

    // Only hours in which all channels are known.
    let mut totals: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for (_, points) in campaign.powers() {
        for (hour, values) in steps(&points, 3600) {
            totals.entry(hour).or_default().push(mean(&values));
        }
    }
    let all_hours = totals.len();
    totals.retain(|_, values| values.len() == hours.len());
    assert_eq!(
        all_hours - totals.len(),
        3,
        "the second master is silent for three whole hours"
    );
    let totals: BTreeMap<_, f64> = totals
        .into_iter()
        .map(|(hour, values)| (hour, values.iter().sum()))
        .collect();
    let rows = all.rows(server, panel(master, "table", "Profil de la semaine (kW)"));
    assert_eq!(
        rows.iter()
            .map(|r| at(&r["Heure"]))
            .collect::<BTreeSet<_>>(),
        totals.keys().copied().collect()
    );
    assert_eq!(rows.len(), totals.len());
    for row in &rows {
        let local = at(&row["Heure"]).with_timezone(&chrono_tz::Europe::Paris);
        six_digits(
            number(&row["Puissance"]) * 1000.0,
            totals[&at(&row["Heure"])],
            "total of an hour",
        );
        assert_eq!(row["Jour"], row["Heure"], "the same time in another format");
        let is_weekend = local.weekday().num_days_from_monday() > 4;
        assert_eq!(
            row["Genre"],
            if is_weekend {
                "Week-end"
            } else {
                "Jours ouvrés"
            },
            "{local}"
        );
    }

    let mut sorted: Vec<_> = totals.values().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let rows = all.rows(server, panel(master, "barchart", "Monotone de charge (kW)"));
    let of = |share: &str| {
        rows.iter()
            .find(|r| r["Part du temps"] == share)
            .expect("a share of the time")
    };
    let shares = [0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100_usize];
    assert_eq!(rows.len(), shares.len());
    for share in shares {
        let rank = ((100 - share) * sorted.len()).div_ceil(100).max(1);
        let what = format!("{share} %");
        let shown = number(&of(&what)["Puissance"]) * 1000.0;
        six_digits(shown, sorted[rank - 1], &what);
    }
    let base = sorted[sorted.len().div_ceil(20) - 1];
    six_digits(number(&of("95 %")["Puissance"]) * 1000.0, base, "base load");
    six_digits(
        number(&of("95 %")["Part"]),
        base / mean(&sorted) * 100.0,
        "share of the base load",
    );
    let falling: Vec<_> = rows.iter().map(|r| number(&r["Puissance"])).collect();
    assert!(falling.is_sorted_by(|a, b| a >= b), "{falling:?}");
}

fn choices_and_zones(server: &RealInflux, master: &Value, all: &View, hours: &Hours) {
    let power = panel(master, "timeseries", "Puissance par voie");
    let names = |view: &View| {
        view.series(server, power)
            .into_iter()
            .map(|s| s.0)
            .collect::<Vec<_>>()
    };
    let id = |device: &str, number: u32, master: &str| {
        let letter = if device == master { 'M' } else { 'S' };
        format!("{letter}{device}_Ch{number}_M{master}")
    };
    let chosen = |ids: Vec<String>| all.clone().with("channels", Choice::Some(ids));
    let three = chosen(vec![id(TRI, 4, TRI), id(SLAVE, 1, TRI), id(MONO, 2, MONO)]);
    let names_of = |view: &View| names(view).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(
        names_of(&three),
        [TRI, SLAVE, MONO].map(|d| format!("Voie1 ({d})")).into()
    );
    let one = all.clone().with("device", Choice::Some(vec![SLAVE.into()]));
    assert_eq!(
        names(&one),
        [
            format!("Pompe (1/2)+ ({SLAVE})"),
            format!("Voie1 ({SLAVE})")
        ]
    );

    // The channels of the total are chosen apart.
    let (channel, of_channel) = hours
        .iter()
        .find(|(c, _)| c.name == "Four")
        .expect("the oven");
    let id = format!("M{MONO}_Ch{}_M{MONO}", channel.number);
    let only = all.clone().with("total", Choice::Some(vec![id]));
    let found = only
        .rows(server, panel(master, "stat", "Énergie"))
        .remove(0);
    let wanted = known(of_channel, (at(FROM), at(TO)));
    six_digits(
        number(&found["Soutirée (kWh)"]),
        wanted.drawn,
        "the oven alone",
    );
    let rows = only.rows(server, panel(master, "table", "Bilan par voie"));
    assert_eq!(rows.len(), hours.len(), "all channels");

    // Another zone has other days. Grafana's name of UTC is "utc".
    let mut utc = all.clone();
    utc.timezone = "utc".to_owned();
    let title = "Énergie par jour, semaine ou mois (kWh)";
    let days = utc.rows(server, panel(master, "barchart", title));
    let dates: Vec<_> = days.iter().map(|r| &*r["Date"]).collect();
    assert_eq!(dates, ["24/10", "25/10", "26/10", "27/10"]);
}

/// Winter with both changes of the clock. Rows are not at whole hours, one channel returns energy and crosses zero, a
/// device is missing in the night of the doubled hour, and all are silent on New Year's morning.
fn winter() -> BTreeMap<Channel, Vec<(DateTime<Utc>, f64)>> {
    let channels = [
        (TRI, TRI, "D39L1", "W", 1),
        (TRI, SLAVE, "Solaire", "kW", 1),
        (MONO, MONO, "Four", "W", 1),
    ];
    let minutes = (at("2026-04-05T00:00:00Z") - at("2025-10-20T22:07:00Z")).num_minutes();
    let mut made: BTreeMap<Channel, Vec<_>> = BTreeMap::new();
    for (n, (master, device, name, unit, number)) in (0_u32..).zip(channels) {
        let channel = Channel {
            master,
            device,
            name,
            unit,
            number,
        };
        let values = (0..minutes / 13).map(|i| {
            let step = f64::from(u32::try_from(i * (7 + 4 * i64::from(n)) % 101).expect("small"));
            let value = if unit == "kW" {
                -1.5 + step / 40.0
            } else {
                80.0 + 25.0 * step
            };
            (
                at("2025-10-20T22:07:00Z") + Duration::minutes(13 * i),
                value,
            )
        });
        let silent = |time: DateTime<Utc>| {
            let within = |from: &str, to: &str| time > at(from) && time < at(to);
            device == SLAVE && within("2025-10-25T20:00:00Z", "2025-10-26T09:00:00Z")
                || within("2026-01-01T04:00:00Z", "2026-01-01T10:00:00Z")
        };
        made.insert(channel, values.filter(|(time, _)| !silent(*time)).collect());
    }
    made
}

/// A period, the prices and the off-peak hours as they are typed, the two prices, and whether an hour is an off-peak hour.
type Tariff<'a> = (
    (&'static str, &'static str),
    &'static str,
    &'static str,
    (f64, f64),
    &'a dyn Fn(u32) -> bool,
);

fn costs_are_those_of_peak_and_off_peak_hours(server: &RealInflux, master: &Value, hours: &Hours) {
    let panel = panel(master, "table", "Coût par mois");
    let rows = |(from, to): (&str, &str), prices: &str, off_peak: &str| {
        let view = View::of(master, "acme", "hiver", (from, to), 3600);
        view.with("prix", Choice::One(prices.into()))
            .with("creuses", Choice::One(off_peak.into()))
            .rows(server, panel)
    };
    let whole = ("2025-10-24T22:00:00Z", "2026-04-02T22:00:00Z");
    let night = |hour: u32| !(6..22).contains(&hour);
    let two = |hour: u32| (2..7).contains(&hour) || (14..17).contains(&hour);
    let overlapping = |hour: u32| hour >= 20 || (4..9).contains(&hour);
    let cases: [Tariff<'_>; 6] = [
        (whole, "0,2516 / 0,1828", "22-6", (0.2516, 0.1828), &night),
        (whole, "0.25/0,18 €", "2h - 7h, 14h-17h", (0.25, 0.18), &two),
        (whole, "0,2", "20-24, 04-08,7-09", (0.2, 0.2), &overlapping),
        (whole, "0,25 / 0,18", "", (0.25, 0.18), &|_| false),
        // The doubled hour, and the hour that is left out.
        (
            ("2025-10-25T22:00:00Z", "2025-10-26T23:00:00Z"),
            "1 / 2",
            "2-3",
            (1.0, 2.0),
            &|hour| hour == 2,
        ),
        (
            ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            "1 / 2",
            "1-3",
            (1.0, 2.0),
            &|hour| hour == 1 || hour == 2,
        ),
    ];
    let names = [
        (2025, 10, "oct. 2025"),
        (2025, 11, "nov. 2025"),
        (2025, 12, "déc. 2025"),
        (2026, 1, "janv. 2026"),
        (2026, 2, "févr. 2026"),
        (2026, 3, "mars 2026"),
        (2026, 4, "avr. 2026"),
    ];
    for (range, prices, off_peak, (peak_price, off_peak_price), is_off_peak) in cases {
        let drawn = |wanted: &dyn Fn(DateTime<chrono_tz::Tz>) -> bool| {
            let all = hours.values().flatten();
            let paris = |hour: DateTime<Utc>| hour.with_timezone(&chrono_tz::Europe::Paris);
            known(
                all.filter(|(hour, _)| wanted(paris(**hour))),
                (at(range.0), at(range.1)),
            )
            .drawn
        };
        let found = rows(range, prices, off_peak);
        let mut wanted = Vec::new();
        for (year, month, name) in names {
            let within = |t: DateTime<chrono_tz::Tz>| (t.year(), t.month()) == (year, month);
            let peak = drawn(&|t| within(t) && !is_off_peak(t.hour()));
            let off = drawn(&|t| within(t) && is_off_peak(t.hour()));
            if peak + off > 0.0 {
                wanted.push((name, peak, off));
            }
        }
        wanted.push((
            "Total",
            drawn(&|t| !is_off_peak(t.hour())),
            drawn(&|t| is_off_peak(t.hour())),
        ));
        let months: Vec<_> = found.iter().map(|r| &*r["Mois"]).collect();
        assert_eq!(months, wanted.iter().map(|w| w.0).collect::<Vec<_>>());
        for (row, (name, peak, off)) in found.iter().zip(wanted) {
            let what = |kind| format!("{kind} of {name}, {off_peak}");
            six_digits(number(&row["Pleines (kWh)"]), peak, &what("peak hours"));
            // A difference of two sums: six digits of the sum.
            let found_off = number(&row["Creuses (kWh)"]);
            six_digits(peak + found_off, peak + off, &what("off-peak hours"));
            let cost = peak * peak_price + off * off_peak_price;
            six_digits(number(&row["Coût (€)"]), cost, &what("cost"));
        }
    }

    // Without a price that can be read, only the energy is shown; without hours that can be read, nothing.
    for prices in ["", "cher", "0,2 / 0,1 / 0,3", "0,2 / ?", "-1"] {
        let found = rows(whole, prices, "22-6");
        assert_eq!(found.len(), 8, "{prices}");
        assert!(
            found
                .iter()
                .all(|r| !r.contains_key("Coût (€)") && r.contains_key("Creuses (kWh)")),
            "{prices}: {found:?}"
        );
    }
    for off_peak in [
        "22h30-6h30",
        "22",
        "22-26",
        "0-24",
        "6-6",
        "nuit",
        "1-2,3-4,5-6,7-8",
    ] {
        assert_eq!(rows(whole, "0,2", off_peak), [], "{off_peak}");
    }
    let empty = ("2024-01-01T00:00:00Z", "2024-03-01T00:00:00Z");
    assert_eq!(rows(empty, "0,2", "22-6"), []);
}

#[test]
fn the_energy_of_each_period_is_right_to_six_digits() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    let winter = winter();
    let (mut lines, mut hours) = (String::new(), Hours::new());
    for (channel, points) in &winter {
        for (time, value) in points {
            lines += &channel.point("hiver", *time, *value);
        }
        let scale = if channel.unit == "kW" { 1000.0 } else { 1.0 };
        let watts: Vec<_> = points.iter().map(|(t, v)| (*t, v * scale)).collect();
        hours.insert(channel.clone(), integrated(&watts));
    }
    server.write("acme", &lines, "s");
    rollup(&server);
    let of = |from: &str, to: &str| View::of(&master, "acme", "hiver", (from, to), 3600);
    for (from, to) in [
        // The doubled hour, and the hour that is left out.
        ("2025-10-24T22:00:00Z", "2025-10-27T23:00:00Z"),
        ("2026-03-27T23:00:00Z", "2026-03-31T22:00:00Z"),
        // Begins and ends within an hour, whose whole energy counts.
        ("2025-11-12T10:20:00Z", "2025-11-14T15:40:30Z"),
        ("2025-11-12T10:20:00Z", "2025-11-12T10:50:00Z"),
        // The borders of months and of the year.
        ("2025-11-28T23:00:00Z", "2025-12-02T23:00:00Z"),
        ("2025-12-30T23:00:00Z", "2026-01-02T23:00:00Z"),
        ("2025-11-30T23:00:00Z", "2025-12-31T23:00:00Z"),
    ] {
        energies_are_integrated(&server, &master, &of(from, to), &hours);
    }

    bars_are_local_weeks_months_and_years(&server, &master, &hours);
    costs_are_those_of_peak_and_off_peak_hours(&server, &master, &hours);
    peaks_are_those_of_long_days_and_months(&server, &master, &winter);

    // A channel that is silent for the whole period is not expected in it.
    let silence = of("2025-10-26T00:00:00Z", "2025-10-26T06:00:00Z");
    let rows = silence.rows(&server, panel(&master, "table", "Bilan par voie"));
    assert_eq!(rows.len(), 2, "{rows:?}");
    let share = silence.value(&server, panel(&master, "stat", "Mesures connues (%)"));
    let period = (at("2025-10-26T00:00:00Z"), at("2025-10-26T06:00:00Z"));
    let seconds: Vec<_> = hours.values().map(|h| known(h, period).seconds).collect();
    assert_eq!(seconds.iter().filter(|s| **s > 0.0).count(), 2);
    let wanted = seconds.iter().sum::<f64>() / 2.0 / 216.0;
    six_digits(number(&share.expect("a share")), wanted, "of the others");

    // By month, and a year earlier.
    let months = |to: &str| {
        let title = "Énergie par mois, un an plus tôt (kWh)";
        of("2025-11-01T00:00:00Z", to).rows(&server, panel(&master, "barchart", title))
    };
    let drawn = |year: i32, month: u32, to: &str| -> f64 {
        let in_month = |hour: DateTime<Utc>| {
            let local = hour.with_timezone(&chrono_tz::Europe::Paris);
            (local.year(), local.month()) == (year, month)
        };
        let all = hours.values().flatten().filter(|(h, _)| in_month(**h));
        known(all, (at("2025-01-01T00:00:00Z"), at(to))).drawn
    };
    let shown = |rows: &[BTreeMap<String, String>], column: &str| -> Vec<(String, f64)> {
        let of_column = rows
            .iter()
            .filter_map(|r| Some((r["Mois"].clone(), number(r.get(column)?))));
        of_column.collect()
    };
    for (to, column, months_shown) in [
        (
            "2026-01-15T12:30:00Z",
            "Douze derniers mois",
            &[
                ("oct.", 2025, 10),
                ("nov.", 2025, 11),
                ("déc.", 2025, 12),
                ("janv.", 2026, 1),
            ][..],
        ),
        (
            "2026-11-30T23:00:00Z",
            "Douze derniers mois",
            &[
                ("déc.", 2025, 12),
                ("janv.", 2026, 1),
                ("févr.", 2026, 2),
                ("mars", 2026, 3),
                ("avr.", 2026, 4),
            ],
        ),
        (
            "2026-11-30T23:00:00Z",
            "Un an plus tôt",
            &[("oct.", 2025, 10), ("nov.", 2025, 11)],
        ),
    ] {
        let found = shown(&months(to), column);
        assert_eq!(
            found.iter().map(|m| &*m.0).collect::<Vec<_>>(),
            months_shown.iter().map(|m| m.0).collect::<Vec<_>>(),
            "{column} until {to}"
        );
        for ((name, energy), (_, year, month)) in found.iter().zip(months_shown) {
            six_digits(
                *energy,
                drawn(*year, *month, to),
                &format!("{name} until {to}"),
            );
        }
    }

    // Against the period before, and a year earlier. A period that is known less well is not compared.
    let against = |from: &str, to: &str| {
        of(from, to)
            .rows(&server, panel(&master, "stat", "Énergie"))
            .remove(0)
    };
    let row = against("2025-11-15T00:00:00Z", "2025-11-22T00:00:00Z");
    let week = |from: &str, to: &str| {
        hours
            .values()
            .map(|h| known(h, (at(from), at(to))).drawn)
            .sum::<f64>()
    };
    let wanted = week("2025-11-15T00:00:00Z", "2025-11-22T00:00:00Z")
        / week("2025-11-08T00:00:00Z", "2025-11-15T00:00:00Z");
    six_digits(
        number(&row["Période précédente (%)"]) + 100.0,
        wanted * 100.0,
        "against the week before",
    );
    assert!(!row.contains_key("Un an plus tôt (%)"), "{row:?}");
    let row = against("2025-10-21T00:00:00Z", "2025-10-28T00:00:00Z");
    assert!(!row.contains_key("Période précédente (%)"), "{row:?}");

    // Over months, the peak is that of an hour.
    let mut totals: BTreeMap<_, f64> = BTreeMap::new();
    for (channel, points) in &winter {
        let scale = if channel.unit == "kW" { 1000.0 } else { 1.0 };
        for (hour, values) in steps(points, 3600) {
            *totals.entry(hour).or_default() += mean(&values) * scale;
        }
    }
    let months = of("2025-10-20T00:00:00Z", "2026-04-05T00:00:00Z");
    let row = months
        .rows(&server, panel(&master, "stat", "Puissance totale"))
        .remove(0);
    let highest = totals.values().copied().fold(f64::NEG_INFINITY, f64::max);
    six_digits(
        number(&row["Pointe horaire (kW)"]) * 1000.0,
        highest,
        "the highest hour",
    );
    let time = totals
        .iter()
        .find(|(_, total)| **total == highest)
        .expect("an hour")
        .0;
    assert_eq!(
        DateTime::from_timestamp_millis(number(&row["Heure de la pointe"]) as i64),
        Some(*time)
    );
}

/// The name of the bar of an hour, for a period of that many days that begins at a local time.
fn bar(days: i64, begin: DateTime<chrono_tz::Tz>, hour: DateTime<chrono_tz::Tz>) -> String {
    let day = hour.date_naive();
    match days {
        0..=45 => day.format("%d/%m").to_string(),
        46..=300 => {
            let monday = day - Duration::days(i64::from(day.weekday().num_days_from_monday()));
            monday.max(begin.date_naive()).format("%d/%m").to_string()
        }
        301..=1461 => day.format("%m/%Y").to_string(),
        _ => day.format("%Y").to_string(),
    }
}

/// Periods that are just short or long enough for days, weeks, months and years.
const LENGTHS: [i64; 6] = [45, 46, 300, 301, 1461, 1462];

fn bars_are_local_weeks_months_and_years(server: &RealInflux, master: &Value, hours: &Hours) {
    let title = "Énergie par jour, semaine ou mois (kWh)";
    let to = at("2026-01-14T23:00:00Z");
    for days in LENGTHS {
        let from = to - Duration::days(days);
        let paris = |time: DateTime<Utc>| time.with_timezone(&chrono_tz::Europe::Paris);
        let mut wanted: BTreeMap<(DateTime<Utc>, String), BTreeMap<&str, f64>> = BTreeMap::new();
        let mut first: BTreeMap<String, DateTime<Utc>> = BTreeMap::new();
        for (channel, of_channel) in hours {
            for (hour, known) in of_channel.iter().filter(|h| *h.0 >= from && *h.0 < to) {
                let name = bar(days, paris(from), paris(*hour));
                let start = first.entry(name.clone()).or_insert(*hour);
                let sums = wanted.entry((*start, name)).or_default();
                *sums.entry(channel.device).or_default() += known.net();
            }
        }
        let view = View::of(
            master,
            "acme",
            "hiver",
            (&from.to_rfc3339(), &to.to_rfc3339()),
            3600,
        );
        let rows = view.rows(server, panel(master, "barchart", title));
        let names: Vec<_> = rows.iter().map(|r| r["Date"].clone()).collect();
        let expected: Vec<_> = wanted.keys().map(|(_, name)| name.clone()).collect();
        assert_eq!(names, expected, "{days} days");
        for (row, ((_, name), devices)) in rows.iter().zip(&wanted) {
            assert_eq!(row.len(), devices.len() + 1, "{row:?}");
            for (device, energy) in devices {
                let what = format!("{name} of {days} days, {device}");
                six_digits(number(&row[*device]), *energy, &what);
            }
        }
    }
}

/// The day of 25 hours, and October with its 745 hours, have the peak of the points. An hour more has that of an hour.
fn peaks_are_those_of_long_days_and_months(
    server: &RealInflux,
    master: &Value,
    winter: &BTreeMap<Channel, Vec<(DateTime<Utc>, f64)>>,
) {
    for (from, to, column, step) in [
        (
            "2025-10-25T22:00:00Z",
            "2025-10-26T23:00:00Z",
            "Pointe (kW)",
            600,
        ),
        (
            "2025-09-30T22:00:00Z",
            "2025-10-31T23:00:00Z",
            "Pointe (kW)",
            600,
        ),
        (
            "2025-09-30T21:00:00Z",
            "2025-10-31T23:00:00Z",
            "Pointe horaire (kW)",
            3600,
        ),
    ] {
        let mut totals: BTreeMap<_, f64> = BTreeMap::new();
        for (channel, points) in winter {
            let scale = if channel.unit == "kW" { 1000.0 } else { 1.0 };
            let within = points.iter().filter(|p| p.0 >= at(from) && p.0 < at(to));
            let within: Vec<_> = within.map(|(time, value)| (*time, value * scale)).collect();
            for (start, values) in steps(&within, step) {
                *totals.entry(start).or_default() += mean(&values);
            }
        }
        let highest = totals.values().copied().fold(f64::NEG_INFINITY, f64::max);
        let view = View::of(master, "acme", "hiver", (from, to), 3600);
        let row = view
            .rows(server, panel(master, "stat", "Puissance totale"))
            .remove(0);
        six_digits(number(&row[column]) * 1000.0, highest, from);
        let time = DateTime::from_timestamp_millis(number(&row["Heure de la pointe"]) as i64);
        near(
            totals[&time.expect("a time")],
            highest,
            "the time of the peak",
        );
    }
}

/// The device and the name of a power in W, and its n-th value.
type Power<'a> = (&'static str, &'static str, &'a dyn Fn(f64) -> f64);

/// Writes a day of powers with our tags, a value each ten minutes, and their summaries.
fn write_day(server: &RealInflux, campaign: &str, powers: &[Power<'_>]) -> Hours {
    let (mut lines, mut hours) = (String::new(), Hours::new());
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    for (device, name, value) in powers {
        let number = numbers.entry(device).or_default();
        *number += 1;
        let channel = Channel {
            master: TRI,
            device,
            name,
            unit: "W",
            number: *number,
        };
        let points: Vec<_> = (0..=144_u32)
            .map(|i| {
                (
                    at("2026-06-01T22:00:00Z") + Duration::minutes(10 * i64::from(i)),
                    value(f64::from(i)),
                )
            })
            .collect();
        for (time, value) in &points {
            lines += &channel.point(campaign, *time, *value);
        }
        hours.insert(channel, integrated(&points));
    }
    server.write("acme", &lines, "s");
    rollup(server);
    hours
}

const DAY: (&str, &str) = ("2026-06-01T22:00:00Z", "2026-06-02T22:00:00Z");

#[test]
fn the_dashboard_names_channels_that_count_energy_twice() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    let a = |i: f64| 100.0 + (i * 37.0) % 101.0;
    let b = |i: f64| 50.0 + (i * 17.0) % 89.0;
    let c = |i: f64| 20.0 + (i * 29.0) % 53.0;
    let lamp = |i: f64| 7.0 + (i * 11.0) % 41.0;
    let hours = write_day(
        &server,
        "double",
        &[
            (TRI, "D39L1", &a),
            (TRI, "D39L2", &b),
            (TRI, "D39L3", &c),
            (SLAVE, "Four", &|i| a(i) + b(i) + c(i)),
            (SLAVE, "Lampe", &lamp),
            // Of about the same energy as the lamp, at other times.
            (SLAVE, "Veille", &|i| lamp(144.0 - i)),
            (MONO, "Miroir", &|i| -lamp(i)),
        ],
    );
    let all = View::of(&master, "acme", "double", DAY, 600);
    let findings = |view: &View| {
        let rows = view.rows(
            &server,
            panel(&master, "table", "Voies qui se contredisent"),
        );
        let text = |r: &BTreeMap<String, String>| {
            format!("{} / {} / {}", r["Voies"], r["Et"], r["Constat"])
        };
        rows.iter().map(text).collect::<BTreeSet<_>>()
    };
    let found = findings(&all);
    let wanted = [
        format!("D39 L1 à L3 ({TRI}) / Four ({SLAVE}) / égales : comptées deux fois dans le total"),
        format!("Lampe ({SLAVE}) / Miroir ({MONO}) / opposées : elles s'annulent dans le total"),
    ];
    assert_eq!(found, wanted.into());
    let ids = ["Ch1", "Ch2", "Ch3"].map(|n| format!("M{TRI}_{n}_M{TRI}"));
    let grid = all.clone().with("total", Choice::Some(ids.to_vec()));
    assert_eq!(findings(&grid), BTreeSet::new());

    // The phases of a circuit are recognised by their names.
    let rows = all.rows(&server, panel(&master, "table", "Énergie par circuit"));
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|r| (&*r["Circuit"], number(&r["Énergie (kWh)"])))
        .collect();
    assert_eq!(
        found.keys().copied().collect::<Vec<_>>(),
        ["D39", "Four", "Lampe", "Miroir", "Veille"]
    );
    let day = (at(DAY.0), at(DAY.1));
    let net = |name: &str| -> f64 {
        let of_name = hours.iter().filter(|(c, _)| c.name.starts_with(name));
        of_name.map(|(_, h)| known(h, day).net()).sum()
    };
    for (circuit, energy) in found {
        six_digits(energy, net(circuit), circuit);
    }
    let rows = grid.rows(
        &server,
        panel(&master, "barchart", "Énergie par phase (kWh)"),
    );
    let found: Vec<_> = rows
        .iter()
        .map(|r| (&*r["Phase"], number(&r["Énergie"])))
        .collect();
    assert_eq!(
        found.iter().map(|p| p.0).collect::<Vec<_>>(),
        ["Phase 1", "Phase 2", "Phase 3"]
    );
    for ((phase, energy), name) in found.into_iter().zip(["D39L1", "D39L2", "D39L3"]) {
        six_digits(energy, net(name), phase);
    }
}

/// A campaign, its powers, and the pairs that contradict each other.
type Scene<'a> = (&'a str, &'a [Power<'a>], &'a [(String, String)]);

/// Each contradiction is one row. Channels that only resemble each other are none.
#[test]
fn contradictions_are_counted_once_and_resemblances_not_at_all() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    let a = |i: f64| 100.0 + (i * 37.0) % 101.0;
    let b = |i: f64| 50.0 + (i * 17.0) % 89.0;
    let c = |i: f64| 20.0 + (i * 29.0) % 53.0;
    let (three_percent_more, twice) = (|i: f64| a(i) * 1.03, |i: f64| a(i) * 2.0);
    let (slightly_more, all) = (|i: f64| a(i) * 1.005, |i: f64| a(i) + b(i) + c(i));
    let measured = |i: f64| all(i) * 1.03;
    let of = |text: &str, device: &str| format!("{text} ({device})");
    let everything = format!("toutes les voies de {SLAVE}");
    let rest = "toutes les autres voies du total".to_owned();
    let scenes: [Scene<'_>; 6] = [
        (
            "deux semblables",
            &[(TRI, "A", &a), (TRI, "B", &three_percent_more)],
            &[],
        ),
        (
            "trois semblables",
            &[
                (TRI, "A", &a),
                (TRI, "B", &three_percent_more),
                (SLAVE, "C", &|_| 2.0),
            ],
            &[],
        ),
        ("double", &[(TRI, "A", &a), (SLAVE, "B", &twice)], &[]),
        (
            "trois égales",
            &[
                (TRI, "A", &a),
                (SLAVE, "B", &slightly_more),
                (MONO, "C", &a),
            ],
            &[
                (of("A", TRI), of("B", SLAVE)),
                (of("A", TRI), of("C", MONO)),
            ],
        ),
        (
            "compteur",
            &[
                (TRI, "Total", &all),
                (SLAVE, "A", &a),
                (SLAVE, "B", &b),
                (SLAVE, "C", &c),
            ],
            &[(everything, of("Total", TRI))],
        ),
        (
            "compteur et pertes",
            &[
                (TRI, "Total", &measured),
                (SLAVE, "A", &a),
                (SLAVE, "B", &b),
                (MONO, "C", &c),
            ],
            &[(of("Total", TRI), rest)],
        ),
    ];
    for (campaign, powers, wanted) in scenes {
        write_day(&server, campaign, powers);
        let view = View::of(&master, "acme", campaign, DAY, 600);
        let title = "Voies qui se contredisent";
        let rows = view.rows(&server, panel(&master, "table", title));
        let found: BTreeSet<_> = rows
            .iter()
            .map(|r| (r["Voies"].clone(), r["Et"].clone()))
            .collect();
        assert_eq!(found, wanted.iter().cloned().collect(), "{campaign}");
        assert_eq!(rows.len(), wanted.len(), "{campaign}: {rows:#?}");
    }
    let counts = panel(&master, "stat", "Voies en double");
    let table = panel(&master, "table", "Voies qui se contredisent");
    assert_eq!(grafana::shares(counts), Some(&table["id"]));
    assert_eq!(
        counts["options"]["reduceOptions"]["calcs"],
        json!(["count"])
    );
}

/// Only a digit or a separator ends the name of a circuit before its phase.
#[test]
fn names_that_end_like_a_phase_are_no_circuits() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    let one = |_: f64| 1000.0;
    let two = |_: f64| 2000.0;
    write_day(
        &server,
        "noms",
        &[
            (TRI, "SOL1", &one),
            (TRI, "SOL2", &one),
            (TRI, "SOL3", &one),
            (SLAVE, "L1", &one),
            (SLAVE, "L2", &two),
            (SLAVE, "L3", &one),
            (MONO, "Four-L1", &one),
            (MONO, "Four-L2", &one),
            (MONO, "Four-L3", &two),
            (MONO, "D7 L1", &one),
        ],
    );
    let view = View::of(&master, "acme", "noms", DAY, 600);
    let rows = view.rows(&server, panel(&master, "table", "Énergie par circuit"));
    let mut found: Vec<_> = rows
        .iter()
        .map(|r| {
            (
                &*r["Circuit"],
                &*r["Appareil"],
                number(&r["Énergie (kWh)"]).round(),
            )
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(b.0));
    let wanted = [
        ("D7 L1", MONO, 24.0),
        ("Four", MONO, 96.0),
        ("SOL1", TRI, 24.0),
        ("SOL2", TRI, 24.0),
        ("SOL3", TRI, 24.0),
        ("sans nom", SLAVE, 96.0),
    ];
    assert_eq!(found, wanted);
    // Without voltages, a channel is of the first phase.
    let rows = view.rows(
        &server,
        panel(&master, "barchart", "Énergie par phase (kWh)"),
    );
    let found: Vec<_> = rows
        .iter()
        .map(|r| (&*r["Phase"], number(&r["Énergie"]).round()))
        .collect();
    let wanted = [
        ("Phase 1", 72.0 + 72.0),
        ("Phase 2", 72.0),
        ("Phase 3", 72.0),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn self_consumption_is_production_that_is_not_returned() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    let shines = |i: f64| (48.0..108.0).contains(&i);
    let hours = write_day(
        &server,
        "solaire",
        &[
            (TRI, "Réseau", &|i| {
                if shines(i) { -500.0 } else { 1000.0 + i }
            }),
            (SLAVE, "Panneaux", &|i| {
                if shines(i) { -2000.0 - i } else { 0.0 }
            }),
            (SLAVE, "Four", &|i| 900.0 + i),
        ],
    );
    let all = View::of(&master, "acme", "solaire", DAY, 600);
    let solar = panel(&master, "stat", "Production et autoconsommation");
    assert_eq!(
        all.rows(&server, solar),
        [],
        "no channels of production are chosen"
    );
    let chosen = all
        .with("total", Choice::Some(vec![format!("M{TRI}_Ch1_M{TRI}")]))
        .with(
            "production",
            Choice::Some(vec![format!("S{SLAVE}_Ch1_M{TRI}")]),
        );
    let of = |name: &str| {
        let (_, hours) = hours
            .iter()
            .find(|(c, _)| c.name == name)
            .expect("a channel");
        known(hours, (at(DAY.0), at(DAY.1)))
    };
    let (grid, made) = (of("Réseau"), of("Panneaux").returned);
    let row = chosen.rows(&server, solar).remove(0);
    let own = made - grid.returned;
    six_digits(number(&row["Produite (kWh)"]), made, "production");
    six_digits(
        number(&row["Autoconsommation (%)"]),
        own / made * 100.0,
        "share of the production",
    );
    six_digits(
        number(&row["Autoproduction (%)"]),
        own / (own + grid.drawn) * 100.0,
        "share of the consumption",
    );
    let row = chosen
        .rows(&server, panel(&master, "stat", "Énergie"))
        .remove(0);
    six_digits(number(&row["Soutirée (kWh)"]), grid.drawn, "drawn");
    six_digits(number(&row["Injectée (kWh)"]), grid.returned, "returned");

    // In the night, there is no production of which a part could be shown.
    let six = (at(DAY.0) + Duration::hours(6)).to_rfc3339();
    let mut night = chosen;
    night.range.1 = six;
    let row = night.rows(&server, solar).remove(0);
    near(
        number(&row["Produite (kWh)"]),
        0.0,
        "production of the night",
    );
    assert!(!row.contains_key("Autoconsommation (%)"), "{row:?}");
    near(
        number(&row["Autoproduction (%)"]),
        0.0,
        "share of the night",
    );
}

#[test]
fn the_subscribed_power_is_a_line() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    write_day(&server, "site", &[(TRI, "Réseau", &|i| 1000.0 + i)]);
    let all = View::of(&master, "acme", "site", DAY, 600);
    let curve = panel(&master, "timeseries", "Puissance totale");
    let names = |view: &View| {
        view.series(&server, curve)
            .into_iter()
            .map(|s| s.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&all), ["Puissance totale"]);
    let with = |text: &str| {
        View::of(&master, "acme", "site", DAY, 600).with("souscrite", Choice::One(text.into()))
    };
    for text in ["0", "0,0", "aucune"] {
        assert_eq!(names(&with(text)), ["Puissance totale"], "{text}");
    }
    for (text, power) in [
        ("36,5", 36_500.0),
        (" 36 kVA", 36_000.0),
        ("0,9", 900.0),
        ("120", 120_000.0),
    ] {
        let subscribed = with(text);
        assert_eq!(
            names(&subscribed),
            ["Puissance souscrite", "Puissance totale"]
        );
        let series = subscribed.series(&server, curve);
        let values: Vec<_> = series[0].1.iter().map(|p| p.1).collect();
        assert_eq!(values, [Some(power); 2], "{text}");
    }
}

/// Prints how long the dashboard takes with 27 channels (docs/performance.md). The number of years is in `YEARS`.
#[test]
#[ignore = "slow: writes a year of 27 channels"]
fn a_year_of_27_channels_is_answered() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let years = i64::try_from(number_from_env("YEARS", 1)).expect("few");
    let (to, hours) = (at("2026-01-01T00:00:00Z"), years * 365 * 24);
    let from = to - Duration::hours(hours);
    let id = |device: &str, number: i64| format!("S{device}_Ch{number}_M{TRI}");
    let tags = |channel: i64| {
        let (device, number) = (format!("0400000{}", channel / 6), channel % 6 + 1);
        format!(
            "campaign=site,channel_id={},channel_name=Voie{number},channel_number={number},\
             channel_type=slave,device={device},device_master_sn={TRI},device_sn={device},unit=W",
            id(&device, number)
        )
    };
    // Five computed channels, and one that continues another one. All have names, nine have circuits and phases.
    let (old, new) = (id("04000004", 2), id("04000004", 3));
    let merged = format!("V_{new}");
    let computed = |channel: i64| {
        let (id, device) = if channel < 5 {
            (format!("V_{channel}"), "virtuel")
        } else {
            (merged.clone(), "04000004")
        };
        format!(
            "campaign=site,channel_id={id},channel_name={id},channel_number=0,channel_type=virtual,device={device},\
             device_master_sn={device},device_sn={device},unit=W"
        )
    };
    let mut lines = String::new();
    let middle = (from + Duration::hours(hours / 2)).timestamp();
    for channel in 0..33 {
        let own = id(&format!("0400000{}", channel / 6), channel % 6 + 1);
        let (id, part) = match channel {
            0..27 if own == old => (own, format!("merged=\"{merged}\",valid=\"/{middle}\"")),
            0..27 if own == new => (own, format!("merged=\"{merged}\",valid=\"{middle}/\"")),
            0..27 => (own, "merged=\"\",valid=\"\"".to_owned()),
            27..32 => (
                format!("V_{}", channel - 27),
                "merged=\"\",valid=\"\"".to_owned(),
            ),
            _ => (merged.clone(), "merged=\"\",valid=\"\"".to_owned()),
        };
        let (circuit, phase) = match channel {
            0..9 => (
                format!("Circuit {}", channel / 3),
                format!("L{}", channel % 3 + 1),
            ),
            _ => Default::default(),
        };
        lines += &format!(
            "powerview_channels,campaign=site,channel_id={id} label=\"Nom {channel}\",circuit=\"{circuit}\",phase=\"{phase}\",\
             role=\"\",hidden=\"\",{part},unit=\"W\",device=\"\",channel=\"\",terms=\"\",state=\"\" 4102444800\n"
        );
    }
    server.write("acme", &lines, "s");
    // Each raw point is the mean of its hour, so that the summaries can be written beside it.
    let mut kwh = 0.0;
    for day in 0..hours / 24 {
        let mut lines = String::new();
        for (channel, hour) in (0..33).flat_map(|c| (0..24).map(move |h| (c, h))) {
            let start = from + Duration::hours(day * 24 + hour);
            let watts = 100 * channel + (day * 7 + hour * 31) % 97;
            let tags = match channel {
                0..27 => tags(channel),
                _ => computed(channel - 27),
            };
            if channel < 27 {
                for i in 0..6 {
                    let time = (start + Duration::minutes(10 * i)).timestamp();
                    lines += &format!("site,{tags} value={watts} {time}\n");
                }
            }
            // The two that are one are in the total as one, the computed ones are not.
            if tags.contains(&merged)
                || !tags.contains("V_") && !tags.contains(&old) && !tags.contains(&new)
            {
                kwh += f64::from(i32::try_from(watts).expect("small")) / 1000.0;
            }
            lines += &format!(
                "powerview_1h,{tags} count=6i,covered_s=3600i,energy_in_wh={watts},energy_out_wh=0,max={watts},mean={watts},min={watts} {}\n",
                start.timestamp()
            );
        }
        server.write("acme", &lines, "s");
    }

    let master = grafana::dashboard("master");
    let rfc = |time: DateTime<Utc>| time.to_rfc3339();
    let window = u64::try_from(hours * 3600 / 360)
        .expect("positive")
        .next_multiple_of(3600);
    let queries = |(from, to): (DateTime<Utc>, DateTime<Utc>)| -> Vec<(String, String)> {
        let view = View::of(&master, "acme", "site", (&rfc(from), &rfc(to)), window);
        let view = view.resolved(&server);
        let open = master["panels"].as_array().expect("panels").iter();
        open.filter(|p| p["type"] != "row")
            .flat_map(|p| {
                let title = p["title"].as_str().expect("a title").to_owned();
                grafana::queries(p)
                    .into_iter()
                    .map(move |q| (title.clone(), q))
            })
            .map(|(title, query)| (title, view.interpolate(query)))
            .collect()
    };
    let view = View::of(&master, "acme", "site", (&rfc(from), &rfc(to)), window);
    let energy = view
        .rows(&server, panel(&master, "stat", "Énergie"))
        .remove(0);
    six_digits(number(&energy["Soutirée (kWh)"]), kwh, "energy");
    let long_before = Duration::days(365 * 30);
    grafana::print_times(
        &server,
        &format!("{years} y"),
        &queries((from, to)),
        &queries((from - long_before, to - long_before)),
    );
}

/// Each campaign lacks something. No panel may return an error.
#[test]
fn a_campaign_may_lack_anything() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let master = grafana::dashboard("master");
    // Six measurements of 60 in an hour, in the format of an older program: without `device`.
    let lines = |campaign: &str, number: u32, name: &str, unit: &str| {
        let unit = if unit.is_empty() {
            String::new()
        } else {
            format!(",unit={unit}")
        };
        let tags = format!(
            "campaign={campaign},channel_id=M{TRI}_Ch{number}_M{TRI},channel_name={name},channel_number={number},\
             channel_type=master,device_master_sn={TRI},device_sn={TRI}{unit}"
        );
        let line = |i: i64| {
            format!(
                "{campaign},{tags} value=60 {}\n",
                at(EVENING).timestamp() - 3600 + 600 * i
            )
        };
        (0..6).map(line).collect::<String>()
    };
    let cases = [
        ("powers", lines("powers", 4, "Voie1", "W")),
        ("voltages", lines("voltages", 1, "Ph\\ 1", "V")),
        ("counters", lines("counters", 1, "Eau", "Wh")),
        ("unitless", lines("unitless", 1, "Eau", "")),
        (
            "duplicates",
            lines("duplicates", 1, "Voie1", "W") + &lines("duplicates", 2, "Voie1", "W"),
        ),
        (
            "one",
            lines("one", 1, "Voie1", "W")
                .lines()
                .next()
                .expect("a line")
                .to_owned(),
        ),
    ];
    let views: BTreeMap<_, _> = cases
        .iter()
        .map(|(campaign, lines)| {
            server.write("acme", lines, "s");
            (
                *campaign,
                View::of(
                    &master,
                    "acme",
                    campaign,
                    ("2025-11-20T17:00:00Z", EVENING),
                    600,
                ),
            )
        })
        .collect();
    rollup(&server);
    for view in views.values() {
        for p in panels(&master) {
            view.frames(&server, p);
        }
    }
    let overview = grafana::dashboard("overview");
    let all = overview_of(&overview, "2025-11-20T17:00:00Z", EVENING);
    for p in panels(&overview) {
        all.frames(&server, p);
    }
    let phases = |campaign: &str| {
        let rows = views[campaign].rows(
            &server,
            panel(&master, "barchart", "Énergie par phase (kWh)"),
        );
        rows.iter()
            .map(|r| (r["Phase"].clone(), number(&r["Énergie"])))
            .collect::<Vec<_>>()
    };
    // Without voltages there is one phase: 60 W in 50 minutes.
    assert_eq!(phases("powers"), [("Phase 1".to_owned(), 0.05)]);
    assert_eq!(phases("voltages"), []);
    assert_eq!(phases("counters"), []);
    let shown = |campaign: &str, title: &str| {
        let series = views[campaign].series(&server, panel(&master, "timeseries", title));
        series.into_iter().map(|s| s.0).collect::<Vec<_>>()
    };
    assert_eq!(
        shown("unitless", "Autres mesures"),
        [format!("Eau ({TRI})")]
    );
    // Two channels of the same name remain separate.
    assert_eq!(
        shown("duplicates", "Puissance par voie"),
        [format!("Voie1 ({TRI})"), format!("Voie1 ({TRI})")]
    );
    let total = views["duplicates"].rows(&server, panel(&master, "stat", "Énergie"));
    near(
        number(&total[0]["Soutirée (kWh)"]),
        0.1,
        "two channels of 60 W in 50 minutes",
    );
}

/// Real files, with their clock errors, repeated times and gaps.
#[test]
fn the_master_dashboard_shows_the_channels_of_real_files() {
    let Some(samples) = samples() else { return };
    let master = grafana::dashboard("master");
    for (company, site, file) in [
        ("company1", "campaign1", "02001084/T302_251012_031720.tsv"),
        ("client_v003", "tri", "02000800/T302_260208_211459_UTC.tsv"),
        ("base", "camp_base", "02001283/T302_251024_204336.tsv"),
    ] {
        let path = format!("{company}/{site}/{file}");
        let text = std::fs::read_to_string(samples.join(&path)).expect("a sample");
        let head = |marker: &str| {
            text.lines()
                .find(|l| l.starts_with(marker))
                .expect(marker)
                .trim_end()
                .split('\t')
        };
        let labels: Vec<_> = head("MV_").skip(1).collect();
        let serials = text
            .lines()
            .find(|l| l.starts_with(|c: char| c.is_ascii_digit()))
            .expect("serials");
        let columns: Vec<_> = serials
            .trim_end()
            .split('\t')
            .skip(1)
            .zip(&labels)
            .collect();
        let of_unit = |unit: &str| {
            let own = columns.iter().filter_map(|(serial, label)| {
                let name = label.strip_suffix(unit)?.trim_end();
                Some(format!("{name} ({serial})"))
            });
            own.collect::<BTreeSet<_>>()
        };
        let Some((server, _dir)) = ingested(&[(path, text.clone())], an_hour_old) else {
            return;
        };
        let view = View::of(
            &master,
            company,
            site,
            ("2019-01-01T00:00:00Z", "2026-11-01T00:00:00Z"),
            7 * 86_400,
        );
        for (title, unit) in [("Puissance par voie", " W"), ("Tensions", " V")] {
            let found: BTreeSet<_> = view
                .series(&server, panel(&master, "timeseries", title))
                .into_iter()
                .map(|s| s.0)
                .collect();
            assert_eq!(found, of_unit(unit), "{company}: {title}");
        }
        // An upper limit: the highest power of the channel in all hours with a measurement.
        let energies = view.rows(&server, panel(&master, "table", "Bilan par voie"));
        assert_eq!(energies.len(), of_unit(" W").len(), "{company}");
        let rows = f64::from(u32::try_from(text.lines().count()).expect("few lines"));
        for row in energies {
            let most = number(&row["Pointe (W)"]).max(0.0) * rows * 2.0 / 1000.0;
            assert!(
                number(&row["Énergie (kWh)"]) <= most,
                "{company}: energy out of a gap: {row:?}"
            );
        }
    }
}

// ------------------------------------------------------------------------------------------------- the overview

/// Three campaigns of a company: both programs wrote all points of the first one, the clocks change in the second one,
/// and the third one has 1 kW for a week and, a year later, 2 kW and 1.5 kW for a week each.
fn campaigns() -> BTreeMap<&'static str, Campaign> {
    let channel = Channel {
        master: MONO,
        device: MONO,
        name: "Voie1",
        unit: "W",
        number: 9,
    };
    let (first, year_later) = (at("2024-11-01T00:00:00Z"), at("2025-10-25T00:00:00Z"));
    let steps = |from: DateTime<Utc>, steps: i32, watts: fn(i32) -> f64| {
        (0..=steps).map(move |i| (from + Duration::minutes(10 * i64::from(i)), watts(i)))
    };
    let week = 7 * 144;
    let points = steps(first, week, |_| 1000.0)
        .chain(steps(year_later, 2 * week, |i| {
            if i < 7 * 144 { 2000.0 } else { 1500.0 }
        }))
        .collect();
    let years = Campaign {
        points: BTreeMap::from([(channel, points)]),
        files: Vec::new(),
    };
    let winter = Campaign {
        points: winter(),
        files: Vec::new(),
    };
    BTreeMap::from([
        ("deux ans", years),
        ("hiver", winter),
        ("site été", campaign()),
    ])
}

type HoursOfCampaigns = BTreeMap<&'static str, Hours>;

/// A server with the points of the campaigns and their summaries, and the hours that these must have.
fn company() -> Option<(RealInflux, HoursOfCampaigns)> {
    let server = RealInflux::start()?;
    let campaigns = campaigns();
    let mut lines = campaigns["site été"].old_points(|_| true);
    for (name, campaign) in &campaigns {
        for (channel, points) in &campaign.points {
            for (time, value) in points {
                lines += &channel.point(name, *time, *value);
            }
        }
    }
    server.write("acme", &lines, "s");
    rollup(&server);
    let hours = campaigns
        .iter()
        .map(|(name, campaign)| (*name, campaign.hours(|_| By::Both)))
        .collect();
    Some((server, hours))
}

#[test]
fn the_overview_shows_the_energy_of_each_campaign() {
    let Some((server, hours)) = company() else {
        return;
    };
    let overview = grafana::dashboard("overview");
    campaigns_have_their_energy(&server, &overview, &hours);
    bars_are_local_months_days_and_hours(&server, &overview, &hours);
    periods_are_compared_if_equally_well_known(&server, &overview, &hours);
    chosen_campaigns_and_channels_count(&server, &overview, &hours);
}

fn overview_of(overview: &Value, from: &str, to: &str) -> View {
    View::of(overview, "acme", "Vue d'ensemble", (from, to), 3600)
}

/// The rows of « Bilan par campagne » by campaign. That of all campaigns has no name.
fn bilan(server: &RealInflux, view: &View) -> BTreeMap<String, BTreeMap<String, String>> {
    let overview = grafana::dashboard("overview");
    let rows = view.rows(server, panel(&overview, "table", "Bilan par campagne"));
    let drawn: Vec<_> = rows.iter().map(|r| number(&r["Soutirée (kWh)"])).collect();
    assert!(drawn.is_sorted_by(|a, b| a >= b), "{drawn:?}");
    let name = |row: &BTreeMap<String, String>| match &*row["Total"] {
        "1" => String::new(),
        _ => row["Campagne"].clone(),
    };
    rows.into_iter().map(|row| (name(&row), row)).collect()
}

fn campaigns_have_their_energy(server: &RealInflux, overview: &Value, hours: &HoursOfCampaigns) {
    let master = grafana::dashboard("master");
    for (from, to) in [
        (FROM, TO),
        // Begins and ends within an hour, whose whole energy counts.
        ("2025-10-25T10:20:00Z", "2025-10-27T15:40:30Z"),
        // One campaign only.
        ("2025-11-28T23:00:00Z", "2025-12-02T23:00:00Z"),
        ("2025-10-20T00:00:00Z", "2026-04-05T00:00:00Z"),
    ] {
        let period = (at(from), at(to));
        let mut rows = bilan(server, &overview_of(overview, from, to));
        let seconds = f64::from(
            i32::try_from((period.1 - hour_of(period.0)).num_seconds()).expect("some months"),
        );
        let is_right = |row: &BTreeMap<String, String>, of: &[(&str, &str, Known)], what: &str| {
            let sum = of.iter().fold(Known::default(), |sum, k| sum.plus(k.2));
            six_digits(number(&row["Soutirée (kWh)"]), sum.drawn, what);
            six_digits(number(&row["Injectée (kWh)"]), sum.returned, what);
            let shares: Vec<_> = of.iter().map(|k| k.2.seconds / seconds * 100.0).collect();
            six_digits(number(&row["Connue (%)"]), mean(&shares), what);
            let devices: BTreeSet<_> = of.iter().map(|k| (k.0, k.1)).collect();
            assert_eq!(row["Appareils"], devices.len().to_string(), "{what}");
        };
        let mut all = Vec::new();
        for (campaign, of_campaign) in hours {
            let what = format!("{campaign}, {from} to {to}");
            let of_period = of_campaign.iter().filter(|(_, hours)| {
                let mut hours = hours.keys();
                hours.any(|h| *h >= hour_of(period.0) && *h < period.1)
            });
            let channels: Vec<_> = of_period
                .map(|(channel, hours)| (*campaign, channel.device, known(hours, period)))
                .collect();
            let row = rows.remove(*campaign);
            assert_eq!(row.is_some(), !channels.is_empty(), "{what}");
            let Some(row) = row else { continue };
            is_right(&row, &channels, &what);

            // The campaign's dashboard shows the same.
            let own = View::of(&master, "acme", campaign, (from, to), 3600);
            let energy = own.rows(server, panel(&master, "stat", "Énergie"));
            for column in ["Soutirée (kWh)", "Injectée (kWh)"] {
                near(number(&row[column]), number(&energy[0][column]), &what);
            }
            let share = own.value(server, panel(&master, "stat", "Mesures connues (%)"));
            near(
                number(&row["Connue (%)"]),
                number(&share.expect("a share")),
                &what,
            );
            all.extend(channels);
        }
        is_right(&rows[""], &all, &format!("all, {from} to {to}"));
        assert_eq!(rows.len(), 1, "{rows:?}");
    }
}

fn bars_are_local_months_days_and_hours(
    server: &RealInflux,
    overview: &Value,
    hours: &HoursOfCampaigns,
) {
    // The energy of each campaign by a name of the local time.
    let wanted = |from: &str, to: &str, name: &dyn Fn(DateTime<chrono_tz::Tz>) -> String| {
        let mut sums: BTreeMap<(String, String), f64> = BTreeMap::new();
        for (campaign, of_campaign) in hours {
            for (hour, known) in of_campaign.values().flatten() {
                if *hour >= hour_of(at(from)) && *hour < at(to) {
                    let label = name(hour.with_timezone(&chrono_tz::Europe::Paris));
                    *sums.entry((label, (*campaign).to_owned())).or_default() += known.drawn;
                }
            }
        }
        sums
    };
    let is_right = |panel: &Value,
                    column: &str,
                    range: (&str, &str),
                    labels: &[&str],
                    name: &dyn Fn(DateTime<chrono_tz::Tz>) -> String| {
        let rows = overview_of(overview, range.0, range.1).rows(server, panel);
        let mut shown: Vec<_> = rows.iter().map(|r| &*r[column]).collect();
        shown.dedup();
        assert_eq!(shown, labels, "{column} of {range:?}");
        let known: Vec<_> = rows.iter().filter(|r| r.contains_key("Énergie")).collect();
        let wanted = wanted(range.0, range.1, name);
        assert_eq!(known.len(), wanted.len(), "{column} of {range:?}");
        for row in known {
            let key = (row[column].clone(), row["Campagne"].clone());
            let what = format!("{key:?} of {range:?}");
            six_digits(number(&row["Énergie"]), wanted[&key], &what);
        }
    };

    let month = |time: DateTime<chrono_tz::Tz>| {
        let names = [
            "janv.", "févr.", "mars", "avr.", "mai", "juin", "juil.", "août", "sept.", "oct.",
            "nov.", "déc.",
        ];
        format!(
            "{} {}",
            names[usize::try_from(time.month0()).expect("small")],
            time.year() % 100
        )
    };
    let months = panel(overview, "table", "Énergie par campagne et par mois (kWh)");
    // The months do not depend on the begin of the period, so it is that of the first month here.
    for (from, to, labels) in [
        (
            "2025-01-31T23:00:00Z",
            "2026-01-15T12:30:00Z",
            [
                "févr. 25",
                "mars 25",
                "avr. 25",
                "mai 25",
                "juin 25",
                "juil. 25",
                "août 25",
                "sept. 25",
                "oct. 25",
                "nov. 25",
                "déc. 25",
                "janv. 26",
            ],
        ),
        (
            "2025-03-31T22:00:00Z",
            "2026-03-31T22:00:00Z",
            [
                "avr. 25",
                "mai 25",
                "juin 25",
                "juil. 25",
                "août 25",
                "sept. 25",
                "oct. 25",
                "nov. 25",
                "déc. 25",
                "janv. 26",
                "févr. 26",
                "mars 26",
            ],
        ),
    ] {
        is_right(months, "Mois", (from, to), &labels, &month);
    }

    let title = "Énergie par heure, jour, semaine ou mois (kWh)";
    let bars = panel(overview, "barchart", title);
    let day = |time: DateTime<chrono_tz::Tz>| time.format("%d/%m").to_string();
    is_right(bars, "Date", (FROM, TO), &["25/10", "26/10", "27/10"], &day);
    let monday = |time: DateTime<chrono_tz::Tz>| {
        let days = time.weekday().num_days_from_monday();
        let monday = time.date_naive() - Duration::days(i64::from(days));
        monday.format("%d/%m").to_string()
    };
    let weeks = [
        "20/10", "27/10", "03/11", "10/11", "17/11", "24/11", "01/12", "08/12",
    ];
    let range = ("2025-10-19T22:00:00Z", "2025-12-14T23:00:00Z");
    is_right(bars, "Date", range, &weeks, &monday);
    for days in LENGTHS {
        let to = at("2026-01-14T23:00:00Z");
        let from = to - Duration::days(days);
        let begin = from.with_timezone(&chrono_tz::Europe::Paris);
        let name = move |time: DateTime<chrono_tz::Tz>| bar(days, begin, time);
        let mut labels: Vec<String> = Vec::new();
        for hour in 0..days * 24 {
            let time = (from + Duration::hours(hour)).with_timezone(&chrono_tz::Europe::Paris);
            let label = name(time);
            if labels.last() != Some(&label) {
                labels.push(label);
            }
        }
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        let range = (from.to_rfc3339(), to.to_rfc3339());
        is_right(bars, "Date", (&range.0, &range.1), &labels, &name);
    }
    // Both hours that are 02:00.
    let hour = |time: DateTime<chrono_tz::Tz>| {
        let again = (time - Duration::hours(1)).hour() == time.hour();
        time.format("%d/%m %H h").to_string() + if again { " bis" } else { "" }
    };
    let range = ("2025-10-25T22:00:00Z", "2025-10-26T02:00:00Z");
    let hours_shown = ["26/10 00 h", "26/10 01 h", "26/10 02 h", "26/10 02 h bis"];
    is_right(bars, "Date", range, &hours_shown, &hour);
}

fn periods_are_compared_if_equally_well_known(
    server: &RealInflux,
    overview: &Value,
    hours: &HoursOfCampaigns,
) {
    let percent = |now: (&str, &str), other: (&str, &str)| {
        let drawn = |(from, to)| -> f64 {
            let all = hours["deux ans"].values().flatten();
            known(all, (at(from), at(to))).drawn
        };
        (drawn(now) / drawn(other) - 1.0) * 100.0
    };
    let row = |(from, to): (&str, &str)| {
        let view = overview_of(overview, from, to);
        let only = view.with("campaign", Choice::Some(vec!["deux ans".into()]));
        let rows = bilan(server, &only);
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["", "deux ans"]);
        for column in ["Période précédente (%)", "Un an plus tôt (%)"] {
            assert_eq!(rows[""].get(column), rows["deux ans"].get(column));
        }
        rows["deux ans"].clone()
    };
    let now = ("2025-11-01T00:00:00Z", "2025-11-08T00:00:00Z");
    let before = ("2025-10-25T00:00:00Z", "2025-11-01T00:00:00Z");
    let year = ("2024-11-01T00:00:00Z", "2024-11-08T00:00:00Z");
    let shown = row(now);
    let column = |column: &str| number(&shown[column]);
    six_digits(
        column("Période précédente (%)"),
        percent(now, before),
        "week",
    );
    six_digits(column("Un an plus tôt (%)"), percent(now, year), "year");

    // Of the six days three are known, as in the year before. All of the six days before are known.
    let shown = row(("2025-11-05T00:00:00Z", "2025-11-11T00:00:00Z"));
    assert!(!shown.contains_key("Période précédente (%)"), "{shown:?}");
    six_digits(number(&shown["Un an plus tôt (%)"]), 50.0, "half a week");
    // Of the six days before three are known.
    let shown = row(("2025-10-28T00:00:00Z", "2025-11-03T00:00:00Z"));
    assert!(!shown.contains_key("Période précédente (%)"), "{shown:?}");
    // Nothing is known before.
    let shown = row(year);
    assert!(!shown.contains_key("Période précédente (%)"), "{shown:?}");
    assert!(!shown.contains_key("Un an plus tôt (%)"), "{shown:?}");
}

fn chosen_campaigns_and_channels_count(
    server: &RealInflux,
    overview: &Value,
    hours: &HoursOfCampaigns,
) {
    let variable = |name: &str, view: &View| {
        let offered = view.offered(server, name).into_iter();
        offered.collect::<BTreeSet<_>>()
    };
    let pair = |text: &str, value: &str| (text.to_owned(), value.to_owned());
    // A campaign without measurements in the period is offered, too.
    let empty = overview_of(overview, "2020-01-01T00:00:00Z", "2020-02-01T00:00:00Z");
    let names = ["deux ans", "hiver", "site été"].map(|name| pair(name, name));
    assert_eq!(variable("campaign", &empty), BTreeSet::from(names));
    assert_eq!(
        variable("exclues", &empty),
        BTreeSet::from([pair("(aucune)", "aucune")])
    );

    let all = overview_of(overview, FROM, TO);
    let four = format!("M{MONO}_Ch1_M{MONO}");
    let chosen = all
        .clone()
        .with("campaign", Choice::Some(vec!["hiver".into()]));
    let offered = variable("exclues", &chosen);
    assert!(
        offered.contains(&pair(&format!("hiver - Four ({MONO})"), &four)),
        "{offered:?}"
    );
    assert_eq!(offered.len(), 4, "{offered:?}");

    let period = (at(FROM), at(TO));
    let drawn = |campaign: &str, left_out: &str| -> f64 {
        let of_campaign = hours[campaign].iter().filter(|(c, _)| c.name != left_out);
        of_campaign.map(|(_, h)| known(h, period).drawn).sum()
    };
    let found = bilan(server, &all.with("exclues", Choice::Some(vec![four])));
    let shown = |campaign: &str| number(&found[campaign]["Soutirée (kWh)"]);
    six_digits(shown("hiver"), drawn("hiver", "Four"), "without the oven");
    six_digits(shown("site été"), drawn("site été", ""), "another channel");
    assert_eq!(found["site été"]["Lien"], grafana::UID_OF_SITE);
}

#[test]
fn the_overview_names_silent_devices_first() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let overview = grafana::dashboard("overview");
    let now = at(EVENING);
    let mut lines = String::new();
    // The campaign, the device, and the ages of its measurements in seconds.
    let hour = 3600;
    for (campaign, device, unit, ages) in [
        (
            "site été",
            SLAVE,
            "V",
            &[200 * 24 * hour, 26 * hour + 1][..],
        ),
        ("site été", MONO, "W", &[26 * hour]),
        ("hiver", TRI, "W", &[5 * hour, 59 * 60]),
        // The clock is ahead.
        ("hiver", MONO, "W", &[60 * hour, -24 * hour]),
        ("hiver", "02000009", "W", &[180 * 24 * hour + 1]),
    ] {
        let channel = Channel {
            master: TRI,
            device,
            name: "Voie1",
            unit,
            number: 1,
        };
        for age in ages {
            lines += &channel.point(campaign, now - Duration::seconds(*age), 1.0);
        }
    }
    server.write("acme", &lines, "s");
    rollup(&server);

    let silence = panel(&overview, "table", "Silence");
    assert_eq!(silence["timeFrom"], "180d");
    let from = (now - Duration::days(180)).to_rfc3339();
    let rows = overview_of(&overview, &from, EVENING).rows(&server, silence);
    let shown: Vec<_> = rows
        .iter()
        .map(|r| ["Campagne", "Appareil", "Muet", "Il y a", "Suivis"].map(|c| &*r[c]))
        .collect();
    assert_eq!(
        shown,
        [
            ["hiver", MONO, "1", "2 jours", "1"],
            ["site été", SLAVE, "1", "26 h", "1"],
            ["site été", MONO, "0", "26 h", "1"],
            ["hiver", TRI, "0", "< 1 h", "1"],
        ]
    );
    assert_eq!(
        at(&rows[1]["Dernière mesure"]),
        now - Duration::seconds(26 * hour + 1)
    );
    assert_eq!(rows[1]["Lien"], grafana::UID_OF_SITE);
    let counts = panel(&overview, "stat", "Appareils");
    assert_eq!(grafana::shares(counts), Some(&silence["id"]));
}

// ------------------------------------------------------------------------------------------------- the operator's dashboard

/// A line of the meta bucket, without the fields that no query reads.
struct FileLine<'a> {
    company: &'a str,
    device: &'a str,
    status: &'a str,
    file: &'a str,
    error: &'a str,
    truncated: bool,
    at: DateTime<Utc>,
    arrival_delay_s: f64,
    points: u32,
    /// Fields that earlier versions of the program did not write, each with a comma before it.
    later_fields: &'a str,
}

impl FileLine<'_> {
    fn text(&self) -> String {
        format!(
            "tsv_parser_file,bucket={},campaign=site,device_master_sn={},status={} file_name=\"{}\",nb_points={}i,error=\"{}\",\
             truncated={},retryable=false,delay_s={:?},arrival_delay_s={:?}{} {}\n",
            self.company,
            self.device,
            self.status,
            self.file,
            self.points,
            self.error,
            self.truncated,
            self.arrival_delay_s + 600.0,
            self.arrival_delay_s,
            self.later_fields,
            self.at.timestamp_nanos_opt().expect("a time"),
        )
    }
}

const EVENING: &str = "2025-11-20T18:00:00Z";
const WEEK_BEFORE: &str = "2025-11-13T18:00:00Z";

fn good_line() -> FileLine<'static> {
    FileLine {
        company: "alpha",
        device: "",
        status: "success",
        file: "",
        error: "",
        truncated: false,
        at: at(EVENING),
        arrival_delay_s: 2.5,
        points: 100,
        later_fields: "",
    }
}

/// Twenty loggers that send a file per day. One has stopped, one sends invalid files, one sends truncated files.
fn scene() -> String {
    let good = good_line();
    let mut lines = String::new();
    let devices: Vec<String> = (1..=20).map(|i| format!("020000{i:02}")).collect();
    for (i, device) in devices.iter().enumerate() {
        for day in 0..7 {
            let file = format!("T{day}.tsv");
            let time = at(EVENING) - Duration::days(day) - Duration::hours(2);
            let time = time + Duration::nanoseconds(i64::try_from(i).expect("few"));
            let company = if i < 12 { "alpha" } else { "beta" };
            let mut line = FileLine {
                company,
                device,
                file: &file,
                at: time,
                ..good
            };
            match i {
                // The fourth sent nothing for three days, but yesterday an old file was ingested again by hand.
                3 if day == 1 => {
                    line.file = "old.tsv";
                    line.arrival_delay_s = 30.0 * 86_400.0;
                }
                3 if day < 3 => continue,
                // The eighth: the files of today and yesterday are invalid. An old one was ingested later.
                7 if day < 2 => {
                    (line.status, line.error, line.points) =
                        ("error", "the marker is \\\"X\\\"", 0);
                    // A later run did not touch it.
                    let later = FileLine {
                        status: "skipped",
                        error: "",
                        at: time + Duration::hours(1),
                        arrival_delay_s: 3602.5,
                        ..line
                    };
                    lines.push_str(&later.text());
                }
                7 if day == 5 => {
                    let first = FileLine {
                        status: "error",
                        error: "outage",
                        at: time - Duration::hours(1),
                        ..line
                    };
                    lines.push_str(&first.text());
                }
                12 => line.truncated = day % 2 == 0,
                _ => {}
            }
            lines.push_str(&line.text());
        }
    }
    for hour in 1..=48 {
        let status = if hour == 5 {
            "partial_failure"
        } else {
            "success"
        };
        let time = (at(EVENING) - Duration::hours(hour))
            .timestamp_nanos_opt()
            .expect("a time");
        lines.push_str(&format!(
            "tsv_parser_run,status={status} nb_files_total=20i,duration_s={hour}.5,nb_retries={}i,outage={}i {time}\n",
            hour % 2,
            i32::from(hour == 5),
        ));
    }
    lines
}

fn reception_view(dashboard: &Value, from: &str, to: &str) -> View {
    View::of(
        dashboard,
        "powerview_meta",
        "PowerView - réception",
        (from, to),
        3600,
    )
}

/// The loggers in a table.
fn named(rows: &[BTreeMap<String, String>]) -> Vec<String> {
    rows.iter()
        .map(|r| format!("{} {}", r["Société"], r["Enregistreur"]))
        .collect()
}

/// The loggers for which the condition of a rule holds for the last value of the series, as in Grafana.
pub fn alarmed(server: &RealInflux, rule: &Value, to: DateTime<Utc>) -> Vec<String> {
    let step = &rule["data"][0];
    let seconds = step["relativeTimeRange"]["from"].as_i64().expect("seconds");
    let text = |t: DateTime<Utc>| t.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    let view = View {
        bucket: "powerview_meta".to_owned(),
        title: String::new(),
        timezone: String::new(),
        range: (text(to - Duration::seconds(seconds)), text(to)),
        window_s: 60,
        ..View::default()
    };
    let limit = rule["data"][2]["model"]["conditions"][0]["evaluator"]["params"][0]
        .as_f64()
        .expect("a limit");
    let tables = server.tables(&view.interpolate(step["model"]["query"].as_str().expect("Flux")));
    let mut found = Vec::new();
    for frame in tables.into_iter().map(grafana::frame) {
        let grafana::Frame::Series { labels, points, .. } = frame else {
            panic!("alerts are on series: {frame:?}")
        };
        let names: BTreeSet<_> = labels.keys().map(String::as_str).collect();
        assert!(
            names.is_empty() || names == BTreeSet::from(["societe", "campagne", "enregistreur"]),
            "{names:?}"
        );
        let last = points.last().and_then(|p| p.1).expect("a value");
        if last > limit {
            let logger = ["societe", "enregistreur"]
                .map(|l| labels.get(l).cloned().unwrap_or_default())
                .join(" ");
            found.push(logger.trim().to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn the_reception_dashboard_names_the_loggers_with_problems() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    server.write("powerview_meta", &scene(), "ns");
    let dashboard = grafana::dashboard("reception");
    let view = reception_view(&dashboard, WEEK_BEFORE, EVENING);

    let silent = view.rows(&server, panel(&dashboard, "table", "Enregistreurs muets"));
    assert_eq!(named(&silent), ["alpha 02000004"]);
    near(
        number(&silent[0]["Silence (jours)"]) * 24.0,
        3.0 * 24.0 + 2.0 + 2.5 / 3600.0,
        "hours of silence",
    );
    let week = view.clone().with("muet", Choice::One("168".into()));
    assert_eq!(
        week.rows(&server, panel(&dashboard, "table", "Enregistreurs muets")),
        []
    );

    let failed = view.rows(&server, panel(&dashboard, "table", "Fichiers en erreur"));
    assert_eq!(named(&failed), ["alpha 02000008", "alpha 02000008"]);
    assert_eq!(
        failed
            .iter()
            .map(|r| r["Fichier"].as_str())
            .collect::<Vec<_>>(),
        ["T0.tsv", "T1.tsv"]
    );
    assert!(
        failed
            .iter()
            .all(|r| r["Erreur"] == "the marker is \"X\"" && r["Réessayable"] == "non"),
        "{failed:?}"
    );

    let cut = view.rows(
        &server,
        panel(&dashboard, "table", "Fichiers tronqués par enregistreur"),
    );
    assert_eq!(named(&cut), ["beta 02000013"]);
    assert_eq!(
        (cut[0]["Fichiers"].as_str(), cut[0]["Le dernier"].as_str()),
        ("4", "T0.tsv")
    );

    let stats = [
        ("Enregistreurs connus", "20"),
        ("Enregistreurs muets", "1"),
        ("Fichiers en erreur", "2"),
        ("Fichiers tronqués", "4"),
        ("Dernière exécution", "1"),
        ("Pannes de la base", "1"),
    ];
    for (title, wanted) in stats {
        assert_eq!(
            view.value(&server, panel(&dashboard, "stat", title))
                .as_deref(),
            Some(wanted),
            "{title}"
        );
    }

    // Ingested files: seven days of twelve loggers without two missing days (including the repeated file) and two
    // failures, and seven days of eight loggers.
    let sum = |title: &str| {
        let series = view.series(&server, panel(&dashboard, "timeseries", title));
        let total = |p: &[(String, Option<f64>)]| p.iter().filter_map(|p| p.1).sum::<f64>();
        series
            .into_iter()
            .map(|(name, points)| (name, total(&points)))
            .collect::<Vec<_>>()
    };
    let files = [
        ("alpha".to_owned(), 12.0 * 7.0 - 2.0 - 2.0),
        ("beta".to_owned(), 8.0 * 7.0),
    ];
    assert_eq!(sum("Fichiers reçus par société"), files);
    assert_eq!(
        sum("Points écrits par société"),
        files.map(|(name, n)| (name, n * 100.0))
    );
    assert_eq!(
        sum("Exécutions"),
        [
            ("avec échecs".to_owned(), 1.0),
            ("envois répétés".to_owned(), 24.0),
            ("pendant une panne".to_owned(), 1.0),
            ("réussies".to_owned(), 47.0)
        ]
    );
    let delays = view.series(
        &server,
        panel(
            &dashboard,
            "timeseries",
            "Délai de la dernière mesure à l'arrivée du fichier",
        ),
    );
    assert_eq!(
        delays.iter().map(|s| s.0.as_str()).collect::<Vec<_>>(),
        ["alpha", "beta"]
    );
    // Ten minutes, also for the old file that was ingested again after 30 days.
    for (_, hours) in delays.iter().flat_map(|s| &s.1) {
        near(hours.expect("a value"), 600.0 / 3600.0, "hours");
    }
    let longest = view.series(
        &server,
        panel(&dashboard, "timeseries", "Durée des exécutions"),
    );
    assert_eq!(
        longest.iter().map(|s| s.0.as_str()).collect::<Vec<_>>(),
        ["avec échecs", "réussie"]
    );
    assert_eq!(
        longest[0].1,
        [("2025-11-20T13:00:00Z".to_owned(), Some(5.5))]
    );
    let medians = view.rows(
        &server,
        panel(&dashboard, "table", "Délai par enregistreur"),
    );
    assert_eq!(
        named(&medians).into_iter().collect::<BTreeSet<_>>().len(),
        20
    );
    for row in &medians {
        near(number(&row["Mesure à base (h)"]), 602.5 / 3600.0, "hours");
        assert_eq!(row["Arrivée à base (s)"], "2.5");
    }

    let [silence, failures, damage, layout, no_run] = &rules()[..] else {
        panic!("five rules")
    };
    assert_eq!(alarmed(&server, silence, at(EVENING)), ["alpha 02000004"]);
    assert_eq!(alarmed(&server, failures, at(EVENING)), ["alpha 02000008"]);
    // An earlier version of the program wrote all these points.
    for (rule, title) in [
        (damage, "Fichiers endommagés"),
        (layout, "Voies douteuses ou modifiées"),
    ] {
        assert_eq!(alarmed(&server, rule, at(EVENING)), [""; 0]);
        assert_eq!(view.rows(&server, panel(&dashboard, "table", title)), []);
    }
    assert_eq!(alarmed(&server, no_run, at(EVENING)), [""; 0]);
    // The last run was at 17:00. The alert fires after 26 hours and a second, when all loggers are silent.
    assert_eq!(
        alarmed(&server, no_run, at("2025-11-21T19:00:00Z")),
        [""; 0]
    );
    assert_eq!(alarmed(&server, no_run, at("2025-11-21T19:00:01Z")), [""]);
    assert_eq!(
        alarmed(&server, silence, at("2025-11-21T19:00:01Z")).len(),
        20
    );
    // An error is shown for a week.
    assert_eq!(
        alarmed(&server, failures, at("2025-11-28T19:00:00Z")),
        [""; 0]
    );
}

/// Writes a point per file beside those of an earlier version. A file is its device, its age in hours and its fields.
fn write_files(server: &RealInflux, files: &[(&str, i64, FileLine)]) {
    let mut lines = scene();
    for (n, (device, hours, line)) in files.iter().enumerate() {
        let line = FileLine {
            device,
            at: at(EVENING) - Duration::hours(*hours) - Duration::minutes(1)
                + Duration::nanoseconds(i64::try_from(n).expect("few")),
            ..*line
        };
        lines.push_str(&line.text());
    }
    server.write("powerview_meta", &lines, "ns");
}

/// The counts of a file that are the base of its loss, and its first defect.
macro_rules! loss {
    ($ratio:literal, $rows:literal, $after:literal) => {
        concat!(
            ",loss_ratio=",
            $ratio,
            ",nb_rows=",
            $rows,
            "i,nb_invalid_timestamps=2i,nb_malformed_rows=1i,nb_lines_after_end=",
            $after,
            "i,first_problem=\"line 3, column 2\""
        )
    };
}

#[test]
fn the_reception_dashboard_names_damaged_files() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let file = |name: &'static str, later_fields: &'static str| FileLine {
        file: name,
        later_fields,
        ..good_line()
    };
    let with_status = |status: &'static str, line: FileLine<'static>| FileLine { status, ..line };
    let fine = loss!(0.0, 17, 0);
    let lost = loss!(0.2, 17, 0);
    write_files(
        &server,
        &[
            ("02000001", 30, file("a.tsv", lost)),
            ("02000001", 20, file("b.tsv", loss!(0.051, 17, 0))),
            ("02000001", 10, file("c.tsv", fine)),
            // 5 % of the values, and of 17 + 2 + 1 lines.
            ("02000002", 10, file("a.tsv", loss!(0.05, 16, 1))),
            ("02000003", 11, file("a.tsv", loss!(0.0, 15, 1))),
            // Sent again without a loss.
            ("02000005", 10, file("a.tsv", lost)),
            ("02000005", 9, file("a.tsv", fine)),
            // Skipped later, and sent again with a loss.
            ("02000006", 10, file("a.tsv", lost)),
            ("02000006", 9, with_status("skipped", file("a.tsv", fine))),
            ("02000007", 10, file("a.tsv", fine)),
            ("02000007", 9, file("a.tsv", loss!(0.4, 17, 0))),
            // In error/, and shown there.
            (
                "02000009",
                10,
                with_status("error", file("a.tsv", loss!(0.9, 17, 0))),
            ),
            ("02000010", 24 * 7 + 1, file("a.tsv", lost)),
        ],
    );
    let dashboard = grafana::dashboard("reception");
    let view = reception_view(&dashboard, WEEK_BEFORE, EVENING);
    let rows = view.rows(&server, panel(&dashboard, "table", "Fichiers endommagés"));
    let shown: Vec<_> = rows
        .iter()
        .map(|row| {
            let cells = [
                "Enregistreur",
                "Fichier",
                "Valeurs perdues",
                "Lignes après END_DATA",
            ];
            cells.map(|cell| row[cell].as_str()).join(" ")
        })
        .collect();
    assert_eq!(
        shown,
        [
            "02000007 a.tsv 0.4 0",
            "02000006 a.tsv 0.2 0",
            "02000003 a.tsv 0 1",
            "02000001 b.tsv 0.051 0",
            "02000001 a.tsv 0.2 0",
        ]
    );
    for row in &rows {
        assert_eq!((&*row["Société"], &*row["Campagne"]), ("alpha", "site"));
        assert_eq!(row["Premier défaut"], "line 3, column 2");
        let is_after = row["Enregistreur"] == "02000003";
        let remedy = if is_after {
            "retirer la ligne END_DATA"
        } else {
            "renvoyer le fichier"
        };
        assert!(row["À faire"].contains(remedy), "{row:?}");
    }
    let [_, _, damage, _, _] = &rules()[..] else {
        panic!("five rules")
    };
    let damaged = [
        "alpha 02000001",
        "alpha 02000003",
        "alpha 02000006",
        "alpha 02000007",
    ];
    assert_eq!(alarmed(&server, damage, at(EVENING)), damaged);
    let later = at(EVENING) + Duration::days(7) - Duration::hours(9) + Duration::seconds(1);
    assert_eq!(alarmed(&server, damage, later), [""; 0]);
}

#[test]
fn the_reception_dashboard_names_doubtful_and_changed_layouts() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let file = |name: &'static str, later_fields: &'static str| FileLine {
        file: name,
        later_fields,
        ..good_line()
    };
    const FINE: &str = r#",layout_changed="",layout_suspect="""#;
    const DOUBT: &str = r#",layout_changed="",layout_suspect="Voie1 W is a voltage""#;
    const CHANGE: &str = r#",layout_changed="column 2: A to B",layout_suspect="""#;
    const BOTH: &str =
        r#",layout_changed="column 2: A to B",layout_suspect="Voie1 W is a voltage""#;
    let arrived = |hours: i64, line: FileLine<'static>| FileLine {
        arrival_delay_s: f64::from(i32::try_from(hours).expect("few")) * 3600.0,
        ..line
    };
    let failed = FileLine {
        status: "error",
        ..file("n.tsv", FINE)
    };
    write_files(
        &server,
        &[
            // A later file is consistent.
            ("02000001", 30, file("x.tsv", DOUBT)),
            ("02000001", 1, file("y.tsv", FINE)),
            // Neither an old file that is ingested again nor a failed one is a later file.
            ("02000002", 1, file("x.tsv", DOUBT)),
            ("02000002", 0, arrived(720, file("old.tsv", FINE))),
            ("02000002", 0, failed),
            // Nor does an old one raise the alert again.
            ("02000003", 1, file("x.tsv", FINE)),
            ("02000003", 0, arrived(720, file("old.tsv", DOUBT))),
            // Ingested again after it was acknowledged. The delays are a little too long and too short.
            ("02000005", 10, file("x.tsv", DOUBT)),
            (
                "02000005",
                1,
                FileLine {
                    arrival_delay_s: 9.0 * 3600.0 + 2.6,
                    ..file("x.tsv", FINE)
                },
            ),
            ("02000006", 10, file("x.tsv", DOUBT)),
            (
                "02000006",
                1,
                FileLine {
                    arrival_delay_s: 9.0 * 3600.0 + 2.4,
                    ..file("x.tsv", FINE)
                },
            ),
            // The later file is one of an earlier version of the program.
            ("02000007", 1, file("x.tsv", DOUBT)),
            ("02000007", 0, file("y.tsv", "")),
            ("09000001", 24 * 60, file("x.tsv", DOUBT)),
            ("09000002", 24 * 7 - 1, file("x.tsv", CHANGE)),
            ("09000002", 1, file("y.tsv", FINE)),
            ("09000003", 24 * 7 + 1, file("x.tsv", CHANGE)),
            ("09000004", 2, file("x.tsv", BOTH)),
        ],
    );
    let dashboard = grafana::dashboard("reception");
    let long = (at(EVENING) - Duration::days(180)).to_rfc3339();
    let shown = |to: &str| -> Vec<String> {
        let view = reception_view(&dashboard, &long, to);
        let title = "Voies douteuses ou modifiées";
        let rows = view.rows(&server, panel(&dashboard, "table", title));
        rows.iter()
            .map(|row| {
                assert_eq!((&*row["Société"], &*row["Campagne"]), ("alpha", "site"));
                let (finding, remedy) = match &*row["Voies"] {
                    "douteuses" => (
                        "Voie1 W is a voltage",
                        format!(
                            "powerview status --acknowledge alpha/site/{}",
                            row["Enregistreur"]
                        ),
                    ),
                    _ => ("column 2: A to B", "Vérifier".to_owned()),
                };
                assert!(
                    row["Constat"] == finding && row["À faire"].contains(&remedy),
                    "{row:?}"
                );
                format!(
                    "{} {} {}",
                    row["Enregistreur"], row["Fichier"], row["Voies"]
                )
            })
            .collect()
    };
    let mut rows = shown(EVENING);
    rows.sort();
    assert_eq!(
        rows,
        [
            "02000002 x.tsv douteuses",
            "09000001 x.tsv douteuses",
            "09000002 x.tsv modifiées",
            "09000004 x.tsv douteuses",
            "09000004 x.tsv modifiées",
        ]
    );
    let [_, _, _, layout, _] = &rules()[..] else {
        panic!("five rules")
    };
    let doubtful = ["alpha 02000002", "alpha 09000001", "alpha 09000004"];
    let mut all = doubtful.to_vec();
    all.insert(2, "alpha 09000002");
    assert_eq!(alarmed(&server, layout, at(EVENING)), all);
    // A change is shown for seven days, a doubt until a later file is without.
    assert_eq!(
        alarmed(&server, layout, at(EVENING) + Duration::days(8)),
        doubtful
    );
}

/// The same with meta points that the program wrote.
#[test]
fn the_reception_dashboard_reads_the_meta_points_of_the_program() {
    let now = Utc::now();
    let rows = |n: i64| {
        let stamp = |i: i64| {
            (now - Duration::minutes(10 * (n - i)))
                .format("%d/%m/%y %H:%M:%S")
                .to_string()
        };
        (0..n)
            .map(|i| format!("{}\t230.5\t{i}\n", stamp(i)))
            .collect::<String>()
    };
    let mut files = Vec::new();
    for i in 1..=20 {
        let device = format!("020000{i:02}");
        let mut text = format!(
            "{device}\t{device}\t{device}\nMV_T302_V002\tPh 1 V\tVoie1 W\n{}",
            rows(5)
        );
        match i {
            8 => text = text.replace("V002", "V999"),
            13 => text.truncate(text.len() - 2),
            15 => text = text.replacen("230.5", "230,5", 1),
            _ => {}
        }
        let company = if i <= 12 { "alpha" } else { "beta" };
        files.push((format!("{company}/site/{device}/T302.tsv"), text));
    }
    // A file too high in the tree has no company, but is shown.
    files.push(("stray.tsv".to_owned(), rows(1)));
    let touch = |path: &Path| {
        let silent = path.to_string_lossy().contains("02000004");
        aged(path, Duration::hours(if silent { 27 } else { 1 }));
    };
    let Some((server, _dir)) = ingested(&files, touch) else {
        return;
    };

    let dashboard = grafana::dashboard("reception");
    let to = Utc::now() + Duration::seconds(1);
    let text = |t: DateTime<Utc>| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let view = reception_view(&dashboard, &text(to - Duration::days(7)), &text(to));
    let table = |title: &str| view.rows(&server, panel(&dashboard, "table", title));
    assert_eq!(named(&table("Enregistreurs muets")), ["alpha 02000004"]);
    assert_eq!(
        named(&table("Fichiers tronqués par enregistreur")),
        ["beta 02000013"]
    );
    let (stray, failed): (Vec<_>, Vec<_>) = table("Fichiers en erreur")
        .into_iter()
        .partition(|r| !r.contains_key("Société"));
    assert_eq!(named(&failed), ["alpha 02000008"]);
    assert!(failed[0]["Erreur"].contains("MV_T302_V999"), "{failed:?}");
    assert_eq!(
        stray
            .iter()
            .map(|r| r["Fichier"].as_str())
            .collect::<Vec<_>>(),
        ["stray.tsv"]
    );
    assert!(
        stray[0]["Erreur"].contains("not in a device folder"),
        "{stray:?}"
    );

    let damaged = table("Fichiers endommagés");
    assert_eq!(named(&damaged), ["beta 02000015"]);
    assert_eq!(damaged[0]["Valeurs perdues"], "0.1");
    assert_eq!(
        damaged[0]["Premier défaut"],
        r#"line 3, column 2, "230,5": a decimal comma; numbers need a point"#
    );

    let [silence, failures, damage, _, no_run] = &rules()[..] else {
        panic!("five rules")
    };
    assert_eq!(alarmed(&server, silence, to), ["alpha 02000004"]);
    assert_eq!(alarmed(&server, failures, to), ["", "alpha 02000008"]);
    assert_eq!(alarmed(&server, damage, to), ["beta 02000015"]);
    assert_eq!(alarmed(&server, no_run, to), [""; 0]);

    // Each other panel shows something. No layout of this scene is doubtful or changed, and no time.
    for p in panels(&dashboard) {
        let title = p["title"].as_str().expect("a title");
        if ["Voies douteuses ou modifiées", "Horloges à vérifier"].contains(&title) {
            continue;
        }
        assert!(!view.frames(&server, p).is_empty(), "{title} shows nothing");
    }
}

#[test]
fn dashboards_and_rules_work_without_data() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    for name in SHIPPED {
        let dashboard = grafana::dashboard(name);
        server.ensure_bucket("empty");
        let view = View::of(&dashboard, "empty", "site", (WEEK_BEFORE, EVENING), 600);
        for p in panels(&dashboard) {
            // A query that fails is an error of the panel. Without data, the panel is empty.
            for frame in view.frames(&server, p) {
                assert!(
                    matches!(&frame, grafana::Frame::Rows(rows) if rows.len() <= 1),
                    "{}: {frame:?}",
                    p["title"]
                );
            }
        }
    }
    server.ensure_bucket("powerview_meta");
    for rule in rules() {
        assert_eq!(
            alarmed(&server, &rule, at(EVENING)),
            [""; 0],
            "{}",
            rule["title"]
        );
    }
}
