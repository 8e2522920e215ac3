//! Applies the catalogues that have changed since they were last applied or refused, after a sweep. See docs/specification.md,
//! section 12.

use super::{Report, apply, report};
use crate::catalogue::{CatalogueOf, Outcome, is_catalogue_new};
use crate::config::Settings;
use crate::data_dir::{CATALOGUE_FILE, Campaign, Company, DeviceItem, Dir, devices_of};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::Destination;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Applies changed catalogues. Failing is a warning: the next sweep tries again, and a catalogue that is refused is reported
/// once.
pub(in crate::commands) fn apply_changed(settings: &Settings, stop: &Shutdown) {
    let Destination::Influx(server) = &settings.destination else {
        return;
    };
    let data = Dir::open(&settings.data_folder).map(|data| Arc::new(data.used_by(settings.hosts)));
    let Ok(data) = data else {
        // The sweep has reported it.
        return;
    };
    for (company, campaign) in changed(&data, settings) {
        if stop.is_requested() {
            return;
        }
        let name = sanitize(Path::new(company.as_str()).join(campaign.as_str()));
        let catalogue = CatalogueOf {
            data: &data,
            company: &company,
            campaign: &campaign,
            zones: &settings.zones,
            lock_wait: settings.lock_wait,
            stop,
        };
        let options = (settings.rollup, settings.batch_lines);
        let outcome = match apply(&catalogue, server.clone(), options, true) {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!("{name}/{CATALOGUE_FILE} is not applied: {error:#}");
                continue;
            }
        };
        // The others would wait for the same server.
        let is_over = matches!(outcome, Outcome::Unavailable(_) | Outcome::Unconfirmed(_));
        if let Outcome::Writing = outcome {
            tracing::info!("{name}/{CATALOGUE_FILE} is being written; the next sweep looks at it");
            continue;
        }
        match report(&name, outcome, "the next sweep tries again") {
            Report::Done(message) => tracing::info!("{message}"),
            Report::Nothing => {}
            Report::Failed(lines) => {
                for line in lines {
                    tracing::warn!("{line}");
                }
            }
        }
        if is_over {
            return;
        }
    }
}

/// The campaigns of this host's shard with a catalogue that was neither applied nor refused.
fn changed(data: &Arc<Dir>, settings: &Settings) -> impl Iterator<Item = (Company, Campaign)> {
    let items = devices_of(data, Path::new(""), settings.shard.as_ref());
    items.filter_map(move |item| {
        let DeviceItem::Other(path) = item else {
            return None;
        };
        let parts: Vec<PathBuf> = path.iter().map(PathBuf::from).collect();
        let [company, campaign, file] = parts.as_slice() else {
            return None;
        };
        if file.as_os_str() != CATALOGUE_FILE {
            return None;
        }
        let folder = data.open_below(&company.join(campaign)).ok()?;
        let is_new = is_catalogue_new(&folder).unwrap_or(false);
        let company = Company::new(company.as_os_str(), &settings.meta_bucket).ok()?;
        let campaign = Campaign::new(campaign.as_os_str()).ok()?;
        is_new.then_some((company, campaign))
    })
}
