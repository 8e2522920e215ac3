//! What charts show of a channel: its name, made unique in its campaign.

use super::known::KnownChannel;
use std::collections::{HashMap, HashSet};

/// The device of channels with a formula.
pub(crate) const VIRTUAL_DEVICE: &str = "virtuel";

/// Number of the forms of a label.
const FORMS: usize = 3;

/// The labels of channels.
#[derive(Default)]
pub(super) struct Labels(Vec<Label>);

struct Label {
    id: String,
    /// The possible labels, the best first.
    forms: [String; FORMS],
    /// The position of the one that is used.
    used: usize,
}

impl Labels {
    /// Adds a channel of a logger. Without a name it is shown as the logger calls it, with its device.
    pub(super) fn add(&mut self, id: &str, name: &str, channel: &KnownChannel) {
        let label = if channel.channel.is_empty() {
            &channel.id
        } else {
            &channel.channel
        };
        if name.is_empty() {
            let with_device = format!("{label} ({})", channel.device);
            self.push(
                id,
                [with_device.clone(), with_device, format!("{label} ({id})")],
            );
        } else {
            self.push_named(id, name, &channel.device);
        }
    }

    /// Adds a channel with a formula.
    pub(super) fn add_virtual(&mut self, id: &str, name: &str) {
        self.push_named(id, name, VIRTUAL_DEVICE);
    }

    fn push_named(&mut self, id: &str, name: &str, device: &str) {
        let forms = [
            name.to_owned(),
            format!("{name} ({device})"),
            format!("{name} ({id})"),
        ];
        self.push(id, forms);
    }

    fn push(&mut self, id: &str, forms: [String; FORMS]) {
        self.0.push(Label {
            id: id.to_owned(),
            forms,
            used: 0,
        });
    }

    /// The labels by the ids, each of which is there once.
    pub(super) fn unique(mut self) -> HashMap<String, String> {
        loop {
            let mut counts: HashMap<&str, u32> = HashMap::new();
            for label in &self.0 {
                *counts.entry(&label.forms[label.used]).or_default() += 1;
            }
            let is_shared = |label: &Label| counts[label.forms[label.used].as_str()] > 1;
            let longer: Vec<_> = (0..self.0.len())
                .filter(|n| self.0[*n].used + 1 < FORMS && is_shared(&self.0[*n]))
                .collect();
            if longer.is_empty() {
                break;
            }
            for n in longer {
                self.0[n].used += 1;
            }
        }
        // Names may look like the labels with ids.
        let mut taken = HashSet::new();
        let labels = self.0.into_iter().map(|label| {
            let [.., form] = &label.forms[..=label.used] else {
                return Default::default();
            };
            let mut text = form.clone();
            for number in 2.. {
                if taken.insert(text.clone()) {
                    break;
                }
                text = format!("{form} {number}");
            }
            (label.id, text)
        });
        labels.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels of channels, given as `<id>|<name>|<channel>|<device>`.
    fn labels(channels: &[&str]) -> Vec<String> {
        let mut labels = Labels::default();
        let mut ids = Vec::new();
        for text in channels {
            let [id, name, channel, device] =
                <[&str; 4]>::try_from(text.split('|').collect::<Vec<_>>()).unwrap();
            let channel = KnownChannel {
                id: id.to_owned(),
                device: device.to_owned(),
                channel: channel.to_owned(),
                unit: "W".to_owned(),
            };
            labels.add(id, name, &channel);
            ids.push(id);
        }
        let labels = labels.unique();
        ids.iter().map(|id| labels[*id].clone()).collect()
    }

    #[test]
    fn the_name_is_the_label_and_otherwise_the_logger_s_one_with_its_device() {
        assert_eq!(
            labels(&["a|Four|Voie1|S1", "b||Voie1|S1", "c|||S1"]),
            ["Four", "Voie1 (S1)", "c (S1)"]
        );
    }

    #[test]
    fn equal_names_get_their_devices_and_then_their_ids() {
        assert_eq!(
            labels(&["a|Four|Voie1|S1", "b|Four|Voie2|S2"]),
            ["Four (S1)", "Four (S2)"]
        );
        assert_eq!(
            labels(&["a|Four|Voie1|S1", "b|Four|Voie2|S1", "c|Four|Voie1|S2"]),
            ["Four (a)", "Four (b)", "Four (S2)"]
        );
        assert_eq!(
            labels(&["a||Voie1|S1", "b||Voie1|S1"]),
            ["Voie1 (a)", "Voie1 (b)"]
        );
    }

    #[test]
    fn names_that_look_like_labels_with_ids_are_unique_too() {
        let found = labels(&["a|x|v|S1", "b|x|v|S1", "c|x (a)|v|S1", "x|x (a) (c)|v|S1"]);
        let distinct: HashSet<_> = found.iter().collect();
        assert_eq!(distinct.len(), found.len(), "{found:?}");
    }
}
