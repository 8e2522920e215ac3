//! Guesses circuits and phases from the labels of loggers, such as `D39L1`.

use super::known::KnownChannel;
use std::collections::HashMap;

/// The phases of a circuit.
const PHASES: [&str; 3] = ["L1", "L2", "L3"];

/// The characters that may stand between a circuit and a phase.
const SEPARATORS: [char; 4] = [' ', '.', '_', '-'];

/// Splits a label into circuit and phase. A letter directly before `L1` may be one of a word: `SOL1` is no phase.
fn split(label: &str) -> Option<(&str, &'static str)> {
    let phase = PHASES.into_iter().find(|phase| label.ends_with(phase))?;
    let before = &label[..label.len() - phase.len()];
    let circuit = before.trim_end_matches(SEPARATORS);
    let is_word = circuit.len() == before.len() && circuit.ends_with(char::is_alphabetic);
    (!circuit.is_empty() && !is_word).then_some((circuit, phase))
}

/// The circuits and phases of channels by their ids: where all three phases of a circuit are on one device, once each.
pub(super) fn circuits<'a>(
    channels: &[&'a KnownChannel],
) -> HashMap<&'a str, (&'a str, &'static str)> {
    let mut circuits: HashMap<_, Vec<_>> = HashMap::new();
    for channel in channels {
        if let Some((circuit, phase)) = split(&channel.channel) {
            let key = (&channel.device, circuit, &channel.unit);
            circuits.entry(key).or_default().push((phase, &channel.id));
        }
    }
    let is_whole = |channels: &Vec<(&str, &String)>| {
        let has = |phase: &&str| channels.iter().any(|(found, _)| found == phase);
        channels.len() == PHASES.len() && PHASES.iter().all(has)
    };
    let whole = circuits
        .into_iter()
        .filter(|(_, channels)| is_whole(channels));
    whole
        .flat_map(|((_, circuit, _), channels)| {
            let channels = channels.into_iter();
            channels.map(move |(phase, id)| (id.as_str(), (circuit, phase)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guesses for channels of devices, given as `<device>/<label>/<unit>`.
    fn guesses(channels: &[&str]) -> Vec<String> {
        let channels: Vec<_> = channels
            .iter()
            .map(|text| {
                let parts: Vec<_> = text.split('/').map(str::to_owned).collect();
                let [device, channel, unit] = <[String; 3]>::try_from(parts).unwrap();
                KnownChannel {
                    id: (*text).to_owned(),
                    device,
                    channel,
                    unit,
                }
            })
            .collect();
        let channels: Vec<_> = channels.iter().collect();
        let mut found: Vec<_> = circuits(&channels)
            .into_iter()
            .map(|(id, (circuit, phase))| format!("{id}: {circuit}, {phase}"))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn three_phases_of_a_device_are_a_circuit() {
        for (labels, circuit) in [
            (["D39L1", "D39L2", "D39L3"], "D39"),
            (["TGBT L1", "TGBT L2", "TGBT L3"], "TGBT"),
            (["-X1_L1", "-X1_L2", "-X1_L3"], "-X1"),
            (
                [
                    "Pompe à chaleur - L3",
                    "Pompe à chaleur - L1",
                    "Pompe à chaleur - L2",
                ],
                "Pompe à chaleur",
            ),
        ] {
            let ids = labels.map(|label| format!("1/{label}/W"));
            let found = guesses(&[&ids[0], &ids[1], &ids[2]]);
            let mut expected = labels
                .map(|label| format!("1/{label}/W: {circuit}, {}", &label[label.len() - 2..]));
            expected.sort();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn other_labels_are_left_alone() {
        for channels in [
            ["1/SOL1/W", "1/SOL2/W", "1/SOL3/W"],
            ["1/D39L1/W", "1/D39L2/W", "2/D39L3/W"],
            ["1/D39L1/W", "1/D39L2/W", "1/D39L3/A"],
            ["1/D39L1/W", "1/D39L2/W", "1/D39L2/W"],
            ["1/L1/W", "1/L2/W", "1/L3/W"],
            ["1/Ph 1/V", "1/Ph 2/V", "1/Ph 3/V"],
            ["1/D39L1/W", "1/D39l2/W", "1/D39L3/W"],
        ] {
            assert_eq!(guesses(&channels), [""; 0], "{channels:?}");
        }
        let twice = ["1/D1L1/W", "1/D1L2/W", "1/D1L3/W", "1/D1 L3/W"];
        assert_eq!(guesses(&twice), [""; 0]);
    }
}
