//! `assay gov`: proposals, votes, and carrying out what was decided. Nothing here has power of its own: the governor and the timelock
//! of the chain decide.

use assay_ledger::types::{Address, U256, hex, keccak256};
use assay_wallet::abi::text;
use assay_wallet::chain::{Chain, Event};
use assay_wallet::client::ClientError;
use assay_wallet::system;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::chain::{ChainArgs, Signer, SignerArgs, number, opg};
use crate::error::{Error, Result};
use crate::ui;
use crate::ui::say;

/// OpenZeppelin's `ProposalState`, in its order.
const STATES: [&str; 8] =
    ["pending", "active", "canceled", "defeated", "succeeded", "queued", "expired", "executed"];

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Vote {
    /// Not.
    Against,
    /// Yes.
    For,
    /// Neither, but it counts for the quorum.
    Abstain,
}

#[derive(Subcommand)]
pub(crate) enum GovCommand {
    /// Propose a call that governance may make; your OPG gets its votes first, if it has none
    Propose {
        /// The contract, like Settlement
        contract: String,
        /// Its function, like setParameters
        function: String,
        /// The arguments, as a JSON list; a struct is an object with all its fields
        arguments: String,
        /// What it is for
        #[arg(long)]
        title: String,
        #[command(flatten)]
        signer: SignerArgs,
    },
    /// Vote on a proposal
    Vote {
        /// The proposal, or as many of its first digits as name it
        proposal: String,
        /// The vote
        vote: Vote,
        #[command(flatten)]
        signer: SignerArgs,
    },
    /// Put a proposal that won into the timelock
    Queue {
        /// The proposal
        proposal: String,
        #[command(flatten)]
        signer: SignerArgs,
    },
    /// Carry out a proposal that has waited in the timelock
    Execute {
        /// The proposal
        proposal: String,
        #[command(flatten)]
        signer: SignerArgs,
    },
    /// List the proposals
    List {
        #[command(flatten)]
        chain: ChainArgs,
    },
}

/// A proposal as its event has it.
struct Proposal {
    id: String,
    event: Value,
}

impl Proposal {
    fn title(&self) -> &str {
        self.event["description"].as_str().unwrap_or_default()
    }

    /// Targets, values, calls, and the description's hash: what the governor finds a proposal by.
    fn arguments(&self) -> [Value; 4] {
        let hash = keccak256(self.title());
        [
            self.event["targets"].clone(),
            self.event["values"].clone(),
            self.event["calldatas"].clone(),
            text(hash),
        ]
    }

    /// What it would do, in the words of the contracts.
    fn calls(&self, chain: &Chain) -> Vec<String> {
        let list = |field: &str| self.event[field].as_array().cloned().unwrap_or_default();
        let call = |(target, data): (Value, Value)| {
            let data = hex::decode(data.as_str().unwrap_or_default()).unwrap_or_default();
            let to: Address = target.as_str().and_then(|text| text.parse().ok()).unwrap_or_default();
            match system::explain_call(&chain.system, to, &data) {
                Some((name, function, arguments)) => format!("{name}.{function} {arguments}"),
                None => format!("{to} 0x{}", hex::encode(data)),
            }
        };
        list("targets").into_iter().zip(list("calldatas")).map(call).collect()
    }
}

/// All proposals, the newest last.
async fn proposals(chain: &Chain) -> Result<Vec<Proposal>> {
    let events = chain.events("AssayGovernor", "ProposalCreated", &[], 0..=chain.head().await?).await?;
    let proposal = |Event { fields: event, .. }| Proposal {
        id: event["proposalId"].as_str().unwrap_or_default().to_owned(),
        event,
    };
    Ok(events.into_iter().map(proposal).collect())
}

async fn find(chain: &Chain, digits: &str) -> Result<Proposal> {
    let mut fitting: Vec<_> =
        proposals(chain).await?.into_iter().filter(|proposal| proposal.id.starts_with(digits)).collect();
    match (fitting.len(), fitting.pop()) {
        (1, Some(proposal)) => Ok(proposal),
        (0, _) => {
            Err(Error::Rejected(format!("no proposal begins with {digits}; `assay gov list` shows them")))
        }
        _ => Err(Error::said(format!("several proposals begin with {digits}: give more digits"))),
    }
}

async fn state(chain: &Chain, id: &str) -> Result<&'static str> {
    let state = chain.number("AssayGovernor", "state", &[json!(id)]).await?;
    Ok(STATES.get(state.saturating_to::<usize>()).copied().unwrap_or("unknown"))
}

pub(crate) async fn run(command: GovCommand, json: bool) -> Result<()> {
    match command {
        GovCommand::Propose { contract, function, arguments, title, signer } => {
            let arguments: Vec<Value> = serde_json::from_str(&arguments)
                .map_err(|error| Error::said(format!("the arguments are no JSON list: {error}")))?;
            propose(&signer.open()?, &contract, &function, &arguments, &title, json).await
        }
        GovCommand::Vote { proposal, vote, signer } => {
            let signer = signer.open()?;
            let proposal = find(&signer.chain, &proposal).await?;
            activate(&signer).await?;
            if state(&signer.chain, &proposal.id).await? == "pending" {
                let opens =
                    signer.chain.number("AssayGovernor", "proposalSnapshot", &[json!(proposal.id)]).await?;
                return Err(Error::Rejected(format!(
                    "the vote has not begun: it opens {}; what you hold and have staked by then counts",
                    when(opens)
                )));
            }
            let done =
                signer.send("AssayGovernor", "castVote", &[json!(proposal.id), json!(vote as u8)]).await?;
            outcome(&signer, &proposal.id, "voted", done.block, json).await
        }
        GovCommand::Queue { proposal, signer } => carry(signer, &proposal, "queue", json).await,
        GovCommand::Execute { proposal, signer } => carry(signer, &proposal, "execute", json).await,
        GovCommand::List { chain } => list(&chain.open()?, json).await,
    }
}

async fn carry(signer: SignerArgs, digits: &str, function: &str, json: bool) -> Result<()> {
    let signer = signer.open()?;
    let proposal = find(&signer.chain, digits).await?;
    let done = signer.send("AssayGovernor", function, &proposal.arguments()).await?;
    outcome(&signer, &proposal.id, function, done.block, json).await
}

async fn outcome(signer: &Signer, id: &str, what: &str, block: u64, json: bool) -> Result<()> {
    let state = state(&signer.chain, id).await?;
    if json {
        ui::print_json(&json!({ "proposal": id, "block": block, "state": state }));
    } else {
        say!("{what} in block {block}; proposal {} is {state}", short(id));
    }
    Ok(())
}

/// Gives the signer's OPG and stake their votes: OpenZeppelin's Votes count only what was delegated, be it to oneself.
async fn activate(signer: &Signer) -> Result<()> {
    let me = text(signer.address());
    for name in ["Opg", "Staking"] {
        let to = signer.chain.view(name, "delegates", std::slice::from_ref(&me)).await?;
        if to == text(Address::ZERO) {
            signer.send(name, "delegate", std::slice::from_ref(&me)).await?;
        }
    }
    Ok(())
}

async fn propose(
    signer: &Signer,
    contract: &str,
    function: &str,
    arguments: &[Value],
    title: &str,
    json: bool,
) -> Result<()> {
    let call = signer.chain.system.prepare(contract, function, arguments).map_err(|error| {
        let functions = system::contract(contract).map(|contract| contract.functions());
        let known = functions.and_then(|functions| functions.get(function).cloned());
        match known {
            Some(signature) => Error::said(format!("{error}; the function is {signature}")),
            None => Error::said(format!("{error}; docs/powers.md lists what governance may call")),
        }
    })?;
    let target = text(signer.chain.system.address(contract).map_err(ClientError::from)?);
    activate(signer).await?;
    let needed = signer.chain.number("AssayGovernor", "proposalThreshold", &[]).await?;
    // The governor counts what one had a second ago.
    for _ in 0..50 {
        let now = signer.chain.number("AssayGovernor", "clock", &[]).await?;
        let before = json!((now - U256::from(1)).to_string());
        let votes =
            signer.chain.number("AssayGovernor", "getVotes", &[text(signer.address()), before]).await?;
        if votes >= needed {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let data = json!(format!("0x{}", hex::encode(&call.data)));
    let done = signer
        .send("AssayGovernor", "propose", &[json!([target]), json!([0]), json!([data]), json!(title)])
        .await?;
    let all = proposals(&signer.chain).await?;
    let id = all.iter().rev().find(|proposal| proposal.title() == title).map(|proposal| proposal.id.clone());
    let id = id.ok_or_else(|| Error::said("the proposal's event is not there; `assay gov list` shows it"))?;
    let opens = signer.chain.number("AssayGovernor", "proposalSnapshot", &[json!(id)]).await?;
    if json {
        ui::print_json(
            &json!({ "proposal": id, "block": done.block, "voteOpens": opens.saturating_to::<u64>() }),
        );
    } else {
        say!("proposal {id}\nthe vote opens {}", when(opens));
    }
    Ok(())
}

async fn list(chain: &Chain, json: bool) -> Result<()> {
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for proposal in proposals(chain).await? {
        let id = json!(proposal.id);
        let one = std::slice::from_ref(&id);
        let (state, votes) =
            (state(chain, &proposal.id).await?, chain.view("AssayGovernor", "proposalVotes", one).await?);
        let next = match state {
            "pending" => Some(("opens", chain.number("AssayGovernor", "proposalSnapshot", one).await?)),
            "active" => Some(("ends", chain.number("AssayGovernor", "proposalDeadline", one).await?)),
            "queued" => Some(("from", chain.number("AssayGovernor", "proposalEta", one).await?)),
            _ => None,
        };
        let calls = proposal.calls(chain);
        let count = |name: &str| number(&votes[name]).map(opg).unwrap_or_default();
        let next = next.map_or(String::new(), |(word, time)| format!("{word} {}", when(time)));
        rows.push(vec![
            short(&proposal.id).to_owned(),
            proposal.title().to_owned(),
            state.to_owned(),
            count("forVotes"),
            count("againstVotes"),
            count("abstainVotes"),
            next,
        ]);
        documents.push(json!({
            "proposal": proposal.id, "title": proposal.title(), "state": state, "votes": votes, "calls": calls,
            "proposer": proposal.event["proposer"],
        }));
    }
    if json {
        ui::print_json(&json!({ "proposals": documents }));
        return Ok(());
    }
    say!("{}", ui::table(&["proposal", "title", "state", "for", "against", "abstain", "next"], &rows));
    for document in &documents {
        for call in document["calls"].as_array().into_iter().flatten() {
            say!(
                "{}",
                ui::dim(&format!(
                    "{}  {}",
                    short(document["proposal"].as_str().unwrap_or_default()),
                    call.as_str().unwrap_or_default()
                ))
            );
        }
    }
    Ok(())
}

/// The first digits of a proposal's number, which are enough for a person.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// A time of the chain, from now.
pub(crate) fn when(time: U256) -> String {
    let (time, now) = (time.saturating_to::<u64>(), crate::members::now_s());
    if time > now { format!("in {} s", time - now) } else { format!("{} s ago", now - time) }
}
