//! What the commands that compare the database with the files have in common.

use crate::config::ConfigError;
use crate::data_dir::{Dir, Hosts};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::{Destination, InfluxReader, ServerSettings, Sink};
use anyhow::Context as _;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The data folder, and the server to read from and to write to.
pub(super) struct Endpoints {
    pub data: Arc<Dir>,
    pub source: InfluxReader,
    pub sink: Sink,
    pub stop: Shutdown,
}

impl Endpoints {
    /// Opens the data folder and sets up the clients without sending a request.
    ///
    /// # Errors
    /// The data folder cannot be opened, or a client cannot be set up.
    pub(super) fn open(
        folder: &Path,
        hosts: Hosts,
        server: ServerSettings,
    ) -> anyhow::Result<Self> {
        let stop = Shutdown::on_signals()?;
        Ok(Self {
            data: open_data_folder(folder, hosts)?,
            source: InfluxReader::new(&server, &stop)?,
            sink: Sink::open(&Destination::Influx(server), &stop)?,
            stop,
        })
    }
}

/// Opens the data folder, on which these hosts work.
///
/// # Errors
/// It cannot be opened.
pub(super) fn open_data_folder(folder: &Path, hosts: Hosts) -> anyhow::Result<Arc<Dir>> {
    Dir::open(folder)
        .map(|data| Arc::new(data.used_by(hosts)))
        .with_context(|| format!("cannot open the data folder {}", sanitize(folder)))
}

/// Checks that the server is InfluxDB 2. One that gives no answer is not refused here.
///
/// # Errors
/// It is InfluxDB 3.
pub(super) fn ensure_influx2(source: &InfluxReader, command: &str) -> Result<(), ConfigError> {
    if source.is_influx3() {
        return Err(ConfigError(format!(
            "powerview {command} needs InfluxDB 2, but the server is InfluxDB 3 or INFLUXDB_FLAVOR is 3; see docs/influxdb-3.md for what works there"
        )));
    }
    Ok(())
}

/// Checks that a company or a campaign has a folder, so that a wrong name does not look like an empty one.
pub(super) fn ensure_folder(data: &Path, option: &str, names: &[&str]) -> Result<(), ConfigError> {
    let folder: PathBuf = names.iter().collect();
    let is_name = |name: &&str| Path::new(name).file_name() == Some(OsStr::new(name));
    if names.iter().all(is_name) && data.join(&folder).is_dir() {
        return Ok(());
    }
    Err(ConfigError(format!(
        "{option}: there is no folder {} in the data folder; correct the name",
        sanitize(&folder)
    )))
}
