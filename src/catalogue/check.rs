//! Checks the lines of a catalogue against the known channels, and computes what is stored of them.

use super::chains::Chains;
use super::formula::{FormulaTerm, parse_continues, parse_formula};
use super::known::{Found, KnownChannel, KnownChannels, KnownIndex, VIRTUAL};
use super::labels::{Labels, VIRTUAL_DEVICE};
use super::problem::{Cause, MAX_SHOWN, Named, Problem, Problems, excerpt};
use super::sums::{MAX_TERMS, Sums};
use super::table::{Column, Row, Table};
use super::virtual_channel::VirtualChannel;
use crate::time_zone::TimeZone;
use chrono::NaiveDate;
use std::collections::{BTreeMap, HashMap};

/// What a cell without a circuit or a phase may say. Dashboards call those of channels without one so, too.
const NONE: &str = "-";

/// Maximum length of the id of a virtual channel in characters.
const MAX_VIRTUAL_ID: usize = 130;

/// How a channel counts in the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Role {
    /// The catalogue does not say.
    #[default]
    Unknown,
    /// Counts in the total.
    Total,
    /// A part of one that counts.
    Part,
    /// Produces energy.
    Production,
    /// None of these.
    Other,
}

impl Role {
    /// As it is stored.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Total => "total",
            Self::Part => "part",
            Self::Production => "production",
            Self::Other => "other",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_lowercase().as_str() {
            "" => Self::Unknown,
            "total" => Self::Total,
            "part" | "partie" => Self::Part,
            "production" => Self::Production,
            "other" | "autre" => Self::Other,
            _ => return None,
        })
    }
}

/// Whether a channel is hidden.
fn parse_hidden(text: &str) -> Option<bool> {
    match text.to_lowercase().as_str() {
        "" | "no" | "non" | "0" => Some(false),
        "yes" | "oui" | "1" | "x" => Some(true),
        _ => None,
    }
}

/// What is stored of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// What charts show. Of all channels that are shown, each has another one.
    pub(crate) label: String,
    pub(crate) circuit: String,
    pub(crate) phase: String,
    pub(crate) role: Role,
    pub(crate) is_hidden: bool,
    /// The id of the continued channel that it is a part of.
    pub(crate) merged: Option<String>,
    /// When it counts in that channel, in seconds since 1970.
    pub(crate) valid: (Option<i64>, Option<i64>),
    pub(crate) unit: String,
    pub(crate) device: String,
    /// What the logger calls it.
    pub(crate) channel: String,
    /// Of what a virtual or continued channel is computed.
    pub(crate) terms: Option<VirtualChannel>,
}

/// The entries of a catalogue by the ids of their channels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl Catalogue {
    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it has virtual or continued channels.
    pub(crate) fn has_virtual(&self) -> bool {
        self.virtual_channels().next().is_some()
    }

    /// The virtual and continued channels with their ids.
    pub(crate) fn virtual_channels(&self) -> impl Iterator<Item = (&str, &VirtualChannel)> {
        let entries = self.entries.iter();
        entries.filter_map(|(id, entry)| Some((id.as_str(), entry.terms.as_ref()?)))
    }

    /// The ids and labels of the channels that charts show.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let shown = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.merged.is_none());
        shown.map(|(id, entry)| (id.as_str(), entry.label.as_str()))
    }

    /// The ids of the virtual and continued channels, each with those of the channels of which it is computed.
    pub fn sums(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.virtual_channels().map(|(id, channel)| {
            let parts = channel.terms.iter().flat_map(|term| &term.parts);
            (id, parts.map(|part| part.channel_id.as_str()).collect())
        })
    }
}

/// The result of a check.
pub(crate) struct Checked {
    pub(crate) result: Result<Catalogue, Problems>,
    /// What may be wrong, but does not matter.
    pub(crate) warnings: Vec<String>,
}

/// Checks the lines of a catalogue, of which some problems are known already.
pub(super) fn check(
    table: &Table,
    problems: Problems,
    known: &KnownChannels,
    zone: &TimeZone,
) -> Checked {
    let mut lines = Lines {
        known: KnownIndex::new(known),
        problems,
        lacks_ids: !table.is_whole,
        warnings: Vec::new(),
        line_of: HashMap::new(),
        loggers: Vec::new(),
        virtuals: Vec::new(),
    };
    for row in &table.rows {
        lines.add(row);
    }
    let chains = Chains::build(&mut lines, zone);
    let sums = Sums::compute(&mut lines, &chains);
    lines.warn_of_hidden_totals();
    let mut problems = lines.problems;
    let result = if problems.is_empty() {
        Ok(catalogue(&lines.loggers, &lines.virtuals, &chains, sums))
    } else {
        problems.finish(known);
        Err(problems)
    };
    Checked {
        result,
        warnings: lines.warnings,
    }
}

/// What a line says about its channel.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    name: String,
    circuit: String,
    phase: String,
    role: Role,
    is_hidden: bool,
}

/// A line about a channel of a logger.
pub(super) struct LoggerLine<'a> {
    pub(super) line: u64,
    pub(super) channel: &'a KnownChannel,
    said: Said,
    /// The channel that it continues, and from which day on.
    pub(super) continues: Option<(&'a KnownChannel, NaiveDate)>,
}

/// A line with a formula.
pub(super) struct VirtualLine<'a> {
    pub(super) line: u64,
    pub(super) id: String,
    said: Said,
    /// `None` if there is a problem with them.
    pub(super) terms: Option<Vec<FormulaTerm<'a>>>,
}

/// The lines of a catalogue, as far as they can be understood one by one.
pub(super) struct Lines<'a> {
    pub(super) known: KnownIndex<'a>,
    pub(super) problems: Problems,
    /// Whether a line is missing, or has a problem because of which the id of a virtual or continued channel is unknown.
    pub(super) lacks_ids: bool,
    warnings: Vec<String>,
    /// The lines of ids.
    pub(super) line_of: HashMap<String, u64>,
    pub(super) loggers: Vec<LoggerLine<'a>>,
    pub(super) virtuals: Vec<VirtualLine<'a>>,
}

impl<'a> Lines<'a> {
    fn add(&mut self, row: &'a Row) {
        let said = self.said(row);
        let is_damaged = |column| row.is_damaged(column);
        self.lacks_ids |= is_damaged(Column::Continues) || is_damaged(Column::Name);
        if is_damaged(Column::ChannelId) || is_damaged(Column::Formula) {
            self.lacks_ids = true;
        } else if row.cell(Column::Formula).is_empty() {
            self.add_logger(row, said);
        } else {
            self.add_virtual(row, said);
        }
    }

    fn said(&mut self, row: &Row) -> Said {
        let (role, hidden) = (row.cell(Column::Role), row.cell(Column::Hidden));
        let text = |column| Some(row.cell(column)).filter(|text| *text != NONE);
        let text = |column| text(column).unwrap_or_default().to_owned();
        Said {
            name: row.cell(Column::Name).to_owned(),
            circuit: text(Column::Circuit),
            phase: text(Column::Phase),
            role: Role::parse(role).unwrap_or_else(|| {
                self.problem(row, Column::Role, Cause::Role(role.to_owned()));
                Role::Unknown
            }),
            is_hidden: parse_hidden(hidden).unwrap_or_else(|| {
                self.problem(row, Column::Hidden, Cause::Hidden(hidden.to_owned()));
                false
            }),
        }
    }

    fn add_logger(&mut self, row: &'a Row, said: Said) {
        let id = row.cell(Column::ChannelId);
        if id.is_empty() {
            return self.problem(row, Column::ChannelId, Cause::NoChannelId);
        }
        let Some(channel) = self.known.known.get(id) else {
            let cause = if self.known.known.is_taken(id) {
                Cause::PointsWithVirtualId(id.to_owned())
            } else if id.starts_with(VIRTUAL) {
                Cause::NoFormula(id.to_owned())
            } else {
                Cause::UnknownChannel(Named::unknown(id))
            };
            return self.problem(row, Column::ChannelId, cause);
        };
        if let Some(line) = self.line_of.get(id) {
            let cause = Cause::ChannelTwice(id.to_owned(), *line);
            return self.problem(row, Column::ChannelId, cause);
        }
        self.line_of.insert(id.to_owned(), row.line);
        self.compare(row, channel);
        let continues = self.continues(row);
        self.loggers.push(LoggerLine {
            line: row.line,
            channel,
            said,
            continues,
        });
    }

    /// The channel that a line continues.
    fn continues(&mut self, row: &'a Row) -> Option<(&'a KnownChannel, NaiveDate)> {
        let cell = row.cell(Column::Continues);
        if cell.is_empty() {
            return None;
        }
        let found = parse_continues(cell).and_then(|(text, day)| match self.known.find(text) {
            Found::One(channel) => Ok((channel, day)),
            Found::Several(candidates) => Err(Cause::AmbiguousTerm(Named {
                text: text.to_owned(),
                candidates,
            })),
            Found::Nothing if text.starts_with(VIRTUAL) => {
                Err(Cause::ContinuesVirtual(text.to_owned()))
            }
            Found::Nothing => Err(Cause::UnknownChannel(Named::unknown(text))),
        });
        match found {
            Ok(found) => Some(found),
            Err(cause) => {
                self.problem(row, Column::Continues, cause);
                None
            }
        }
    }

    fn add_virtual(&mut self, row: &'a Row, said: Said) {
        if said.name.is_empty() && !row.is_damaged(Column::Name) {
            self.problem(row, Column::Name, Cause::NoName);
        }
        if !row.cell(Column::Continues).is_empty() {
            self.problem(row, Column::Continues, Cause::FormulaAndContinues);
        }
        let given = row.cell(Column::ChannelId);
        let id = match given {
            "" => format!("{VIRTUAL}{}", safe(&said.name)),
            given => given.to_owned(),
        };
        let terms = match parse_formula(row.cell(Column::Formula)) {
            Ok(terms) if terms.len() > MAX_TERMS => {
                self.problem(row, Column::Formula, Cause::TooManyTerms);
                None
            }
            Ok(terms) => Some(terms),
            Err(cause) => {
                self.problem(row, Column::Formula, cause);
                None
            }
        };
        if id
            .strip_prefix(VIRTUAL)
            .is_none_or(|rest| safe(rest) != rest || rest.is_empty())
            || id.len() > MAX_VIRTUAL_ID
        {
            // Without a name, another problem says so.
            if !given.is_empty() {
                self.problem(row, Column::ChannelId, Cause::VirtualId(id));
            }
            return;
        }
        if let Some(line) = self.line_of.get(&id) {
            let cause = Cause::VirtualIdTaken(id, *line);
            return self.problem(row, Column::ChannelId, cause);
        }
        if self.known.known.is_taken(&id) {
            self.problem(
                row,
                Column::ChannelId,
                Cause::PointsWithVirtualId(id.clone()),
            );
        }
        self.line_of.insert(id.clone(), row.line);
        self.virtuals.push(VirtualLine {
            line: row.line,
            id,
            said,
            terms,
        });
    }

    /// Warns of cells that describe the channel of a logger in another way than its files.
    fn compare(&mut self, row: &Row, channel: &KnownChannel) {
        for (column, known) in [
            (Column::Device, &channel.device),
            (Column::Channel, &channel.channel),
            (Column::Unit, &channel.unit),
        ] {
            let cell = row.cell(column);
            if !cell.is_empty() && cell != known.trim() {
                self.warn(|| {
                    format!(
                        "line {}, column {column}: the channel is known with \"{}\" instead of \"{}\", which is not used",
                        row.line,
                        excerpt(known),
                        excerpt(cell)
                    )
                });
            }
        }
    }

    /// Warns of hidden channels of the role `total`, which do not count.
    fn warn_of_hidden_totals(&mut self) {
        let loggers = self.loggers.iter().map(|line| (line.line, &line.said));
        let virtuals = self.virtuals.iter().map(|line| (line.line, &line.said));
        let totals = loggers.chain(virtuals);
        let totals: Vec<_> = totals
            .filter(|(_, said)| said.role == Role::Total)
            .map(|(line, said)| (line, said.is_hidden))
            .collect();
        let without = if totals.iter().all(|(_, is_hidden)| *is_hidden) {
            ", and the total is that of the channels without a role"
        } else {
            ""
        };
        for (line, _) in totals.iter().filter(|(_, is_hidden)| *is_hidden) {
            self.warn(|| format!("line {line}, column hidden: a hidden channel of the role total does not count{without}; empty one of the cells"));
        }
    }

    fn warn(&mut self, message: impl FnOnce() -> String) {
        if self.warnings.len() < MAX_SHOWN {
            self.warnings.push(message());
        }
    }

    fn problem(&mut self, row: &Row, column: Column, cause: Cause) {
        self.problems.add(Problem::in_cell(row.line, column, cause));
    }
}

/// A text with `_` for each character but ASCII letters, digits and `_`.
pub(super) fn safe(text: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars()
        .map(|c| if is_safe(c) { c } else { '_' })
        .collect()
}

/// The id of the channel that continues others, after that of the last one.
pub(super) fn merged_id(channel_id: &str) -> String {
    format!("{VIRTUAL}{}", safe(channel_id))
}

/// Puts together what is stored of lines without problems.
fn catalogue(
    loggers: &[LoggerLine<'_>],
    virtuals: &[VirtualLine<'_>],
    chains: &Chains<'_>,
    sums: Sums,
) -> Catalogue {
    let mut labels = Labels::default();
    for line in loggers {
        match chains.of(&line.channel.id) {
            None => labels.add(&line.channel.id, &line.said.name, line.channel),
            Some(chain) if chain.is_last(&line.channel.id) => {
                labels.add(&chain.id, &line.said.name, line.channel);
            }
            Some(_) => {}
        }
    }
    for line in virtuals {
        labels.add_virtual(&line.id, &line.said.name);
    }
    let labels = labels.unique();
    let label = |id: &str| labels.get(id).cloned().unwrap_or_default();
    let entry = |id: &str, said: &Said, channel: &KnownChannel| Entry {
        label: label(id),
        circuit: said.circuit.clone(),
        phase: said.phase.clone(),
        role: said.role,
        is_hidden: said.is_hidden,
        unit: channel.unit.clone(),
        device: channel.device.clone(),
        channel: channel.channel.clone(),
        ..Entry::default()
    };
    let mut entries = BTreeMap::new();
    for line in loggers {
        let id = &line.channel.id;
        let Some(chain) = chains.of(id) else {
            entries.insert(id.clone(), entry(id, &line.said, line.channel));
            continue;
        };
        if !chain.is_last(id) {
            continue;
        }
        // What is said about the last meter applies to those before it.
        for part in &chain.parts {
            let part_entry = Entry {
                merged: Some(chain.id.clone()),
                valid: (part.from, part.until),
                ..entry(&chain.id, &line.said, part.channel)
            };
            entries.insert(part.channel.id.clone(), part_entry);
        }
        let merged = Entry {
            terms: Some(chain.virtual_channel()),
            ..entry(&chain.id, &line.said, line.channel)
        };
        entries.insert(chain.id.clone(), merged);
    }
    for (line, terms) in virtuals.iter().zip(sums.0) {
        let Some(terms) = terms else { continue };
        let channel = KnownChannel {
            id: line.id.clone(),
            device: VIRTUAL_DEVICE.to_owned(),
            channel: String::new(),
            unit: terms.unit.clone(),
        };
        let virtual_entry = Entry {
            terms: Some(terms),
            ..entry(&line.id, &line.said, &channel)
        };
        entries.insert(line.id.clone(), virtual_entry);
    }
    Catalogue { entries }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time_zone::FileZones;
    use serde_json::json;

    /// Three channels of a master, and those of two slaves.
    fn known() -> KnownChannels {
        let mut known = KnownChannels::default();
        for (id, device, channel, unit) in [
            ("M02_Ch1_M02", "02", "Ph 1", "V"),
            ("M02_Ch2_M02", "02", "Voie1", "W"),
            ("M02_Ch3_M02", "02", "Voie2", "kW"),
            ("S04_Ch1_M02", "04", "Voie1", "W"),
            ("S05_Ch1_M02", "05", "Voie1", "W"),
            ("S06_Ch1_M02", "06", "Voie1", "W"),
        ] {
            let texts = [id, device, channel, unit].map(str::to_owned);
            let [id, device, channel, unit] = texts;
            known.add(
                0,
                KnownChannel {
                    id,
                    device,
                    channel,
                    unit,
                },
            );
        }
        known
    }

    const HEADER: &str =
        "channel_id;name;formula;continues;role;hidden;circuit;phase;device;channel;unit\n";

    fn checked(lines: &str) -> Checked {
        let (table, problems) = Table::read_all(format!("{HEADER}{lines}").as_bytes());
        check(
            &table.unwrap(),
            problems,
            &known(),
            &FileZones::built_in(chrono_tz::Europe::Paris).default,
        )
    }

    #[track_caller]
    fn catalogue(lines: &str) -> Catalogue {
        checked(lines).result.unwrap()
    }

    /// The JSON of a virtual channel's terms.
    #[track_caller]
    fn terms(lines: &str, id: &str) -> serde_json::Value {
        let catalogue = catalogue(lines);
        serde_json::to_value(catalogue.entries[id].terms.as_ref().unwrap()).unwrap()
    }

    #[track_caller]
    fn problems(lines: &str) -> Vec<String> {
        checked(lines).result.unwrap_err().english()
    }

    #[track_caller]
    fn assert_problem(lines: &str, start: &str, words: &str) {
        let problems = problems(lines);
        assert_eq!(problems.len(), 1, "{lines}: {problems:#?}");
        assert!(
            problems[0].starts_with(start) && problems[0].contains(words),
            "{lines}: {problems:#?}"
        );
    }

    fn part(id: &str) -> serde_json::Value {
        json!([{"channel_id": id, "from": null, "until": null}])
    }

    #[test]
    fn an_entry_has_what_its_line_says_and_what_is_known() {
        let catalogue = catalogue(
            "M02_Ch2_M02;Arrivée;;;Total;;Général;L1;x;y;z\nS04_Ch1_M02;;;;partie;Oui;;;;;\nM02_Ch1_M02;;;;AUTRE;non;;;;;",
        );
        let expected = Entry {
            label: "Arrivée".to_owned(),
            circuit: "Général".to_owned(),
            phase: "L1".to_owned(),
            role: Role::Total,
            unit: "W".to_owned(),
            device: "02".to_owned(),
            channel: "Voie1".to_owned(),
            ..Entry::default()
        };
        assert_eq!(catalogue.entries["M02_Ch2_M02"], expected);
        let slave = &catalogue.entries["S04_Ch1_M02"];
        assert_eq!((slave.role, slave.is_hidden), (Role::Part, true));
        assert_eq!(slave.label, "Voie1 (04)");
        assert_eq!(catalogue.entries["M02_Ch1_M02"].role, Role::Other);
        assert_eq!(catalogue.len(), 3);
        assert!(!catalogue.has_virtual());
    }

    #[test]
    fn cells_that_differ_from_what_is_known_are_warnings() {
        let checked = checked("M02_Ch2_M02;a;;;;;;;03;Voie1;kW\n;b;Ch2;;;;;;x;y;MW");
        assert!(checked.result.is_ok());
        assert_eq!(
            checked.warnings,
            [
                "line 2, column device: the channel is known with \"02\" instead of \"03\", which is not used",
                "line 2, column unit: the channel is known with \"W\" instead of \"kW\", which is not used",
            ]
        );
    }

    #[test]
    fn a_formula_becomes_a_sum_of_channels_of_loggers() {
        let lines = "V_net;Net;Ch2 + Ch3 - S04_Ch1 - [S05_Ch1_M02];;;;;;;;";
        let expected = json!({"unit": "W", "terms": [
            {"factor": 1, "parts": part("M02_Ch2_M02")},
            {"factor": 1, "parts": part("M02_Ch3_M02")},
            {"factor": -1, "parts": part("S04_Ch1_M02")},
            {"factor": -1, "parts": part("S05_Ch1_M02")},
        ]});
        assert_eq!(terms(lines, "V_net"), expected);
        let entry = &catalogue(lines).entries["V_net"];
        assert_eq!(
            (entry.device.as_str(), entry.unit.as_str()),
            ("virtuel", "W")
        );
        assert_eq!(entry.label, "Net");
        let volts = json!({"unit": "V", "terms": [{"factor": 2, "parts": part("M02_Ch1_M02")}]});
        assert_eq!(terms(";Deux;Ch1 + Ch1;;;;;;;;", "V_Deux"), volts);
        assert_eq!(terms(";Été 1;Ch2;;;;;;;;", "V__t__1")["unit"], "W");
    }

    #[test]
    fn formulas_use_others_whatever_their_order_and_cancelled_channels_are_dropped() {
        let lines =
            ";c;V_b + V_b - V_a;;;;;;;;\n;b;V_a - Ch2 + S05_Ch1;;;;;;;;\n;a;Ch2 + S04_Ch1;;;;;;;;";
        let expected = json!({"unit": "W", "terms": [
            {"factor": 1, "parts": part("S04_Ch1_M02")},
            {"factor": 2, "parts": part("S05_Ch1_M02")},
            {"factor": -1, "parts": part("M02_Ch2_M02")},
        ]});
        let mut found = terms(lines, "V_c");
        let order = |term: &serde_json::Value| term["factor"].as_i64().unwrap().rem_euclid(4);
        found["terms"].as_array_mut().unwrap().sort_by_key(order);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_replaced_meter_and_its_successor_are_one_channel() {
        let lines = "S04_Ch1_M02;Old;;;other;yes;;;;;\nS05_Ch1_M02;Four;;S04_Ch1 until 2026-03-01;part;;Cuisine;L2;;;\n\
                     ;Double;S04_Ch1 + [V_S05_Ch1_M02] - Ch2;;;;;;;;";
        let mistaken = problems(lines);
        assert!(
            mistaken[0].contains("are the same channel"),
            "{mistaken:#?}"
        );
        let lines = lines.replace("S04_Ch1 + [V_S05_Ch1_M02]", "S04_Ch1 + S04_Ch1");
        let catalogue = catalogue(&lines);
        // 2026-03-01 00:00 in Paris.
        let change = 1_772_319_600;
        let parts = json!([
            {"channel_id": "S04_Ch1_M02", "from": null, "until": change},
            {"channel_id": "S05_Ch1_M02", "from": change, "until": null},
        ]);
        let merged = &catalogue.entries["V_S05_Ch1_M02"];
        assert_eq!(
            serde_json::to_value(merged.terms.as_ref().unwrap()).unwrap(),
            json!({"unit": "W", "terms": [{"factor": 1, "parts": parts}]})
        );
        let said = |entry: &Entry| {
            let Entry {
                label,
                circuit,
                phase,
                role,
                is_hidden,
                ..
            } = entry.clone();
            (label, circuit, phase, role, is_hidden)
        };
        let expected = ("Four", "Cuisine", "L2", Role::Part, false);
        for (id, valid, device) in [
            ("V_S05_Ch1_M02", (None, None), "05"),
            ("S04_Ch1_M02", (None, Some(change)), "04"),
            ("S05_Ch1_M02", (Some(change), None), "05"),
        ] {
            let entry = &catalogue.entries[id];
            let (label, circuit, phase, role, is_hidden) = said(entry);
            assert_eq!(
                (
                    label.as_str(),
                    circuit.as_str(),
                    phase.as_str(),
                    role,
                    is_hidden
                ),
                expected
            );
            assert_eq!(
                (entry.valid, entry.device.as_str()),
                (valid, device),
                "{id}"
            );
        }
        assert_eq!(merged.merged, None);
        assert_eq!(
            catalogue.entries["S04_Ch1_M02"].merged.as_deref(),
            Some("V_S05_Ch1_M02")
        );
        let double = terms(&lines, "V_Double");
        assert_eq!(double["terms"][0], json!({"factor": 2, "parts": parts}));
    }

    #[test]
    fn a_chain_of_meters_has_rising_dates_and_needs_no_line_for_the_first() {
        let lines = "S06_Ch1_M02;Four;;S05_Ch1 until 01/06/2026;;;;;;;\nS05_Ch1_M02;x;;S04_Ch1_M02 jusqu'au 01/03/2026;;;;;;;";
        let found = catalogue(lines);
        let times: Vec<_> = ["S04_Ch1_M02", "S05_Ch1_M02", "S06_Ch1_M02"]
            .iter()
            .map(|id| (found.entries[*id].valid, found.entries[*id].label.clone()))
            .collect();
        let (march, june) = (1_772_319_600, 1_780_264_800);
        assert_eq!(
            times,
            [
                (None, Some(march)),
                (Some(march), Some(june)),
                (Some(june), None)
            ]
            .map(|valid| (valid, "Four".to_owned()))
        );
        assert!(!found.entries.contains_key("V_S05_Ch1_M02"));
        assert_problem(
            &lines.replace("01/06/2026", "01/03/2026"),
            "line 3, column continues:",
            "not before that of line 2",
        );
    }

    /// Lines, and where their only problem is, and words of its message.
    const PROBLEMS: &[(&str, &str, &str)] = &[
        (
            "S99_Ch1_M02;a;;;;;;;;;",
            "line 2, column channel_id:",
            "did you mean S0",
        ),
        (
            ";a;;;;;;;;;",
            "line 2, column channel_id:",
            "neither a channel_id nor a formula",
        ),
        (
            "M02_Ch1_M02;;;;;;;;;;\n\nM02_Ch1_M02;;;;;;;;;;",
            "line 4, column channel_id:",
            "in line 2 already",
        ),
        (
            "M02_Ch1_M02;;;;boss;;;;;;",
            "line 2, column role:",
            "\"boss\" is not a role",
        ),
        (
            "M02_Ch1_M02;;;;;maybe;;;;;",
            "line 2, column hidden:",
            "neither yes nor no",
        ),
        (
            "M02_Ch2_M02;a;Ch1;;;;;;;;",
            "line 2, column channel_id:",
            "cannot have the channel_id",
        ),
        (
            "V_;a;Ch1;;;;;;;;",
            "line 2, column channel_id:",
            "cannot have the channel_id",
        ),
        (
            "V_a b;a;Ch1;;;;;;;;",
            "line 2, column channel_id:",
            "cannot have the channel_id",
        ),
        ("V_a;a;;;;;;;;;", "line 2, column channel_id:", "no formula"),
        (
            ";a b;Ch1;;;;;;;;\nV_a_b;c;Ch2;;;;;;;;",
            "line 3, column channel_id:",
            "as line 2 does",
        ),
        ("V_a;;Ch1;;;;;;;;", "line 2, column name:", "needs a name"),
        (
            ";a;Ch1;S04_Ch1 until 2026-03-01;;;;;;;",
            "line 2, column continues:",
            "both",
        ),
        (
            ";a;Ch1 Ch2;;;;;;;;",
            "line 2, column formula:",
            "from \"Ch2\" on",
        ),
        (
            ";a;Ch1 +;;;;;;;;",
            "line 2, column formula:",
            "ends where a channel is expected",
        ),
        (
            ";a;Ch9;;;;;;;;",
            "line 2, column formula:",
            "no channel \"Ch9\"",
        ),
        (";a;Ch2 - Ch2;;;;;;;;", "line 2, column formula:", "cancel"),
        (
            ";a;Ch1 + Ch2;;;;;;;;",
            "line 2, column formula:",
            "\"M02_Ch1_M02\" is in \"V\" and \"M02_Ch2_M02\" in \"W\"",
        ),
        (
            ";a;V_b;;;;;;;;\n;b;V_c;;;;;;;;\n;c;V_b;;;;;;;;",
            "line 3, column formula:",
            "V_b -> V_c -> V_b",
        ),
        (";a;V_a;;;;;;;;", "line 2, column formula:", "V_a -> V_a"),
        (
            "S05_Ch1_M02;;;S04_Ch1;;;;;;;",
            "line 2, column continues:",
            "<channel_id> until 2026-03-01",
        ),
        (
            "S05_Ch1_M02;;;S04_Ch1 until March;;;;;;;",
            "line 2, column continues:",
            "\"March\" is no date",
        ),
        (
            "S05_Ch1_M02;;;S99_Ch1 until 2026-03-01;;;;;;;",
            "line 2, column continues:",
            "no channel \"S99_Ch1\"",
        ),
        (
            "S05_Ch1_M02;;;V_a until 2026-03-01;;;;;;;",
            "line 2, column continues:",
            "virtual channel",
        ),
        (
            "S05_Ch1_M02;;;S05_Ch1 until 2026-03-01;;;;;;;",
            "line 2, column continues:",
            "S05_Ch1_M02 -> S05_Ch1_M02",
        ),
        (
            "S05_Ch1_M02;;;Ch1 until 2026-03-01;;;;;;;",
            "line 2, column continues:",
            "\"M02_Ch1_M02\" in \"V\"",
        ),
        (
            "S05_Ch1_M02;;;S04_Ch1 until 2026-03-01;;;;;;;\nS06_Ch1_M02;;;S04_Ch1 until 2026-03-01;;;;;;;",
            "line 3, column continues:",
            "continued by line 2 already",
        ),
        (
            "S05_Ch1_M02;;;S06_Ch1 until 2026-03-01;;;;;;;\nS06_Ch1_M02;;;S05_Ch1 until 2026-04-01;;;;;;;",
            "line 2, column continues:",
            "S05_Ch1_M02 -> S06_Ch1_M02 -> S05_Ch1_M02",
        ),
        (
            "S05_Ch1_M02;;;S04_Ch1 until 2026-03-01;;;;;;;\nV_S05_Ch1_M02;a;Ch1;;;;;;;;",
            "line 3, column channel_id:",
            "as line 2 does",
        ),
    ];

    #[test]
    fn each_problem_is_named_with_its_place() {
        for (lines, start, words) in PROBLEMS {
            assert_problem(lines, start, words);
        }
    }

    #[test]
    fn all_problems_are_collected_and_the_first_twenty_shown() {
        let lines = "S99_Ch1_M02;a;;;boss;maybe;;;;;\n".repeat(30);
        let found = checked(&lines).result.unwrap_err();
        assert_eq!(found.len(), 90);
        let shown = found.english();
        assert_eq!(shown.len(), 21);
        assert!(
            shown[3].starts_with("line 3, column channel_id:"),
            "{shown:#?}"
        );
        assert_eq!(
            shown[20],
            "70 more; correct those above first, then check again"
        );
        let french = found.french();
        assert_eq!(french.len(), 21);
        assert!(
            french[1].starts_with("ligne 2, colonne role : « boss »"),
            "{french:#?}"
        );
    }

    #[test]
    fn an_ambiguous_channel_names_the_candidates() {
        let mut known = known();
        let texts = ["M03_Ch2_M03", "03", "Voie1", "W"].map(str::to_owned);
        let [id, device, channel, unit] = texts;
        known.add(
            0,
            KnownChannel {
                id,
                device,
                channel,
                unit,
            },
        );
        let table = Table::read(format!("{HEADER};a;Ch2;;;;;;;;").as_bytes()).unwrap();
        let zone = FileZones::built_in(chrono_tz::Europe::Paris).default;
        let found = check(&table, Problems::default(), &known, &zone);
        let problems = found.result.unwrap_err().english();
        assert_eq!(
            problems,
            [
                "line 2, column formula: \"Ch2\" may be several channels; write the whole id, one of M02_Ch2_M02, M03_Ch2_M03"
            ]
        );
    }

    #[test]
    fn formulas_that_grow_without_limit_are_refused() {
        // Each doubles the one before.
        let doubled: String = (1..60)
            .map(|n| format!("V_{n};n;V_{0} + V_{0};;;;;;;;\n", n - 1))
            .collect();
        let found = problems(&format!("V_0;n;Ch2;;;;;;;;\n{doubled}"));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("counts more than"), "{found:#?}");
        let long = vec!["Ch2"; 257].join("+");
        assert_problem(
            &format!(";a;{long};;;;;;;;"),
            "line 2",
            "more than 256 channels",
        );
    }

    #[test]
    fn sums_that_cancel_each_other_out_are_no_way_to_make_the_check_long() {
        let mut known = known();
        let ids: Vec<_> = (1..201).map(|n| format!("S07_Ch{n}_M02")).collect();
        for id in &ids {
            known.add(
                0,
                KnownChannel {
                    id: id.clone(),
                    device: String::new(),
                    channel: String::new(),
                    unit: "W".to_owned(),
                },
            );
        }
        let wide: String = (0..40)
            .map(|n| format!("V_{n};a;{};;;;;;;;\n", ids.join("+").replace("_M02", "")))
            .collect();
        let cancelled: String = (0..40)
            .map(|n| format!("{}V_{n}", ["+", "-"][n % 2]))
            .collect();
        let table = |count: usize| {
            let sums = format!(";b;Ch2{cancelled};;;;;;;;\n").replace(";b;", "");
            let sums: String = (0..count).map(|n| format!(";b{n};{sums}")).collect();
            Table::read(format!("{HEADER}{wide}{sums}").as_bytes()).unwrap()
        };
        let zone = FileZones::built_in(chrono_tz::Europe::Paris).default;
        let check = |count| check(&table(count), Problems::default(), &known, &zone).result;
        assert_eq!(check(100).unwrap().len(), 140);
        let problems = check(1_000).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(
            problems.english()[0].contains("too many channels together"),
            "{:?}",
            problems.english()
        );
    }

    #[test]
    fn problems_of_cells_and_of_what_they_say_are_shown_together_in_the_order_of_lines() {
        let lines = "M02_Ch2_M02;=a;;;boss;;;;;;\n\
            V_a;a;Ch2\u{7};;;;;;;;\n\
            ;b;V_a + Ch2;;;;;;;;\n\
            S99_Ch1_M02;b;;;;perhaps;;;;;\n\
            S05_Ch1_M02;;;S04_Ch1 until\u{7};total;;;;;;\n\
            ;c;V_S05_Ch1_M02 + Ch2;;;;;;;;\n\
            ;=d;Ch9;;;;;;;;\n\
            M02_Ch1_M02;x;;;boss;;;;;;;more\n\
            ;e;Ch2 Ch3;;;;;;;;";
        let found = problems(lines);
        let places: Vec<_> = found
            .iter()
            .map(|problem| problem.split(':').next().unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "line 2, column name",
                "line 2, column role",
                "line 3, column formula",
                "line 5, column channel_id",
                "line 5, column hidden",
                "line 6, column continues",
                "line 8, column name",
                "line 9",
                "line 9, column role",
                "line 10, column formula",
            ],
            "{found:#?}"
        );
        // Whatever the lines that a quotation mark swallows would say, formulas may use them.
        let found = problems(";a;V_b;;;;;;;;\nM02_Ch1_M02;\"x;;;;;;;;;\n;b;Ch2;;;;;;;;\n");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with("line 3"), "{found:#?}");
    }

    #[test]
    fn a_hidden_channel_of_the_role_total_is_a_warning() {
        let one = "line 2, column hidden: a hidden channel of the role total does not count";
        let rest = "; empty one of the cells";
        for (lines, expected) in [
            (
                "M02_Ch2_M02;;;;total;;;;;;\nS04_Ch1_M02;;;;part;oui;;;;;",
                vec![],
            ),
            (
                "M02_Ch2_M02;;;;total;oui;;;;;\n;a;Ch2;;total;;;;;;",
                vec![format!("{one}{rest}")],
            ),
            (
                "M02_Ch2_M02;;;;total;oui;;;;;\n",
                vec![format!(
                    "{one}, and the total is that of the channels without a role{rest}"
                )],
            ),
        ] {
            let checked = checked(lines);
            assert!(checked.result.is_ok());
            assert_eq!(checked.warnings, expected);
        }
    }

    #[test]
    fn a_dash_in_circuit_and_phase_is_none() {
        let lines =
            "M02_Ch2_M02;;;;;;'-;'-;;;\nM02_Ch3_M02;'-;;;;;;;;;\nS04_Ch1_M02;;;;;;'-D39;L1;;;";
        let catalogue = catalogue(lines);
        let said = |id: &str| {
            let entry = &catalogue.entries[id];
            (entry.circuit.as_str(), entry.phase.as_str())
        };
        assert_eq!(said("M02_Ch2_M02"), ("", ""));
        assert_eq!(catalogue.entries["M02_Ch3_M02"].label, "-");
        assert_eq!(said("S04_Ch1_M02"), ("-D39", "L1"));
    }

    #[test]
    fn ids_of_virtual_channels_that_points_have_are_refused() {
        let mut known = known();
        let of_points = ["V_x", "V_S05_Ch1_M02"];
        for id in of_points {
            let channel = known.get("M02_Ch2_M02").unwrap().clone();
            let id = id.to_owned();
            known.add(0, KnownChannel { id, ..channel });
        }
        let zone = FileZones::built_in(chrono_tz::Europe::Paris).default;
        for (lines, start, words) in [
            (
                "V_x;a;;;;;;;;;",
                "line 2, column channel_id:",
                "remove the line",
            ),
            (
                "V_x;a;Ch2;;;;;;;;",
                "line 2, column channel_id:",
                "another id",
            ),
            (";x;Ch2;;;;;;;;", "line 2, column channel_id:", "another id"),
            (
                ";a;Ch2 + V_x;;;;;;;;",
                "line 2, column formula:",
                "have the id \"V_x\"",
            ),
            (
                "S05_Ch1_M02;;;S04_Ch1 until 2026-03-01;;;;;;;",
                "line 2, column continues:",
                "empty the cell",
            ),
        ] {
            let table = Table::read(format!("{HEADER}{lines}").as_bytes()).unwrap();
            let found = check(&table, Problems::default(), &known, &zone).result;
            let found = found.unwrap_err().english();
            assert_eq!(found.len(), 1, "{found:#?}");
            assert!(
                found[0].starts_with(start) && found[0].contains(words),
                "{found:#?}"
            );
        }
    }
}
