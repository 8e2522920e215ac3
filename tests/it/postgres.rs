//! A real PostgreSQL on a free port, with a temporary folder. `POSTGRES_BIN` is the folder of its programs; by default, it is
//! that of Debian's package.

use crate::harness::NOBODY;
use crate::sftpgo::{free_port, wait_for};
use crate::skipped::skipped;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const USER: &str = "sftpgo";

/// A running server. It is stopped when it is dropped.
pub struct Postgres {
    pub port: String,
    server: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The immediate stop, which also ends the processes of connections. It fails only if the server has ended already.
        let pid = Pid::from_child(&self.server);
        let _ = kill_process(pid, Signal::QUIT);
        let _ = self.server.wait();
    }
}

impl Postgres {
    /// Skips the calling test without PostgreSQL.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            skipped(
                "POSTGRES_BIN",
                "set it to the folder of initdb and postgres, or apt install postgresql",
            );
            return None;
        };
        let dir = tempfile::tempdir().expect("a folder");
        if rustix::process::geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
        }
        let data = dir.path().join("data");
        let made = command(&programs.join("initdb"), &data)
            .args(["--username", USER, "--auth=trust", "--no-sync"])
            .output()
            .expect("initdb starts");
        assert!(made.status.success(), "{made:?}");
        let port = free_port();
        let log = fs::File::create(dir.path().join("log")).expect("a file");
        let server = command(&programs.join("postgres"), &data)
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
            ])
            .args(["-c", "fsync=off", "-c", &format!("port={port}")])
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        let postgres = Self {
            port: port.to_string(),
            server,
            _dir: dir,
        };
        let log = data.with_file_name("log");
        wait_for(
            "PostgreSQL",
            60,
            || {
                let log = fs::read_to_string(&log).unwrap_or_default();
                log.contains("ready to accept connections")
                    && TcpStream::connect(("127.0.0.1", port)).is_ok()
            },
            || fs::read_to_string(&log).unwrap_or_default(),
        );
        Some(postgres)
    }

    /// The settings of an SFTPGo that shares its users with others by this database.
    pub fn settings(&self) -> [(&str, &str); 6] {
        [
            ("SFTPGO_DATA_PROVIDER__DRIVER", "postgresql"),
            ("SFTPGO_DATA_PROVIDER__HOST", "127.0.0.1"),
            ("SFTPGO_DATA_PROVIDER__PORT", &self.port),
            ("SFTPGO_DATA_PROVIDER__NAME", "postgres"),
            ("SFTPGO_DATA_PROVIDER__USERNAME", USER),
            ("SFTPGO_DATA_PROVIDER__IS_SHARED", "1"),
        ]
    }
}

fn programs() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("POSTGRES_BIN").filter(|p| !p.is_empty()) {
        return Some(folder.into());
    }
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let folders = versions.map(|version| version.path().join("bin"));
    folders.filter(|f| f.join("initdb").exists()).max()
}

/// A program of PostgreSQL, which refuses to run as root.
fn command(program: &Path, data: &Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("/usr/bin/setpriv");
        command
            .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
            .arg("--clear-groups")
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command
        .arg("-D")
        .arg(data)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}
