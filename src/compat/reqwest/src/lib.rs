//! The current reqwest, under the version that influxdb2 0.5.2 asks for, with a limit for the bodies of responses.
//!
//! influxdb2 reads each body to its end, so that a single response could take all memory. The types here have the
//! methods that influxdb2 calls.

pub use current::*;

use current::header::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How much of the body of an error is read, in bytes. The rest is dropped.
const MAX_ERROR: usize = 64 * 1024;

/// How much of a JSON document is read, in bytes. A longer one cannot be parsed.
const MAX_JSON: usize = 4 * 1024 * 1024;

/// Builds a [`Client`].
#[derive(Debug)]
pub struct ClientBuilder(current::ClientBuilder);

impl ClientBuilder {
    /// Starts with the defaults.
    pub fn new() -> Self {
        Self(current::ClientBuilder::new())
    }

    /// Builds the client.
    pub fn build(self) -> Result<Client> {
        self.0.build().map(Client)
    }
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl From<current::ClientBuilder> for ClientBuilder {
    fn from(builder: current::ClientBuilder) -> Self {
        Self(builder)
    }
}

/// A client whose responses have limited bodies.
#[derive(Debug, Clone)]
pub struct Client(current::Client);

impl Client {
    /// Begins a request.
    pub fn request(&self, method: Method, url: impl IntoUrl) -> RequestBuilder {
        RequestBuilder(self.0.request(method, url))
    }
}

/// Builds a request.
#[derive(Debug)]
pub struct RequestBuilder(current::RequestBuilder);

impl RequestBuilder {
    /// Adds a header.
    pub fn header<V>(self, name: &'static str, value: V) -> Self
    where
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<http::Error>,
    {
        Self(self.0.header(name, value))
    }

    /// Adds headers.
    pub fn headers(self, headers: HeaderMap) -> Self {
        Self(self.0.headers(headers))
    }

    /// Adds parameters to the URL.
    pub fn query(self, parameters: &(impl Serialize + ?Sized)) -> Self {
        Self(self.0.query(parameters))
    }

    /// Sets the body.
    pub fn body(self, body: impl Into<Body>) -> Self {
        Self(self.0.body(body))
    }

    /// Sets a JSON document as the body.
    pub fn json(self, document: &(impl Serialize + ?Sized)) -> Self {
        Self(self.0.json(document))
    }

    /// Sends the request.
    pub async fn send(self) -> Result<Response> {
        self.0.send().await.map(Response)
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
