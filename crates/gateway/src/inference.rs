//! `/v2`: models from ONNX in the Open Inference Protocol, version 2, which KServe and Triton speak
//! (<https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol>), with Triton's binary tensors in requests.
//!
//! These models are small integer graphs, so the gateway runs them itself and asks no worker: there is no receipt. What makes an
//! answer believable to others is a proof, which a request asks for with the parameter `assay_level`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use assay_proof::Graph;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::gateway::Gateway;

/// The extension of an imported graph.
const EXTENSION: &str = "graph";
/// Where the JSON of a request with binary tensors ends.
pub(crate) const HEADER_LENGTH: &str = "inference-header-content-length";
/// The largest file of a model that is served.
const FILE_BYTES_MAX: u64 = 1 << 28;

/// An error as clients of this protocol read it: `{"error": "…"}`.
pub(crate) struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({ "error": self.1 }))).into_response()
    }
}

fn bad(reason: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, reason.into())
}

/// The models of a folder, read when they are asked for and again when their file has changed.
pub(crate) struct Graphs {
    folder: PathBuf,
    known: Mutex<HashMap<String, (SystemTime, Arc<Graph>)>>,
    /// Proving uses every processor, so one request does it at a time.
    pub(crate) proving: tokio::sync::Semaphore,
}

impl Graphs {
    /// The models in this folder; none when it has no name.
    pub(crate) fn new(folder: PathBuf) -> Graphs {
        Graphs { folder, known: Mutex::default(), proving: tokio::sync::Semaphore::new(1) }
    }

    fn open(&self, name: &str) -> Result<Arc<Graph>, Refusal> {
        let missing = || Refusal(StatusCode::NOT_FOUND, format!("there is no model \"{name}\" here"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.folder.as_os_str().is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(missing());
        }
        let path = self.folder.join(format!("{name}.{EXTENSION}"));
        let meta = std::fs::metadata(&path).map_err(|_| missing())?;
        let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, graph)) = known.get(name)
            && *at == changed
        {
            return Ok(Arc::clone(graph));
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
        let graph = Arc::new(Graph::decode(&bytes).map_err(|error| broken(error.to_string()))?);
        known.insert(name.to_owned(), (changed, Arc::clone(&graph)));
        Ok(graph)
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
    let body = json!({ "name": "assay", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"] });
    axum::Json(body).into_response()
}

/// `GET /v2/health/live` and `GET /v2/health/ready`
pub(crate) async fn healthy() -> Response {
    axum::Json(json!({})).into_response()
}

/// `GET /v2/models/{model}`
pub(crate) async fn model(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let graph = gateway.graphs.open(&name)?;
    let mut outputs =
        vec![json!({ "name": "output", "datatype": "FP64", "shape": [-1, graph.width(graph.output())] })];
    if !graph.interface().labels.is_empty() {
        outputs.push(json!({ "name": "label", "datatype": "BYTES", "shape": [-1] }));
    }
    let body = json!({
        "name": name, "versions": ["1"], "platform": "assay_graph",
        "inputs": [{ "name": "input", "datatype": "FP64", "shape": [-1, graph.inputs().len()] }],
        "outputs": outputs, "parameters": { "assay_model": hex(&graph.id()) },
    });
    Ok(axum::Json(body).into_response())
}

/// `GET /v2/models/{model}/ready`
pub(crate) async fn ready(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    gateway.graphs.open(&name)?;
    Ok(axum::Json(json!({ "name": name, "ready": true })).into_response())
}

/// `POST /v2/models/{model}/infer`
pub(crate) async fn infer(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refusal> {
    let graph = gateway.graphs.open(&name)?;
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
    let width = graph.inputs().len();
    let rows = input.shape.first().copied().unwrap_or(0);
    if input.name != "input" || rows == 0 || rows.checked_mul(width) != Some(numbers.len()) {
        return Err(bad(format!(
            "the model takes one tensor \"input\" of the shape [examples, {width}], and \"{}\" of {:?} is sent",
            input.name, input.shape
        )));
    }
    let _turn = match proved {
        true => Some(gateway.graphs.proving.acquire().await.map_err(|_| busy())?),
        false => None,
    };
    let running = Arc::clone(&graph);
    let work = tokio::task::spawn_blocking(move || -> Result<(Vec<i32>, Option<Vec<u8>>), String> {
        let inputs = running.encode_inputs(&numbers).map_err(|error| error.to_string())?;
        if !proved {
            let trace = running.run(&inputs).map_err(|error| error.to_string())?;
            return Ok((trace.output().to_vec(), None));
        }
        let proof = assay_proof::prove(&running, &inputs).map_err(|error| error.to_string())?;
        let bytes = proof.to_bytes().map_err(|error| error.to_string())?;
        Ok((proof.outputs, Some(bytes)))
    });
    let (outputs, proof) = work
        .await
        .map_err(|_| Refusal(StatusCode::INTERNAL_SERVER_ERROR, "the model did not finish".into()))?
        .map_err(bad)?;

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
    let mut parameters = json!({ "assay_model": hex(&graph.id()) });
    if let Some(proof) = proof {
        parameters["assay_level"] = json!("proved");
        parameters["assay_proof_sha256"] = json!(hex(&Sha256::digest(&proof)));
        parameters["assay_proof"] = json!(base64::engine::general_purpose::STANDARD.encode(&proof));
    }
    let mut answer =
        json!({ "model_name": name, "model_version": "1", "parameters": parameters, "outputs": tensors });
    if let Some(id) = request.id {
        answer["id"] = json!(id);
    }
    Ok(axum::Json(answer).into_response())
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
