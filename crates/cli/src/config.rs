//! The one configuration file, and `assay config show`, which prints every key with its documentation.

use std::fmt::Write as _;
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
}

/// The path that is read when `--config` is not given.
pub(crate) fn default_path() -> Result<PathBuf> {
    Ok(home::home()?.join("config.toml"))
}

/// Reads and checks a configuration file.
pub(crate) fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
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

/// The sources of the two sections: their doc comments are the documentation, so the two can't differ.
const SOURCES: [(&str, &str); 2] = [
    ("worker", include_str!("../../worker/src/config.rs")),
    ("gateway", include_str!("../../gateway/src/config.rs")),
];

/// One documented key: section path such as `gateway.sampling`, key, documentation lines.
struct Key {
    section: String,
    name: String,
    doc: Vec<String>,
    kind: String,
}

/// Reads the documented public fields of every struct that is reachable from `Config` in a configuration source.
fn keys(section: &str, source: &str, of: &str, out: &mut Vec<Key>) {
    let Some(start) = source.find(&format!("pub struct {of} {{")) else { return };
    let body = &source[start..];
    let body = &body[..body.find("\n}").unwrap_or(body.len())];
    let mut doc = Vec::new();
    let mut nested = Vec::new();
    for line in body.lines().skip(1).map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            doc.push(text.to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|field| field.split_once(": "))
        {
            let kind = kind.trim_end_matches(',').to_owned();
            let inner = kind
                .trim_start_matches("Vec<")
                .trim_start_matches("Option<")
                .trim_end_matches('>')
                .to_owned();
            if source.contains(&format!("pub struct {inner} {{")) {
                let path = if kind.starts_with("Vec<") {
                    format!("[[{section}.{name}]]")
                } else {
                    format!("[{section}.{name}]")
                };
                nested.push((path, inner, std::mem::take(&mut doc)));
            } else {
                out.push(Key {
                    section: format!("[{section}]"),
                    name: name.to_owned(),
                    doc: std::mem::take(&mut doc),
                    kind,
                });
            }
        }
    }
    for (path, inner, doc) in nested {
        let bare = path.trim_matches(['[', ']']).to_owned();
        let from = out.len();
        keys(&bare, source, &inner, out);
        for key in &mut out[from..] {
            if key.section == format!("[{bare}]") {
                key.section.clone_from(&path);
            }
        }
        if let Some(first) = out.get_mut(from) {
            first.doc.splice(0..0, doc.into_iter().map(|line| format!("({line})")));
        }
    }
}

fn all_keys() -> Vec<Key> {
    let mut out = Vec::new();
    for (section, source) in SOURCES {
        keys(section, source, "Config", &mut out);
    }
    out
}

/// Prints every key with its documentation and its default, as a valid TOML file whose keys are commented out.
pub(crate) fn show(json: bool) -> Result<()> {
    let mut defaults = toml::Table::new();
    let say = |error: toml::ser::Error| Error::said(format!("the defaults cannot be shown: {error}"));
    defaults
        .insert("worker".into(), toml::Value::try_from(assay_worker::Config::new("worker")).map_err(say)?);
    defaults.insert("gateway".into(), toml::Value::try_from(assay_gateway::Config::default()).map_err(say)?);
    let keys = all_keys();
    if json {
        let list: Vec<_> = keys
            .iter()
            .map(|key| serde_json::json!({ "section": key.section, "key": key.name, "type": key.kind, "doc": key.doc.join(" ") }))
            .collect();
        crate::ui::print_json(&list);
        return Ok(());
    }
    let path = default_path()?;
    let mut text =
        format!("# Assay configuration; this file is read from {} or --config FILE.\n", path.display());
    let mut section = String::new();
    for key in keys {
        if key.section != section {
            section.clone_from(&key.section);
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{}{section}\n", if section.starts_with("[[") { "# " } else { "" });
        }
        for line in &key.doc {
            let _ = writeln!(text, "# {line}");
        }
        let value = section
            .trim_matches(['[', ']'])
            .split('.')
            .try_fold(&defaults, |table, name| table.get(name).and_then(toml::Value::as_table))
            .and_then(|table| table.get(&key.name));
        match value {
            Some(value) => {
                let _ = writeln!(text, "# {} = {value}", key.name);
            }
            None => {
                let _ = writeln!(text, "# {} =   # {}", key.name, key.kind);
            }
        }
    }
    print!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_defaults_is_documented() {
        let keys = all_keys();
        let known = |section: &str, name: &str| {
            keys.iter().any(|key| {
                key.section.trim_matches(['[', ']']) == section && key.name == name && !key.doc.is_empty()
            })
        };
        fn walk(
            section: &str,
            table: &toml::Table,
            known: &dyn Fn(&str, &str) -> bool,
            missing: &mut Vec<String>,
        ) {
            for (name, value) in table {
                match value {
                    toml::Value::Table(inner) if !known(section, name) => {
                        walk(&format!("{section}.{name}"), inner, known, missing);
                    }
                    toml::Value::Array(list) if list.is_empty() => {}
                    _ if known(section, name) => {}
                    _ => missing.push(format!("{section}.{name}")),
                }
            }
        }
        let mut missing = Vec::new();
        let worker = toml::Value::try_from(assay_worker::Config::new("worker")).unwrap();
        let gateway = toml::Value::try_from(assay_gateway::Config::default()).unwrap();
        walk("worker", worker.as_table().unwrap(), &known, &mut missing);
        walk("gateway", gateway.as_table().unwrap(), &known, &mut missing);
        assert!(missing.is_empty(), "without documentation: {missing:?}");
        assert!(keys.len() > 20);
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
