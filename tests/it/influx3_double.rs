//! A test double of InfluxDB 3 Core 3.6.0, with the answers of docs/answers-influxdb-3.md. On request it answers like other
//! editions. Of several values for a second, it keeps the first: the real server may keep any.

use crate::influx_double::{Request, SeriesKey, TOKEN, read_body, read_head};
use crate::line_protocol::{self, Line, Value};
use serde_json::json;
use std::collections::BTreeMap;
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
