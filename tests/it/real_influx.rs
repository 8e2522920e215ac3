//! A real InfluxDB. `INFLUXD_BIN` is the path of its program, or a list of paths: a test then runs with each of them. Each
//! server has a free port of 127.0.0.1 and a temporary folder, and stops on drop.

use chrono::DateTime;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::skipped::skipped;

/// The longest wait for the server's first answer.
const START: Duration = Duration::from_secs(90);
const ORG: &str = "powerview";
/// An operator token that `setup` accepts.
const TOKEN: &str = "token-of-a-test-server";

/// A running server, set up with one organisation and an operator token.
pub struct RealInflux {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

/// A table in the answer to a query: its group key and its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The name in `yield`, or `_result` without one.
    pub result: String,
    /// The columns of the group key and their values.
    pub key: BTreeMap<String, String>,
    /// All columns of the answer in order, including those without values.
    pub columns: Vec<String>,
    /// Column to value, without columns that are null.
    pub rows: Vec<BTreeMap<String, String>>,
}

/// A point of a database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    pub measurement: String,
    pub tags: BTreeMap<String, String>,
    pub field: String,
    /// The type, as Flux calls it.
    pub kind: String,
    pub time_ns: i64,
    pub value: String,
}

/// The rules of retention of a bucket that the program or a playbook made: points are kept for ever, in shards of 26 weeks.
pub fn kept_in_long_shards() -> serde_json::Value {
    serde_json::json!([{"type": "expire", "everySeconds": 0, "shardGroupDurationSeconds": 15_724_800}])
}

impl RealInflux {
    /// Starts and sets up a server. Returns `None` and skips the calling test without `INFLUXD_BIN`.
    pub fn start() -> Option<Self> {
        let server = Self::start_new()?;
        server.set_up();
        Some(server)
    }

    /// Like [`Self::start`], without the setup. The methods of the server need one with its organisation and token.
    pub fn start_new() -> Option<Self> {
        Self::start_new_with(&[])
    }

    /// Like [`Self::start`], but the server writes points to its final files after seconds instead of hours, so that their
    /// size can be measured.
    pub fn start_compacting() -> Option<Self> {
        let server = Self::start_new_with(&[
            "--storage-cache-snapshot-write-cold-duration=5s",
            "--storage-compact-full-write-cold-duration=10s",
        ])?;
        server.set_up();
        Some(server)
    }

    fn start_new_with(options: &[&str]) -> Option<Self> {
        let Some(programs) = std::env::var_os("INFLUXD_BIN").filter(|p| !p.is_empty()) else {
            skipped("INFLUXD_BIN", "set it to the path of an influxd");
            return None;
        };
        let mut programs = std::env::split_paths(&programs);
        let program = programs.next().expect("a path");
        repeat_with(programs);
        // Another process may take the free port before the server does. Then another one is tried.
        for _ in 0..5 {
            let dir = tempfile::Builder::new()
                .prefix("powerview-influxd-")
                .tempdir()
                .expect("a temporary directory");
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|l| l.local_addr())
                .expect("a free port")
                .port();
            let log = std::fs::File::create(dir.path().join("log")).expect("a log file");
            let child = Command::new(&program)
                .env_clear()
                .env("HOME", dir.path())
                .args([
                    "--reporting-disabled",
                    "--log-level",
                    "warn",
                    "--http-bind-address",
                ])
                .arg(format!("127.0.0.1:{port}"))
                .arg("--bolt-path")
                .arg(dir.path().join("influxd.bolt"))
                .arg("--sqlite-path")
                .arg(dir.path().join("influxd.sqlite"))
                .arg("--engine-path")
                .arg(dir.path().join("engine"))
                .args(options)
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("the log file twice"))
                .stderr(log)
                .spawn()
                .unwrap_or_else(|e| panic!("INFLUXD_BIN={}: {e}", program.display()));
            let mut server = Self { child, port, dir };
            if server.answers() {
                return Some(server);
            }
        }
        panic!("influxd did not stay up at five ports");
    }

    /// The bytes of the files of points, without the index, whose files are sparse.
    pub fn stored_bytes(&self) -> u64 {
        let is_of_points =
            |file: &walkdir::DirEntry| file.path().extension() == Some("tsm".as_ref());
        let files = walkdir::WalkDir::new(self.dir.path().join("engine/data")).into_iter();
        let files = files.flatten().filter(is_of_points);
        files
            .filter_map(|file| file.metadata().ok())
            .map(|file| file.len())
            .sum()
    }

    /// The memory of the server, in KiB.
    pub fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_default()
    }

    /// The URL, `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The operator token.
    pub fn token(&self) -> &str {
        TOKEN
    }

    /// The organisation.
    pub fn org(&self) -> &str {
        ORG
    }

    /// Creates the bucket without retention if it is missing.
    pub fn ensure_bucket(&self, bucket: &str) {
        if self.bucket_id(bucket).is_some() {
            return;
        }
        self.create(bucket, &kept_in_long_shards());
    }

    /// Creates a bucket that keeps points for some seconds, or for ever if they are 0.
    pub fn create_bucket(&self, bucket: &str, retention_s: i64) {
        let rules = serde_json::json!([{"type": "expire", "everySeconds": retention_s}]);
        self.create(bucket, &rules);
    }

    fn create(&self, bucket: &str, rules: &serde_json::Value) {
        let (_, orgs) = self.request("GET", &format!("/api/v2/orgs?org={ORG}"), "", "");
        let orgs: serde_json::Value = serde_json::from_str(&orgs).expect("organisations as JSON");
        let body = serde_json::json!({
            "name": bucket, "orgID": orgs["orgs"][0]["id"], "retentionRules": rules,
        });
        let (status, answer) = self.request(
            "POST",
            "/api/v2/buckets",
            "application/json",
            &body.to_string(),
        );
        assert_eq!(status, 201, "bucket {bucket}: {answer}");
    }

    /// Renames the bucket of that id.
    pub fn rename_bucket(&self, id: &str, name: &str) {
        let body = serde_json::json!({ "name": name }).to_string();
        let path = format!("/api/v2/buckets/{id}");
        let (status, answer) = self.request("PATCH", &path, "application/json", &body);
        assert_eq!(status, 200, "bucket {name}: {answer}");
    }

    /// The id of the bucket of that name, if it exists.
    pub fn bucket_id(&self, bucket: &str) -> Option<String> {
        let (_, found) = self.request(
            "GET",
            &format!("/api/v2/buckets?org={ORG}&name={}", percent(bucket)),
            "",
            "",
        );
        let found: serde_json::Value = serde_json::from_str(&found).expect("buckets as JSON");
        found["buckets"][0]["id"].as_str().map(str::to_owned)
    }

    /// The rules of retention of a bucket.
    pub fn retention_rules(&self, bucket: &str) -> serde_json::Value {
        let id = self.bucket_id(bucket).expect("a bucket");
        let (_, found) = self.request("GET", &format!("/api/v2/buckets/{id}"), "", "");
        let mut found: serde_json::Value = serde_json::from_str(&found).expect("a bucket as JSON");
        found["retentionRules"].take()
    }

    /// Writes line protocol with a precision (`ns`, `us`, `ms`, `s`). Creates the bucket if it is missing.
    pub fn write(&self, bucket: &str, line_protocol: &str, precision: &str) {
        self.ensure_bucket(bucket);
        let path = format!(
            "/api/v2/write?org={ORG}&bucket={}&precision={precision}",
            percent(bucket)
        );
        let (status, answer) =
            self.request("POST", &path, "text/plain; charset=utf-8", line_protocol);
        assert_eq!(status, 204, "write to {bucket}: {answer}");
    }

    /// Runs Flux. Returns the status and the answer: annotated CSV, or an error in JSON.
    pub fn query(&self, flux: &str) -> (u16, String) {
        let body = serde_json::json!({
            "query": flux, "type": "flux",
            "dialect": {"annotations": ["datatype", "group", "default"], "header": true, "delimiter": ","},
        });
        self.request(
            "POST",
            &format!("/api/v2/query?org={ORG}"),
            "application/json",
            &body.to_string(),
        )
    }

    /// Runs Flux, which must succeed. Returns the annotated CSV.
    pub fn query_csv(&self, flux: &str) -> String {
        let (status, csv) = self.query(flux);
        assert_eq!(status, 200, "{csv}\nfor\n{flux}");
        csv
    }

    /// Runs Flux, which must succeed. Returns its tables.
    pub fn tables(&self, flux: &str) -> Vec<Table> {
        parse(&self.query_csv(flux)).unwrap_or_else(|e| panic!("{e}\nfor\n{flux}"))
    }

    /// Runs Flux, which must succeed. Returns the rows of all tables, without columns that are null.
    pub fn rows(&self, flux: &str) -> Vec<BTreeMap<String, String>> {
        self.tables(flux).into_iter().flat_map(|t| t.rows).collect()
    }

    /// All points of a bucket, whatever their tags, fields and types.
    pub fn stored(&self, bucket: &str) -> Vec<Stored> {
        let bucket = bucket.replace('\\', "\\\\").replace('$', "\\x24");
        let csv = self.query_csv(&format!(
            "from(bucket: \"{bucket}\") |> range(start: -9223372036, stop: 9223372036)"
        ));
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(csv.as_bytes());
        let (mut kinds, mut names): (Vec<String>, Vec<String>) = Default::default();
        let mut points = Vec::new();
        for record in reader.records() {
            let cells: Vec<String> = record.expect("CSV").iter().map(str::to_owned).collect();
            match cells[0].as_str() {
                "#datatype" => (kinds, names) = (cells, Vec::new()),
                "#group" | "#default" => {}
                _ if names.is_empty() => names = cells,
                _ => {
                    let at = |name: &str| names.iter().position(|n| n == name).expect(name);
                    let own = ["_measurement", "_field", "_time", "_value"].map(at);
                    let [measurement, field, time, value] = own.map(|n| cells[n].clone());
                    let time = DateTime::parse_from_rfc3339(&time).expect("a time");
                    // Tags may be named like the first columns: annotation, result and table.
                    let others = [0, 1, 2, at("_start"), at("_stop")];
                    let is_tag = |n: &usize| !own.contains(n) && !others.contains(n);
                    let tags = (0..cells.len()).filter(is_tag);
                    let tags = tags.filter(|n| !cells[*n].is_empty());
                    points.push(Stored {
                        measurement,
                        tags: tags.map(|n| (names[n].clone(), cells[n].clone())).collect(),
                        field,
                        kind: kinds[own[3]].clone(),
                        time_ns: time.timestamp_nanos_opt().expect("in range"),
                        value,
                    });
                }
            }
        }
        points
    }

    /// Sends a request with the operator token. Returns the status and the body.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &str,
    ) -> (u16, String) {
        self.try_request(method, path, content_type, body)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// Uses HTTP/1.0, so that the answer ends with the connection and is not chunked.
    fn try_request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_mins(3)))?;
        let kind = if content_type.is_empty() {
            String::new()
        } else {
            format!("Content-Type: {content_type}\r\n")
        };
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nAuthorization: Token {TOKEN}\r\n{kind}Content-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer).map_err(std::io::Error::other)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .ok_or_else(|| std::io::Error::other("no end of the headers"))?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Ok((
            status.ok_or_else(|| std::io::Error::other("no status"))?,
            body.to_owned(),
        ))
    }

    /// Waits for the first successful answer. Returns false if the program ended before.
    fn answers(&mut self) -> bool {
        let from = Instant::now();
        loop {
            if matches!(self.try_request("GET", "/health", "", ""), Ok((200, _))) {
                // The child must be alive, because another process could have the port.
                return self.child.try_wait().expect("state of influxd").is_none();
            }
            if self.child.try_wait().expect("state of influxd").is_some() {
                eprintln!("influxd ended: {}", self.log());
                return false;
            }
            assert!(
                from.elapsed() < START,
                "influxd does not answer: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn set_up(&self) {
        let body = serde_json::json!({
            "username": "admin", "password": "password-of-a-test", "org": ORG, "bucket": "first", "token": TOKEN,
            "retentionPeriodSeconds": 0,
        });
        let (status, answer) = self.request(
            "POST",
            "/api/v2/setup",
            "application/json",
            &body.to_string(),
        );
        assert_eq!(status, 201, "setup: {answer}");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for RealInflux {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the calling test with each of these servers, in a process of its own, unless it was done before: a test may start
/// several servers.
fn repeat_with(programs: impl Iterator<Item = PathBuf>) {
    static DONE: Mutex<BTreeSet<(String, PathBuf)>> = Mutex::new(BTreeSet::new());
    let thread = std::thread::current();
    let test = thread.name().expect("the thread of a test has its name");
    for program in programs {
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        if !done.insert((test.to_owned(), program.clone())) {
            continue;
        }
        drop(done);
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", test, "--include-ignored"])
            .env("INFLUXD_BIN", &program)
            .output()
            .expect("this program starts");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && stdout.contains(" 1 passed; "),
            "{test} fails with {}: {stdout}{}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// The tables of annotated CSV, or the error in the middle of the answer.
pub fn parse(csv: &str) -> Result<Vec<Table>, String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(csv.as_bytes());
    let (mut group, mut default, mut header): (Vec<String>, Vec<String>, Vec<String>) =
        Default::default();
    let mut of: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut tables: Vec<Table> = Vec::new();
    for record in reader.records() {
        let record: Vec<String> = record
            .map_err(|e| e.to_string())?
            .iter()
            .map(str::to_owned)
            .collect();
        match record[0].as_str() {
            "#datatype" => header.clear(),
            "#group" => group = record,
            "#default" => default = record,
            _ if header.is_empty() => {
                let own: BTreeSet<&str> = record.iter().map(String::as_str).collect();
                if own == BTreeSet::from(["", "error", "reference"]) {
                    header = vec!["error".into()];
                } else {
                    header = record;
                    of.clear();
                }
            }
            _ if header[0] == "error" => return Err(record[1].clone()),
            _ => {
                let mut row = BTreeMap::new();
                let (mut key, mut result, mut number) =
                    (BTreeMap::new(), String::new(), String::new());
                for (i, name) in header.iter().enumerate().skip(1) {
                    let cell = if record[i].is_empty() {
                        &default[i]
                    } else {
                        &record[i]
                    };
                    match name.as_str() {
                        "result" => result.clone_from(cell),
                        "table" => number.clone_from(cell),
                        _ => {
                            if group[i] == "true" {
                                key.insert(name.clone(), cell.clone());
                            }
                            if !cell.is_empty() {
                                row.insert(name.clone(), cell.clone());
                            }
                        }
                    }
                }
                let at = *of.entry((result.clone(), number)).or_insert(tables.len());
                if at == tables.len() {
                    let columns = header[3..].to_vec();
                    tables.push(Table {
                        result,
                        key,
                        columns,
                        rows: Vec::new(),
                    });
                }
                tables[at].rows.push(row);
            }
        }
    }
    Ok(tables)
}

/// A text as a value in a URL's query.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[test]
fn annotated_csv_is_read_with_its_group_keys_nulls_defaults_and_quotes() {
    let csv = "#datatype,string,long,string,double\r\n#group,false,false,true,false\r\n#default,_result,,,\r\n\
               ,result,table,serie,_value\r\n,,0,a,1.5\r\n,,0,a,\r\n,,1,\"b, \"\"c\"\"\",2\r\n\r\n\
               #datatype,string,long,string\r\n#group,false,false,false\r\n#default,other,,\r\n\
               ,result,table,x\r\n,,0,\"two\r\n\r\nlines\"\r\n\r\n";
    let tables = parse(csv).expect("two results");
    assert_eq!(tables.len(), 3);
    assert_eq!(
        tables[0].key,
        BTreeMap::from([("serie".to_owned(), "a".to_owned())])
    );
    assert_eq!(tables[0].columns, ["serie", "_value"]);
    assert_eq!(
        tables[0].rows[0].get("_value").map(String::as_str),
        Some("1.5")
    );
    assert_eq!(tables[0].rows[1].get("_value"), None);
    assert_eq!(tables[1].key["serie"], "b, \"c\"");
    assert_eq!(
        (tables[2].result.as_str(), tables[2].rows[0]["x"].as_str()),
        ("other", "two\r\n\r\nlines")
    );
}

#[test]
fn an_error_in_the_middle_of_an_answer_is_an_error() {
    let csv = "#datatype,string,long,double\r\n#group,false,false,false\r\n#default,_result,,\r\n,result,table,_value\r\n\
               ,,0,1\r\n\r\n#datatype,string,string\r\n#group,true,true\r\n#default,,\r\n,error,reference\r\n\
               ,out of memory,897\r\n";
    assert_eq!(parse(csv), Err("out of memory".to_owned()));
}

#[test]
fn a_test_runs_with_each_server_of_the_list() {
    for (list, first) in [("/none/a:/none/b", "/none/b"), ("/none/a", "/none/a")] {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "real_influx::a_real_server_returns_what_was_written",
            ])
            .env("INFLUXD_BIN", list)
            .output()
            .expect("this program starts");
        assert!(!output.status.success());
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            stdout.contains(&format!("INFLUXD_BIN={first}: No such file")),
            "{stdout}"
        );
    }
}

#[test]
fn a_real_server_returns_what_was_written() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    server.write(
        "a b",
        "m,t=x value=1.5 1700000000\nm,t=y value=-0.0 1700000600",
        "s",
    );
    let flux = r#"from(bucket: "a b") |> range(start: 0) |> sort(columns: ["t"])"#;
    let values: Vec<_> = server
        .rows(flux)
        .into_iter()
        .map(|r| (r["t"].clone(), r["_time"].clone(), r["_value"].clone()))
        .collect();
    let own = |t: &str, time: &str, v: &str| (t.to_owned(), time.to_owned(), v.to_owned());
    assert_eq!(
        values,
        [
            own("x", "2023-11-14T22:13:20Z", "1.5"),
            own("y", "2023-11-14T22:23:20Z", "-0")
        ]
    );
    assert_eq!(server.query("from(bucket: ").0, 400);
    let other = RealInflux::start().expect("started before");
    assert_ne!(server.url(), other.url());
    assert_eq!((server.org(), server.token()), (other.org(), other.token()));
    assert_eq!(
        (other.bucket_id("a b"), server.bucket_id("a b").is_some()),
        (None, true)
    );
}
