//! A test double of InfluxDB 3 Core 3.6.0, with the answers of docs/answers-influxdb-3.md. On request it answers like other
//! editions. Of several values for a second, it keeps the first: the real server may keep any.

use crate::influx_double::{Request, SeriesKey, TOKEN, read_body, read_head};
use crate::line_protocol::{self, Line, Value};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// An answer that replaces the right one: the status, a header and the body.
#[derive(Clone)]
pub struct Fault {
    pub status: u16,
    pub header: Option<(&'static str, String)>,
    pub body: String,
    /// Whether the points are stored all the same.
    pub applies: bool,
}

impl Fault {
    pub fn new(status: u16, body: &str) -> Self {
        Self {
            status,
            header: None,
            body: body.to_owned(),
            applies: false,
        }
    }
}

type Matcher = Box<dyn Fn(&Request) -> bool + Send>;

/// The points of a series: time in nanoseconds, and fields.
type Times = BTreeMap<i64, BTreeMap<String, Value>>;

#[derive(Default)]
struct State {
    databases: BTreeMap<String, BTreeMap<SeriesKey, Times>>,
    requests: Vec<Request>,
    faults: Vec<(Matcher, usize, Fault)>,
    /// The longest body, decompressed.
    max_body: usize,
    is_without_auth: bool,
    stopped: bool,
}

pub struct Double3 {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Double3 {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(Mutex::new(State {
            max_body: 10 << 20,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.lock().unwrap().stopped {
                    return;
                }
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, &state));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn max_body(&self, bytes: usize) {
        self.state.lock().unwrap().max_body = bytes;
    }

    /// Accepts requests with any token, as with `--without-auth`.
    pub fn without_auth(&self) {
        self.state.lock().unwrap().is_without_auth = true;
    }

    /// Replaces the next answers to matching requests.
    pub fn fault(
        &self,
        matches: impl Fn(&Request) -> bool + Send + 'static,
        times: usize,
        fault: Fault,
    ) {
        let rule: (Matcher, usize, Fault) = (Box::new(matches), times, fault);
        self.state.lock().unwrap().faults.push(rule);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Stores points with times in seconds.
    pub fn write(&self, database: &str, lines: &str) {
        let mut state = self.state.lock().unwrap();
        store(
            &mut state,
            database,
            line_protocol::all(lines),
            1_000_000_000,
        );
    }

    /// All points of a database, sorted by series and time, with times in nanoseconds.
    pub fn points(&self, database: &str) -> Vec<Line> {
        let state = self.state.lock().unwrap();
        let mut out = Vec::new();
        for ((measurement, tags), times) in state.databases.get(database).into_iter().flatten() {
            for (time, fields) in times {
                out.push(Line {
                    measurement: measurement.clone(),
                    tags: tags.clone(),
                    fields: fields.clone(),
                    time: Some(*time),
                    raw: String::new(),
                });
            }
        }
        out
    }
}

impl Drop for Double3 {
    fn drop(&mut self) {
        self.state.lock().unwrap().stopped = true;
        let _wakes_the_listener = TcpStream::connect(self.address);
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

fn plain(status: u16, body: impl Into<String>) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: body.into(),
    }
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    plain(
        status,
        json!({"code": code, "message": message}).to_string(),
    )
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(mut request) = read_head(&mut reader)? {
        let wire = read_body(&mut reader, &request)?;
        request.wire = wire.len();
        request.body = match request.headers.get("content-encoding").map(String::as_str) {
            Some("gzip") => {
                let mut text = Vec::new();
                flate2::read::GzDecoder::new(&wire[..]).read_to_end(&mut text)?;
                text
            }
            _ => wire,
        };
        request.bucket = request
            .param("bucket")
            .or(request.param("db"))
            .unwrap_or_default()
            .to_owned();
        let mut state = state.lock().unwrap();
        let rule = state
            .faults
            .iter_mut()
            .find(|(matches, times, _)| *times > 0 && matches(&request));
        let fault = rule.map(|(_, times, fault)| {
            *times -= 1;
            fault.clone()
        });
        let answer = match fault {
            Some(fault) => {
                if fault.applies {
                    answer(&mut state, &request);
                }
                Answer {
                    headers: fault.header.into_iter().collect(),
                    ..plain(fault.status, fault.body)
                }
            }
            None => answer(&mut state, &request),
        };
        request.status = answer.status;
        state.requests.push(request);
        drop(state);
        let mut out = format!("HTTP/1.1 {} As It Is\r\n", answer.status);
        for (key, value) in &answer.headers {
            out += &format!("{key}: {value}\r\n");
        }
        if answer.status != 204 {
            out += &format!("content-length: {}\r\n", answer.body.len());
        }
        out += &format!("\r\n{}", answer.body);
        let mut stream = stream;
        stream.write_all(out.as_bytes())?;
    }
    Ok(())
}

fn answer(state: &mut State, request: &Request) -> Answer {
    let scheme_and_token = request
        .headers
        .get("authorization")
        .and_then(|value| value.split_once(' '));
    match scheme_and_token {
        _ if state.is_without_auth => {}
        Some(("Token" | "Bearer", TOKEN)) => {}
        Some(("Token" | "Bearer", _)) | None => return plain(401, ""),
        Some(_) => {
            return plain(
                400,
                r#"{"error": "Authorization header was malformed, the request was not in the form of 'Authorization: <auth-scheme> <token>', supported auth-schemes are Bearer, Token and Basic"}"#,
            );
        }
    }
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/ping") => Answer {
            headers: vec![
                ("content-type", "application/json".to_owned()),
                ("x-influxdb-build", "Core".to_owned()),
                ("x-influxdb-version", "3.6.0".to_owned()),
            ],
            ..plain(
                200,
                json!({"version": "3.6.0", "revision": "v3.6.0", "process_id": "228fcb64-e6cb-44ee-a50f-4867c92e61ee"})
                    .to_string(),
            )
        },
        ("GET", "/health") => plain(200, "OK"),
        ("POST", "/api/v2/write") => write(state, request),
        ("POST", "/api/v3/write_lp") => explain(state, request),
        ("POST", "/api/v3/query_sql") => query(state, request),
        _ => plain(404, "not found"),
    }
}

/// The nanoseconds of a unit of time.
fn unit(request: &Request) -> i64 {
    match request.param("precision") {
        Some("s" | "second") => 1_000_000_000,
        Some("ns" | "nanosecond") => 1,
        other => panic!("precision {other:?}"),
    }
}

fn write(state: &mut State, request: &Request) -> Answer {
    let name = &request.bucket;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/');
    if let Some(n) = name.chars().position(|c| !is_allowed(c)) {
        let message = format!(
            "namespace name '{name}' contains invalid character, character number {n} is not whitelisted"
        );
        return refusal(400, "invalid", &message);
    }
    if name.len() > 64 {
        let message = format!("namespace name {name} length must be between 1 and 64 characters");
        return refusal(400, "invalid", &message);
    }
    if request.body.len() > state.max_body {
        let message = format!("max request size ({} bytes) exceeded", state.max_body);
        return refusal(413, "request too large", &message);
    }
    if request.nb_lines() == 0 {
        return refusal(
            400,
            "invalid",
            "write buffer error: incoming write was empty",
        );
    }
    if !state.databases.contains_key(name) && state.databases.len() == 5 {
        return refusal(
            400,
            "invalid",
            "write buffer error: catalog update error: Adding a new database would exceed limit of 5 databases",
        );
    }
    match checked(state, request) {
        Ok(lines) => {
            store(state, name, lines, unit(request));
            plain(204, "")
        }
        Err(_) => refusal(
            400,
            "invalid",
            "write buffer error: parsing for line protocol failed",
        ),
    }
}

fn explain(state: &mut State, request: &Request) -> Answer {
    assert_eq!(request.param("accept_partial"), Some("false"));
    match checked(state, request) {
        Ok(lines) => {
            store(state, &request.bucket, lines, unit(request));
            plain(204, "")
        }
        Err(data) => plain(
            400,
            json!({"error": "parsing failed for write_lp endpoint", "data": data}).to_string(),
        ),
    }
}

/// The lines of a body, or what is said about the first one whose field has another type than the column.
fn checked(state: &State, request: &Request) -> Result<Vec<Line>, serde_json::Value> {
    let lines = line_protocol::all(&request.text());
    let known = state.databases.get(&request.bucket);
    for (n, line) in lines.iter().enumerate() {
        for (key, value) in &line.fields {
            let series = known.into_iter().flatten();
            let of_table = series.filter(|((table, _), _)| *table == line.measurement);
            let column = of_table
                .flat_map(|(_, times)| times.values())
                .find_map(|fields| fields.get(key));
            if let Some(column) = column
                && column.kind() != value.kind()
            {
                let text = line.raw.as_str();
                return Err(json!({
                    "error_message": format!(
                        "invalid column type for column '{key}', expected iox::column_type::field::{}, got iox::column_type::field::{}",
                        column.kind(),
                        value.kind()
                    ),
                    "line_number": n + 1,
                    "original_line": &text[..text.len().min(20)],
                }));
            }
        }
    }
    Ok(lines)
}

fn store(state: &mut State, database: &str, lines: Vec<Line>, unit: i64) {
    let tables = state.databases.entry(database.to_owned()).or_default();
    for line in lines {
        let times = tables.entry((line.measurement, line.tags)).or_default();
        let time = line.time.expect("a time") * unit;
        times.entry(time).or_insert(line.fields);
    }
}

/// The number of files that a query may read. Each has ten minutes of a table.
const MAX_FILES: usize = 432;

/// Answers the queries of the program.
fn query(state: &State, request: &Request) -> Answer {
    let asked: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!(asked["format"], "csv");
    let (name, sql) = (
        asked["db"].as_str().expect("a name"),
        asked["q"].as_str().expect("SQL"),
    );
    let Some(database) = state.databases.get(name) else {
        let error = format!("query error: database not found: {name}");
        return plain(404, json!({ "error": error }).to_string());
    };
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut put = |cells: &[&str]| csv.write_record(cells).expect("a row");
    let tables: BTreeSet<&str> = database.keys().map(|(table, _)| table.as_str()).collect();
    if sql == "SELECT 1" {
        put(&["Int64(1)"]);
        put(&["1"]);
    } else if sql.starts_with("SELECT table_name FROM information_schema.tables ") {
        put(&["table_name"]);
        for table in tables {
            put(&[table]);
        }
    } else if let Some((_, table)) = sql.split_once("table_schema = 'iox' AND table_name = ") {
        put(&["column_name", "data_type"]);
        put(&["time", "Timestamp(Nanosecond, None)"]);
        let of_table = || {
            database
                .iter()
                .filter(|((name, _), _)| quoted(name, '\'') == table)
        };
        let tags: BTreeSet<_> = of_table().flat_map(|((_, tags), _)| tags.keys()).collect();
        for tag in tags {
            put(&[tag, "Dictionary(Int32, Utf8)"]);
        }
        let fields = of_table().flat_map(|(_, times)| times.values().flatten());
        let fields: BTreeMap<_, _> = fields.map(|(key, value)| (key, value.kind())).collect();
        for (field, kind) in fields {
            let kind = match kind {
                "float" => "Float64",
                "integer" => "Int64",
                "boolean" => "Boolean",
                _ => "Utf8",
            };
            put(&[field, kind]);
        }
    } else {
        let (columns, rest) = sql.split_once(" FROM ").expect("a table");
        let (table, condition) = rest.split_once(" WHERE ").expect("a condition");
        let (between, of_master) = condition
            .strip_prefix("\"device_master_sn\" IS NOT NULL AND ")
            .map_or((condition, None), |times| (times, Some("IS NOT NULL")));
        let mut parts = between.splitn(3, " AND ");
        let mut time = |start: &str| {
            let text = parts
                .next()
                .and_then(|part| part.strip_prefix(start))
                .expect("a time");
            let time = chrono::DateTime::parse_from_rfc3339(text.trim_matches('\''));
            time.expect("a time").timestamp()
        };
        let times = time("time >= ")..time("time < ");
        let of_master = parts
            .next()
            .and_then(|part| part.strip_prefix("device_master_sn "))
            .or(of_master);
        let is_asked = |tags: &BTreeMap<String, String>| {
            let master = tags.get("device_master_sn");
            match of_master {
                None => true,
                Some("IS NULL") => master.is_none(),
                Some("IS NOT NULL") => master.is_some(),
                Some(text) => master.is_some_and(|m| text == format!("= {}", quoted(m, '\''))),
            }
        };
        let rows: Vec<_> = database
            .iter()
            .filter(|((name, _), _)| quoted(name, '"') == table)
            .flat_map(|((_, tags), points)| {
                points
                    .iter()
                    .map(move |(time, fields)| (tags, time, fields))
            })
            .filter(|(_, time, _)| times.contains(&time.div_euclid(1_000_000_000)))
            .collect();
        let files: BTreeSet<_> = rows
            .iter()
            .map(|(_, time, _)| time.div_euclid(600_000_000_000))
            .collect();
        if files.len() > MAX_FILES {
            return plain(
                500,
                "query error: error while planning query: External error: Query would exceed file limit of 432 parquet files. Please specify a smaller time range for your query.",
            );
        }
        let rows = rows.into_iter().filter(|(tags, _, _)| is_asked(tags));
        match columns {
            "SELECT count(*)" => {
                put(&["count(*)"]);
                put(&[&rows.count().to_string()]);
            }
            "SELECT DISTINCT \"device_master_sn\"" => {
                put(&["device_master_sn"]);
                let masters: BTreeSet<_> =
                    rows.map(|(tags, _, _)| &tags["device_master_sn"]).collect();
                for master in masters {
                    put(&[master]);
                }
            }
            columns => {
                let columns = columns.strip_prefix("SELECT time, ").expect("columns");
                let names: Vec<_> = columns
                    .split(", ")
                    .map(|name| name.trim_matches('"'))
                    .collect();
                put(&[&["time"], &names[..]].concat());
                for (tags, time, fields) in rows {
                    let time = chrono::DateTime::from_timestamp_nanos(*time);
                    let mut cells =
                        vec![time.naive_utc().format("%Y-%m-%dT%H:%M:%S%.f").to_string()];
                    cells.extend(names.iter().map(|name| {
                        match (tags.get(*name), fields.get(*name)) {
                            (Some(tag), _) => tag.clone(),
                            (None, Some(Value::Float(value))) => format!("{value:?}"),
                            (None, Some(Value::Int(value))) => value.to_string(),
                            (None, Some(Value::Bool(value))) => value.to_string(),
                            (None, Some(Value::Text(value))) => value.clone(),
                            (None, None) => String::new(),
                        }
                    }));
                    put(&cells.iter().map(String::as_str).collect::<Vec<_>>());
                }
            }
        }
    }
    let csv = csv.into_inner().expect("complete");
    plain(200, String::from_utf8(csv).expect("text"))
}

/// A name or a text in SQL.
fn quoted(text: &str, quote: char) -> String {
    let doubled = format!("{quote}{quote}");
    format!("{quote}{}{quote}", text.replace(quote, &doubled))
}
