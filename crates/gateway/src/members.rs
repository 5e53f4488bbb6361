//! Who is a worker.
//!
//! The rest of the gateway sees one interface: a [`tokio::sync::watch::Receiver`] that always holds the current list.
//! Here it is fed from a signed file; anything else that knows the list can feed it as well.

use crate::clock::now_ms;
use crate::config::Config;
use crate::error::Error;
use crate::store::Store;
use assay_receipt::{Address, Domain, Members, Signed};
use futures_util::future::BoxFuture;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Name under which the highest serial is stored.
const SERIAL: &str = "members_serial";

/// Reads the members file and keeps reading it whenever it changes. The first reading must succeed; a later one that
/// does not is logged, and the list before it stays.
pub(crate) async fn follow(config: &Config, store: Store) -> Result<Followed, Error> {
    let source = Source {
        path: config.members_file.clone(),
        signer: config.members_signer,
        domain: config.domain,
        store,
    };
    let mut stamp = stamp_of(&source.path).await;
    let signed = source.read().await?;
    let (members_in, members) = watch::channel(Arc::new(signed.statement.clone()));
    let (signed_in, evidence) = watch::channel(Arc::new(signed));
    let pause = Duration::from_millis(config.members_poll_ms);
    let reader = async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = members_in.closed() => return,
            }
            let now = stamp_of(&source.path).await;
            if now == stamp {
                continue;
            }
            stamp = now;
            match source.read().await {
                Ok(signed) => {
                    tracing::info!(serial = signed.statement.serial, "read a new list of members");
                    members_in.send_replace(Arc::new(signed.statement.clone()));
                    signed_in.send_replace(Arc::new(signed));
                }
                Err(error) => tracing::warn!(%error, "kept the list of members from before"),
            }
        }
    };
    Ok(Followed { members, signed: evidence, reader: Box::pin(reader) })
}

/// The list as it is and will be.
pub(crate) struct Followed {
    pub(crate) members: watch::Receiver<Arc<Members>>,
    pub(crate) signed: watch::Receiver<Arc<Signed<Members>>>,
    /// Reads the file again and again; to be run beside everything else.
    pub(crate) reader: BoxFuture<'static, ()>,
}

struct Source {
    path: PathBuf,
    signer: Address,
    domain: Domain,
    store: Store,
}

impl Source {
    async fn read(&self) -> Result<Signed<Members>, Error> {
        let bytes = tokio::fs::read(&self.path)
            .await
            .map_err(|source| Error::MembersRead { path: self.path.clone(), source })?;
        let refuse = |reason| Error::MembersRefused { path: self.path.clone(), reason };
        let seen = self.store.number(SERIAL).await?.unwrap_or(0);
        let signed = accept(&bytes, &self.domain, &self.signer, seen, now_ms() / 1_000).map_err(refuse)?;
        self.store.set_number(SERIAL, signed.statement.serial).await?;
        Ok(signed)
    }
}

/// Changes whenever the file is written or replaced.
async fn stamp_of(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Decodes a members file and checks signature, expiry and serial.
fn accept(
    bytes: &[u8],
    domain: &Domain,
    signer: &Address,
    serial_seen: u64,
    now_s: u64,
) -> Result<Signed<Members>, String> {
    let signed = Signed::<Members>::from_json(bytes).map_err(|error| error.to_string())?;
    assay_verify::check_members(&signed, Some(signer), domain, now_s, serial_seen)
        .map_err(|error| error.to_string())?;
    for member in &signed.statement.members {
        if !member.url.starts_with("https://") {
            return Err(format!("worker {} has the URL {}, which is not https", member.worker, member.url));
        }
    }
    Ok(signed)
}

/// Whether the list no longer counts.
pub(crate) fn is_expired(members: &Members, now_s: u64) -> bool {
    now_s >= members.expires_at_s
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_receipt::Key;

    fn signed(serial: u64, expires_at_s: u64, key: u8) -> (Vec<u8>, Address) {
        let key = Key::from_bytes([key; 32]).unwrap();
        let members = Members { serial, issued_at_s: 1, expires_at_s, members: Vec::new() };
        let signed = Signed::sign(&key, &Domain::default(), members);
        (serde_json::to_vec(&signed).unwrap(), key.address())
    }

    #[test]
    fn a_good_list_is_accepted() {
        let (bytes, signer) = signed(3, 100, 7);
        assert_eq!(accept(&bytes, &Domain::default(), &signer, 3, 99).unwrap().statement.serial, 3);
    }

    #[test]
    fn wrong_signer_old_serial_and_expiry_are_refused() {
        let (bytes, signer) = signed(3, 100, 7);
        let (_, other) = signed(3, 100, 8);
        let domain = Domain::default();
        assert!(accept(&bytes, &domain, &other, 0, 99).unwrap_err().contains("signed by"));
        assert!(accept(&bytes, &domain, &signer, 4, 99).unwrap_err().contains("serial"));
        assert!(accept(&bytes, &domain, &signer, 0, 100).unwrap_err().contains("expired"));
        let elsewhere = Domain { chain_id: 1, ..domain };
        assert!(accept(&bytes, &elsewhere, &signer, 0, 99).is_err());
        assert!(accept(&bytes[1..], &domain, &signer, 0, 99).is_err());
    }
}
