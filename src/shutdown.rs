//! Shutdown on SIGINT and SIGTERM: the first signal requests an orderly end, the second ends the process at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A shutdown request, shared by all clones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown(Arc<AtomicBool>);

/// Interval at which waiting code checks for a shutdown request.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Shutdown {
    /// Registers handlers for both signals. A second signal ends the process with exit code 1.
    ///
    /// # Errors
    /// A handler cannot be registered.
    pub(crate) fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the conditional handler runs first, so the first signal finds the flag unset and the
            // second set.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&shutdown.0))?;
            signal_hook::flag::register(signal, Arc::clone(&shutdown.0))?;
        }
        // With a handler, a write beyond the limit of file sizes is an error. It would end the process otherwise.
        signal_hook::flag::register(libc::SIGXFSZ, Arc::default())?;
        Ok(shutdown)
    }

    /// Whether a shutdown was requested.
    pub(crate) fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Requests a shutdown, as a signal does.
    #[cfg(test)]
    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits until a shutdown is requested.
    pub(crate) async fn requested(&self) {
        while !self.is_requested() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
