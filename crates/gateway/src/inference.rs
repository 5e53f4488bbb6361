//! `/v2`: models from ONNX in the Open Inference Protocol, version 2, which KServe and Triton speak
//! (<https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol>), with Triton's binary tensors in requests
//! and its index of models.
//!
//! These models are small integer graphs, so the gateway runs them itself. What makes an answer believable to others is a proof,
//! which a request asks for with the parameter `assay_level`: a worker that offers the model makes it, and there is a receipt; where
//! none does, the gateway makes it.

use std::collections::HashMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use assay_proof::{AnyProof, Hide, Model};
use assay_receipt::{Bundle, Bytes32, GRAPH_ARITHMETIC, Member, Request};
use assay_verify::{CheckKind, Expected, Outcome, Report};
use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::access::Caller;
use crate::config::{Level, Moment, Policy};
use crate::error::ApiError;
use crate::gateway::{Gateway, random};
use crate::openai::collect;
use crate::serve::{self, Assay, Inference, Job};

/// What the ids of requests to integer graphs begin with.
pub(crate) const PREFIX: &str = "infer-";
/// The extension of an imported graph.
const EXTENSION: &str = "graph";
/// Where the JSON of a request with binary tensors ends.
pub(crate) const HEADER_LENGTH: &str = "inference-header-content-length";
/// The largest file of a model that is served.
const FILE_BYTES_MAX: u64 = 1 << 28;
/// Models of workers that are kept.
const FETCHED_MAX: usize = 16;
/// Longest wait for a worker to send a model.
const PATIENCE: Duration = Duration::from_secs(30);

/// An error as clients of this protocol read it: `{"error": "…"}`.
pub(crate) struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Refusal {
        Refusal(error.status, error.message)
    }
}

fn bad(reason: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, reason.into())
}

/// Checks an answer, and the proof that it is when the model is given.
pub(crate) fn check(bundle: &Bundle, expected: &Expected, model: Option<&Model>) -> Report {
    let proved = model.map(|model| assay_verify::check_proved(bundle, expected, model));
    match proved {
        Some(Ok(report)) => report,
        // The model is the request's, so only a worker that offers something else under its name comes here.
        Some(Err(error)) => {
            let mut report = assay_verify::check(bundle, expected);
            report.state = assay_verify::State::Rejected;
            let detail = error.to_string();
            report.checks.push(assay_verify::Check {
                name: CheckKind::Arithmetic,
                outcome: Outcome::Failed,
                detail,
            });
            report
        }
        None => assay_verify::check(bundle, expected),
    }
}

/// Whether everything in a receipt holds but the proof that it commits to: then its worker signed a lie.
pub(crate) fn is_caught(report: &Report) -> bool {
    report.has_failed(CheckKind::Proof) && report.failed().count() == 1
}

/// Models from ONNX: those of a folder, read when they are asked for and again when their file has changed, and those that
/// workers offer.
pub(crate) struct Graphs {
    folder: PathBuf,
    known: Mutex<HashMap<String, (SystemTime, Arc<Model>)>>,
    fetched: Mutex<HashMap<Bytes32, Arc<Model>>>,
    /// Proving uses every processor, so one request does it at a time.
    pub(crate) proving: tokio::sync::Semaphore,
}

impl Graphs {
    /// The models in this folder; none when it has no name.
    pub(crate) fn new(folder: PathBuf) -> Graphs {
        let proving = tokio::sync::Semaphore::new(1);
        Graphs { folder, known: Mutex::default(), fetched: Mutex::default(), proving }
    }

    /// The model of a name: the folder's, or else the one that workers offer.
    async fn open(gateway: &Arc<Gateway>, name: &str) -> Result<Arc<Model>, Refusal> {
        if let Some(model) = Graphs::in_folder(gateway, name).await? {
            return Ok(model);
        }
        let missing = || Refusal(StatusCode::NOT_FOUND, format!("there is no model \"{name}\" here"));
        let members = gateway.members()?;
        let id = gateway.proved_model(&members, name).ok_or_else(missing)?;
        let unreached = "no worker that offers this model sent its file; try again";
        let unreached = || Refusal(StatusCode::SERVICE_UNAVAILABLE, unreached.into());
        Graphs::fetch(gateway, &id).await.ok_or_else(unreached)
    }

    /// The model with this id, which had this name.
    pub(crate) async fn with_id(gateway: &Arc<Gateway>, name: &str, id: &Bytes32) -> Option<Arc<Model>> {
        match Graphs::in_folder(gateway, name).await {
            Ok(Some(model)) if model.id() == id.0 => Some(model),
            _ => Graphs::fetch(gateway, id).await,
        }
    }

    /// The model of a name in the folder. Reading and checking one takes up to seconds, so it is done beside the async threads.
    async fn in_folder(gateway: &Arc<Gateway>, name: &str) -> Result<Option<Arc<Model>>, Refusal> {
        let (gateway, name) = (Arc::clone(gateway), name.to_owned());
        let read = tokio::task::spawn_blocking(move || gateway.graphs.read(&name));
        read.await
            .map_err(|_| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the model could not be read".into()))?
    }

    fn read(&self, name: &str) -> Result<Option<Arc<Model>>, Refusal> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.folder.as_os_str().is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Ok(None);
        }
        let path = self.folder.join(format!("{name}.{EXTENSION}"));
        let Ok(meta) = std::fs::metadata(&path) else { return Ok(None) };
        let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if let Some((at, model)) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name)
            && *at == changed
        {
            return Ok(Some(Arc::clone(model)));
        }
        let broken = |reason: String| {
            Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the model \"{name}\" cannot be used: {reason}"),
            )
        };
        if meta.len() > FILE_BYTES_MAX {
            return Err(broken("its file is too large".into()));
        }
        let bytes = std::fs::read(&path).map_err(|error| broken(error.to_string()))?;
        let model = Arc::new(Model::from_bytes(&bytes).map_err(|error| broken(error.to_string()))?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.to_owned(), (changed, Arc::clone(&model)));
        Ok(Some(model))
    }

    /// The model with this id from a worker that offers it. None can lie about it, since the id is a hash of it.
    async fn fetch(gateway: &Arc<Gateway>, id: &Bytes32) -> Option<Arc<Model>> {
        let kept = || gateway.graphs.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept().get(id).cloned();
        if found.is_some() {
            return found;
        }
        let members = Arc::clone(&gateway.members.borrow());
        for member in members.members.iter().filter(|member| offers_graph(member, id)) {
            let Ok(client) = gateway.clients.of(member) else { continue };
            let Ok(Ok(bytes)) = timeout(PATIENCE, client.graph(id)).await else { continue };
            let read = tokio::task::spawn_blocking(move || Model::from_bytes(&bytes)).await;
            match read {
                Ok(Ok(model)) if model.id() == id.0 => {
                    let model = Arc::new(model);
                    let mut kept = kept();
                    if kept.len() >= FETCHED_MAX {
                        kept.clear();
                    }
                    kept.insert(*id, Arc::clone(&model));
                    return Some(model);
                }
                _ => {
                    tracing::warn!(worker = %member.worker, model = %id, "it sent another model than it offers")
                }
            }
        }
        None
    }

    /// The names of the models in the folder.
    fn names(folder: &FilePath) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        let graphs = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
        graphs.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    }
}

#[derive(Deserialize)]
struct Infer {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
}

/// `GET /v2`
pub(crate) async fn server() -> Response {
    let extensions = ["binary_tensor_data", "model_repository"];
    let body = json!({ "name": "assay", "version": env!("CARGO_PKG_VERSION"), "extensions": extensions });
    axum::Json(body).into_response()
}

/// `GET /v2/health/live` and `GET /v2/health/ready`
pub(crate) async fn healthy() -> Response {
    axum::Json(json!({})).into_response()
}

/// `POST /v2/repository/index`: the models, those of the folder and those of workers.
pub(crate) async fn index(State(gateway): State<Arc<Gateway>>) -> Result<Response, Refusal> {
    let folder = gateway.config.graphs_dir.clone();
    let listed = tokio::task::spawn_blocking(move || Graphs::names(&folder)).await;
    let mut names = listed.unwrap_or_default();
    let members = gateway.members()?;
    let offers = members.members.iter().flat_map(|member| &member.models);
    let graphs = offers.filter(|offer| offer.arithmetic == GRAPH_ARITHMETIC);
    names.extend(graphs.map(|offer| offer.name.clone()));
    names.sort_unstable();
    names.dedup();
    let rows: Vec<Value> =
        names.iter().map(|name| json!({ "name": name, "version": "1", "state": "READY" })).collect();
    Ok(axum::Json(rows).into_response())
}

/// `GET /v2/models/{model}/assay`: the file that proofs are checked with, a graph or a key.
pub(crate) async fn file(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let model = Graphs::open(&gateway, &name).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], model.to_bytes()).into_response())
}

/// `GET /v2/models/{model}`
pub(crate) async fn model(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let model = Graphs::open(&gateway, &name).await?;
    let graph = model.graph();
    let mut outputs =
        vec![json!({ "name": "output", "datatype": "FP64", "shape": [-1, graph.width(graph.output())] })];
    if !graph.interface().labels.is_empty() {
        outputs.push(json!({ "name": "label", "datatype": "BYTES", "shape": [-1] }));
    }
    let body = json!({
        "name": name, "versions": ["1"], "platform": "assay_graph",
        "inputs": [{ "name": "input", "datatype": "FP64", "shape": [-1, graph.numbers()] }],
        "outputs": outputs, "parameters": { "assay_model": hex(&model.id()) },
    });
    Ok(axum::Json(body).into_response())
}

/// `GET /v2/models/{model}/ready`
pub(crate) async fn ready(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    Graphs::open(&gateway, &name).await?;
    Ok(axum::Json(json!({ "name": name, "ready": true })).into_response())
}

/// `POST /v2/models/{model}/infer`
pub(crate) async fn infer(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let model = Graphs::open(&gateway, &name).await?;
    let graph = model.graph();
    let busy = || Refusal(StatusCode::TOO_MANY_REQUESTS, "the gateway is busy; try again later".into());
    let _place = Arc::clone(&gateway.request_slots).try_acquire_owned().map_err(|_| busy())?;
    let json_len = match headers.get(HEADER_LENGTH) {
        None => body.len(),
        Some(len) => len
            .to_str()
            .ok()
            .and_then(|len| len.parse().ok())
            .filter(|len| *len <= body.len())
            .ok_or_else(|| bad(format!("{HEADER_LENGTH} is no length within the body")))?,
    };
    let request: Infer = serde_json::from_slice(&body[..json_len])
        .map_err(|error| bad(format!("the request is not valid: {error}")))?;
    let proved = match request.parameters.get("assay_level").map(Value::as_str) {
        None => false,
        Some(Some("proved")) => true,
        Some(_) => return Err(bad("the parameter assay_level is \"proved\" or left out")),
    };
    let hides = match request.parameters.get("assay_hide").map(Value::as_str) {
        None => false,
        Some(Some("inputs")) if proved => true,
        Some(_) => {
            let why = "the parameter assay_hide is \"inputs\", beside assay_level \"proved\", or left out";
            return Err(bad(why));
        }
    };
    let [input] = request.inputs.as_slice() else {
        return Err(bad(format!(
            "{} inputs are sent, where the model has one, \"input\"",
            request.inputs.len()
        )));
    };
    let classes = !graph.interface().labels.is_empty();
    if let Some(other) =
        request.outputs.iter().find(|output| output.name != "output" && !(classes && output.name == "label"))
    {
        return Err(bad(format!("the model has no output \"{}\"", other.name)));
    }
    let numbers = numbers(input, &body[json_len..])?;
    let width = graph.numbers();
    let rows = input.shape.first().copied().unwrap_or(0);
    if input.name != "input" || rows == 0 || rows.checked_mul(width) != Some(numbers.len()) {
        return Err(bad(format!(
            "the model takes one tensor \"input\" of the shape [examples, {width}], and \"{}\" of {:?} is sent",
            input.name, input.shape
        )));
    }
    let inputs = graph.encode_inputs(&numbers).map_err(|error| bad(error.to_string()))?;
    let Done { outputs, proof, assay } = match proved {
        false => run(&model, inputs).await?,
        // What is hidden from others is not told to a worker either.
        true if hides => {
            let seed = random().map_err(ApiError::from)?;
            prove(&gateway, &model, inputs, Some(seed)).await?
        }
        true if is_offered(&gateway, &model)? => ask(&gateway, &caller, &name, &model, &inputs).await?,
        true => prove(&gateway, &model, inputs, None).await?,
    };

    let examples = || outputs.chunks_exact(outputs.len() / rows);
    let label = |example: &[i32]| graph.class(example).map(|class| graph.interface().labels[class].clone());
    let wanted =
        |name: &str| request.outputs.is_empty() || request.outputs.iter().any(|output| output.name == name);
    let mut tensors = Vec::new();
    if wanted("output") {
        tensors.push(json!({
            "name": "output", "datatype": "FP64", "shape": [rows, outputs.len() / rows],
            "data": graph.decode_outputs(&outputs),
        }));
    }
    if classes && wanted("label") {
        let labels: Vec<_> = examples().map(label).collect();
        tensors.push(json!({ "name": "label", "datatype": "BYTES", "shape": [rows], "data": labels }));
    }
    let mut parameters = json!({ "assay_model": hex(&model.id()) });
    if let Some(proof) = proof {
        parameters["assay_level"] = json!("proved");
        if hides {
            parameters["assay_hide"] = json!("inputs");
        }
        parameters["assay_proof_sha256"] = json!(hex(&Sha256::digest(&proof)));
        parameters["assay_proof"] = json!(base64::engine::general_purpose::STANDARD.encode(&proof));
    }
    if let Some(assay) = assay {
        for (name, value) in [
            ("request_id", json!(assay.request_id)),
            ("bundle_url", json!(assay.bundle_url)),
            ("receipt_hash", json!(assay.receipt_hash)),
            ("state", json!(assay.state)),
            ("worker", json!(assay.worker)),
            ("operator", json!(assay.operator)),
            ("price", json!(assay.price)),
        ] {
            parameters[format!("assay_{name}")] = value;
        }
    }
    let mut answer =
        json!({ "model_name": name, "model_version": "1", "parameters": parameters, "outputs": tensors });
    if let Some(id) = request.id {
        answer["id"] = json!(id);
    }
    Ok(axum::Json(answer).into_response())
}

/// Outputs, and what is known about them.
struct Done {
    outputs: Vec<i32>,
    proof: Option<Vec<u8>>,
    assay: Option<Assay>,
}

/// Whether a worker that may be asked offers to prove the model.
fn is_offered(gateway: &Gateway, model: &Model) -> Result<bool, Refusal> {
    let members = gateway.members()?;
    let id = Bytes32(model.id());
    let may = |member: &Member| !gateway.records.is_barred(&member.worker);
    Ok(members.members.iter().any(|member| offers_graph(member, &id) && may(member)))
}

fn offers_graph(member: &Member, model: &Bytes32) -> bool {
    member.offer(model).is_some_and(|offer| offer.arithmetic == GRAPH_ARITHMETIC)
}

/// Has a worker prove the outputs.
async fn ask(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    name: &str,
    model: &Arc<Model>,
    inputs: &[i32],
) -> Result<Done, Refusal> {
    let request = Request::inference(Bytes32(model.id()), inputs);
    request.validate().map_err(|error| bad(format!("these are too many inputs for one proof: {error}")))?;
    let examples = u32::try_from(model.examples(inputs)).map_err(|_| bad("these are too many examples"))?;
    let job = Job {
        prefix: PREFIX,
        model_name: name.to_owned(),
        request,
        policy: Policy { level: Level::Proved, moment: Moment::BeforeFirstToken },
        sample_ppm: None,
        key: caller.key.clone(),
        streams: false,
        inference: Some(Inference { model: Arc::clone(model), examples }),
        proof: None,
    };
    let running = serve::start(gateway, job).await.map_err(ApiError::from)?;
    let answer = collect(vec![running]).await?.pop();
    // It was checked before it became an answer.
    let proof = answer.as_ref().and_then(|answer| answer.output.proof_file());
    let read = proof.as_deref().and_then(|file| AnyProof::from_bytes(file).ok());
    match (answer, read) {
        (Some(answer), Some(read)) => {
            Ok(Done { outputs: read.outputs().to_vec(), proof, assay: Some(answer.assay) })
        }
        _ => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the answer is no proof".into())),
    }
}

/// Runs a model here.
async fn run(model: &Arc<Model>, inputs: Vec<i32>) -> Result<Done, Refusal> {
    let model = Arc::clone(model);
    beside(move || {
        let Model::Graph(graph) = &*model else {
            return Err(
                "the weights of this model are with its workers only: ask for assay_level \"proved\"".into(),
            );
        };
        let trace = graph.run(&inputs).map_err(|error| error.to_string())?;
        Ok(Done { outputs: trace.output().to_vec(), proof: None, assay: None })
    })
    .await
}

/// Proves the outputs here; with a seed, so that the proof tells nothing about the inputs but them.
async fn prove(
    gateway: &Gateway,
    model: &Arc<Model>,
    inputs: Vec<i32>,
    seed: Option<[u8; 32]>,
) -> Result<Done, Refusal> {
    let busy = || Refusal(StatusCode::TOO_MANY_REQUESTS, "the gateway is busy; try again later".into());
    let _turn = gateway.graphs.proving.acquire().await.map_err(|_| busy())?;
    let model = Arc::clone(model);
    beside(move || {
        let Model::Graph(graph) = &*model else {
            return Err("the weights of this model are with its workers only, and none is there".into());
        };
        let said = |error: assay_proof::Error| error.to_string();
        let (outputs, bytes) = match seed {
            None => {
                let proof = assay_proof::prove(graph, &inputs).map_err(said)?;
                let bytes = proof.to_bytes().map_err(said)?;
                (proof.outputs, bytes)
            }
            Some(seed) => {
                let proof = assay_proof::prove_hiding(graph, None, &inputs, Hide::Inputs, seed, &mut |_| ())
                    .map_err(said)?;
                let bytes = proof.to_bytes().map_err(said)?;
                (proof.outputs, bytes)
            }
        };
        Ok(Done { outputs, proof: Some(bytes), assay: None })
    })
    .await
}

/// Does what takes long beside the async threads.
async fn beside(work: impl FnOnce() -> Result<Done, String> + Send + 'static) -> Result<Done, Refusal> {
    let unfinished = |_| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the model did not finish".into());
    tokio::task::spawn_blocking(work).await.map_err(unfinished)?.map_err(bad)
}

/// The numbers of a tensor, from its list or from the bytes behind the JSON.
fn numbers(input: &Input, binary: &[u8]) -> Result<Vec<f64>, Refusal> {
    let integers = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"];
    if !integers.contains(&input.datatype.as_str())
        && !["FP32", "FP64", "BOOL"].contains(&input.datatype.as_str())
    {
        return Err(bad(format!("tensors of {} are not supported; send FP64", input.datatype)));
    }
    let Some(data) = &input.data else {
        let size = input.parameters.get("binary_data_size").and_then(Value::as_u64);
        if size != Some(binary.len() as u64) {
            return Err(bad(
                "the input has neither data nor as many bytes behind the JSON as binary_data_size says",
            ));
        }
        return from_bytes(&input.datatype, binary);
    };
    let mut numbers = Vec::new();
    let mut rest = vec![data];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(list) => rest.extend(list.iter().rev()),
            Value::Number(number) => numbers.extend(number.as_f64()),
            Value::Bool(bit) => numbers.push(f64::from(u8::from(*bit))),
            _ => return Err(bad("the data of the input hold something else than numbers")),
        }
    }
    Ok(numbers)
}

/// Little-endian numbers.
fn from_bytes(datatype: &str, bytes: &[u8]) -> Result<Vec<f64>, Refusal> {
    fn read<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Result<Vec<f64>, Refusal> {
        let (items, rest) = bytes.as_chunks();
        if rest.is_empty() {
            Ok(items.iter().map(|item| number(*item)).collect())
        } else {
            Err(bad("the binary tensor ends within a number"))
        }
    }
    match datatype {
        "FP64" => read(bytes, f64::from_le_bytes),
        "FP32" => read(bytes, |b| f32::from_le_bytes(b).into()),
        "INT8" => read(bytes, |b| i8::from_le_bytes(b).into()),
        "INT16" => read(bytes, |b| i16::from_le_bytes(b).into()),
        "INT32" => read(bytes, |b| i32::from_le_bytes(b).into()),
        "INT64" => read(bytes, |b| i64::from_le_bytes(b) as f64),
        "UINT16" => read(bytes, |b| u16::from_le_bytes(b).into()),
        "UINT32" => read(bytes, |b| u32::from_le_bytes(b).into()),
        "UINT64" => read(bytes, |b| u64::from_le_bytes(b) as f64),
        _ => read(bytes, |b: [u8; 1]| b[0].into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_tensors_are_little_endian() {
        let read = |datatype: &str, bytes: &[u8]| from_bytes(datatype, bytes).ok();
        assert_eq!(read("FP32", &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xbf]), Some(vec![1.0, -0.5]));
        assert_eq!(read("INT16", &[0xfe, 0xff]), Some(vec![-2.0]));
        assert_eq!(read("UINT8", &[200]), Some(vec![200.0]));
        assert_eq!(read("INT64", &[3, 0, 0, 0, 0, 0, 0, 0]), Some(vec![3.0]));
        assert_eq!(read("FP64", &[0; 7]), None);
    }
}
