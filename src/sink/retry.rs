//! Retries of requests, and the decision that a server is unavailable. See docs/specification.md, section 6.

use super::{WriteError, locked};
use crate::shutdown::Shutdown;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Why one request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ApiError {
    /// No connection, a timeout, a reset, or a status such as 429 or 503. The request can be retried.
    Transient(String),
    /// 401, 403, a missing organisation or a redirect. The configuration is wrong, so a retry cannot succeed.
    Installation(String),
    /// 404: the bucket or organisation does not exist.
    NotFound(String),
    /// 413: the request body is too large.
    TooLarge(String),
    /// 422 for a write: the server wrote the other points.
    Partial(String),
    /// Any other status that rejects the request.
    Refused(String),
}

/// Why [`RetryPolicy::run`] failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RetryError {
    /// The server is unavailable for the rest of the run, or a shutdown was requested.
    GaveUp(WriteError),
    /// An error that a retry cannot change. The caller decides what it means.
    Permanent(ApiError),
}

/// How long a request in flight may still take after a shutdown was requested.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// The delay before the first retry. It doubles with each retry, up to `MAX_DELAY`.
const MIN_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(8);
/// The minimum timeout of the last attempt before the deadline.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The retry policy of one run for one kind of points. All its requests share one deadline, so that a failing server
/// delays the run once and not once per request.
#[derive(Debug)]
pub(super) struct RetryPolicy {
    retry_for: Duration,
    request_timeout: Duration,
    /// The start of the first failed request since the last successful write.
    failing_since: Mutex<Option<Instant>>,
    outage: Mutex<Option<String>>,
    retries: AtomicU64,
    stop: Shutdown,
    /// Whether an outage is logged here. Otherwise the caller logs the failure.
    log_outage: bool,
}

impl RetryPolicy {
    pub(super) fn new(
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

    /// The outage, once the server counts as unavailable.
    pub(super) fn outage(&self) -> Option<WriteError> {
        locked(&self.outage).clone().map(WriteError::Outage)
    }

    /// The number of retries so far.
    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Records a successful write, which resets the deadline. Other requests do not reset it: a server may list buckets
    /// and still fail to write.
    pub(super) fn record_success(&self) {
        *locked(&self.failing_since) = None;
    }

    /// Repeats a request until it succeeds, fails permanently, or reaches the deadline.
    pub(super) async fn run<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, RetryError>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(MIN_DELAY)
            .with_max_delay(MAX_DELAY)
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
                        .max(MIN_TIMEOUT),
                ),
            };
            let grace_over = async {
                self.stop.requested().await;
                tokio::time::sleep(SHUTDOWN_GRACE).await;
            };
            let result = tokio::select! {
                result = attempt() => result,
                () = tokio::time::sleep(limit) => Err(ApiError::Transient(format!("no response within {limit:?}"))),
                () = grace_over => return Err(RetryError::GaveUp(WriteError::Stopped)),
            };
            let reason = match result {
                Ok(value) => return Ok(value),
                Err(ApiError::Transient(reason)) => reason,
                Err(ApiError::Installation(reason)) => {
                    return Err(RetryError::GaveUp(self.declare_outage(&reason)));
                }
                Err(error) => return Err(RetryError::Permanent(error)),
            };
            let first_failure = *own_start.get_or_insert(started);
            locked(&self.failing_since).get_or_insert(started);
            let left = self
                .deadline(own_start)
                .saturating_duration_since(Instant::now());
            let delay = delays.next().unwrap_or(MAX_DELAY).min(left);
            if delay.is_zero() {
                let elapsed = first_failure.elapsed().as_secs_f64();
                let message = format!("InfluxDB was unavailable for {elapsed:.0} s: {reason}");
                return Err(RetryError::GaveUp(self.declare_outage(&message)));
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("{reason}; retrying in {delay:?}");
            tokio::select! {
                () = tokio::time::sleep(delay) => (),
                () = self.stop.requested() => (),
            }
        }
    }

    /// The time at which retries end: `retry_for` after the first failure of any request since the last successful
    /// write, or after the first failure of this request, whichever is earlier.
    fn deadline(&self, own_start: Option<Instant>) -> Instant {
        let now = Instant::now();
        let start = locked(&self.failing_since)
            .unwrap_or(now)
            .min(own_start.unwrap_or(now));
        start + self.retry_for
    }

    /// Marks the server as unavailable for the rest of the run, and logs it the first time.
    fn declare_outage(&self, reason: &str) -> WriteError {
        let mut outage = locked(&self.outage);
        if outage.is_none() && self.log_outage {
            tracing::error!("{reason}; giving up on the server for this run");
        }
        WriteError::Outage(outage.get_or_insert_with(|| reason.to_owned()).clone())
    }
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

    /// Runs a request that gets `answers` in turn and repeats the last one. Returns the result and the time of each
    /// attempt, in seconds.
    async fn run(
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
    async fn requests_are_retried_at_growing_intervals_until_the_deadline() {
        let policy = policy(60);
        let (result, times) = run(&policy, &[Err(busy())]).await;
        assert!(matches!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage(_)))
        ));
        let delays: Vec<_> = times.windows(2).map(|t| t[1] - t[0]).collect();
        // Exponential with jitter: the n-th delay lies between 0.25 x 2^n s and twice that, at most 8 s plus jitter.
        for (n, delay) in delays.iter().enumerate().take(delays.len() - 1) {
            let least = (0.25 * f64::from(1 << n.min(5))).min(8.0);
            assert!(
                *delay >= least * 0.999 && *delay <= 2.0 * least + 0.3,
                "delay {n}: {delay}, least {least}"
            );
        }
        let last = *times.last().unwrap();
        assert!(
            (59.9..60.1).contains(&last),
            "the last attempt is made at the deadline, not at {last}"
        );
        assert_eq!(policy.retries(), times.len() as u64 - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_recovers_in_time_is_no_outage() {
        let policy = policy(60);
        let (result, times) = run(&policy, &[Err(busy()), Err(busy()), Ok(())]).await;
        assert_eq!((result, times.len()), (Ok(()), 3));
        assert_eq!(policy.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_outage_no_request_is_sent_and_nothing_waits() {
        let policy = policy(60);
        let _ = run(&policy, &[Err(busy())]).await;
        for _ in 0..500 {
            let (result, times) = run(&policy, &[Ok(())]).await;
            assert!(matches!(
                result,
                Err(RetryError::GaveUp(WriteError::Outage(_)))
            ));
            assert!(times.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_the_deadline() {
        let policy = policy(60);
        let start = Instant::now();
        let dead = [Err(busy())];
        let late = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            run(&policy, &dead).await
        };
        let (first, second) = tokio::join!(run(&policy, &dead), late);
        assert!(first.0.is_err() && second.0.is_err());
        assert!(start.elapsed() < Duration::from_millis(60_100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_response_is_a_failure_and_is_bounded_too() {
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
    async fn without_retry_time_there_is_one_attempt() {
        let (result, times) = run(&policy(0), &[Err(busy())]).await;
        assert!(result.is_err());
        assert_eq!(times.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_configuration_error_is_an_outage_at_once() {
        let policy = policy(60);
        let (result, times) = run(&policy, &[Err(ApiError::Installation("401".to_owned()))]).await;
        assert_eq!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage("401".to_owned())))
        );
        assert_eq!(times, [0.0]);
        assert!(policy.outage().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rejected_request_is_returned_and_affects_no_other() {
        let policy = policy(60);
        let refused = ApiError::Refused("400".to_owned());
        let (result, times) = run(&policy, &[Err(refused.clone())]).await;
        assert_eq!(
            (result, times.len()),
            (Err(RetryError::Permanent(refused)), 1)
        );
        assert_eq!(policy.outage(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn other_requests_than_writes_do_not_reset_the_deadline() {
        let policy = policy(60);
        let _ = run(&policy, &[Err(busy()), Ok(())]).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        // A lookup has succeeded since, but no write: the deadline has passed.
        let (result, times) = run(&policy, &[Err(busy()), Ok(())]).await;
        assert!(result.is_err());
        assert_eq!(times.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_successful_write_resets_the_deadline() {
        let policy = policy(60);
        let _ = run(&policy, &[Err(busy()), Ok(())]).await;
        policy.record_success();
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(run(&policy, &[Err(busy()), Ok(())]).await.0, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_the_retries() {
        let policy = policy(3600);
        let start = Instant::now();
        let stop = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            policy.stop.request();
        };
        let dead = [Err(busy())];
        let ((result, _), ()) = tokio::join!(run(&policy, &dead), stop);
        assert_eq!(result, Err(RetryError::GaveUp(WriteError::Stopped)));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
