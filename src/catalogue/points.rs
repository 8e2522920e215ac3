//! Entries as points of the measurement `powerview_channels`, and back.

use super::check::Catalogue;
use super::virtual_channel::VirtualChannel;
use crate::data_dir::CATALOGUE;
use crate::points::Line;
use crate::sink::{Field, Place, PointVisitor, StoredPoint};
use std::collections::{BTreeMap, BTreeSet};

/// The time of all entries: 2100-01-01T00:00:00Z, in seconds since 1970. Retention never drops them, and one shard has all.
pub(crate) const ENTRY_TIME: i64 = 4_102_444_800;

/// The state of an entry that is no longer in the catalogue.
const REMOVED: &str = "removed";

/// The keys of the fields.
const FIELDS: [&str; 12] = [
    "label", "circuit", "phase", "role", "hidden", "merged", "valid", "unit", "device", "channel",
    "terms", "state",
];

fn line(campaign: &str, channel_id: &str, values: &[&str; FIELDS.len()]) -> Vec<u8> {
    let mut line = Line::new(CATALOGUE);
    line.tag("campaign", campaign);
    line.tag("channel_id", channel_id);
    let mut fields = line.fields();
    for (key, value) in FIELDS.iter().zip(values) {
        fields.whole_text(key, value);
    }
    fields.at(ENTRY_TIME)
}

/// The points of a catalogue and of the entries that it no longer has, as line protocol, and their number.
pub(super) fn points(
    campaign: &str,
    catalogue: &Catalogue,
    removed: &BTreeSet<String>,
) -> (Vec<u8>, u32) {
    let mut lines = Vec::new();
    let mut count = 0;
    for (id, entry) in &catalogue.entries {
        let seconds = |time: Option<i64>| time.map_or_else(String::new, |time| time.to_string());
        let valid = match entry.valid {
            (None, None) => String::new(),
            (from, until) => format!("{}/{}", seconds(from), seconds(until)),
        };
        // Texts and numbers are always JSON.
        let terms = entry.terms.as_ref().map(serde_json::to_string);
        let terms = terms.and_then(Result::ok).unwrap_or_default();
        lines.extend(line(
            campaign,
            id,
            &[
                &entry.label,
                &entry.circuit,
                &entry.phase,
                entry.role.as_str(),
                if entry.is_hidden { "yes" } else { "" },
                entry.merged.as_deref().unwrap_or_default(),
                &valid,
                &entry.unit,
                &entry.device,
                &entry.channel,
                &terms,
                "",
            ],
        ));
        count += 1;
    }
    for id in removed {
        let mut values = [""; FIELDS.len()];
        values[FIELDS.len() - 1] = REMOVED;
        lines.extend(line(campaign, id, &values));
        count += 1;
    }
    (lines, count)
}

/// What is needed of an entry that is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredEntry {
    pub(crate) device: String,
    pub(crate) channel: String,
    pub(crate) unit: String,
    /// JSON.
    terms: String,
    state: String,
}

impl StoredEntry {
    /// The fields that are read.
    pub(super) const FIELDS: [&str; 5] = ["device", "channel", "unit", "terms", "state"];

    pub(crate) fn is_removed(&self) -> bool {
        self.state == REMOVED
    }

    /// Of what a virtual or continued channel is computed.
    pub(crate) fn virtual_channel(&self) -> Option<VirtualChannel> {
        serde_json::from_str(&self.terms).ok()
    }
}

/// Collects the stored entries of a campaign by their ids.
#[derive(Debug, Default)]
pub(crate) struct StoredEntries {
    pub(crate) entries: BTreeMap<String, StoredEntry>,
    channel_id: String,
    field: String,
}

impl StoredEntries {
    /// The ids of the entries that are in the catalogue.
    pub(super) fn ids(&self) -> impl Iterator<Item = &String> {
        let entries = self.entries.iter();
        entries
            .filter(|(_, entry)| !entry.is_removed())
            .map(|(id, _)| id)
    }

    /// The virtual and continued channels with their ids.
    pub(super) fn virtual_channels(&self) -> impl Iterator<Item = (&str, VirtualChannel)> {
        let entries = self.entries.iter();
        entries.filter_map(|(id, entry)| Some((id.as_str(), entry.virtual_channel()?)))
    }
}

impl PointVisitor for StoredEntries {
    fn series(&mut self, tags: &[(String, String)], field: Field<'_>, _: Place) {
        let id = tags.iter().find(|(key, _)| key == "channel_id");
        self.channel_id = id.map_or_else(String::new, |(_, id)| id.clone());
        field.key.clone_into(&mut self.field);
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        if point.time != ENTRY_TIME || self.channel_id.is_empty() {
            return;
        }
        let entry = self.entries.entry(self.channel_id.clone()).or_default();
        let value = match self.field.as_str() {
            "device" => &mut entry.device,
            "channel" => &mut entry.channel,
            "unit" => &mut entry.unit,
            "terms" => &mut entry.terms,
            "state" => &mut entry.state,
            _ => return,
        };
        point.value.clone_into(value);
    }
}
