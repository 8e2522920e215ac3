//! The administration of buckets: list, create, rename; and the tokens that belong to them.

use super::InfluxReader;
use super::buckets::SHARD_S;
use crate::sink::retry::{ApiError, RetryPolicy};
use crate::sink::source::{BucketAdmin, BucketInfo, ReadError};
use influxdb2::RequestError;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

/// Number of buckets or tokens per answer. The server allows 100.
const PAGE: usize = 100;

#[derive(Deserialize)]
struct Buckets {
    buckets: Vec<Bucket>,
}

/// A bucket as the server sends it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bucket {
    id: String,
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    retention_rules: Value,
    #[serde(rename = "orgID")]
    org_id: String,
}

#[derive(Deserialize)]
struct Authorizations {
    authorizations: Vec<Authorization>,
}

#[derive(Deserialize)]
struct Authorization {
    id: String,
    #[serde(default)]
    description: String,
    permissions: Vec<Permission>,
}

#[derive(Deserialize)]
struct Permission {
    resource: Resource,
}

#[derive(Deserialize)]
struct Resource {
    id: Option<String>,
}

impl InfluxReader {
    /// Sends a request and reads the JSON of its answer.
    pub(super) fn request<T: serde::de::DeserializeOwned>(
        &self,
        retry: &RetryPolicy,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<T, ReadError> {
        let text = self.request_text(retry, method, path, query, body)?;
        serde_json::from_str(&text).map_err(|error| {
            ReadError::Refused(format!(
                "{}: the answer to {method} {path} cannot be read: {error}",
                self.client.address
            ))
        })
    }

    /// Sends a request and reads its answer.
    pub(super) fn request_text(
        &self,
        retry: &RetryPolicy,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<String, ReadError> {
        let mut url = self.url.clone();
        url.set_path(path);
        url.set_query(None);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.retried(retry, path, || {
            self.answer(method.clone(), url.clone(), body)
        })
    }

    async fn answer(
        &self,
        method: Method,
        url: url::Url,
        body: Option<&Value>,
    ) -> Result<String, ApiError> {
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let client = &self.client;
        let error = |source| client.api_error(&RequestError::ReqwestProcessing { source });
        let answer = request.send().await.map_err(error)?;
        let status = answer.status();
        let text = answer.text().await.map_err(error)?;
        if status.is_success() {
            Ok(text)
        } else {
            Err(client.api_error(&RequestError::Http { status, text }))
        }
    }
}

/// The rules of retention with shards that are at least as long as those of a new bucket, if points are kept for ever.
fn with_long_shards(rules: &Value) -> Value {
    let mut rules = rules.clone();
    for rule in rules.as_array_mut().into_iter().flatten() {
        let shard = rule["shardGroupDurationSeconds"].as_i64();
        if rule["everySeconds"] == 0 && shard.is_none_or(|shard| shard < SHARD_S) {
            rule["shardGroupDurationSeconds"] = SHARD_S.into();
        }
    }
    rules
}

impl BucketAdmin for InfluxReader {
    fn buckets(&self) -> Result<Vec<BucketInfo>, ReadError> {
        let retry = &self.retry;
        let mut found = Vec::new();
        loop {
            let (limit, offset) = (PAGE.to_string(), found.len().to_string());
            let query = [
                ("org", self.client.org.as_str()),
                ("limit", &limit),
                ("offset", &offset),
            ];
            let page: Buckets =
                self.request(retry, &Method::GET, "/api/v2/buckets", &query, None)?;
            let is_last = page.buckets.len() < PAGE;
            found.extend(page.buckets.into_iter().map(|bucket| BucketInfo {
                id: bucket.id,
                name: bucket.name,
                description: bucket.description,
                retention_rules: bucket.retention_rules,
                org_id: bucket.org_id,
            }));
            if is_last {
                return Ok(found);
            }
        }
    }

    fn create_like(&self, model: &BucketInfo, name: &str) -> Result<(), ReadError> {
        let body = json!({
            "orgID": model.org_id,
            "name": name,
            "description": model.description,
            "retentionRules": with_long_shards(&model.retention_rules),
        });
        let retry = &self.retry;
        let path = "/api/v2/buckets";
        let result = self.request::<Value>(retry, &Method::POST, path, &[], Some(&body));
        match result {
            // A request without an answer may have been carried out before it was repeated.
            Err(error @ ReadError::Stopped) => Err(error),
            Err(error) if !self.has_bucket(name)? => Err(error),
            _ => Ok(()),
        }
    }

    fn rename(&self, id: &str, name: &str) -> Result<(), ReadError> {
        let path = format!("/api/v2/buckets/{id}");
        let body = json!({ "name": name });
        let retry = self.retry.afresh();
        self.request::<Value>(&retry, &Method::PATCH, &path, &[], Some(&body))
            .map(drop)
    }

    fn tokens_of(&self, bucket_id: &str) -> Result<Vec<String>, ReadError> {
        let query = [("org", self.client.org.as_str())];
        let retry = &self.retry;
        let all: Authorizations =
            self.request(retry, &Method::GET, "/api/v2/authorizations", &query, None)?;
        let is_of_bucket = |token: &Authorization| {
            let mut resources = token.permissions.iter().map(|p| &p.resource);
            resources.any(|resource| resource.id.as_deref() == Some(bucket_id))
        };
        let tokens = all.authorizations.into_iter().filter(is_of_bucket);
        Ok(tokens
            .map(|token| {
                if token.description.is_empty() {
                    token.id
                } else {
                    token.description
                }
            })
            .collect())
    }
}

impl InfluxReader {
    fn has_bucket(&self, name: &str) -> Result<bool, ReadError> {
        Ok(self.buckets()?.iter().any(|bucket| bucket.name == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(every_s: i64, shard_s: i64) -> Value {
        json!([{ "type": "expire", "everySeconds": every_s, "shardGroupDurationSeconds": shard_s }])
    }

    #[test]
    fn only_short_shards_without_a_limit_of_retention_are_replaced() {
        let (week, year) = (7 * 86_400, 365 * 86_400);
        let replaced = with_long_shards(&rules(0, week));
        assert_eq!(replaced, rules(0, SHARD_S));
        for kept in [rules(0, year), rules(year, week), json!([])] {
            assert_eq!(with_long_shards(&kept), kept);
        }
        let without = json!([{ "type": "expire", "everySeconds": 0 }]);
        assert_eq!(with_long_shards(&without), rules(0, SHARD_S));
    }
}
