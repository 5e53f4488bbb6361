//! Files in memory.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::Mmap;

use crate::Error;

/// Maps a file into memory, so that a model's weights are shared between processes and read only where they are used.
///
/// # Errors
/// [`Error::Io`] when the file cannot be opened or mapped.
///
/// ```no_run
/// let artifact = assay_worker::files::map(std::path::Path::new("smollm2.assay"))?;
/// println!("{} bytes", artifact.as_ref().as_ref().len());
/// # Ok::<(), assay_worker::Error>(())
/// ```
#[allow(unsafe_code)]
pub fn map(path: &Path) -> Result<Arc<dyn AsRef<[u8]> + Send + Sync>, Error> {
    let io = |source| Error::Io { what: "open the model file", path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the mapping is read-only and private to this call's `Mmap`, which keeps it alive as long as any slice of
    // it. What is left is that another process could truncate or change the file while it is mapped. Artifacts are
    // written once under a temporary name and renamed into place (never rewritten), and the reader of these bytes
    // treats them as hostile: it checks every offset and holds no invariant over their content beyond plain integers,
    // for which every bit pattern is valid. A truncation ends the process with SIGBUS; it cannot make it misbehave.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(Arc::new(map))
}

/// By which a file is known to be the same as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Its size.
    pub(crate) bytes: u64,
    modified: Option<SystemTime>,
}

/// The stamp of a file.
///
/// # Errors
/// [`Error::Io`] when the file cannot be looked at.
pub(crate) fn stamp(path: &Path) -> Result<Stamp, Error> {
    let found = std::fs::metadata(path);
    let found =
        found.map_err(|source| Error::Io { what: "open the model file", path: path.to_owned(), source })?;
    Ok(Stamp { bytes: found.len(), modified: found.modified().ok() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_what_is_there_and_reports_what_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(matches!(map(&path), Err(Error::Io { .. })));
        std::fs::write(&path, b"bytes").unwrap();
        assert_eq!(map(&path).unwrap().as_ref().as_ref(), b"bytes");
    }
}
