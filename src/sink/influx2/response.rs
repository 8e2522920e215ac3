//! Maps responses of the server to errors, and makes their messages safe to show. See docs/specification.md, section 6.

use super::client::Client;
use crate::sanitize::sanitize;
use crate::sink::retry::ApiError;
use influxdb2::RequestError;

/// The maximum length of a server message that is shown, in bytes.
const MAX_MESSAGE: usize = 1_000;

/// How much of a response is searched for the token, in bytes. The shown message is a part of it.
const MAX_SEARCHED: usize = 64 * 1024;

impl Client {
    /// Classifies an error by its status. See docs/specification.md, section 6.
    pub(super) fn api_error(&self, error: &RequestError) -> ApiError {
        let RequestError::Http { status, text } = error else {
            return ApiError::Transient(format!("{}: {}", self.address, self.reason(error)));
        };
        let message = self.describe(status.as_u16(), text);
        match status.as_u16() {
            401 | 403 => ApiError::Installation(format!(
                "InfluxDB at {} rejects the token or denies it this request ({message}); correct INFLUXDB_ADMIN_TOKEN",
                self.address
            )),
            300..=399 => ApiError::Installation(format!(
                "{} redirects to another address ({message}); set INFLUXDB_HOST to the final address",
                self.address
            )),
            404 => ApiError::NotFound(message),
            413 => ApiError::TooLarge(message),
            408 | 425 | 429 | 500.. => ApiError::Transient(format!("{}: {message}", self.address)),
            400..=499 => ApiError::Refused(message),
            // Another success status than the one of a write: this is not InfluxDB.
            _ => ApiError::Transient(format!(
                "{} does not respond like InfluxDB ({message})",
                self.address
            )),
        }
    }

    /// Formats the status and message of a response, safe to show. InfluxDB sends JSON, a proxy may send HTML.
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

    /// Removes the token and control characters from a text of the server.
    pub(super) fn redact(&self, text: &str) -> String {
        sanitize(
            self.token
                .redact(&text[..text.floor_char_boundary(MAX_SEARCHED)]),
        )
    }

    /// The innermost cause of a request without a response.
    pub(super) fn reason(&self, error: &RequestError) -> String {
        let mut reason: &(dyn std::error::Error + 'static) = match error {
            RequestError::ReqwestProcessing { source } if source.is_timeout() => {
                return if source.is_connect() {
                    "no connection within the timeout".to_owned()
                } else {
                    "no response within the timeout".to_owned()
                };
            }
            RequestError::ReqwestProcessing { source } => source,
            other => other,
        };
        while let Some(inner) = reason.source() {
            reason = inner;
        }
        let mut message = self.redact(&reason.to_string());
        if is_invalid_certificate(reason) {
            message.push_str(
                "; the certificate must name this host and come from an authority among the system's root certificates or in SSL_CERT_FILE",
            );
        }
        message
    }
}

/// Whether the cause is a server certificate that does not verify. The TLS libraries wrap it in I/O errors.
fn is_invalid_certificate(cause: &(dyn std::error::Error + 'static)) -> bool {
    match cause.downcast_ref::<std::io::Error>() {
        Some(error) => error.get_ref().is_some_and(|e| is_invalid_certificate(e)),
        None => matches!(
            cause.downcast_ref(),
            Some(rustls::Error::InvalidCertificate(_))
        ),
    }
}

/// The HTTP status of an error, if the server responded.
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
    fn the_status_decides_the_kind_of_error() {
        for (statuses, kind) in [
            (
                vec![408, 425, 429, 500, 502, 503, 504, 520, 200, 202],
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
    fn the_servers_message_is_shown_without_the_token() {
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
    fn a_token_escaped_in_json_is_removed() {
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
    fn a_page_of_a_proxy_is_shortened_and_sanitized() {
        let ApiError::Transient(message) =
            api_error(502, &format!("<html>\x1b[2J{}", "x".repeat(100_000)))
        else {
            panic!("502 is transient");
        };
        assert!(
            message.len() < 3_000 && !message.contains('\x1b'),
            "{message}"
        );
    }
}
