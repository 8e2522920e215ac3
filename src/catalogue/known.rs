//! The channels of a campaign that are known: from the database, the files and the catalogue applied before.

use super::problem::{MAX_SHOWN, excerpt};
use super::table::Column;
use crate::report::counted;
use crate::sanitize::needs_escape;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

/// What the id of a virtual channel begins with.
pub(super) const VIRTUAL: &str = "V_";

/// Maximum number of channels that a message proposes.
const MAX_CANDIDATES: usize = 3;

/// A channel of loggers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownChannel {
    /// Its id.
    pub id: String,
    /// The serial of its device.
    pub device: String,
    /// What the logger calls it.
    pub channel: String,
    /// Its unit.
    pub unit: String,
}

/// The parts of an id such as `S04000466_Ch1_M02001171`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct IdParts<'a> {
    pub(super) master: &'a str,
    /// Whether it is a channel of the master itself, negated, so that these come first.
    is_slave: bool,
    pub(super) serial: &'a str,
    pub(super) number: u64,
}

impl<'a> IdParts<'a> {
    /// Parses an id. `None` if no logger file gives it.
    pub(super) fn of(id: &'a str) -> Option<Self> {
        let (rest, master) = id.rsplit_once("_M")?;
        let (device, number) = rest.rsplit_once("_Ch")?;
        let (is_slave, serial) = match device.split_at_checked(1)? {
            ("M", serial) => (false, serial),
            ("S", serial) => (true, serial),
            _ => return None,
        };
        Some(Self {
            master,
            is_slave,
            serial,
            number: number.parse().ok()?,
        })
    }
}

/// What an id or a shortened id means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found<'a> {
    One(&'a KnownChannel),
    /// The ids of several channels.
    Several(Vec<String>),
    Nothing,
}

/// Why no line of a catalogue can be about a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unnameable {
    Unreadable,
    /// The server takes a backslash at the end for a part of what follows.
    Backslash,
    TooLong,
    Virtual,
    Twin,
}

impl Unnameable {
    fn message(self) -> String {
        match self {
            Self::Unreadable => "its id has invisible characters, or nothing but blanks".to_owned(),
            Self::Backslash => "its id ends with a backslash".to_owned(),
            Self::TooLong => format!(
                "its id has more than {} characters",
                Column::ChannelId.limit()
            ),
            Self::Virtual => {
                format!("ids that begin with {VIRTUAL} belong to virtual channels")
            }
            Self::Twin => "another id differs from it only in the blanks around it".to_owned(),
        }
    }
}

/// The known channels of a campaign by their ids.
#[derive(Debug, Clone, Default)]
pub struct KnownChannels {
    /// By the ids as cells have them, without blanks around them. With the time at which the channel had that label.
    by_id: BTreeMap<String, (i64, KnownChannel)>,
    unnameable: BTreeMap<String, Unnameable>,
}

impl KnownChannels {
    /// Adds a channel. Of several with the same id, the one with the latest time describes it. One whose id no cell can have is
    /// left out.
    pub fn add(&mut self, time: i64, mut channel: KnownChannel) {
        let cell = channel.id.trim();
        let reason = if cell.is_empty() || channel.id.chars().any(needs_escape) {
            Some(Unnameable::Unreadable)
        } else if channel.id.ends_with('\\') {
            Some(Unnameable::Backslash)
        } else if cell.chars().count() > Column::ChannelId.limit() {
            Some(Unnameable::TooLong)
        } else if cell.starts_with(VIRTUAL) {
            Some(Unnameable::Virtual)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.unnameable.insert(channel.id, reason);
            return;
        }
        for (column, text) in [
            (Column::Device, &mut channel.device),
            (Column::Channel, &mut channel.channel),
            (Column::Unit, &mut channel.unit),
        ] {
            let visible = text.chars().filter(|c| !needs_escape(*c));
            *text = visible.take(column.limit()).collect();
        }
        let cell = cell.to_owned();
        let Some(known) = self.by_id.get_mut(&cell) else {
            self.by_id.insert(cell, (time, channel));
            return;
        };
        if known.1.id == channel.id {
            if known.0 <= time {
                *known = (time, channel);
            }
            return;
        }
        // The cell means the id that is written exactly so, if there is one.
        let is_better = |a: &String, b: &String| (*a != cell, a) < (*b != cell, b);
        let other = if is_better(&channel.id, &known.1.id) {
            std::mem::replace(known, (time, channel)).1
        } else {
            channel
        };
        self.unnameable.insert(other.id, Unnameable::Twin);
    }

    /// Says of the first channels that no line can be about why that is so, and how many others there are.
    pub(crate) fn unnameable(&self) -> Vec<String> {
        let shown = self.unnameable.iter().take(MAX_SHOWN);
        let mut messages: Vec<_> = shown
            .map(|(id, reason)| {
                format!(
                    "channel \"{}\" cannot be named, because {}; charts show it as before, unless its points are written with another channel_id",
                    excerpt(id),
                    reason.message()
                )
            })
            .collect();
        let others = self.unnameable.len() - messages.len();
        if others > 0 {
            messages.push(format!(
                "{} cannot be named either",
                counted(others as u64, "more channel")
            ));
        }
        messages
    }

    /// Whether points have the id of a virtual channel.
    pub(super) fn is_taken(&self, virtual_id: &str) -> bool {
        self.unnameable.get(virtual_id) == Some(&Unnameable::Virtual)
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The channel with an id, with or without the blanks around it.
    pub(super) fn get(&self, id: &str) -> Option<&KnownChannel> {
        self.by_id.get(id.trim()).map(|(_, channel)| channel)
    }

    /// All channels in the order of masters, devices and numbers.
    pub(super) fn sorted(&self) -> Vec<&KnownChannel> {
        let mut all: Vec<_> = self.by_id.values().map(|(_, channel)| channel).collect();
        all.sort_by_key(|channel| (IdParts::of(&channel.id).is_none(), IdParts::of(&channel.id)));
        all
    }

    /// The ids that a text resembles most.
    pub(super) fn candidates(&self, text: &str) -> Vec<String> {
        let text = text.to_lowercase();
        // A shortened id resembles one of another channel.
        let likeness = |id: &str| {
            let short = id.rsplit_once("_M").map_or(id, |(short, _)| short);
            let channel = short.rfind("Ch").map_or(short, |at| &short[at..]);
            let forms = [id, short, channel].map(|form| shared(&form.to_lowercase(), &text));
            forms.into_iter().max().unwrap_or_default()
        };
        let ids = self.by_id.keys().map(|id| (Reverse(likeness(id)), id));
        let mut best: Vec<_> = ids.filter(|(likeness, _)| likeness.0 > 1).collect();
        best.sort();
        best.truncate(MAX_CANDIDATES);
        best.into_iter().map(|(_, id)| id.clone()).collect()
    }
}

/// The lengths of what two texts begin and end with, and of the second one if it is within the first.
fn shared(form: &str, text: &str) -> usize {
    let start = form.chars().zip(text.chars());
    let start = start.take_while(|(a, b)| a == b).count();
    let end = form.chars().rev().zip(text.chars().rev());
    let end = end.take_while(|(a, b)| a == b).count();
    let is_within = text.len() > 2 && form.contains(text);
    start + end + usize::from(is_within) * text.len()
}

/// Finds known channels by shortened ids.
pub(super) struct KnownIndex<'a> {
    pub(super) known: &'a KnownChannels,
    /// By ids without the master, and those of masters by `Ch1` too.
    by_short: HashMap<&'a str, Vec<&'a KnownChannel>>,
    has_several_masters: bool,
}

impl<'a> KnownIndex<'a> {
    pub(super) fn new(known: &'a KnownChannels) -> Self {
        let mut by_short: HashMap<_, Vec<_>> = HashMap::new();
        let mut master = None;
        let mut has_several_masters = false;
        for (_, channel) in known.by_id.values() {
            let Some(parts) = IdParts::of(&channel.id) else {
                continue;
            };
            has_several_masters |= *master.get_or_insert(parts.master) != parts.master;
            let short = &channel.id[..channel.id.len() - parts.master.len() - "_M".len()];
            by_short.entry(short).or_default().push(channel);
            if !parts.is_slave
                && let Some(at) = short.rfind("Ch")
            {
                by_short.entry(&short[at..]).or_default().push(channel);
            }
        }
        Self {
            known,
            by_short,
            has_several_masters,
        }
    }

    /// Finds a channel by its id, or by its id without the master; `Ch1` is a channel of the master if there is only one.
    pub(super) fn find(&self, text: &str) -> Found<'a> {
        if let Some(channel) = self.known.get(text) {
            return Found::One(channel);
        }
        let found = self.by_short.get(text).map_or(&[][..], Vec::as_slice);
        match *found {
            [] => Found::Nothing,
            [channel] if !(self.has_several_masters && text.starts_with("Ch")) => {
                Found::One(channel)
            }
            _ => {
                let ids = found.iter().map(|channel| channel.id.clone());
                Found::Several(ids.take(MAX_CANDIDATES).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(ids: &[&str]) -> KnownChannels {
        let mut known = KnownChannels::default();
        for id in ids {
            known.add(
                0,
                KnownChannel {
                    id: (*id).to_owned(),
                    device: String::new(),
                    channel: String::new(),
                    unit: String::new(),
                },
            );
        }
        known
    }

    fn found(known: &KnownChannels, text: &str) -> Result<String, Vec<String>> {
        match KnownIndex::new(known).find(text) {
            Found::One(channel) => Ok(channel.id.clone()),
            Found::Several(ids) => Err(ids),
            Found::Nothing => Err(Vec::new()),
        }
    }

    #[test]
    fn a_channel_is_found_by_its_id_and_by_shortened_ones() {
        let known = known(&[
            "M02_Ch1_M02",
            "M02_Ch2_M02",
            "M02_Ch10_M02",
            "S04_Ch1_M02",
            "S0_4_M7_Ch1_M02",
        ]);
        for (text, id) in [
            ("S04_Ch1_M02", "S04_Ch1_M02"),
            ("S04_Ch1", "S04_Ch1_M02"),
            ("M02_Ch2", "M02_Ch2_M02"),
            ("Ch1", "M02_Ch1_M02"),
            ("Ch10", "M02_Ch10_M02"),
            ("S0_4_M7_Ch1", "S0_4_M7_Ch1_M02"),
        ] {
            assert_eq!(found(&known, text).unwrap(), id, "{text}");
        }
        for unknown in ["Ch3", "Ch01", "ch1", "S04", "S0_4", "_", "", "Ch", "Ché"] {
            assert_eq!(found(&known, unknown).unwrap_err().len(), 0, "{unknown}");
        }
    }

    #[test]
    fn a_shortened_id_of_several_channels_is_ambiguous() {
        let known = known(&[
            "M02_Ch1_M02",
            "M03_Ch1_M03",
            "M03_Ch2_M03",
            "S04_Ch1_M02",
            "S04_Ch1_M03",
        ]);
        assert_eq!(
            found(&known, "Ch1").unwrap_err(),
            ["M02_Ch1_M02", "M03_Ch1_M03"]
        );
        assert_eq!(
            found(&known, "Ch2").unwrap_err(),
            ["M03_Ch2_M03"],
            "there are two masters"
        );
        assert_eq!(
            found(&known, "S04_Ch1").unwrap_err(),
            ["S04_Ch1_M02", "S04_Ch1_M03"]
        );
        assert_eq!(found(&known, "M03_Ch1").unwrap(), "M03_Ch1_M03");
    }

    #[test]
    fn channels_are_in_the_order_of_masters_devices_and_numbers() {
        let ids = [
            "M02_Ch1_M02",
            "M02_Ch2_M02",
            "M02_Ch10_M02",
            "S04_Ch1_M02",
            "M03_Ch1_M03",
            "other",
        ];
        let mut reversed = ids;
        reversed.reverse();
        let known = known(&reversed);
        let sorted: Vec<_> = known
            .sorted()
            .iter()
            .map(|channel| channel.id.as_str())
            .collect();
        assert_eq!(sorted, ids);
    }

    #[test]
    fn the_latest_label_describes_a_channel() {
        let mut known = KnownChannels::default();
        let channel = |name: &str| KnownChannel {
            id: "M02_Ch1_M02".to_owned(),
            device: "02".to_owned(),
            channel: name.to_owned(),
            unit: "W".to_owned(),
        };
        for (time, name) in [(5, "b"), (9, "c"), (7, "d")] {
            known.add(time, channel(name));
        }
        assert_eq!(known.get("M02_Ch1_M02").unwrap().channel, "c");
        known.add(10, channel("line\nbreak"));
        assert_eq!(known.get("M02_Ch1_M02").unwrap().channel, "linebreak");
        assert_eq!(known.len(), 1);
    }

    #[test]
    fn ids_with_blanks_are_found_without_them_and_others_that_no_cell_can_have_are_left_out() {
        let long = "x".repeat(1_025);
        let ids = [
            "a ",
            " b",
            "b",
            " c",
            "c ",
            "V_x",
            "d\n",
            "e\u{200b}",
            "f\\",
            " ",
        ];
        for order in [ids.to_vec(), ids.into_iter().rev().collect()] {
            let mut known = known(&order);
            known.add(0, known.get("a").unwrap().clone());
            let channel = known.get("a").unwrap().clone();
            known.add(
                0,
                KnownChannel {
                    id: long.clone(),
                    ..channel
                },
            );
            for (cell, id) in [("a", "a "), ("a ", "a "), ("b", "b"), ("c", " c")] {
                assert_eq!(found(&known, cell).unwrap(), id);
            }
            assert_eq!(known.len(), 3);
            let messages = known.unnameable();
            let of: Vec<_> = messages
                .iter()
                .map(|message| message.split("; ").next().unwrap())
                .collect();
            let twin = "because another id differs from it only in the blanks around it";
            assert_eq!(
                of,
                [
                    "channel \" \" cannot be named, because its id has invisible characters, or nothing but blanks".to_owned(),
                    format!("channel \" b\" cannot be named, {twin}"),
                    "channel \"V_x\" cannot be named, because ids that begin with V_ belong to virtual channels".to_owned(),
                    format!("channel \"c \" cannot be named, {twin}"),
                    "channel \"d\\n\" cannot be named, because its id has invisible characters, or nothing but blanks".to_owned(),
                    "channel \"e\\u{200b}\" cannot be named, because its id has invisible characters, or nothing but blanks".to_owned(),
                    "channel \"f\\\" cannot be named, because its id ends with a backslash".to_owned(),
                    format!("channel \"{}…\" cannot be named, because its id has more than 1024 characters", &long[..60]),
                ]
            );
            assert!(known.is_taken("V_x") && !known.is_taken("V_y"));
        }
        let many: Vec<_> = (0..25).map(|n| format!("V_{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let messages = known(&many).unnameable();
        assert_eq!(messages.len(), 21);
        assert_eq!(messages[20], "5 more channels cannot be named either");
    }
}
