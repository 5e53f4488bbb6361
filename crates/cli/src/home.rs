//! Where things are kept: one folder, `$ASSAY_HOME` or `~/.assay`, readable by its owner only.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folder that holds models, keys and databases; created with mode 0700 on first use.
pub(crate) fn home() -> Result<PathBuf> {
    let folder = match std::env::var_os("ASSAY_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => match std::env::var_os("HOME") {
            Some(home) => Path::new(&home).join(".assay"),
            None => {
                return Err(Error::said(
                    "neither ASSAY_HOME nor HOME is set; set ASSAY_HOME to the folder that shall hold models and keys",
                ));
            }
        },
    };
    create_private(&folder)?;
    Ok(folder)
}

/// Creates a folder and its parents, the folder itself with mode 0700.
pub(crate) fn create_private(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(Error::file("create", folder))
}

/// Reads a file of at most `max` bytes.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let file = File::open(path).map_err(Error::file("read", path))?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    if bytes.len() as u64 > max {
        return Err(Error::said(format!(
            "{} is larger than {max} bytes, which no valid file of its kind is",
            path.display()
        )));
    }
    Ok(bytes)
}

/// A file that is being written: a reader of its path sees the old content until it is kept, never half of the new one, and a crash
/// keeps one of them. What is not kept is removed.
pub(crate) struct Draft {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Draft {
    /// Begins a file with these permissions.
    pub(crate) fn create(path: &Path, mode: u32) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let temporary = path.with_extension(format!("part-{}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned() })
    }

    /// Puts the file in its place; its length in bytes.
    pub(crate) fn keep(self) -> std::io::Result<u64> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        // The new name itself must survive a loss of power.
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(self.file.metadata()?.len())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It has another name when it was kept, and a leftover file is not worth an error.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Writes a file by way of a [`Draft`].
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let write = || {
        let mut draft = Draft::create(path, mode)?;
        draft.write_all(content)?;
        draft.keep()
    };
    write().map(drop).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_replaces_its_file_when_it_is_kept_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        write_atomically(&path, b"old", 0o600).unwrap();
        let mut draft = Draft::create(&path, 0o600).unwrap();
        draft.write_all(b"half").unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        drop(draft);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut draft = Draft::create(&path, 0o600).unwrap();
        draft.write_all(b"newer").unwrap();
        assert_eq!(draft.keep().unwrap(), 5);
        assert_eq!(std::fs::read(&path).unwrap(), b"newer");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
