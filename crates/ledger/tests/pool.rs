//! The pool: who gets in, who is replaced, what leaves, in which order.
#![allow(clippy::unwrap_used)]

mod common;

use assay_ledger::types::{Bytes, TxKind, U256};
use assay_ledger::{Added, Attributes, Executed, Pool, PoolError, PoolLimits, Transaction, build};
use common::{CHAIN, GWEI, Wallet, genesis};
use proptest::prelude::*;

fn pool(limits: PoolLimits) -> (Pool, Executed) {
    let (rules, first) = genesis();
    (Pool::new(rules, limits, first.state.clone()), first)
}

fn priced(wallet: &Wallet, nonce: u64, fee: u128, tip: u128) -> Transaction {
    let bytes = wallet.dynamic(|t| {
        t.nonce = nonce;
        t.max_fee_per_gas = fee;
        t.max_priority_fee_per_gas = tip;
    });
    Transaction::decode(&bytes).unwrap()
}

#[test]
fn errors_are_those_that_libraries_know() {
    let (mut pool, _) = pool(PoolLimits { per_sender: 3, ..PoolLimits::default() });
    let wallet = Wallet::new(0);
    let mut refused =
        |bytes: Vec<u8>| pool.add(Transaction::decode(&bytes).unwrap()).unwrap_err().to_string();
    assert_eq!(
        refused(wallet.legacy(0, None)),
        "only replay-protected (EIP-155) transactions allowed over RPC"
    );
    assert_eq!(
        refused(wallet.legacy(0, Some(1))),
        format!("invalid chain id for signer: have 1 want {CHAIN}")
    );
    assert_eq!(refused(wallet.dynamic(|t| t.gas_limit = 40_000_000)), "exceeds block gas limit");
    assert!(
        refused(wallet.dynamic(|t| t.gas_limit = 20_000_000)).starts_with("transaction gas limit too high")
    );
    assert_eq!(
        refused(wallet.dynamic(|t| t.input = vec![1].into())),
        "intrinsic gas too low: gas 21000, minimum needed 21040"
    );
    assert!(
        refused(wallet.dynamic(|t| t.max_priority_fee_per_gas = 11 * GWEI))
            .starts_with("max priority fee per gas higher than max fee per gas")
    );
    assert_eq!(
        refused(wallet.dynamic(|t| t.max_priority_fee_per_gas = 0)),
        "transaction underpriced: tip needed 1, tip permitted 0"
    );
    assert!(refused(wallet.dynamic(|t| t.value = U256::from(10).pow(U256::from(19)))).starts_with(
        "insufficient funds for gas * price + value: balance 10000000000000000000, tx cost 1000021"
    ));
    assert!(refused(wallet.dynamic(|t| t.value = U256::MAX)).starts_with("insufficient funds"));
    assert_eq!(refused(wallet.dynamic(|t| t.nonce = 9)), "nonce too high: next nonce 0, tx nonce 9");
    assert!(refused(wallet.dynamic(|t| t.nonce = u64::MAX)).starts_with("nonce too high"));
    assert!(
        refused(wallet.dynamic(|t| {
            t.to = TxKind::Create;
            t.input = Bytes::from(vec![1; 50_000]);
            t.gas_limit = 5_000_000;
        }))
        .starts_with("max initcode size exceeded")
    );
    assert!(pool.is_empty(), "an error changes nothing");
}

#[test]
fn replacement_needs_a_tenth_more_of_fee_and_tip() {
    let (mut pool, first) = pool(PoolLimits::default());
    let wallet = Wallet::new(0);
    let old = priced(&wallet, 0, 10 * GWEI, GWEI);
    assert_eq!(pool.add(old.clone()), Ok(Added::default()));
    assert_eq!(pool.add(old.clone()), Err(PoolError::Known));
    for (fee, tip) in [(11 * GWEI - 1, 2 * GWEI), (20 * GWEI, GWEI + GWEI / 10 - 1), (5 * GWEI, GWEI)] {
        assert_eq!(pool.add(priced(&wallet, 0, fee, tip)), Err(PoolError::ReplacementUnderpriced));
    }
    let new = priced(&wallet, 0, 11 * GWEI, GWEI + GWEI / 10);
    assert_eq!(pool.add(new.clone()).unwrap().replaced, Some(old.hash()));
    assert_eq!(pool.best(&first.state, 1).collect::<Vec<_>>(), [new]);
    assert!(pool.get(&old.hash()).is_none());
}

#[test]
fn bounds_hold_and_the_cheapest_makes_room() {
    let (mut pool, _) = pool(PoolLimits { per_sender: 2, transactions: 4, ..PoolLimits::default() });
    for sender in 0..2 {
        for nonce in 0..2 {
            pool.add(priced(&Wallet::new(sender), nonce, (10 + u128::from(sender)) * GWEI, GWEI)).unwrap();
        }
    }
    assert_eq!(pool.add(priced(&Wallet::new(0), 2, 90 * GWEI, GWEI)), Err(PoolError::SenderLimit(2)));
    assert_eq!(pool.add(priced(&Wallet::new(2), 0, 10 * GWEI, GWEI)), Err(PoolError::Full));
    let cheapest = priced(&Wallet::new(0), 1, 10 * GWEI, GWEI).hash();
    let added = pool.add(priced(&Wallet::new(2), 0, 50 * GWEI, GWEI)).unwrap();
    assert_eq!(added.evicted, [cheapest], "a sender's last goes first, so that no gap opens");
    assert_eq!(pool.len(), 4);
}

#[test]
fn a_block_takes_them_and_the_rest_is_judged_anew() {
    let (mut pool, first) = pool(PoolLimits::default());
    let (rules, _) = genesis();
    let (a, b) = (Wallet::new(0), Wallet::new(1));
    let half = |wallet: &Wallet, nonce: u64| {
        let bytes = wallet.dynamic(|t| {
            t.nonce = nonce;
            t.value = U256::from(10).pow(U256::from(18)) * U256::from(4);
        });
        Transaction::decode(&bytes).unwrap()
    };
    pool.add(half(&a, 0)).unwrap();
    pool.add(half(&a, 1)).unwrap();
    assert!(
        matches!(pool.add(half(&a, 2)), Err(PoolError::InsufficientFunds { .. })),
        "all that waits must be paid"
    );
    pool.add(b.transfer(1)).unwrap();
    assert_eq!((pool.next_nonce(&a.address()), pool.next_nonce(&b.address())), (2, 0));
    let (pending, queued) = pool.content();
    assert_eq!((pending.len(), queued.len()), (2, 1));
    // A block with another transaction of the same nonce, which takes most of the money.
    let other =
        Transaction::decode(&a.dynamic(|t| t.value = U256::from(10).pow(U256::from(18)) * U256::from(9)))
            .unwrap();
    let attributes = Attributes { timestamp: 1_800_000_001, ..Attributes::default() };
    let block = build(&rules, &first.block.header, &first.state, &attributes, vec![other]);
    pool.update(block.state.clone());
    assert_eq!(pool.content().0.len(), 0, "the first is too late, the second cannot be paid");
    assert_eq!(pool.len(), 1);
    assert!(matches!(pool.add(half(&a, 0)), Err(PoolError::NonceTooLow { next: 1, given: 0 })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever arrives in whatever order: bounds hold, everything offered for a block can be executed in that order, and what
    /// pays more comes first unless a nonce forbids it.
    #[test]
    fn what_the_pool_offers_can_be_executed(arrivals in prop::collection::vec((0u8..5, 0u64..5, 1u128..40), 1..60)) {
        let limits = PoolLimits { per_sender: 4, transactions: 12, ..PoolLimits::default() };
        let (mut pool, first) = pool(limits);
        let (rules, _) = genesis();
        for (sender, nonce, tip) in arrivals {
            let _ = pool.add(priced(&Wallet::new(sender), nonce, 50 * GWEI, tip * GWEI));
            let (pending, queued) = pool.content();
            prop_assert_eq!(pending.len() + queued.len(), pool.len());
            prop_assert!(pool.len() <= 12);
            for wallet in 0..5 {
                let address = Wallet::new(wallet).address();
                prop_assert!(pending.iter().chain(&queued).filter(|t| t.sender() == address).count() <= 4);
            }
        }
        let best: Vec<_> = pool.best(&first.state, 1).collect();
        prop_assert_eq!(best.len(), pool.content().0.len());
        for (i, earlier) in best.iter().enumerate() {
            for later in &best[i + 1..] {
                let forced = best[i..].iter().any(|t| t.sender() == later.sender() && t.nonce() < later.nonce());
                prop_assert!(later.max_tip() <= earlier.max_tip() || forced);
            }
        }
        let attributes = Attributes { timestamp: 1_800_000_001, ..Attributes::default() };
        let block = build(&rules, &first.block.header, &first.state, &attributes, best.clone());
        prop_assert_eq!(&*block.block.transactions, &best);
        pool.update(block.state);
        prop_assert!(pool.content().0.is_empty());
    }
}
