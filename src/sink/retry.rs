//! Retries of requests, and the decision that a bucket or the server is unavailable. See docs/specification.md, section 6.

use super::outage_log::{OutageLog, quoted};
use super::{WriteError, locked};
use crate::shutdown::Shutdown;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Why one request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ApiError {
    /// No connection, or a status such as 429 or 503. The request can be retried.
    Transient(String),
    /// A timeout or a reset after the connection was established, or a proxy's 502 or 504. The request can be retried, but
    /// the server may still carry it out as well.
    Unanswered(String),
    /// 429 with a time to wait: the request can be retried after it.
    Throttled {
        message: String,
        /// The value of `Retry-After`.
        wait: Duration,
    },
    /// 401, a missing organisation or a redirect. The configuration is wrong, so a retry cannot succeed.
    Installation(String),
    /// 403, or 401 for a new bucket: the token is denied this request, but others may succeed.
    Forbidden(String),
    /// 404: the bucket or organisation does not exist.
    NotFound(String),
    /// 413: the request body is too large.
    TooLarge(String),
    /// 422 for a write: the server dropped some points and wrote the others.
    Partial {
        message: String,
        /// How many were dropped, if the message says so.
        dropped: Option<u64>,
        /// Whether they were dropped because they are older than the retention of the bucket.
        expired: bool,
    },
    /// Any other status that rejects the request.
    Refused(String),
}

impl ApiError {
    /// The message of the server, or why there is none.
    pub(super) fn into_message(self) -> String {
        match self {
            Self::Transient(message)
            | Self::Unanswered(message)
            | Self::Installation(message)
            | Self::Forbidden(message)
            | Self::NotFound(message)
            | Self::TooLarge(message)
            | Self::Throttled { message, .. }
            | Self::Partial { message, .. }
            | Self::Refused(message) => message,
        }
    }
}

/// Why [`RetryPolicy::run`] failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RetryError {
    /// All retries of the request failed, its bucket or the server is unavailable, or a shutdown was requested.
    GaveUp(WriteError),
    /// An error that a retry cannot change. The caller decides what it means.
    Permanent(ApiError),
}

/// The cause of a request that still fails after its retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The request itself: the server accepts other writes to the same bucket.
    Request,
    /// The bucket: the server is healthy, but accepts no write to this bucket.
    Bucket,
    /// The server.
    Server,
}

/// The maximum number of requests in flight, for all devices together.
const MAX_IN_FLIGHT: usize = 4;
/// How long a request in flight may still take after a shutdown was requested.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// The delay before the first retry. It doubles with each retry, up to `MAX_DELAY`.
const MIN_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(8);
/// The minimum timeout of the last attempt before the deadline.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum retry time once all retries of a request of the run have failed.
const SHORT_RETRY_FOR: Duration = Duration::from_secs(10);
/// The number of requests whose retries all failed, without a successful write in between, after which nothing is
/// retried. A server with a full disk accepts the probe and no batch.
const MAX_IN_A_ROW: u32 = 10;

/// The retry policy of one run for one kind of points.
///
/// All requests for a bucket share one deadline, so that a failing bucket delays the run once and not once per request.
/// Buckets do not affect each other, until the server itself counts as unavailable.
#[derive(Debug)]
pub(super) struct RetryPolicy {
    retry_for: Duration,
    request_timeout: Duration,
    state: Mutex<State>,
    outages: OutageLog,
    in_flight: Semaphore,
    retries: AtomicU64,
    stop: Shutdown,
}

#[derive(Debug, Default)]
struct State {
    /// The start of the first failed request for a bucket since the last successful write to it.
    failing_since: HashMap<Arc<str>, Instant>,
    /// Whether all retries of a request have failed.
    has_given_up: bool,
    /// The number of requests since the last successful write whose retries all failed.
    in_a_row: u32,
    /// When retries end at the latest.
    end: Option<Instant>,
}

impl RetryPolicy {
    pub(super) fn new(
        retry_for: Duration,
        request_timeout: Duration,
        stop: Shutdown,
        log_outages: bool,
    ) -> Self {
        Self {
            retry_for,
            request_timeout,
            state: Mutex::default(),
            outages: OutageLog::new(log_outages),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            retries: AtomicU64::new(0),
            stop,
        }
    }

    /// A policy with the same limits that no failure so far and no shutdown affects.
    pub(super) fn afresh(&self) -> Self {
        Self::new(
            self.retry_for,
            self.request_timeout,
            Shutdown::default(),
            true,
        )
    }

    /// Ends retries a little before this time, at which the caller drops its requests: one that fails all the time then
    /// counts as an outage, with its reason.
    pub(super) fn end_before(&self, time: std::time::Instant) {
        let end = time.checked_sub(MIN_TIMEOUT * 3 / 2).unwrap_or(time);
        locked(&self.state).end = Some(end.into());
    }

    /// The outages of the run.
    pub(super) fn outages(&self) -> &OutageLog {
        &self.outages
    }

    /// The number of retries so far.
    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Records a successful write, which resets the deadline of its bucket. Other requests do not reset it: a server may
    /// list buckets and still fail to write.
    pub(super) fn record_success(&self, bucket: &Arc<str>) {
        let mut state = locked(&self.state);
        state.in_a_row = 0;
        state.failing_since.remove(bucket);
    }

    /// Repeats a request for a bucket until it succeeds, fails permanently, or reaches the deadline. Then
    /// `find_scope` finds out what it failed because of.
    pub(super) async fn run<T, F>(
        &self,
        bucket: &Arc<str>,
        find_scope: impl Future<Output = Scope>,
        attempt: impl Fn() -> F,
    ) -> Result<T, RetryError>
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
            // It is released between attempts, so that a request that is retried delays no other.
            let permit = self.in_flight.acquire().await;
            if let Some(outage) = self.outages.of(bucket) {
                return Err(RetryError::GaveUp(outage));
            }
            if self.stop.is_requested() {
                return Err(RetryError::GaveUp(WriteError::Stopped));
            }
            let started = Instant::now();
            let limit = match own_start {
                None => self.request_timeout,
                Some(own_start) => self.request_timeout.min(
                    self.deadline(bucket, own_start)
                        .duration_since(started)
                        .max(MIN_TIMEOUT),
                ),
            };
            let result = self
                .until_shutdown(async {
                    tokio::time::timeout(limit, attempt())
                        .await
                        .unwrap_or_else(|_| {
                            Err(ApiError::Unanswered(format!(
                                "no response within {limit:?}"
                            )))
                        })
                })
                .await?;
            drop(permit);
            let (reason, wait) = match result {
                Ok(value) => return Ok(value),
                Err(ApiError::Transient(reason) | ApiError::Unanswered(reason)) => {
                    (reason, Duration::ZERO)
                }
                Err(ApiError::Throttled { message, wait }) => (message, wait),
                Err(ApiError::Installation(reason)) => {
                    return Err(RetryError::GaveUp(self.outages.add_server(reason)));
                }
                Err(ApiError::Forbidden(reason)) => {
                    return Err(RetryError::GaveUp(self.outages.add_bucket(bucket, reason)));
                }
                Err(error) => return Err(RetryError::Permanent(error)),
            };
            let first_failure = *own_start.get_or_insert(started);
            locked(&self.state)
                .failing_since
                .entry(Arc::clone(bucket))
                .or_insert(started);
            let left = self
                .deadline(bucket, first_failure)
                .saturating_duration_since(Instant::now());
            if wait > left {
                // An earlier request would count against the limit as well.
                let reason = format!(
                    "{reason}; the server asks to wait {:.0} s, which is longer than the time left for retries",
                    wait.as_secs_f64().ceil()
                );
                return Err(RetryError::GaveUp(self.outages.add_server(reason)));
            }
            let delay = delays.next().unwrap_or(MAX_DELAY).max(wait).min(left);
            if delay.is_zero() {
                let scope = self.until_shutdown(find_scope).await?;
                return Err(RetryError::GaveUp(self.give_up(
                    bucket,
                    scope,
                    first_failure,
                    &reason,
                )));
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            self.outages.log_retry(&reason, left);
            tokio::select! {
                () = tokio::time::sleep(delay) => (),
                () = self.stop.requested() => (),
            }
        }
    }

    /// Waits for a response, but not long after a shutdown was requested.
    async fn until_shutdown<T>(&self, response: impl Future<Output = T>) -> Result<T, RetryError> {
        let grace_over = async {
            self.stop.requested().await;
            tokio::time::sleep(SHUTDOWN_GRACE).await;
        };
        tokio::select! {
            response = response => Ok(response),
            () = grace_over => Err(RetryError::GaveUp(WriteError::Stopped)),
        }
    }

    /// The time at which the retries of a failed request end, unless they end earlier for all: `retry_for` after the first
    /// failure for its bucket since the last successful write to it, or after the request's own first failure, whichever is
    /// earlier.
    fn deadline(&self, bucket: &Arc<str>, own_start: Instant) -> Instant {
        let state = locked(&self.state);
        let retry_for = match state.in_a_row {
            MAX_IN_A_ROW.. => Duration::ZERO,
            _ if state.has_given_up => self.retry_for.min(SHORT_RETRY_FOR),
            _ => self.retry_for,
        };
        let failing_since = state.failing_since.get(bucket).unwrap_or(&own_start);
        let deadline = own_start.min(*failing_since) + retry_for;
        state.end.map_or(deadline, |end| deadline.min(end))
    }

    /// Records that all retries of a request failed.
    fn give_up(
        &self,
        bucket: &Arc<str>,
        scope: Scope,
        first_failure: Instant,
        reason: &str,
    ) -> WriteError {
        let elapsed = first_failure.elapsed().as_secs_f64();
        let mut state = locked(&self.state);
        state.has_given_up = true;
        state.in_a_row = state.in_a_row.saturating_add(1);
        // The next file has its own retry time.
        state.failing_since.remove(bucket);
        drop(state);
        let unavailable =
            |what: &str| format!("{what} was unavailable for {elapsed:.0} s: {reason}");
        match scope {
            Scope::Request => WriteError::Unwritten(format!(
                "InfluxDB accepts other writes to this bucket, but failed for {elapsed:.0} s: {reason}; see its log"
            )),
            Scope::Bucket => {
                let reason = unavailable(&quoted(bucket));
                self.outages.add_bucket(bucket, reason)
            }
            Scope::Server => self.outages.add_server(unavailable("InfluxDB")),
        }
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

    fn bucket(name: &str) -> Arc<str> {
        name.into()
    }

    /// Runs a request in an outage of the server, as [`run_in`] does.
    async fn run(
        policy: &RetryPolicy,
        answers: &[Result<(), ApiError>],
    ) -> (Result<(), RetryError>, Vec<f64>) {
        run_in(policy, "acme", Scope::Server, answers).await
    }

    /// Runs a request that gets `answers` in turn and repeats the last one. Returns the result and the time of each
    /// attempt, in seconds.
    async fn run_in(
        policy: &RetryPolicy,
        name: &str,
        scope: Scope,
        answers: &[Result<(), ApiError>],
    ) -> (Result<(), RetryError>, Vec<f64>) {
        let start = Instant::now();
        let times = RefCell::new(Vec::new());
        let result = policy
            .run(&bucket(name), async { scope }, || async {
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
    async fn a_server_that_fails_until_requests_are_dropped_is_an_outage() {
        let policy = policy(60);
        let dropped = Instant::now() + Duration::from_secs(10);
        policy.end_before(dropped.into_std());
        let (result, _) = run(&policy, &[Err(busy())]).await;
        assert!(Instant::now() < dropped);
        assert!(matches!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage(_)))
        ));
        assert!(policy.outages().of("acme").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_recovers_in_time_is_no_outage() {
        let policy = policy(60);
        let (result, times) = run(&policy, &[Err(busy()), Err(busy()), Ok(())]).await;
        assert_eq!((result, times.len()), (Ok(()), 3));
        assert_eq!(policy.outages().of("acme"), None);
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
        let result: Result<(), _> = policy
            .run(
                &bucket("acme"),
                async { Scope::Server },
                std::future::pending,
            )
            .await;
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

    fn throttled(seconds: u64) -> ApiError {
        ApiError::Throttled {
            message: "429".to_owned(),
            wait: Duration::from_secs(seconds),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_sent_again_after_the_time_that_the_server_asks_to_wait() {
        let (result, times) = run(&policy(60), &[Err(throttled(20)), Ok(())]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(times.len(), 2);
        assert!((20.0..20.1).contains(&times[1]), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_to_wait_that_is_longer_than_the_retry_time_is_an_outage_of_the_server() {
        let policy = policy(60);
        let (result, times) = run(&policy, &[Err(throttled(61)), Ok(())]).await;
        let expected =
            "429; the server asks to wait 61 s, which is longer than the time left for retries";
        assert_eq!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage(expected.to_owned())))
        );
        assert_eq!(times, [0.0]);
        assert!(policy.outages().has_server());
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
        assert!(policy.outages().of("acme").is_some());
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
        assert_eq!(policy.outages().of("acme"), None);
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
        policy.record_success(&bucket("acme"));
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(run(&policy, &[Err(busy()), Ok(())]).await.0, Ok(()));
    }

    /// The seconds until the last attempt of a request that always fails because of `scope`.
    async fn last_attempt(policy: &RetryPolicy, name: &str, scope: Scope) -> f64 {
        let (result, times) = run_in(policy, name, scope, &[Err(busy())]).await;
        assert!(matches!(result, Err(RetryError::GaveUp(_))), "{result:?}");
        *times.last().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_fails_alone_is_no_outage_and_shortens_later_retries() {
        let policy = policy(60);
        let (result, times) = run_in(&policy, "acme", Scope::Request, &[Err(busy())]).await;
        assert!(matches!(
            result,
            Err(RetryError::GaveUp(WriteError::Unwritten(_)))
        ));
        assert!((59.9..60.1).contains(times.last().unwrap()));
        assert!(!policy.outages().has_any());
        for name in ["acme", "other", "acme"] {
            let last = last_attempt(&policy, name, Scope::Request).await;
            assert!((9.9..10.1).contains(&last), "{name}: {last}");
        }
        for name in ["acme", "other"] {
            let answers = [Err(busy()), Err(busy()), Ok(())];
            let (result, times) = run_in(&policy, name, Scope::Request, &answers).await;
            assert_eq!((result, times.len()), (Ok(()), 3), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_time_below_ten_seconds_stays() {
        let policy = policy(2);
        for _ in 0..3 {
            let last = last_attempt(&policy, "acme", Scope::Request).await;
            assert!((1.9..2.1).contains(&last), "{last}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_that_is_unavailable_affects_no_other() {
        let policy = policy(60);
        let last = last_attempt(&policy, "acme", Scope::Bucket).await;
        assert!((59.9..60.1).contains(&last), "{last}");
        assert!(policy.outages().of("acme").is_some() && policy.outages().of("other").is_none());
        assert!(policy.outages().has_any() && !policy.outages().has_server());
        let (result, times) = run_in(&policy, "acme", Scope::Bucket, &[Ok(())]).await;
        assert!(result.is_err() && times.is_empty());
        let answers = [Err(busy()), Ok(())];
        let (result, times) = run_in(&policy, "other", Scope::Bucket, &answers).await;
        assert_eq!((result, times.len()), (Ok(()), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_forbidden_bucket_is_not_retried_and_affects_no_other() {
        let policy = policy(60);
        let forbidden = || [Err(ApiError::Forbidden("403".to_owned()))];
        let (result, times) = run_in(&policy, "acme", Scope::Server, &forbidden()).await;
        assert_eq!(
            result,
            Err(RetryError::GaveUp(WriteError::Outage("403".to_owned())))
        );
        assert_eq!(times, [0.0]);
        let (result, _) = run_in(&policy, "other", Scope::Server, &[Ok(())]).await;
        assert_eq!(result, Ok(()));
        // It was not retried, so that the retry time is still there.
        let last = last_attempt(&policy, "third", Scope::Request).await;
        assert!((59.9..60.1).contains(&last), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_server_is_waited_for_once_and_not_per_bucket() {
        let policy = policy(60);
        let start = Instant::now();
        let late = async |name: &str, seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            run_in(&policy, name, Scope::Server, &[Err(busy())]).await
        };
        let requests = tokio::join!(late("a", 0), late("b", 5), late("c", 30), late("d", 59));
        for (result, _) in <[_; 4]>::from(requests) {
            assert!(matches!(
                result,
                Err(RetryError::GaveUp(WriteError::Outage(_)))
            ));
        }
        // The last request waits for its next attempt before it notices.
        assert!(
            start.elapsed() < Duration::from_secs(70),
            "{:?}",
            start.elapsed()
        );
        let (result, times) = run_in(&policy, "e", Scope::Server, &[Ok(())]).await;
        assert!(result.is_err() && times.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_has_a_deadline_of_its_own() {
        let policy = policy(60);
        let _ = run_in(&policy, "acme", Scope::Request, &[Err(busy()), Ok(())]).await;
        tokio::time::sleep(Duration::from_secs(61)).await;
        // The deadline of acme has passed, but not that of another bucket.
        let answers = [Err(busy()), Ok(())];
        let (result, _) = run_in(&policy, "other", Scope::Request, &answers).await;
        assert_eq!(result, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn after_ten_failures_in_a_row_nothing_is_retried_until_a_write_succeeds() {
        let policy = policy(60);
        for n in 0..10 {
            let last = last_attempt(&policy, &format!("bucket {}", n % 3), Scope::Request).await;
            assert!(last > 9.9, "{n}: {last}");
        }
        let start = Instant::now();
        for _ in 0..1000 {
            assert!(last_attempt(&policy, "acme", Scope::Request).await < 0.1);
        }
        assert!(start.elapsed() < Duration::from_secs(1));
        policy.record_success(&bucket("other"));
        let last = last_attempt(&policy, "acme", Scope::Request).await;
        assert!((9.9..10.1).contains(&last), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_retried_does_not_block_others() {
        let policy = policy(60);
        let start = Instant::now();
        let busy = [Err(busy())];
        let failing = || run_in(&policy, "acme", Scope::Request, &busy);
        let healthy = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let result = run_in(&policy, "other", Scope::Request, &[Ok(())]).await;
            (result.0, start.elapsed())
        };
        let (.., healthy) = tokio::join!(
            failing(),
            failing(),
            failing(),
            failing(),
            failing(),
            healthy
        );
        assert_eq!(healthy, (Ok(()), Duration::from_secs(5)));
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
