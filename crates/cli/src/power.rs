//! `assay power`: who can change what on a chain, how long a change takes, and how concentrated stake is. What it says of functions is in
//! docs/powers.md, which a test holds to the compiled contracts; here are the holders, as the chain has them now.

use assay_ledger::types::{Address, B256, U256, keccak256};
use assay_wallet::abi;
use assay_wallet::chain::Chain;
use serde_json::{Value, json};

use crate::chain::{ChainArgs, number, opg};
use crate::error::Result;
use crate::gov::when;
use crate::ui;
use crate::ui::say;

/// Most validators and workers that the contracts know.
const LIST: usize = 8192;

/// A power: what, who, how long a change takes in seconds.
struct Power {
    what: &'static str,
    holder: String,
    delay: String,
}

/// The fewest entities that together have more than a third: with them against it, nothing becomes final.
fn nakamoto(shares: &[U256]) -> Option<usize> {
    let total: U256 = shares.iter().sum();
    let mut sorted = shares.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let mut sum = U256::ZERO;
    sorted
        .iter()
        .position(|share| {
            sum += *share;
            sum * U256::from(3) > total
        })
        .map(|at| at + 1)
}

async fn list(chain: &Chain, contract: &str, count: &str, at: &str) -> Result<Vec<Value>> {
    let count = chain.number(contract, count, &[]).await?.saturating_to::<usize>().min(LIST);
    let mut found = Vec::with_capacity(count);
    for i in 0..count {
        found.push(chain.view(contract, at, &[json!(i)]).await?);
    }
    Ok(found)
}

async fn powers(chain: &Chain) -> Result<Vec<Power>> {
    let seconds = async |contract: &str, function: &str| -> Result<u64> {
        Ok(chain.number(contract, function, &[]).await?.saturating_to())
    };
    let (timelock, delay, period) = (
        seconds("TimelockController", "getMinDelay").await?,
        seconds("AssayGovernor", "votingDelay").await?,
        seconds("AssayGovernor", "votingPeriod").await?,
    );
    let threshold = opg(chain.number("AssayGovernor", "proposalThreshold", &[]).await?);
    let quorum = chain.number("AssayGovernor", "quorumNumerator", &[]).await?;
    let all = format!("{} s", delay + period + timelock);
    let mut found = vec![Power {
        what: "parameters, upgrades, treasury",
        holder: format!("holders of OPG: {threshold} OPG propose, {quorum} % of the supply must take part"),
        delay: all,
    }];
    let guardian = chain.view("Pause", "guardian", &[]).await?;
    let until = chain.number("Pause", "until", &[]).await?;
    let paused = if until > U256::from(crate::members::now_s()) {
        format!("; paused until {}", when(until))
    } else {
        String::new()
    };
    found.push(Power {
        what: "stop new work for 3 days",
        holder: if guardian == abi::text(Address::ZERO) {
            "nobody".to_owned()
        } else {
            format!("{}{paused}", text(&guardian))
        },
        delay: "at once".to_owned(),
    });
    // Roles of the timelock: the governor has those that count, and nobody else should.
    let address = |name: &str| chain.system.address(name).unwrap_or_default();
    let roles = [
        ("queue in the timelock", keccak256("PROPOSER_ROLE"), ("AssayGovernor", address("AssayGovernor"))),
        ("cancel in the timelock", keccak256("CANCELLER_ROLE"), ("AssayGovernor", address("AssayGovernor"))),
        ("carry out what has waited", keccak256("EXECUTOR_ROLE"), ("anybody", Address::ZERO)),
        (
            "give the timelock's roles",
            B256::ZERO,
            ("TimelockController itself", address("TimelockController")),
        ),
    ];
    let strangers = granted(chain).await?;
    for (what, role, expected) in roles {
        let mut holders = Vec::new();
        let deployer = ("the deployer", assay_wallet::system::DEPLOYER);
        let candidates = [expected, deployer].into_iter().map(|(name, who)| (name.to_owned(), who));
        for (name, who) in candidates.chain(strangers.iter().map(|who| (who.to_string(), *who))) {
            let has = chain.view("TimelockController", "hasRole", &[abi::text(role), abi::text(who)]).await?;
            if has == json!(true) && !holders.contains(&name) {
                holders.push(name);
            }
        }
        let holder = if holders.is_empty() { "nobody".to_owned() } else { holders.join(", ") };
        found.push(Power { what, holder, delay: format!("{timelock} s") });
    }
    Ok(found)
}

/// Accounts that got a role of the timelock after genesis.
async fn granted(chain: &Chain) -> Result<Vec<Address>> {
    let known =
        ["TimelockController", "AssayGovernor"].map(|name| chain.system.address(name).unwrap_or_default());
    let mut found = Vec::new();
    for event in chain.events("TimelockController", "RoleGranted", &[], 0..=chain.head().await?).await? {
        let who = event.address(2);
        if !known.contains(&who) && !found.contains(&who) {
            found.push(who);
        }
    }
    Ok(found)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(crate) async fn run(args: ChainArgs, json: bool) -> Result<()> {
    let chain = args.open()?;
    let powers = powers(&chain).await?;
    let classes = chain.view("Opg", "allocations", &[]).await?;
    let supply = chain.number("Opg", "totalSupply", &[]).await?;
    let minted: U256 = classes
        .as_array()
        .into_iter()
        .flatten()
        .map(|class| number(&class["amount"]))
        .sum::<Result<U256>>()?;
    let mut stakes = Vec::new();
    for validator in list(&chain, "Staking", "validatorCount", "validatorAt").await? {
        let tokens = &chain.view("Staking", "validatorOf", std::slice::from_ref(&validator)).await?["tokens"];
        stakes.push((text(&validator), number(tokens)?));
    }
    let mut bonds = std::collections::BTreeMap::<String, U256>::new();
    for member in list(&chain, "Registry", "workerCount", "member").await? {
        bonds.insert(text(&member["operatorName"]), number(&member["bond"])?);
    }
    let committee = chain.client.request("assay_getCommittee", json!([])).await?;
    let members = committee["members"].as_array().cloned().unwrap_or_default();
    let seats: Vec<_> = members.iter().map(|member| member["seats"].as_u64().unwrap_or_default()).collect();
    let consensus = nakamoto(&seats.iter().map(|seats| U256::from(*seats)).collect::<Vec<_>>());
    let staked = nakamoto(&stakes.iter().map(|(_, tokens)| *tokens).collect::<Vec<_>>());
    if json {
        let powers: Vec<_> = powers
            .iter()
            .map(|power| json!({"power": power.what, "holder": power.holder, "delay": power.delay}))
            .collect();
        let shares = |list: Vec<(String, U256)>| -> Value {
            list.into_iter().map(|(name, amount)| (name, json!(amount.to_string()))).collect()
        };
        ui::print_json(&json!({
            "powers": powers,
            "supply": {"total": supply.to_string(), "burnt": (minted - supply).to_string(), "classes": classes},
            "stake": shares(stakes), "bonds": shares(bonds.into_iter().collect()),
            "consensus": {"epoch": committee["epoch"], "validators": members, "nakamoto": consensus}, "stakeNakamoto": staked,
        }));
        return Ok(());
    }
    let rows: Vec<_> =
        powers.into_iter().map(|power| vec![power.what.to_owned(), power.holder, power.delay]).collect();
    say!("{}\n", ui::table(&["power", "who holds it", "a change takes"], &rows));
    let share = |amount: U256, of: U256| {
        let mille = if of.is_zero() { U256::ZERO } else { amount * U256::from(1000) / of };
        format!("{}.{} %", mille / U256::from(10), mille % U256::from(10))
    };
    let mut rows = Vec::new();
    for class in classes.as_array().into_iter().flatten() {
        let amount = number(&class["amount"])?;
        rows.push(vec![text(&class["class"]), text(&class["holder"]), opg(amount), share(amount, minted)]);
    }
    rows.push(vec![
        "burnt since".to_owned(),
        String::new(),
        opg(minted - supply),
        share(minted - supply, minted),
    ]);
    say!("{}\n", ui::table(&["supply at genesis", "holder", "OPG", "share"], &rows));
    let coefficient = |found: Option<usize>, what: &str| match found {
        Some(count) => format!("{count} can stop {what}"),
        None => format!("nobody has {what}"),
    };
    say!(
        "consensus   epoch {}: {} validators with {} seats; Nakamoto coefficient: {}",
        committee["epoch"],
        seats.len(),
        seats.iter().sum::<u64>(),
        coefficient(consensus, "the chain")
    );
    let total: U256 = stakes.iter().map(|(_, tokens)| *tokens).sum();
    say!(
        "stake       {} OPG; Nakamoto coefficient: {}",
        opg(total),
        coefficient(staked, "a third of the stake")
    );
    for (validator, tokens) in &stakes {
        say!("            {validator} {} OPG, {}", opg(*tokens), share(*tokens, total));
    }
    let total: U256 = bonds.values().copied().sum();
    for (operator, bond) in &bonds {
        say!("operator    {operator}: bond {} OPG, {}", opg(*bond), share(*bond, total));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coefficient_counts_who_is_needed_for_more_than_a_third() {
        let shares = |list: &[u64]| list.iter().map(|share| U256::from(*share)).collect::<Vec<_>>();
        for (list, expected) in [
            (&[1][..], Some(1)),
            (&[1, 1, 1], Some(2)),
            (&[1, 1, 1, 1], Some(2)),
            (&[40, 30, 30], Some(1)),
            (&[30, 30, 40, 20], Some(2)),
            (&[], None),
            (&[0, 0], None),
        ] {
            assert_eq!(nakamoto(&shares(list)), expected, "{list:?}");
        }
    }
}
