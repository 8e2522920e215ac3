//! An SFTP client (version 3 of the protocol, over OpenSSH's `ssh`) that sends one request at a time. It knows which
//! uploads were acknowledged, can pause within a file, and can be killed without unacknowledged requests.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_mins(2);

const INIT: u8 = 1;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const WRITE: u8 = 6;
const MKDIR: u8 = 14;
const RENAME: u8 = 18;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;

const NO_SUCH_FILE: u32 = 2;

/// A session. Its `ssh` is killed when it is dropped.
pub struct Session {
    ssh: Child,
    to: Option<ChildStdin>,
    answers: Receiver<Vec<u8>>,
    last_id: u32,
    /// The longest wait for an answer so far.
    pub longest: Duration,
}

/// An open file on the server.
pub struct Handle {
    id: Vec<u8>,
    offset: u64,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

impl Session {
    pub fn connect(user: &str, port: u16, private_key: &Path) -> io::Result<Self> {
        let mut ssh = Command::new("/usr/bin/ssh")
            .args(["-q", "-F", "/dev/null", "-p", &port.to_string(), "-i"])
            .arg(private_key)
            .args([
                "-oBatchMode=yes",
                "-oIdentitiesOnly=yes",
                "-oIdentityAgent=none",
                "-oStrictHostKeyChecking=no",
                "-oUserKnownHostsFile=/dev/null",
                "-s",
            ])
            .arg(format!("{user}@127.0.0.1"))
            .arg("sftp")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut from = ssh.stdout.take().expect("piped");
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            while let Ok(packet) = read_packet(&mut from) {
                if sender.send(packet).is_err() {
                    return;
                }
            }
        });
        let mut session = Self {
            to: ssh.stdin.take(),
            ssh,
            answers,
            last_id: 0,
            longest: Duration::ZERO,
        };
        session.send(INIT, &3_u32.to_be_bytes())?;
        session.receive()?;
        // The start of the session is not measured.
        session.longest = Duration::ZERO;
        Ok(session)
    }

    /// Opens a file for writing and truncates it. Returns `None` if the server reports a missing file: in atomic mode
    /// it renames an existing file, which fails if the file was moved just before.
    pub fn open(&mut self, path: &str) -> io::Result<Option<Handle>> {
        const WRITE_CREATE_TRUNCATE: u32 = 0x1a;
        let mut body = string(path.as_bytes());
        body.extend(WRITE_CREATE_TRUNCATE.to_be_bytes());
        body.extend(NO_ATTRIBUTES);
        let (kind, answer) = self.ask(OPEN, &body)?;
        match kind {
            HANDLE if answer.len() >= 4 => Ok(Some(Handle {
                id: answer[4..].to_vec(),
                offset: 0,
            })),
            STATUS if code(&answer) == Some(NO_SUCH_FILE) => Ok(None),
            _ => Err(refused("open", path, &answer)),
        }
    }

    pub fn write(&mut self, handle: &mut Handle, bytes: &[u8]) -> io::Result<()> {
        let mut body = string(&handle.id);
        body.extend(handle.offset.to_be_bytes());
        body.extend(string(bytes));
        handle.offset += bytes.len() as u64;
        self.done("write", "", WRITE, &body)
    }

    pub fn close(&mut self, handle: &Handle) -> io::Result<()> {
        self.done("close", "", CLOSE, &string(&handle.id))
    }

    pub fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let body = [string(from.as_bytes()), string(to.as_bytes())].concat();
        self.done("rename", from, RENAME, &body)
    }

    pub fn mkdir(&mut self, path: &str) -> io::Result<()> {
        let mut body = string(path.as_bytes());
        body.extend(NO_ATTRIBUTES);
        self.done("mkdir", path, MKDIR, &body)
    }

    /// Ends the session in order.
    pub fn end(mut self) -> io::Result<()> {
        drop(self.to.take());
        let start = Instant::now();
        while self.ssh.try_wait()?.is_none() {
            if start.elapsed() > TIMEOUT {
                return Err(io::Error::other("ssh does not end"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn done(&mut self, what: &str, path: &str, kind: u8, body: &[u8]) -> io::Result<()> {
        let (kind, answer) = self.ask(kind, body)?;
        if kind == STATUS && code(&answer) == Some(0) {
            Ok(())
        } else {
            Err(refused(what, path, &answer))
        }
    }

    /// Sends a request and waits for its answer. Returns the type, and the data after the number of the request.
    fn ask(&mut self, kind: u8, body: &[u8]) -> io::Result<(u8, Vec<u8>)> {
        self.last_id += 1;
        let id = self.last_id.to_be_bytes();
        self.send(kind, &[&id, body].concat())?;
        let answer = self.receive()?;
        match answer.split_first() {
            Some((kind, rest)) if rest.starts_with(&id) => Ok((*kind, rest[4..].to_vec())),
            _ => Err(io::Error::other("an answer to another request")),
        }
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 1).map_err(io::Error::other)?;
        let to = self.to.as_mut().expect("open until the end");
        to.write_all(&[&length.to_be_bytes(), &[kind][..], body].concat())?;
        to.flush()
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let start = Instant::now();
        let answer = self.answers.recv_timeout(TIMEOUT);
        self.longest = self.longest.max(start.elapsed());
        answer.map_err(|e| io::Error::other(format!("no answer from the SFTP server: {e}")))
    }
}

/// Attributes that set nothing.
const NO_ATTRIBUTES: [u8; 4] = [0; 4];

fn read_packet(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut packet = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut packet)?;
    Ok(packet)
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    [&length.to_be_bytes(), bytes].concat()
}

/// The code of a status answer.
fn code(answer: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(answer.get(..4)?.try_into().ok()?))
}

fn refused(what: &str, path: &str, answer: &[u8]) -> io::Error {
    io::Error::other(format!(
        "{what} {path}: {}",
        String::from_utf8_lossy(answer).escape_debug()
    ))
}
