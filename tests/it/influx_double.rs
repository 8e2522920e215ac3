//! A test double of InfluxDB 2.8. On request it truncates answers, does not answer, or resets connections before or
//! after it stored a batch. It uses plain sockets and threads, because a framework does not allow that.

use crate::line_protocol::{self, Line, Value};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub const ORG: &str = "powerview";
pub const ORG_ID: &str = "6f9dd2f6ebb29ea7";
pub const META: &str = "powerview_meta";
pub const TOKEN: &str = "a-token-that-must-not-show";

/// The size of the body of [`Fault::Flood`].
pub const FLOOD: usize = 200 << 20;

/// A request with its decompressed body.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// The name of the bucket that a write goes to.
    pub bucket: String,
    /// Bytes of the body on the wire.
    pub wire: usize,
    /// The status of the answer, or 0 without one.
    pub status: u16,
}

impl Request {
    pub fn is_write(&self) -> bool {
        self.path == "/api/v2/write"
    }

    pub fn param(&self, key: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn nb_lines(&self) -> usize {
        self.text().lines().filter(|l| !l.is_empty()).count()
    }
}

/// A fault of the server in reply to a request.
#[derive(Clone)]
pub enum Fault {
    /// This status with this body; nothing is applied.
    Status(u16, String),
    /// Like `Status` with more headers.
    StatusWith(u16, Vec<(&'static str, String)>, String),
    /// Connection reset before the body is read.
    ResetBefore,
    /// The batch is applied, then the connection is reset.
    ResetAfterApply,
    /// The batch is applied, and the head of the answer is truncated.
    CutAnswer,
    /// The body of an error answer is shorter than its Content-Length.
    CutErrorBody(u16),
    /// Nothing is applied, and there is no answer.
    Silence,
    /// The batch is applied, and there is no answer.
    SilenceAfterApply,
    /// The connection ends in the middle of the answer's body.
    CutBody,
    /// The answer to a query ends in the middle with this error.
    ErrorInAnswer(&'static str),
    /// An HTML page of a proxy.
    Html(u16),
    /// A redirect.
    Redirect(u16, String),
    /// All lines but the first are stored. The answer is 422 with the server's message.
    PartialWrite,
    /// This status with a JSON message of [`FLOOD`] bytes.
    Flood(u16),
    /// The body of the answer stops in the middle.
    StallBody,
    /// Answers normally after this time.
    Slow(Duration),
    /// Waits at the gate, then answers normally.
    Gate(Arc<Gate>),
    /// Waits at the gate, then answers with this status and message.
    GateThen(Arc<Gate>, u16, &'static str),
    /// Applies the batch, waits at the gate, then answers normally.
    GateAfter(Arc<Gate>),
}

impl Fault {
    pub fn status(code: u16, message: &str) -> Self {
        let word = match code {
            400 => "invalid",
            401 => "unauthorized",
            403 => "forbidden",
            404 => "not found",
            422 => "unprocessable entity",
            429 => "too many requests",
            503 => "unavailable",
            _ => "internal error",
        };
        Fault::Status(code, json!({"code": word, "message": message}).to_string())
    }
}

/// Blocks requests until it is opened, and counts them.
#[derive(Default)]
pub struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Blocks until `n` requests wait at the gate.
    pub fn wait_for(&self, n: usize) {
        let state = self.state.lock().unwrap();
        let (state, timeout) = self
            .changed
            .wait_timeout_while(state, Duration::from_secs(30), |s| s.0 < n)
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "{} of {n} requests came to the gate",
            state.0
        );
    }

    pub fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        let _unused = self
            .changed
            .wait_timeout_while(state, Duration::from_mins(1), |s| !s.1)
            .unwrap();
    }
}

type Matcher = Box<dyn Fn(&Request) -> bool + Send>;

struct Rule {
    matches: Matcher,
    /// The number of matching requests that pass first.
    skip: usize,
    times: usize,
    fault: Fault,
}

#[derive(Debug, Clone)]
pub struct Bucket {
    pub id: String,
    pub name: String,
    pub retention: Retention,
}

/// How long a bucket keeps points, in seconds; 0 is for ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// What a look-up of the bucket says.
    pub shown: i64,
    /// What applies to writes.
    pub applied: i64,
}

/// Measurement and tags.
pub type SeriesKey = (String, BTreeMap<String, String>);

/// Time in nanoseconds, and fields.
type Times = BTreeMap<i64, BTreeMap<String, Value>>;

#[derive(Default)]
struct State {
    /// The name of the organisation.
    org: String,
    buckets: Vec<Bucket>,
    next_id: u64,
    /// By the id of the bucket.
    points: BTreeMap<String, BTreeMap<SeriesKey, Times>>,
    requests: Vec<Request>,
    rules: Vec<Rule>,
    max_wire: Option<usize>,
    may_create: bool,
    may_write: bool,
    /// By the address of the client.
    open: BTreeMap<SocketAddr, TcpStream>,
    forgets_requests: bool,
    stopped: bool,
}

pub struct Double {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Double {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(Mutex::new(State {
            org: ORG.to_owned(),
            may_create: true,
            may_write: true,
            ..State::default()
        }));
        let double = Self {
            address,
            state: state.clone(),
        };
        double.add_bucket("_monitoring");
        double.add_bucket("_tasks");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let mut locked = state.lock().unwrap();
                if locked.stopped {
                    return;
                }
                let Ok(client) = stream.peer_addr() else {
                    continue;
                };
                if let Ok(copy) = stream.try_clone() {
                    locked.open.insert(client, copy);
                }
                drop(locked);
                let state = state.clone();
                std::thread::spawn(move || {
                    let _connection_lost = serve(&stream, &state);
                    state.lock().unwrap().open.remove(&client);
                    let _already_closed = stream.shutdown(Shutdown::Both);
                });
            }
        });
        double
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The settings of a `.env` for this server, with which measurements are the only points of a company.
    pub fn dot_env(&self) -> String {
        format!(
            "INFLUXDB_HOST={}\nINFLUXDB_ORG={ORG}\nINFLUXDB_ADMIN_TOKEN={TOKEN}\nTSV_TIMEZONE=Europe/Paris\n\
             TSV_ROLLUP=0\nANSIBLE_PLAYBOOK_BIN=/bin/true\n",
            self.url()
        )
    }

    pub fn add_bucket(&self, name: &str) -> String {
        self.state.lock().unwrap().create(name)
    }

    /// Renames the organisation.
    pub fn rename_org(&self, name: &str) {
        self.state.lock().unwrap().org = name.to_owned();
    }

    pub fn add_bucket_with_retention(&self, name: &str, retention: Retention) {
        let mut state = self.state.lock().unwrap();
        state.create(name);
        state.buckets.last_mut().expect("just made").retention = retention;
    }

    pub fn delete_bucket(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        let Some(at) = state.buckets.iter().position(|b| b.name == name) else {
            panic!("no bucket {name}");
        };
        let id = state.buckets.remove(at).id;
        state.points.remove(&id);
    }

    pub fn bucket_names(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.buckets.iter().map(|b| b.name.clone()).collect()
    }

    /// Stops recording requests, for tests that send many.
    pub fn forget_requests(&self) {
        self.state.lock().unwrap().forgets_requests = true;
    }

    /// Answers 413 to bodies that are longer than this on the wire.
    pub fn max_body(&self, bytes: usize) {
        self.state.lock().unwrap().max_wire = Some(bytes);
    }

    pub fn forbid_creating(&self) {
        self.state.lock().unwrap().may_create = false;
    }

    pub fn forbid_writing(&self) {
        self.state.lock().unwrap().may_write = false;
    }

    /// Applies `fault` to the next `times` matching requests after `skip` of them.
    pub fn fault(
        &self,
        matches: impl Fn(&Request) -> bool + Send + 'static,
        skip: usize,
        times: usize,
        fault: Fault,
    ) {
        self.state.lock().unwrap().rules.push(Rule {
            matches: Box::new(matches),
            skip,
            times,
            fault,
        });
    }

    /// Applies the fault to writes of measurements (not of meta points).
    pub fn fault_writes(&self, times: usize, fault: Fault) {
        self.fault(is_data_write, 0, times, fault);
    }

    pub fn fault_nth_write(&self, n: usize, fault: Fault) {
        self.fault(is_data_write, n - 1, 1, fault);
    }

    pub fn fault_all(&self, fault: Fault) {
        self.fault(|_| true, 0, usize::MAX, fault);
    }

    pub fn clear_faults(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Writes of measurements, not of the meta bucket. Empty ones are probes.
    pub fn data_writes(&self) -> Vec<Request> {
        let mut writes = self.requests();
        writes.retain(|r| is_data_write(r) && !is_probe(r));
        writes
    }

    /// Writes that only show whether a bucket can be written to.
    pub fn probes(&self) -> Vec<Request> {
        self.requests().into_iter().filter(is_probe).collect()
    }

    /// Stores points with times in nanoseconds. A point replaces an earlier one of its series and time.
    pub fn insert(&self, bucket: &str, lines: &str) {
        let mut state = self.state.lock().unwrap();
        let id = state.find(bucket).expect("a bucket").id.clone();
        let store = state.points.entry(id).or_default();
        for line in line_protocol::all(lines) {
            let time = line.time.expect("a time");
            let times = store.entry((line.measurement, line.tags)).or_default();
            times.entry(time).or_default().extend(line.fields);
        }
    }

    /// Stores a point with tags that line protocol may not be able to have.
    pub fn insert_value(
        &self,
        bucket: &str,
        measurement: &str,
        tags: BTreeMap<String, String>,
        value: f64,
        time: i64,
    ) {
        let mut state = self.state.lock().unwrap();
        let id = state.find(bucket).expect("a bucket").id.clone();
        let store = state.points.entry(id).or_default();
        let times = store.entry((measurement.to_owned(), tags)).or_default();
        let fields = times.entry(time).or_default();
        fields.insert("value".to_owned(), Value::Float(value));
    }

    /// Deletes points by their tags and time in nanoseconds.
    pub fn delete(
        &self,
        bucket: &str,
        is_deleted: impl Fn(&BTreeMap<String, String>, i64) -> bool,
    ) {
        let mut state = self.state.lock().unwrap();
        let id = state.find(bucket).expect("a bucket").id.clone();
        for ((_, tags), times) in state.points.entry(id).or_default() {
            times.retain(|time, _| !is_deleted(tags, *time));
        }
    }

    /// Deletes the points of a measurement by their time in nanoseconds.
    pub fn delete_of(&self, bucket: &str, measurement: &str, is_deleted: impl Fn(i64) -> bool) {
        let mut state = self.state.lock().unwrap();
        let id = state.find(bucket).expect("a bucket").id.clone();
        for ((name, _), times) in state.points.entry(id).or_default() {
            times.retain(|time, _| name != measurement || !is_deleted(*time));
        }
    }

    /// All points of a bucket, sorted by series and time, with times in nanoseconds.
    pub fn points(&self, bucket: &str) -> Vec<Line> {
        let state = self.state.lock().unwrap();
        let Some(bucket) = state.buckets.iter().find(|b| b.name == bucket) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for ((measurement, tags), times) in state.points.get(&bucket.id).into_iter().flatten() {
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

impl Drop for Double {
    fn drop(&mut self) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        state.stopped = true;
        for stream in state.open.values() {
            let _already_closed = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        let _wakes_the_listener = TcpStream::connect(self.address);
    }
}

/// A write of measurements, not of meta points.
pub fn is_data_write(request: &Request) -> bool {
    request.is_write() && request.bucket != META
}

pub fn is_query(request: &Request) -> bool {
    request.path == "/api/v2/query"
}

fn is_probe(request: &Request) -> bool {
    is_data_write(request)
        && request
            .headers
            .get("content-length")
            .is_none_or(|l| l == "0")
}

impl State {
    /// Ids take precedence over names: a bucket that is named like the id of another cannot be addressed by its name.
    fn find(&self, asked: &str) -> Option<&Bucket> {
        let by_id = self.buckets.iter().find(|b| b.id == asked);
        by_id.or_else(|| self.buckets.iter().find(|b| b.name == asked))
    }

    fn create(&mut self, name: &str) -> String {
        self.next_id += 1;
        let id = format!("{:016x}", 0x028d_62c6_6af3_b700_u64 + self.next_id);
        self.buckets.push(Bucket {
            id: id.clone(),
            name: name.to_owned(),
            retention: Retention::default(),
        });
        id
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Answer {
    fn json(status: u16, body: serde_json::Value) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", "application/json; charset=utf-8".into())],
            body: body.to_string(),
        }
    }

    fn error(status: u16, code: &str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let mut answer = Self::json(status, json!({"code": code, "message": message}));
        answer.headers.push(("X-Platform-Error-Code", code.into()));
        answer
    }

    fn no_content() -> Self {
        Self {
            status: 204,
            headers: Vec::new(),
            body: String::new(),
        }
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some(mut request) = read_head(&mut reader)? else {
            return Ok(());
        };
        if let Some(asked) = request.param("bucket") {
            request.bucket = state
                .lock()
                .unwrap()
                .find(asked)
                .map_or(asked.to_owned(), |b| b.name.clone());
        }
        // Only the head is known here. The body is empty for the rules.
        if let Some(Fault::ResetBefore) = take_fault(state, &request, true) {
            record(state, &request, 0);
            reset(stream);
            return Ok(());
        }
        let wire = read_body(&mut reader, &request)?;
        request.wire = wire.len();
        let mut broken_gzip = false;
        request.body = match request.headers.get("content-encoding").map(String::as_str) {
            Some("gzip") => {
                let mut plain = Vec::new();
                broken_gzip = flate2::read::MultiGzDecoder::new(&wire[..])
                    .read_to_end(&mut plain)
                    .is_err();
                plain
            }
            _ => wire,
        };
        let fault = take_fault(state, &request, false);
        let right = |request: &Request| {
            if broken_gzip {
                Answer::error(
                    500,
                    "internal error",
                    "An internal error has occurred - check server logs",
                )
            } else {
                answer(&mut state.lock().unwrap(), request)
            }
        };
        let answer = match fault {
            None => right(&request),
            Some(Fault::Gate(gate)) => {
                gate.pass();
                right(&request)
            }
            Some(Fault::GateThen(gate, status, message)) => {
                gate.pass();
                Answer::error(status, "invalid", message)
            }
            Some(Fault::GateAfter(gate)) => {
                let answer = right(&request);
                gate.pass();
                answer
            }
            Some(Fault::Status(status, body)) => {
                let mut answer = Answer::json(status, json!(null));
                answer.body = body;
                answer
            }
            Some(Fault::StatusWith(status, headers, body)) => Answer {
                status,
                headers,
                body,
            },
            Some(Fault::Html(status)) => Answer {
                status,
                headers: vec![("Content-Type", "text/html".into())],
                body: format!(
                    "<html>\r\n<head><title>{status} from a proxy</title></head>\r\n<body><center><h1>{status} from a proxy\
                     </h1></center>\u{1b}[31m</body>\r\n</html>\r\n"
                ),
            },
            Some(Fault::Redirect(status, to)) => Answer {
                status,
                headers: vec![("Location", to)],
                body: String::new(),
            },
            Some(Fault::ResetBefore) => {
                record(state, &request, 0);
                reset(stream);
                return Ok(());
            }
            Some(Fault::ResetAfterApply) => {
                right(&request);
                record(state, &request, 0);
                reset(stream);
                return Ok(());
            }
            Some(Fault::CutAnswer) => {
                right(&request);
                record(state, &request, 0);
                let mut out = stream;
                out.write_all(b"HTTP/1.1 204 No Con")?;
                return Ok(());
            }
            Some(Fault::CutErrorBody(status)) => {
                right(&request);
                record(state, &request, status);
                let mut out = stream;
                out.write_all(
                    format!("HTTP/1.1 {status} Cut\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{{\"co")
                        .as_bytes(),
                )?;
                return Ok(());
            }
            Some(Fault::Slow(time)) => {
                std::thread::sleep(time);
                right(&request)
            }
            Some(fault @ (Fault::CutBody | Fault::StallBody)) => {
                let Answer { status, body, .. } = right(&request);
                record(state, &request, status);
                let head = format!(
                    "HTTP/1.1 {status} Cut\r\nContent-Type: text/csv\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let mut out = stream;
                out.write_all(head.as_bytes())?;
                out.write_all(&body.as_bytes()[..body.len() / 2])?;
                if matches!(fault, Fault::StallBody) {
                    return wait_for_the_client_to_leave(&mut reader);
                }
                return Ok(());
            }
            Some(Fault::ErrorInAnswer(message)) => {
                let mut answer = right(&request);
                let lines: Vec<_> = answer.body.split_inclusive("\r\n").collect();
                answer.body = lines[..lines.len() / 2].concat()
                    + &format!(
                        "\r\n#datatype,string,string\r\n,error,reference\r\n,{message},897\r\n"
                    );
                answer
            }
            Some(Fault::Flood(status)) => {
                record(state, &request, status);
                let mut out = stream;
                let start = "{\"message\":\"";
                let length = start.len() + FLOOD + 2;
                out.write_all(
                    format!("HTTP/1.1 {status} Flood\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{start}")
                        .as_bytes(),
                )?;
                let block = vec![b'x'; 1 << 20];
                for _ in 0..FLOOD / block.len() {
                    out.write_all(&block)?;
                }
                out.write_all(b"\"}")?;
                continue;
            }
            Some(Fault::Silence) => {
                record(state, &request, 0);
                return wait_for_the_client_to_leave(&mut reader);
            }
            Some(Fault::SilenceAfterApply) => {
                right(&request);
                record(state, &request, 0);
                return wait_for_the_client_to_leave(&mut reader);
            }
            Some(Fault::PartialWrite) => {
                let mut kept = request.clone();
                let cut = kept
                    .body
                    .iter()
                    .position(|b| *b == b'\n')
                    .map_or(kept.body.len(), |i| i + 1);
                kept.body.drain(..cut);
                answer_of_partial_write(right(&kept))
            }
        };
        record(state, &request, answer.status);
        let mut out = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
        for (key, value) in &answer.headers {
            out.push_str(&format!("{key}: {value}\r\n"));
        }
        if answer.status != 204 {
            out.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
        }
        out.push_str("X-Influxdb-Version: v2.8.0\r\n\r\n");
        out.push_str(&answer.body);
        let mut stream = stream;
        stream.write_all(out.as_bytes())?;
    }
}

fn answer_of_partial_write(kept: Answer) -> Answer {
    if kept.status != 204 {
        return kept;
    }
    Answer::error(
        422,
        "unprocessable entity",
        "failure writing points to database: partial write: field type conflict: input field \"value\" on measurement \
         \"site\" is type float, already exists as type string dropped=1",
    )
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        _ => "As It Is",
    }
}

/// The fault for a request. Before the body is read, only resets of rules that do not need the body apply. A rule
/// counts a request once.
fn take_fault(state: &Mutex<State>, request: &Request, before_body: bool) -> Option<Fault> {
    let mut state = state.lock().unwrap();
    for rule in &mut state.rules {
        if matches!(rule.fault, Fault::ResetBefore) != before_body {
            continue;
        }
        if rule.times == 0 || !(rule.matches)(request) {
            continue;
        }
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        rule.times -= 1;
        return Some(rule.fault.clone());
    }
    None
}

fn record(state: &Mutex<State>, request: &Request, status: u16) {
    let mut state = state.lock().unwrap();
    if !state.forgets_requests {
        let mut request = request.clone();
        request.status = status;
        state.requests.push(request);
    }
}

/// Resets the connection: unread data and a linger time of zero make the kernel send RST.
fn reset(stream: &TcpStream) {
    let _best_effort = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

fn wait_for_the_client_to_leave(reader: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).map(|_| ())
}

pub fn read_head(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':') {
            headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query,
        headers,
        body: Vec::new(),
        bucket: String::new(),
        wire: 0,
        status: 0,
    }))
}

pub fn read_body(reader: &mut BufReader<TcpStream>, head: &Request) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if head
        .headers
        .get("transfer-encoding")
        .is_some_and(|t| t.contains("chunked"))
    {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    let length = head
        .headers
        .get("content-length")
        .and_then(|l| l.parse().ok())
        .unwrap_or(0);
    body.resize(length, 0);
    reader.read_exact(&mut body)?;
    Ok(body)
}

fn answer(state: &mut State, request: &Request) -> Answer {
    let path = request.path.as_str();
    match (request.method.as_str(), path) {
        ("GET", "/health") => {
            return Answer::json(
                200,
                json!({"name": "influxdb", "message": "ready for queries and writes", "status": "pass", "checks": [],
                       "version": "v2.8.0", "commit": "0"}),
            );
        }
        ("GET" | "HEAD", "/ping") => return Answer::no_content(),
        _ => {}
    }
    let authorized = request.headers.get("authorization").and_then(|a| {
        a.strip_prefix("Token ")
            .or_else(|| a.strip_prefix("Bearer "))
    }) == Some(TOKEN);
    if !authorized {
        return Answer::error(401, "unauthorized", "unauthorized access");
    }
    match (request.method.as_str(), path) {
        ("GET", "/api/v2/orgs") => orgs(state, request),
        ("GET", "/api/v2/buckets") => list_buckets(state, request),
        ("POST", "/api/v2/buckets") => create_bucket(state, request),
        ("POST", "/api/v2/write") => write(state, request),
        ("POST", "/api/v2/query") => query(state, request),
        _ => Answer::error(404, "not found", "path not found"),
    }
}

fn orgs(state: &State, request: &Request) -> Answer {
    match request.param("org") {
        Some(name) if name != state.org => Answer::error(
            404,
            "not found",
            format!("organization name \"{name}\" not found"),
        ),
        _ => Answer::json(
            200,
            json!({"links": {"self": "/api/v2/orgs"}, "orgs": [{"links": {"self": format!("/api/v2/orgs/{ORG_ID}")},
                   "id": ORG_ID, "name": state.org, "description": "", "createdAt": "2026-11-23T18:09:36.157758635Z",
                   "updatedAt": "2026-11-23T18:09:36.157758705Z"}]}),
        ),
    }
}

/// `None` if the organisation is correct, by name or by id. A write reads a name of 16 hexadecimal digits as an id; a list
/// of buckets does not.
fn wrong_org(state: &State, request: &Request) -> Option<Answer> {
    if request.param("orgID").is_some_and(|id| id == ORG_ID) {
        return None;
    }
    let asked = request.param("org")?;
    let is_id = request.is_write() && u64::from_str_radix(asked, 16).is_ok() && asked.len() == 16;
    let found = if is_id { ORG_ID } else { &state.org };
    (asked != found).then(|| {
        Answer::error(
            404,
            "not found",
            format!("organization name \"{asked}\" not found"),
        )
    })
}

fn bucket_json(bucket: &Bucket) -> serde_json::Value {
    let id = &bucket.id;
    json!({
        "id": id, "orgID": ORG_ID, "type": if bucket.name.starts_with('_') {"system"} else {"user"}, "name": bucket.name,
        "retentionRules": [{"type": "expire", "everySeconds": bucket.retention.shown, "shardGroupDurationSeconds": 604_800}],
        "createdAt": "2026-11-23T18:25:25.878023527Z", "updatedAt": "2026-11-23T18:25:25.878023607Z",
        "links": {
            "labels": format!("/api/v2/buckets/{id}/labels"), "members": format!("/api/v2/buckets/{id}/members"),
            "org": format!("/api/v2/orgs/{ORG_ID}"), "owners": format!("/api/v2/buckets/{id}/owners"),
            "self": format!("/api/v2/buckets/{id}"),
            "write": format!("/api/v2/write?org={ORG_ID}&bucket={id}"),
        },
        "labels": [],
    })
}

fn list_buckets(state: &State, request: &Request) -> Answer {
    if let Some(answer) = wrong_org(state, request) {
        return answer;
    }
    let found: Vec<&Bucket> = state
        .buckets
        .iter()
        .filter(|b| request.param("name").is_none_or(|n| n == b.name))
        .filter(|b| request.param("id").is_none_or(|i| i == b.id))
        .collect();
    if let (Some(name), true) = (request.param("name"), found.is_empty()) {
        return Answer::error(404, "not found", format!("bucket \"{name}\" not found"));
    }
    let number = |key: &str, otherwise: usize| {
        request
            .param(key)
            .and_then(|v| v.parse().ok())
            .unwrap_or(otherwise)
    };
    let page: Vec<_> = found
        .into_iter()
        .skip(number("offset", 0))
        .take(number("limit", 20).min(100))
        .map(bucket_json)
        .collect();
    Answer::json(
        200,
        json!({"links": {"self": "/api/v2/buckets?limit=20&offset=0"}, "buckets": page}),
    )
}

fn create_bucket(state: &mut State, request: &Request) -> Answer {
    let Ok(asked) = serde_json::from_slice::<serde_json::Value>(&request.body) else {
        return Answer::error(400, "invalid", "invalid json");
    };
    if !state.may_create {
        return Answer::error(
            401,
            "unauthorized",
            format!("write:orgs/{ORG_ID}/buckets is unauthorized"),
        );
    }
    if asked["orgID"] != ORG_ID {
        return Answer::error(400, "invalid", "id must have a length of 16 bytes");
    }
    let name = asked["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Answer::error(400, "invalid", "bucket name is empty");
    }
    if name.starts_with('_') {
        let text = format!("bucket name {name} is invalid. Buckets may not start with underscore");
        return Answer::error(400, "invalid", text);
    }
    if name.contains('"') {
        let text =
            format!("bucket name {name} is invalid. Bucket names may not include quotation marks");
        return Answer::error(400, "invalid", text);
    }
    if state.buckets.iter().any(|b| b.name == name) {
        return Answer::error(
            422,
            "conflict",
            format!("bucket with name {name} already exists"),
        );
    }
    state.create(name);
    Answer::json(201, bucket_json(state.buckets.last().expect("just made")))
}

fn write(state: &mut State, request: &Request) -> Answer {
    if state.max_wire.is_some_and(|max| request.wire > max) {
        return Answer::error(413, "request too large", "request body too large");
    }
    if let Some(answer) = wrong_org(state, request) {
        return answer;
    }
    let factor: i64 = match request.param("precision") {
        None | Some("ns") => 1,
        Some("us") => 1_000,
        Some("ms") => 1_000_000,
        Some("s") => 1_000_000_000,
        Some(_) => {
            return Answer::error(
                400,
                "invalid",
                "invalid precision; valid precision units are ns, us, ms, and s",
            );
        }
    };
    let asked = request.param("bucket").unwrap_or_default();
    let Some((bucket, retention)) = state.find(asked).map(|b| (b.id.clone(), b.retention)) else {
        return Answer::error(404, "not found", format!("bucket \"{asked}\" not found"));
    };
    if !state.may_write {
        return Answer::error(403, "forbidden", "insufficient permissions for write");
    }
    let lines = match line_protocol::parse(&request.body) {
        Ok(lines) => lines,
        Err(message) => return Answer::error(400, "invalid", message),
    };
    for line in &lines {
        if line.time.is_some_and(|t| t.checked_mul(factor).is_none()) {
            let text = format!(
                "unable to parse '{}': time outside range -9223372036854775806 - 9223372036854775806",
                line.raw
            );
            return Answer::error(400, "invalid", text);
        }
    }
    let store = state.points.entry(bucket.clone()).or_default();
    let mut conflicts = Vec::new();
    let oldest = match retention.applied {
        0 => i64::MIN,
        seconds => now_ns() - seconds * 1_000_000_000,
    };
    let mut expired = 0;
    for line in lines {
        if line.time.is_some_and(|t| t * factor < oldest) {
            expired += 1;
            continue;
        }
        let known = |name: &str| {
            let of_measurement = store.iter().filter(|((m, _), _)| *m == line.measurement);
            of_measurement
                .flat_map(|(_, times)| times.values())
                .find_map(|f| f.get(name).map(Value::kind))
        };
        // Searching all series is slow. The series itself suffices almost always.
        let key = (line.measurement.clone(), line.tags.clone());
        let conflict = line.fields.iter().find_map(|(name, value)| {
            let here = store.get(&key).and_then(|times| times.values().next()).and_then(|f| f.get(name));
            let kind = match here {
                Some(value) => Some(value.kind()),
                None if store.contains_key(&key) => None,
                None => known(name),
            };
            kind.filter(|k| *k != value.kind()).map(|k| {
                format!(
                    "input field \"{name}\" on measurement \"{}\" is type {}, already exists as type {k}",
                    line.measurement,
                    value.kind()
                )
            })
        });
        if let Some(conflict) = conflict {
            conflicts.push(conflict);
            continue;
        }
        let time = line.time.map_or_else(now_ns, |t| t * factor);
        store
            .entry(key)
            .or_default()
            .entry(time)
            .or_default()
            .extend(line.fields);
    }
    if let Some(first) = conflicts.first() {
        let text = format!(
            "failure writing points to database: partial write: field type conflict: {first} dropped={}",
            conflicts.len()
        );
        return Answer::error(422, "unprocessable entity", text);
    }
    if expired > 0 {
        let text = format!(
            "failure writing points to database: partial write: dropped {expired} points outside retention policy of \
             duration 1h0m0s - oldest point m,a=b at 2023-11-14T22:13:20Z dropped because it violates a Retention Policy \
             Lower Bound at 2026-11-23T17:25:25.931666368Z, newest point m,a=b at 2023-11-14T22:13:20Z dropped because it \
             violates a Retention Policy Lower Bound at 2026-11-23T17:25:25.931666368Z dropped={expired} for database: \
             {bucket} for retention policy: autogen"
        );
        return Answer::error(422, "unprocessable entity", text);
    }
    Answer::no_content()
}

/// Answers the queries that the program sends, and no others. Several results are sent in the opposite order of their
/// names, which is one of those that a server sends them in.
fn query(state: &State, request: &Request) -> Answer {
    const DROP: &str = "|> drop(columns: [?, ?, ?])";
    if let Some(answer) = wrong_org(state, request) {
        return answer;
    }
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let text = body["query"].as_str().unwrap_or_default();
    let parts = if text.contains(" |> yield(") {
        text.lines().collect()
    } else {
        vec![text]
    };
    let mut results = BTreeMap::new();
    for part in parts {
        let Some(mut query) = Query::parse(part) else {
            return Answer::error(400, "invalid", format!("error in the query {text}"));
        };
        let mut name = "_result".to_owned();
        let (mut is_of_channels, mut selected) = (false, Selected::All);
        if let Some(shape) = query.shape.strip_suffix(" |> yield(name: ?)") {
            name = query.strings.pop().expect("a name");
            let mut shape = shape.to_owned();
            for (selector, points) in [("first", Selected::First), ("last", Selected::Last)] {
                let with_selector = format!(" |> {selector}() {DROP}");
                if let Some(start) = shape.strip_suffix(&with_selector) {
                    (shape, selected) = (format!("{start} {DROP}"), points);
                }
            }
            is_of_channels = shape.contains(" and exists r.channel_id)");
            query.shape = shape.replace(" and exists r.channel_id)", ")");
        }
        match result(state, &query, &name, is_of_channels, selected) {
            Ok(tables) => results.insert(name, tables),
            Err(answer) => return answer,
        };
    }
    Answer {
        status: 200,
        headers: vec![("Content-Type", "text/csv; charset=utf-8".into())],
        body: results.into_values().rev().collect(),
    }
}

/// Which points of each series are in a result.
#[derive(Clone, Copy)]
enum Selected {
    All,
    First,
    Last,
}

/// A result of a query as annotated CSV.
fn result(
    state: &State,
    query: &Query,
    name: &str,
    is_of_channels: bool,
    selected: Selected,
) -> Result<String, Answer> {
    const POINTS: &str =
        "from(bucket: ?) |> range(start: #, stop: #) |> filter(fn: (r) => r._measurement == ?)";
    const DROP: &str = "|> drop(columns: [?, ?, ?])";
    let shape = &query.shape;
    let strings: Vec<_> = query.strings.iter().map(String::as_str).collect();
    let is_in_schema = shape.starts_with("import ?\nschema.");
    let bucket = strings[usize::from(is_in_schema)];
    let Some(bucket) = state.buckets.iter().find(|b| b.name == bucket) else {
        return Err(Answer::error(
            404,
            "not found",
            format!("could not find bucket \"{bucket}\""),
        ));
    };
    let nanos = |seconds: i64| seconds.saturating_mul(1_000_000_000);
    let times = nanos(query.numbers[0])..nanos(query.numbers[1]);
    let series: Vec<_> = state.points.get(&bucket.id).into_iter().flatten().collect();
    let of_master = |master: Option<&str>| {
        let tables = series.iter().filter(|((measurement, tags), _)| {
            measurement == strings[1]
                && tags.get("device_master_sn").map(String::as_str) == master
                && (!is_of_channels || tags.contains_key("channel_id"))
        });
        tables
            .map(|((_, tags), points)| tables_of(tags, points, &times, name, selected))
            .collect::<String>()
    };
    let tag_values = |values: &std::collections::BTreeSet<&str>| {
        let rows = values
            .iter()
            .map(|value| format!(",_result,0,{}\r\n", csv_cell(value)));
        format!(
            "#datatype,string,long,string\r\n,result,table,_value\r\n{}\r\n",
            rows.collect::<String>()
        )
    };
    Ok(match (shape.as_str(), &strings[..]) {
        (s, [_, _, master, "_start", "_stop", "_measurement"])
            if s == format!("{POINTS} |> filter(fn: (r) => r.device_master_sn == ?) {DROP}") =>
        {
            of_master(Some(master))
        }
        (s, [_, _, "_start", "_stop", "_measurement"])
            if s == format!(
                "{POINTS} |> filter(fn: (r) => not exists r.device_master_sn) {DROP}"
            ) =>
        {
            of_master(None)
        }
        (s, [_, _, "campaign", campaign, "_field", _, "_field", _, ..])
            if s == format!(
                "{POINTS} |> filter(fn: (r) => r[?] == ? and r.channel_id =~ /^V_/ and (r[?] == ? or r[?] == ?)) {DROP}"
            ) =>
        {
            let tables = series.iter().filter(|((measurement, tags), _)| {
                let has =
                    |key: &str, is: &dyn Fn(&str) -> bool| tags.get(key).is_some_and(|v| is(v));
                measurement == strings[1]
                    && has("campaign", &|value| value == *campaign)
                    && has("channel_id", &|value| value.starts_with("V_"))
            });
            tables
                .map(|((_, tags), points)| tables_of(tags, points, &times, name, selected))
                .collect()
        }
        (s, [_, measurement]) if s == format!("{POINTS} |> count() |> group() |> sum()") => {
            let points = series.iter().filter(|((m, _), _)| m == measurement);
            let count: usize = points
                .flat_map(|(_, points)| points.range(times.clone()))
                .map(|(_, fields)| fields.len())
                .sum();
            format!(
                "#datatype,string,long,long\r\n,result,table,_value\r\n,_result,0,{count}\r\n\r\n"
            )
        }
        (
            "import ?\nschema.tagValues(bucket: ?, tag: ?, start: #, stop: #)",
            ["influxdata/influxdb/schema", _, "_measurement"],
        ) => tag_values(
            &series
                .iter()
                .map(|((measurement, _), _)| measurement.as_str())
                .collect(),
        ),
        (
            "import ?\nschema.tagValues(bucket: ?, tag: ?, predicate: (r) => r._measurement == ?, start: #, stop: #)",
            ["influxdata/influxdb/schema", _, tag, measurement],
        ) => {
            let of_measurement = series.iter().filter(|((m, _), _)| m == measurement);
            tag_values(
                &of_measurement
                    .filter_map(|((_, tags), _)| Some(tags.get(*tag)?.as_str()))
                    .collect(),
            )
        }
        (
            "import ?\nschema.tagKeys(bucket: ?, predicate: (r) => r._measurement == ?, start: #, stop: #)",
            ["influxdata/influxdb/schema", _, measurement],
        ) => {
            let of_measurement = series.iter().filter(|((m, _), _)| m == measurement);
            let tags = of_measurement.flat_map(|((_, tags), _)| tags.keys().map(String::as_str));
            let columns = ["_start", "_stop", "_field", "_measurement"];
            tag_values(&tags.chain(columns).collect())
        }
        (
            "from(bucket: ?) |> range(start: #, stop: #) \
             |> filter(fn: (r) => exists r.channel_id and not exists r.device and r._field == ?) |> last() \
             |> keep(columns: [?, ?]) |> group(columns: [?]) |> count(column: ?)",
            [
                _,
                "value",
                "_measurement",
                "channel_id",
                "_measurement",
                "channel_id",
            ],
        ) => {
            let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
            for ((measurement, tags), _) in &series {
                if tags.contains_key("channel_id") && !tags.contains_key("device") {
                    *counts.entry(measurement).or_default() += 1;
                }
            }
            let rows = counts.iter().map(|(measurement, count)| {
                format!(",_result,0,{},{count}\r\n", csv_cell(measurement))
            });
            format!(
                "#datatype,string,long,string,long\r\n,result,table,_measurement,channel_id\r\n{}\r\n",
                rows.collect::<String>()
            )
        }
        _ => {
            return Err(Answer::error(
                400,
                "invalid",
                format!("unknown query {shape}"),
            ));
        }
    })
}

/// A Flux query, with `?` for its strings and `#` for its numbers.
struct Query {
    shape: String,
    strings: Vec<String>,
    numbers: Vec<i64>,
}

impl Query {
    /// Returns `None` for a string that does not end or has an expression in it.
    fn parse(text: &str) -> Option<Self> {
        let (mut shape, mut strings, mut numbers) = (String::new(), Vec::new(), Vec::new());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' => {
                    let mut string = String::new();
                    loop {
                        match chars.next()? {
                            '"' => break,
                            '$' if chars.peek() == Some(&'{') => return None,
                            '\\' => string.push(match chars.next()? {
                                'n' => '\n',
                                'r' => '\r',
                                't' => '\t',
                                c @ ('"' | '\\') => c,
                                'x' if chars.next()? == '2' && chars.next()? == '4' => '$',
                                _ => return None,
                            }),
                            c => string.push(c),
                        }
                    }
                    strings.push(string);
                    shape.push('?');
                }
                '-' | '0'..='9' => {
                    let mut number = c.to_string();
                    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                        number.push(digit);
                    }
                    numbers.push(number.parse().ok()?);
                    shape.push('#');
                }
                c => shape.push(c),
            }
        }
        (numbers.len() == 2).then_some(Self {
            shape,
            strings,
            numbers,
        })
    }
}

/// The points of a series as annotated CSV, a table for each field.
fn tables_of(
    tags: &BTreeMap<String, String>,
    points: &Times,
    times: &std::ops::Range<i64>,
    result: &str,
    selected: Selected,
) -> String {
    let mut rows: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    let values: String = tags
        .values()
        .map(|value| format!(",{}", csv_cell(value)))
        .collect();
    for (time, fields) in points.range(times.clone()) {
        let time = chrono::DateTime::from_timestamp_nanos(*time)
            .to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
        for (field, value) in fields {
            let (kind, value) = match value {
                Value::Float(v) => ("double", v.to_string()),
                Value::Int(v) => ("long", v.to_string()),
                Value::Bool(v) => ("boolean", v.to_string()),
                Value::Text(v) => ("string", csv_cell(v)),
            };
            let row = format!(",{result},0,{time},{value},{}{values}\r\n", csv_cell(field));
            rows.entry((field.as_str(), kind)).or_default().push(row);
        }
    }
    let names: String = tags
        .keys()
        .map(|key| format!(",{}", csv_cell(key)))
        .collect();
    let types = ",string".repeat(tags.len());
    let tables = rows.iter().map(|((_, kind), rows)| {
        let rows = match selected {
            Selected::All => &rows[..],
            Selected::First => &rows[..1],
            Selected::Last => &rows[rows.len() - 1..],
        };
        let rows = rows.concat();
        format!(
            "#datatype,string,long,dateTime:RFC3339,{kind},string{types}\r\n,result,table,_time,_value,_field{names}\r\n{rows}\r\n"
        )
    });
    tables.collect()
}

fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn now_ns() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as i64)
}

mod tests {
    use super::*;

    fn ask(double: &Double, head: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(double.address).expect("listening");
        write!(
            stream,
            "{head} HTTP/1.1\r\nHost: x\r\nAuthorization: Token {TOKEN}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("sent");
        stream.shutdown(Shutdown::Write).expect("half closed");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    #[test]
    fn the_double_answers_as_recorded() {
        let double = Double::start();
        let missing = ask(&double, "GET /api/v2/buckets?name=none&org=powerview", "");
        assert!(
            missing.starts_with("HTTP/1.1 404")
                && missing.contains("bucket \\\"none\\\" not found"),
            "{missing}"
        );
        let create = json!({"orgID": ORG_ID, "name": "acme rec"}).to_string();
        assert!(ask(&double, "POST /api/v2/buckets", &create).starts_with("HTTP/1.1 201"));
        let again = ask(&double, "POST /api/v2/buckets", &create);
        assert!(
            again.starts_with("HTTP/1.1 422") && again.contains("\"conflict\""),
            "{again}"
        );
        let target = "POST /api/v2/write?org=powerview&precision=s&bucket=acme%20rec";
        assert!(
            ask(
                &double,
                target,
                "m,a=b value=1 1700000000\nm,a=b value=2 1700000000\n"
            )
            .starts_with("HTTP/1.1 204")
        );
        let points = double.points("acme rec");
        assert_eq!(points.len(), 1);
        assert_eq!(points[0].fields["value"], Value::Float(2.0));
        assert_eq!(points[0].time, Some(1_700_000_000_000_000_000));
        let empty_tag = ask(&double, target, "m,a= value=1 1700000000\n");
        assert!(
            empty_tag.starts_with("HTTP/1.1 400") && empty_tag.contains("missing tag value"),
            "{empty_tag}"
        );
        let conflict = ask(&double, target, "m,a=b value=\"x\" 1700000001\n");
        assert!(
            conflict.starts_with("HTTP/1.1 422") && conflict.contains("partial write"),
            "{conflict}"
        );
    }

    #[test]
    fn the_double_shows_twenty_buckets_at_a_time() {
        let double = Double::start();
        for i in 0..25 {
            double.add_bucket(&format!("b{i}"));
        }
        let first = ask(&double, "GET /api/v2/buckets?org=powerview", "");
        assert!(
            first.contains("\"b17\"") && !first.contains("\"b18\""),
            "{first}"
        );
        assert!(ask(&double, "GET /api/v2/buckets?org=powerview&name=b24", "").contains("\"b24\""));
    }
}
