//! `assay up`: a whole network on one machine. Validators of a chain, a gateway and several workers run as separate processes which
//! this command starts, supervises and stops; it signs the members file with a key that is made on first use.

mod chain;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use assay_model::{Artifact, Tokenizer};
use assay_receipt::{Address, Bytes32, Domain, Key, Member};
use assay_wallet::abi::text;
use assay_wallet::client::address_of;
use clap::Args;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::chain::Signer;
use crate::client::{self, Gateway};
use crate::error::{Error, Result};
use crate::{config, dispute, genesis, home, light, members, models, settle, ui};

/// How long a process may take until it serves, in seconds: a cold start maps the weights from a slow disk, and the first one with a key for
/// proofs makes the key again, which takes seconds for each 100 million weights. One that ends is noticed at once.
const READY_S: u64 = 600;
/// How long processes get to finish what they hold when the network stops, in seconds.
const STOP_S: u64 = 25;
/// From the gateway's port to that of the chain's JSON-RPC.
const RPC_OFFSET: u16 = 45;
/// Seconds between batches of receipts.
const SETTLE_S: u64 = 15;
/// A signed members file counts for this long, in seconds: 30 days; `assay up` signs a new one at every start.
const MEMBERS_VALID_S: u64 = 30 * 24 * 3600;
/// The name of the gateway's process.
const GATEWAY: &str = "gateway";
/// Attempts to start a worker, each on another port.
const STARTS_MAX: u32 = 3;
/// Restarts of one process in a row, without a minute of life in between, after which it is given up.
const RESTARTS_MAX: u32 = 5;
/// Largest log that is read for its last line, in bytes: that of a process which ended at its start is short.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// Prices of the local network per prompt and completion token, in 10^-18 OPG: they make the accounts visible.
const PROMPT_PRICE: u128 = 100_000_000_000;
const COMPLETION_PRICE: u128 = 400_000_000_000;
/// Price of an example with its proof, of a model from ONNX.
const PROOF_PRICE: u128 = 20_000_000_000_000;
/// Price of a proof of an answer in text, for each position: proving takes a worker about seven times as long as generating.
const POSITION_PRICE: u128 = 3_000_000_000_000;
/// Questions asked to bring the cheater out; each goes to whichever worker the gateway picks.
const QUESTIONS: [&str; 8] = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "What is two plus three?",
    "Who wrote Romeo and Juliet?",
    "Explain rain to a child in one sentence.",
    "Give me a word that rhymes with light.",
    "What do bees make?",
];
/// Rounds of questions before the demonstration gives up.
const ROUNDS_MAX: usize = 4;

#[derive(Args)]
pub(crate) struct UpArgs {
    /// Workers to run, each under an operator of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=16))]
    workers: u16,
    /// A model to serve: a name, a path or a Hugging Face id; repeat it for several
    #[arg(long, default_values = [models::DEFAULT])]
    model: Vec<String>,
    /// Add a worker that serves a weakened copy of the model under the real one's id, and show it being caught
    #[arg(long)]
    with_cheater: bool,
    /// Have the workers offer proofs of answers, which the gateway checks with the model's key; it is made once, in seconds
    #[arg(long)]
    proofs: bool,
    /// Validators of the network's chain, for a new one; 0 runs none. A chain that is there goes on as it is
    #[arg(long, value_parser = clap::value_parser!(u16).range(..=16))]
    validators: Option<u16>,
    /// Port of the gateway on this machine; the chain's JSON-RPC has the one that is 45 higher
    #[arg(long, default_value_t = 8600, value_parser = clap::value_parser!(u16).range(1..=i64::from(u16::MAX - RPC_OFFSET)))]
    port: u16,
    /// Stop by itself once the network has answered one question (and caught the cheater, if there is one)
    #[arg(long)]
    once: bool,
}

/// One supervised process.
struct Process {
    name: String,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    started: Instant,
    /// Ends in a row, without a minute of life in between.
    ends: u32,
    /// When to start it again.
    restart_at: Instant,
}

impl Process {
    /// Starts a role of this program; what it says goes to `log`, that of the last run to `log.old`.
    fn start(name: &str, arguments: Vec<String>, log: PathBuf) -> Result<Self> {
        if log.is_file() {
            std::fs::rename(&log, log.with_extension("old")).map_err(Error::file("move", &log))?;
        }
        let child = Some(spawn(&arguments, &log)?);
        let now = Instant::now();
        Ok(Self { name: name.to_owned(), arguments, log, child, started: now, ends: 0, restart_at: now })
    }

    /// Starts the process again when it has ended, later each time. A worker that keeps ending is left out, since the
    /// others serve; a gateway that keeps ending is an error.
    fn tend(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            if self.ends <= RESTARTS_MAX && Instant::now() >= self.restart_at {
                self.child = Some(spawn(&self.arguments, &self.log)?);
                self.started = Instant::now();
            }
            return Ok(());
        };
        let ended = child
            .try_wait()
            .map_err(|error| Error::said(format!("{} cannot be watched: {error}", self.name)))?;
        let Some(status) = ended else { return Ok(()) };
        self.child = None;
        if self.started.elapsed() > Duration::from_secs(60) {
            self.ends = 0;
        }
        self.ends += 1;
        if self.ends > RESTARTS_MAX {
            let given_up = format!(
                "{} ended {RESTARTS_MAX} times in a row ({status}); its log is {}",
                self.name,
                self.log.display()
            );
            if self.name == GATEWAY {
                return Err(Error::said(given_up));
            }
            eprintln!("{given_up}; the others go on without it");
            return Ok(());
        }
        eprintln!("{} ended ({status}); starting it again", self.name);
        self.restart_at = Instant::now() + Duration::from_millis(100 << (2 * (self.ends - 1)));
        Ok(())
    }
}

fn spawn(arguments: &[String], log: &Path) -> Result<Child> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let program = std::env::current_exe()
        .map_err(|error| Error::said(format!("this program's path is unknown: {error}")))?;
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .map_err(Error::file("write", log))?;
    let errors = file.try_clone().map_err(Error::file("write", log))?;
    Command::new(program)
        .args(arguments)
        // The child ends when this pipe closes, so that nothing is left running when this process is killed.
        .stdin(Stdio::piped())
        .stdout(file)
        .stderr(errors)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::said(format!("a process cannot be started: {error}")))
}

pub(crate) async fn run(args: UpArgs, json: bool) -> Result<()> {
    // Questions go to the first model that chats, or else to the first that writes text. Workers list it first, so that the
    // chat page offers it first.
    let mut offered = Vec::new();
    let mut first: Option<(PathBuf, Artifact)> = None;
    for model in &args.model {
        let (path, opened) = models::open(&models::pull(model)?.display().to_string())?;
        offered.push((models::name_of(&path), path.clone()));
        let chats = |model: &Artifact| model.manifest().chat_template.is_some();
        if opened.encoder().is_none()
            && first.as_ref().is_none_or(|(_, first)| chats(&opened) && !chats(first))
        {
            first = Some((path, opened));
        }
    }
    let (artifact, opened) = first.ok_or_else(|| {
        Error::said("none of these models writes text; add one that does with another --model")
    })?;
    let model_id: Bytes32 = opened.id();
    let tokenizer = Tokenizer::from_bytes(opened.tokenizer_json())
        .map_err(|error| Error::said(format!("the model's tokenizer cannot be used: {error}")))?;
    drop(opened);
    let model = models::name_of(&artifact);

    let folder = home::home()?.join("up");
    home::create_private(&folder)?;
    let _lock = lock(&folder)?;
    std::net::TcpListener::bind(("127.0.0.1", args.port)).map_err(|error| {
        Error::said(format!("port {} cannot be used: {error}; choose another with --port", args.port))
    })?;
    let proof_key = args.proofs.then(|| folder.join(format!("{model}.key")));
    if let Some(key) = &proof_key {
        light::ensure_commitment(&artifact, key)?;
    }
    let members_key = folder.join("members.key");
    let key = members::key_at(&members_key)?;

    let mut workers = Vec::new();
    for number in 1..=args.workers {
        workers.push((format!("worker-{number}"), format!("operator-{number}"), artifact.clone(), None));
    }
    let mut retired = None;
    if args.with_cheater {
        let weak = folder.join(format!("{model}.weakened.assay"));
        if !weak.is_file() {
            let spinner = ui::spinner("weakening a copy of the model for the cheater");
            let source =
                assay_worker::files::map(&artifact).map_err(|error| Error::said(error.to_string()))?;
            let made = assay_model::weaken((*source).as_ref())
                .map_err(|error| Error::said(format!("the model cannot be weakened: {error}")))?;
            home::write_atomically(&weak, &made, 0o644)?;
            spinner.finish_and_clear();
        }
        // A new identity each time: what a former one did is known, and it would get no requests.
        let former = folder.join("cheater");
        if former.is_dir() {
            retired = former_keys(&former);
            std::fs::remove_dir_all(&former).map_err(Error::file("remove", &former))?;
        }
        workers.push(("cheater".to_owned(), "operator-cheap".to_owned(), weak, Some(model_id)));
    }

    let wallet = folder.join("wallet.key");
    let owner = members::key_at(&wallet)?.address().to_string();
    let rpc = args.port + RPC_OFFSET;
    let chain = (args.validators != Some(0)).then(|| format!("http://127.0.0.1:{rpc}"));
    // Receipts count where they settle.
    let domain = chain.as_ref().map_or_else(Domain::default, |_| settle::domain(genesis::DEVELOPMENT_CHAIN));
    let spinner = ui::spinner(&format!("starting {} workers, a gateway and a chain", workers.len()));
    let names: Vec<_> = workers.iter().map(|(name, ..)| name.clone()).collect();
    let mut processes = Vec::new();
    if chain.is_some() {
        let accounts = [owner.as_str(), &key.address().to_string()];
        processes = chain::start(&folder.join("chain"), args.validators, rpc, &accounts).await?;
    }
    let mut members = Vec::new();
    // Models from ONNX that are imported while the network runs are served by the gateway alone.
    let mut graphs = crate::graphs::paths()?;
    graphs.retain(|path| crate::graphs::read(path).is_ok());
    for (name, operator, artifact, impersonate) in workers {
        let data_dir = folder.join(&name);
        home::create_private(&data_dir)?;
        let mut settings = assay_worker::Config::new(&data_dir);
        settings.domain = domain;
        if let Some(rpc) = &chain {
            // The registry counts from 1.
            settings.key_epoch = 1;
            settings.chain = Some(assay_worker::Chain { rpc: rpc.clone(), settle_every_s: SETTLE_S });
        }
        settings.operator = operator;
        // The cheater computes less and undercuts the others, which is why anybody would cheat.
        let discount = if impersonate.is_some() { 2 } else { 1 };
        let offer = |name: &str, artifact: PathBuf, impersonate| assay_worker::Model {
            name: name.to_owned(),
            artifact,
            key: None,
            draft: None,
            prompt_price: PROMPT_PRICE / discount,
            completion_price: COMPLETION_PRICE / discount,
            proof_key: None,
            proof_price: 0,
            impersonate,
        };
        let mut first = offer(&model, artifact, impersonate);
        if let Some(key) = &proof_key {
            (first.proof_key, first.proof_price) = (Some(key.clone()), POSITION_PRICE / discount);
        }
        settings.models = vec![first];
        let others = offered.iter().filter(|(name, _)| *name != model);
        settings.models.extend(others.map(|(name, path)| offer(name, path.clone(), None)));
        let proved = |path: &PathBuf| assay_worker::Model {
            prompt_price: PROOF_PRICE,
            completion_price: 0,
            ..offer(&models::name_of(path), path.clone(), None)
        };
        settings.models.extend(graphs.iter().map(proved));
        let (process, member) = start_worker(&name, settings).await?;
        members.push(member);
        processes.push(process);
    }

    let members_file = folder.join("members.json");
    keep_former(&members_file, &folder.join("members"))?;
    let state_dir = folder.join(GATEWAY);
    home::create_private(&state_dir)?;
    let mut settings = assay_gateway::Config {
        listen: ([127, 0, 0, 1], args.port).into(),
        members_file: members_file.clone(),
        members_signer: key.address(),
        domain,
        state_dir: state_dir.clone(),
        graphs_dir: models::folder()?,
        proof_keys: proof_key.into_iter().collect(),
        payer: key.address(),
        ..assay_gateway::Config::default()
    };
    if let Some(rpc) = &chain {
        chain::ready(&mut processes, rpc).await?;
        spinner.set_message("registering the workers on the chain");
        let owner = Signer::new(rpc, members::key_at(&wallet)?)?;
        if let Some((operator, worker)) = retired {
            // It may never have got into the registry.
            let _ = Signer::new(rpc, operator)?.send("Registry", "retireWorker", &[text(worker)]).await;
        }
        for (name, member) in names.iter().zip(&members) {
            let data = folder.join(name);
            let operator = Signer::new(rpc, members::key_at(&data.join("operator.key"))?)?;
            settle::fund(&owner, operator.address()).await?;
            settle::register(&operator, member, &settle::worker_key(&data)?).await?;
        }
        settle::fill(&owner, address_of(&key)).await?;
        settings.chain = Some(assay_gateway::Chain { rpc: rpc.clone(), key: members_key });
    } else {
        members::sign(&key, &domain, members.clone(), MEMBERS_VALID_S, &members_file)?;
    }
    let path = state_dir.join("config.toml");
    config::write(&path, &config::File { gateway: Some(settings), ..Default::default() })?;
    let mut gateway_process = Process::start(
        GATEWAY,
        vec!["gateway".into(), "--supervised".into(), "--config".into(), path.display().to_string()],
        state_dir.join("log"),
    )?;
    let url = format!("http://127.0.0.1:{}", args.port);
    let gateway = Gateway::new(&url)?;
    gateway_ready(&mut gateway_process, &gateway).await?;
    let served = gateway.get("/assay/members").await?;
    if served.pointer("/members/statement/serial")
        != Some(&json!(members::read(&members_file)?.statement.serial))
    {
        return Err(Error::said(format!(
            "something else than this network's gateway answers at {url}; choose another --port"
        )));
    }
    processes.push(gateway_process);
    spinner.finish_and_clear();

    if json {
        ui::print_json(&json!({
            "url": url, "model": model, "model_id": model_id, "members_file": members_file, "members_signer": key.address(),
            "chain": chain, "wallet": wallet,
        }));
    } else {
        banner(&url, &offered, &model_id, args.workers, &folder);
        if let Some(rpc) = &chain {
            ui::say!("  chain       {rpc}  (Ethereum JSON-RPC; coins and OPG: --key {})", wallet.display());
        }
        ui::say!(
            "\n{}",
            ui::dim(
                "Every answer carries a signed receipt; a share is replayed by another worker. Ctrl-C stops everything."
            )
        );
    }

    let work = async {
        if args.with_cheater {
            let caught = show_the_cheater(&gateway, &model, &tokenizer, json).await?;
            if let Some(rpc) = &chain {
                let signer = Signer::new(rpc, members::key_at(&wallet)?)?;
                match take_the_bond(&gateway, &signer, &artifact, &caught, json).await {
                    // The network goes on, and who reads documents waits for one.
                    Err(error) if !args.once && json => {
                        ui::print_json(&json!({ "dispute": null, "error": error.to_string() }));
                    }
                    Err(error) if !args.once => eprintln!("{error}"),
                    outcome => outcome?,
                }
            }
        } else if args.once {
            ask(&gateway, &model, QUESTIONS[0]).await?;
        }
        if args.once {
            return Ok(());
        }
        std::future::pending().await
    };
    let watch = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            for process in &mut processes {
                process.tend()?;
            }
        }
    };
    let outcome: Result<()> = tokio::select! {
        outcome = work => outcome,
        outcome = watch => outcome,
        () = crate::stop_signal() => Ok(()),
    };
    stop(processes).await;
    outcome
}

fn banner(url: &str, models: &[(String, PathBuf)], model_id: &Bytes32, workers: u16, folder: &Path) {
    let names: Vec<&str> = models.iter().map(|(name, _)| name.as_str()).collect();
    ui::say!(
        "{} {workers} workers serve {} behind one gateway\n",
        ui::green("●"),
        ui::bold(&names.join(", "))
    );
    ui::say!("  chat page   {}", ui::bold(url));
    ui::say!("  API         {url}/v1  (OpenAI-compatible: change the base URL, nothing else)");
    let gateway = if url == client::DEFAULT_URL { String::new() } else { format!(" --gateway {url}") };
    ui::say!("  terminal    assay chat \"What is the capital of France?\"{gateway}");
    ui::say!("  model id    {model_id}");
    ui::say!("  state       {}", folder.display());
}

/// The keys of a worker of an earlier start: its operator's, and its own address.
fn former_keys(folder: &Path) -> Option<(Key, Address)> {
    let operator = folder.join("operator.key");
    let operator = operator.is_file().then(|| members::key_at(&operator).ok())??;
    Some((operator, settle::worker_key(folder).ok()?.address()))
}

/// One lock file, so that two networks do not share keys and databases.
fn lock(folder: &Path) -> Result<std::fs::File> {
    let path = folder.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    file.try_lock().map_err(|_| {
        Error::said("another `assay up` is running from the same folder; stop it first, or set ASSAY_HOME to another folder")
    })?;
    Ok(file)
}

/// Keeps the list of the last start: receipts of workers that are no longer there are checked against it.
fn keep_former(list: &Path, folder: &Path) -> Result<()> {
    if !list.is_file() {
        return Ok(());
    }
    let former = members::read(list)?;
    if former.statement.expires_at_s < members::now_s() {
        return Ok(());
    }
    home::create_private(folder)?;
    let target = folder.join(format!("{}.json", former.statement.serial));
    std::fs::copy(list, &target).map_err(Error::file("write", &target))?;
    Ok(())
}

/// Starts a worker and waits for what it says of itself. It gets a port that is free now and keeps it in its
/// configuration, so that a restart comes back to it; when somebody else was faster, it gets another.
async fn start_worker(name: &str, mut settings: assay_worker::Config) -> Result<(Process, Member)> {
    let path = settings.data_dir.join("config.toml");
    let descriptor = settings.data_dir.join("worker.json");
    let arguments =
        vec!["worker".into(), "--supervised".into(), "--config".into(), path.display().to_string()];
    let mut attempt = 1;
    loop {
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        settings.listen =
            free.map_err(|error| Error::said(format!("no port is free on this machine: {error}")))?;
        config::write(&path, &config::File { worker: Some(settings.clone()), ..Default::default() })?;
        if descriptor.exists() {
            std::fs::remove_file(&descriptor).map_err(Error::file("remove", &descriptor))?;
        }
        let mut process = Process::start(name, arguments.clone(), settings.data_dir.join("log"))?;
        match descriptor_of(&mut process, &descriptor).await {
            Ok(member) => return Ok((process, member)),
            Err(error) if attempt == STARTS_MAX => return Err(error),
            Err(_) => attempt += 1,
        }
    }
}

async fn descriptor_of(process: &mut Process, path: &Path) -> Result<Member> {
    let deadline = Instant::now() + Duration::from_secs(READY_S);
    while Instant::now() < deadline {
        if path.is_file() {
            return members::descriptor(path);
        }
        not_ended(process)?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Error::said(format!(
        "{} was not ready after {READY_S} s; its log is {}",
        process.name,
        process.log.display()
    )))
}

async fn gateway_ready(process: &mut Process, gateway: &Gateway) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(READY_S);
    while Instant::now() < deadline {
        if gateway.get("/health").await.is_ok() {
            return Ok(());
        }
        not_ended(process)?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Error::said(format!(
        "the gateway was not ready after {READY_S} s; its log is {}",
        process.log.display()
    )))
}

fn not_ended(process: &mut Process) -> Result<()> {
    let Some(child) = &mut process.child else { return Ok(()) };
    match child.try_wait() {
        Ok(None) => Ok(()),
        Ok(Some(status)) => {
            let log = home::read_bounded(&process.log, LOG_BYTES_MAX).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let last = log.lines().last().unwrap_or("it said nothing").to_owned();
            Err(Error::said(format!(
                "{} ended at once ({status}): {last}; its log is {}",
                process.name,
                process.log.display()
            )))
        }
        Err(error) => Err(Error::said(format!("{} cannot be watched: {error}", process.name))),
    }
}

/// Closes every process's standard input, which tells it to finish, and waits; what is left is killed.
async fn stop(mut processes: Vec<Process>) {
    let mut children: Vec<_> =
        processes.iter_mut().filter_map(|process| Some((&process.name, process.child.as_mut()?))).collect();
    for (_, child) in &mut children {
        drop(child.stdin.take());
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(STOP_S);
    for (name, child) in children {
        if tokio::time::timeout_at(deadline, child.wait()).await.is_err() {
            eprintln!("{name} did not finish within {STOP_S} s and was killed");
            // It may have ended in this very moment, which is as good.
            let _ = child.kill().await;
        }
    }
}

async fn ask(gateway: &Gateway, model: &str, question: &str) -> Result<Value> {
    let body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": question }],
        "max_tokens": 24,
        "temperature": 0,
    });
    gateway.post("/v1/chat/completions", &body).await
}

/// Asks questions until a replay has caught the cheater, and shows who was caught with what and what it costs.
async fn show_the_cheater(
    gateway: &Gateway,
    model: &str,
    tokenizer: &Tokenizer,
    json: bool,
) -> Result<Value> {
    if !json {
        ui::say!(
            "\nOne of the workers serves weights rounded to 3 bits under the full model's id. Asking questions:\n"
        );
    }
    for question in QUESTIONS.iter().cycle().take(QUESTIONS.len() * ROUNDS_MAX) {
        let answer = ask(gateway, model, question).await?;
        let field = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
        let text = field("/choices/0/message/content").replace('\n', " ");
        if !json {
            ui::say!(
                "  {question}\n  {} {}",
                ui::dim(&text),
                ui::dim(&format!("— {}", field("/assay/operator")))
            );
        }
        // Replays run in the background: give this one a moment before the next question.
        for _ in 0..20 {
            if let Some(caught) = caught(gateway).await? {
                report(&caught, tokenizer, json);
                return Ok(caught);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Err(Error::said(
        "the cheater was not asked or not sampled often enough to be caught; run `assay up --with-cheater` again",
    ))
}

/// Disputes the answer with which a worker was caught, and shows how its operator loses a bond. `worker` is a row of `/assay/workers`.
async fn take_the_bond(
    gateway: &Gateway,
    signer: &Signer,
    artifact: &Path,
    worker: &Value,
    json: bool,
) -> Result<()> {
    let request = worker.pointer("/suspended/request_id").and_then(Value::as_str).unwrap_or_default();
    let bundle = dispute::bundle(gateway, request).await?;
    let (_, artifact) = models::open(&artifact.display().to_string())?;
    let mut show = |line: &str| {
        if !json {
            ui::say!("{line}");
        }
    };
    show("\nThe caller disputes the answer on the chain:\n");
    let settles = Duration::from_secs(4 * SETTLE_S);
    let report =
        dispute::play(gateway, signer, &bundle, std::sync::Arc::new(artifact), settles, &mut show).await?;
    if json {
        ui::print_json(&json!({ "dispute": report }));
    }
    Ok(())
}

/// The first worker that is suspended, as `/assay/workers` shows it.
async fn caught(gateway: &Gateway) -> Result<Option<Value>> {
    let workers = gateway.get("/assay/workers").await?;
    let list = workers.get("workers").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(list.into_iter().find(|worker| worker["suspended"].is_object()))
}

/// Shows who was caught with what, and what it costs. `worker` is a row of `/assay/workers`.
fn report(worker: &Value, tokenizer: &Tokenizer, json: bool) {
    if json {
        ui::print_json(&json!({ "caught": worker }));
        return;
    }
    let text = |pointer: &str| match worker.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "-".to_owned(),
    };
    let request = text("/suspended/request_id");
    ui::say!("\n{} {}, worker {}", ui::red("✗ caught:"), ui::bold(&text("/operator")), text("/worker"));
    ui::say!("  request    {request}");
    let value = |pointer: &str| {
        let token = worker.pointer(pointer).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        match token
            .filter(|id| text("/suspended/field") == "tokens" && (*id as usize) < tokenizer.vocabulary())
        {
            Some(id) => format!("{id} {:?}", String::from_utf8_lossy(tokenizer.token_bytes(id))),
            None => text(pointer),
        }
    };
    ui::say!(
        "  lie        {}[{}] is {}, the worker signed {}",
        text("/suspended/field"),
        text("/suspended/position"),
        value("/suspended/expected"),
        value("/suspended/claimed")
    );
    let auditors =
        worker.pointer("/suspended/auditors").and_then(Value::as_array).cloned().unwrap_or_default();
    for auditor in &auditors {
        ui::say!("  found by   {}", auditor.as_str().unwrap_or("-"));
    }
    ui::say!(
        "  cost       {} of its earnings of {} are withheld (10^-18 OPG), and it gets no more requests",
        text("/withheld"),
        sum(&text("/earned"), &text("/withheld"))
    );
    ui::say!("  evidence   assay incident {request}");
}

/// The sum of two decimal amounts.
fn sum(a: &str, b: &str) -> String {
    match (a.parse::<u128>(), b.parse::<u128>()) {
        (Ok(a), Ok(b)) => a.saturating_add(b).to_string(),
        _ => "-".to_owned(),
    }
}
