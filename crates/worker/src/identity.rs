//! The worker's two keys: the one that signs statements and the one of its TLS certificate.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use assay_receipt::{Bytes32, Key};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Who the worker is, loaded from or newly made in its data folder.
pub(crate) struct Identity {
    /// Signs statements.
    pub(crate) key: Key,
    /// TLS with the worker's own certificate; HTTP/2 is preferred.
    pub(crate) tls: Arc<ServerConfig>,
    /// SHA-256 of the certificate's DER, which callers pin.
    pub(crate) tls_sha256: Bytes32,
}

impl Identity {
    /// Loads the keys from `folder`, or makes those that are missing. `host` goes into a new certificate.
    pub(crate) fn load(folder: &Path, host: Option<&str>) -> Result<Identity, Error> {
        let key = secret(&folder.join("identity.key"), || {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes)
                .map_err(|fault| identity(folder, &format!("no randomness: {fault}")))?;
            Ok(bytes.to_vec())
        })?;
        let key: [u8; 32] = key
            .try_into()
            .map_err(|_| identity(&folder.join("identity.key"), "the file must hold exactly 32 bytes"))?;
        let key = Key::from_bytes(key)
            .map_err(|_| identity(&folder.join("identity.key"), "the bytes are no secp256k1 key"))?;

        let tls_key_path = folder.join("tls.key");
        let tls_key = secret(&tls_key_path, || {
            let pair =
                rcgen::KeyPair::generate().map_err(|fault| identity(&tls_key_path, &fault.to_string()))?;
            Ok(pair.serialize_der())
        })?;
        let certificate_path = folder.join("tls.der");
        let certificate = match fs::read(&certificate_path) {
            Ok(bytes) => bytes,
            Err(fault) if fault.kind() == ErrorKind::NotFound => {
                let bytes = certify(&tls_key, host)
                    .map_err(|fault| identity(&certificate_path, &fault.to_string()))?;
                write_new(&certificate_path, &bytes, 0o644)?;
                bytes
            }
            Err(source) => {
                return Err(Error::Io { what: "read the TLS certificate", path: certificate_path, source });
            }
        };
        let tls_sha256 = Bytes32(Sha256::digest(&certificate).into());
        let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(
                    vec![CertificateDer::from(certificate)],
                    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(tls_key)),
                )
            })
            .map_err(|fault| identity(&certificate_path, &fault.to_string()))?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Identity { key, tls: Arc::new(tls), tls_sha256 })
    }
}

/// A self-signed certificate over the key. Callers pin its hash, so its names and dates carry no trust; they are set so
/// that generic clients accept it once they trust the file.
fn certify(key: &[u8], host: Option<&str>) -> Result<Vec<u8>, rcgen::Error> {
    let pair = rcgen::KeyPair::try_from(key)?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if let Some(host) = host
        && !names.iter().any(|name| name == host)
    {
        names.push(host.parse::<IpAddr>().map_or_else(|_| host.to_owned(), |address| address.to_string()));
    }
    let mut parameters = rcgen::CertificateParams::new(names)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "assay worker");
    Ok(parameters.self_signed(&pair)?.der().to_vec())
}

fn identity(path: &Path, fault: &str) -> Error {
    Error::Identity { path: path.to_owned(), fault: fault.to_owned() }
}

/// Reads a secret that only its owner may read, or makes it.
fn secret(path: &Path, make: impl FnOnce() -> Result<Vec<u8>, Error>) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { what: "read the secret key", path: path.to_owned(), source };
    match File::open(path) {
        Ok(mut file) => {
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(Error::Permissions { path: path.to_owned(), mode });
                }
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(io)?;
            Ok(bytes)
        }
        Err(fault) if fault.kind() == ErrorKind::NotFound => {
            let bytes = make()?;
            write_new(path, &bytes, 0o600)?;
            Ok(bytes)
        }
        Err(fault) => Err(io(fault)),
    }
}

/// Writes a file so that it is either absent or whole, whenever the process is killed, and never readable to others
/// for a moment: a temporary file with its final mode, synced, then renamed.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let io = |source| Error::Io { what: "write", path: path.to_owned(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    // Left by a process that was killed; nobody else writes here, since the statement log is locked.
    match fs::remove_file(&temporary) {
        Err(fault) if fault.kind() != ErrorKind::NotFound => return Err(io(fault)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(mode);
    }
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(&temporary).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    fs::rename(&temporary, path).map_err(io)?;
    if let Some(folder) = path.parent() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::load(folder.path(), Some("worker.example")).unwrap();
        let second = Identity::load(folder.path(), None).unwrap();
        assert_eq!(first.key.address(), second.key.address());
        assert_eq!(first.tls_sha256, second.tls_sha256);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        Identity::load(folder.path(), None).unwrap();
        for name in ["identity.key", "tls.key"] {
            let path = folder.path().join(name);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            assert!(matches!(
                Identity::load(folder.path(), None),
                Err(Error::Permissions { mode: 0o640, .. })
            ));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }

    #[test]
    fn a_damaged_key_is_refused_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        Identity::load(folder.path(), None).unwrap();
        for bytes in [&[0; 32][..], &[1; 31], b""] {
            fs::write(folder.path().join("identity.key"), bytes).unwrap();
            assert!(matches!(Identity::load(folder.path(), None), Err(Error::Identity { .. })));
        }
    }

    #[test]
    fn a_half_written_file_of_a_killed_process_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("identity.key.new"), b"half").unwrap();
        assert!(Identity::load(folder.path(), None).is_ok());
    }
}
