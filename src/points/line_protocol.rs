//! Encodes points as InfluxDB line protocol. See docs/specification.md, section 5.
//!
//! Measurement and tags of a channel are escaped once; each point copies them and adds two numbers. Escaping follows the
//! parser of the server: comma, space and `=` are escaped in tags, comma and space in measurements. A backslash is not
//! escaped, so a trailing one is removed: it would escape the separator that follows.

use crate::data_dir::Campaign;
use crate::logger_file::{Channel, Row};
use std::ops::RangeInclusive;

/// The bytes that precede the value in every point of a channel: measurement, tags and `value=`.
#[derive(Debug, Clone)]
pub struct SeriesPrefix(Box<[u8]>);

impl SeriesPrefix {
    /// Builds the prefix of a channel.
    pub fn new(campaign: &Campaign, master: &str, channel: &Channel) -> Self {
        let number = channel.number.to_string();
        let tags = tags(campaign, master, channel, &number);
        Self::of_tags(campaign.as_str(), &tags)
    }

    /// Builds the prefix of a series from its measurement and tags.
    pub(crate) fn of_tags(measurement: &str, tags: &[(&str, &str)]) -> Self {
        let mut line = Line::new(measurement);
        for (key, value) in tags {
            line.tag(key, value);
        }
        let mut bytes = line.0;
        bytes.extend_from_slice(b" value=");
        Self(bytes.into())
    }
}

/// The tags of a channel's points, sorted by key, which the server processes fastest. `number` is that of the channel.
fn tags<'a>(
    campaign: &'a Campaign,
    master: &'a str,
    channel: &'a Channel,
    number: &'a str,
) -> [(&'static str, &'a str); 9] {
    [
        ("campaign", campaign.as_str()),
        ("channel_id", &channel.id),
        ("channel_name", &channel.name),
        ("channel_number", number),
        ("channel_type", channel.role.as_str()),
        ("device", &channel.serial),
        ("device_master_sn", master),
        ("device_sn", &channel.serial),
        ("unit", &channel.unit),
    ]
}

/// The tags of a channel's points as the server stores them, sorted by key.
pub(crate) fn stored_tags(
    campaign: &Campaign,
    master: &str,
    channel: &Channel,
) -> Vec<(&'static str, String)> {
    let number = channel.number.to_string();
    tags(campaign, master, channel, &number)
        .into_iter()
        .filter_map(|(key, value)| Some((key, stored_name(value)?.to_owned())))
        .collect()
}

/// A measurement or the value of a tag as the server stores it: without trailing backslashes. `None` if it is empty.
pub(crate) fn stored_name(name: &str) -> Option<&str> {
    Some(name.trim_end_matches('\\')).filter(|name| !name.is_empty())
}

/// Appends the points of a row, one line per value, in channel order. Returns the number of points.
pub fn append_row(out: &mut Vec<u8>, prefixes: &[SeriesPrefix], row: &Row<'_>) -> u32 {
    append_values(out, prefixes, row.time, row.values)
}

/// Appends the points of a time in seconds since 1970, one line per value. Returns the number of points.
pub(super) fn append_values(
    out: &mut Vec<u8>,
    prefixes: &[SeriesPrefix],
    time: i64,
    values: &[Option<f64>],
) -> u32 {
    let mut digits = itoa::Buffer::new();
    let seconds = digits.format(time).as_bytes();
    let mut number = zmij::Buffer::new();
    let mut points = 0;
    for (prefix, value) in prefixes.iter().zip(values) {
        let Some(value) = *value else { continue };
        let value = number.format_finite(value).as_bytes();
        out.reserve(prefix.0.len() + value.len() + seconds.len() + 2);
        out.extend_from_slice(&prefix.0);
        out.extend_from_slice(value);
        out.push(b' ');
        out.extend_from_slice(seconds);
        out.push(b'\n');
        points += 1;
    }
    points
}

/// Builds a line of line protocol: measurement and tags.
#[derive(Debug)]
pub(crate) struct Line(Vec<u8>);

impl Line {
    /// Starts a line with its measurement. Trailing backslashes are removed.
    pub(crate) fn new(measurement: &str) -> Self {
        let mut bytes = Vec::with_capacity(256);
        escape_into(&mut bytes, measurement, b", ");
        Self(bytes)
    }

    /// Adds a tag. An empty value is left out, because the server rejects it.
    pub(crate) fn tag(&mut self, key: &str, value: &str) {
        let Some(value) = stored_name(value) else {
            return;
        };
        self.0.push(b',');
        escape_into(&mut self.0, key, b",= ");
        self.0.push(b'=');
        escape_into(&mut self.0, value, b",= ");
    }

    /// Ends the tags and starts the fields.
    pub(crate) fn fields(self) -> Fields {
        Fields {
            bytes: self.0,
            separator: b' ',
        }
    }
}

/// Builds a line of line protocol: fields and timestamp.
#[derive(Debug)]
pub(crate) struct Fields {
    bytes: Vec<u8>,
    separator: u8,
}

impl Fields {
    fn key(&mut self, key: &str) {
        self.bytes.push(self.separator);
        self.separator = b',';
        escape_into(&mut self.bytes, key, b",= ");
        self.bytes.push(b'=');
    }

    /// Adds an integer field.
    pub(crate) fn integer(&mut self, key: &str, value: i64) {
        self.key(key);
        self.bytes
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.bytes.push(b'i');
    }

    /// Adds a float field. A value that is not finite is left out.
    pub(crate) fn float(&mut self, key: &str, value: f64) {
        if value.is_finite() {
            self.key(key);
            self.bytes
                .extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
        }
    }

    /// Adds a field with an unsigned integer.
    pub(crate) fn unsigned(&mut self, key: &str, value: u64) {
        self.key(key);
        self.bytes
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.bytes.push(b'u');
    }

    /// Adds a boolean field.
    pub(crate) fn boolean(&mut self, key: &str, value: bool) {
        self.key(key);
        self.bytes
            .extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Adds a string field of at most `max` bytes. Line breaks are replaced by spaces.
    pub(crate) fn text(&mut self, key: &str, value: &str, max: usize) {
        let value = &value[..value.floor_char_boundary(max)];
        // Tools that load line protocol files split them at line breaks, even within strings.
        self.whole_text(key, &value.replace(['\n', '\r'], " "));
    }

    /// Adds a string field with its line breaks.
    pub(crate) fn whole_text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.bytes.push(b'"');
        for byte in value.bytes() {
            if matches!(byte, b'"' | b'\\') {
                self.bytes.push(b'\\');
            }
            self.bytes.push(byte);
        }
        self.bytes.push(b'"');
    }

    /// Ends the line with its timestamp, in the precision of the request.
    pub(crate) fn at(mut self, time: i64) -> Vec<u8> {
        self.bytes.push(b' ');
        self.bytes
            .extend_from_slice(itoa::Buffer::new().format(time).as_bytes());
        self.bytes.push(b'\n');
        self.bytes
    }
}

fn escape_into(out: &mut Vec<u8>, text: &str, special: &[u8]) {
    for byte in text.trim_end_matches('\\').bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

/// The time range of a batch, in seconds since 1970, both ends included.
pub(crate) type TimeRange = RangeInclusive<i64>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logger_file::{LoggerFile, ReadOptions};
    use influxdb_line_protocol::{FieldValue, parse_lines};
    use std::ffi::OsStr;

    fn lines(campaign: &str, label: &str, values: &str) -> String {
        let text = format!("10\t20\nMV_T302_V002\t{label}\n03/08/25 03:20:00\t{values}\n");
        let campaign = Campaign::new(OsStr::new(campaign)).unwrap();
        let zones = crate::time_zone::FileZones::built_in(chrono_tz::UTC);
        let mut file = LoggerFile::open(text.as_bytes(), &ReadOptions::new(&zones)).unwrap();
        let channels = file.channels().clone();
        let prefixes: Vec<_> = channels
            .list
            .iter()
            .map(|channel| SeriesPrefix::new(&campaign, &channels.master, channel))
            .collect();
        let mut out = Vec::new();
        while let Some(row) = file.next_row().unwrap() {
            append_row(&mut out, &prefixes, &row);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_point_is_a_line_with_sorted_tags() {
        assert_eq!(
            lines("site", "Ph 1 V", "242.25"),
            "site,campaign=site,channel_id=S20_Ch1_M10,channel_name=Ph\\ 1,channel_number=1,channel_type=slave,device=20,\
             device_master_sn=10,device_sn=20,unit=V value=242.25 1754191200\n"
        );
    }

    #[test]
    fn an_empty_unit_is_left_out() {
        assert!(!lines("site", "Ph1", "1").contains("unit"));
    }

    /// Parses a line with InfluxData's parser. Returns measurement, tags and value.
    fn read_back(line: &str) -> (String, Vec<(String, String)>, f64) {
        let parsed = parse_lines(line).next().unwrap().unwrap();
        let value = match parsed.field_set[0].1 {
            FieldValue::F64(value) => value,
            ref other => panic!("{other:?}"),
        };
        let tags = parsed.series.tag_set.clone().unwrap_or_default();
        (
            parsed.series.measurement.to_string(),
            tags.iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
            value,
        )
    }

    #[test]
    fn separators_are_escaped_and_trailing_backslashes_removed() {
        let line = lines("a, b=c\\", "x=,\\y\\ z\\\\", "1");
        assert!(
            line.starts_with("a\\,\\ b=c,campaign=a\\,\\ b\\=c,"),
            "{line}"
        );
        let (measurement, tags, _) = read_back(&line);
        assert_eq!(measurement, "a, b=c");
        let tag = |key: &str| &tags.iter().find(|(k, _)| k == key).unwrap().1;
        assert_eq!(tag("campaign"), "a, b=c");
        assert_eq!(tag("channel_name"), "x=,\\y");
        assert_eq!(tag("unit"), "z");
    }

    #[test]
    fn doubles_are_encoded_without_loss() {
        for value in [
            0.0,
            -0.0,
            242.25,
            1e16,
            1e-7,
            5e-324,
            f64::MAX,
            f64::MIN_POSITIVE,
            0.1 + 0.2,
            1e300,
            -1e22,
            123_456_789.012_345_67,
        ] {
            let (.., found) = read_back(&lines("c", "A W", &format!("{value:e}")));
            assert_eq!(found.to_bits(), f64::to_bits(value), "{value}");
        }
    }

    #[test]
    fn fields_are_typed_and_escaped() {
        let mut line = Line::new("m");
        line.tag("empty", "");
        line.tag("t", "a b");
        let mut fields = line.fields();
        fields.integer("i", -3);
        fields.float("f", 1.5);
        fields.float("none", f64::NAN);
        fields.boolean("b", true);
        fields.text("s", "say \"x\\y\"\né", 64);
        fields.text("cut", "éé", 3);
        let line = String::from_utf8(fields.at(7)).unwrap();
        assert_eq!(
            line,
            "m,t=a\\ b i=-3i,f=1.5,b=true,s=\"say \\\"x\\\\y\\\" é\",cut=\"é\" 7\n"
        );
        assert!(parse_lines(&line).all(|l| l.is_ok()));
    }
}
