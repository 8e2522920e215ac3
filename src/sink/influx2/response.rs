//! What the server's answers mean, and their words made safe to show. Source: docs/specification.md, section 6.

use super::client::Client;
use crate::sanitize::sanitize;
use crate::sink::retry::ApiError;
use influxdb2::RequestError;

/// How much of a server's answer is worth repeating, in bytes.
const MAX_MESSAGE: usize = 1_000;

/// How much of it is searched for the token; what is repeated comes from that.
const MAX_READ: usize = 64 * 1024;

impl Client {
    /// What an error means, by its status alone. Source: docs/specification.md, section 6.
    pub(super) fn api_error(&self, error: &RequestError) -> ApiError {
        let RequestError::Http { status, text } = error else {
            return ApiError::Transient(format!("{}: {}", self.address, self.reason(error)));
        };
        let describe = self.describe(status.as_u16(), text);
        match status.as_u16() {
            401 | 403 => ApiError::Installation(format!(
                "InfluxDB at {} refuses the token, or does not let it do this ({describe}); correct INFLUXDB_ADMIN_TOKEN",
                self.address
            )),
            300..=399 => ApiError::Installation(format!(
                "{} redirects to another address ({describe}); set INFLUXDB_HOST to the server itself",
                self.address
            )),
            404 => ApiError::NotFound(describe),
            413 => ApiError::TooLarge(describe),
            408 | 425 | 429 | 500.. => ApiError::Transient(format!("{}: {describe}", self.address)),
            400..=499 => ApiError::Refused(describe),
            // A success that is not the one a write has: something else answers at this address.
            _ => ApiError::Transient(format!(
                "{} does not answer as InfluxDB does ({describe})",
                self.address
            )),
        }
    }

    /// Status and message of an answer, safe to show. InfluxDB wraps its message in JSON; a proxy sends a page.
    pub(super) fn describe(&self, status: u16, text: &str) -> String {
        let message = match serde_json::from_str::<serde_json::Value>(text) {
            Ok(json) => match json.get("message").and_then(|message| message.as_str()) {
                Some(message) => message.to_owned(),
                None => json.to_string(),
            },
            Err(_) => text.to_owned(),
        };
        let message = self.redact(message.trim());
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE)];
        if message.is_empty() {
            format!("status {status}")
        } else {
            format!("status {status}: {message}")
        }
    }

    /// What a server said, without the token and without what a terminal would obey.
    pub(super) fn redact(&self, text: &str) -> String {
        sanitize(
            self.token
                .taken_out_of(&text[..text.floor_char_boundary(MAX_READ)]),
        )
    }

    /// The innermost reason of a request that had no answer.
    pub(super) fn reason(&self, error: &RequestError) -> String {
        let mut reason: &dyn std::error::Error = match error {
            RequestError::ReqwestProcessing { source } if source.is_timeout() => {
                return if source.is_connect() {
                    "no connection in time".to_owned()
                } else {
                    "no answer in time".to_owned()
                };
            }
            RequestError::ReqwestProcessing { source } => source,
            other => other,
        };
        while let Some(inner) = reason.source() {
            reason = inner;
        }
        self.redact(&reason.to_string())
    }
}

pub(super) fn status_of(error: &RequestError) -> Option<u16> {
    match error {
        RequestError::Http { status, .. } => Some(status.as_u16()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;
    use crate::sink::ServerSettings;
    use std::time::Duration;

    fn client() -> Client {
        let settings = ServerSettings {
            url: "http://127.0.0.1:1".parse().unwrap(),
            token: "s3cret".to_owned(),
            org: "o".to_owned(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            retry_for: Duration::ZERO,
        };
        Client::new(&settings, Shutdown::default()).unwrap()
    }

    fn api_error(status: u16, text: &str) -> ApiError {
        client().api_error(&RequestError::Http {
            status: status.try_into().unwrap(),
            text: text.to_owned(),
        })
    }

    #[test]
    fn the_status_alone_decides_what_an_answer_means() {
        for (statuses, kind) in [
            (
                vec![408, 429, 500, 502, 503, 504, 520, 200, 202],
                "Transient",
            ),
            (vec![401, 403, 301, 302, 307, 308], "Installation"),
            (vec![404], "NotFound"),
            (vec![413], "TooLarge"),
            (vec![400, 405, 409, 415, 418, 422], "Refused"),
        ] {
            for status in statuses {
                let found = format!("{:?}", api_error(status, "x"));
                assert!(found.starts_with(kind), "{status}: {found}");
            }
        }
    }

    #[test]
    fn the_servers_own_message_is_shown_and_the_token_never() {
        let found = api_error(
            400,
            r#"{"code":"invalid","message":"unable to parse 'm,a= value=': missing tag value s3cret"}"#,
        );
        assert_eq!(
            found,
            ApiError::Refused(
                "status 400: unable to parse 'm,a= value=': missing tag value <token>".to_owned()
            )
        );
    }

    #[test]
    fn the_token_is_found_behind_the_escapes_of_json() {
        let escaped: String = "s3cret"
            .chars()
            .map(|c| format!("\\u{:04x}", c as u32))
            .collect();
        let found = api_error(400, &format!(r#"{{"error":"{escaped}"}}"#));
        assert_eq!(
            found,
            ApiError::Refused(r#"status 400: {"error":"<token>"}"#.to_owned())
        );
    }

    #[test]
    fn a_page_of_a_proxy_is_cut_and_made_safe() {
        let ApiError::Transient(words) =
            api_error(502, &format!("<html>\x1b[2J{}", "x".repeat(100_000)))
        else {
            panic!("502 is worth another try");
        };
        assert!(words.len() < 3_000 && !words.contains('\x1b'), "{words}");
    }
}
