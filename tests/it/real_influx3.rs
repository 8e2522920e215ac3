//! A real InfluxDB 3 Core. `INFLUXDB3_BIN` is the path of its program. Each server has free ports of 127.0.0.1, keeps its
//! data in memory and stops on drop.

use crate::influx_double::TOKEN;
use crate::line_protocol::{Line, Value};
use crate::skipped::skipped;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The longest wait for the server's first answer.
const START: Duration = Duration::from_secs(90);

/// The form that the server demands of a token. The tests look for [`TOKEN`] in what the program shows.
pub fn token() -> String {
    format!("apiv3_{TOKEN}")
}

pub struct RealInflux3 {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl RealInflux3 {
    /// Starts a server. Returns `None` and skips the calling test without `INFLUXDB3_BIN`.
    pub fn start(options: &[&str]) -> Option<Self> {
        let Some(program) = std::env::var_os("INFLUXDB3_BIN").filter(|p| !p.is_empty()) else {
            skipped("INFLUXDB3_BIN", "set it to the path of an influxdb3");
            return None;
        };
        // Another process may take a free port before the server does. Then others are tried.
        for _ in 0..5 {
            let dir = tempfile::Builder::new()
                .prefix("powerview-influxdb3-")
                .tempdir()
                .expect("a temporary directory");
            let token_file = dir.path().join("token.json");
            let token = json!({"token": token(), "name": "test"}).to_string();
            std::fs::write(&token_file, token).expect("a token");
            std::fs::set_permissions(
                &token_file,
                std::os::unix::fs::PermissionsExt::from_mode(0o600),
            )
            .expect("private");
            let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
            let [port, recovery] =
                listeners.map(|listener| listener.local_addr().expect("bound").port());
            let log = std::fs::File::create(dir.path().join("log")).expect("a log file");
            let child = Command::new(&program)
                .env_clear()
                .env("HOME", dir.path())
                .args(["serve", "--node-id", "test", "--object-store", "memory"])
                .args(["--disable-telemetry-upload", "--wal-flush-interval", "20ms"])
                .args(["--http-bind", &format!("127.0.0.1:{port}")])
                .arg("--admin-token-recovery-http-bind")
                .arg(format!("127.0.0.1:{recovery}"))
                .arg("--admin-token-file")
                .arg(&token_file)
                .args(options)
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("the log file twice"))
                .stderr(log)
                .spawn()
                .unwrap_or_else(|e| panic!("INFLUXDB3_BIN: {e}"));
            let mut server = Self { child, port, dir };
            if server.answers() {
                return Some(server);
            }
        }
        panic!("influxdb3 did not stay up at five ports");
    }

    fn answers(&mut self) -> bool {
        let end = Instant::now() + START;
        while Instant::now() < end {
            if self.child.try_wait().expect("waited").is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no answer; see {}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connected");
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            token(),
            body.len()
        )
        .expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).expect("a status");
        let is_chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        let body = if is_chunked {
            unchunked(body)
        } else {
            body.to_owned()
        };
        (status.parse().expect("a number"), body)
    }

    /// Writes points with times in seconds.
    pub fn write(&self, database: &str, lines: &str) {
        let path = format!("/api/v2/write?bucket={database}&precision=s");
        let (status, answer) = self.request("POST", &path, lines);
        assert_eq!(status, 204, "{answer}");
    }

    /// The rows of a query, from column to value, without those that are null.
    pub fn rows(&self, database: &str, sql: &str) -> Vec<BTreeMap<String, String>> {
        let body = json!({"db": database, "q": sql, "format": "csv"}).to_string();
        let (status, answer) = self.request("POST", "/api/v3/query_sql", &body);
        assert_eq!(status, 200, "{sql}: {answer}");
        let mut reader = csv::Reader::from_reader(answer.as_bytes());
        let names = reader.headers().expect("columns").clone();
        reader
            .records()
            .map(|row| {
                let row = row.expect("a row");
                let cells = names.iter().zip(&row).filter(|(_, cell)| !cell.is_empty());
                cells
                    .map(|(name, cell)| (name.to_owned(), cell.to_owned()))
                    .collect()
            })
            .collect()
    }

    /// All points of a database, sorted by series and time, with times in nanoseconds.
    pub fn points(&self, database: &str) -> Vec<Line> {
        let columns = self.rows(
            database,
            "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'iox'",
        );
        let mut tables: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for column in columns {
            let table = tables.entry(column["table_name"].clone()).or_default();
            table.insert(column["column_name"].clone(), column["data_type"].clone());
        }
        let mut points = Vec::new();
        for (table, types) in tables {
            let name = table.replace('"', "\"\"");
            for row in self.rows(database, &format!("SELECT * FROM \"{name}\"")) {
                let mut line = Line {
                    measurement: table.clone(),
                    tags: BTreeMap::new(),
                    fields: BTreeMap::new(),
                    time: None,
                    raw: String::new(),
                };
                for (key, cell) in row {
                    match types[&key].as_str() {
                        "Dictionary(Int32, Utf8)" => drop(line.tags.insert(key, cell)),
                        "Timestamp(Nanosecond, None)" => {
                            let time: chrono::NaiveDateTime = cell.parse().expect("a time");
                            line.time = time.and_utc().timestamp_nanos_opt();
                        }
                        kind => drop(line.fields.insert(key, value(kind, &cell))),
                    }
                }
                points.push(line);
            }
        }
        points.sort_by_key(|line| (line.measurement.clone(), line.tags.clone(), line.time));
        points
    }
}

fn value(kind: &str, cell: &str) -> Value {
    match kind {
        "Float64" => Value::Float(cell.parse().expect("a number")),
        "Int64" => Value::Int(cell.parse().expect("a number")),
        "Boolean" => Value::Bool(cell == "true"),
        "Utf8" => Value::Text(cell.to_owned()),
        other => panic!("a column of type {other}"),
    }
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a size");
        text += &rest[..size];
        body = rest[size..].strip_prefix("\r\n").unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    text
}

impl Drop for RealInflux3 {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
