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
            let message = format!("{}: {}", self.address, self.reason(error));
            return if is_unconnected(error) {
                ApiError::Transient(message)
            } else {
                ApiError::Unanswered(message)
            };
        };
        let message = self.describe(status.as_u16(), text);
        match status.as_u16() {
            401 => ApiError::Installation(self.denied(&message)),
            403 => ApiError::Forbidden(self.denied(&message)),
            300..=399 => ApiError::Installation(format!(
                "{} redirects to another address ({message}); set INFLUXDB_HOST to the final address",
                self.address
            )),
            404 => ApiError::NotFound(message),
            413 => ApiError::TooLarge(message),
            // The proxy got no answer.
            502 | 504 => ApiError::Unanswered(format!("{}: {message}", self.address)),
            429 => self.throttled(format!("{}: {message}", self.address)),
            408 | 425 | 500.. => ApiError::Transient(format!("{}: {message}", self.address)),
            400..=499 => ApiError::Refused(message),
            // Another success status than the one of a write: this is not InfluxDB.
            _ => ApiError::Transient(format!(
                "{} does not respond like InfluxDB ({message})",
                self.address
            )),
        }
    }

    fn throttled(&self, message: String) -> ApiError {
        match self.take_wait() {
            Some(wait) => ApiError::Throttled { message, wait },
            None => ApiError::Transient(message),
        }
    }

    fn denied(&self, message: &str) -> String {
        format!(
            "InfluxDB at {} rejects the token or denies it this request ({message}); correct INFLUXDB_ADMIN_TOKEN",
            self.address
        )
    }

    /// Classifies the error of a write, for which 422 means that the server wrote the other points.
    pub(super) fn write_error(&self, error: &RequestError) -> ApiError {
        match (self.api_error(error), error) {
            (ApiError::Refused(message), RequestError::Http { status, text })
                if status.as_u16() == 422 =>
            {
                ApiError::Partial {
                    message,
                    dropped: dropped_points(text),
                    expired: is_expiry(text),
                }
            }
            (api_error, _) => api_error,
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

/// Whether a request failed before it was sent.
fn is_unconnected(error: &RequestError) -> bool {
    matches!(error, RequestError::ReqwestProcessing { source } if source.is_connect())
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

/// The number of dropped points, which is the last one in the message of a partial write.
fn dropped_points(text: &str) -> Option<u64> {
    let (_, number) = text.rsplit_once("dropped=")?;
    let end = number
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(number.len());
    number[..end].parse().ok()
}

/// Whether points were dropped only because they are older than the retention of the bucket. Names of measurements come
/// later in the message, so they cannot look like this.
fn is_expiry(text: &str) -> bool {
    let Some((_, reason)) = text.split_once("partial write: ") else {
        return false;
    };
    reason
        .strip_prefix("dropped ")
        .map(|reason| reason.trim_start_matches(|c: char| c.is_ascii_digit()))
        .is_some_and(|reason| reason.starts_with(" points outside retention policy"))
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
            flavor: crate::sink::Flavor::Auto,
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
            (vec![408, 425, 429, 500, 503, 520, 200, 202], "Transient"),
            (vec![502, 504], "Unanswered"),
            (vec![401, 301, 302, 307, 308], "Installation"),
            (vec![403], "Forbidden"),
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
    fn a_partial_write_says_how_many_points_were_dropped_and_why() {
        let expired = "failure writing points to database: partial write: dropped 12 points outside retention policy of \
                       duration 1h0m0s - oldest point m,a=b at 2023-11-14T22:13:20Z dropped because it violates a \
                       Retention Policy Lower Bound at 2026-11-23T17:25:25.931666368Z dropped=12 for database: \
                       54a672654bfefc14 for retention policy: autogen";
        let conflict = |measurement: &str, end: &str| {
            format!(
                "failure writing points to database: partial write: field type conflict: input field \\\"value\\\" on \
                 measurement \\\"{measurement}\\\" is type string, already exists as type float{end}"
            )
        };
        let disguise = "dropped=0 partial write: dropped 1 points outside retention policy";
        for (message, dropped, expired) in [
            (expired.to_owned(), Some(12), true),
            (conflict("m", " dropped=1"), Some(1), false),
            (conflict(disguise, " dropped=3"), Some(3), false),
            (conflict("m", ""), None, false),
            ("no".to_owned(), None, false),
        ] {
            let text = format!(r#"{{"code":"unprocessable entity","message":"{message}"}}"#);
            let error = client().write_error(&RequestError::Http {
                status: 422.try_into().unwrap(),
                text,
            });
            let ApiError::Partial {
                dropped: found,
                expired: is_expired,
                ..
            } = error
            else {
                panic!("422 is a partial write: {error:?}");
            };
            assert_eq!((found, is_expired), (dropped, expired), "{message}");
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
        let ApiError::Unanswered(message) =
            api_error(502, &format!("<html>\x1b[2J{}", "x".repeat(100_000)))
        else {
            panic!("502 is no answer");
        };
        assert!(
            message.len() < 3_000 && !message.contains('\x1b'),
            "{message}"
        );
    }
}
