//! Formulas as sums of channels of loggers: what they name is found, and virtual channels in them are replaced by their own
//! channels.

use super::chains::Chains;
use super::check::Lines;
use super::known::{Found, KnownChannel, VIRTUAL};
use super::problem::{Cause, Named, Problem};
use super::table::Column;
use super::virtual_channel::{Term, TermPart, VirtualChannel};
use std::collections::{HashMap, HashSet};

/// Maximum number of channels in a formula, and in what is stored of it.
pub(super) const MAX_TERMS: usize = 256;

/// Maximum of how often a channel counts in a formula.
pub(super) const MAX_FACTOR: i64 = 1_000_000_000;

/// Maximum number of channels in all formulas of a catalogue.
const MAX_ALL_TERMS: usize = 50_000;

/// Maximum number of channels that are added up for all formulas. Formulas may use large ones that cancel each other out, so
/// that little is stored of them.
const MAX_ADDED: usize = 1_000_000;

/// Maximum size of what is stored of a formula, in bytes.
const MAX_STORED: usize = 64 * 1024;

/// Maximum size of what is stored of all formulas, in bytes.
const MAX_ALL_STORED: usize = 8 << 20;

/// Maximum number of cycles that are looked at. Formulas may form many more, and one is enough to refuse them.
const MAX_CYCLES: u32 = 100;

/// What a formula names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target<'a> {
    /// The position of a line with a formula.
    Virtual(usize),
    Source(Source<'a>),
}

/// A channel of loggers: one, or a chain by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source<'a> {
    Channel(&'a str),
    Chain(usize),
}

/// What is stored of each line with a formula.
pub(super) struct Sums(pub(super) Vec<Option<VirtualChannel>>);

/// A sum with the positions of its terms.
struct Sum<K> {
    terms: Vec<(K, i128)>,
    positions: HashMap<K, usize>,
}

impl<K: Copy + Eq + std::hash::Hash> Sum<K> {
    fn new() -> Self {
        Self {
            terms: Vec::new(),
            positions: HashMap::new(),
        }
    }

    fn add(&mut self, key: K, factor: i128) {
        let position = *self.positions.entry(key).or_insert(self.terms.len());
        match self.terms.get_mut(position) {
            Some((_, sum)) => *sum += factor,
            None => self.terms.push((key, factor)),
        }
    }

    /// The terms that count, in the order in which they were added.
    fn terms(self) -> Vec<(K, i128)> {
        let terms = self.terms.into_iter();
        terms.filter(|(_, factor)| *factor != 0).collect()
    }
}

/// A formula whose channels are found.
struct Formula<'a> {
    terms: Vec<(Target<'a>, i128)>,
}

impl Formula<'_> {
    /// The number of channels of loggers that are added up for it.
    fn count(&self, flat: &[Option<Flat<'_>>]) -> usize {
        let counts = self.terms.iter().map(|(target, _)| match target {
            Target::Virtual(n) => flat[*n].as_ref().map_or(0, |flat| flat.terms.len()),
            Target::Source(_) => 1,
        });
        counts.sum()
    }
}

/// A formula without virtual channels.
#[derive(Clone)]
struct Flat<'a> {
    unit: String,
    terms: Vec<(Source<'a>, i128)>,
}

impl Sums {
    /// Computes the sums of all lines, and adds what is wrong with them to the problems.
    pub(super) fn compute<'a>(lines: &mut Lines<'a>, chains: &Chains<'a>) -> Self {
        let formulas = find_channels(lines, chains);
        let (order, in_cycles) = order(lines, &formulas);
        let mut flat: Vec<Option<Flat<'a>>> = vec![None; formulas.len()];
        let mut sums = vec![None; formulas.len()];
        let (mut all_added, mut all_terms, mut all_stored) = (0, 0, 0);
        for n in order {
            let Some(formula) = formulas[n].as_ref().filter(|_| !in_cycles.contains(&n)) else {
                continue;
            };
            all_added += formula.count(&flat);
            if all_added > MAX_ADDED {
                add_problem(lines, n, Cause::FormulasTooLarge);
                break;
            }
            let found = flatten(formula, &flat, lines, chains);
            let found = found.and_then(|found| {
                found.map_or(Ok(None), |found| {
                    let channel = virtual_channel(&found, chains)?;
                    Ok(Some((found, channel)))
                })
            });
            let found = match found {
                Ok(found) => found,
                Err(cause) => {
                    add_problem(lines, n, cause);
                    continue;
                }
            };
            let Some((found, channel)) = found else {
                continue;
            };
            all_terms += channel
                .terms
                .iter()
                .map(|term| term.parts.len())
                .sum::<usize>();
            let stored = stored_size(&channel);
            all_stored += stored;
            if stored > MAX_STORED {
                add_problem(lines, n, Cause::TooManyTerms);
            }
            if all_terms > MAX_ALL_TERMS || all_stored > MAX_ALL_STORED {
                add_problem(lines, n, Cause::FormulasTooLarge);
                break;
            }
            flat[n] = Some(found);
            sums[n] = Some(channel);
        }
        Self(sums)
    }
}

fn add_problem(lines: &mut Lines<'_>, n: usize, cause: Cause) {
    let problem = Problem::in_cell(lines.virtuals[n].line, Column::Formula, cause);
    lines.problems.add(problem);
}

/// The size of the stored text.
fn stored_size(channel: &VirtualChannel) -> usize {
    serde_json::to_string(channel).map_or(usize::MAX, |text| text.len())
}

/// Finds what the formulas name. `None` for those with a problem.
fn find_channels<'a>(lines: &mut Lines<'a>, chains: &Chains<'a>) -> Vec<Option<Formula<'a>>> {
    let virtuals = lines.virtuals.iter().enumerate();
    let virtuals: HashMap<String, usize> = virtuals.map(|(n, line)| (line.id.clone(), n)).collect();
    let merged = chains.all.iter().enumerate();
    let merged: HashMap<&str, usize> = merged.map(|(n, chain)| (chain.id.as_str(), n)).collect();
    let mut formulas = Vec::new();
    for n in 0..lines.virtuals.len() {
        let Some(terms) = lines.virtuals[n].terms.take() else {
            formulas.push(None);
            continue;
        };
        let mut sum = Sum::new();
        let mut parts: HashMap<usize, &str> = HashMap::new();
        let mut is_valid = true;
        let lacks_ids = lines.lacks_ids;
        for term in terms {
            let text = term.channel;
            let mut name = text;
            let target = if let Some(n) = virtuals.get(text) {
                Ok(Target::Virtual(*n))
            } else if let Some(n) = merged.get(text) {
                Ok(Target::Source(Source::Chain(*n)))
            } else {
                match lines.known.find(text) {
                    Found::One(channel) => {
                        name = &channel.id;
                        let chain = chains.position(name).map(Source::Chain);
                        Ok(Target::Source(chain.unwrap_or(Source::Channel(name))))
                    }
                    Found::Several(candidates) => Err(Some(Cause::AmbiguousTerm(Named {
                        text: text.to_owned(),
                        candidates,
                    }))),
                    Found::Nothing if lines.known.known.is_taken(text) => {
                        Err(Some(Cause::PointsWithVirtualId(text.to_owned())))
                    }
                    // The line that it means may have a problem.
                    Found::Nothing if lacks_ids && text.starts_with(VIRTUAL) => Err(None),
                    Found::Nothing => Err(Some(Cause::UnknownChannel(Named::unknown(text)))),
                }
            };
            let target = target.and_then(|target| {
                let Target::Source(Source::Chain(chain)) = target else {
                    return Ok(target);
                };
                let other = *parts.entry(chain).or_insert(name);
                if other == name {
                    Ok(target)
                } else {
                    let parts = [other, name].map(str::to_owned);
                    Err(Some(Cause::PartsOfOne(parts)))
                }
            });
            match target {
                Ok(target) => sum.add(target, if term.is_negative { -1 } else { 1 }),
                Err(cause) => {
                    is_valid = false;
                    if let Some(cause) = cause {
                        add_problem(lines, n, cause);
                    }
                    break;
                }
            }
        }
        let formula = Formula { terms: sum.terms() };
        formulas.push(is_valid.then_some(formula));
    }
    formulas
}

/// The positions of formulas in an order in which each comes after those that it uses, and those in cycles, which are problems.
fn order(lines: &mut Lines<'_>, formulas: &[Option<Formula<'_>>]) -> (Vec<usize>, HashSet<usize>) {
    let used = |n: usize| -> Vec<usize> {
        let terms = formulas[n].iter().flat_map(|formula| &formula.terms);
        let used = terms.filter_map(|(target, _)| match target {
            Target::Virtual(n) => Some(*n),
            Target::Source(_) => None,
        });
        used.collect()
    };
    let mut order = Vec::new();
    let mut in_cycles = HashSet::new();
    let mut nb_cycles = 0;
    let mut is_begun = vec![false; formulas.len()];
    let mut is_done = vec![false; formulas.len()];
    for first in 0..formulas.len() {
        // The formulas from `first` on, each with those that it uses and that are still to be looked at.
        let mut path = Vec::new();
        if !is_begun[first] {
            is_begun[first] = true;
            path.push((first, used(first)));
        }
        while let Some((n, left)) = path.last_mut() {
            let n = *n;
            let Some(next) = left.pop() else {
                is_done[n] = true;
                order.push(n);
                path.pop();
                continue;
            };
            if !is_begun[next] {
                is_begun[next] = true;
                path.push((next, used(next)));
            } else if !is_done[next] && nb_cycles < MAX_CYCLES {
                nb_cycles += 1;
                let start = path
                    .iter()
                    .position(|(n, _)| *n == next)
                    .unwrap_or_default();
                let cycle: Vec<_> = path[start..].iter().map(|(n, _)| *n).collect();
                let ids = cycle.iter().chain([&next]);
                let ids = ids.map(|n| lines.virtuals[*n].id.clone()).collect();
                if !cycle.iter().all(|n| in_cycles.contains(n)) {
                    add_problem(lines, next, Cause::Cycle(ids));
                }
                in_cycles.extend(cycle);
            }
        }
    }
    (order, in_cycles)
}

/// Whether a unit is one of power. A sum of channels in several of them is in W; hourly summaries convert their points.
fn is_power(unit: &str) -> bool {
    matches!(unit, "W" | "kW" | "MW")
}

/// Replaces virtual channels by those of loggers. `None` if one of them has a problem.
fn flatten<'a>(
    formula: &Formula<'a>,
    flat: &[Option<Flat<'a>>],
    lines: &Lines<'_>,
    chains: &Chains<'_>,
) -> Result<Option<Flat<'a>>, Cause> {
    let unit = |target: &Target<'a>| match target {
        Target::Virtual(n) => flat[*n].as_ref().map(|flat| flat.unit.clone()),
        Target::Source(Source::Chain(n)) => Some(chains.all[*n].unit().to_owned()),
        Target::Source(Source::Channel(id)) => lines
            .known
            .known
            .get(id)
            .map(|channel: &KnownChannel| channel.unit.clone()),
    };
    let name = |target: &Target<'a>| match target {
        Target::Virtual(n) => lines.virtuals[*n].id.clone(),
        Target::Source(Source::Chain(n)) => chains.all[*n].id.clone(),
        Target::Source(Source::Channel(id)) => (*id).to_owned(),
    };
    let mut units = Vec::new();
    for (target, _) in &formula.terms {
        let Some(unit) = unit(target) else {
            return Ok(None);
        };
        units.push(unit);
    }
    let Some(first) = units.first().cloned() else {
        return Err(Cause::Nothing);
    };
    let has_power = is_power(&first);
    let other = units.iter().position(|unit| {
        if has_power {
            !is_power(unit)
        } else {
            *unit != first
        }
    });
    if let Some(other) = other {
        let pair = [0, other].map(|n| (name(&formula.terms[n].0), units[n].clone()));
        return Err(Cause::Units(pair));
    }
    let mut sum = Sum::new();
    for (target, factor) in &formula.terms {
        match target {
            Target::Source(source) => sum.add(*source, *factor),
            Target::Virtual(n) => {
                for (source, inner) in flat[*n].iter().flat_map(|flat| &flat.terms) {
                    sum.add(*source, factor * inner);
                }
            }
        }
    }
    let terms = sum.terms();
    if terms.is_empty() {
        return Err(Cause::Nothing);
    }
    if terms.len() > MAX_TERMS {
        return Err(Cause::TooManyTerms);
    }
    if terms
        .iter()
        .any(|(_, factor)| factor.abs() > MAX_FACTOR.into())
    {
        return Err(Cause::FactorTooLarge);
    }
    Ok(Some(Flat {
        unit: if has_power { "W".to_owned() } else { first },
        terms,
    }))
}

/// What is stored of a formula.
fn virtual_channel(flat: &Flat<'_>, chains: &Chains<'_>) -> Result<VirtualChannel, Cause> {
    let mut terms = Vec::new();
    let mut parts = 0;
    for (source, factor) in &flat.terms {
        let of_term = match source {
            Source::Chain(n) => chains.all[*n].term_parts(),
            Source::Channel(id) => vec![TermPart {
                channel_id: (*id).to_owned(),
                from: None,
                until: None,
            }],
        };
        parts += of_term.len();
        if parts > 2 * MAX_TERMS {
            return Err(Cause::TooManyTerms);
        }
        terms.push(Term {
            factor: i64::try_from(*factor).map_err(|_| Cause::FactorTooLarge)?,
            parts: of_term,
        });
    }
    Ok(VirtualChannel {
        unit: flat.unit.clone(),
        terms,
    })
}
