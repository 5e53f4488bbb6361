//! Ethereum's JSON-RPC over HTTP and WebSocket, after the execution APIs and geth.
//!
//! A block is final when a client can see it, so `latest`, `safe` and `finalized` are one block; `pending` is its state with the
//! nonces of the pool. States of blocks older than [`RECENT_STATES`](crate::chain::RECENT_STATES) are not kept. There are no accounts: a
//! node signs nothing.

mod format;
mod methods;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use assay_ledger::Transaction;
use jsonrpsee::core::server::{Methods, RpcModule, SubscriptionMessage};
use jsonrpsee::core::traits::IdProvider;
use jsonrpsee::server::{BatchRequestConfig, Server, ServerConfig, ServerHandle};
use jsonrpsee::types::{ErrorObjectOwned, Params, SubscriptionId};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tower_http::cors::{Any, CorsLayer};

use self::format::{LogFilter, data};
use crate::chain::{Chain, Origin};
use crate::history::HistoryError;

/// Bodies of requests in bytes: several of the longest transactions.
const REQUEST_BYTES: u32 = 2 << 20;
const RESPONSE_BYTES: u32 = 64 << 20;
const BATCH: u32 = 200;
const CONNECTIONS: u32 = 512;
const SUBSCRIPTIONS: u32 = 64;
const FILTERS: usize = 1024;
/// A filter that nobody asks for is forgotten, as geth does.
const FILTER_LIFE: Duration = Duration::from_secs(300);

/// An error as JSON-RPC has it.
#[derive(Debug)]
pub(crate) struct Fault {
    code: i32,
    message: String,
    data: Option<String>,
}

impl Fault {
    /// Parameters that cannot be read.
    pub(crate) fn params(message: impl Into<String>) -> Self {
        Self { code: -32602, message: message.into(), data: None }
    }

    /// Anything else.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: -32000, message: message.into(), data: None }
    }

    /// A reverted call: geth's code, with the data that the contract gave.
    pub(crate) fn revert(output: &[u8]) -> Self {
        let reason = format::revert_reason(output).map_or(String::new(), |reason| format!(": {reason}"));
        Self {
            code: 3,
            message: format!("execution reverted{reason}"),
            data: Some(crate::chain::hexadecimal(output)),
        }
    }
}

impl From<HistoryError> for Fault {
    fn from(error: HistoryError) -> Self {
        // geth's code for what was pruned.
        let code = if matches!(error, HistoryError::Pruned) { 4444 } else { -32603 };
        Self { code, message: error.to_string(), data: None }
    }
}

impl From<Fault> for ErrorObjectOwned {
    fn from(fault: Fault) -> Self {
        Self::owned(fault.code, fault.message, fault.data)
    }
}

type Answer = Result<Value, Fault>;

enum Watch {
    Logs(Box<LogFilter>, u64),
    Blocks(u64),
    Transactions(Receiver<(Transaction, Origin)>),
}

struct Filter {
    watch: Watch,
    used: Instant,
}

/// What the methods work on.
pub(crate) struct Rpc {
    pub(crate) chain: Arc<Chain>,
    filters: Mutex<HashMap<String, Filter>>,
}

/// Hexadecimal numbers without leading zeros, hard to guess, as clients expect them.
#[derive(Debug)]
struct Ids;

fn identifier() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Each RandomState has keys of its own from the system's randomness.
    let half = || RandomState::new().build_hasher().finish();
    format!("{:#x}", u128::from(half() | 1 << 63) << 64 | u128::from(half()))
}

impl IdProvider for Ids {
    fn next_id(&self) -> SubscriptionId<'static> {
        SubscriptionId::Str(identifier().into())
    }
}

fn parameters(params: &Params<'_>) -> Result<Vec<Value>, Fault> {
    match params.as_str() {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_str(text).map_err(|_| Fault::params("parameters are a list")),
    }
}

fn raw(value: &Value) -> Box<RawValue> {
    // A value is JSON, so neither step fails; null is what is left to say.
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// All methods on a chain.
pub fn methods(chain: Arc<Chain>) -> Methods {
    let mut module = RpcModule::new(Rpc { chain, filters: Mutex::default() });
    for (name, method) in methods::QUICK {
        module
            .register_method(name, move |params, rpc, _| -> Result<Value, ErrorObjectOwned> {
                Ok(parameters(&params).and_then(|params| method(rpc, &params))?)
            })
            .expect("names are listed once");
    }
    for (name, method) in methods::SLOW {
        module
            .register_blocking_method(name, move |params, rpc, _| -> Result<Value, ErrorObjectOwned> {
                Ok(parameters(&params).and_then(|params| method(&rpc, &params))?)
            })
            .expect("names are listed once");
    }
    module
        .register_subscription("eth_subscribe", "eth_subscription", "eth_unsubscribe", |params, pending, rpc, _| async move {
            let params = parameters(&params).and_then(|params| {
                let kind = params.first().and_then(Value::as_str).unwrap_or_default().to_owned();
                let filter = match kind.as_str() {
                    "logs" => Some(LogFilter::parse(params.get(1).unwrap_or(&Value::Null))?),
                    "newHeads" | "newPendingTransactions" | "syncing" => None,
                    other => return Err(Fault::params(format!("no {other:?} subscription in eth namespace"))),
                };
                Ok((kind, filter, params.get(1) == Some(&Value::Bool(true))))
            });
            let (kind, filter, full) = match params {
                Ok(params) => params,
                Err(fault) => {
                    pending.reject(ErrorObjectOwned::from(fault)).await;
                    return;
                }
            };
            let mut heads = rpc.chain.subscribe_heads();
            let mut transactions = rpc.chain.subscribe_transactions();
            let Ok(sink) = pending.accept().await else { return };
            loop {
                let messages = tokio::select! {
                    () = sink.closed() => return,
                    head = heads.recv(), if kind != "newPendingTransactions" => match head {
                        Ok(executed) => match (&filter, kind.as_str()) {
                            (Some(filter), _) => filter.select(&executed.block, &executed.receipts),
                            (None, "newHeads") => {
                                vec![Value::Object(format::header(&executed.block.header, &executed.block.hash()))]
                            }
                            _ => Vec::new(),
                        },
                        Err(RecvError::Lagged(_)) => continue,
                        Err(RecvError::Closed) => return,
                    },
                    arrived = transactions.recv(), if kind == "newPendingTransactions" => match arrived {
                        Ok((transaction, _)) if full => vec![format::transaction(&transaction, None)],
                        Ok((transaction, _)) => vec![data(transaction.hash())],
                        Err(RecvError::Lagged(_)) => continue,
                        Err(RecvError::Closed) => return,
                    },
                };
                for message in messages {
                    if sink.send(SubscriptionMessage::from(raw(&message))).await.is_err() {
                        return;
                    }
                }
            }
        })
        .expect("names are listed once");
    module.into()
}

/// Serves JSON-RPC at an address, for pages of any origin: a node signs nothing, so there is nothing to steal through one.
pub async fn serve(chain: Arc<Chain>, address: SocketAddr) -> std::io::Result<(SocketAddr, ServerHandle)> {
    let config = ServerConfig::builder()
        .max_request_body_size(REQUEST_BYTES)
        .max_response_body_size(RESPONSE_BYTES)
        .max_connections(CONNECTIONS)
        .max_subscriptions_per_connection(SUBSCRIPTIONS)
        .set_batch_request_config(BatchRequestConfig::Limit(BATCH))
        .set_id_provider(Ids)
        .build();
    let cors = CorsLayer::new().allow_origin(Any).allow_methods(Any).allow_headers(Any);
    let server = Server::builder()
        .set_config(config)
        .set_http_middleware(tower::ServiceBuilder::new().layer(cors))
        .build(address)
        .await?;
    let address = server.local_addr()?;
    Ok((address, server.start(methods(chain))))
}

impl Rpc {
    fn install(&self, watch: Watch) -> Answer {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        filters.retain(|_, filter| filter.used.elapsed() < FILTER_LIFE);
        if filters.len() >= FILTERS {
            return Err(Fault::new("too many filters are installed; uninstall some, or subscribe"));
        }
        let id = identifier();
        filters.insert(id.clone(), Filter { watch, used: Instant::now() });
        Ok(json!(id))
    }

    fn uninstall(&self, id: &str) -> bool {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner).remove(id).is_some()
    }

    /// What is new for a filter since it was last asked for.
    fn changes(&self, id: &str) -> Answer {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = filters.get_mut(id).ok_or_else(|| Fault::new("filter not found"))?;
        filter.used = Instant::now();
        let head = self.chain.head().block.header.number;
        let mut found = Vec::new();
        match &mut filter.watch {
            Watch::Logs(wanted, next) => {
                found = self.logs(wanted, *next, head)?;
                *next = head + 1;
            }
            Watch::Blocks(next) => {
                for number in (*next..=head).take(10_000) {
                    if let Some(header) = self.chain.history().header(number)? {
                        found.push(data(header.hash_slow()));
                    }
                }
                *next = head + 1;
            }
            Watch::Transactions(arrived) => loop {
                match arrived.try_recv() {
                    Ok((transaction, _)) => found.push(data(transaction.hash())),
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(_) => break,
                }
            },
        }
        Ok(Value::Array(found))
    }

    /// All logs that a filter for logs stands for.
    fn filtered(&self, id: &str) -> Answer {
        let wanted = {
            let filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
            match filters.get(id).map(|filter| &filter.watch) {
                Some(Watch::Logs(wanted, _)) => wanted.clone(),
                _ => return Err(Fault::new("filter not found")),
            }
        };
        self.get_logs(&wanted)
    }
}
