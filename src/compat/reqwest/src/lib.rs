//! The current reqwest, under the version that influxdb2 0.5.2 asks for, with a limit for the bodies of responses.
//!
//! influxdb2 reads each body to its end, so that a single response could take all memory. The types here have the
//! methods that influxdb2 calls.

pub use current::*;

use current::header::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::Arc;

/// How much of the body of an error is read, in bytes. The rest is dropped.
const MAX_ERROR: usize = 64 * 1024;

/// How much of a JSON document is read, in bytes. A longer one cannot be parsed.
const MAX_JSON: usize = 4 * 1024 * 1024;

/// Is called with the head of each response: influxdb2 passes no headers on.
#[derive(Clone)]
struct Observer(Arc<dyn Fn(StatusCode, &HeaderMap) + Send + Sync>);

impl Default for Observer {
    fn default() -> Self {
        Self(Arc::new(|_, _| ()))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// Builds a [`Client`].
#[derive(Debug)]
pub struct ClientBuilder(current::ClientBuilder, Observer);

impl ClientBuilder {
    /// Starts with the defaults.
    pub fn new() -> Self {
        Self(current::ClientBuilder::new(), Observer::default())
    }

    /// Builds the client.
    pub fn build(self) -> Result<Client> {
        let client = self.0.build()?;
        Ok(Client(client, self.1))
    }
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl<F> From<(current::ClientBuilder, F)> for ClientBuilder
where
    F: Fn(StatusCode, &HeaderMap) + Send + Sync + 'static,
{
    /// Builds a client that calls `observer` with the head of each response.
    fn from((builder, observer): (current::ClientBuilder, F)) -> Self {
        Self(builder, Observer(Arc::new(observer)))
    }
}

/// A client whose responses have limited bodies.
#[derive(Debug, Clone)]
pub struct Client(current::Client, Observer);

impl Client {
    /// Begins a request.
    pub fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        RequestBuilder(self.0.request(method, url), self.1.clone())
    }
}

/// Builds a request.
#[derive(Debug)]
pub struct RequestBuilder(current::RequestBuilder, Observer);

impl RequestBuilder {
    /// Adds a header.
    pub fn header<V>(self, name: &'static str, value: V) -> Self
    where
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<http::Error>,
    {
        Self(self.0.header(name, value), self.1)
    }

    /// Adds headers.
    pub fn headers(self, headers: HeaderMap) -> Self {
        Self(self.0.headers(headers), self.1)
    }

    /// Adds parameters to the URL.
    pub fn query(self, parameters: &(impl Serialize + ?Sized)) -> Self {
        Self(self.0.query(parameters), self.1)
    }

    /// Sets the body.
    pub fn body(self, body: impl Into<Body>) -> Self {
        Self(self.0.body(body), self.1)
    }

    /// Sets a JSON document as the body.
    pub fn json(self, document: &(impl Serialize + ?Sized)) -> Self {
        Self(self.0.json(document), self.1)
    }

    /// Sends the request.
    pub async fn send(self) -> Result<Response> {
        let response = self.0.send().await?;
        (self.1.0)(response.status(), response.headers());
        Ok(Response(response))
    }
}

/// A response with a limited body.
#[derive(Debug)]
pub struct Response(current::Response);

impl Response {
    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// Returns the first [`MAX_ERROR`] bytes of the body.
    pub async fn text(self) -> Result<String> {
        self.truncated(MAX_ERROR).await?.text().await
    }

    /// Parses the body, which may have [`MAX_JSON`] bytes.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T> {
        self.truncated(MAX_JSON).await?.json().await
    }

    /// Reads the body up to a limit and closes the connection if there is more.
    async fn truncated(mut self, limit: usize) -> Result<current::Response> {
        let mut body = Vec::new();
        while body.len() < limit
            && let Some(chunk) = self.0.chunk().await?
        {
            body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
        }
        Ok(http::Response::new(body).into())
    }
}
