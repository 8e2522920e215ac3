//! Compares the whole program with a client that sends the same prepared bodies, in alternating runs. The difference
//! is the time that the program needs beyond that of the server. `powerview verify` is compared with a client that reads the
//! same points.
//!
//!     cargo bench --bench end_to_end                      with a mock server that accepts every write
//!     INFLUXD_BIN=... cargo bench --bench end_to_end      also with a real server
//!     cargo bench --bench end_to_end -- "one named file"  one scenario

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const TOKEN: &str = "bench-token";
const RUNS: usize = 5;
const HOOK_RUNS: usize = 41;

/// The numbers of requests in flight that the program uses for one file and for many devices.
const IN_FLIGHT_ONE_FILE: usize = 3;
const IN_FLIGHT_DEVICES: usize = 2;

fn main() {
    let binary = built_binary();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut servers = vec![("a mock server", start_mock_server())];
    let real = std::env::var_os("INFLUXD_BIN")
        .map(|influxd| RealServer::start(Path::new(&influxd), dir.path()));
    match &real {
        Some(real) => servers.push(("a real server", real.address.clone())),
        None => println!("skipping the real server: INFLUXD_BIN is not set"),
    }
    // Scenarios named on the command line, or all of them.
    let names: Vec<_> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let wanted = |scenario: &str| {
        names.is_empty() || names.iter().any(|name| scenario.contains(name.as_str()))
    };
    // First, because the other scenarios leave points that its files do not have.
    if let Some(real) = real.as_ref().filter(|_| wanted("verify")) {
        bench_verify(&binary, dir.path(), &real.address);
    }
    for (server, address) in servers.iter().filter(|_| wanted("one named file")) {
        bench_hook_call(&binary, dir.path(), server, address);
    }
    for (scenario, devices, files, rows, in_flight) in [
        ("one file of 20,000 x 30", 1, 1, 20_000, IN_FLIGHT_ONE_FILE),
        (
            "40 devices with 50 day-files of 143 x 30",
            40,
            50,
            143,
            IN_FLIGHT_DEVICES,
        ),
    ] {
        if !wanted(scenario) {
            continue;
        }
        let bodies = bodies(&binary, dir.path(), devices, files, rows);
        for (server, address) in &servers {
            let mut pairs = Vec::new();
            for run in 0..=RUNS {
                let program = || run_program(&binary, dir.path(), address, devices, files, rows);
                let prepared = || send_prepared(address, &bodies, in_flight);
                // The order alternates, so that it does not favour one of the two.
                let (program, prepared) = if run % 2 == 0 {
                    let prepared = prepared();
                    (program(), prepared)
                } else {
                    (program(), prepared())
                };
                // The first pair warms up.
                if run > 0 {
                    pairs.push((program, prepared));
                }
            }
            print_ratio(scenario, server, "prepared bodies", &mut pairs);
        }
    }
}

/// Compares the points of a real server with the files of 336 days, and compares that with a client that reads the same
/// points and throws them away.
fn bench_verify(binary: &Path, dir: &Path, address: &str) {
    let (devices, days, rows) = (2, 336, 144);
    run_program(binary, dir, address, devices, days, rows);
    let data = dir.join("data");
    let mut pairs = Vec::new();
    for run in 0..=RUNS {
        let start = Instant::now();
        let status = command(binary, dir, address, Some("verify"), &data)
            .stdout(Stdio::null())
            .status()
            .expect("the program starts");
        let program = start.elapsed();
        assert!(status.success(), "the points differ from the files");
        let start = Instant::now();
        for device in 0..devices {
            read_points(address, device);
        }
        // The first pair warms up.
        if run > 0 {
            pairs.push((program, start.elapsed()));
        }
    }
    let points = devices * days * rows * 30;
    let scenario = format!("verify {points} points in {} files", devices * days);
    print_ratio(&scenario, "a real server", "reading them", &mut pairs);
}

/// Reads all points of a device.
fn read_points(address: &str, device: usize) {
    let query = format!(
        r#"{{"query":"from(bucket: \"acme\") |> range(start: 0) |> filter(fn: (r) => r.device_master_sn == \"{device:08}\")"}}"#
    );
    let mut stream = TcpStream::connect(address).expect("a connection");
    // The answer to HTTP/1.0 ends with the connection.
    let request = format!(
        "POST /api/v2/query?org=bench HTTP/1.0\r\nAuthorization: Token {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{query}",
        query.len()
    );
    stream
        .write_all(request.as_bytes())
        .expect("the query is sent");
    let mut answer = BufReader::new(stream);
    let (first, _) = read_head(&mut answer).expect("an answer");
    assert!(first.contains(" 200"), "{first}");
    std::io::copy(&mut answer, &mut std::io::sink()).expect("the points");
}

/// Ingests a named day file, as the upload hook does, and compares it with a client that only sends the same three
/// requests.
fn bench_hook_call(binary: &Path, dir: &Path, server: &str, address: &str) {
    let (mut requests, mut whole) = (Vec::new(), Vec::new());
    let body = bodies(binary, dir, 1, 1, 143).remove(0);
    for run in 0..=HOOK_RUNS {
        let data = make_tree(dir, 1, 1, 143);
        let file = data.join("acme/site/00000000/0000.tsv");
        let start = Instant::now();
        let status = command(binary, dir, address, None, &data)
            .arg("--tsvFile")
            .arg(file)
            .status()
            .expect("the program starts");
        let took = start.elapsed();
        assert!(status.success(), "the program failed");
        let meta = meta_lines(dir, run);
        let start = Instant::now();
        let mut connection = Connection::new(address);
        connection.request("GET /api/v2/buckets?name=acme&org=bench", "", b"", " 200");
        let write = "POST /api/v2/write?org=bench&bucket=acme&precision";
        connection.request(
            &format!("{write}=s"),
            "Content-Encoding: gzip\r\n",
            &body,
            " 204",
        );
        connection.request(&format!("{write}=ns"), "", meta.as_bytes(), " 204");
        if run > 0 {
            requests.push(start.elapsed());
            whole.push(took);
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[HOOK_RUNS / 2].as_secs_f64() * 1e3
    };
    let (whole, requests) = (median(&mut whole), median(&mut requests));
    println!(
        "one named file of 143 x 30, {server}: powerview {whole:.1} ms, requests alone {requests:.1} ms, difference {:.1} ms (medians of {HOOK_RUNS} alternating runs)",
        whole - requests
    );
}

/// The meta points of a run with one file, from the run that prepared the bodies. `run` makes the timestamps unique.
fn meta_lines(dir: &Path, run: usize) -> String {
    let lines = std::fs::read_to_string(dir.join("lp/powerview_meta.lp")).expect("the meta points");
    lines
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(points, time)| {
            let time: usize = time.parse().expect("nanoseconds");
            format!("{points} {}\n", time + run)
        })
        .collect()
}

/// Prints the median times of a scenario and the ratio of the pairs.
fn print_ratio(scenario: &str, server: &str, other: &str, pairs: &mut [(Duration, Duration)]) {
    let mut ratios: Vec<_> = pairs
        .iter()
        .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    println!(
        "{scenario}, {server}: powerview {:.2} s, {other} {:.2} s, ratio {:.2} ({:.2} to {:.2}, {} pairs)",
        median(pairs.iter().map(|p| p.0).collect()),
        median(pairs.iter().map(|p| p.1).collect()),
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1],
        pairs.len()
    );
}

/// The path of the program, which cargo builds together with the benches.
fn built_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_powerview"))
}

/// A logger file with 30 channels and rows at intervals of ten minutes.
fn logger_file(device: usize, day: usize, rows: usize) -> String {
    let mut text = format!("{device:08}");
    for channel in 0..30 {
        let _ = write!(
            text,
            "\t{:08}",
            if channel < 6 {
                device
            } else {
                4_000_000 + device * 10 + channel / 6
            }
        );
    }
    text.push_str("\nMV_T302_V002");
    for channel in 0..30 {
        let _ = write!(text, "\tVoie{} W", channel % 6 + 1);
    }
    text.push('\n');
    let mut seed = (device * 1000 + day) as u64 + 1;
    for row in 0..rows {
        let (date, minute) = (day + row / 144, row % 144 * 10);
        let (month, date) = (date / 28 % 12 + 1, date % 28 + 1);
        let _ = write!(
            text,
            "{date:02}/{month:02}/25 {:02}:{:02}:00",
            minute / 60,
            minute % 60
        );
        for _ in 0..30 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let _ = write!(text, "\t{}.{}", seed >> 52, (seed >> 40) % 10);
        }
        text.push('\n');
    }
    text
}

/// Creates the data folder for one run.
fn make_tree(dir: &Path, devices: usize, files: usize, rows: usize) -> PathBuf {
    let data = dir.join("data");
    let _ = std::fs::remove_dir_all(&data);
    for device in 0..devices {
        let folder = data.join(format!("acme/site/{device:08}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        for day in 0..files {
            std::fs::write(
                folder.join(format!("{day:04}.tsv")),
                logger_file(device, day, rows),
            )
            .expect("a file");
        }
    }
    data
}

/// The command that runs the program with the settings of a server.
fn command(
    binary: &Path,
    dir: &Path,
    address: &str,
    subcommand: Option<&str>,
    data: &Path,
) -> Command {
    let mut command = Command::new(binary);
    command
        .args(subcommand)
        .args(["--quiet", "--timezone", "Europe/Paris", "--dataFolder"])
        .arg(data)
        .env_clear()
        .env("INFLUXDB_HOST", format!("http://{address}"))
        .env("INFLUXDB_ADMIN_TOKEN", TOKEN)
        .env("INFLUXDB_ORG", "bench")
        .env("TSV_REPORT_DIR", dir.join("reports"))
        // The hourly summaries begin when a file has moved, and the counterpart sends none.
        .env("TSV_ROLLUP", "0")
        .current_dir(dir);
    command
}

/// Measures one run of the program. Creating the data folder is not included.
fn run_program(
    binary: &Path,
    dir: &Path,
    address: &str,
    devices: usize,
    files: usize,
    rows: usize,
) -> Duration {
    let data = make_tree(dir, devices, files, rows);
    // Write back the new files first, so that this does not happen during the measurement.
    rustix::fs::sync();
    let start = Instant::now();
    let status = command(binary, dir, address, None, &data)
        .args(["--jobs", "2"])
        .status()
        .expect("the program starts");
    let took = start.elapsed();
    assert!(status.success(), "the program failed");
    for device in 0..devices {
        let parsed = data.join(format!("acme/site/{device:08}/parsed"));
        let count = std::fs::read_dir(parsed)
            .expect("the ingested files")
            .count();
        assert_eq!(count, files, "device {device}");
    }
    took
}

/// The request bodies that the program sends: its line protocol in batches of the same size, with the same compression.
fn bodies(binary: &Path, dir: &Path, devices: usize, files: usize, rows: usize) -> Vec<Vec<u8>> {
    let data = make_tree(dir, devices, files, rows);
    let lines = dir.join("lp");
    let _ = std::fs::remove_dir_all(&lines);
    let status = Command::new(binary)
        .args([
            "--quiet",
            "--timezone",
            "Europe/Paris",
            "--jobs",
            "1",
            "--dataFolder",
        ])
        .arg(&data)
        .arg("--line-protocol-dir")
        .arg(&lines)
        .env_clear()
        .env("TSV_REPORT_DIR", dir.join("reports"))
        .current_dir(dir)
        .status()
        .expect("the program starts");
    assert!(status.success(), "the program failed");
    let text = std::fs::read(lines.join("acme.lp")).expect("the line protocol");
    let per_body = (rows * 30).min(10_000 / 30 * 30 + 30);
    let mut lines = text.split_inclusive(|b| *b == b'\n').peekable();
    let mut bodies = Vec::new();
    while lines.peek().is_some() {
        let body: Vec<u8> = lines.by_ref().take(per_body).flatten().copied().collect();
        bodies.push(powerview::points::compressed(&body).expect("memory"));
    }
    bodies
}

/// Measures sending prepared bodies over `in_flight` connections.
fn send_prepared(address: &str, bodies: &[Vec<u8>], in_flight: usize) -> Duration {
    let next = Mutex::new(bodies.iter());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..in_flight {
            scope.spawn(|| {
                let mut connection = Connection::new(address);
                loop {
                    let Some(body) = next.lock().expect("a lock").next() else {
                        return;
                    };
                    let write = "POST /api/v2/write?bucket=acme&org=bench&precision=s";
                    connection.request(write, "Content-Encoding: gzip\r\n", body, " 204");
                }
            });
        }
    });
    start.elapsed()
}

/// A connection to a server for sequential requests.
struct Connection {
    address: String,
    stream: TcpStream,
    responses: BufReader<TcpStream>,
}

impl Connection {
    fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self {
            address: address.to_owned(),
            responses: BufReader::new(stream.try_clone().expect("a socket")),
            stream,
        }
    }

    /// Sends a request and reads its response, which must have the given status.
    fn request(&mut self, target: &str, headers: &str, body: &[u8], status: &str) {
        let head = format!(
            "{target} HTTP/1.1\r\nHost: {}\r\nAuthorization: Token {TOKEN}\r\n{headers}Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        self.stream
            .write_all(&[head.as_bytes(), body].concat())
            .expect("the request is sent");
        let (first, length) = read_head(&mut self.responses).expect("a response");
        assert!(first.contains(status), "{first}");
        let body = std::io::copy(
            &mut self.responses.by_ref().take(length),
            &mut std::io::sink(),
        );
        assert_eq!(body.expect("a body"), length);
    }
}

/// Reads the head of a request or a response. Returns its first line and the length of its body, or `None` at the end.
fn read_head(stream: &mut impl BufRead) -> Option<(String, u64)> {
    let (mut line, mut first, mut length) = (String::new(), String::new(), 0);
    loop {
        line.clear();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if first.is_empty() {
            first.clone_from(&line);
        }
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            return Some((first, length));
        }
    }
}

/// Starts a server that has the bucket and accepts every write. Returns its address.
fn start_mock_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Responds to all requests of a connection.
fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(mut out) = stream.try_clone() else {
        return;
    };
    let mut requests = BufReader::new(stream);
    loop {
        let Some((first, length)) = read_head(&mut requests) else {
            return;
        };
        if std::io::copy(&mut requests.by_ref().take(length), &mut std::io::sink()).is_err() {
            return;
        }
        let response = if first.starts_with("GET") {
            let json =
                r#"{"buckets":[{"id":"0000000000000001","name":"acme","retentionRules":[]}]}"#;
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
                json.len()
            )
        } else {
            "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
        };
        if out.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}

/// A real server with its own data folder. It is killed on drop.
struct RealServer {
    child: Child,
    address: String,
}

impl RealServer {
    fn start(influxd: &Path, dir: &Path) -> Self {
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a port")
            .to_string();
        let at = |name: &str| dir.join("influx").join(name);
        std::fs::create_dir_all(at("")).expect("a folder");
        let child = Command::new(influxd)
            .args(["--http-bind-address", &address, "--reporting-disabled"])
            .arg("--bolt-path")
            .arg(at("bolt"))
            .arg("--sqlite-path")
            .arg(at("sqlite"))
            .arg("--engine-path")
            .arg(at("engine"))
            .env("INFLUXD_CONFIG_PATH", at(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("influxd starts");
        let real = Self { child, address };
        let setup = format!(
            r#"{{"username":"bench","password":"bench-password","org":"bench","bucket":"acme","token":"{TOKEN}","retentionPeriodSeconds":0}}"#
        );
        let deadline = Instant::now() + Duration::from_secs(30);
        while real.post("/api/v2/setup", &setup) != Some(201) {
            assert!(Instant::now() < deadline, "influxd does not respond");
            std::thread::sleep(Duration::from_millis(100));
        }
        real
    }

    fn post(&self, path: &str, body: &str) -> Option<u16> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        response.split_whitespace().nth(1)?.parse().ok()
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
