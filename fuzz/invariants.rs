// Invariants for arbitrary input. The fuzz targets and the test that replays their corpus share them.

use powerview::catalogue::{self, KnownChannel, KnownChannels, Problems, Sheet, extend};
use powerview::data_dir::Campaign;
use powerview::logger_file::{LoggerFile, ReadOptions, Role, RowStats};
use powerview::points::{SeriesPrefix, append_row};
use powerview::time_zone::FileZones;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read;
use std::sync::LazyLock;

/// The time zones of all files.
static ZONES: LazyLock<FileZones> = LazyLock::new(|| FileZones::built_in(chrono_tz::Europe::Paris));

/// The result of a conversion.
struct Converted {
    lines: Vec<u8>,
    stats: RowStats,
    truncated: Option<bool>,
    /// The number of cells of the rows that were kept: one per row and channel.
    cells: u64,
    /// Whether an error ended the rows.
    failed: bool,
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
    let zones = &*ZONES;
    let mut file = LoggerFile::open(input, &ReadOptions::new(zones)).ok()?;
    let campaign = Campaign::new(OsStr::new("a, b=c")).expect("a campaign");
    // A table may begin at any row.
    let mut header_changes = u64::MAX;
    let mut prefixes = Vec::new();
    let mut lines = Vec::new();
    let mut sent = 0;
    let mut cells = 0;
    // An error ends the rows like the end of the file does. The rows before it count.
    let failed = loop {
        let row = match file.next_row() {
            Ok(Some(row)) => row,
            Ok(None) => break false,
            Err(_) => break true,
        };
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
    };
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
        failed,
    })
}

/// Checks that points and invalid values add up, that every line is valid line protocol, and that the block size of
/// the input has no effect.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
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
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub(super) fn header(bytes: &[u8]) {
    let text = [bytes, b"\n03/08/25 03:20:00\t1\n"].concat();
    let zones = &*ZONES;
    let Ok(file) = LoggerFile::open(text.as_slice(), &ReadOptions::new(zones)) else {
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

/// The parts of which [`documents`] puts files together: complete and cut lines of headers, rows and documents.
const PARTS: [&[u8]; 40] = [
    b"1\t1\t2\t3\n",
    b"1\t2\t1\n",
    b"7\t7\n",
    b"MV_T302_V002\tPh 1 V\tVoie1 W\tVoie1 W\n",
    b"MV_T302_V003\tVoie2 W\tPh 1 V\n",
    b"MV_T302_V002\tCO2 ppm\n",
    b"MV_T302_V004\tCO2 ppm\n",
    b"MV_T302_V002\tPh 1",
    b"1\t1\t2",
    b"03/08/25 03:20:00\t242.25\t31.5\t163.8\n",
    b"03/08/25 03:30:00\t242\t31\n",
    b"04/08/25 00:00:00\t1\n",
    b"03/08/25 03:40:00\t\t\t\n",
    b"03/08/25 03:40:00\t1\t2\t3\t4\n",
    b"03/08/25 03:40:00\t1\t2\t3\t\n",
    b"03/08/25 03:50:00\t1,5\tNaN\t1e999\r\n",
    b"03/08/25 04:00:00\t1\t2.",
    b"03/08/25 04:00",
    b"03/08/25 04:00:00\t1\t03/08/25 04:10:00\t3\n",
    b"05/08/25 24:00:00\t1\n",
    b"26/10/25 02:10:00\t1\t2\t3\n",
    b"26/10/25 02:50:00\t1\t2\t3\n",
    b"26/10/25 02:10:00\t4\n",
    b"30/03/25 02:30:00\t5\t6\n",
    b"START_HEADER\n",
    b"START_HEADER\r\r\n",
    b"{\"DataTimeSettings\":\"UTC\"}\n",
    b"{\"TimeZoneName\":\"Indian/Reunion\"}\n",
    b"{\"TimeZone\":\"CET-1CEST,M3.5.0,M10.5.0/3\"\n",
    b"{}\n",
    b"END_HEADER\n",
    b"START_DATA\n",
    b"END_DATA\n",
    b"END_DATA",
    b"START_HEADER\n{\"DataTimeSettings\":\"UTC\"}\nEND_HEADER\nSTART_DATA\n1\t1\t2\nMV_T302_V003\tPh 1 V\tVoie1 W\n",
    b"START_HEADER\n{\"DataTimeSettings\":\"UTC\"\nEND_HEADER\nSTART_DATA\n7\t7\nMV_T302_V002\tPh 1 V\n",
    b"START_HEADER\n{\"TimeZoneName\":\"europe/paris\"}\nEND_HEADER\nSTART_DATA\n1\t2\nMV_T302_V003\tVoie1 W\n",
    b"\n",
    b"\0\0\n",
    b"\xff\tx\n",
];

/// The positions in [`PARTS`] of the rows in the night of the autumn change. Their meaning depends on the row before.
const AUTUMN_PARTS: std::ops::RangeInclusive<usize> = 20..=22;

/// Reads a file made of [`PARTS`], one per byte after the first, which chooses a place in it. Checks that what follows
/// that place does not change how the lines before it are read, and that a headed document that begins there is read like
/// one at the start of a file.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub(super) fn documents(bytes: &[u8]) {
    let Some((place, bytes)) = bytes.split_first() else {
        return;
    };
    let chosen = || bytes.iter().map(|byte| usize::from(*byte) % PARTS.len());
    let has_autumn = chosen().any(|part| AUTUMN_PARTS.contains(&part));
    let parts: Vec<_> = chosen().map(|part| PARTS[part]).collect();
    let file = parts.concat();
    reader(&file);
    let place = usize::from(*place) % (parts.len() + 1);
    let (before, after) = file.split_at(parts[..place].concat().len());
    if !before.ends_with(b"\n") {
        return;
    }
    let Some(before) = convert(before) else {
        return;
    };
    let whole = convert(file.as_slice()).expect("the header is complete");
    assert!(whole.lines.starts_with(&before.lines));
    if before.failed || has_autumn || !after.starts_with(b"START_HEADER") {
        return;
    }
    let after = convert(after).map_or(Vec::new(), |after| after.lines);
    assert!(whole.lines[before.lines.len()..] == after);
}

/// Reads the lines of a text as `DataTimeSettings`, `TimeZoneName` and `TimeZone` of a headed document. Checks that its
/// times have one meaning: the same in other letter case and in a header that is cut off, UTC where the header says so,
/// and never more than 26 h from UTC, the limit of a POSIX string and its change of one hour.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub(super) fn zones(bytes: &[u8]) {
    const KEYS: [&str; 3] = ["DataTimeSettings", "TimeZoneName", "TimeZone"];
    let texts: Vec<String> = bytes
        .splitn(KEYS.len(), |byte| *byte == b'\n')
        .map(|text| {
            let printable = text.iter().map(|byte| char::from(*byte));
            let printable = printable.filter(|c| (' '..='~').contains(c));
            printable.filter(|c| !matches!(c, '"' | '\\')).collect()
        })
        .collect();
    let entries = |change: fn(&str) -> String| {
        let entries = KEYS.iter().zip(&texts).enumerate();
        let entries = entries.map(|(n, (key, text))| {
            // A POSIX string has its own rules on letter case.
            let text = if n < 2 { change(text) } else { text.clone() };
            format!("\"{key}\":\"{text}\"")
        });
        format!("{{{}", entries.collect::<Vec<_>>().join(","))
    };
    let same = entries(str::to_owned);
    let valid = times(&format!("{same}}}"));
    let valid = valid.expect("a valid header is never refused");
    let swapped = |text: &str| {
        let swap = |c: char| match c {
            'a'..='z' => c.to_ascii_uppercase(),
            _ => c.to_ascii_lowercase(),
        };
        text.chars().map(swap).collect()
    };
    assert_eq!(
        times(&format!("{}}}", entries(swapped))),
        Some(valid.clone())
    );
    let is_given = texts.iter().any(|text| !text.is_empty());
    assert_eq!(times(&same), is_given.then(|| valid.clone()));
    let is_utc = texts
        .first()
        .is_some_and(|text| text.eq_ignore_ascii_case("UTC"));
    for (time, naive) in valid.iter().zip(ROWS) {
        let offset = (time - naive.1).abs();
        assert!(offset <= 26 * 3600 && (offset == 0 || !is_utc), "{offset}");
    }
}

/// Times and what they are in UTC: an ordinary one, those of the changes of the clock, and a second one of the autumn.
const ROWS: [(&str, i64); 6] = [
    ("01/01/25 00:00:00", 1_735_689_600),
    ("30/03/25 02:30:00", 1_743_301_800),
    ("03/08/25 03:20:00", 1_754_191_200),
    ("26/10/25 02:10:00", 1_761_444_600),
    ("26/10/25 02:50:00", 1_761_447_000),
    ("26/10/25 02:10:00", 1_761_444_600),
];

/// The timestamps of [`ROWS`] in a document with this header. `None` if it is refused.
fn times(header: &str) -> Option<Vec<i64>> {
    let rows: String = ROWS
        .iter()
        .map(|(time, _)| format!("{time}\t1\n"))
        .collect();
    let text = format!(
        "START_HEADER\n{header}\nEND_HEADER\nSTART_DATA\n1\t1\nMV_T302_V002\tx\n{rows}END_DATA\n"
    );
    let zones = &*ZONES;
    let mut file = LoggerFile::open(text.as_bytes(), &ReadOptions::new(zones)).ok()?;
    let mut times = Vec::new();
    while let Some(row) = file.next_row().expect("a valid row") {
        times.push(row.time);
    }
    assert_eq!(times.len(), ROWS.len());
    Some(times)
}

/// The channels of the campaign whose catalogue [`catalogue`] reads: ids, devices, labels and units.
const CHANNELS: [[&str; 4]; 9] = [
    ["M1_Ch1_M1", "1", "Ph 1", "V"],
    ["M1_Ch2_M1", "1", "D1L1", "W"],
    ["M1_Ch3_M1", "1", "D1L2", "W"],
    ["M1_Ch4_M1", "1", "D1L3", "W"],
    ["S2_Ch1_M1", "2", "=cmd|'/c calc'!A1", "kW"],
    ["S3_Ch1_M1", "3", "a;\"b\"", "W"],
    ["S4_Ch1_M1", "4", "'-x", "W"],
    ["Sa + b_Ch1_M1", "a + b", "Été", "W"],
    ["M5_Ch1_M5", "5", "", ""],
];

/// The titles of a catalogue.
const TITLES: &[u8] =
    b"channel_id;name;formula;continues;role;hidden;circuit;phase;unit;device;channel\n";

/// Reads a catalogue: the bytes after the first one, with a line of titles before them if the first one is odd. Checks that
/// messages are short and clean in both languages; that what is accepted, written out and read again gives the same
/// entries; that channels are added without a change of the lines that are there; and that sums consist of channels of
/// loggers.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub(super) fn catalogue(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let titles = if mode % 2 == 1 { TITLES } else { b"" };
    let bytes = [titles, bytes].concat();
    let mut known = KnownChannels::default();
    for texts in CHANNELS {
        let [id, device, channel, unit] = texts.map(str::to_owned);
        let channel = KnownChannel {
            id,
            device,
            channel,
            unit,
        };
        known.add(0, channel);
    }
    let zone = &ZONES.default;
    let sheet = match Sheet::read(&bytes) {
        Ok(sheet) => sheet,
        Err(problems) => {
            check_messages(&problems);
            assert!(extend(Some(&bytes), &known).is_err());
            let all = catalogue::check(&bytes, &known, zone).expect_err("problems of cells");
            check_messages(&all);
            assert!(all.len() >= problems.len());
            return;
        }
    };
    let text = sheet.to_text();
    let again = Sheet::read(&text).expect("what was written");
    assert!(again.to_text() == text);
    let extended = extend(Some(&bytes), &known).expect("a readable catalogue");
    let with_all = extended.text.as_ref().unwrap_or(&bytes);
    if let (Some(extended), Ok(before)) = (&extended.text, std::str::from_utf8(&bytes)) {
        let before = before.strip_prefix('\u{feff}').unwrap_or(before);
        assert!(extended[3..].starts_with(before.as_bytes()));
    }
    let more = extend(Some(with_all), &known).expect("what was written");
    assert_eq!((more.text, more.added), (None, 0));
    assert_eq!(more.before, extended.before + extended.added);
    let with_all = Sheet::read(with_all).expect("what was written");
    assert!(sheet.check(&known, zone) == catalogue::check(&bytes, &known, zone));
    let found = match (sheet.check(&known, zone), again.check(&known, zone)) {
        (Ok(found), Ok(again)) => {
            assert!(found == again);
            found
        }
        (Err(problems), Err(again)) => {
            check_messages(&problems);
            assert_eq!(problems.len(), again.len());
            return;
        }
        _ => panic!("only one of two equal catalogues is accepted"),
    };
    let all = with_all.check(&known, zone).expect("more of what is known");
    assert!(all.len() >= found.len() && all.len() >= CHANNELS.len());
    let ids: HashSet<_> = CHANNELS.iter().map(|[id, ..]| *id).collect();
    for catalogue in [&found, &all] {
        let mut labels = HashSet::new();
        for (id, label) in catalogue.labels() {
            let is_virtual = id
                .strip_prefix("V_")
                .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
            assert!(ids.contains(id) || is_virtual, "{id:?}");
            assert!(!label.is_empty() && labels.insert(label), "{label:?}");
        }
        for (id, parts) in catalogue.sums() {
            assert!(id.starts_with("V_") && !ids.contains(id), "{id:?}");
            assert!(!parts.is_empty() && parts.len() <= 512);
            assert!(parts.iter().all(|part| ids.contains(part)), "{parts:?}");
        }
    }
}

/// Writes the catalogue of channels whose ids, devices, labels and units are these texts, first of a part of them, and then of all.
/// Checks that what is written is accepted, and has a line of each channel that is not left out.
#[allow(dead_code, reason = "each fuzz target uses one of them")]
pub(super) fn written_catalogue(channels: &[[String; 4]], first: usize) {
    let zone = &ZONES.default;
    let mut known = KnownChannels::default();
    let mut text: Option<Vec<u8>> = None;
    for (from, until) in [(0, first), (first, channels.len())] {
        for texts in &channels[from.min(channels.len())..until.min(channels.len())] {
            let [id, device, channel, unit] = texts.clone();
            let channel = KnownChannel {
                id,
                device,
                channel,
                unit,
            };
            known.add(0, channel);
        }
        let extended = extend(text.as_deref(), &known).expect("what was written");
        assert_eq!(extended.left_out, 0);
        assert_eq!(extended.before + extended.added, known.len());
        text = extended.text.or(text);
        let written = text.as_deref().expect("a text");
        let found = catalogue::check(written, &known, zone);
        let found = found.unwrap_or_else(|problems| panic!("{:#?}", problems.english()));
        assert_eq!(found.len(), known.len());
    }
}

/// Checks the messages about the problems of a catalogue.
fn check_messages(problems: &Problems) {
    let (english, french) = (problems.english(), problems.french());
    assert!(!english.is_empty() && english.len() <= 21 && english.len() == french.len());
    for message in english.iter().chain(&french) {
        assert!(message.len() < 4_000, "{message}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
}
