//! Channels that continue each other: meters that were replaced, as one channel.

use super::check::{Lines, merged_id};
use super::known::KnownChannel;
use super::problem::{Cause, Problem};
use super::table::Column;
use super::virtual_channel::{Term, TermPart, VirtualChannel};
use crate::time_zone::TimeZone;
use chrono::{NaiveDate, NaiveTime};
use std::collections::{HashMap, HashSet};

/// Maximum number of channels that continue each other.
pub(super) const MAX_PARTS: usize = 64;

/// A channel that counts in a continued one for some time.
pub(super) struct Part<'a> {
    pub(super) channel: &'a KnownChannel,
    /// In seconds since 1970.
    pub(super) from: Option<i64>,
    pub(super) until: Option<i64>,
}

/// Channels that continue each other.
pub(super) struct Chain<'a> {
    /// The id of the channel that they are together.
    pub(super) id: String,
    /// The oldest first.
    pub(super) parts: Vec<Part<'a>>,
}

impl Chain<'_> {
    /// Whether a channel is the last one, whose line describes the chain.
    pub(super) fn is_last(&self, id: &str) -> bool {
        self.parts.last().is_some_and(|part| part.channel.id == id)
    }

    /// The unit of all parts.
    pub(super) fn unit(&self) -> &str {
        self.parts.last().map_or("", |part| &part.channel.unit)
    }

    /// The parts as they are stored.
    pub(super) fn term_parts(&self) -> Vec<TermPart> {
        let parts = self.parts.iter().map(|part| TermPart {
            channel_id: part.channel.id.clone(),
            from: part.from,
            until: part.until,
        });
        parts.collect()
    }

    pub(super) fn virtual_channel(&self) -> VirtualChannel {
        VirtualChannel {
            unit: self.unit().to_owned(),
            terms: vec![Term {
                factor: 1,
                parts: self.term_parts(),
            }],
        }
    }
}

/// The chains of a catalogue.
#[derive(Default)]
pub(super) struct Chains<'a> {
    pub(super) all: Vec<Chain<'a>>,
    /// The positions of chains by the ids of their parts.
    of_part: HashMap<&'a str, usize>,
}

impl<'a> Chains<'a> {
    /// The position of the chain that a channel is a part of.
    pub(super) fn position(&self, id: &str) -> Option<usize> {
        self.of_part.get(id).copied()
    }

    /// The chain that a channel is a part of.
    pub(super) fn of(&self, id: &str) -> Option<&Chain<'a>> {
        self.position(id).map(|n| &self.all[n])
    }

    /// Finds the chains of the lines, and adds what is wrong with them to the problems.
    pub(super) fn build(lines: &mut Lines<'a>, zone: &TimeZone) -> Self {
        let mut problems = Vec::new();
        let mut problem = |line, cause| {
            problems.push(Problem::in_cell(line, Column::Continues, cause));
        };
        let links = Links::of(lines, &mut problem);
        let mut chains = Self::default();
        let mut visited = HashSet::new();
        for last in lines.loggers.iter().map(|line| line.channel.id.as_str()) {
            if !links.before.contains_key(last) || links.after.contains_key(last) {
                continue;
            }
            let found = links.back_from(last);
            visited.extend(found.iter().map(|link| link.id));
            if let Some(chain) = chain(&found, zone, &mut problem) {
                let position = chains.all.len();
                let parts = chain.parts.iter().map(|part| part.channel.id.as_str());
                chains.of_part.extend(parts.map(|id| (id, position)));
                chains.all.push(chain);
            }
        }
        // Whatever has no end is a cycle.
        for line in &lines.loggers {
            let id = line.channel.id.as_str();
            if links.before.contains_key(id) && !visited.contains(id) {
                let cycle = links.back_from(id);
                visited.extend(cycle.iter().map(|link| link.id));
                let ids = cycle.iter().map(|link| link.id.to_owned());
                let ids = ids.chain([id.to_owned()]).collect();
                problem(line.line, Cause::ContinuesCycle(ids));
            }
        }
        for chain in &chains.all {
            let last = chain.parts.last().map_or("", |part| &part.channel.id);
            let line = lines.line_of.get(last.trim()).copied().unwrap_or_default();
            if lines.known.known.is_taken(&chain.id) {
                let cause = Cause::PointsWithChainId(chain.id.clone());
                problems.push(Problem::in_cell(line, Column::Continues, cause));
            }
            if let Some(taken) = lines.line_of.insert(chain.id.clone(), line) {
                let cause = Cause::VirtualIdTaken(chain.id.clone(), line);
                problems.push(Problem::in_cell(taken, Column::ChannelId, cause));
            }
        }
        for problem in problems {
            lines.problems.add(problem);
        }
        chains
    }
}

/// A channel that continues another one.
struct Link<'a> {
    id: &'a str,
    channel: &'a KnownChannel,
    line: u64,
    before: &'a KnownChannel,
    day: NaiveDate,
}

/// Which channels continue which.
struct Links<'a> {
    /// By the id of the later channel.
    before: HashMap<&'a str, Link<'a>>,
    /// The ids of the later channels by those of the earlier ones.
    after: HashMap<&'a str, &'a str>,
}

impl<'a> Links<'a> {
    fn of(lines: &Lines<'a>, problem: &mut impl FnMut(u64, Cause)) -> Self {
        let mut links = Self {
            before: HashMap::new(),
            after: HashMap::new(),
        };
        let mut lines_of = HashMap::new();
        for line in &lines.loggers {
            let Some((before, day)) = line.continues else {
                continue;
            };
            if let Some(first) = lines_of.get(before.id.as_str()) {
                problem(line.line, Cause::ContinuedTwice(before.id.clone(), *first));
                continue;
            }
            lines_of.insert(before.id.as_str(), line.line);
            let channel = line.channel;
            if channel.unit != before.unit {
                let units = [channel, before].map(|c| (c.id.clone(), c.unit.clone()));
                problem(line.line, Cause::ContinuesUnits(units));
            }
            links.after.insert(&before.id, &channel.id);
            let link = Link {
                id: &channel.id,
                channel,
                line: line.line,
                before,
                day,
            };
            links.before.insert(&channel.id, link);
        }
        links
    }

    /// The links from a channel back to the oldest one, or once around a cycle.
    fn back_from(&self, id: &'a str) -> Vec<&Link<'a>> {
        let mut found = Vec::new();
        let mut current = id;
        while let Some(link) = self.before.get(current) {
            found.push(link);
            current = &link.before.id;
            if current == id {
                break;
            }
        }
        found
    }
}

/// Makes a chain of the links from the last channel back to the oldest one.
fn chain<'a>(
    links: &[&Link<'a>],
    zone: &TimeZone,
    problem: &mut impl FnMut(u64, Cause),
) -> Option<Chain<'a>> {
    let last = links.first()?;
    if links.len() >= MAX_PARTS {
        problem(last.line, Cause::ChainTooLong);
        return None;
    }
    for pair in links.windows(2) {
        if pair[1].day >= pair[0].day {
            problem(pair[1].line, Cause::ContinuesDates(pair[0].line));
        }
    }
    let midnight = |day: NaiveDate| zone.instants(day.and_time(NaiveTime::MIN)).0;
    let mut parts = Vec::new();
    let mut until = None;
    for link in links {
        let from = Some(midnight(link.day));
        parts.push(Part {
            channel: link.channel,
            from,
            until,
        });
        until = from;
    }
    let oldest = links.last()?.before;
    parts.push(Part {
        channel: oldest,
        from: None,
        until,
    });
    parts.reverse();
    Some(Chain {
        id: merged_id(last.id),
        parts,
    })
}
