//! Buckets: looked up by name once per run, and created if missing. See docs/specification.md, section 6.

use super::client::Client;
use super::response::status_of;
use crate::data_dir::{is_name_of_rebuild, rebuild_bucket};
use crate::points::Batch;
use crate::sanitize::sanitize;
use crate::sink::retry::{ApiError, RetryError, RetryPolicy};
use crate::sink::{Stream, WriteError, locked};
use chrono::Utc;
use influxdb2::RequestError;
use influxdb2::api::buckets::ListBucketsRequest;
use influxdb2::api::organization::ListOrganizationRequest;
use influxdb2::models::{PostBucketRequest, RetentionRule, retention_rule};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// The period of a shard in a bucket that keeps points for ever, in seconds: 26 weeks. InfluxDB's default is a week, so that a
/// query for ten years would open 520 shards.
pub(super) const SHARD_S: i64 = 26 * 7 * 24 * 3600;

/// The timeout of a prefetch. A write that needs the bucket waits for it, and afterwards looks it up with retries.
const PREFETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// A bucket as a write needs it.
#[derive(Debug, Clone)]
pub(super) struct KnownBucket {
    /// The name or id under which a write finds it.
    pub key: String,
    /// How long it keeps points, in seconds. `None` if it keeps them for ever.
    pub retention_s: Option<i64>,
}

impl KnownBucket {
    /// A bucket that is addressed by its name and keeps points for ever.
    pub(super) fn named(name: &str) -> Self {
        Self {
            key: name.to_owned(),
            retention_s: None,
        }
    }

    /// Returns the points of a batch that are not older than the retention, or `None` if there are none.
    pub(super) fn without_expired(&self, batch: Batch) -> std::io::Result<Option<Batch>> {
        match self.retention_s {
            Some(retention_s) => batch.since(Utc::now().timestamp() - retention_s),
            None => Ok(Some(batch)),
        }
    }
}

impl Client {
    /// Looks up a bucket once. If this fails, the first write looks it up again.
    pub(super) async fn prefetch_bucket(&self, bucket: &Arc<str>) {
        if self.retry.outages().of(bucket).is_some() {
            return;
        }
        let look_up = || async {
            let found = self.find(bucket).await.map_err(|_| ())?;
            if found.is_none() {
                locked(&self.missing).insert(Arc::clone(bucket));
            }
            found.ok_or(())
        };
        let cell = self.cell(bucket);
        let _ = tokio::time::timeout(PREFETCH_TIMEOUT, cell.get_or_try_init(look_up)).await;
    }

    pub(super) fn cell(&self, bucket: &Arc<str>) -> Arc<OnceCell<KnownBucket>> {
        let mut buckets = locked(&self.buckets);
        Arc::clone(buckets.entry(Arc::clone(bucket)).or_default())
    }

    /// Looks up a bucket once per run, and creates it if it is missing.
    pub(super) async fn known_bucket(
        &self,
        bucket: &Arc<str>,
        retry: &RetryPolicy,
    ) -> Result<KnownBucket, WriteError> {
        let cell = self.cell(bucket);
        cell.get_or_try_init(|| async {
            let attempt = || self.find_or_create(bucket);
            let find_scope = self.find_scope(bucket, Stream::Measurements);
            retry
                .run(bucket, find_scope, attempt)
                .await
                .map_err(|error| match error {
                    RetryError::GaveUp(error) => error,
                    RetryError::Permanent(error) => WriteError::Rejected(format!(
                        "cannot create bucket {:?}: {}",
                        sanitize(&**bucket),
                        error.into_message()
                    )),
                })
        })
        .await
        .cloned()
    }

    pub(super) fn forget(&self, bucket: &str) {
        locked(&self.buckets).remove(bucket);
    }

    pub(super) async fn find_or_create(&self, name: &str) -> Result<KnownBucket, ApiError> {
        // A bucket that the prefetch did not find is created without a second lookup. If it exists by now, that is a
        // conflict.
        let is_missing = locked(&self.missing).remove(name);
        if !is_missing && let Some(found) = self.find(name).await? {
            return Ok(found);
        }
        // An ingestion has no such bucket. A new one would lack the points that the deleted one had.
        if is_name_of_rebuild(name) {
            return Err(ApiError::Refused(
                "it was deleted meanwhile; run powerview rebuild again".to_owned(),
            ));
        }
        // While a company's bucket is replaced, there is none for a moment. Points in another one would be lost.
        if self.find(&rebuild_bucket(name)).await?.is_some() {
            return Err(ApiError::Transient(format!(
                "bucket {name:?} is being rebuilt; if powerview rebuild does not run any more, run it again to its end, or bring the former bucket back with powerview rebuild --undo",
                name = sanitize(name)
            )));
        }
        let org_id = self.org_id().await?;
        let mut request = PostBucketRequest::new(org_id, name.to_owned());
        request.retention_rules = vec![RetentionRule {
            shard_group_duration_seconds: Some(SHARD_S),
            ..RetentionRule::new(retention_rule::Type::Expire, 0)
        }];
        match self.plain.create_bucket(Some(request)).await {
            Ok(()) if is_bucket_id(name) => self.find(name).await?.ok_or_else(|| {
                ApiError::Transient(format!("bucket {name:?} was created, but is not listed"))
            }),
            Ok(()) => {
                tracing::info!("created bucket {:?}", sanitize(name));
                Ok(KnownBucket::named(name))
            }
            // Another process has created it (409, or 422 with the code "conflict").
            Err(error) if matches!(status_of(&error), Some(409 | 422)) => {
                self.find(name).await?.ok_or_else(|| self.api_error(&error))
            }
            Err(error) => Err(match self.api_error(&error) {
                // The token was accepted before, but may not create buckets. Those that exist are not affected.
                ApiError::Installation(message) if status_of(&error) == Some(401) => {
                    ApiError::Forbidden(message)
                }
                api_error => api_error,
            }),
        }
    }

    /// Looks up a bucket by its name. InfluxDB reads a name of 16 hexadecimal digits as a bucket id, so such a bucket is
    /// addressed by its own id.
    ///
    /// InfluxDB 3 has no such look-up: the first write makes a database.
    pub(super) async fn find(&self, name: &str) -> Result<Option<KnownBucket>, ApiError> {
        if self.is_influx3() {
            return Ok(Some(KnownBucket::named(name)));
        }
        let request = ListBucketsRequest {
            name: Some(name.to_owned()),
            org: Some(self.org.clone()),
            ..ListBucketsRequest::default()
        };
        match self.plain.list_buckets(Some(request)).await {
            Ok(list) => Ok(list
                .buckets
                .into_iter()
                .find(|bucket| bucket.name == name)
                .and_then(|bucket| {
                    let retention_s = bucket
                        .retention_rules
                        .iter()
                        .map(|rule| i64::from(rule.every_seconds))
                        .find(|seconds| *seconds > 0);
                    let key = if is_bucket_id(name) {
                        bucket.id?
                    } else {
                        bucket.name
                    };
                    Some(KnownBucket { key, retention_s })
                })),
            // The response was successful but cannot be parsed. The write shows whether the bucket exists.
            Err(RequestError::ReqwestProcessing { source })
                if source.is_decode() && !is_bucket_id(name) =>
            {
                Ok(Some(KnownBucket::named(name)))
            }
            Err(error) if self.is_influx3_answer(&error).await? => {
                Ok(Some(KnownBucket::named(name)))
            }
            Err(error) => match self.api_error(&error) {
                ApiError::NotFound(_) => Ok(None),
                api_error => Err(api_error),
            },
        }
    }

    /// Returns the name or id under which a write finds the organisation. As for a bucket, a name of 16 hexadecimal digits
    /// would be read as an id.
    pub(super) async fn org_key(&self) -> Result<&str, ApiError> {
        if !is_bucket_id(&self.org) || self.is_influx3() {
            return Ok(&self.org);
        }
        let id = self.org_id.get_or_try_init(|| self.org_id()).await?;
        Ok(id)
    }

    /// Returns the id of the organisation.
    ///
    /// # Errors
    /// [`ApiError::Installation`] if the organisation does not exist.
    pub(super) async fn org_id(&self) -> Result<String, ApiError> {
        let request = ListOrganizationRequest {
            org: Some(self.org.clone()),
            ..ListOrganizationRequest::default()
        };
        let missing = || {
            ApiError::Installation(format!(
                "InfluxDB at {} has no organisation {:?}; correct INFLUXDB_ORG",
                self.address,
                sanitize(&self.org)
            ))
        };
        match self.plain.list_organizations(request).await {
            Ok(list) => list
                .orgs
                .into_iter()
                .find(|org| org.name == self.org)
                .and_then(|org| org.id)
                .ok_or_else(missing),
            Err(error) => match self.api_error(&error) {
                ApiError::NotFound(_) => Err(missing()),
                api_error => Err(api_error),
            },
        }
    }
}

/// Whether the write endpoint of InfluxDB would read this name as a bucket id.
pub(super) fn is_bucket_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_16_hexadecimal_digits_is_an_id() {
        assert!(is_bucket_id("88cb3911be3f2ed6") && is_bucket_id("88CB3911BE3F2ED6"));
        assert!(
            !is_bucket_id("acme")
                && !is_bucket_id("88cb3911be3f2edg")
                && !is_bucket_id("88cb3911be3f2ed")
        );
    }
}
