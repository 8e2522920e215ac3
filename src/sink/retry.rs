//! When a request is sent again, for how long, and when a server counts as gone.
//! Source: docs/specification.md, section 6.

use super::WriteError;
use crate::shutdown::Shutdown;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// What one request came to, where it did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// No connection, a time-out, a reset, 429, 500 to 504: worth another try.
    Transient(String),
    /// 401, 403, a missing organisation, a redirect: the installation's fault. Another try changes nothing.
    Installation(String),
    /// 404.
    NotFound(String),
    /// 413.
    TooLarge(String),
    /// 422: the server kept the rest.
    Partial(String),
    /// Any other refusal.
    Refused(String),
}

/// Why [`RetryPolicy::run`] gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryError {
    /// Nothing more can be had in this run.
    GaveUp(WriteError),
    /// An answer that another try would not change; the caller knows what it means.
    Permanent(ApiError),
}

/// A request in flight when the run is asked to end may still take this long.
const LAST_GRACE: Duration = Duration::from_secs(3);
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// The last try before the time is up still gets this long.
const SHORTEST_TRY: Duration = Duration::from_secs(1);

/// The patience of one run with one server, for one kind of points. All their requests share it: what one has waited, another
/// does not wait again.
#[derive(Debug)]
pub struct RetryPolicy {
    retry_for: Duration,
    request_timeout: Duration,
    /// Since when nothing has succeeded.
    failing_since: Mutex<Option<Instant>>,
    outage: Mutex<Option<String>>,
    retries: AtomicU64,
    stop: Shutdown,
    /// Whether an outage is said here; else whoever sees the failure says it.
    log_outage: bool,
}

impl RetryPolicy {
    pub fn new(
        retry_for: Duration,
        request_timeout: Duration,
        stop: Shutdown,
        log_outage: bool,
    ) -> Self {
        Self {
            log_outage,
            retry_for,
            request_timeout,
            failing_since: Mutex::default(),
            outage: Mutex::default(),
            retries: AtomicU64::new(0),
            stop,
        }
    }

    /// Why the server counts as gone, once it does.
    pub fn outage(&self) -> Option<WriteError> {
        locked(&self.outage).clone().map(WriteError::Outage)
    }

    /// How many requests were sent again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// A batch was written: the server is there. Only a write says so, for a server may list buckets and yet write nothing.
    pub fn record_success(&self) {
        *locked(&self.failing_since) = None;
    }

    /// Makes a request until it succeeds, is refused, or the run's time for a failing server is used up.
    ///
    /// # Errors
    /// See [`RetryError`].
    pub async fn run<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, RetryError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let mut waits = ExponentialBuilder::default()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(LONGEST_WAIT)
            .without_max_times()
            .with_jitter()
            .build();
        let mut own_start = None;
        loop {
            if let Some(outage) = self.outage() {
                return Err(RetryError::GaveUp(outage));
            }
            if self.stop.is_requested() {
                return Err(RetryError::GaveUp(WriteError::Stopped));
            }
            let started = Instant::now();
            let limit = match own_start {
                None => self.request_timeout,
                Some(_) => self.request_timeout.min(
                    self.deadline(own_start)
                        .duration_since(started)
                        .max(SHORTEST_TRY),
                ),
            };
            let stopped = async {
                self.stop.requested().await;
                tokio::time::sleep(LAST_GRACE).await;
            };
            let result = tokio::select! {
                result = attempt() => result,
                () = tokio::time::sleep(limit) => Err(ApiError::Transient(format!("no answer within {limit:?}"))),
                () = stopped => return Err(RetryError::GaveUp(WriteError::Stopped)),
            };
            let reason = match result {
                Ok(value) => return Ok(value),
                Err(ApiError::Transient(reason)) => reason,
                Err(ApiError::Installation(reason)) => {
                    return Err(RetryError::GaveUp(self.declare_outage(&reason)));
                }
                Err(answer) => return Err(RetryError::Permanent(answer)),
            };
            let first_failure = *own_start.get_or_insert(started);
            locked(&self.failing_since).get_or_insert(started);
            let left = self
                .deadline(own_start)
                .saturating_duration_since(Instant::now());
            let wait = waits.next().unwrap_or(LONGEST_WAIT).min(left);
            if wait.is_zero() {
                let asked_for = first_failure.elapsed().as_secs_f64();
                let words = format!("InfluxDB could not be used for {asked_for:.0} s: {reason}");
                return Err(RetryError::GaveUp(self.declare_outage(&words)));
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("{reason}; asked again in {wait:?}");
            tokio::select! {
                () = tokio::time::sleep(wait) => (),
                () = self.stop.requested() => (),
            }
        }
    }

    /// When the time for a failing server is used up: counted from the first failure after which nothing was written, by
    /// whichever request, and from the first failure of this very request.
    fn deadline(&self, own_start: Option<Instant>) -> Instant {
        let now = Instant::now();
        let since = locked(&self.failing_since)
            .unwrap_or(now)
            .min(own_start.unwrap_or(now));
        since + self.retry_for
    }

    /// Decides that the server is gone, and says so once.
    fn declare_outage(&self, reason: &str) -> WriteError {
        let mut outage = locked(&self.outage);
        if outage.is_none() && self.log_outage {
            tracing::error!("{reason}; the remaining files are decided without asking again");
        }
        WriteError::Outage(outage.get_or_insert_with(|| reason.to_owned()).clone())
    }
}

/// A lock whose holder cannot panic.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn policy(retry_for: u64) -> RetryPolicy {
        RetryPolicy::new(
            Duration::from_secs(retry_for),
            TIMEOUT,
            Shutdown::default(),
            true,
        )
    }

    fn busy() -> ApiError {
        ApiError::Transient("503".to_owned())
    }

    /// Answers in turn, the last one for ever, and the seconds at which they were asked for.
    async fn asked(
        policy: &RetryPolicy,
        answers: &[Result<(), ApiError>],
    ) -> (Result<(), RetryError>, Vec<f64>) {
        let start = Instant::now();
        let times = RefCell::new(Vec::new());
        let result = policy
            .run(|| async {
                let mut times = times.borrow_mut();
                times.push(start.elapsed().as_secs_f64());
                answers[(times.len() - 1).min(answers.len() - 1)].clone()
            })
            .await;
        (result, times.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_server_is_asked_again_at_growing_intervals_until_the_time_is_up() {
        let policy = policy(60);
        let (result, times) = asked(&policy, &[Err(busy())]).await;
        assert!(matches!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage(_)))
        ));
        let waits: Vec<_> = times.windows(2).map(|t| t[1] - t[0]).collect();
        // Exponential with jitter: the n-th wait lies between 0.25 x 2^n and that plus 0.25, at most 8 s and a jitter.
        for (n, wait) in waits.iter().enumerate().take(waits.len() - 1) {
            let least = (0.25 * f64::from(1 << n.min(5))).min(8.0);
            assert!(
                *wait >= least * 0.999 && *wait <= 2.0 * least + 0.3,
                "wait {n}: {wait}, least {least}"
            );
        }
        let last = *times.last().unwrap();
        assert!(
            (59.9..60.1).contains(&last),
            "the last try comes when the time is up, not at {last}"
        );
        assert_eq!(policy.retries(), times.len() as u64 - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_comes_back_is_no_outage() {
        let policy = policy(60);
        let (result, times) = asked(&policy, &[Err(busy()), Err(busy()), Ok(())]).await;
        assert_eq!((result, times.len()), (Ok(()), 3));
        assert_eq!(policy.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_outage_nothing_is_asked_and_nothing_waits() {
        let policy = policy(60);
        let _ = asked(&policy, &[Err(busy())]).await;
        for _ in 0..500 {
            let (result, times) = asked(&policy, &[Ok(())]).await;
            assert!(matches!(
                result,
                Err(RetryError::GaveUp(WriteError::Outage(_)))
            ));
            assert!(times.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_side_by_side_share_the_time() {
        let policy = policy(60);
        let start = Instant::now();
        let dead = [Err(busy())];
        let late = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            asked(&policy, &dead).await
        };
        let (first, second) = tokio::join!(asked(&policy, &dead), late);
        assert!(first.0.is_err() && second.0.is_err());
        assert!(start.elapsed() < Duration::from_millis(60_100));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_as_a_failure_and_is_bounded_too() {
        let policy = policy(60);
        let start = Instant::now();
        let result: Result<(), _> = policy.run(std::future::pending).await;
        assert!(matches!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage(_)))
        ));
        assert!(
            start.elapsed() <= Duration::from_secs(62),
            "{:?}",
            start.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_time_means_no_second_try() {
        let (result, times) = asked(&policy(0), &[Err(busy())]).await;
        assert!(result.is_err());
        assert_eq!(times.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_installations_fault_is_an_outage_at_once() {
        let policy = policy(60);
        let (result, times) =
            asked(&policy, &[Err(ApiError::Installation("401".to_owned()))]).await;
        assert_eq!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage("401".to_owned())))
        );
        assert_eq!(times, [0.0]);
        assert!(policy.outage().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_given_back_and_concerns_no_other_request() {
        let policy = policy(60);
        let refused = ApiError::Refused("400".to_owned());
        let (result, times) = asked(&policy, &[Err(refused.clone())]).await;
        assert_eq!(
            (result, times.len()),
            (Err(RetryError::Permanent(refused)), 1)
        );
        assert_eq!(policy.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_write_ends_the_time_of_failure() {
        let policy = policy(60);
        let _ = asked(&policy, &[Err(busy()), Ok(())]).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        // A look-up has succeeded since, but nothing was written: the time is used up.
        let (result, times) = asked(&policy, &[Err(busy()), Ok(())]).await;
        assert!(result.is_err());
        assert_eq!(times.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_ends_the_time_of_failure() {
        let policy = policy(60);
        let _ = asked(&policy, &[Err(busy()), Ok(())]).await;
        policy.record_success();
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(asked(&policy, &[Err(busy()), Ok(())]).await.0, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_waiting() {
        let policy = policy(3600);
        let start = Instant::now();
        let stop = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            policy.stop.request();
        };
        let dead = [Err(busy())];
        let ((result, _), ()) = tokio::join!(asked(&policy, &dead), stop);
        assert_eq!(result, Err(RetryError::GaveUp(WriteError::Stopped)));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
