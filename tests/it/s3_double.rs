//! A double of S3 with one bucket, as far as SFTPGo uses it to make folders, upload and rename. It keeps keys and sizes.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tiny_http::{Header, Method, Request, Response, Server};

pub const BUCKET: &str = "meter";

type Objects = Arc<Mutex<BTreeMap<String, u64>>>;

pub struct Double {
    pub url: String,
    objects: Objects,
}

impl Double {
    pub fn start() -> Self {
        let server = Server::http("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", server.server_addr());
        let objects = Objects::default();
        let double = Self {
            url,
            objects: objects.clone(),
        };
        std::thread::spawn(move || {
            for request in server.incoming_requests() {
                answer(request, &objects);
            }
        });
        double
    }

    /// The storage of a user or folder, as in SFTPGo's API.
    pub fn filesystem(&self, key_prefix: &str) -> Value {
        json!({"provider": 1, "s3config": {"bucket": BUCKET, "region": "us-east-1", "endpoint": self.url,
            "access_key": "key", "access_secret": {"status": "Plain", "payload": "secret"},
            "force_path_style": true, "key_prefix": key_prefix}})
    }

    /// The keys of the objects, without those of folders.
    pub fn keys(&self) -> Vec<String> {
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects
            .keys()
            .filter(|k| !k.ends_with('/'))
            .cloned()
            .collect()
    }
}

fn answer(mut request: Request, objects: &Objects) {
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
    let of_bucket = |path: &str| {
        let rest = path.trim_start_matches('/').strip_prefix(BUCKET);
        rest.expect("the bucket").trim_start_matches('/').to_owned()
    };
    let (key, query) = (of_bucket(path), query.to_owned());
    let header = |name: &'static str| {
        let found = request.headers().iter().find(|h| h.field.equiv(name));
        found.map(|h| h.value.to_string())
    };
    let size = header("x-amz-decoded-content-length").and_then(|length| length.parse().ok());
    let source = header("x-amz-copy-source").map(|source| of_bucket(&source.replace("%2F", "/")));
    let mut body = Vec::new();
    request
        .as_reader()
        .read_to_end(&mut body)
        .expect("the body");

    let (mut status, mut text, mut length) = (200, String::new(), None);
    match request.method() {
        Method::Put if source.is_some() => {
            let size = objects[&source.expect("a copy")];
            objects.insert(key, size);
            text = "<CopyObjectResult><ETag>\"1\"</ETag></CopyObjectResult>".to_owned();
        }
        Method::Put => {
            objects.insert(key, size.unwrap_or(body.len() as u64));
        }
        Method::Delete => {
            objects.remove(&key);
            status = 204;
        }
        Method::Head => match objects.get(&key) {
            Some(size) => length = Some(*size),
            None => status = 404,
        },
        Method::Get if key.is_empty() => {
            let prefix = query.split('&').find_map(|q| q.strip_prefix("prefix="));
            let prefix = prefix.unwrap_or_default().replace("%2F", "/");
            let found = objects.iter().filter(|(key, _)| key.starts_with(&prefix));
            let found: String = found
                .map(|(key, size)| {
                    format!("<Contents><Key>{key}</Key><Size>{size}</Size></Contents>")
                })
                .collect();
            text = format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            );
        }
        other => panic!("{other} {key} is not part of the double"),
    }
    drop(objects);
    let etag: Header = "ETag: \"1\"".parse().expect("a header");
    let modified: Header = "Last-Modified: Sun, 12 Oct 2025 00:00:00 GMT"
        .parse()
        .expect("a header");
    let length = length.map_or(text.len(), |length| length as usize);
    let response = Response::new(
        tiny_http::StatusCode(status),
        vec![etag, modified],
        text.as_bytes(),
        Some(length),
        None,
    );
    // SFTPGo may have closed the connection.
    let _ = request.respond(response);
}
