//! Where things are kept: one folder, `$ASSAY_HOME` or `~/.assay`, readable by its owner only.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

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
    is_kept: bool,
}

impl Draft {
    /// Begins a file with these permissions.
    pub(crate) fn create(path: &Path, mode: u32) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(name);
        // A process of this number may have left one, with other permissions.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned(), is_kept: false })
    }

    /// Puts the file in its place; its length in bytes.
    pub(crate) fn keep(mut self) -> std::io::Result<u64> {
        self.file.sync_all()?;
        let bytes = self.file.metadata()?.len();
        std::fs::rename(&self.temporary, &self.path)?;
        self.is_kept = true;
        // The new name itself must survive a loss of power, where the folder can be opened.
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new("."))).map_or(Ok(()), |folder| folder.sync_all())?;
        Ok(bytes)
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
        if !self.is_kept {
            // A leftover file is not worth an error.
            let _ = std::fs::remove_file(&self.temporary);
        }
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
        // Two at once: the last that is kept stays.
        let [mut first, mut second] = [(); 2].map(|()| Draft::create(&path, 0o600).unwrap());
        first.write_all(b"newest").unwrap();
        second.write_all(b"newer").unwrap();
        assert_eq!((second.keep().unwrap(), std::fs::read(&path).unwrap()), (5, b"newer".to_vec()));
        assert_eq!((first.keep().unwrap(), std::fs::read(&path).unwrap()), (6, b"newest".to_vec()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
