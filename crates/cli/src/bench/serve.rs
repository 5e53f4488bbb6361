//! `assay bench serve`: many callers at once, beside llama.cpp's server on the same weights.
//!
//! Assay is measured as its callers meet it: HTTP to a gateway, which asks a worker over TLS and checks every signature.
//! Both servers get the same prompts, lengths and seeds through the same client, in turn.

use std::path::Path;
use std::time::{Duration, Instant};

use assay_receipt::Member;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use super::{python, quality};
use crate::client::Gateway;
use crate::error::{Error, Result};
use crate::{home, members, models, ui};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Threads that compute, on either side
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Requests of each measurement
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u16).range(1..))]
    requests: u16,
    /// Callers that each send their next request when they have the answer
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    callers: u16,
    /// Requests a second that arrive by themselves, whether or not the answers keep up
    #[arg(long, default_value_t = 0.5)]
    rate: f64,
    /// Most tokens of a prompt; each has between a quarter and all of them
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(4..=1024))]
    prompt: u16,
    /// Tokens of an answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=512))]
    answer: u16,
    /// What prompts, seeds and arrivals are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How requests arrive.
#[derive(Clone, Copy)]
enum Load {
    /// At these times after the start, in seconds.
    Open,
    Closed,
}

struct Server {
    name: String,
    gateway: Gateway,
    /// What a request says beside prompt, length and seed.
    extra: Value,
}

struct Request {
    prompt: Vec<u32>,
    seed: u64,
    arrives: Duration,
}

/// What one measurement has brought, in seconds.
#[derive(Default)]
struct Found {
    total: f64,
    tokens: u64,
    first: Vec<f64>,
    between: Vec<f64>,
}

pub(crate) async fn run(args: &Args, json: bool) -> Result<()> {
    if !(args.rate > 0.0 && args.rate.is_finite()) {
        return Err(Error::said("--rate must be more than 0"));
    }
    let artifact = models::pull(models::DEFAULT)?;
    let opened = models::open(&artifact.display().to_string())?.1;
    let text = quality::default_tokens(&opened)?;
    let ends: serde_json::Map<String, Value> =
        opened.manifest().tokens.end.iter().map(|token| (token.to_string(), (-100).into())).collect();
    drop(opened);

    let spinner = ui::spinner("starting both servers");
    let folder = python::folder(&python::LANGUAGE)?;
    let context = usize::from(args.prompt + args.answer) + 64;
    let file = python::requantised(&folder)?;
    let mut peer = python::Script::start(&folder, "llama_server.py", usize::from(args.threads))?;
    let request =
        json!({ "model": file, "callers": args.callers, "context": context, "threads": args.threads });
    let url = peer.ask(&request)?["url"].as_str().unwrap_or_default().to_owned();
    let own = folder.join(format!("serve-{}", std::process::id()));
    let network = Network::start(&own, &artifact, args).await?;
    let servers = [
        Server {
            name: "Assay".to_owned(),
            gateway: Gateway::new(&network.url)?,
            extra: json!({ "model": models::DEFAULT, "logit_bias": ends }),
        },
        Server {
            name: "llama.cpp, Q8_0".to_owned(),
            gateway: Gateway::new(&url)?,
            extra: json!({ "model": "default", "ignore_eos": true }),
        },
    ];
    spinner.finish_and_clear();

    let bar = ui::bar(2 * servers.len() as u64, "measuring", false);
    let mut rows = Vec::new();
    for (number, load) in [Load::Closed, Load::Open].into_iter().enumerate() {
        // Other prompts each time: servers remember the last ones.
        let warm_up = requests(args, &text, 2 * number as u64);
        let requests = requests(args, &text, 2 * number as u64 + 1);
        for server in &servers {
            // One request outside the measurement: weights are read from the disk.
            measure(server, &warm_up[..1], args, Load::Closed).await?;
            rows.push((load, server.name.clone(), measure(server, &requests, args, load).await?));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    drop(peer);
    network.stop().await;
    let _ = std::fs::remove_dir_all(&own);
    print(args, json, &rows);
    Ok(())
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides.max(1)
    }

    /// In (0, 1].
    fn fraction(&mut self) -> f64 {
        (self.roll(1 << 30) + 1) as f64 / f64::from(1 << 30)
    }
}

/// Pieces of a text, with arrivals whose distances are exponentially distributed (a Poisson process).
fn requests(args: &Args, text: &[u32], measurement: u64) -> Vec<Request> {
    let mut dice = Dice(args.seed.wrapping_mul(4).wrapping_add(measurement));
    let mut arrives = 0.0;
    let most = usize::from(args.prompt).min(text.len());
    (0..args.requests)
        .map(|_| {
            let length = most / 4 + dice.roll(most - most / 4 + 1);
            let start = dice.roll(text.len() - length + 1);
            arrives += -dice.fraction().ln() / args.rate;
            Request {
                prompt: text[start..start + length].to_vec(),
                seed: dice.roll(1 << 30) as u64,
                arrives: Duration::from_secs_f64(arrives),
            }
        })
        .collect()
}

async fn measure(server: &Server, requests: &[Request], args: &Args, load: Load) -> Result<Found> {
    let started = Instant::now();
    let mut found = Found::default();
    let mut running = JoinSet::new();
    for request in requests {
        match load {
            Load::Open => tokio::time::sleep_until((started + request.arrives).into()).await,
            Load::Closed if running.len() == usize::from(args.callers) => {
                take(&mut running, &mut found).await?
            }
            Load::Closed => {}
        }
        let mut body = server.extra.clone();
        body["prompt"] = json!(request.prompt);
        body["max_tokens"] = args.answer.into();
        body["seed"] = request.seed.into();
        body["temperature"] = 0.8.into();
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
        let gateway = server.gateway.clone();
        running.spawn(async move { ask(&gateway, &body).await });
    }
    while !running.is_empty() {
        take(&mut running, &mut found).await?;
    }
    found.total = started.elapsed().as_secs_f64();
    Ok(found)
}

/// Waits for one of the answers.
async fn take(running: &mut JoinSet<Result<Found>>, found: &mut Found) -> Result<()> {
    if let Some(one) = running.join_next().await {
        let one = one.map_err(|error| Error::said(format!("a caller failed: {error}")))??;
        found.tokens += one.tokens;
        found.first.extend(one.first);
        found.between.extend(one.between);
    }
    Ok(())
}

/// One request, as its caller sees it.
async fn ask(gateway: &Gateway, body: &Value) -> Result<Found> {
    let mut found = Found::default();
    let mut last = Instant::now();
    gateway
        .stream("/v1/completions", body, &mut |event| {
            if let Some(tokens) = event.pointer("/usage/completion_tokens").and_then(Value::as_u64) {
                found.tokens = tokens;
            }
            let text = event.pointer("/choices/0/text").and_then(Value::as_str).unwrap_or_default();
            if text.is_empty() {
                return;
            }
            let seconds = last.elapsed().as_secs_f64();
            last = Instant::now();
            if found.first.is_empty() { found.first.push(seconds) } else { found.between.push(seconds) }
        })
        .await?;
    Ok(found)
}

/// A gateway and a worker in this process.
struct Network {
    url: String,
    stop: [oneshot::Sender<()>; 2],
    tasks: (JoinHandle<()>, JoinHandle<()>),
}

impl Network {
    async fn start(folder: &Path, artifact: &Path, args: &Args) -> Result<Network> {
        let said =
            |error: &dyn std::fmt::Display| Error::said(format!("the server cannot be started: {error}"));
        let (data_dir, state_dir) = (folder.join("worker"), folder.join("gateway"));
        home::create_private(&data_dir)?;
        home::create_private(&state_dir)?;
        let mut config = assay_worker::Config::new(&data_dir);
        config.threads = usize::from(args.threads);
        config.max_batch = usize::from(args.callers);
        config.queue = usize::from(args.requests);
        config.models = vec![assay_worker::Model {
            name: models::DEFAULT.to_owned(),
            artifact: artifact.to_owned(),
            key: None,
            draft: None,
            prompt_price: 0,
            completion_price: 0,
            proof_key: None,
            proof_price: 0,
            impersonate: None,
        }];
        let (ready, is_ready) = oneshot::channel();
        let (stop_worker, stopped) = oneshot::channel::<()>();
        let worker = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            if let Err(error) = Box::pin(assay_worker::run(config, ready, stopped)).await {
                eprintln!("the worker ended: {error}");
            }
        });
        let member: Member = is_ready.await.map_err(|_| said(&"the worker ended at its start"))?.member;

        let key = members::key_at(&folder.join("members.key"))?;
        let members_file = folder.join("members.json");
        members::sign(&key, &assay_receipt::Domain::default(), vec![member], 24 * 3600, &members_file)?;
        let mut config = assay_gateway::Config {
            listen: ([127, 0, 0, 1], 0).into(),
            members_file,
            members_signer: key.address(),
            state_dir,
            ..assay_gateway::Config::default()
        };
        // There is nobody to replay answers.
        (config.sampling.share_ppm, config.sampling.share_new_ppm) = (0, 0);
        let (stop_gateway, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let gateway = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            let ready = |address| {
                let _ = ready.send(address); // who waited has given up
            };
            if let Err(error) = Box::pin(assay_gateway::run(config, stopped, ready)).await {
                eprintln!("the gateway ended: {error}");
            }
        });
        let address = is_ready.await.map_err(|_| said(&"the gateway ended at its start"))?;
        let url = format!("http://{address}");
        Ok(Network { url, stop: [stop_gateway, stop_worker], tasks: (gateway, worker) })
    }

    async fn stop(self) {
        let [gateway, worker] = self.stop;
        drop(gateway);
        let _ = self.tasks.0.await;
        drop(worker);
        let _ = self.tasks.1.await;
    }
}

/// The value below which `share` of the sorted values lie.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

const SHARES: [f64; 3] = [0.5, 0.95, 0.99];

fn print(args: &Args, json: bool, rows: &[(Load, String, Found)]) {
    let machine = super::machine();
    let rows: Vec<_> = rows
        .iter()
        .map(|(load, name, found)| {
            let load = match load {
                Load::Closed => format!("{} callers", args.callers),
                Load::Open => format!("{} arrivals/s", args.rate),
            };
            let percentiles = |values: &[f64]| {
                let mut sorted = values.to_vec();
                sorted.sort_by(f64::total_cmp);
                SHARES.map(|share| 1e3 * percentile(&sorted, share))
            };
            let speed = found.tokens as f64 / found.total;
            (load, name, speed, percentiles(&found.first), percentiles(&found.between))
        })
        .collect();
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(load, name, speed, first, between)| {
                json!({ "load": load, "server": name, "tokens_per_second": speed,
                    "first_token_ms": first, "between_tokens_ms": between, "percentiles": [50, 95, 99] })
            })
            .collect();
        ui::print_json(&json!({
            "model": models::DEFAULT, "machine": machine, "threads": args.threads, "requests": args.requests,
            "prompt_tokens_most": args.prompt, "answer_tokens": args.answer, "seed": args.seed, "results": rows,
        }));
        return;
    }
    ui::say!(
        "{} on {machine}, {} threads: {} requests of {} to {} prompt tokens, {} answer tokens each.\n",
        models::DEFAULT,
        args.threads,
        args.requests,
        args.prompt / 4,
        args.prompt,
        args.answer
    );
    let table: Vec<_> = rows
        .iter()
        .map(|(load, name, speed, first, between)| {
            let joined = |values: &[f64; 3]| values.map(|value| format!("{value:.0}")).join(" / ");
            vec![load.clone(), (*name).clone(), format!("{speed:.0}"), joined(first), joined(between)]
        })
        .collect();
    let header = [
        "load",
        "server",
        "tokens/s",
        "first token, ms (50 / 95 / 99 %)",
        "between tokens, ms (50 / 95 / 99 %)",
    ];
    ui::write_out(&ui::table(&header, &table));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|share| percentile(&sorted, share)), [50.0, 95.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_same_seed_gives_the_same_load() {
        let args =
            |seed| Args { threads: 1, requests: 400, callers: 1, rate: 2.0, prompt: 40, answer: 8, seed };
        let text: Vec<u32> = (0..1000).collect();
        let (one, same, other) =
            (requests(&args(1), &text, 0), requests(&args(1), &text, 0), requests(&args(2), &text, 0));
        assert!(one.iter().zip(&same).all(|(a, b)| a.prompt == b.prompt && a.arrives == b.arrives));
        assert!(one.iter().zip(&other).any(|(a, b)| a.prompt != b.prompt));
        assert!(one.iter().all(|request| (10..=40).contains(&request.prompt.len())));
        let mean = one[399].arrives.as_secs_f64() / 400.0;
        assert!((0.4..0.6).contains(&mean), "{mean} seconds between arrivals");
    }
}
