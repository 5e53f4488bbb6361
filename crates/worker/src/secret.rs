//! The secret of a key that hides its weights, and the count of the proofs that it has made.
//!
//! A key that hides its weights has one commitment for each proof, and two proofs from one commitment may tell the weights. So the file counts: it
//! grows by a byte before each proof, whatever becomes of the proof. Whoever restores an older copy of it uses commitments twice.
//!
//! The file is `ASSAYHS1`, the key's id (32 bytes), the seed (32 bytes), and one byte for each commitment that was used.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use assay_proof::{Graph, Key, OneTime};

use crate::Error;

/// The first bytes of the file, with the version of its format.
const MAGIC: &[u8; 8] = b"ASSAYHS1";

/// Bytes before those that count.
const HEAD: usize = 8 + 32 + 32;

/// The secret of a key that hides its weights.
///
/// ```
/// use assay_graph::{Graph, Interface, Node, Range, Tensor};
/// use assay_proof::{Hide, Key, prove_hiding};
/// use assay_worker::Secret;
/// let linear = Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![2, -1], bias: vec![3] };
/// let inputs = vec![Range { low: 0, high: 15 }; 2];
/// let graph = Graph::new(inputs, vec![], vec![linear], Tensor(1), Interface::plain(1))?;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.secret");
/// let seed = [7; 32]; // from the operating system's generator
/// let key = Key::commit_hiding(&graph, 2, &seed, &|| ())?;
/// Secret::create(&path, &key, &seed)?;
///
/// let secret = Secret::open(&path, &key)?;
/// let (once, left) = secret.take()?;
/// prove_hiding(&graph, Some(&key), &[5, 1], Hide::Weights(once), [8; 32], &mut |_| ())?;
/// assert_eq!((left, secret.left()?), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Secret {
    path: PathBuf,
    key: [u8; 32],
    proofs: u32,
}

impl Secret {
    /// Where the secret of a key lies: beside it, with the extension `secret`.
    pub fn beside(key: &Path) -> PathBuf {
        key.with_extension("secret")
    }

    /// Writes the secret of a key that was made with this seed, readable by its owner only.
    ///
    /// # Errors
    /// [`Error::Io`], also when the file exists.
    pub fn create(path: &Path, key: &Key, seed: &[u8; 32]) -> Result<(), Error> {
        let io = |source| Error::Io { what: "write the secret of the key", path: path.to_owned(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let written = file.write_all(&[&MAGIC[..], &key.id(), seed].concat()).and_then(|()| file.sync_all());
        written.map_err(|source| {
            // Half of one is none; what went wrong first is said.
            let _ = std::fs::remove_file(path);
            io(source)
        })?;
        // The name, too, must survive a loss of power: without its secret a key is worth nothing.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(io)
    }

    /// The secret of a key.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Secret`] when it is not this key's, or others may read it.
    pub fn open(path: &Path, key: &Key) -> Result<Secret, Error> {
        let secret =
            Secret { path: path.to_owned(), key: key.id(), proofs: key.hiding_proofs().unwrap_or(0) };
        secret.read()?;
        Ok(secret)
    }

    /// Checks that it is the secret for the weights of this model.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn check(&self, key: &Key, graph: &Graph) -> Result<(), Error> {
        let (_, seed, _) = self.read()?;
        key.check_seed(graph, &seed).map_err(|error| self.fault(error.to_string()))
    }

    /// How many proofs it can still make.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn left(&self) -> Result<u32, Error> {
        let (_, _, used) = self.read()?;
        Ok(self.proofs.saturating_sub(used))
    }

    /// Takes what one proof needs, and counts that on disk first; also how many proofs are left then. Processes that do so at once wait for
    /// each other.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::SecretUsedUp`] when all proofs were made.
    pub fn take(&self) -> Result<(OneTime, u32), Error> {
        let (mut file, seed, used) = self.read()?;
        if used >= self.proofs {
            return Err(Error::SecretUsedUp { path: self.path.clone(), proofs: self.proofs });
        }
        // It is locked until it is closed.
        file.write_all(&[1]).and_then(|()| file.sync_all()).map_err(|source| self.io(source))?;
        Ok((OneTime::new(seed, used), self.proofs - used - 1))
    }

    /// The file, locked and at its end, its seed, and how many commitments were used.
    fn read(&self) -> Result<(File, [u8; 32], u32), Error> {
        let io = |source| self.io(source);
        let mut file = OpenOptions::new().read(true).append(true).open(&self.path).map_err(io)?;
        file.lock().map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(self.fault("it is no file".into()));
        }
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(self.fault("others can read it; run `chmod 600` on it".into()));
        }
        let mut head = [0; HEAD];
        file.read_exact(&mut head).map_err(io)?;
        let (magic, rest) = head.split_at(MAGIC.len());
        let (key, seed) = rest.split_at(32);
        if magic != MAGIC {
            return Err(self.fault("it does not begin as one of this version does".into()));
        }
        if key != self.key {
            return Err(self.fault("it is of another key".into()));
        }
        let mut out = [0; 32];
        out.copy_from_slice(seed);
        // It was read to there. More than any key has is as good as all.
        let used = meta.len().checked_sub(HEAD as u64).and_then(|used| u32::try_from(used).ok());
        Ok((file, out, used.unwrap_or(u32::MAX)))
    }

    fn io(&self, source: std::io::Error) -> Error {
        Error::Io { what: "use the secret of the key", path: self.path.clone(), source }
    }

    fn fault(&self, fault: String) -> Error {
        Error::Secret { path: self.path.clone(), fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_graph::{Interface, Node, Range, Tensor};

    fn graph(weight: i32) -> Graph {
        let linear =
            Node::Linear { input: Tensor::INPUT, rows: 1, weights: vec![weight, 5 - weight], bias: vec![3] };
        let inputs = vec![Range { low: -9, high: 9 }; 2];
        Graph::new(inputs, vec![], vec![linear], Tensor(1), Interface::plain(1)).unwrap()
    }

    const SEED: [u8; 32] = [7; 32];

    fn made(proofs: u32) -> (tempfile::TempDir, PathBuf, Key) {
        let folder = tempfile::tempdir().unwrap();
        let path = Secret::beside(&folder.path().join("model.key"));
        let key = Key::commit_hiding(&graph(2), proofs, &SEED, &|| ()).unwrap();
        Secret::create(&path, &key, &SEED).unwrap();
        (folder, path, key)
    }

    #[test]
    fn each_commitment_is_taken_once() {
        let (_folder, path, key) = made(40);
        // Several at once, each with its own view of the file, as processes have.
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let (path, key) = (path.clone(), key.clone());
                std::thread::spawn(move || {
                    let secret = Secret::open(&path, &key).unwrap();
                    (0..10).map(|_| secret.take().unwrap().0.number()).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut taken: Vec<u32> = takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..40).collect::<Vec<_>>());
        let secret = Secret::open(&path, &key).unwrap();
        assert_eq!(secret.left().unwrap(), 0);
        for _ in 0..2 {
            let Err(error) = secret.take() else { panic!("a 41st") };
            assert!(matches!(error, Error::SecretUsedUp { .. }) && error.to_string().contains("40 proofs"));
        }
        // What was refused is not counted.
        assert_eq!(std::fs::metadata(&path).unwrap().len(), HEAD as u64 + 40);
    }

    #[test]
    fn what_is_no_secret_of_the_key_is_refused() {
        let (folder, path, key) = made(2);
        let secret = Secret::open(&path, &key).unwrap();
        secret.check(&key, &graph(2)).unwrap();
        // The same ranges, other weights.
        let error = secret.check(&key, &graph(3)).unwrap_err().to_string();
        assert!(error.contains("another model"), "{error}");
        assert!(matches!(Secret::create(&path, &key, &SEED), Err(Error::Io { .. })));
        let other = Key::commit_hiding(&graph(2), 2, &[8; 32], &|| ()).unwrap();
        assert!(matches!(Secret::open(&path, &other), Err(Error::Secret { .. })));
        let missing = folder.path().join("other.secret");
        assert!(matches!(Secret::open(&missing, &key), Err(Error::Io { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Secret::open(&path, &key), Err(Error::Secret { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for damaged in [&bytes[..40], &[&b"ASSAYHS0"[..], &bytes[8..]].concat()] {
            std::fs::write(&path, damaged).unwrap();
            assert!(secret.take().is_err());
        }
    }
}
