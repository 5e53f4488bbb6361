//! `assay verify --block`: whether a block of a chain is final, by its validators' signatures, whatever node one asks.

use std::path::Path;

use assay_ledger::types::hex;
use assay_verify::finality::{FinalityError, LightClient};
use assay_wallet::client::Client;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::ui::say;
use crate::{genesis, ui};

fn bytes(value: &Value) -> Result<Vec<u8>> {
    value
        .as_str()
        .and_then(|text| hex::decode(text).ok())
        .ok_or_else(|| Error::said("the node's answer has no bytes where they belong"))
}

/// The headers and the certificate that prove a block.
async fn proof(client: &Client, block: u64) -> Result<(Vec<Vec<u8>>, Vec<u8>)> {
    let answer = client.request("assay_getFinalization", json!([format!("{block:#x}")])).await?;
    let Some(headers) = answer["headers"].as_array() else {
        return Err(Error::said(format!(
            "the node knows no proof for block {block}: it may not be final yet"
        )));
    };
    Ok((headers.iter().map(bytes).collect::<Result<_>>()?, bytes(&answer["finalization"])?))
}

pub(crate) async fn verify(block: u64, file: &Path, rpc: &str, json: bool) -> Result<()> {
    let genesis = genesis::read(file)?;
    let (_, first) = genesis.execute().map_err(|error| Error::Rejected(error.to_string()))?;
    let committee = genesis.committee().map_err(|error| Error::Rejected(error.to_string()))?;
    let client = Client::new(rpc)?;
    let refused = |error: FinalityError| Error::Rejected(format!("{rpc} does not prove it: {error}"));
    let (headers, _) = proof(&client, 0).await?;
    let header = headers.first().map(Vec::as_slice).unwrap_or_default();
    let mut light = LightClient::new(first.block.hash().0, header, &committee.encode()).map_err(refused)?;
    let spinner = ui::spinner("following the committees");
    while light.last_block() < block {
        let (headers, certificate) = proof(&client, light.last_block()).await?;
        let epoch = light.epoch() + 1;
        let next = client.request("assay_getCommittee", json!([format!("{epoch:#x}")])).await?;
        light.advance(&headers, &certificate, &bytes(&next["encoded"])?).map_err(refused)?;
    }
    spinner.finish_and_clear();
    let (headers, certificate) = proof(&client, block).await?;
    let found = light.verify(&headers, &certificate).map_err(refused)?;
    if found.number != block {
        return Err(Error::Rejected(format!("{rpc} proves block {} instead", found.number)));
    }
    let (hash, root) = (hex::encode_prefixed(found.hash), hex::encode_prefixed(found.state_root));
    if json {
        ui::print_json(&json!({
            "final": true, "block": block, "hash": hash, "stateRoot": root, "timestamp": found.timestamp, "epoch": light.epoch(),
        }));
        return Ok(());
    }
    say!(
        "block {block} is final: validators with more than two thirds of the seats of epoch {} signed it",
        light.epoch()
    );
    say!("hash        {hash}");
    say!("state root  {root}");
    Ok(())
}
