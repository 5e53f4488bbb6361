//! Integer graphs on disk: `assay model import model.onnx` and `assay infer`.

use std::path::{Path, PathBuf};

use assay_graph::{Graph, Task};
use clap::Args;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::{home, models, ui};

/// The extension of an imported graph.
pub(crate) const EXTENSION: &str = "graph";

/// The largest file of inputs or sample data.
const DATA_BYTES_MAX: u64 = 1 << 30;

#[derive(Args)]
pub(crate) struct InferArgs {
    /// A model that was imported from ONNX: name, id or path
    model: String,
    /// A JSON file with {"inputs": [[…], …]}, or with the rows alone
    #[arg(long)]
    input: PathBuf,
}

/// Imports an ONNX file under a name.
pub(crate) fn import(path: &Path, name: &str, calibrate: Option<&Path>, as_json: bool) -> Result<()> {
    let bytes = home::read_bounded(path, assay_onnx::FILE_BYTES_MAX as u64)?;
    let samples = calibrate.map_or(Ok(Vec::new()), read_rows)?;
    let spinner = ui::spinner("rounding the model to integers");
    let imported = assay_onnx::import(bytes, &samples);
    spinner.finish_and_clear();
    let imported = imported.map_err(|error| match (error, calibrate) {
        (assay_onnx::Error::Samples(reason), None) => Error::said(format!(
            "{reason}: give examples of its inputs, {{\"inputs\": [[…], …]}}, with --calibrate"
        )),
        (error, _) => Error::said(format!("{} was not imported: {error}", path.display())),
    })?;
    let (graph, fidelity) = (imported.graph, imported.fidelity);
    let target = models::folder()?.join(format!("{name}.{EXTENSION}"));
    home::write_atomically(&target, &graph.encode(), 0o644)?;
    let id = hex(&graph.id());
    if as_json {
        ui::print_json(&json!({
            "name": name, "id": id, "path": target, "inputs": graph.numbers(),
            "outputs": graph.width(graph.output()), "samples": fidelity.samples,
            "same_class": fidelity.same_class, "error_max": fidelity.error_max, "output_max": fidelity.output_max,
        }));
        return Ok(());
    }
    ui::say!("{} {id}\n{}", ui::bold(name), ui::dim(&target.display().to_string()));
    if fidelity.samples > 0 {
        let classes = if graph.interface().task == Task::Numbers {
            String::new()
        } else {
            format!("the same class in {} of {} examples; ", fidelity.same_class, fidelity.samples)
        };
        ui::say!(
            "integers against real numbers: {classes}scores differ by at most {:.3} (the largest is {:.3})",
            fidelity.error_max,
            fidelity.output_max
        );
    }
    Ok(())
}

/// Opens an imported graph by path, name or id.
pub(crate) fn open(model: &str) -> Result<Graph> {
    let path = Path::new(model);
    if path.extension().is_some_and(|extension| extension == EXTENSION) && path.is_file() {
        return read(path);
    }
    for path in paths()? {
        if models::name_of(&path) == model {
            return read(&path);
        }
    }
    if model.starts_with("0x") {
        for path in paths()? {
            // One that cannot be read is not the one that is asked for.
            if let Ok(graph) = read(&path)
                && hex(&graph.id()) == model
            {
                return Ok(graph);
            }
        }
    }
    Err(Error::said(format!(
        "no model \"{model}\" was imported from ONNX here; `assay model import MODEL.onnx` imports one"
    )))
}

/// The imported graphs, sorted by name.
pub(crate) fn paths() -> Result<Vec<PathBuf>> {
    let folder = models::folder()?;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .map_err(Error::file("read", &folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION))
        .collect();
    paths.sort();
    Ok(paths)
}

pub(crate) fn read(path: &Path) -> Result<Graph> {
    let bytes = home::read_bounded(path, assay_graph::limits::BYTES as u64)?;
    Graph::decode(&bytes).map_err(|error| Error::said(format!("{} cannot be used: {error}", path.display())))
}

/// The numbers of a JSON file, row after row, however deep they are nested.
pub(crate) fn read_rows(path: &Path) -> Result<Vec<f64>> {
    let bytes = home::read_bounded(path, DATA_BYTES_MAX)?;
    let said = |reason: &str| Error::said(format!("{} is no file of inputs: {reason}", path.display()));
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| said(&error.to_string()))?;
    let rows = value.get("inputs").unwrap_or(&value);
    let mut numbers = Vec::new();
    let mut rest = vec![rows];
    while let Some(value) = rest.pop() {
        match value {
            Value::Array(list) => rest.extend(list.iter().rev()),
            Value::Number(number) => {
                numbers.push(number.as_f64().ok_or_else(|| said("a number is too large"))?)
            }
            _ => return Err(said("it holds something else than lists of numbers")),
        }
    }
    Ok(numbers)
}

pub(crate) fn infer(args: &InferArgs, as_json: bool) -> Result<()> {
    let graph = open(&args.model)?;
    let said = |error: assay_graph::Error| Error::said(error.to_string());
    let inputs = graph.encode_inputs(&read_rows(&args.input)?).map_err(said)?;
    let trace = graph.run(&inputs).map_err(said)?;
    print_outputs(&graph, trace.output(), as_json.then(|| json!({ "model": hex(&graph.id()) })));
    Ok(())
}

/// The largest number of rows that a table shows.
pub(crate) const ROWS_SHOWN: usize = 20;

/// Prints outputs as a table, or with what else is to be said as JSON.
pub(crate) fn print_outputs(graph: &Graph, outputs: &[i32], as_json: Option<Value>) {
    let width = graph.width(graph.output());
    let examples = || outputs.chunks_exact(width);
    let label = |example: &[i32]| graph.class(example).map(|class| graph.interface().labels[class].clone());
    if let Some(mut object) = as_json {
        object["outputs"] = examples().map(|example| graph.decode_outputs(example)).collect();
        if graph.interface().task != Task::Numbers {
            object["labels"] = examples().map(label).collect();
        }
        ui::print_json(&object);
        return;
    }
    let rows: Vec<Vec<String>> = examples()
        .take(ROWS_SHOWN)
        .enumerate()
        .map(|(at, example)| {
            let scores: Vec<String> =
                graph.decode_outputs(example).iter().take(10).map(|score| format!("{score:.3}")).collect();
            let more = if width > 10 { " …" } else { "" };
            vec![at.to_string(), label(example).unwrap_or_default(), scores.join(" ") + more]
        })
        .collect();
    ui::say!("{}", ui::table(&["example", "class", "outputs"], &rows));
    if examples().len() > ROWS_SHOWN {
        ui::say!("{}", ui::dim(&format!("and {} more; --json has all", examples().len() - ROWS_SHOWN)));
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    format!("0x{}", models::hex(bytes))
}
