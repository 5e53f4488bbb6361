//! Disputes about this worker's answers: it plays every move that is due (docs/disputes.md), since who is silent loses.

use std::sync::Arc;
use std::time::Duration;

use assay_dispute::Defender;
use assay_engine::request::Processor;
use assay_engine::trace::Trace;
use assay_model::Artifact;
use assay_receipt::{AnyStatement, Bytes32};

use crate::files;
use crate::server::{Phase, Shared};

/// How often the chain is asked for disputes.
const EVERY: Duration = Duration::from_secs(1);

/// Plays until the worker stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let Some(settlement) = &shared.settlement else { return };
    let mut phase = shared.phase.subscribe();
    let mut defender = Defender::new(settlement.chain.clone(), shared.key.clone());
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => return,
        }
        match defender.round(|receipt| trace(&shared, receipt)).await {
            Ok(played) => {
                for made in played {
                    tracing::info!(
                        dispute = made.dispute,
                        call = made.function,
                        gas = made.gas,
                        "a move in a dispute"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "disputes could not be followed; it is tried again"),
        }
    }
}

/// The trace of a receipt's answer; none where what it was made of is not kept any more.
async fn trace(shared: &Arc<Shared>, receipt: Bytes32) -> Option<Arc<Trace>> {
    match computed(shared, receipt).await {
        Ok(trace) => trace,
        Err(error) => {
            tracing::error!(%receipt, %error, "a disputed answer cannot be shown; the dispute is lost by silence");
            None
        }
    }
}

async fn computed(shared: &Arc<Shared>, receipt: Bytes32) -> Result<Option<Arc<Trace>>, String> {
    let found = shared.log.receipt(receipt).await.map_err(|error| error.to_string())?;
    let Some(entry) = found else { return Ok(None) };
    let AnyStatement::Receipt(signed) = &entry.statement else { return Ok(None) };
    let (Some(output), Some(request)) = (entry.output, entry.request) else {
        return Err("the answer is older than keep_outputs_hours".to_owned());
    };
    let model = signed.statement.model;
    let host = shared.hosts.iter().find(|host| host.offer.model == model);
    let named = |name: &str| shared.config.models.iter().find(|model| model.name == name);
    let Some(model) = host.and_then(|host| named(&host.offer.name)) else {
        return Err(format!("model {model} is not served any more"));
    };
    let path = model.artifact.clone();
    let work = move || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let artifact = Arc::new(Artifact::parse(files::map(&path)?)?);
        let prompt = Processor::from_artifact(&artifact)?.prepare(&request)?.generation.prompt;
        let trace = Trace::new(artifact, &prompt, &output.tokens, &request.sampling, &mut |_, _| {})?;
        Ok(Some(Arc::new(trace)))
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}
