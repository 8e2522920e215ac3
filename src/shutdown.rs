//! SIGINT and SIGTERM: the first asks the run to end well, the second ends it at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether somebody wants the run to end.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(Arc<AtomicBool>);

/// How often those who wait look whether they should.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Shutdown {
    /// Listens for both signals. While one is being obeyed, another ends the process with exit code 1.
    ///
    /// # Errors
    /// Where the system refuses a handler.
    pub fn on_signals() -> std::io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, the second finds it set.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop.0))?;
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    /// Whether to stop.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks for the end, as a signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits until the end is asked for.
    pub async fn requested(&self) {
        while !self.is_requested() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
