//! The outages of a run and the messages about them. See docs/specification.md, section 6.

use super::{WriteError, locked};
use crate::sanitize::sanitize;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// The minimum time between two messages about requests that are retried.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What counts as unavailable for the rest of a run: the server, or single buckets.
#[derive(Debug)]
pub(super) struct OutageLog {
    state: Mutex<State>,
    /// Whether outages are logged here. Otherwise the caller logs the failure.
    is_logged: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Why the server counts as unavailable.
    server: Option<String>,
    /// Why buckets count as unavailable.
    buckets: HashMap<Arc<str>, String>,
    /// When a request that is retried was last logged.
    logged: Option<Instant>,
}

impl OutageLog {
    pub(super) fn new(is_logged: bool) -> Self {
        Self {
            state: Mutex::default(),
            is_logged,
        }
    }

    /// The outage of the server or of a bucket.
    pub(super) fn of(&self, bucket: &str) -> Option<WriteError> {
        let state = locked(&self.state);
        let outage = state.server.as_ref().or_else(|| state.buckets.get(bucket));
        outage.cloned().map(WriteError::Outage)
    }

    /// Whether the server counts as unavailable for all buckets.
    pub(super) fn has_server(&self) -> bool {
        locked(&self.state).server.is_some()
    }

    /// Whether the server or a bucket counts as unavailable.
    pub(super) fn has_any(&self) -> bool {
        let state = locked(&self.state);
        state.server.is_some() || !state.buckets.is_empty()
    }

    /// Adds an outage of the server and returns the first one.
    pub(super) fn add_server(&self, reason: String) -> WriteError {
        let mut state = locked(&self.state);
        if state.server.is_none() {
            self.log_outage(&reason, "the server");
        }
        WriteError::Outage(state.server.get_or_insert(reason).clone())
    }

    /// Adds an outage of a bucket and returns the first one.
    pub(super) fn add_bucket(&self, bucket: &Arc<str>, reason: String) -> WriteError {
        let mut state = locked(&self.state);
        if !state.buckets.contains_key(bucket) {
            self.log_outage(&reason, &quoted(bucket));
        }
        let first = state.buckets.entry(Arc::clone(bucket)).or_insert(reason);
        WriteError::Outage(first.clone())
    }

    fn log_outage(&self, reason: &str, what: &str) {
        if self.is_logged {
            tracing::error!("{reason}; giving up on {what} for this run");
        }
    }

    /// Logs that a request is retried, at most once per [`LOG_INTERVAL`].
    pub(super) fn log_retry(&self, reason: &str, left: Duration) {
        let now = Instant::now();
        let mut state = locked(&self.state);
        let is_due = state
            .logged
            .is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL);
        if self.is_logged && is_due {
            state.logged = Some(now);
            tracing::warn!(
                "{reason}; retrying for up to {:.0} s",
                left.as_secs_f64().ceil()
            );
        } else {
            tracing::debug!("{reason}; retrying");
        }
    }
}

/// A bucket in a message.
pub(super) fn quoted(bucket: &str) -> String {
    format!("bucket {:?}", sanitize(bucket))
}
