//! The chain of `assay up`: validators as processes of their own, on a genesis that is made on first use.

use std::path::Path;
use std::time::{Duration, Instant};

use assay_ledger::Validator;
use assay_node::node;
use assay_wallet::client::Client;

use super::{Process, READY_S, not_ended};
use crate::error::{Error, Result};
use crate::{genesis, home, keys};

/// Starts the validators of the chain in `folder`; the first of them serves JSON-RPC at the port `rpc`. A chain that is there goes on
/// with as many validators as it has; a new one gets `validators`, or one, and `accounts` begin with coins and OPG.
pub(super) async fn start(
    folder: &Path,
    validators: Option<u16>,
    rpc: u16,
    accounts: &[&str],
) -> Result<Vec<Process>> {
    home::create_private(folder)?;
    let file = folder.join("genesis.json");
    let data = |number: usize| folder.join(format!("validator-{number}"));
    if !file.exists() {
        let mut listed = Vec::new();
        // All at once, so that no two get the same.
        let count = usize::from(validators.unwrap_or(1));
        let ports: Vec<_> = (0..count)
            .map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))
            .collect::<std::io::Result<_>>()
            .map_err(|error| Error::said(format!("no port is free on this machine: {error}")))?;
        for (number, port) in (1..).zip(&ports) {
            home::create_private(&data(number))?;
            let secret = keys::validator_secret(&data(number).join("validator.key"), true)?;
            let key = node::public_key(&secret).map_err(|error| Error::said(error.to_string()))?;
            let endpoint = port.local_addr().map_err(|error| Error::said(error.to_string()))?.to_string();
            listed.push(Validator { key, endpoint, beneficiary: genesis::NOBODY.to_owned() });
        }
        genesis::write(&genesis::development(listed, accounts)?, &file)?;
    }
    let listed = genesis::read(&file)?.validators;
    if validators.is_some_and(|wanted| usize::from(wanted) != listed.len()) {
        return Err(Error::said(format!(
            "the chain in {} has {} validators; leave --validators out to go on with it, or move the folder away to begin another",
            folder.display(),
            listed.len()
        )));
    }
    let mut processes = Vec::new();
    for (number, validator) in (1..).zip(&listed) {
        let data = data(number);
        let rpc = if number == 1 { rpc } else { 0 };
        let arguments = [
            "node",
            "--supervised",
            "--genesis",
            &file.display().to_string(),
            "--key",
            &data.join("validator.key").display().to_string(),
            "--data",
            &data.display().to_string(),
            "--listen",
            &validator.endpoint,
            "--rpc",
            &format!("127.0.0.1:{rpc}"),
        ];
        let arguments = arguments.map(str::to_owned).to_vec();
        processes.push(Process::start(&format!("validator-{number}"), arguments, data.join("log"))?);
    }
    Ok(processes)
}

/// Waits until every validator runs and the first has seen a block become final.
pub(super) async fn ready(processes: &mut [Process], rpc: &str) -> Result<()> {
    let client = Client::new(rpc).map_err(|error| Error::said(error.to_string()))?;
    let deadline = Instant::now() + Duration::from_secs(READY_S);
    while Instant::now() < deadline {
        let head = client.request("eth_blockNumber", serde_json::json!([])).await;
        if head.is_ok_and(|head| head != "0x0") {
            return Ok(());
        }
        for process in processes.iter_mut() {
            not_ended(process).map_err(|error| {
                Error::said(format!("{error}; if a port was taken, choose others with another --port"))
            })?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Error::said(format!("the chain made no block within {READY_S} s; the validators' logs say why")))
}
