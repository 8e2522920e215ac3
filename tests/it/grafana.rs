//! Processes a dashboard's query and its answer like Grafana's sources: the browser replaces variables, the data source
//! replaces `v.…`, and the tables of the answer become series or table rows.

use crate::real_influx::{RealInflux, Table};
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The uid of the dashboard of the company "acme" and its campaign "site été":
/// `printf 'acme\nsite été' | sha256sum | cut -c 1-32`, after "pv-".
pub const UID_OF_SITE: &str = "pv-7c9cfc69dbdbd7f3e879546b0e629707";

/// A file below `grafana-automation/`.
pub fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("grafana-automation")
        .join(path)
}

/// One of the shipped dashboards.
pub fn dashboard(name: &str) -> Value {
    let path = shipped(&format!("dashboards/{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All panels without rows, including those in collapsed rows.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        if panel["type"] == "row" {
            found.extend(panel["panels"].as_array().expect("panels of a row"));
        } else {
            found.push(panel);
        }
    }
    found
}

/// The panel of that kind and title.
pub fn panel<'a>(dashboard: &'a Value, kind: &str, title: &str) -> &'a Value {
    panels(dashboard)
        .into_iter()
        .find(|p| p["type"] == kind && p["title"] == title)
        .unwrap_or_else(|| panic!("no {kind} panel {title}"))
}

/// The id of the panel whose answer a panel shows, if it has no queries of its own.
pub fn shares(panel: &Value) -> Option<&Value> {
    let shared = panel["datasource"]["uid"] == "-- Dashboard --";
    shared.then(|| &panel["targets"][0]["panelId"])
}

/// The queries of a panel.
pub fn queries(panel: &Value) -> Vec<&str> {
    if shares(panel).is_some() {
        return Vec::new();
    }
    panel["targets"]
        .as_array()
        .expect("targets")
        .iter()
        .map(|t| t["query"].as_str().expect("a query"))
        .collect()
}

/// The value of a variable.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// "All", with the text that replaces it.
    All(String),
    /// "All" of a variable without such a text: all values that its query offers.
    Offered,
    /// One value of a variable with one value.
    One(String),
    /// Some of the values.
    Some(Vec<String>),
}

/// Separates the text of an offered value from the value. It can be in no name.
const SEPARATOR: char = '\u{1}';
/// The regular expression of variables whose query answers both.
const TEXT_AND_VALUE: &str = r"/(?<text>[^\x01]*)\x01(?<value>[^\x01]*)/";

/// The chosen values, and what a view shows that offered them.
type Resolved = (String, BTreeMap<String, Choice>);

/// An open dashboard.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The data source's default bucket.
    pub bucket: String,
    /// The dashboard's title.
    pub title: String,
    /// The selected time zone: an IANA name, or `utc`.
    pub timezone: String,
    /// Both ends, RFC 3339 in UTC.
    pub range: (String, String),
    /// The interval, in seconds.
    pub window_s: u64,
    /// The variables.
    pub variables: BTreeMap<String, Choice>,
    /// Their definitions, in order.
    pub definitions: Vec<Value>,
    /// The values of the variables when the dashboard was opened.
    pub resolved: RefCell<Option<Resolved>>,
}

impl View {
    /// The dashboard with the default values of its variables.
    pub fn of(
        dashboard: &Value,
        bucket: &str,
        title: &str,
        range: (&str, &str),
        window_s: u64,
    ) -> Self {
        let list = dashboard["templating"]["list"]
            .as_array()
            .expect("variables");
        let text = |v: &Value| v.as_str().expect("a text").to_owned();
        let variables = list.iter().map(|v| {
            let value = &v["current"]["value"];
            let choice = match value.as_array() {
                Some(many) if *many == ["$__all"] && v["allValue"].is_null() => Choice::Offered,
                Some(many) if *many == ["$__all"] => Choice::All(text(&v["allValue"])),
                Some(many) => Choice::Some(many.iter().map(text).collect()),
                None => Choice::One(text(value)),
            };
            (text(&v["name"]), choice)
        });
        Self {
            bucket: bucket.to_owned(),
            title: title.to_owned(),
            timezone: "Europe/Paris".to_owned(),
            range: (range.0.to_owned(), range.1.to_owned()),
            window_s,
            variables: variables.collect(),
            definitions: list.clone(),
            resolved: RefCell::default(),
        }
    }

    /// The same, opened anew or refreshed: the queries of the variables run again.
    pub fn refreshed(&self) -> Self {
        let mut view = self.clone();
        view.resolved = RefCell::default();
        view
    }

    /// The texts and values that a variable offers.
    pub fn offered(&self, server: &RealInflux, name: &str) -> Vec<(String, String)> {
        let before = self.definitions.iter().take_while(|v| v["name"] != name);
        let mut chosen = self.clone();
        chosen.resolve(server, before);
        let definition = self.definitions.iter().find(|v| v["name"] == name);
        chosen.options(server, definition.expect("the variable"))
    }

    fn options(&self, server: &RealInflux, definition: &Value) -> Vec<(String, String)> {
        let query = definition["query"].as_str().expect("Flux");
        let rows = server.rows(&self.interpolate(query));
        let values = rows
            .into_iter()
            .map(|mut r| r.remove("_value").expect("a value"));
        let regex = definition["regex"].as_str().expect("a regular expression");
        if regex.is_empty() {
            return values.map(|v| (v.clone(), v)).collect();
        }
        assert_eq!(regex, TEXT_AND_VALUE);
        let pair = |v: String| {
            let (text, value) = v.split_once(SEPARATOR).expect("a separator");
            assert!(!value.contains(SEPARATOR), "{v:?}");
            (text.to_owned(), value.to_owned())
        };
        values.map(pair).collect()
    }

    /// Replaces "All" by what the queries of the variables offer.
    fn resolve<'a>(&mut self, server: &RealInflux, definitions: impl Iterator<Item = &'a Value>) {
        for definition in definitions {
            let name = definition["name"].as_str().expect("a name");
            if self.variables[name] == Choice::Offered {
                let values = self.options(server, definition).into_iter().map(|o| o.1);
                let values = Choice::Some(values.collect());
                self.variables.insert(name.to_owned(), values);
            }
        }
    }

    /// The view with the values of the variables. They are asked for once, like when a dashboard is opened.
    pub fn resolved(&self, server: &RealInflux) -> Self {
        let shown = format!(
            "{:?}",
            (&self.bucket, &self.title, &self.range, &self.variables)
        );
        let mut view = self.clone();
        if let Some((of, variables)) = &*self.resolved.borrow()
            && *of == shown
        {
            view.variables.clone_from(variables);
            return view;
        }
        let definitions = self.definitions.clone();
        view.resolve(server, definitions.iter());
        *self.resolved.borrow_mut() = Some((shown, view.variables.clone()));
        view
    }

    /// The same with one variable chosen.
    pub fn with(mut self, name: &str, choice: Choice) -> Self {
        assert!(
            self.variables.insert(name.to_owned(), choice).is_some(),
            "no variable {name}"
        );
        self
    }

    /// The query that InfluxDB receives.
    pub fn interpolate(&self, flux: &str) -> String {
        self.macros(&self.templates(flux))
    }

    /// In the browser: `${name}` and `${name:format}`.
    fn templates(&self, flux: &str) -> String {
        let mut out = String::new();
        let mut rest = flux;
        while let Some((before, after)) = rest.split_once("${") {
            let (inside, after) = after.split_once('}').expect("an end of the variable");
            let (name, format) = inside.split_once(':').unwrap_or((inside, ""));
            unchanged(before);
            out.push_str(before);
            out.push_str(&match name {
                "__dashboard.name" => formatted(&self.title, format),
                "__timezone" => formatted(&self.timezone, format),
                _ => match (self.variables.get(name), format) {
                    (None, _) => panic!("no variable {name}"),
                    // The text for "All" is never formatted.
                    (Some(Choice::All(text)), _) => text.clone(),
                    (Some(Choice::One(value)), format) => formatted(value, format),
                    (Some(Choice::Some(values)), "regex") => match values.as_slice() {
                        [one] => escaped(one),
                        many => format!(
                            "({})",
                            many.iter()
                                .map(|v| escaped(v))
                                .collect::<Vec<_>>()
                                .join("|")
                        ),
                    },
                    (Some(choice), other) => {
                        panic!("{choice:?} in the format {other:?} is not to be trusted")
                    }
                },
            });
            rest = after;
        }
        unchanged(rest);
        out.push_str(rest);
        out
    }

    /// In the data source: `x.timeRangeStart`, `x.bucket` and so on, for any `x`.
    fn macros(&self, flux: &str) -> String {
        let mut out = flux.to_owned();
        for word in words_with_a_dot(flux) {
            let value = match word.split_once('.').expect("a dot").1 {
                "timeRangeStart" => self.range.0.clone(),
                "timeRangeStop" => self.range.1.clone(),
                "windowPeriod" => go_duration(self.window_s),
                "defaultBucket" => format!("\"{}\"", self.bucket),
                "bucket" => "\"\"".to_owned(),
                "organization" => "\"powerview\"".to_owned(),
                _ => continue,
            };
            out = out.replace(&word, &value);
        }
        out
    }

    /// The frames of all queries of a panel.
    pub fn frames(&self, server: &RealInflux, panel: &Value) -> Vec<Frame> {
        let view = self.resolved(server);
        queries(panel)
            .into_iter()
            .flat_map(|q| server.tables(&view.interpolate(q)))
            .map(frame)
            .collect()
    }

    /// The only table of a panel, without rows if the answer is empty.
    pub fn rows(&self, server: &RealInflux, panel: &Value) -> Vec<BTreeMap<String, String>> {
        let frames = self.frames(server, panel);
        assert!(
            frames.len() <= 1,
            "a table panel shows one frame at a time: {frames:?}"
        );
        match frames.into_iter().next() {
            None => Vec::new(),
            Some(Frame::Rows(rows)) => rows,
            Some(series) => panic!("not a table: {series:?}"),
        }
    }

    /// The only value of a panel, or `None` if the answer is empty.
    pub fn value(&self, server: &RealInflux, panel: &Value) -> Option<String> {
        let rows = self.rows(server, panel);
        assert!(rows.len() <= 1, "{rows:?}");
        rows.into_iter().next().map(|row| {
            assert_eq!(row.len(), 1, "{row:?}");
            row.into_values().next().expect("one value")
        })
    }

    /// The series of a panel, by name.
    pub fn series(&self, server: &RealInflux, panel: &Value) -> Vec<Series> {
        let mut found: Vec<_> = self
            .frames(server, panel)
            .into_iter()
            .map(|frame| match frame {
                Frame::Series {
                    name,
                    labels,
                    points,
                } => {
                    assert!(
                        labels.is_empty(),
                        "Grafana would write {labels:?} behind the name {name}"
                    );
                    let time = |t: &str| t.parse::<DateTime<Utc>>().expect("a time");
                    assert!(
                        points.is_sorted_by(|a, b| time(&a.0) < time(&b.0)),
                        "Grafana would draw the line {name} back in time"
                    );
                    (name, points)
                }
                Frame::Rows(rows) => panic!("not a series: {rows:?}"),
            })
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }
}

/// A series' name, and its times (RFC 3339) and values.
pub type Series = (String, Vec<(String, Option<f64>)>);

/// One frame of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Values over time.
    Series {
        /// The value of `_field`.
        name: String,
        /// The columns that do not start with `_`. Grafana appends them to the name.
        labels: BTreeMap<String, String>,
        /// RFC 3339 and the value, or `None` for null.
        points: Vec<(String, Option<f64>)>,
    },
    /// Anything else.
    Rows(Vec<BTreeMap<String, String>>),
}

/// Reads a table like Grafana: with `_value` and a time it is a series, otherwise rows.
pub fn frame(table: Table) -> Frame {
    let has = |column: &str| table.columns.iter().any(|c| c == column);
    if !has("_value") {
        return Frame::Rows(table.rows);
    }
    if !has("_time") {
        // Grafana would use any other time (the ends of the range) as that of the point.
        assert!(
            !has("_start") && !has("_stop") && table.columns.len() == 1,
            "{:?}",
            table.columns
        );
        return Frame::Rows(table.rows);
    }
    let first = table.rows.first().expect("a table has rows");
    let labels = first.iter().filter(|(column, _)| !column.starts_with('_'));
    Frame::Series {
        name: first.get("_field").cloned().unwrap_or_default(),
        labels: labels.map(|(k, v)| (k.clone(), v.clone())).collect(),
        points: table
            .rows
            .iter()
            .map(|row| {
                (
                    row["_time"].clone(),
                    row.get("_value").map(|v| v.parse().expect("a number")),
                )
            })
            .collect(),
    }
}

/// All `letters.letters` of a text.
pub fn words_with_a_dot(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('.') {
        let before: String = rest[..at]
            .chars()
            .rev()
            .take_while(char::is_ascii_alphabetic)
            .collect();
        let after: String = rest[at + 1..]
            .chars()
            .take_while(char::is_ascii_alphabetic)
            .collect();
        if !before.is_empty() && !after.is_empty() {
            found.push(format!(
                "{}.{after}",
                before.chars().rev().collect::<String>()
            ));
        }
        rest = &rest[at + 1..];
    }
    found
}

/// Checks a text between variables: a dollar before a word would be an undefined variable. Grafana keeps that of a group.
fn unchanged(text: &str) {
    let text = text.replace("\"$1\"", "");
    let is_word = |rest: &str| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    assert!(
        !text.split('$').skip(1).any(is_word) && !text.contains("[["),
        "something is left to be replaced: {text}"
    );
}

/// A single value in one of Grafana's formats.
fn formatted(value: &str, format: &str) -> String {
    match format {
        "regex" => escaped(value),
        "" => value.to_owned(),
        other => panic!("the format {other:?} is not to be trusted"),
    }
}

/// Grafana's `regex` format.
fn escaped(value: &str) -> String {
    value
        .chars()
        .flat_map(|c| {
            let special = r"\^$*+?.()|[]{}/".contains(c);
            special.then_some('\\').into_iter().chain([c])
        })
        .collect()
}

/// A duration in Go's notation.
fn go_duration(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, _) => format!("{m}m{s}s"),
        _ => format!("{h}h{m}m{s}s"),
    }
}

#[test]
fn variables_are_replaced_like_in_grafana() {
    let dashboard = serde_json::json!({"templating": {"list": [
        {"name": "channels", "allValue": ".*", "current": {"value": ["$__all"]}},
        {"name": "pas", "current": {"value": "10m"}},
    ]}});
    let view = View::of(
        &dashboard,
        "acme",
        "site",
        ("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z"),
        600,
    );
    // What is inserted is not replaced again.
    let hostile = View {
        title: "${pas} $1 [[pas]] a/b\"".to_owned(),
        ..view.clone()
    };
    assert_eq!(
        hostile.interpolate("/${__dashboard.name:regex}/"),
        r#"/\$\{pas\} \$1 \[\[pas\]\] a\/b"/"#
    );
    let flux =
        "from(v.defaultBucket, v.timeRangeStart, v.windowPeriod, ${pas}) /^${channels:regex}$/";
    let flux = flux.to_owned() + " \"${__dashboard.name}\"";
    assert_eq!(
        view.interpolate(&flux),
        "from(\"acme\", 2025-01-01T00:00:00Z, 10m0s, 10m) /^.*$/ \"site\""
    );
    let one = view
        .clone()
        .with("channels", Choice::Some(vec!["a (1/2)".into()]));
    assert_eq!(one.interpolate("${channels:regex}"), r"a \(1\/2\)");
    let two = view
        .clone()
        .with("channels", Choice::Some(vec!["a".into(), "b".into()]));
    assert_eq!(two.interpolate("${channels:regex}"), "(a|b)");
    assert_eq!(
        view.interpolate("r.bucket == r.channel_name"),
        "\"\" == r.channel_name"
    );
    assert_eq!(
        [go_duration(30), go_duration(600), go_duration(7205)],
        ["30s", "10m0s", "2h0m5s"]
    );
}

/// Prints the milliseconds of each query, of all one after another, and of a page that sends six at once like a browser,
/// each beside the query without data. The times are medians of five.
pub fn print_times(
    server: &RealInflux,
    what: &str,
    with_data: &[(String, String)],
    without: &[(String, String)],
) {
    let median = |measured: &dyn Fn()| {
        let mut times: Vec<_> = (0..5)
            .map(|_| {
                let started = Instant::now();
                measured();
                started.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[2]
    };
    let page = |queries: &[(String, String)]| {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    while let Some((_, query)) = queries.get(next.fetch_add(1, Ordering::Relaxed)) {
                        server.query_csv(query);
                    }
                });
            }
        });
    };
    let print = |full: f64, none: f64, title: &str| {
        println!("{what}  {full:6.0} ms  {none:4.0} ms  {title}");
    };
    let (mut sum, mut base) = (0.0, 0.0);
    for ((title, query), (_, other)) in with_data.iter().zip(without) {
        let full = median(&|| drop(server.query_csv(query)));
        let none = median(&|| drop(server.query_csv(other)));
        print(full, none, title);
        (sum, base) = (sum + full, base + none);
    }
    print(sum, base, "one after another");
    print(
        median(&|| page(with_data)),
        median(&|| page(without)),
        "six at once",
    );
}
