//! Where things are kept: one folder, `$ASSAY_HOME` or `~/.assay`, readable by its owner only.

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
    let file = std::fs::File::open(path).map_err(Error::file("read", path))?;
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

/// Writes a file so that a reader sees the old or the new content, never half of it, and a crash keeps one of them.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = path.with_extension(format!("part-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        // The new name itself must survive a loss of power.
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => std::fs::File::open(parent)?.sync_all(),
            None => std::fs::File::open(".")?.sync_all(),
        }
    };
    write().map_err(|source| {
        // The write failed already; a leftover temporary file is not worth a second error.
        let _ = std::fs::remove_file(&temporary);
        Error::File { action: "write", path: path.display().to_string(), source }
    })
}
