//! The checks of Grafana.

use super::{CheckResult, Finding, Installation};
use crate::config::{Environment, GrafanaSettings};
use crate::http::HttpSettings;
use crate::sanitize::sanitize;
use reqwest::redirect::Policy;
use serde_json::Value;
use std::time::Duration;

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The data source of the meta bucket, as provisioned.
const DATA_SOURCE: &str =
    include_str!("../../../grafana-automation/provisioning/datasources/powerview.yaml");

/// The alert rules, as provisioned.
const RULES: &str = include_str!("../../../grafana-automation/provisioning/alerting/rules.yaml");

/// The answers of Grafana.
pub(super) struct GrafanaProbe {
    /// Whether Grafana can be reached and accepts the user.
    sign_in: Result<String, String>,
    /// Whether the data source of the meta bucket and the alert rules are there. `None` if the user cannot sign in.
    provisioning: Option<Finding>,
}

impl GrafanaProbe {
    /// Asks Grafana. Returns `None` if it is not configured.
    pub(super) fn new(env: &Environment) -> Option<Self> {
        let settings = GrafanaSettings::resolve(env).transpose()?;
        let probe = || -> anyhow::Result<Self> {
            let client = Client::new(settings?)?;
            Ok(match client.sign_in() {
                Ok(message) => Self {
                    sign_in: Ok(message),
                    provisioning: Some(client.provisioning().unwrap_or_else(Finding::Failure)),
                },
                Err(message) => Self {
                    sign_in: Err(message),
                    provisioning: None,
                },
            })
        };
        Some(probe().unwrap_or_else(|error| Self {
            sign_in: Err(format!("{error:#}")),
            provisioning: None,
        }))
    }
}

pub(super) fn check_sign_in(installation: &Installation<'_>) -> CheckResult {
    Some(match &installation.grafana {
        Some(probe) => probe.sign_in.clone().into(),
        None => {
            Finding::NotConfigured("not configured; set GRAFANA_URL to check Grafana".to_owned())
        }
    })
}

pub(super) fn check_provisioning(installation: &Installation<'_>) -> CheckResult {
    installation.grafana.as_ref()?.provisioning.clone()
}

struct Client {
    settings: GrafanaSettings,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    fn new(settings: GrafanaSettings) -> anyhow::Result<Self> {
        let client = HttpSettings::new(&settings.url)?
            .client_builder()
            // Only the configured address is asked.
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .build()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            settings,
            client,
            runtime,
        })
    }

    fn sign_in(&self) -> Result<String, String> {
        let url = sanitize(self.settings.url.as_str());
        let user = sanitize(&self.settings.user);
        match self.get("api/org")? {
            (200, Value::Object(_)) => Ok(format!("{url} accepts the user {user:?}")),
            (401 | 403, _) => Err(format!(
                "{url} refuses the user {user:?}; correct GRAFANA_USERNAME and GRAFANA_PASSWORD (the first start of Grafana sets the password; to change it: grafana cli admin reset-admin-password)"
            )),
            (status, _) => Err(format!(
                "{url} answers with status {status} and is not Grafana, or not ready; correct GRAFANA_URL or see its log"
            )),
        }
    }

    /// Looks for the data source and the alert rules that compose.yaml provisions.
    fn provisioning(&self) -> Result<Finding, String> {
        let remedy = "mount grafana-automation/provisioning as compose.yaml does, readable for Grafana's user (uid 472), and restart Grafana";
        for uid in uids(DATA_SOURCE) {
            let (status, source) = self.get(&format!("api/datasources/uid/{uid}"))?;
            if status != 200 {
                return Err(format!(
                    "the data source {uid} is missing (status {status}); {remedy}"
                ));
            }
            if source["secureJsonFields"]["token"] != true {
                return Ok(Finding::Warning(format!(
                    "the data source {uid} has no token; set POWERVIEW_META_READ_TOKEN and start compose again"
                )));
            }
        }
        let (status, found) = self.get("api/v1/provisioning/alert-rules")?;
        let found = found.as_array().map(Vec::as_slice).unwrap_or_default();
        let is_missing = |uid: &&str| !found.iter().any(|rule| rule["uid"] == *uid);
        let missing: Vec<_> = uids(RULES).filter(is_missing).collect();
        if missing.is_empty() {
            Ok(Finding::Good(
                "the data source of the meta bucket and the alert rules are there".to_owned(),
            ))
        } else {
            Err(format!(
                "alert rules are missing (status {status}): {}; {remedy}",
                missing.join(", ")
            ))
        }
    }

    /// The status and the JSON of an answer; null if it is not JSON.
    fn get(&self, path: &str) -> Result<(u16, Value), String> {
        let GrafanaSettings {
            url,
            user,
            password,
        } = &self.settings;
        let answer = self.runtime.block_on(async {
            let base = url.as_str().trim_end_matches('/');
            let request = self.client.get(format!("{base}/{path}"));
            let response = request.basic_auth(user, Some(password)).send().await?;
            let status = response.status().as_u16();
            Ok((status, response.bytes().await?))
        });
        let (status, body) = answer.map_err(|error: reqwest::Error| {
            let error = anyhow::Error::from(error.without_url());
            format!(
                "cannot reach {}: {error:#}; start Grafana or correct GRAFANA_URL",
                sanitize(url.as_str())
            )
        })?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }
}

/// The uids of the data sources or rules of a provisioning file.
fn uids(file: &str) -> impl Iterator<Item = &str> {
    file.lines().filter_map(|line| {
        let line = line.trim_start();
        line.strip_prefix("- ")
            .unwrap_or(line)
            .strip_prefix("uid: ")
    })
}
