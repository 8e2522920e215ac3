//! A real SFTPGo on a free port, with a temporary folder for the users' homes, the hook and the hook's `.env`.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::put_program;
use crate::hosts::HOST;
use crate::skipped::{installed, skipped};

/// The password of all users.
pub const PASSWORD: &str = "s3cret-pw";

/// The configuration of a server.
pub struct Setup<'a> {
    /// The program. Its templates are in `share/sftpgo` beside its `bin` folder, or in `/usr/share/sftpgo`.
    pub program: &'a Path,
    /// Its settings, as in `deploy/sftpgo.env`, with HOOK in place of the hook's path.
    pub settings: &'a [(&'a str, &'a str)],
    /// The hook's `.env`.
    pub dot_env: &'a str,
    /// The users; each has a home in the data folder.
    pub companies: &'a [&'a str],
    /// A public key that all users may log in with.
    pub public_key: Option<&'a str>,
    /// The storage of the users, as in SFTPGo's API; `Value::Null` for a local disk.
    pub filesystem: Value,
    /// The path and the storage of a virtual folder of all users.
    pub virtual_folder: Option<(&'a str, Value)>,
    /// Another host, whose data folder this one shares at the same path. The log folder there is its own: SFTPGo and its
    /// hooks have a mount namespace and a `/proc` of their own.
    pub shares_data_of: Option<&'a Site>,
    /// The user and group that SFTPGo runs as, with the capability of its systemd unit. By default those of the caller.
    pub user: Option<u32>,
}

impl<'a> Setup<'a> {
    /// A server without settings and users.
    pub fn new(program: &'a Path) -> Self {
        Self {
            program,
            settings: &[],
            dot_env: "",
            companies: &[],
            public_key: None,
            filesystem: Value::Null,
            virtual_folder: None,
            shares_data_of: None,
            user: None,
        }
    }
}

/// A running server. It is killed when it is dropped.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub port: u16,
    /// `SFTPGO_BASE` of the hook.
    base: PathBuf,
    sftpgo: Child,
}

impl Drop for Site {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.sftpgo.kill();
        let _ = self.sftpgo.wait();
    }
}

impl Site {
    pub fn start(setup: &Setup) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        for folder in ["base/bin", "conf", "sftpgo/data", "sftpgo/logs"] {
            fs::create_dir_all(path(folder)).expect("a folder");
        }
        let base = match setup.shares_data_of {
            Some(other) => other.base.clone(),
            None => path("sftpgo"),
        };
        fs::write(path("base/.env"), setup.dot_env).expect("a file");
        // Copies, because another user may not be able to enter the folders of the build.
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::copy(env!("CARGO_BIN_EXE_powerview"), path("base/bin/powerview")).expect("a copy");
        fs::copy(root.join("on-upload.sh"), path("base/on-upload.sh")).expect("a copy");
        symlink(
            root.join("grafana-automation"),
            path("base/grafana-automation"),
        )
        .expect("a link");
        // SFTPGo passes on no variables. On a real server the hook uses its default paths.
        let hook = format!(
            "#!/bin/bash\nexport POWERVIEW_BASE='{program}' SFTPGO_BASE='{}'\nexec '{program}/on-upload.sh' \"$@\"\n",
            base.display(),
            program = path("base").display()
        );
        put_program(&path("hook.sh"), &hook);
        let keys: Vec<_> = setup.public_key.into_iter().collect();
        let folders: Vec<_> = setup
            .virtual_folder
            .iter()
            .map(|(_, filesystem)| {
                json!({"name": "folder", "mapped_path": path("folder"), "filesystem": filesystem})
            })
            .collect();
        let links: Vec<_> = setup
            .virtual_folder
            .iter()
            .map(|(at, _)| json!({"name": "folder", "virtual_path": at}))
            .collect();
        let users: Vec<_> = setup
            .companies
            .iter()
            .map(|c| {
                json!({"username": c, "password": PASSWORD, "public_keys": keys, "status": 1,
                    "permissions": {"/": ["*"]}, "home_dir": base.join("data").join(c),
                    "filesystem": setup.filesystem, "virtual_folders": links})
            })
            .collect();
        fs::write(
            path("users.json"),
            json!({"version": 17, "folders": folders, "users": users}).to_string(),
        )
        .expect("a file");
        let log = File::create(path("sftpgo.log")).expect("a file");
        if let Some(user) = setup.user {
            for entry in walkdir::WalkDir::new(dir.path()) {
                lchown(entry.expect("an entry").path(), Some(user), Some(user)).expect("chown");
            }
        }

        let port = free_port();
        let mut command = server(setup, &dir);
        command
            .env("SFTPGO_SFTPD__BINDINGS__0__PORT", port.to_string())
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log);
        let site = Self {
            sftpgo: command.spawn().expect("SFTPGo starts"),
            port,
            base,
            dir,
        };
        let answers = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait_for("SFTPGo", 60, answers, || {
            fs::read_to_string(site.path("sftpgo.log")).unwrap_or_default()
        });
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.base.join("data")
    }

    pub fn pid(&self) -> u32 {
        self.sftpgo.id()
    }

    /// The log of the hook.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("sftpgo/logs/uploads.log")).unwrap_or_default()
    }
}

/// The command that starts SFTPGo, without the port.
fn server(setup: &Setup, dir: &tempfile::TempDir) -> Command {
    let prefix = setup
        .program
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("/usr"));
    let share = [prefix.join("share/sftpgo"), "/usr/share/sftpgo".into()]
        .into_iter()
        .find(|p| p.join("templates").exists())
        .expect(
            "SFTPGo's templates, in share/sftpgo beside its bin folder or in /usr/share/sftpgo",
        );
    let mut command = match (setup.user, setup.shares_data_of) {
        (Some(_), Some(_)) => panic!("a user in a namespace is not supported"),
        (Some(user), None) => with_capability(user),
        (None, Some(other)) => {
            let mut command = Command::new(HOST[0]);
            command
                .args(&HOST[1..])
                .args(["sh", "-c"])
                .arg("mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"")
                .arg("sh")
                .args([dir.path().join("sftpgo/logs"), other.base.join("logs")]);
            command
        }
        (None, None) => Command::new("/usr/bin/env"),
    };
    command.arg(setup.program);
    command
        .args(["serve", "--log-file-path", "", "--log-level", "info"])
        .arg("--config-dir")
        .arg(dir.path().join("conf"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("SFTPGO_DATA_PROVIDER__DRIVER", "memory")
        .env("SFTPGO_DATA_PROVIDER__NAME", "")
        .env("SFTPGO_LOADDATA_FROM", dir.path().join("users.json"))
        .env("SFTPGO_SFTPD__BINDINGS__0__ADDRESS", "127.0.0.1")
        .env("SFTPGO_HTTPD__BINDINGS__0__PORT", "0")
        .env("SFTPGO_HTTPD__TEMPLATES_PATH", share.join("templates"))
        .env("SFTPGO_SMTP__TEMPLATES_PATH", share.join("templates"))
        .env("SFTPGO_HTTPD__STATIC_FILES_PATH", share.join("static"))
        .env("SFTPGO_HTTPD__OPENAPI_PATH", share.join("openapi"));
    let hook = dir.path().join("hook.sh").display().to_string();
    for (key, value) in setup.settings {
        command.env(key, value.replace("HOOK", &hook));
    }
    command
}

/// A port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port")
        .port()
}

/// The program of `SFTPGO_BIN`. Skips the calling test without it, or without a client.
pub fn program() -> Option<PathBuf> {
    let Some(program) = std::env::var_os("SFTPGO_BIN").filter(|p| !p.is_empty()) else {
        skipped("SFTPGO_BIN", "set it to the path of an sftpgo");
        return None;
    };
    (installed("sshpass", "sshpass") && installed("sftp", "openssh-client")).then(|| program.into())
}

/// A command that runs its arguments as a systemd unit with `User=` and `AmbientCapabilities=CAP_NET_BIND_SERVICE`
/// does. Other processes of that user, without the capability, cannot look into `/proc/PID/fd` of such a process.
pub fn with_capability(user: u32) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={user}"))
        .args([
            "--clear-groups",
            "--inh-caps=-all,+net_bind_service",
            "--ambient-caps=-all,+net_bind_service",
        ]);
    command
}

/// Waits for a condition. Panics after a number of seconds, with the text of `otherwise`.
pub fn wait_for(
    what: &str,
    seconds: u64,
    there: impl Fn() -> bool,
    otherwise: impl Fn() -> String,
) {
    let start = Instant::now();
    while !there() {
        assert!(
            start.elapsed() < Duration::from_secs(seconds),
            "{what} does not come; {}",
            otherwise()
        );
        sleep(Duration::from_millis(50));
    }
}
