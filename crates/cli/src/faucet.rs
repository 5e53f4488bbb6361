//! `assay faucet`: gives coins and OPG to whoever asks over HTTP, within limits, on a network for development.
//!
//! `GET /` says what it gives; `POST /` with `{"address": "0x…"}` gives it. An address gets something once a day, and so do three
//! addresses of one caller (of one IPv6 network of 64 bits), until the day's grants are used up. What was given within a day is in
//! a file, so a restart forgets nothing. Callers behind one proxy count as one.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use assay_ledger::types::U256;
use assay_receipt::Address;
use assay_wallet::abi::text;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use crate::chain::{Signer, SignerArgs, opg, parse_opg};
use crate::error::{Error, Result};
use crate::ui::say;
use crate::{home, members, ui};

/// A day in seconds: how long a grant counts.
const DAY_S: u64 = 86_400;
/// Grants to one caller within a day.
const PER_CALLER: usize = 3;
/// Callers that wait for their turn; transactions of one account go one after the other.
const WAITING: usize = 16;

#[derive(Args)]
pub(crate) struct FaucetArgs {
    /// Where people ask, over HTTP
    #[arg(long, default_value = "127.0.0.1:8650")]
    listen: SocketAddr,
    /// OPG for each address
    #[arg(long, default_value = "1000")]
    opg: String,
    /// Coins for each address, with which it pays for transactions
    #[arg(long, default_value = "1")]
    coins: String,
    /// Addresses that get something within a day
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    per_day: u16,
    /// Whose coins and OPG it gives
    #[command(flatten)]
    signer: SignerArgs,
}

/// Something given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Grant {
    at_s: u64,
    address: Address,
    caller: IpAddr,
}

/// What was given within a day, the oldest first.
struct Grants {
    file: PathBuf,
    given: Vec<Grant>,
}

/// Why nothing is given, and in how many seconds it is.
type Refusal = (String, u64);

impl Grants {
    fn open(file: &Path) -> Result<Self> {
        let mut given = Vec::new();
        if file.exists() {
            given = serde_json::from_slice(&home::read_bounded(file, 4 << 20)?).map_err(|error| {
                Error::said(format!("{}: {error}; remove it to begin anew", file.display()))
            })?;
        }
        Ok(Self { file: file.to_owned(), given })
    }

    /// Whether a grant is within the limits.
    fn check(&self, grant: &Grant, per_day: usize) -> std::result::Result<(), Refusal> {
        let counts = |one: &&Grant| one.at_s + DAY_S > grant.at_s;
        // As soon as the oldest of those that count does not.
        let refuse = |why: String, mut of: Vec<&Grant>, most: usize| {
            of.sort_by_key(|one| one.at_s);
            match of.len().checked_sub(most) {
                None => Ok(()),
                Some(index) => Err((why, (of[index].at_s + DAY_S).saturating_sub(grant.at_s))),
            }
        };
        let given = || self.given.iter().filter(counts);
        let same = given().filter(|one| one.address == grant.address).collect();
        refuse(format!("{} had something within a day", grant.address), same, 1)?;
        let caller = given().filter(|one| one.caller == grant.caller).collect();
        refuse(format!("you asked for {PER_CALLER} addresses within a day"), caller, PER_CALLER)?;
        refuse(format!("{per_day} addresses had something within a day"), given().collect(), per_day)
    }

    /// Notes a grant, on disk first.
    fn add(&mut self, grant: Grant) -> Result<()> {
        let now_s = grant.at_s;
        self.given.retain(|one| one.at_s + DAY_S > now_s);
        self.given.push(grant);
        self.keep()
    }

    /// Takes the last grant back.
    fn undo(&mut self) -> Result<()> {
        self.given.pop();
        self.keep()
    }

    fn keep(&self) -> Result<()> {
        let bytes = serde_json::to_vec(&self.given).map_err(|error| Error::said(error.to_string()))?;
        home::write_atomically(&self.file, &bytes, 0o600)
    }
}

/// The part of an address that one caller has: of IPv6 the network.
fn caller(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

struct Faucet {
    signer: Signer,
    opg: U256,
    coins: U256,
    per_day: usize,
    grants: Mutex<Grants>,
    turns: tokio::sync::Semaphore,
}

#[derive(Deserialize)]
struct Asked {
    address: Address,
}

fn refused(status: StatusCode, why: impl Into<String>) -> Response {
    (status, Json(json!({ "error": why.into() }))).into_response()
}

async fn about(State(faucet): State<Arc<Faucet>>) -> Response {
    let now_s = members::now_s();
    let given = faucet.grants.lock().await.given.iter().filter(|one| one.at_s + DAY_S > now_s).count();
    Json(json!({
        "opg": opg(faucet.opg), "coins": opg(faucet.coins), "left_today": faucet.per_day.saturating_sub(given),
        "ask": "POST / with {\"address\": \"0x…\"}",
    }))
    .into_response()
}

async fn give(
    State(faucet): State<Arc<Faucet>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    asked: std::result::Result<Json<Asked>, axum::extract::rejection::JsonRejection>,
) -> Response {
    let Ok(Json(Asked { address })) = asked else {
        return refused(StatusCode::BAD_REQUEST, "send {\"address\": \"0x…\"} as application/json");
    };
    let Ok(_turn) = faucet.turns.try_acquire() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, "too many ask at once: try again in a minute");
    };
    // Held while it is given, so that nobody gets it twice at once.
    let mut grants = faucet.grants.lock().await;
    let grant = Grant { at_s: members::now_s(), address, caller: caller(from.ip()) };
    if let Err((why, wait_s)) = grants.check(&grant, faucet.per_day) {
        let answer = refused(StatusCode::TOO_MANY_REQUESTS, format!("{why}: try again in {wait_s} s"));
        return ([(header::RETRY_AFTER, wait_s.to_string())], answer).into_response();
    }
    let failed = |error: Error| {
        tracing::warn!(%error, %address, "nothing could be given");
        refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "the faucet is empty or its node does not answer: try again later",
        )
    };
    if let Err(error) = grants.add(grant) {
        return failed(error);
    }
    if let Err(error) = faucet.signer.send("Opg", "transfer", &[text(address), text(faucet.opg)]).await {
        return failed(grants.undo().err().unwrap_or(error));
    }
    if let Err(error) = faucet.signer.pay(address.0.into(), faucet.coins).await {
        return failed(error); // the OPG was given, so the grant stays
    }
    tracing::info!(%address, "given");
    Json(json!({ "address": address.to_string(), "opg": opg(faucet.opg), "coins": opg(faucet.coins) }))
        .into_response()
}

pub(crate) async fn run(args: FaucetArgs, json: bool) -> Result<()> {
    let signer = args.signer.open()?;
    let file = home::home()?.join(format!("faucet-{}.json", signer.address()));
    signer.chain.client.chain_id().await?;
    let faucet = Arc::new(Faucet {
        opg: parse_opg(&args.opg)?,
        coins: parse_opg(&args.coins)?,
        per_day: args.per_day.into(),
        grants: Mutex::new(Grants::open(&file)?),
        turns: tokio::sync::Semaphore::new(WAITING),
        signer,
    });
    let listener = tokio::net::TcpListener::bind(args.listen).await.map_err(|error| {
        Error::said(format!("{} cannot be listened at: {error}; choose another with --listen", args.listen))
    })?;
    let address = listener.local_addr().map_err(|error| Error::said(error.to_string()))?;
    if json {
        ui::print_json(
            &json!({ "url": format!("http://{address}"), "from": faucet.signer.address().to_string() }),
        );
    } else {
        say!("the faucet gives {} OPG and {} coins at http://{address}", args.opg, args.coins);
        say!("{}", ui::dim(&format!("curl http://{address} --json '{{\"address\": \"0x…\"}}'")));
    }
    let app =
        Router::new().route("/", get(about).post(give)).layer(DefaultBodyLimit::max(1024)).with_state(faucet);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(crate::stop_signal())
        .await
        .map_err(|error| Error::said(format!("the faucet stopped: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(at_s: u64, address: u8, host: u8) -> Grant {
        Grant { at_s, address: Address([address; 20]), caller: IpAddr::from([192, 0, 2, host]) }
    }

    #[test]
    fn an_address_a_caller_and_a_day_have_their_limits() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("grants.json");
        let mut grants = Grants::open(&file).unwrap();
        for number in 0..3 {
            let one = grant(1_000 + u64::from(number), number, 1);
            grants.check(&one, 4).unwrap();
            grants.add(one).unwrap();
        }
        // The same address, from elsewhere, until a day has passed.
        assert_eq!(grants.check(&grant(1_010, 0, 2), 4).unwrap_err().1, DAY_S - 10);
        assert!(grants.check(&grant(1_000 + DAY_S - 1, 0, 2), 4).is_err());
        grants.check(&grant(1_000 + DAY_S, 0, 2), 4).unwrap();
        // A fourth address of one caller: as soon as its first grant is a day old.
        assert_eq!(grants.check(&grant(1_010, 9, 1), 4).unwrap_err().1, DAY_S - 10);
        // The fifth of a day, whoever asks.
        let fourth = grant(1_010, 9, 2);
        grants.check(&fourth, 4).unwrap();
        grants.add(fourth).unwrap();
        assert!(grants.check(&grant(1_011, 10, 3), 4).unwrap_err().0.contains("4 addresses"));
        // A restart forgets nothing, and the file is its owner's.
        let again = Grants::open(&file).unwrap();
        assert_eq!(again.given, grants.given);
        assert!(again.check(&grant(1_011, 10, 3), 4).is_err());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        // What could not be sent does not count, and what is a day old is dropped.
        grants.undo().unwrap();
        assert_eq!(Grants::open(&file).unwrap().given.len(), 3);
        grants.add(grant(1_002 + DAY_S, 11, 3)).unwrap();
        assert_eq!(grants.given, [grant(1_002 + DAY_S, 11, 3)]);
        std::fs::write(&file, "[{}]").unwrap();
        assert!(Grants::open(&file).is_err());
    }

    #[test]
    fn one_network_is_one_caller() {
        let of = |text: &str| caller(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
