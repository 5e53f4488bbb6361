//! An integer graph (a model from ONNX) that this worker runs itself: every answer is a proof.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_engine::request::OutputVerdict;
use assay_proof::{AnyProof, BATCH_MAX, Graph, Hide, Key};
use assay_receipt::{FailureCode, GRAPH_ARITHMETIC, GenerateCall, Offer, Output, Request};
use tokio::sync::Semaphore;

use crate::answer::{Answer, Trouble, beside, check_whole};
use crate::local::{ModelFile, Replayed};
use crate::metrics::ModelMetrics;
use crate::{Config, Error, Model, Secret, files};

/// Most inputs of a request: in decimal they still fit into a request.
const INPUTS_MAX: usize = 1 << 20;

/// A graph, and its turn to be proved: a proof uses every processor.
pub(crate) struct Prover {
    graph: Arc<Graph>,
    /// With a key the weights stay here, and who checks has the key only.
    model: Arc<assay_proof::Model>,
    /// Of a key that hides the weights.
    secret: Option<Arc<Secret>>,
    turn: Arc<Semaphore>,
    /// Longest time of an audit, waiting included.
    audit_limit: Duration,
}

impl Prover {
    /// Opens a graph, and its key if it is offered under one. Takes seconds: call it where blocking is allowed.
    pub(crate) fn open(
        model: &Model,
        config: &Config,
        metrics: &ModelMetrics,
    ) -> Result<(Prover, ModelFile), Error> {
        let refused = |fault: String| Error::Model { path: model.artifact.clone(), fault };
        let bytes = files::map(&model.artifact)?;
        let graph = Graph::decode((*bytes).as_ref()).map_err(|fault| refused(fault.to_string()))?;
        let mut secret = None;
        let public = match &model.key {
            None => assay_proof::Model::Graph(graph.clone()),
            Some(path) => {
                let key = Key::from_bytes((*files::map(path)?).as_ref())
                    .map_err(|fault| Error::Model { path: path.clone(), fault: fault.to_string() })?;
                if key.hiding_proofs().is_some() {
                    let found = Secret::open(&Secret::beside(path), &key)?;
                    found.check(&key, &graph)?;
                    metrics.hiding_proofs_left(found.left()?);
                    secret = Some(Arc::new(found));
                } else {
                    let own = Key::commit(&graph).map_err(|fault| refused(fault.to_string()))?;
                    if own.id() != key.id() {
                        return Err(refused(format!("{} is the key of another model", path.display())));
                    }
                }
                assay_proof::Model::Key(key)
            }
        };
        let opened = ModelFile {
            id: assay_receipt::Bytes32(public.id()),
            arithmetic: GRAPH_ARITHMETIC,
            manifest: public.to_bytes(),
            tokenizer: Vec::new(),
        };
        let prover = Prover {
            graph: Arc::new(graph),
            model: Arc::new(public),
            secret,
            turn: Arc::new(Semaphore::new(1)),
            audit_limit: Duration::from_millis(config.request_deadline_ms),
        };
        Ok((prover, opened))
    }

    /// Most examples of a request.
    pub(crate) fn examples_max(&self) -> usize {
        (INPUTS_MAX / self.graph.inputs().len()).clamp(1, BATCH_MAX)
    }

    /// Runs `work` beside the async threads, one at a time.
    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Graph, &assay_proof::Model) -> T + Send + 'static,
    ) -> Result<T, Trouble> {
        let (graph, model) = (self.graph.clone(), self.model.clone());
        let failed = "The prover failed on these inputs: report it.";
        beside(&self.turn, failed, move || work(&graph, &model)).await
    }

    /// Reads the inputs of a call and checks that they fit: the model's ranges, its batch, the cap.
    pub(crate) fn prepare(&self, call: &GenerateCall, offer: &Offer) -> Result<Vec<i32>, Trouble> {
        let bad = |message: String| Trouble::new(FailureCode::BadRequest, message);
        let inputs = call.request.inference_inputs().ok_or_else(|| {
            bad("This model takes a JSON array of integers as its prompt and nothing else: ask at /v2."
                .into())
        })?;
        let examples = self
            .graph
            .check_inputs(&inputs)
            .map_err(|fault| bad(format!("The request cannot be served: {fault}.")))?;
        if examples > self.examples_max() {
            let most = self.examples_max();
            let message = format!("{examples} examples are sent, where one proof covers {most}: send fewer.");
            return Err(Trouble::new(FailureCode::ContextExceeded, message));
        }
        let price = offer.price(examples as u32, 0); // at most 2^16
        check_whole(call, price, "proof")?;
        Ok(inputs)
    }

    /// Proves: one chunk, then the receipt.
    pub(crate) async fn answer(&self, answer: Answer, inputs: Vec<i32>) {
        answer.metrics.running.inc();
        let (secret, metrics) = (self.secret.clone(), answer.metrics.clone());
        let proving =
            self.in_turn(move |graph, model| prove(graph, model, secret.as_deref(), &inputs, &metrics));
        let proved = answer.within_limits(proving).await.and_then(|proved| proved);
        answer.metrics.running.dec();
        answer.whole(proved).await;
    }

    /// Checks another worker's proof, which is what a replay would show.
    pub(crate) async fn replay(&self, request: Request, output: Output) -> Replayed {
        let check = self.in_turn(move |_, model| {
            let begun = Instant::now();
            let verdict = match assay_verify::proof_of(&request, &output, model) {
                Ok(_) => OutputVerdict::Agrees,
                Err(_) => OutputVerdict::Differs { field: "proof", position: 0, expected: 0, claimed: 0 },
            };
            (verdict, begun.elapsed())
        });
        Replayed::within(self.audit_limit, check).await
    }
}

/// What a caller reads when a key's proofs are all made: no fault of the worker's, which serves other models still.
const USED_UP: &str =
    "This model's key hides its weights in a number of proofs, which are all made: it needs another key.";

/// A secret that cannot be used. Callers need not know where it lies.
fn unusable(error: Error) -> Trouble {
    tracing::error!(%error, "no proof can be made");
    Trouble::new(FailureCode::Internal, "The worker cannot use the secret of this model's key.")
}

/// The answer that is a proof for these inputs; one that hides the weights, when the model's key does.
fn prove(
    graph: &Graph,
    model: &assay_proof::Model,
    secret: Option<&Secret>,
    inputs: &[i32],
    metrics: &ModelMetrics,
) -> Result<Output, Trouble> {
    let proof = match (model, secret) {
        (assay_proof::Model::Graph(graph), _) => assay_proof::prove(graph, inputs).map(AnyProof::Open),
        (assay_proof::Model::Key(key), None) => {
            assay_proof::prove_with_key(graph, key, inputs, &mut |_| ()).map(AnyProof::Open)
        }
        (assay_proof::Model::Key(key), Some(secret)) => {
            // Before anything is used up.
            if model.hiding_security_bits(model.examples(inputs), false).is_err() {
                let message = "No proof covers so many examples: send fewer.";
                return Err(Trouble::new(FailureCode::ContextExceeded, message));
            }
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| {
                Trouble::new(FailureCode::Internal, format!("The system gives no random bytes: {error}."))
            })?;
            let (once, left) = secret.take().map_err(|error| match error {
                Error::SecretUsedUp { .. } => Trouble::new(FailureCode::BadRequest, USED_UP),
                error => unusable(error),
            })?;
            metrics.hiding_proofs_left(left);
            if left.is_power_of_two() || left == 0 {
                tracing::warn!(left, "proofs that the key of a model can still hide its weights in");
            }
            let hide = Hide::Weights(once);
            assay_proof::prove_hiding(graph, Some(key), inputs, hide, seed, &mut |_| ()).map(AnyProof::Hiding)
        }
    };
    let file = proof.and_then(|proof| proof.to_bytes()).map_err(|fault| {
        Trouble::new(FailureCode::BadRequest, format!("The inputs cannot be proved: {fault}."))
    })?;
    Ok(Output::proof(&file, model.examples(inputs) as u32))
}
