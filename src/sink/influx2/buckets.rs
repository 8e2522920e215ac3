//! The buckets that are written to: looked up by name once a run, made where they are missing.
//! Source: docs/specification.md, section 6.

use super::client::Client;
use super::response::status_of;
use crate::sanitize::sanitize;
use crate::sink::WriteError;
use crate::sink::retry::{ApiError, RetryError, RetryPolicy};
use influxdb2::RequestError;
use influxdb2::api::buckets::ListBucketsRequest;
use influxdb2::api::organization::ListOrganizationRequest;
use influxdb2::models::PostBucketRequest;
use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long an early look-up may hold up the write that waits for it: a server that takes longer is asked with patience.
const EARLY_LOOK_UP: Duration = Duration::from_secs(1);

impl Client {
    /// Looks a bucket up without patience: if this comes to nothing, the write asks again.
    pub(super) async fn prefetch_bucket(&self, bucket: &Arc<str>) {
        if self.retry.outage().is_some() {
            return;
        }
        let found = || async {
            let found = self.find(bucket).await.map_err(|_| ())?;
            if found.is_none() {
                self.missing().insert(Arc::clone(bucket));
            }
            found.ok_or(())
        };
        let cell = self.cell(bucket);
        let _ = tokio::time::timeout(EARLY_LOOK_UP, cell.get_or_try_init(found)).await;
    }

    fn missing(&self) -> MutexGuard<'_, HashSet<Arc<str>>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell(&self, bucket: &Arc<str>) -> Arc<OnceCell<String>> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(buckets.entry(Arc::clone(bucket)).or_default())
    }

    /// The name by which a write finds the bucket; looked up once a run, made if it is missing.
    pub(super) async fn known_bucket(
        &self,
        bucket: &Arc<str>,
        retry: &RetryPolicy,
    ) -> Result<String, WriteError> {
        let cell = self.cell(bucket);
        cell.get_or_try_init(|| async {
            let attempt = || self.find_or_create(bucket);
            retry.run(attempt).await.map_err(|trouble| match trouble {
                RetryError::GaveUp(failure) => failure,
                RetryError::Permanent(
                    ApiError::Transient(words)
                    | ApiError::Installation(words)
                    | ApiError::NotFound(words)
                    | ApiError::TooLarge(words)
                    | ApiError::Partial(words)
                    | ApiError::Refused(words),
                ) => WriteError::Rejected(format!(
                    "the bucket {:?} cannot be made: {words}",
                    sanitize(&**bucket)
                )),
            })
        })
        .await
        .cloned()
    }

    pub(super) fn forget(&self, bucket: &str) {
        self.buckets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(bucket);
    }

    pub(super) async fn find_or_create(&self, name: &str) -> Result<String, ApiError> {
        // Where it was made meanwhile, making it again is a conflict.
        let is_missing = self.missing().remove(name);
        if !is_missing && let Some(found) = self.find(name).await? {
            return Ok(found);
        }
        let org_id = self.org_id().await?;
        let request = PostBucketRequest::new(org_id, name.to_owned());
        match self.plain.create_bucket(Some(request)).await {
            Ok(()) if is_id(name) => self.find(name).await?.ok_or_else(|| {
                ApiError::Transient(format!("the bucket {name:?} was made and cannot be found"))
            }),
            Ok(()) => {
                tracing::info!("bucket {:?} made", sanitize(name));
                Ok(name.to_owned())
            }
            // Another process was faster (409, or 422 with the code "conflict").
            Err(error) if matches!(status_of(&error), Some(409 | 422)) => {
                self.find(name).await?.ok_or_else(|| self.api_error(&error))
            }
            Err(error) => Err(self.api_error(&error)),
        }
    }

    /// By what name a write finds the bucket, if it exists. A name of 16 hexadecimal digits would be taken for another
    /// bucket's id, so such a bucket is written to by its own id.
    pub(super) async fn find(&self, name: &str) -> Result<Option<String>, ApiError> {
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
                    if is_id(name) {
                        bucket.id
                    } else {
                        Some(bucket.name)
                    }
                })),
            // Not a refusal, yet unreadable: the write will tell whether the bucket is there.
            Err(RequestError::ReqwestProcessing { source })
                if source.is_decode() && !is_id(name) =>
            {
                Ok(Some(name.to_owned()))
            }
            Err(error) => match self.api_error(&error) {
                ApiError::NotFound(_) => Ok(None),
                api_error => Err(api_error),
            },
        }
    }

    /// The id of the organisation. That it is missing is the installation's fault.
    pub(super) async fn org_id(&self) -> Result<String, ApiError> {
        let request = ListOrganizationRequest {
            org: Some(self.org.clone()),
            ..ListOrganizationRequest::default()
        };
        let missing = || {
            ApiError::Installation(format!(
                "InfluxDB at {} knows no organisation {:?}; correct INFLUXDB_ORG",
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

/// Whether the server's write would take this name for an id.
fn is_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_an_id_is_known() {
        assert!(is_id("88cb3911be3f2ed6") && is_id("88CB3911BE3F2ED6"));
        assert!(!is_id("acme") && !is_id("88cb3911be3f2edg") && !is_id("88cb3911be3f2ed"));
    }
}
