//! The check of SFTPGo's settings: whether it calls the hook.

use super::{CheckResult, Finding, Installation};
use crate::config::{self, env_vars, read_env_file};
use crate::sanitize::sanitize;
use serde_json::Value;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The actions for which the hook must be called.
const ACTIONS: [&str; 3] = ["upload", "rename", "mkdir"];

/// The settings of SFTPGo: its JSON file and the variables that override it.
struct SftpgoSettings {
    variables: HashMap<String, String>,
    json: Value,
}

impl SftpgoSettings {
    /// Reads `sftpgo.env`, `env.d/*.env` and `sftpgo.json` of a folder. Returns `None` if there is none of them.
    ///
    /// # Errors
    /// The message for a file that cannot be read.
    fn read(folder: &Path) -> Result<Option<Self>, String> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder.join("env.d"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "env"))
            .collect();
        files.sort();
        let service = folder.join("sftpgo.env");
        if service.symlink_metadata().is_ok() {
            files.push(service);
        }
        let mut variables = HashMap::new();
        for file in &files {
            variables.extend(read_env_file(file).map_err(|error| error.to_string())?);
        }
        let file = folder.join("sftpgo.json");
        let json = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| format!("{}: {error}; correct it", sanitize(&file)))?,
            Err(error) if error.kind() == ErrorKind::NotFound && files.is_empty() => {
                return Ok(None);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Value::Null,
            Err(error) => {
                return Err(format!(
                    "cannot read {}: {error}; run powerview check as root or as the user of SFTPGo",
                    sanitize(&file)
                ));
            }
        };
        Ok(Some(Self { variables, json }))
    }

    /// The value of a setting such as `common.actions.hook`: the variable, else the JSON file, where a list is joined by
    /// commas.
    fn get(&self, setting: &str) -> String {
        let variable = format!("SFTPGO_{}", setting.to_uppercase().replace('.', "__"));
        if let Some(value) = self.variables.get(&variable) {
            return value.clone();
        }
        match self
            .json
            .pointer(&format!("/{}", setting.replace('.', "/")))
        {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Array(list)) => {
                let texts: Vec<_> = list.iter().filter_map(Value::as_str).collect();
                texts.join(",")
            }
            _ => String::new(),
        }
    }

    fn has(&self, setting: &str, word: &str) -> bool {
        self.get(setting).split(',').any(|item| item.trim() == word)
    }

    /// What to change so that SFTPGo calls the hook, or `Ok` with the kind of the settings.
    fn judge(&self, hook: &Path) -> Result<&'static str, String> {
        let shown = sanitize(hook);
        let is_hook = |setting: &str| is_same_file(Path::new(&self.get(setting)), hook);
        let action_hook = self.get("common.actions.hook");
        if action_hook.is_empty() {
            return Err(format!(
                "it calls no hook, so uploads wait for the next sweep; set SFTPGO_COMMON__ACTIONS__HOOK={shown}"
            ));
        }
        if !is_hook("common.actions.hook") {
            return Err(format!(
                "it calls {}, which is not {shown}; correct SFTPGO_COMMON__ACTIONS__HOOK, or POWERVIEW_BASE if that is the right hook",
                sanitize(action_hook)
            ));
        }
        let missing: Vec<_> = ACTIONS
            .into_iter()
            .filter(|action| !self.has("common.actions.execute_on", action))
            .collect();
        if missing.is_empty() {
            return Ok("after each upload, rename and mkdir");
        }
        let sweeps_after_sessions = is_hook("common.post_disconnect_hook")
            && (0..10).any(|n| {
                let of_command = |name| format!("command.commands.{n}.{name}");
                is_hook(&of_command("path"))
                    && self.has(&of_command("env"), "SFTPGO_ACTION=upload")
                    && self.get(&of_command("hook")) == "post_disconnect"
            });
        if sweeps_after_sessions && !missing.contains(&"mkdir") {
            return Ok("after each mkdir and after each session");
        }
        Err(format!(
            "it does not call the hook for {}; set SFTPGO_COMMON__ACTIONS__EXECUTE_ON={}",
            missing.join(" and "),
            ACTIONS.join(",")
        ))
    }
}

/// Checks that SFTPGo calls the hook.
pub(super) fn check_sftpgo(installation: &Installation<'_>) -> CheckResult {
    let folder = Path::new(installation.env.value(&env_vars::SFTPGO_CONFIG_DIR).ok()?);
    let shown = sanitize(folder);
    let settings = match SftpgoSettings::read(folder) {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            return Some(Finding::NotConfigured(format!(
                "not configured: {shown} has neither sftpgo.env nor sftpgo.json; set SFTPGO_CONFIG_DIR if they are elsewhere"
            )));
        }
        Err(message) => return Some(Finding::Warning(format!("not checked: {message}"))),
    };
    Some(match settings.judge(&config::hook(installation.env)) {
        Ok(when) if settings.get("common.setstat_mode").trim() != "1" => Finding::Warning(format!(
            "the settings in {shown} call the hook {when}, but clients may set the times of files, which decide the order of uploads; set SFTPGO_COMMON__SETSTAT_MODE=1 in {shown}/sftpgo.env and restart SFTPGo"
        )),
        Ok(when) => Finding::Good(format!("the settings in {shown} call the hook {when}")),
        Err(message) => Finding::Failure(format!(
            "{message} in {shown}/sftpgo.env and restart SFTPGo; deploy/sftpgo.env is an example"
        )),
    })
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
