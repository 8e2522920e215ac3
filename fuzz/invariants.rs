// Invariants for arbitrary input. The fuzz targets and the test that replays their corpus share them.

use powerview::data_dir::Campaign;
use powerview::logger_file::{LoggerFile, ReadOptions, Role, RowStats};
use powerview::points::{SeriesPrefix, append_row};
use powerview::time_zone::FileZones;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;

/// The result of a conversion.
struct Converted {
    lines: Vec<u8>,
    stats: RowStats,
    truncated: bool,
    /// The number of cells of the rows that were kept: one per row and channel.
    cells: u64,
}

/// A reader that returns at most the given number of bytes per read.
struct SmallReads<'a>(&'a [u8], usize);

impl Read for SmallReads<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(self.1);
        self.0.read(&mut buffer[..n])
    }
}

/// Converts a file, or returns `None` if its header is invalid.
fn convert(input: impl Read) -> Option<Converted> {
    let zones = FileZones::built_in(chrono_tz::Europe::Paris);
    let mut file = LoggerFile::open(input, &ReadOptions::new(&zones)).ok()?;
    let campaign = Campaign::new(OsStr::new("a, b=c")).expect("a campaign");
    // A table may begin at any row.
    let mut header_changes = u64::MAX;
    let mut prefixes = Vec::new();
    let mut lines = Vec::new();
    let mut sent = 0;
    let mut cells = 0;
    // An error ends the rows like the end of the file does. The rows before it count.
    while let Ok(Some(row)) = file.next_row() {
        assert!(row.values.iter().flatten().all(|value| value.is_finite()));
        assert_eq!(row.values.len(), row.channels.list.len());
        if row.header_changes != header_changes {
            header_changes = row.header_changes;
            let channels = row.channels;
            let prefix = |channel| SeriesPrefix::new(&campaign, &channels.master, channel);
            prefixes = channels.list.iter().map(prefix).collect();
        }
        sent += u64::from(append_row(&mut lines, &prefixes, &row));
        cells += row.values.len() as u64;
    }
    let stats = file.stats();
    assert_eq!(stats.points, sent);
    assert!(stats.lost_cells <= stats.cells);
    assert!(stats.header_changes < stats.tables);
    assert!(stats.short_rows <= stats.rows && stats.suspicious_times <= stats.rows);
    assert!(file.problems().len() <= 10);
    Some(Converted {
        lines,
        stats,
        truncated: file.truncated(),
        cells,
    })
}

/// Checks that points and invalid values add up, that every line is valid line protocol, and that the block size of
/// the input has no effect.
#[allow(dead_code, reason = "each fuzz target uses one of the two")]
pub(super) fn reader(bytes: &[u8]) {
    let whole = convert(bytes);
    let in_small_reads = convert(SmallReads(bytes, 3));
    assert_eq!(whole.is_some(), in_small_reads.is_some());
    let (Some(whole), Some(in_small_reads)) = (whole, in_small_reads) else {
        return;
    };
    assert!(
        whole.lines == in_small_reads.lines
            && whole.stats == in_small_reads.stats
            && whole.truncated == in_small_reads.truncated
    );
    let stats = whole.stats;
    assert_eq!(stats.points + stats.invalid_values, whole.cells);
    let mut count = 0;
    for line in whole.lines.split_inclusive(|byte| *byte == b'\n') {
        check_line(line);
        count += 1;
    }
    assert_eq!(stats.points, count);
}

/// Checks that a line has at most nine tags, each `key=value` with all separators escaped, one field and one timestamp.
pub(super) fn check_line(line: &[u8]) {
    let line = std::str::from_utf8(line).expect("UTF-8");
    assert!(
        !line.chars().any(|c| c.is_control() && c != '\n'),
        "{line:?}"
    );
    let line = line.strip_suffix('\n').expect("a line break");
    let parts = split_unescaped(line, b' ');
    let [series, field, time] = parts[..] else {
        panic!("{line:?}")
    };
    let value: f64 = field
        .strip_prefix("value=")
        .expect("the field")
        .parse()
        .expect("a number");
    assert!(value.is_finite());
    let time: i64 = time.parse().expect("seconds");
    // The years 2000 to 2099, with a margin of one day for time zones.
    assert!((946_598_400..4_102_531_200).contains(&time), "{time}");
    let tags = split_unescaped(series, b',');
    let keys: Vec<_> = tags[1..]
        .iter()
        .map(|tag| {
            let pair = split_unescaped(tag, b'=');
            let [key, value] = pair[..] else {
                panic!("{tag:?}")
            };
            assert!(!value.is_empty() && !value.ends_with('\\'), "{tag:?}");
            key
        })
        .collect();
    // A tag whose value consists of backslashes is left out. At least four tags have other values.
    assert!(keys.is_sorted() && keys.len() >= 4, "{keys:?}");
}

/// Splits at each unescaped separator, as the server does.
fn split_unescaped(text: &str, separator: u8) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut parts = Vec::new();
    let mut start = 0;
    for at in 0..bytes.len() {
        if bytes[at] == separator && (at == 0 || bytes[at - 1] != b'\\') {
            parts.push(&text[start..at]);
            start = at + 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Checks that channels are numbered per device, that ids follow from the serials, and that the first serial is the
/// master's.
#[allow(dead_code, reason = "each fuzz target uses one of the two")]
pub(super) fn header(bytes: &[u8]) {
    let text = [bytes, b"\n03/08/25 03:20:00\t1\n"].concat();
    let zones = FileZones::built_in(chrono_tz::Europe::Paris);
    let Ok(file) = LoggerFile::open(text.as_slice(), &ReadOptions::new(&zones)) else {
        return;
    };
    let channels = file.channels();
    assert!(!channels.list.is_empty() && !channels.master.is_empty());
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for channel in &channels.list {
        let count = seen.entry(&channel.serial).or_default();
        *count += 1;
        assert_eq!(channel.number, *count);
        assert_eq!(
            channel.role == Role::Master,
            channel.serial == channels.master
        );
        let letter = if channel.role == Role::Master {
            'M'
        } else {
            'S'
        };
        assert_eq!(
            channel.id,
            format!("{letter}{}_Ch{count}_M{}", channel.serial, channels.master)
        );
        assert!(!channel.unit.contains(' '));
        let label = format!("{} {}", channel.name, channel.unit);
        assert!(
            !label.chars().any(char::is_control) && !label.trim_matches(' ').is_empty(),
            "{label:?}"
        );
    }
}
