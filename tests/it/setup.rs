//! `powerview-setup`, with doubles of the servers and of the programs that change the machine. With `INFLUXD_BIN` and
//! `SFTPGO_BIN`, also with real servers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};
use tiny_http::{Header, Method, Request, Response, Server};

use crate::grafana_double;
use crate::harness::put_program;
use crate::real_influx::RealInflux;
use crate::skipped::{installed, skipped};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

// --- doubles of the servers ------------------------------------------------------------------------------------

/// What the double of InfluxDB, Grafana and SFTPGo knows.
#[derive(Default)]
struct State {
    /// The admin token, once the server is set up.
    token: Option<String>,
    buckets: Vec<String>,
    /// The tokens that read a bucket, by their ids.
    read_tokens: BTreeMap<String, String>,
    /// Whether InfluxDB and Grafana answer.
    is_up: bool,
    /// Name and password of SFTPGo's administrator.
    administrator: Option<(String, String)>,
    /// The bodies of the requests that changed something.
    changes: Vec<Value>,
}

/// The three servers on one port. They stop on drop.
struct Servers {
    url: String,
    state: Arc<Mutex<State>>,
    server: Arc<Server>,
}

impl Servers {
    /// InfluxDB is not set up, and SFTPGo does not run.
    fn start(sftpgo: PathBuf) -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").expect("a port"));
        let url = format!("http://{}", server.server_addr());
        let state = Arc::new(Mutex::new(State {
            is_up: true,
            ..State::default()
        }));
        let (listener, shared) = (server.clone(), state.clone());
        thread::spawn(move || {
            for request in listener.incoming_requests() {
                answer(request, &shared, &sftpgo);
            }
        });
        Self { url, state, server }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the double panicked")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.server.unblock();
    }
}

const ORG_ID: &str = "6f9dd2f6ebb29ea7";

/// Answers a request. SFTPGo runs if the file `sftpgo` exists, and read its first administrator from there.
fn answer(mut request: Request, state: &Mutex<State>, sftpgo: &Path) {
    let mut body = String::new();
    let _ = request.as_reader().read_to_string(&mut body);
    let body: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
    let authorization = request
        .headers()
        .iter()
        .find(|h| h.field.equiv("Authorization"))
        .map(|h| h.value.to_string())
        .unwrap_or_default();
    let url = request.url().to_owned();
    let path = url.split('?').next().unwrap_or_default();
    let mut state = state.lock().expect("no thread of the double panicked");

    let started = fs::read_to_string(sftpgo).ok();
    if let (None, Some(settings)) = (&state.administrator, &started) {
        let value = |name: &str| {
            let line = settings
                .lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix('='));
            line.map(|l| l.trim_matches('\'').to_owned())
        };
        state.administrator =
            value("SFTPGO_DEFAULT_ADMIN_USERNAME").zip(value("SFTPGO_DEFAULT_ADMIN_PASSWORD"));
    }
    let is_admin = state
        .token
        .as_ref()
        .is_some_and(|t| authorization == format!("Token {t}"));
    let is_reader = state
        .read_tokens
        .values()
        .any(|t| authorization == format!("Token {t}"));
    let mut location = None;
    let (status, shown) = match (request.method(), path) {
        (_, "/health" | "/api/health") => (if state.is_up { 200 } else { 503 }, json!({})),
        (Method::Get, "/api/v2/setup") => (200, json!({"allowed": state.token.is_none()})),
        (Method::Post, "/api/v2/setup") if state.token.is_none() => {
            state.token = body["token"].as_str().map(str::to_owned);
            state.buckets = vec![body["bucket"].as_str().expect("a bucket").to_owned()];
            (201, json!({"org": {"id": ORG_ID}}))
        }
        (_, "/healthz") => (if started.is_some() { 200 } else { 503 }, json!("ok")),
        (_, "/web/admin/login") => {
            location = state.administrator.is_none().then_some("/web/admin/setup");
            (if location.is_some() { 302 } else { 200 }, json!({}))
        }
        (_, "/api/v2/token") => {
            let credentials = state
                .administrator
                .as_ref()
                .map(|(n, p)| format!("{n}:{p}"));
            let accepted = credentials.is_some_and(|c| authorization == basic(&c));
            (if accepted { 200 } else { 401 }, json!({}))
        }
        (Method::Get, "/api/v2/buckets") if is_reader => bucket(&state, &url),
        _ if !is_admin => (401, json!({"code": "unauthorized"})),
        (Method::Get, "/api/v2/orgs") if url.ends_with("?org=powerview") => (
            200,
            json!({"links": {"self": "/api/v2/orgs"}, "orgs": [{"id": ORG_ID, "name": "powerview"}]}),
        ),
        (Method::Get, "/api/v2/buckets") => bucket(&state, &url),
        (Method::Post, "/api/v2/buckets") => {
            let name = body["name"].as_str().expect("a name").to_owned();
            state.buckets.push(name);
            (201, json!({"id": "0000000000000001"}))
        }
        (Method::Post, "/api/v2/authorizations") => {
            let created = state.changes.iter().filter(|c| c["permissions"].is_array());
            let number = created.count();
            let (id, token) = (format!("{number:016x}"), format!("reader-{number}=="));
            state.read_tokens.insert(id.clone(), token.clone());
            (201, json!({"id": id, "token": token}))
        }
        (Method::Get, "/api/v2/authorizations") => (200, authorizations(&state)),
        (Method::Delete, path) => {
            let id = path.strip_prefix("/api/v2/authorizations/");
            let deleted = id.and_then(|id| state.read_tokens.remove(id));
            (if deleted.is_some() { 204 } else { 404 }, json!({}))
        }
        _ => (404, json!({"code": "not found"})),
    };
    if !matches!(request.method(), Method::Get) && status < 300 {
        state.changes.push(body);
    }
    drop(state);
    let mut response = Response::from_string(shown.to_string()).with_status_code(status);
    if let Some(location) = location {
        response.add_header(Header::from_bytes("Location", location).expect("a header"));
    }
    let _ = request.respond(response);
}

fn bucket(state: &State, url: &str) -> (u16, Value) {
    let name = url.rsplit("name=").next().unwrap_or_default();
    match state.buckets.iter().position(|b| b == name) {
        Some(n) => (
            200,
            json!({"buckets": [{"id": format!("{:016x}", n + 1), "orgID": ORG_ID, "name": name}]}),
        ),
        None => (404, json!({"code": "not found"})),
    }
}

/// The list of tokens in the form of InfluxDB 2.9, which does not show the tokens.
fn authorizations(state: &State) -> Value {
    let resource = |id: &str| json!({"type": "buckets", "id": id, "orgID": ORG_ID});
    let authorization = |id: &str, description: &str| {
        json!({
            "id": id,
            "token": "redacted",
            "status": "active",
            "description": description,
            "orgID": ORG_ID,
            "permissions": [{"action": "read", "resource": resource("00000000000000b1")}],
        })
    };
    let readers = state.read_tokens.keys();
    let readers = readers.map(|id| authorization(id, "Grafana: réception"));
    let all: Vec<_> = std::iter::once(authorization("00000000000000f1", "admin's Token"))
        .chain(readers)
        .chain([authorization("00000000000000f2", "another")])
        .collect();
    json!({"links": {"self": "/api/v2/authorizations"}, "authorizations": all})
}

/// The header of basic authentication.
fn basic(credentials: &str) -> String {
    let mut base64 = Command::new("base64")
        .arg("-w0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("base64 starts");
    let mut input = base64.stdin.take().expect("the input");
    std::io::Write::write_all(&mut input, credentials.as_bytes()).expect("a write");
    drop(input);
    let output = base64.wait_with_output().expect("base64 ends");
    format!("Basic {}", String::from_utf8_lossy(&output.stdout))
}

// --- the place -------------------------------------------------------------------------------------------------

/// The programs that the script may call as they are. Each is called by a wrapper that records its arguments.
const PROGRAMS: [&str; 26] = [
    "bash", "cat", "chgrp", "chmod", "curl", "cut", "dirname", "flock", "getent", "grep", "id",
    "install", "md5sum", "mkdir", "mktemp", "mv", "od", "readlink", "rm", "sed", "sort", "stat",
    "tr", "uname", "sleep", "touch",
];

/// Mode, time of the last change and content of a file.
type File = (u32, (i64, i64), Vec<u8>);

/// A server before its setup: a checkout, the folders of the system, and doubles of its programs in the only folder of
/// PATH.
struct Place {
    dir: tempfile::TempDir,
    servers: Servers,
}

impl Place {
    /// Without a container engine, firewall, systemd, Caddy and SFTPGo. Skips the calling test without curl.
    fn bare() -> Option<Self> {
        if !installed("curl", "curl") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        for folder in [
            "base/bin",
            "bin",
            "root/etc",
            "root/run",
            "sftpgo/data",
            "tmp",
            "unit",
        ] {
            fs::create_dir_all(path(folder)).expect("a folder");
        }
        for file in [
            "on-upload.sh",
            "powerview-setup",
            ".env.sample",
            "compose.yaml",
        ] {
            fs::copy(repository().join(file), path("base").join(file)).expect("a copy");
        }
        for folder in ["deploy", "grafana-automation"] {
            symlink(repository().join(folder), path("base").join(folder)).expect("a link");
        }
        symlink(
            env!("CARGO_BIN_EXE_powerview"),
            path("base/bin/the-program"),
        )
        .expect("a link");
        let place = Self {
            servers: Servers::start(path("unit/sftpgo.service.started")),
            dir,
        };
        // The check is recorded. tests/it/check.rs tests what it does.
        put_program(
            &place.path("base/bin/powerview"),
            &format!(
                "#!/bin/bash\ncase $1 in check) echo \"powerview $*\" >>{0}/calls ;; *) exec {0}/base/bin/the-program \"$@\" ;; esac\n",
                place.dir.path().display()
            ),
        );
        for program in PROGRAMS {
            let real = ["/usr/bin", "/bin"].map(|f| Path::new(f).join(program));
            let real = real.iter().find(|p| p.exists());
            let real = real.unwrap_or_else(|| panic!("{program} is not installed"));
            place.recorded(program, &format!("exec {} \"$@\"", real.display()));
        }
        let url = &place.servers.url;
        let env = format!(
            "INFLUXDB_HOST={url}\nGRAFANA_URL={url}\nSFTPGO_URL={url}\nSFTPGO_BASE={}\n",
            place.path("sftpgo").display()
        );
        fs::write(place.path("base/.env"), env).expect("a file");
        Some(place)
    }

    /// With everything, and Docker.
    fn new() -> Option<Self> {
        let place = Self::bare()?;
        place.add_systemd();
        place.add_compose("docker");
        place.program("sftpgo", "");
        place.program("caddy", "");
        place.add_ufw();
        place.write("root/etc/caddy/Caddyfile", ":80 {\n}\n");
        let sum = Command::new("md5sum")
            .arg(place.path("root/etc/caddy/Caddyfile"))
            .output()
            .expect("md5sum starts");
        let sum = text(&sum)[..32].to_owned();
        place.program("dpkg-query", &format!("echo ' /etc/caddy/Caddyfile {sum}'"));
        Some(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// Makes a program that records its call and runs a script of Bash.
    fn program(&self, name: &str, script: &str) {
        let script = format!(
            "exec /bin/bash -s -- \"$@\" <<'END'\nD={}\nname={name}\n{script}\nEND",
            self.dir.path().display()
        );
        self.recorded(name, &script);
    }

    /// Makes a program that records its call and runs a script of sh. At the call with the number in the file `kill`, it
    /// kills all processes of the group instead.
    fn recorded(&self, name: &str, script: &str) {
        let dir = self.dir.path().display();
        put_program(
            &self.path("bin").join(name),
            &format!(
                "#!/bin/sh\nprintf '%s\\n' \"{name} $*\" >>{dir}/calls\n\
                 if [ -e {dir}/kill ] && [ \"$(/usr/bin/wc -l <{dir}/calls)\" -ge \"$(/bin/cat {dir}/kill)\" ]; then kill -9 0; fi\n{script}\n"
            ),
        );
    }

    /// systemd, whose units are files in `unit`. SFTPGo reads its first administrator when it starts.
    fn add_systemd(&self) {
        fs::create_dir_all(self.path("root/run/systemd/system")).expect("a folder");
        self.program(
            "systemctl",
            r#"
            words=()
            for word; do [[ $word == -* ]] || words+=("$word"); done
            unit=$D/unit/${words[1]:-}
            case ${words[0]} in
              is-enabled) [[ -e $unit.enabled ]] ;;
              is-active) [[ -e $unit.started ]] ;;
              enable) touch "$unit.enabled"; [[ $* != *--now* ]] || touch "$unit.started" ;;
              restart) cat "$D"/root/etc/sftpgo/env.d/*.env >"$unit.started" 2>/dev/null || : ;;
            esac"#,
        );
    }

    /// Docker with the plug-in, or one of the other programs.
    fn add_compose(&self, program: &str) {
        self.program(
            program,
            r#"
            [[ $name != docker || $1 == compose ]] || exit 1
            [[ $1 != compose ]] || shift
            case $1 in
              version) ;;
              ps) cat "$D/containers" 2>/dev/null || : ;;
              up)
                [[ ! -e $D/compose-fails ]] || { echo "port is already allocated" >&2; exit 1; }
                [[ -e .env && -e compose.yaml ]] || exit 1
                # As podman-compose prints it.
                echo "podman create --name=influxdb -e DOCKER_INFLUXDB_INIT_ADMIN_TOKEN=$(sed -n 's/^INFLUXDB_ADMIN_TOKEN=//p' .env)"
                echo "$*" >"$D/last"
                for service in ${3:-influxdb grafana}; do
                  grep -qx "$service" "$D/containers" 2>/dev/null || echo "$service" >>"$D/containers"
                done ;;
            esac"#,
        );
    }

    fn add_ufw(&self) {
        self.program(
            "ufw",
            r#"
            case $1 in
              show) cat "$D/ufw" 2>/dev/null || : ;;
              status) if [[ -e $D/ufw-active ]]; then echo 'Status: active'; else echo 'Status: inactive'; fi ;;
              allow) echo "ufw allow $2" >>"$D/ufw" ;;
              --force) touch "$D/ufw-active" ;;
            esac"#,
        );
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("base/powerview-setup"));
        command
            .args(args)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("DESTDIR", self.path("root"))
            .env("TMPDIR", self.path("tmp"))
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Runs the script, which must end with this status, and returns what it printed.
    #[track_caller]
    fn run(&self, args: &[&str], status: i32) -> String {
        let output = self.command(args).output().expect("the script starts");
        let printed = text(&output);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {printed}");
        printed
    }

    /// Takes the lock of a run, once no other one has it.
    fn lock(&self) -> fs::File {
        let lock = fs::File::open(self.path("base/powerview-setup")).expect("a file");
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("a lock");
        lock
    }

    /// The variables of `.env`, as the hook reads them.
    fn env(&self) -> BTreeMap<String, String> {
        self.variables("base/.env")
    }

    /// Removes the read token from `.env`, as if the run that created it had been killed before it wrote the file.
    fn forget_read_token(&self) {
        let env = self.read("base/.env");
        let start = "POWERVIEW_META_READ_TOKEN=";
        let is_kept = |line: &&str| !line.starts_with(start) || *line == start;
        let kept: Vec<_> = env.lines().filter(is_kept).collect();
        assert_eq!(kept.len() + 1, env.lines().count(), "{env}");
        self.write("base/.env", &(kept.join("\n") + "\n"));
    }

    fn variables(&self, file: &str) -> BTreeMap<String, String> {
        let script = r#". "$1"; env -i; for n in $(sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$2"); do unset "$n"; done
            read_env_file "$2"
            for n in $(sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$2"); do printf '%s=%s\n' "$n" "${!n}"; done"#;
        let output = Command::new("bash")
            .args(["-c", script, "bash"])
            .arg(repository().join("on-upload.sh"))
            .arg(self.path(file))
            .output()
            .expect("bash starts");
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
            .lines()
            .filter_map(|l| l.split_once('='))
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect()
    }

    fn calls(&self) -> Vec<String> {
        self.read("calls").lines().map(str::to_owned).collect()
    }

    /// The number of the first call that begins with a text.
    #[track_caller]
    fn first_call(&self, start: &str) -> usize {
        let calls = self.calls();
        let found = calls.iter().position(|c| c.starts_with(start));
        found.unwrap_or_else(|| panic!("no call of {start}: {calls:#?}"))
    }

    fn has_call(&self, start: &str) -> bool {
        self.calls().iter().any(|c| c.starts_with(start))
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.dir.path())
            .expect("below")
            .to_owned()
    }

    /// All files with their mode, content and time, and folders with their mode, except what the doubles record.
    fn files(&self) -> BTreeMap<PathBuf, File> {
        let entries = walkdir::WalkDir::new(self.dir.path()).into_iter().flatten();
        entries
            .filter(|e| !["calls", "last"].iter().any(|n| e.path().ends_with(n)))
            .filter(|e| e.path() != self.path("") && e.path() != self.path("tmp"))
            .map(|e| {
                let metadata = e.path().symlink_metadata().expect("a file");
                let (times, content) = if metadata.is_file() {
                    let content = fs::read(e.path()).expect("a file");
                    ((metadata.mtime(), metadata.mtime_nsec()), content)
                } else {
                    ((0, 0), Vec::new())
                };
                let file = (metadata.mode(), times, content);
                (self.relative(e.path()), file)
            })
            .collect()
    }
}

const SECRETS: [&str; 4] = [
    "INFLUXDB_ADMIN_TOKEN",
    "INFLUXDB_ADMIN_PASSWORD",
    "GRAFANA_PASSWORD",
    "SFTPGO_ADMIN_PASSWORD",
];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").permissions().mode() & 0o7777
}

// --- tests -----------------------------------------------------------------------------------------------------

#[test]
fn a_server_is_set_up_once_and_a_second_run_changes_nothing() {
    let Some(place) = Place::new() else { return };
    let printed = place.run(&["--yes", "--domain", "acme.example"], 0);
    assert!(printed.contains("nothing is left to do"), "{printed}");

    // Firewall before services, token before Grafana, check at the end.
    let order = [
        "ufw allow 22/tcp",
        "ufw --force enable",
        "docker compose up -d influxdb",
        "systemctl restart sftpgo.service",
        "systemctl reload-or-restart caddy.service",
        "systemctl --quiet enable --now powerview-sweep.timer",
        "systemctl --quiet enable --now powerview-verify.timer",
        "powerview check",
    ];
    let numbers: Vec<_> = order.iter().map(|call| place.first_call(call)).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert_eq!(place.read("last"), "up -d\n");
    let data = place.path("sftpgo/data");
    assert!(place.has_call(&format!(
        "powerview check --env-file {} --dataFolder {}",
        place.path("base/.env").display(),
        data.display()
    )));

    {
        let state = place.servers.state();
        assert_eq!(state.buckets, ["powerview_meta"]);
        assert_eq!(state.read_tokens.len(), 1);
        let rights = json!([{"action": "read", "resource":
            {"type": "buckets", "id": "0000000000000001", "orgID": ORG_ID}}]);
        let token = state.changes.last().expect("a change");
        assert_eq!(token["permissions"], rights, "{token}");
        let env = place.env();
        assert_eq!(env["POWERVIEW_META_READ_TOKEN"], "reader-0==");
        assert_eq!(state.token.as_ref(), Some(&env["INFLUXDB_ADMIN_TOKEN"]));
        assert_eq!(
            state.administrator,
            Some(("admin".into(), env["SFTPGO_ADMIN_PASSWORD"].clone()))
        );
        assert_eq!(env["GRAFANA_ROOT_URL"], "https://grafana.acme.example");
        assert_eq!(env["TSV_TIMEZONE"], "Europe/Paris");
        assert_eq!(env["TZ"], "Europe/Paris");
    }
    assert_eq!(mode(&place.path("base/.env")), 0o640);
    assert_eq!(mode(&place.path("root/etc/sftpgo/sftpgo.env")), 0o640);
    assert_eq!(mode(&place.path("root/etc/sftpgo")), 0o755);
    let sftpgo = place.variables("root/etc/sftpgo/sftpgo.env");
    let hook = place.path("base/on-upload.sh").display().to_string();
    assert_eq!(sftpgo["SFTPGO_COMMON__ACTIONS__HOOK"], hook);
    assert_eq!(sftpgo["SFTPGO_HTTPD__BINDINGS__0__ADDRESS"], "127.0.0.1");
    assert_eq!(
        sftpgo["SFTPGO_DATA_PROVIDER__USERS_BASE_DIR"],
        data.display().to_string()
    );
    let left: Vec<_> = fs::read_dir(place.path("root/etc/sftpgo/env.d"))
        .expect("a folder")
        .collect();
    assert!(
        left.is_empty(),
        "the password of the first administrator stays: {left:?}"
    );
    let unit = place.read("root/etc/systemd/system/powerview-sweep.service");
    let start = format!(
        "ExecStart={} --dataFolder {} --retry-errors",
        place.path("base/bin/powerview").display(),
        data.display()
    );
    assert!(unit.lines().any(|l| l == start), "{unit}");

    let (before, changes) = (place.files(), place.servers.state().changes.len());
    let printed = place.run(&["--yes"], 0);
    assert!(printed.contains("\nnothing was changed\n"), "{printed}");
    assert!(!printed.contains("done"), "{printed}");
    assert_eq!(place.files(), before);
    assert_eq!(place.servers.state().changes.len(), changes);
}

#[test]
fn secrets_are_long_random_and_neither_printed_nor_arguments() {
    let Some(place) = Place::new() else { return };
    let mut printed = place.run(&["--yes"], 0);
    printed += &place.run(&["--yes"], 0);
    let mut all: Vec<String> = SECRETS.iter().map(|s| place.env()[*s].clone()).collect();
    for secret in &all {
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        assert!(
            secret.len() >= 32 && secret.chars().all(is_hex),
            "{secret} has less than 128 bits"
        );
    }
    let distinct: BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), SECRETS.len(), "{all:?}");
    let Some(other) = Place::new() else { return };
    other.run(&["--yes"], 0);
    assert!(SECRETS.iter().all(|s| !all.contains(&other.env()[*s])));

    all.push(place.env()["POWERVIEW_META_READ_TOKEN"].clone());
    // The double of compose prints a secret, as podman-compose does.
    assert!(
        printed.contains("DOCKER_INFLUXDB_INIT_ADMIN_TOKEN=***"),
        "{printed}"
    );
    let calls = place.calls();
    assert!(calls.iter().any(|c| c.starts_with("curl ")), "{calls:?}");
    for secret in &all {
        assert!(!printed.contains(secret), "{printed}");
        let call = calls.iter().find(|c| c.contains(secret));
        assert_eq!(call, None);
    }
}

#[test]
fn a_dry_run_prints_the_steps_and_changes_nothing() {
    let Some(place) = Place::new() else { return };
    let before = place.files();
    let printed = place.run(&["--dry-run", "--domain", "acme.example"], 0);
    assert_eq!(place.files(), before);
    assert_eq!(place.servers.state().changes, Vec::<Value>::new());
    for step in [
        "plan .env ",
        "plan firewall ",
        "plan containers ",
        "plan influxdb ",
        "plan sftpgo ",
        "plan caddy ",
        "plan timer ",
        "plan check ",
        "dry run: nothing was changed",
    ] {
        assert!(printed.contains(step), "{step}: {printed}");
    }
    assert!(!printed.contains("done"), "{printed}");
    for call in [
        "systemctl restart",
        "systemctl --quiet enable",
        "docker compose up",
        "ufw allow",
        "ufw --force",
    ] {
        assert!(!place.has_call(call), "{call}");
    }
}

#[test]
fn an_existing_env_keeps_its_values_and_comments() {
    let Some(place) = Place::new() else { return };
    let own = format!(
        "# of the operator\nexport INFLUXDB_ADMIN_TOKEN='my $token # with \"signs'\n\n#GRAFANA_PASSWORD=old\n\
         # GF_SMTP_HOST=smtp.example.org:587\nTSV_TIMEZONE=Africa/Nairobi # of the loggers\nSFTPGO_ADMIN_USERNAME=operator\n\
         POWERVIEW_ALERT_EMAIL=\"a@example.org;b@example.org\"\nGRAFANA_ROOT_URL=https://charts.example.net/power\nMINE=1\n\
         TSV_META_BUCKET=runs\nTZ=UTC\n{}",
        place.read("base/.env")
    );
    place.write("base/.env", &own);
    fs::set_permissions(place.path("base/.env"), fs::Permissions::from_mode(0o644))
        .expect("a mode");
    place.run(&["--yes"], 0);
    let now = place.read("base/.env");
    let mut added = now.clone();
    for line in own.lines() {
        assert!(now.lines().any(|l| l == line), "{line} is missing in {now}");
        added = added.replacen(&format!("{line}\n"), "", 1);
    }
    let names: Vec<&str> = added
        .lines()
        .filter_map(|l| l.split_once('='))
        .map(|l| l.0)
        .collect();
    assert_eq!(
        names,
        [
            "GRAFANA_PASSWORD",
            "INFLUXDB_ADMIN_PASSWORD",
            "SFTPGO_ADMIN_PASSWORD",
            "INFLUXDB_ORG",
            "INFLUXDB_ADMIN_USER",
            "GRAFANA_USERNAME",
            "GRAFANA_USER",
            "GRAFANA_INFLUXDB_URL",
            "POWERVIEW_META_READ_TOKEN",
            "GF_SMTP_USER",
            "GF_SMTP_PASSWORD"
        ],
        "{now}"
    );
    // The variable follows the comment that names it.
    let below = now
        .split_once("#GRAFANA_PASSWORD=old\n")
        .expect("the comment")
        .1;
    assert!(below.starts_with("GRAFANA_PASSWORD="), "{now}");
    assert_eq!(mode(&place.path("base/.env")), 0o640);
    let state = place.servers.state();
    assert_eq!(state.token.as_deref(), Some("my $token # with \"signs"));
    assert_eq!(state.buckets, ["runs"]);
    assert_eq!(state.administrator.as_ref().expect("one").0, "operator");
    assert!(
        !place
            .path("root/etc/caddy/Caddyfile")
            .metadata()
            .is_ok_and(|m| m.len() > 20)
    );
}

#[test]
fn the_settings_of_an_old_system_are_taken_over_before_anything_is_set_up() {
    let Some(place) = Place::new() else { return };
    if !installed("python3", "python3") {
        return;
    }
    place.recorded("python3", "exec /usr/bin/python3 \"$@\"");
    let url = place.servers.url.clone();
    let old = format!(
        "INFLUXDB_HOST='{url}'\nINFLUXDB_USERNAME=anna\nINFLUXDB_PASSWORD='old $password'\nINFLUXDB_ORG=powerview\n\
         INFLUXDB_ADMIN_TOKEN='old-token=='\nGRAFANA_URL='{url}'\nGRAFANA_PASSWORD='old #password'\n"
    );
    place.write("old/.env", &old);
    place.write("old/tsv_parser.py", "InfluxDBClient electrical");
    let hook = place.path("old/on-upload.sh");
    let hook = hook.display();
    place.write(
        "root/etc/sftpgo/sftpgo.env",
        &format!(
            "SFTPGO_COMMON__ACTIONS__EXECUTE_ON=mkdir\nSFTPGO_COMMON__ACTIONS__HOOK={hook}\n\
             SFTPGO_COMMAND__COMMANDS__0__PATH={hook}\nSFTPGO_COMMAND__COMMANDS__0__HOOK=post_disconnect\n"
        ),
    );
    let folder = place.path("old").display().to_string();
    let options = ["--from-old", &folder, "--yes"];

    let before = place.files();
    let planned = place.run(&["--from-old", &folder, "--dry-run"], 0);
    assert!(
        planned.contains("INFLUXDB_ADMIN_USER, which was INFLUXDB_USERNAME"),
        "{planned}"
    );
    assert_eq!(place.files(), before, "{planned}");

    place.run(&options, 0);
    let env = place.env();
    for (name, value) in [
        ("INFLUXDB_ADMIN_USER", "anna"),
        ("INFLUXDB_ADMIN_PASSWORD", "old $password"),
        ("INFLUXDB_ADMIN_TOKEN", "old-token=="),
        ("GRAFANA_PASSWORD", "old #password"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    let token = place.servers.state().token.clone();
    assert_eq!(token.as_deref(), Some("old-token=="));
    let sftpgo = place.variables("root/etc/sftpgo/sftpgo.env");
    let hook = place.path("base/on-upload.sh").display().to_string();
    assert_eq!(sftpgo["SFTPGO_COMMON__ACTIONS__HOOK"], hook);
    assert_eq!(
        sftpgo["SFTPGO_COMMON__ACTIONS__EXECUTE_ON"],
        "upload,rename,mkdir"
    );
    assert!(!sftpgo.contains_key("SFTPGO_COMMAND__COMMANDS__0__PATH"));
    assert!(place.has_call("systemctl restart sftpgo.service"));

    let before = place.files();
    let again = place.run(&options, 0);
    assert!(again.contains("\nnothing was changed\n"), "{again}");
    assert_eq!(place.files(), before);
    place.run(&["--from-old", "/nonexistent", "--yes"], 2);
}

#[test]
fn an_option_replaces_the_value_of_env() {
    let Some(place) = Place::new() else { return };
    place.run(&["--yes"], 0);
    assert_eq!(place.env()["GRAFANA_ROOT_URL"], "http://127.0.0.1:8088");
    let before = place.read("base/.env");
    let args = [
        "--yes",
        "--domain",
        "acme.example",
        "--timezone",
        "Europe/Rome",
        "--mail",
        "a@b.example",
    ];
    place.run(&args, 0);
    let mut expected = before.replace("http://127.0.0.1:8088", "https://grafana.acme.example");
    expected = expected.replace("TSV_TIMEZONE=Europe/Paris", "TSV_TIMEZONE=Europe/Rome");
    assert_eq!(
        place.read("base/.env"),
        expected + "POWERVIEW_ALERT_EMAIL=a@b.example\n"
    );
    assert!(
        place
            .read("root/etc/caddy/Caddyfile")
            .contains("\ngrafana.acme.example {\n")
    );
}

#[test]
fn a_copy_of_the_sample_is_filled_in() {
    let Some(place) = Place::new() else { return };
    let url = format!("={}", place.servers.url);
    let base = format!("SFTPGO_BASE={}", place.path("sftpgo").display());
    let own = place
        .read("base/.env.sample")
        .replace("=http://127.0.0.1:8086", &url)
        .replace("=http://127.0.0.1:8088", &url)
        .replace("=http://127.0.0.1:8080", &url)
        .replace("# SFTPGO_BASE=/srv/sftpgo", &base);
    place.write("base/.env", &own);
    place.run(&["--yes"], 0);
    let now = place.read("base/.env");
    assert_eq!(now.lines().count(), own.lines().count(), "{now}");
    let mut set = BTreeSet::new();
    for (line, before) in now.lines().zip(own.lines()) {
        if line != before {
            let name = |l: &str| {
                l.trim_start_matches("# ")
                    .split('=')
                    .next()
                    .map(str::to_owned)
            };
            assert_eq!(name(line), name(before), "{before} became {line}");
            set.extend(name(line));
        }
    }
    let expected = [
        "GRAFANA_ROOT_URL",
        "POWERVIEW_META_READ_TOKEN",
        "TSV_TIMEZONE",
        "TZ",
    ];
    let expected = expected.iter().chain(&SECRETS).map(|n| (*n).to_owned());
    assert_eq!(set, expected.collect());
}

#[test]
fn hostile_options_are_refused_and_nothing_is_changed() {
    let Some(place) = Place::new() else { return };
    let before = place.files();
    for (option, values) in [
        (
            "--domain",
            &[
                "a b.example",
                "a.example\nb.example",
                "a.example {",
                "https://a.example",
                "a.example/x",
                "localhost",
                "-a.example",
                "a..example",
                "$(touch x).example",
                "a.example;",
                "\"a.example",
                "1.2.3.4",
            ][..],
        ),
        (
            "--timezone",
            &[
                "Nowhere/Town",
                "Europe/Paris x",
                "../../etc/passwd",
                "Europe/Paris\nTZ=UTC",
                "$(id)",
            ][..],
        ),
        (
            "--mail",
            &[
                "a@b",
                "a b@example.org",
                "a@example.org\nX=1",
                "'a@example.org",
                "a@example.org'",
                "a\\@example.org",
                "$HOME@example.org",
                "a@example.org;",
                "a@example.org,b@example.org",
                "\"a\"@example.org",
            ][..],
        ),
        ("--wait", &["x", "-1", "1;2"][..]),
    ] {
        for value in values {
            let printed = place.run(&["--yes", option, value], 2);
            assert!(
                printed.starts_with("powerview-setup: "),
                "{value}: {printed}"
            );
            assert_eq!(printed.lines().count(), 1, "{value}: {printed}");
            assert_eq!(place.files(), before, "{value}");
        }
    }
    for args in [
        &["--yes", "--domain"][..],
        &["--yes", "--unknown"],
        &["--yes", "acme"],
        &[],
    ] {
        place.run(args, 2);
        assert_eq!(place.files(), before, "{args:?}");
    }
}

/// Runs the script on a terminal and types these lines. Returns what the terminal shows.
fn on_a_terminal(place: &Place, lines: &str) -> String {
    let typescript = place.path("tmp/typescript");
    let mut script = Command::new("/usr/bin/script")
        .args(["--quiet", "--return", "--command"])
        .arg(place.path("base/powerview-setup"))
        .arg(&typescript)
        .env_clear()
        .env("PATH", place.path("bin"))
        .env("DESTDIR", place.path("root"))
        .env("TMPDIR", place.path("tmp"))
        .env("SHELL", "/bin/bash")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut input = script.stdin.take().expect("the input");
    std::io::Write::write_all(&mut input, lines.as_bytes()).expect("a write");
    drop(input);
    let output = script.wait_with_output().expect("an end");
    fs::remove_file(typescript).expect("a file");
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn questions_are_asked_once_and_until_the_answer_is_valid() {
    let Some(place) = Place::new() else { return };
    if !installed("script", "bsdutils") {
        return;
    }
    let shown = on_a_terminal(
        &place,
        "a b\nAcme.Example\nNowhere/Town\nAfrica/Nairobi\nhttps://ntfy.sh/a'b\nhttps://ntfy.sh/a\\b\nhttps://ntfy.sh/$b\n\
         https://ntfy.sh/t0p?a=1&b=2\n",
    );
    for refused in [
        "\"a b\" is not a domain",
        "\"Nowhere/Town\" is not a time zone",
        "\"https://...\" is not a URL",
    ] {
        assert!(shown.contains(refused), "{refused}: {shown}");
    }
    let env = place.env();
    assert_eq!(env["GRAFANA_ROOT_URL"], "https://grafana.acme.example");
    assert_eq!(env["TSV_TIMEZONE"], "Africa/Nairobi");
    assert_eq!(env["POWERVIEW_ALERT_URL"], "https://ntfy.sh/t0p?a=1&b=2");
    let shown = on_a_terminal(&place, "");
    assert!(shown.contains("nothing was changed"), "{shown}");

    // The defaults.
    let Some(place) = Place::new() else { return };
    symlink(
        "/usr/share/zoneinfo/America/New_York",
        place.path("root/etc/localtime"),
    )
    .expect("a link");
    on_a_terminal(&place, "\n\n\n");
    let env = place.env();
    assert_eq!(env["GRAFANA_ROOT_URL"], "http://127.0.0.1:8088");
    assert_eq!(env["TSV_TIMEZONE"], "America/New_York");
    assert!(!env.contains_key("POWERVIEW_ALERT_EMAIL") && !env.contains_key("POWERVIEW_ALERT_URL"));
}

#[test]
fn a_line_of_env_that_cannot_be_read_is_named_and_nothing_is_changed() {
    let Some(place) = Place::new() else { return };
    let env = place.read("base/.env") + "INFLUXDB_ADMIN_TOKEN='not closed\n";
    place.write("base/.env", &env);
    let before = place.files();
    let printed = place.run(&["--yes"], 2);
    assert!(
        printed.contains("line 5") && !printed.contains("not closed"),
        "{printed}"
    );
    assert_eq!(place.files(), before);
}

#[test]
fn each_compose_program_is_used_and_podman_starts_only_its_own_containers_after_a_reboot() {
    for (program, call) in [
        ("docker", "docker compose up -d influxdb"),
        ("docker-compose", "docker-compose up -d influxdb"),
        ("podman-compose", "podman-compose up -d influxdb"),
    ] {
        let Some(place) = Place::new() else { return };
        fs::remove_file(place.path("bin/docker")).expect("a file");
        place.add_compose(program);
        place.run(&["--yes"], 0);
        place.first_call(call);
        let units: BTreeSet<String> = place
            .calls()
            .iter()
            .filter(|c| c.starts_with("systemctl ") && c.contains("podman"))
            .cloned()
            .collect();
        let expected: &[&str] = if program == "podman-compose" {
            &[
                "systemctl --quiet enable podman-restart.service",
                "systemctl --quiet is-enabled podman-restart.service",
            ]
        } else {
            &[]
        };
        assert_eq!(units.iter().collect::<Vec<_>>(), expected, "{program}");
        let printed = place.run(&["--yes"], 0);
        assert!(
            printed.contains("\nnothing was changed\n"),
            "{program}: {printed}"
        );
    }
}

#[test]
fn a_container_that_does_not_become_healthy_is_left_to_do_and_the_rest_is_done() {
    let Some(place) = Place::new() else { return };
    place.servers.state().is_up = false;
    let printed = place.run(&["--yes", "--wait", "1"], 1);
    let left = printed.split_once("left to do:\n").expect("a list").1;
    let logs = format!(
        "see: cd {} && docker compose logs influxdb;",
        place.path("base").display()
    );
    assert!(
        left.contains("InfluxDB is not healthy after 1 s") && left.contains(&logs),
        "{printed}"
    );
    assert!(left.contains("Grafana is not healthy"), "{printed}");
    assert_eq!(left.lines().count(), 2, "{printed}");
    assert!(place.servers.state().administrator.is_some());
    for timer in ["sweep", "verify"] {
        let started = format!("unit/powerview-{timer}.timer.started");
        assert!(place.path(&started).exists(), "{started}");
    }

    place.servers.state().is_up = true;
    place.run(&["--yes"], 0);
    assert_eq!(place.servers.state().read_tokens.len(), 1);

    let Some(place) = Place::new() else { return };
    place.write("compose-fails", "");
    let printed = place.run(&["--yes"], 1);
    assert!(printed.contains("port is already allocated"), "{printed}");
    assert!(printed.contains("docker compose up -d failed"), "{printed}");
}

#[test]
#[ignore = "slow: many runs"]
fn a_run_that_is_killed_is_completed_by_the_next_one() {
    let Some(place) = Place::new() else { return };
    let args = ["--yes", "--domain", "acme.example"];
    place.run(&args, 0);
    let (count, expected) = (place.calls().len(), place.files());
    assert!(count > 60, "{count}");
    for n in (3..count).step_by(count / 12) {
        let Some(place) = Place::new() else { return };
        place.write("kill", &n.to_string());
        let output = place.command(&args).output().expect("the script starts");
        assert_eq!(output.status.code(), None, "killed at call {n}");
        fs::remove_file(place.path("kill")).expect("a file");
        let before = place.env();
        // Children that were killed with the script may end after it, and have its lock until then.
        drop(place.lock());

        place.run(&args, 0);
        let after = place.env();
        for secret in SECRETS {
            let is_kept = before.get(secret).is_none_or(|s| *s == after[secret]);
            assert!(is_kept, "a new {secret} after a kill at call {n}");
        }
        {
            let state = place.servers.state();
            assert_eq!(state.token.as_ref(), Some(&after["INFLUXDB_ADMIN_TOKEN"]));
            let tokens: Vec<_> = state.read_tokens.values().collect();
            assert_eq!(tokens, [&after["POWERVIEW_META_READ_TOKEN"]]);
            assert_eq!(
                state.administrator.as_ref().map(|a| &a.1),
                Some(&after["SFTPGO_ADMIN_PASSWORD"])
            );
        }
        for done in [
            "systemctl restart sftpgo.service",
            "systemctl reload-or-restart caddy.service",
            "systemctl daemon-reload",
        ] {
            assert!(place.has_call(done), "no {done} after a kill at call {n}");
        }
        // A kill leaves nothing but the folder for temporary files.
        for left in fs::read_dir(place.path("tmp")).expect("a folder").flatten() {
            fs::remove_dir(left.path()).expect("an empty folder");
        }
        let (found, expected): (Vec<_>, Vec<_>) = (
            place.files().into_keys().collect(),
            expected.keys().cloned().collect(),
        );
        assert_eq!(found, expected, "after a kill at call {n}");
        let printed = place.run(&args, 0);
        assert!(
            printed.contains("\nnothing was changed\n"),
            "after a kill at call {n}: {printed}"
        );
    }
}

#[test]
fn a_read_token_that_a_killed_run_left_is_replaced() {
    let Some(place) = Place::new() else { return };
    place.run(&["--yes"], 0);
    place.forget_read_token();
    let left = place.servers.state().read_tokens.clone();
    assert_eq!(left.len(), 1);

    let printed = place.run(&["--yes"], 0);
    assert!(
        printed.contains("unused token of Grafana deleted"),
        "{printed}"
    );
    let tokens = place.servers.state().read_tokens.clone();
    let tokens: Vec<_> = tokens.values().collect();
    assert_eq!(tokens, [&place.env()["POWERVIEW_META_READ_TOKEN"]]);
    assert_ne!(tokens, left.values().collect::<Vec<_>>());
}

#[test]
fn a_long_wait_for_a_server_is_said_and_its_log_is_named() {
    let Some(place) = Place::new() else { return };
    // SFTPGo ends after its start.
    place.program(
        "systemctl",
        r#"[[ $1 != restart ]] || rm -f "$D/unit/sftpgo.service.started""#,
    );
    let printed = place.run(&["--yes", "--wait", "4"], 1);
    let waits: Vec<_> = printed
        .lines()
        .filter(|line| line.contains("waiting for"))
        .collect();
    let url = &place.servers.url;
    let expected = format!("wait sftpgo     waiting for SFTPGo at {url}/healthz (up to 4 s)");
    assert_eq!(waits, [expected], "{printed}");
    let left = printed.split_once("left to do:\n").expect("a list").1;
    let failure = format!(
        "it does not start, or does not answer at {url} within 4 s; see journalctl -u sftpgo,"
    );
    assert!(left.contains(&failure), "{printed}");
}

#[test]
fn what_is_not_there_is_named_with_its_remedy_and_the_rest_is_done() {
    let Some(place) = Place::bare() else { return };
    let printed = place.run(&["--yes", "--domain", "acme.example"], 1);
    for line in [
        "todo sftpgo     not installed; install it as on https://docs.sftpgo.com/latest/installation/, and run powerview-setup again",
        "todo caddy      not installed, so nothing is published; apt install caddy, and run powerview-setup again",
        "todo timer      there is no systemd; run powerview -d ",
        "optional: firewall: none; ",
        "ok   containers InfluxDB answers; it is no container of compose.yaml",
    ] {
        assert_eq!(
            printed.lines().filter(|l| l.starts_with(line)).count(),
            1,
            "{line}: {printed}"
        );
    }
    let left = printed.split_once("left to do:\n").expect("a list").1;
    let steps: Vec<&str> = left
        .lines()
        .filter_map(|l| l.trim().split(':').next())
        .collect();
    assert_eq!(steps, ["sftpgo", "caddy", "timer"]);
    assert_eq!(place.servers.state().read_tokens.len(), 1);
    assert!(place.has_call("powerview check"));
    // SFTPGo starts with these when it is installed.
    let first = place.variables("root/etc/sftpgo/env.d/powerview-admin.env");
    assert_eq!(first["SFTPGO_DATA_PROVIDER__CREATE_DEFAULT_ADMIN"], "true");
    assert_eq!(
        mode(&place.path("root/etc/sftpgo/env.d/powerview-admin.env")),
        0o640
    );

    // Nothing is started there either, and nothing is waited for.
    place.servers.state().is_up = false;
    let printed = place.run(&["--yes"], 1);
    assert!(
        printed.contains("InfluxDB does not answer at http://127.0.0.1:")
            && printed.contains("apt install docker.io docker-compose"),
        "{printed}"
    );
}

#[test]
fn a_database_with_another_token_is_not_touched() {
    let Some(place) = Place::new() else { return };
    place.servers.state().token = Some("of another installation".into());
    let printed = place.run(&["--yes"], 1);
    assert!(
        printed.contains(
            "it does not accept INFLUXDB_ADMIN_TOKEN; set the token that it was set up with"
        ),
        "{printed}"
    );
    assert_eq!(place.servers.state().changes, Vec::<Value>::new());
}

#[test]
fn influxdb_3_is_not_set_up() {
    let Some(place) = Place::new() else { return };
    let env = place.read("base/.env") + "INFLUXDB_FLAVOR=3\n";
    place.write("base/.env", &env);
    let printed = place.run(&["--yes"], 1);
    let reason =
        "INFLUXDB_FLAVOR is 3, and only InfluxDB 2 can be set up here; see docs/influxdb-3.md";
    assert!(printed.contains(reason), "{printed}");
    assert_eq!(place.servers.state().token, None);
}

#[test]
fn an_administrator_of_sftpgo_whom_env_does_not_know_is_reported() {
    let Some(place) = Place::new() else { return };
    place.write("unit/sftpgo.service.started", "");
    place.servers.state().administrator = Some(("mallory".into(), "first".into()));
    let printed = place.run(&["--yes"], 1);
    assert!(
        printed.contains("If you did not create it, an intruder may have"),
        "{printed}"
    );
    assert!(!place.has_call("systemctl restart sftpgo"));
    assert!(!place.path("root/etc/sftpgo/env.d").exists());
}

#[test]
fn the_page_for_the_first_administrator_is_closed_if_sftpgo_shows_it() {
    let Some(place) = Place::new() else { return };
    // SFTPGo was installed before, with its own settings.
    place.write("unit/sftpgo.service.started", "");
    place.run(&["--yes"], 0);
    let password = place.env()["SFTPGO_ADMIN_PASSWORD"].clone();
    let expected = Some(("admin".to_owned(), password));
    assert_eq!(place.servers.state().administrator, expected);
}

#[test]
fn settings_of_sftpgo_are_kept_and_completed() {
    let Some(place) = Place::new() else { return };
    let own =
        "# mine\nSFTPGO_COMMON__ACTIONS__EXECUTE_ON=mkdir\nSFTPGO_SFTPD__BINDINGS__0__PORT=2222\n";
    place.write("root/etc/sftpgo/sftpgo.env", own);
    place.run(&["--yes"], 0);
    let now = place.read("root/etc/sftpgo/sftpgo.env");
    assert!(now.starts_with(own), "{now}");
    let names: Vec<&str> = now[own.len()..]
        .lines()
        .filter_map(|l| l.split_once('='))
        .map(|l| l.0)
        .collect();
    assert_eq!(
        names,
        [
            "SFTPGO_DATA_PROVIDER__USERS_BASE_DIR",
            "SFTPGO_HTTPD__BINDINGS__0__ADDRESS",
            "SFTPGO_HTTPD__BINDINGS__0__PORT",
            "SFTPGO_COMMON__UPLOAD_MODE",
            "SFTPGO_COMMON__SETSTAT_MODE",
            "SFTPGO_COMMON__ACTIONS__HOOK"
        ]
    );
}

#[test]
fn the_firewall_never_locks_out_ssh() {
    let Some(place) = Place::new() else { return };
    place.program(
        "sshd",
        "[[ $1 == -T ]] && printf 'port 2200\\nport 22022\\nlistenaddress 0.0.0.0\\n'",
    );
    let run = |args: &[&str]| {
        let output = place
            .command(args)
            .env("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 443")
            .output()
            .expect("it starts");
        assert!(output.status.success(), "{}", text(&output));
    };
    run(&["--yes"]);
    let rules = place.read("ufw");
    let allowed: Vec<&str> = rules.lines().collect();
    assert_eq!(
        allowed,
        [
            "ufw allow 443/tcp",
            "ufw allow 2200/tcp",
            "ufw allow 22022/tcp",
            "ufw allow 2022/tcp"
        ]
    );
    assert!(place.first_call("ufw allow 22022/tcp") < place.first_call("ufw --force enable"));

    // An active firewall only gets what is missing.
    let Some(place) = Place::new() else { return };
    place.write("ufw", "ufw allow 22/tcp\nufw allow 5432/tcp\n");
    place.write("ufw-active", "");
    place.run(&["--yes", "--domain", "acme.example"], 0);
    assert_eq!(
        place.read("ufw"),
        "ufw allow 22/tcp\nufw allow 5432/tcp\nufw allow 2022/tcp\nufw allow 80/tcp\nufw allow 443/tcp\n"
    );
    assert!(!place.has_call("ufw --force") && !place.has_call("ufw default"));

    // A firewall that refuses the rule for SSH is not enabled.
    let Some(place) = Place::new() else { return };
    place.program(
        "ufw",
        "[[ $1 != allow ]] || exit 1; [[ $1 != status ]] || echo 'Status: inactive'",
    );
    let printed = place.run(&["--yes"], 1);
    assert!(printed.contains("todo firewall   ufw failed"), "{printed}");
    assert!(!place.has_call("ufw --force"));
}

#[test]
fn firewalld_gets_the_missing_ports_and_rules_of_nftables_are_kept() {
    let Some(place) = Place::new() else { return };
    fs::remove_file(place.path("bin/ufw")).expect("a file");
    place.program(
        "firewall-cmd",
        r#"
        case $* in
          --state) ;;
          *--query-port=*) port=$*; grep -qx "${port##*=}" "$D/ports" 2>/dev/null ;;
          *--add-port=*) port=$*; echo "${port##*=}" >>"$D/ports" ;;
        esac"#,
    );
    place.run(&["--yes", "--domain", "acme.example"], 0);
    assert_eq!(place.read("ports"), "22/tcp\n2022/tcp\n80/tcp\n443/tcp\n");
    assert!(place.has_call("firewall-cmd --quiet --reload"));
    let printed = place.run(&["--yes"], 0);
    assert!(printed.contains("\nnothing was changed\n"), "{printed}");

    let Some(place) = Place::new() else { return };
    fs::remove_file(place.path("bin/ufw")).expect("a file");
    place.program("nft", "echo 'table inet filter {}'");
    let printed = place.run(&["--yes"], 0);
    assert!(
        printed.contains("optional: firewall: nftables has its own rules, which stay as they are; they must accept the TCP ports 22 2022\n"),
        "{printed}"
    );
    let calls: BTreeSet<String> = place
        .calls()
        .into_iter()
        .filter(|c| c.starts_with("nft "))
        .collect();
    assert_eq!(calls.iter().collect::<Vec<_>>(), ["nft list ruleset"]);
}

/// Whether Caddy itself accepts a Caddyfile. Skips the calling test without it.
fn caddy_accepts(file: &Path) -> bool {
    if !installed("caddy", "caddy") {
        return true;
    }
    let home = tempfile::tempdir().expect("a folder");
    let output = Command::new("caddy")
        .args(["validate", "--adapter", "caddyfile", "--config"])
        .arg(file)
        .env("HOME", home.path())
        .output();
    output.expect("caddy starts").status.success()
}

#[test]
fn caddy_publishes_influxdb_only_if_asked_for_and_sites_of_the_operator_are_kept() {
    let sites = |place: &Place| -> Vec<String> {
        let file = place.read("root/etc/caddy/Caddyfile");
        file.lines()
            .filter_map(|l| l.strip_suffix(" {"))
            .filter(|l| !l.starts_with('#'))
            .map(str::to_owned)
            .collect()
    };
    let Some(place) = Place::new() else { return };
    place.run(&["--yes", "--domain", "acme.example"], 0);
    assert_eq!(sites(&place), ["grafana.acme.example", "sftp.acme.example"]);
    assert!(caddy_accepts(&place.path("root/etc/caddy/Caddyfile")));
    place.run(&["--yes", "--publish-influxdb"], 0);
    assert_eq!(
        sites(&place),
        [
            "grafana.acme.example",
            "sftp.acme.example",
            "influxdb.acme.example"
        ]
    );
    assert!(caddy_accepts(&place.path("root/etc/caddy/Caddyfile")));
    // It stays published.
    let printed = place.run(&["--yes"], 0);
    assert!(printed.contains("\nnothing was changed\n"), "{printed}");

    let Some(place) = Place::new() else { return };
    let own = "shop.example {\n\trespond hi\n}\n";
    place.write("root/etc/caddy/Caddyfile", own);
    let printed = place.run(&["--yes", "--domain", "acme.example"], 1);
    assert!(
        printed.contains(
            "has other sites and is not changed; add grafana.acme.example sftp.acme.example as in"
        ),
        "{printed}"
    );
    assert_eq!(place.read("root/etc/caddy/Caddyfile"), own);
    let own = own.to_owned() + "grafana.acme.example, sftp.acme.example {\n\trespond hi\n}\n";
    place.write("root/etc/caddy/Caddyfile", &own);
    place.run(&["--yes"], 0);
}

#[test]
fn without_a_domain_the_tunnel_is_shown_and_no_web_port_is_opened() {
    let Some(place) = Place::new() else { return };
    let printed = place.run(&["--yes", "--domain", "none"], 0);
    assert!(
        printed.contains("    ssh -L 8088:127.0.0.1:8088 -L 8080:127.0.0.1:8080 "),
        "{printed}"
    );
    assert_eq!(place.read("ufw"), "ufw allow 22/tcp\nufw allow 2022/tcp\n");
    assert!(!place.has_call("systemctl reload-or-restart caddy"));
}

#[test]
fn two_runs_at_the_same_time_are_refused() {
    let Some(place) = Place::new() else { return };
    let _lock = place.lock();
    let printed = place.run(&["--yes"], 1);
    assert!(
        printed.contains("another powerview-setup is running"),
        "{printed}"
    );
}

/// Ends SFTPGo, which the double of systemd has started, on drop.
struct StartedSftpgo(PathBuf);

impl Drop for StartedSftpgo {
    fn drop(&mut self) {
        let id = fs::read_to_string(&self.0)
            .ok()
            .and_then(|id| id.trim().parse().ok());
        if let Some(id) = id.and_then(rustix::process::Pid::from_raw) {
            // It fails only if the process has ended already.
            let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn real_servers_are_set_up_and_pass_the_check() {
    let Some(sftpgo) = std::env::var_os("SFTPGO_BIN").filter(|p| !p.is_empty()) else {
        return skipped("SFTPGO_BIN", "set it to the path of an sftpgo");
    };
    let Some(influxdb) = RealInflux::start_new() else {
        return;
    };
    let Some(place) = Place::bare() else { return };
    let grafana = grafana_double::Double::start();
    fs::remove_file(place.path("base/bin/powerview")).expect("a file");
    symlink(
        env!("CARGO_BIN_EXE_powerview"),
        place.path("base/bin/powerview"),
    )
    .expect("a link");
    let (http, sftp) = (free_port(), free_port());
    let password = "it's \\ a \"$HOME\" #1";
    let env = format!(
        "INFLUXDB_HOST={}\nINFLUXDB_ADMIN_TOKEN={}\nGRAFANA_URL={}\nGRAFANA_PASSWORD={}\nSFTPGO_URL=http://127.0.0.1:{http}\n\
         SFTPGO_BASE={}\nSFTPGO_CONFIG_DIR={}\nSFTPGO_ADMIN_PASSWORD=\"it's \\\\ a \\\"\\$HOME\\\" #1\"\n",
        influxdb.url(),
        influxdb.token(),
        grafana.url,
        grafana_double::PASSWORD,
        place.path("sftpgo").display(),
        place.path("root/etc/sftpgo").display()
    );
    place.write("base/.env", &env);
    assert_eq!(place.env()["SFTPGO_ADMIN_PASSWORD"], password);
    {
        let mut state = grafana.state();
        let source = json!({"uid": "powerview-meta", "type": "influxdb"});
        state.add_data_source("powerview_meta", source, json!({"token": "read-secret"}));
        state.rules = crate::check::shipped_rules();
    }
    // The operator has chosen the ports of SFTPGo. systemd starts it with the file of settings as its environment.
    place.write(
        "root/etc/sftpgo/sftpgo.env",
        &format!("SFTPGO_SFTPD__BINDINGS__0__PORT={sftp}\nSFTPGO_SFTPD__BINDINGS__0__ADDRESS=127.0.0.1\nSFTPGO_HTTPD__BINDINGS__0__PORT={http}\n"),
    );
    place.add_systemd();
    place.program("sftpgo", "");
    let share = Path::new(&sftpgo)
        .ancestors()
        .nth(2)
        .expect("a folder")
        .join("share/sftpgo");
    place.program(
        "systemctl",
        &format!(
            r#"
            [[ $1 == restart ]] || exit 0
            set -a
            . "$D/root/etc/sftpgo/sftpgo.env"
            SFTPGO_DATA_PROVIDER__DRIVER=memory SFTPGO_DATA_PROVIDER__NAME= SFTPGO_HTTPD__OPENAPI_PATH={share}/openapi
            SFTPGO_HTTPD__TEMPLATES_PATH={share}/templates SFTPGO_SMTP__TEMPLATES_PATH={share}/templates SFTPGO_HTTPD__STATIC_FILES_PATH={share}/static
            {} serve --config-dir "$D/root/etc/sftpgo" --log-file-path "" >"$D/sftpgo.log" 2>&1 8>&- </dev/null &
            echo $! >"$D/sftpgo.pid""#,
            Path::new(&sftpgo).display(),
            share = share.display()
        ),
    );
    let _sftpgo = StartedSftpgo(place.path("sftpgo.pid"));
    let output = place
        .command(&["--yes"])
        .output()
        .expect("the script starts");
    let printed = text(&output);
    assert!(
        output.status.success(),
        "{printed}\n{}",
        place.read("sftpgo.log")
    );
    assert!(
        printed.contains("\nok   SFTPGo ") && printed.contains("\nok   token "),
        "{printed}"
    );
    assert!(!printed.contains("FAIL"), "{printed}");
    assert!(
        !place
            .path("root/etc/sftpgo/env.d/powerview-admin.env")
            .exists()
    );

    // A run was killed before it wrote its token to .env, an earlier one too, and an operator has a token.
    let (_, orgs) = influxdb.request("GET", "/api/v2/orgs?org=powerview", "", "");
    let orgs: Value = serde_json::from_str(&orgs).expect("JSON");
    let org = &orgs["orgs"][0]["id"];
    for description in ["Grafana: réception", "my own"] {
        let permission = json!({"action": "read", "resource": {"type": "buckets", "orgID": org}});
        let body = json!({"orgID": org, "description": description, "permissions": [permission]});
        let path = "/api/v2/authorizations";
        let (status, answer) =
            influxdb.request("POST", path, "application/json", &body.to_string());
        assert_eq!(status, 201, "{answer}");
    }
    place.forget_read_token();
    let printed = place.run(&["--yes"], 0);
    let deleted = printed.matches("unused token of Grafana deleted").count();
    assert_eq!(deleted, 2, "{printed}");

    // The token reads the meta bucket and no other.
    influxdb.ensure_bucket("acme");
    let meta = influxdb.bucket_id("powerview_meta").expect("a bucket");
    let (_, tokens) = influxdb.request("GET", "/api/v2/authorizations?org=powerview", "", "");
    let tokens: Value = serde_json::from_str(&tokens).expect("JSON");
    let is_ours = |t: &&Value| t["description"] == "Grafana: réception";
    let ours: Vec<&Value> = tokens["authorizations"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(is_ours)
        .collect();
    assert_eq!(ours.len(), 1, "{tokens}");
    let all = tokens["authorizations"].as_array().expect("a list");
    assert!(all.iter().any(|t| t["description"] == "my own"), "{tokens}");
    let rights = ours[0]["permissions"].as_array().expect("a list");
    assert_eq!(rights.len(), 1, "{rights:?}");
    assert_eq!(
        (&rights[0]["action"], &rights[0]["resource"]["id"]),
        (&json!("read"), &json!(meta))
    );
    let query = |token: &str, bucket: &str| {
        let flux = format!("from(bucket: \"{bucket}\") |> range(start: -1h)");
        let output = Command::new("curl")
            .args([
                "--silent",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code}",
            ])
            .args(["--header", &format!("Authorization: Token {token}")])
            .args([
                "--header",
                "Content-Type: application/vnd.flux",
                "--data",
                &flux,
            ])
            .arg(format!("{}/api/v2/query?org=powerview", influxdb.url()))
            .output()
            .expect("curl starts");
        text(&output)
    };
    let token = place.env()["POWERVIEW_META_READ_TOKEN"].clone();
    assert_eq!(query(&token, "powerview_meta"), "200");
    assert_eq!(query(&token, "acme"), "404");

    let before = place.files();
    let printed = place.run(&["--yes"], 0);
    assert!(printed.contains("\nnothing was changed\n"), "{printed}");
    let files = place.files().into_iter();
    let changed: Vec<_> = files
        .filter(|(path, file)| before.get(path) != Some(file))
        .map(|f| f.0)
        .collect();
    assert_eq!(changed, [Path::new("sftpgo.log")]);
}
