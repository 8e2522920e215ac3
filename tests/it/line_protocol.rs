//! Line protocol, read the way InfluxDB's server reads it (a character is escaped when the one before it is a
//! backslash), and checked against InfluxData's own parser crate.
//!
//! The two differ in one thing only: the crate takes `\\` for one backslash, the server keeps both. So a text that has
//! `\\` in it is read by the server's rule alone.

use influxdb_line_protocol::FieldValue;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Float(f64),
    Int(i64),
    Bool(bool),
    Text(String),
}

impl Value {
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Float(_) => "float",
            Value::Int(_) => "integer",
            Value::Bool(_) => "boolean",
            Value::Text(_) => "string",
        }
    }

    pub fn float(&self) -> f64 {
        match self {
            Value::Float(v) => *v,
            other => panic!("not a float: {other:?}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub measurement: String,
    pub tags: BTreeMap<String, String>,
    pub fields: BTreeMap<String, Value>,
    pub time: Option<i64>,
    pub raw: String,
}

/// Parses all lines of a body, or returns the server's message about the first invalid one.
pub fn parse(body: &[u8]) -> Result<Vec<Line>, String> {
    let text =
        std::str::from_utf8(body).map_err(|_| "unable to parse: invalid UTF-8".to_owned())?;
    let mut lines = Vec::new();
    for raw in split(text) {
        let raw = raw.trim_start_matches([' ', '\t', '\0']);
        if raw.is_empty() || raw.starts_with('#') {
            continue;
        }
        let line = parse_line(raw).map_err(|e| format!("unable to parse '{raw}': {e}"))?;
        if !raw.contains(r"\\") {
            agrees_with_the_crate(&line)?;
        }
        lines.push(line);
    }
    Ok(lines)
}

/// Parses the lines of a file or a request, which must be valid.
pub fn all(text: &str) -> Vec<Line> {
    parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e}"))
}

fn agrees_with_the_crate(line: &Line) -> Result<(), String> {
    let theirs = influxdb_line_protocol::parse_lines(&line.raw)
        .next()
        .ok_or_else(|| format!("unable to parse '{}': no line", line.raw))?
        .map_err(|e| format!("unable to parse '{}': {e}", line.raw))?;
    let tags: BTreeMap<String, String> = theirs
        .series
        .tag_set
        .iter()
        .flatten()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    let fields: BTreeMap<String, Value> = theirs
        .field_set
        .iter()
        .map(|(k, v)| {
            let value = match v {
                FieldValue::F64(v) => Value::Float(*v),
                FieldValue::I64(v) => Value::Int(*v),
                FieldValue::U64(v) => Value::Int(*v as i64),
                FieldValue::Boolean(v) => Value::Bool(*v),
                FieldValue::String(v) => Value::Text(v.to_string()),
            };
            (k.to_string(), value)
        })
        .collect();
    let same = theirs.series.measurement == line.measurement.as_str()
        && tags == line.tags
        && fields == line.fields
        && theirs.timestamp == line.time;
    if same {
        Ok(())
    } else {
        Err(format!(
            "unable to parse '{}': the two readings differ: {tags:?} {fields:?} {:?}",
            line.raw, theirs.timestamp
        ))
    }
}

/// Splits at line breaks outside of quoted fields.
fn split(text: &str) -> Vec<&str> {
    let b = text.as_bytes();
    let mut lines = Vec::new();
    let (mut start, mut i) = (0, 0);
    let (mut fields, mut quoted, mut equals, mut commas) = (false, false, 0, 0);
    while i < b.len() {
        if b[i] == b'\\' && i + 2 < b.len() {
            i += 2;
            continue;
        }
        match b[i] {
            b' ' => fields = true,
            b'=' if fields && !quoted => equals += 1,
            b',' if fields && !quoted => commas += 1,
            b'"' if fields && equals > commas => quoted = !quoted,
            b'\n' if !quoted => {
                lines.push(&text[start..i]);
                start = i + 1;
                (fields, equals, commas) = (false, 0, 0);
            }
            _ => {}
        }
        i += 1;
    }
    lines.push(&text[start..]);
    lines
}

/// The position of the first of `stops` that no backslash precedes.
fn unescaped(text: &str, from: usize, stops: &[u8]) -> Option<usize> {
    let b = text.as_bytes();
    (from..b.len()).find(|i| stops.contains(&b[*i]) && (*i == 0 || b[*i - 1] != b'\\'))
}

fn parse_line(raw: &str) -> Result<Line, String> {
    let end = unescaped(raw, 1, b", ").ok_or("missing fields")?;
    let measurement = raw[..end].replace("\\,", ",").replace("\\ ", " ");
    let mut tags = BTreeMap::new();
    let mut at = end;
    while raw.as_bytes()[at] == b',' {
        let equals = unescaped(raw, at + 1, b"=, ").ok_or("missing tag value")?;
        if raw.as_bytes()[equals] != b'=' {
            return Err("missing tag value".into());
        }
        let key = &raw[at + 1..equals];
        if key.is_empty() {
            return Err("missing tag key".into());
        }
        let stop = unescaped(raw, equals + 1, b"=, ").ok_or("missing fields")?;
        let value = &raw[equals + 1..stop];
        if value.is_empty() || raw.as_bytes()[stop] == b'=' {
            return Err("missing tag value".into());
        }
        let plain = |s: &str| {
            s.replace("\\,", ",")
                .replace("\\ ", " ")
                .replace("\\=", "=")
        };
        if tags.insert(plain(key), plain(value)).is_some() {
            return Err("duplicate tags".into());
        }
        at = stop;
    }
    let (fields, rest) = parse_fields(raw[at..].trim_start_matches(' '))?;
    let time = match rest.trim_matches(' ') {
        "" => None,
        text => Some(text.parse().map_err(|_| "bad timestamp")?),
    };
    Ok(Line {
        measurement,
        tags,
        fields,
        time,
        raw: raw.to_owned(),
    })
}

fn parse_fields(text: &str) -> Result<(BTreeMap<String, Value>, &str), String> {
    let mut fields = BTreeMap::new();
    let mut rest = text;
    loop {
        let equals = unescaped(rest, 0, b"=").ok_or("missing fields")?;
        let key = rest[..equals].to_owned();
        if key.is_empty() || key.contains(' ') {
            return Err("missing field key".into());
        }
        rest = &rest[equals + 1..];
        let value;
        if let Some(inner) = rest.strip_prefix('"') {
            let (text, after) = quoted(inner)?;
            value = Value::Text(text);
            rest = after;
        } else {
            let end = rest.find([',', ' ']).unwrap_or(rest.len());
            value = scalar(&rest[..end])?;
            rest = &rest[end..];
        }
        fields.insert(key, value);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok((fields, rest)),
        }
    }
}

fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut out = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &text[i + 1..])),
            '\\' => match chars.peek() {
                Some((_, next @ ('"' | '\\'))) => {
                    out.push(*next);
                    chars.next();
                }
                _ => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    Err("unbalanced quotes".into())
}

fn scalar(text: &str) -> Result<Value, String> {
    if let Some(int) = text.strip_suffix(['i', 'u']) {
        return int
            .parse()
            .map(Value::Int)
            .map_err(|_| "invalid number".into());
    }
    match text {
        "t" | "T" | "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "f" | "F" | "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        "" => return Err("missing field value".into()),
        _ => {}
    }
    if text
        .bytes()
        .any(|b| !matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
    {
        return Err("invalid number".into());
    }
    let value: f64 = text.parse().map_err(|_| "invalid number")?;
    if value.is_finite() {
        Ok(Value::Float(value))
    } else {
        Err("invalid number".into())
    }
}

mod tests {
    use super::*;

    #[test]
    fn what_the_server_refuses_is_refused() {
        for bad in [
            "m,a= value=1 1",
            "m,a=b value=NaN 1",
            "m,a=b value= 1",
            "m,a=b\\,c=d value=1 1",
            "m,a=b",
            "m,a=b value=1 x",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn escapes_and_quotes_are_undone() {
        let lines = all(
            "m\\ x\\,y,a\\=b=c\\,d\\ e\\=f,q=a\"b f=\"x \\\"y\\\" \\\\ z\nw\",i=3i,v=1.5 12\n# nothing\n\nn v=1\n",
        );
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].measurement, "m x,y");
        assert_eq!(lines[0].tags["a=b"], "c,d e=f");
        assert_eq!(lines[0].tags["q"], "a\"b");
        assert_eq!(lines[0].fields["f"], Value::Text("x \"y\" \\ z\nw".into()));
        assert_eq!(lines[0].fields["i"], Value::Int(3));
        assert_eq!(lines[0].time, Some(12));
        assert_eq!(lines[1].time, None);
    }

    #[test]
    fn a_backslash_before_an_escaped_comma_stays() {
        let lines = all(r"m,a=b\\,c,d=e v=1 1");
        assert_eq!(lines[0].tags["a"], r"b\,c");
    }
}
