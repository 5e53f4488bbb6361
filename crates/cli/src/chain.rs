//! What the commands that use a chain share, and those for stake: `assay stake`, `unstake`, `delegate`, `claim`, `unjail`.

use assay_ledger::types::{Address, U256};
use assay_receipt::Key;
use assay_wallet::abi::text;
use assay_wallet::chain::Chain;
use assay_wallet::client::{Call, ClientError, Included, address_of};
use clap::Args;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::ui::say;
use crate::{home, keys, settle, ui};

/// 10^18: the units of an OPG, and of a coin.
const ONE: u128 = 1_000_000_000_000_000_000;

/// Which chain.
#[derive(Args)]
pub(crate) struct ChainArgs {
    /// A node's JSON-RPC
    #[arg(long, help = format!("A node's JSON-RPC [default: http://{}]", crate::node::DEFAULT_RPC))]
    rpc: Option<String>,
}

/// Which chain, and who signs.
#[derive(Args)]
pub(crate) struct SignerArgs {
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// Who signs: a name of `assay keys list`, or a key file; the wallet of `assay up` when left out
    #[arg(long)]
    key: Option<String>,
}

#[derive(Args)]
pub(crate) struct StakeArgs {
    /// OPG, like 1000 or 0.5
    amount: String,
    #[command(flatten)]
    signer: SignerArgs,
}

#[derive(Args)]
pub(crate) struct DelegateArgs {
    /// The validator's address
    validator: Address,
    /// OPG, like 1000 or 0.5
    amount: String,
    #[command(flatten)]
    signer: SignerArgs,
}

#[derive(Args)]
pub(crate) struct UnstakeArgs {
    /// OPG, or "all"
    amount: String,
    /// The validator's address; your own when left out
    #[arg(long)]
    validator: Option<Address>,
    #[command(flatten)]
    signer: SignerArgs,
}

#[derive(Args)]
pub(crate) struct ClaimArgs {
    /// The validator's address; your own when left out
    #[arg(long)]
    validator: Option<Address>,
    #[command(flatten)]
    signer: SignerArgs,
}

#[derive(Args)]
pub(crate) struct DepositArgs {
    /// OPG, like 1000 or 0.5
    amount: String,
    /// Whose deposit; the signer's own when left out
    #[arg(long)]
    payer: Option<Address>,
    #[command(flatten)]
    signer: SignerArgs,
}

/// A chain and who signs.
pub(crate) struct Signer {
    pub(crate) chain: Chain,
    key: Key,
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        match error {
            // The chain has looked and said no.
            ClientError::Reverted(_) => Error::Rejected(error.to_string()),
            _ => Error::said(error.to_string()),
        }
    }
}

impl ChainArgs {
    /// Where the node is.
    pub(crate) fn url(&self) -> String {
        self.rpc.clone().unwrap_or_else(|| format!("http://{}", crate::node::DEFAULT_RPC))
    }

    /// Another default.
    pub(crate) fn prefer(&mut self, url: Option<&String>) {
        self.rpc = self.rpc.take().or_else(|| url.cloned());
    }

    pub(crate) fn open(&self) -> Result<Chain> {
        Ok(Chain::at(&self.url())?)
    }
}

impl SignerArgs {
    pub(crate) fn open(&self) -> Result<Signer> {
        let key = match &self.key {
            Some(name) => name.clone(),
            None => home::home()?.join("up").join("wallet.key").display().to_string(),
        };
        if self.key.is_none() && !std::path::Path::new(&key).is_file() {
            return Err(Error::said("say who signs with --key; `assay keys new NAME` makes a key"));
        }
        Ok(Signer { chain: self.chain.open()?, key: keys::named(&key)? })
    }
}

impl Signer {
    /// On the chain of a node, with a key.
    pub(crate) fn new(rpc: &str, key: Key) -> Result<Self> {
        Ok(Self { chain: Chain::at(rpc)?, key })
    }

    /// What it signs with.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    pub(crate) fn address(&self) -> Address {
        address_of(&self.key)
    }

    /// Calls a contract by a transaction, and waits until it is final.
    pub(crate) async fn send(&self, name: &str, function: &str, arguments: &[Value]) -> Result<Included> {
        let spinner = ui::spinner(&format!("{name}.{function}"));
        let done = self.chain.transact(&self.key, name, function, arguments).await;
        spinner.finish_and_clear();
        Ok(done?)
    }

    /// Lets a contract take an amount of OPG, unless it may already.
    pub(crate) async fn approve(&self, contract: &str, amount: U256) -> Result<()> {
        let spender = self.chain.system.address(contract).map_err(ClientError::from)?;
        let may = self.chain.number("Opg", "allowance", &[text(self.address()), text(spender)]).await?;
        if may < amount {
            self.send("Opg", "approve", &[text(spender), text(amount)]).await?;
        }
        Ok(())
    }

    /// Sends native coins, in 10^-18.
    pub(crate) async fn pay(&self, to: Address, value: U256) -> Result<()> {
        let call = Call { to: Some(to), value, data: Vec::new() };
        self.chain.client.transact(&self.key, &call).await?;
        Ok(())
    }

    async fn own_stake(&self, validator: Address) -> Result<U256> {
        Ok(self.chain.number("Staking", "stakeOf", &[text(validator), text(self.address())]).await?)
    }

    async fn report(&self, what: &str, validator: Address, done: &Included, json: bool) -> Result<()> {
        let stake = self.own_stake(validator).await?;
        if json {
            ui::print_json(&json!({
                "transaction": done.hash, "block": done.block, "gas": done.gas,
                "validator": validator.to_string(), "stake": stake.to_string(),
            }));
        } else {
            say!("{what} in block {}; your stake with {validator} is {} OPG", done.block, opg(stake));
        }
        Ok(())
    }
}

/// A number that a contract gave.
pub(crate) fn number(value: &Value) -> Result<U256> {
    assay_wallet::abi::number(value)
        .ok_or_else(|| Error::said(format!("the chain gave {value} where a number belongs")))
}

/// Units of 10^-18 as people write them, with up to 18 decimals.
pub(crate) fn opg(amount: U256) -> String {
    let (whole, rest) = amount.div_rem(U256::from(ONE));
    let digits = format!("{rest:018}");
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() { whole.to_string() } else { format!("{whole}.{digits}") }
}

/// What people write, in units of 10^-18.
pub(crate) fn parse_opg(text: &str) -> Result<U256> {
    let wrong =
        || Error::said(format!("{text:?} is no amount: write it like 1000 or 0.5, with up to 18 decimals"));
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || whole.len() > 20
        || rest.len() > 18
        || !digits(whole)
        || !digits(rest)
        || text.ends_with('.')
    {
        return Err(wrong());
    }
    let amount: U256 = format!("{whole}{rest:0<18}").parse().map_err(|_| wrong())?;
    if amount.is_zero() || amount >> 128 != U256::ZERO {
        return Err(wrong());
    }
    Ok(amount)
}

pub(crate) async fn stake(args: StakeArgs, json: bool) -> Result<()> {
    let (amount, signer) = (parse_opg(&args.amount)?, args.signer.open()?);
    let me = signer.address();
    if signer.chain.view("Staking", "validatorOf", &[text(me)]).await?["key"] == "0x" {
        return Err(Error::said(format!(
            "{me} runs no validator yet: begin with `assay join --role validator`, or give your stake to another's with `assay delegate`"
        )));
    }
    signer.approve("Staking", amount).await?;
    let done = signer.send("Staking", "delegateStake", &[text(me), text(amount)]).await?;
    signer.report("staked", me, &done, json).await
}

pub(crate) async fn deposit(args: DepositArgs, json: bool) -> Result<()> {
    let (amount, signer) = (parse_opg(&args.amount)?, args.signer.open()?);
    let payer = args.payer.unwrap_or_else(|| signer.address());
    let done = settle::deposit(&signer, payer, amount).await?;
    let balance = settle::deposit_of(&signer.chain, payer).await?;
    if json {
        ui::print_json(&json!({
            "transaction": done.hash, "block": done.block, "gas": done.gas,
            "payer": payer.to_string(), "deposit": balance.to_string(),
        }));
    } else {
        say!("deposited in block {}; {payer} has {} OPG free for answers", done.block, opg(balance));
    }
    Ok(())
}

pub(crate) async fn delegate(args: DelegateArgs, json: bool) -> Result<()> {
    let (amount, signer) = (parse_opg(&args.amount)?, args.signer.open()?);
    signer.approve("Staking", amount).await?;
    let done = signer.send("Staking", "delegateStake", &[text(args.validator), text(amount)]).await?;
    signer.report("delegated", args.validator, &done, json).await
}

pub(crate) async fn unstake(args: UnstakeArgs, json: bool) -> Result<()> {
    let signer = args.signer.open()?;
    let me = signer.address();
    let validator = args.validator.unwrap_or(me);
    let held = signer.chain.view("Staking", "delegationOf", &[text(validator), text(me)]).await?;
    let held = number(&held["shares"])?;
    let shares = if args.amount == "all" {
        held
    } else {
        // A share is a unit until a slash; what is asked for is rounded to whole shares.
        let (amount, whole) = (parse_opg(&args.amount)?, signer.own_stake(validator).await?);
        if amount > whole {
            return Err(Error::Rejected(format!("your stake with {validator} is {} OPG", opg(whole))));
        }
        amount * held / whole
    };
    if shares.is_zero() {
        return Err(Error::Rejected(format!("you have no stake with {validator}")));
    }
    let done = signer.send("Staking", "undelegateStake", &[text(validator), text(shares)]).await?;
    signer.report("unstaked (`assay claim` pays it out when its delay is over)", validator, &done, json).await
}

pub(crate) async fn claim(args: ClaimArgs, json: bool) -> Result<()> {
    let signer = args.signer.open()?;
    let me = signer.address();
    let validator = args.validator.unwrap_or(me);
    let before = signer.chain.number("Opg", "balanceOf", &[text(me)]).await?;
    let mut last = None;
    // Rewards, and stake whose delay is over; that there is nothing of one kind is no error.
    for function in ["claim", "withdraw"] {
        match signer.send("Staking", function, &[text(validator)]).await {
            Ok(done) => last = Some(done),
            Err(Error::Rejected(why)) if why.contains("Nothing") || why.contains("NotYet") => {}
            Err(error) => return Err(error),
        }
    }
    let gained = signer.chain.number("Opg", "balanceOf", &[text(me)]).await?.saturating_sub(before);
    let Some(done) = last else {
        return Err(Error::Rejected(format!("nothing is there to claim from {validator} yet")));
    };
    if json {
        ui::print_json(
            &json!({ "transaction": done.hash, "block": done.block, "claimed": gained.to_string() }),
        );
    } else {
        say!("claimed {} OPG in block {}", opg(gained), done.block);
    }
    Ok(())
}

/// Leaves jail after an absence.
pub(crate) async fn unjail(args: SignerArgs, json: bool) -> Result<()> {
    let signer = args.open()?;
    let me = signer.address();
    let known = signer.chain.view("Staking", "validatorOf", &[text(me)]).await?;
    let until = number(&known["jailedUntil"])?;
    if until.is_zero() {
        return Err(Error::Rejected(format!("{me} is in no jail")));
    }
    if until == U256::from(u64::MAX) {
        return Err(Error::Rejected(format!(
            "{me} is out for ever; `assay unstake all` takes out what is left"
        )));
    }
    if until > U256::from(crate::members::now_s()) {
        return Err(Error::Rejected(format!("{me} is in jail until {}", crate::gov::when(until))));
    }
    let done = signer.send("Staking", "unjail", &[]).await?;
    signer.report("out of jail (seats come back with the next epoch)", me, &done, json).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_exactly_or_refused() {
        for (text, units) in
            [("1", ONE), ("0.5", ONE / 2), ("1000.000000000000000001", 1000 * ONE + 1), ("007", 7 * ONE)]
        {
            assert_eq!(parse_opg(text).unwrap(), U256::from(units), "{text}");
        }
        for text in [
            "",
            "0",
            "0.0",
            ".5",
            "1.",
            "1e3",
            "-1",
            "+1",
            " 1",
            "1,000",
            "0.0000000000000000001",
            "1.5.1",
            "99999999999999999999999",
        ] {
            assert!(parse_opg(text).is_err(), "{text:?}");
        }
        for text in ["1", "0.5", "12.000000000000000001"] {
            assert_eq!(opg(parse_opg(text).unwrap()), text);
        }
        assert_eq!(opg(U256::ZERO), "0");
    }
}
