//! The one configuration file, and `assay config show`, which prints every key with its documentation.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home;

/// The file: one section a role. A role's command fails with a clear sentence when its section is missing.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// `assay worker`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<assay_worker::Config>,
    /// `assay gateway`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<assay_gateway::Config>,
    /// `assay node`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<crate::node::Settings>,
}

/// The path that is read when `--config` is not given.
pub(crate) fn default_path() -> Result<PathBuf> {
    Ok(home::home()?.join("config.toml"))
}

/// Reads and checks a configuration file.
pub(crate) fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::said(format!(
            "cannot read {}: {error}; `assay config show` prints one to start from",
            path.display()
        ))
    })?;
    toml::from_str(&text).map_err(|error| {
        Error::said(format!(
            "{} is not a valid configuration: {error}`assay config show` lists every key",
            path.display()
        ))
    })
}

/// Writes a configuration file, readable by its owner only since it may name secrets.
pub(crate) fn write(path: &Path, file: &File) -> Result<()> {
    let text = toml::to_string(file)
        .map_err(|error| Error::said(format!("the configuration cannot be written: {error}")))?;
    home::write_atomically(path, text.as_bytes(), 0o600)
}

/// Every key with its documentation: a file that all roles accept as it is. Tests hold it to the code.
const SAMPLE: &str = include_str!("config.toml");

/// One key of the sample.
struct Key<'a> {
    /// The table that it is in, such as `gateway.sampling`.
    section: &'a str,
    name: &'a str,
    doc: Vec<&'a str>,
    /// Its default or an example, in TOML.
    value: &'a str,
    /// Left out unless somebody sets it.
    optional: bool,
}

/// The keys of the sample in order.
fn keys() -> Vec<Key<'static>> {
    let (mut keys, mut doc, mut section) = (Vec::new(), Vec::new(), "");
    for line in SAMPLE.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
        };
        match bare.split_once(" = ").filter(|(name, _)| is_name(name)) {
            Some((name, value)) => {
                let doc = std::mem::take(&mut doc);
                keys.push(Key { section, name, doc, value, optional: line.starts_with('#') });
            }
            None if bare.starts_with('[') => {
                section = bare.trim_matches(['[', ']']);
                doc.clear();
            }
            None if line.starts_with("# ") => doc.push(bare),
            None => doc.clear(),
        }
    }
    keys
}

/// Prints every key with its documentation and its default.
pub(crate) fn show(json: bool) {
    if json {
        let keys: Vec<_> = keys()
            .into_iter()
            .map(|key| {
                serde_json::json!({
                    "section": key.section, "key": key.name, "doc": key.doc.join(" "), "value": key.value,
                    "optional": key.optional,
                })
            })
            .collect();
        crate::ui::print_json(&keys);
    } else {
        crate::ui::write_out(SAMPLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample with its optional keys switched on.
    fn everything() -> String {
        let mut text = String::new();
        for line in SAMPLE.lines() {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            let key =
                bare.split_once(" = ").is_some_and(|(name, _)| keys().iter().any(|key| key.name == name));
            text.push_str(if key || bare.starts_with('[') { bare } else { line });
            text.push('\n');
        }
        text
    }

    #[test]
    fn the_sample_is_a_valid_file_with_and_without_its_optional_keys() {
        for text in [SAMPLE.to_owned(), everything()] {
            let file: File = toml::from_str(&text).unwrap();
            file.worker.unwrap().check().unwrap();
            file.gateway.unwrap();
            file.node.unwrap().check().unwrap();
        }
        let all: File = toml::from_str(&everything()).unwrap();
        assert_eq!(all.worker.unwrap().forward.len(), 1);
        assert_eq!(all.gateway.unwrap().api_keys.len(), 1);
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: toml::Table = toml::from_str(SAMPLE).unwrap();
        let required = ["data_dir", "models", "members_signer"];
        let mut worker = assay_worker::Config::new("d");
        worker.models.clear();
        for (section, defaults) in [
            ("worker", toml::Table::try_from(worker).unwrap()),
            ("gateway", toml::Table::try_from(assay_gateway::Config::default()).unwrap()),
            ("node", toml::Table::try_from(crate::node::Settings::default()).unwrap()),
        ] {
            let shown = sample[section].as_table().unwrap();
            for (name, value) in shown.iter().filter(|(name, _)| !required.contains(&name.as_str())) {
                assert_eq!(Some(value), defaults.get(name), "{section}.{name}");
            }
        }
    }

    /// The code's own list of the keys of a table: what it says when it meets one that it does not know.
    fn known_to_the_code(section: &str) -> Vec<String> {
        let mut file: toml::Table = toml::from_str(&everything()).unwrap();
        let mut table = &mut file;
        for name in section.split('.') {
            let value = table.get_mut(name).unwrap();
            table = match value {
                toml::Value::Array(list) => list[0].as_table_mut().unwrap(),
                value => value.as_table_mut().unwrap(),
            };
        }
        table.insert("no_such_key".to_owned(), toml::Value::Boolean(true));
        let error = file.try_into::<File>().err().expect("unknown keys are refused").to_string();
        let (_, list) =
            error.split_once("no_such_key`, expected").unwrap_or_else(|| panic!("{section}: {error}"));
        let names = list.lines().next().unwrap().split('`').skip(1).step_by(2);
        names.map(str::to_owned).collect()
    }

    #[test]
    fn every_key_that_the_code_knows_is_documented() {
        let keys = keys();
        let mut sections: Vec<&str> = keys.iter().map(|key| key.section).collect();
        sections.dedup();
        assert!(sections.len() >= 7, "{sections:?}");
        for section in &sections {
            for name in known_to_the_code(section) {
                let nested = format!("{section}.{name}");
                let key = keys.iter().find(|key| key.section == *section && key.name == name);
                assert!(
                    key.is_some_and(|key| !key.doc.is_empty()) || sections.contains(&nested.as_str()),
                    "{nested} is not in the sample"
                );
            }
        }
    }

    #[test]
    fn a_misspelt_section_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "[wroker]\n").unwrap();
        let error = read(&path).err().unwrap().to_string();
        assert!(error.contains("wroker") && error.contains("assay config show"), "{error}");
    }
}
