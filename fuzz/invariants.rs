// What holds for any bytes. Shared by the fuzz targets and by the test that replays their corpus.

use powerview::data_dir::Campaign;
use powerview::logger_file::{LoggerFile, Role, RowStats};
use powerview::points::{SeriesPrefix, append_row};
use powerview::time_zone::FileZones;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Read;

/// The points of a file as lines, what was counted, and whether it ended early.
struct Converted {
    lines: Vec<u8>,
    stats: RowStats,
    truncated: bool,
    channels: usize,
}

/// Hands out a few bytes at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(self.1);
        self.0.read(&mut buffer[..n])
    }
}

fn convert(input: impl Read) -> Option<Converted> {
    let mut file = LoggerFile::open(input, &FileZones::built_in(chrono_tz::Europe::Paris)).ok()?;
    let campaign = Campaign::new(OsStr::new("a, b=c")).expect("a campaign");
    let channels = file.channels().clone();
    let prefix = |channel| SeriesPrefix::new(&campaign, &channels.master, channel);
    let prefixes: Vec<_> = channels.list.iter().map(prefix).collect();
    let mut lines = Vec::new();
    let mut sent = 0;
    // An error ends the reading as the end does: what was read until then counts.
    while let Ok(Some(row)) = file.next_row() {
        assert!(row.values.iter().flatten().all(|value| value.is_finite()));
        sent += u64::from(append_row(&mut lines, &prefixes, &row));
    }
    let stats = file.stats();
    assert_eq!(stats.points, sent);
    Some(Converted {
        lines,
        stats,
        truncated: file.truncated(),
        channels: channels.list.len(),
    })
}

/// Points and invalid values add up, every line is one that the server can read, and the size of the blocks changes nothing.
#[allow(dead_code, reason = "each fuzz target uses one of the two")]
pub fn reader(bytes: &[u8]) {
    let whole = convert(bytes);
    let dribbled = convert(Dribble(bytes, 3));
    assert_eq!(whole.is_some(), dribbled.is_some());
    let (Some(whole), Some(dribbled)) = (whole, dribbled) else {
        return;
    };
    assert!(
        whole.lines == dribbled.lines
            && whole.stats == dribbled.stats
            && whole.truncated == dribbled.truncated
    );
    let stats = whole.stats;
    assert_eq!(
        stats.points + stats.invalid_values,
        stats.rows * whole.channels as u64
    );
    let mut count = 0;
    for line in whole.lines.split_inclusive(|byte| *byte == b'\n') {
        check_line(line);
        count += 1;
    }
    assert_eq!(stats.points, count);
}

/// A line has its nine tags, or fewer, each `key=value` with no separator left bare, one field and one time.
pub fn check_line(line: &[u8]) {
    let line = std::str::from_utf8(line).expect("UTF-8");
    assert!(
        !line.chars().any(|c| c.is_control() && c != '\n'),
        "{line:?}"
    );
    let line = line.strip_suffix('\n').expect("a line break");
    let parts = split_bare(line, b' ');
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
    // 20YY, with a day to spare for zones.
    assert!((946_598_400..4_102_531_200).contains(&time), "{time}");
    let tags = split_bare(series, b',');
    let keys: Vec<_> = tags[1..]
        .iter()
        .map(|tag| {
            let pair = split_bare(tag, b'=');
            let [key, value] = pair[..] else {
                panic!("{tag:?}")
            };
            assert!(!value.is_empty() && !value.ends_with('\\'), "{tag:?}");
            key
        })
        .collect();
    // Tags that consist of backslashes are left out; these four cannot.
    assert!(keys.is_sorted() && keys.len() >= 4, "{keys:?}");
}

/// Splits at each separator that no backslash stands before, as the server does.
fn split_bare(text: &str, separator: u8) -> Vec<&str> {
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

/// Channels are numbered per device, named after it, and the master is the first serial.
#[allow(dead_code, reason = "each fuzz target uses one of the two")]
pub fn header(bytes: &[u8]) {
    let text = [bytes, b"\n03/08/25 03:20:00\t1\n"].concat();
    let Ok(file) = LoggerFile::open(
        text.as_slice(),
        &FileZones::built_in(chrono_tz::Europe::Paris),
    ) else {
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
