//! What a gateway does on a chain: it reads who is a worker from the registry, and signs a voucher for every call.
//!
//! The registry's list is signed with the payer's key and written to the members file, from where everything else takes it: a
//! gateway that starts while no node answers goes on with the list from before, and receipts can be checked offline with it.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use assay_receipt::{Bytes32, Domain, GenerateCall, Key, Member, Members, Offer, Signed, Voucher, limits};
use assay_wallet::abi;
use assay_wallet::chain::Chain;
use assay_wallet::client::ClientError;
use assay_wallet::keystore;
use serde_json::{Value, json};

use crate::clock::now_ms;
use crate::config::Config;
use crate::error::Error;

/// How long a list from the registry counts, in seconds: a node may be away for so long. It is renewed after half of it.
const VALID_S: u64 = 24 * 3_600;
/// How long a worker may take to receive a call before its voucher has expired.
const VOUCHER_MS: u64 = 300_000;
/// The environment variable with the password of an encrypted key.
const PASSWORD: &str = "ASSAY_PASSWORD";

/// The payer's key and the chain on which it pays.
pub(crate) struct Payer {
    key: Key,
    chain: Chain,
}

fn refuse(key: &'static str, reason: impl std::fmt::Display) -> Error {
    Error::Config { key, reason: reason.to_string() }
}

/// A key file: 64 hexadecimal digits, or a keystore whose password is in [`PASSWORD`].
fn key_at(path: &Path) -> Result<Key, Error> {
    let bad = |fault: &dyn std::fmt::Display| refuse("chain.key", format!("{}: {fault}", path.display()));
    let mut file = std::fs::File::open(path).map_err(|fault| bad(&fault))?;
    let mode = file.metadata().map_err(|fault| bad(&fault))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(bad(&format!("it has mode {mode:o}, so others can read it; run `chmod 600` on it")));
    }
    let mut found = String::new();
    let mut bounded = (&mut file).take(keystore::BYTES_MAX);
    bounded.read_to_string(&mut found).map_err(|fault| bad(&fault))?;
    if found.trim_start().starts_with('{') {
        let password =
            std::env::var(PASSWORD).map_err(|_| bad(&format!("it is encrypted; set {PASSWORD}")))?;
        return keystore::decrypt(&found, &password).map_err(|fault| bad(&fault));
    }
    let secret: Bytes32 = found.trim().parse().map_err(|fault| bad(&fault))?;
    Key::from_bytes(secret.0).map_err(|fault| bad(&fault))
}

impl Payer {
    /// Opens the key, if the configuration names a chain; `payer` and `members_signer` are then the key's address.
    pub(crate) fn open(config: &mut Config) -> Result<Option<Payer>, Error> {
        let Some(settings) = &config.chain else { return Ok(None) };
        let chain = Chain::at(&settings.rpc).map_err(|fault| refuse("chain.rpc", fault))?;
        let contract = chain.system.address("Settlement").map_err(|fault| refuse("chain.rpc", fault))?;
        if config.domain.contract.0 != contract.0.0 {
            return Err(refuse("domain.contract", format!("it must be {contract}, where receipts settle")));
        }
        let key = key_at(&settings.key)?;
        (config.payer, config.members_signer) = (key.address(), key.address());
        Ok(Some(Payer { key, chain }))
    }

    /// The voucher for a call to a worker, with the commitments to the request and to its prompt's tokens.
    pub(crate) fn voucher(
        &self,
        call: &GenerateCall,
        request: Bytes32,
        prompt: Bytes32,
        member: &Member,
        offer: &Offer,
    ) -> Signed<Voucher> {
        let expires_at_ms = now_ms() + VOUCHER_MS;
        let voucher = Voucher::new(call, request, prompt, member.worker, offer, expires_at_ms);
        Signed::sign(&self.key, &call.domain, voucher)
    }

    /// Reads the registry now.
    pub(crate) async fn renew(&self, config: &Config) -> Result<(), Error> {
        let refused = |reason: String| Error::MembersRefused { path: config.members_file.clone(), reason };
        let members = self.registered(&config.domain).await.map_err(|fault| refused(fault.to_string()))?;
        let former = std::fs::read(&config.members_file).ok();
        let former = former.and_then(|bytes| Signed::<Members>::from_json(&bytes).ok());
        let former = former.filter(|former| former.signer(&config.domain) == Ok(self.key.address()));
        let now_s = now_ms() / 1_000;
        if former.as_ref().is_some_and(|former| {
            former.statement.members == members && former.statement.expires_at_s > now_s + VALID_S / 2
        }) {
            return Ok(());
        }
        let serial = former.map_or(0, |former| former.statement.serial + 1).max(now_s);
        let list = Members { serial, issued_at_s: now_s, expires_at_s: now_s + VALID_S, members };
        list.validate().map_err(|fault| refused(fault.to_string()))?;
        let bytes = serde_json::to_vec_pretty(&Signed::sign(&self.key, &config.domain, list));
        let bytes = bytes.map_err(|fault| refused(fault.to_string()))?;
        write(&config.members_file, &bytes)
            .map_err(|source| Error::MembersRead { path: config.members_file.clone(), source })
    }

    /// Reads the registry again and again.
    pub(crate) async fn follow(&self, config: &Config) {
        loop {
            tokio::time::sleep(Duration::from_millis(config.members_poll_ms)).await;
            if let Err(error) = self.renew(config).await {
                tracing::warn!(%error, "the registry could not be read; the list of members from before stays");
            }
        }
    }

    /// The workers whose operators have the least bond or more, in the latest final block.
    async fn registered(&self, domain: &Domain) -> Result<Vec<Member>, ClientError> {
        let chain_id = self.chain.client.chain_id().await?;
        if chain_id != domain.chain_id {
            let fault = format!("it is on chain {chain_id}, and `domain` names chain {}", domain.chain_id);
            return Err(ClientError::Answer(fault));
        }
        let least = self.chain.number("Registry", "leastBond", &[]).await?;
        let block = self.chain.head().await?;
        let count = self.chain.views_at(block, "Registry", "workerCount", &[vec![]]).await?;
        let count = count.first().and_then(abi::number).unwrap_or_default().saturating_to::<usize>();
        let numbers: Vec<_> = (0..count.min(limits::MEMBERS)).map(|number| vec![json!(number)]).collect();
        let mut found = self.chain.views_at(block, "Registry", "member", &numbers).await?;
        found.retain(|member| abi::number(&member["bond"]).is_some_and(|bond| bond >= least));
        // A name is what an operator calls itself; where two use one, they are told apart.
        let mut holders: HashMap<Value, Vec<Value>> = HashMap::new();
        for member in &found {
            let holders = holders.entry(member["operatorName"].clone()).or_default();
            if !holders.contains(&member["operator"]) {
                holders.push(member["operator"].clone());
            }
        }
        let alone = |member: &Value| holders.get(&member["operatorName"]).is_some_and(|list| list.len() == 1);
        let mut members: Vec<_> =
            found.iter().filter_map(|member| member_of(member, alone(member))).collect();
        members.sort_by_key(|member| member.worker);
        Ok(members)
    }
}

/// A worker as the registry has it; none when it cannot be called, so that one bad entry takes nobody else out.
fn member_of(member: &Value, alone: bool) -> Option<Member> {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let name = word(&member["operatorName"])?;
    let operator = if alone { name } else { format!("{name} ({})", member["operator"].as_str()?) };
    let offers = member["models"].as_array()?.iter().zip(member["offers"].as_array()?);
    let models = offers.map(|(model, offer)| {
        Some(Offer {
            model: model.as_str()?.parse().ok()?,
            name: word(&offer["name"])?,
            prompt_price: abi::number(&offer["promptPrice"])?.try_into().ok()?,
            completion_price: abi::number(&offer["completionPrice"])?.try_into().ok()?,
            arithmetic: abi::number(&offer["arithmetic"])?.try_into().ok()?,
            context: abi::number(&offer["context"])?.try_into().ok()?,
        })
    });
    let member = Member {
        operator,
        worker: member["worker"].as_str()?.parse().ok()?,
        key_epoch: abi::number(&member["keyEpoch"])?.try_into().ok()?,
        url: word(&member["url"])?,
        tls_sha256: member["tlsSha256"].as_str()?.parse().ok()?,
        models: models.collect::<Option<_>>()?,
    };
    (member.url.starts_with("https://") && member.validate().is_ok()).then_some(member)
}

/// Writes a file so that a reader sees all of it or what was there before.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(part, path)
}

#[cfg(test)]
mod tests {
    use assay_wallet::abi::text;

    use super::*;

    fn entry() -> Value {
        json!({
            "operator": text(Bytes32([7; 32])), "operatorName": "Ada", "bond": "5", "worker": format!("0x{}", "02".repeat(20)),
            "keyEpoch": 1, "url": "https://192.0.2.1:1", "tlsSha256": text(Bytes32([3; 32])),
            "models": [text(Bytes32([4; 32]))],
            "offers": [{"promptPrice": "1", "completionPrice": "2", "arithmetic": 2, "context": 64, "levels": 5, "name": "m"}],
        })
    }

    #[test]
    fn an_entry_of_the_registry_is_a_member_unless_it_cannot_be_called() {
        let member = member_of(&entry(), true).unwrap();
        assert_eq!((member.operator.as_str(), member.key_epoch, member.models.len()), ("Ada", 1, 1));
        assert_eq!(member.models[0].price(3, 4), Some(11));
        assert!(member_of(&entry(), false).unwrap().operator.contains("0x0707"));
        type Change = fn(&mut Value);
        let bad: [Change; 5] = [
            |m| m["url"] = json!("http://192.0.2.1:1"),
            |m| m["operatorName"] = json!(""),
            |m| m["offers"][0]["promptPrice"] = json!("340282366920938463463374607431768211456"),
            |m| m["tlsSha256"] = json!("0x12"),
            |m| m["models"] = json!("none"),
        ];
        for change in bad {
            let mut member = entry();
            change(&mut member);
            assert!(member_of(&member, true).is_none(), "{member}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, text(Bytes32([1; 32])).as_str().unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(key_at(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(key_at(&path).unwrap().address(), Key::from_bytes([1; 32]).unwrap().address());
        std::fs::write(&path, "0x12").unwrap();
        assert!(key_at(&path).is_err());
        assert!(key_at(&folder.path().join("none")).is_err());
    }
}
