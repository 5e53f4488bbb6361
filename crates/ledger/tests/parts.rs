//! A state goes over in parts, and every lie about a part is seen at once.
#![allow(clippy::unwrap_used)]

use alloy_rlp::Encodable;
use assay_ledger::types::{Address, B256, Bytes, U256, keccak256};
use assay_ledger::{AccountChange, Entry, Part, Piece, PieceError, State};

fn hashed(number: u64) -> U256 {
    U256::from_be_bytes(keccak256(number.to_be_bytes()).0)
}

/// Accounts of every kind: without anything, with code, with few slots, and one with so many that its storage has parts of its own.
fn state(accounts: u64, large: u64) -> State {
    let mut state = State::default();
    for number in 0..accounts {
        let slots = match number {
            0 => large,
            number if number % 7 == 0 => number % 40,
            _ => 0,
        };
        let code =
            (number % 5 == 0).then(|| Bytes::from(vec![number as u8 | 1; 1 + number as usize % 3_000]));
        state.apply(&[AccountChange {
            address: Address::from_slice(&keccak256(number.to_be_bytes())[..20]),
            account: Some((1 + number, hashed(number), code)),
            wiped: false,
            // Small values make short nodes, which lie inside of those above.
            slots: (0..slots).map(|slot| (hashed(slot), U256::from(1 + slot % 3))).collect(),
        }]);
    }
    state
}

fn copy(from: &State, answer: impl Fn(&Part) -> Piece) -> Result<(State, usize), PieceError> {
    let mut missing = vec![Part::whole(from.root())];
    let (mut entries, mut slots, mut pieces) = (Vec::<Entry>::new(), Vec::new(), 0);
    while let Some(part) = missing.pop() {
        let mut bytes = Vec::new();
        answer(&part).encode(&mut bytes);
        let piece = Piece::decode(&bytes)?;
        missing.extend(part.check(&piece)?);
        pieces += 1;
        match piece {
            Piece::Node(_) => {}
            Piece::Accounts(found) => entries.extend(found),
            Piece::Slots(found) => {
                slots.extend(found.into_iter().map(|slot| (part.account().unwrap(), slot)))
            }
        }
    }
    let mut made = State::default();
    for entry in entries {
        let far = slots.iter().filter(|(account, _)| *account == entry.key).map(|(_, slot)| slot);
        let own = entry.slots.iter().chain(far).map(|slot| (slot.key, slot.value)).collect::<Vec<_>>();
        made.restore(entry.key, entry.account.nonce, entry.account.balance, entry.code, own);
    }
    Ok((made, pieces))
}

type Lie = fn(&mut Piece);

fn honest(state: &State, part: &Part) -> Piece {
    state.piece(part.account().as_ref(), part.path()).unwrap()
}

#[test]
fn a_state_is_the_same_after_it_went_over_in_parts() {
    for (accounts, large, least) in [(1, 0, 1), (30, 500, 2), (4_000, 9_000, 20)] {
        let state = state(accounts, large);
        let (made, pieces) = copy(&state, |part| honest(&state, part)).unwrap();
        assert_eq!(made.root(), state.root());
        assert_eq!(made.accounts(), accounts as usize);
        assert!(pieces >= least, "{pieces} pieces for {accounts} accounts");
    }
}

#[test]
fn every_lie_is_seen_in_the_piece_that_has_it() {
    let state = state(4_000, 9_000);
    let lies: &[(Lie, PieceError)] = &[
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries[0].account.balance += U256::from(1)
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries[0].account.nonce += 1
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries[0].key = B256::repeat_byte(7)
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    drop(entries.pop())
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries.clear()
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries.swap(0, 1)
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    let twice = entries[0].clone();
                    entries.insert(0, twice)
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries[0].code = vec![9].into()
                }
            },
            PieceError::Code,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries.iter_mut().for_each(|entry| entry.slots.truncate(entry.slots.len().max(1) - 1))
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(entries) = piece {
                    entries
                        .iter_mut()
                        .flat_map(|entry| &mut entry.slots)
                        .for_each(|slot| slot.value += U256::from(1));
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Slots(slots) = piece {
                    slots[0].value += U256::from(1)
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Slots(slots) = piece {
                    slots.truncate(1)
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Node(node) = piece {
                    let mut bytes = node.to_vec();
                    bytes[40] ^= 1;
                    *node = bytes.into()
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Node(node) = piece {
                    *node = Bytes::new()
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Node(_) = piece {
                    *piece = Piece::Accounts(Vec::new())
                }
            },
            PieceError::Root,
        ),
        (
            |piece| {
                if let Piece::Accounts(_) = piece {
                    *piece = Piece::Slots(Vec::new())
                }
            },
            PieceError::Kind,
        ),
        (
            |piece| {
                if let Piece::Slots(_) = piece {
                    *piece = Piece::Accounts(Vec::new())
                }
            },
            PieceError::Kind,
        ),
    ];
    for (index, (lie, expected)) in lies.iter().enumerate() {
        let told = copy(&state, |part| {
            let mut piece = honest(&state, part);
            lie(&mut piece);
            piece
        });
        assert_eq!(told.err(), Some(*expected), "lie {index}");
    }
    // An older state of the same chain is another one.
    let older = self::state(3_999, 9_000);
    assert_eq!(copy(&state, |part| honest(&older, part)).err(), Some(PieceError::Root));
}

#[test]
fn what_is_no_piece_or_no_node_is_refused() {
    for bytes in [&[][..], &[0xc0], &[0xc1, 9], &[0xc3, 2, 0xc0, 0x80], &[0xc2, 2, 0xc0, 0]] {
        assert_eq!(Piece::decode(bytes), Err(PieceError::Malformed), "{bytes:?}");
    }
    let mut long = Vec::new();
    Piece::Node(vec![0; 2 << 20].into()).encode(&mut long);
    assert_eq!(Piece::decode(&long), Err(PieceError::Malformed));
    // Bytes whose hash was asked for, and that are no inner node: a leaf, a value in a branch, no list.
    for node in [&[0xc4, 0x82, 0x20, 1, 2][..], &[0xc2, 0x80, 0x80], &[0x80], &[0xc3, 0x82, 0x00, 1]] {
        let part = Part::whole(keccak256(node));
        assert_eq!(part.check(&Piece::Node(node.to_vec().into())), Err(PieceError::Malformed), "{node:?}");
    }
    let state = state(100, 0);
    assert_eq!(state.piece(None, &[16]), None);
    assert_eq!(state.piece(None, &[0; 65]), None);
    assert_eq!(state.piece(Some(&B256::ZERO), &[]), None);
    assert_eq!(State::default().piece(None, &[]), None);
}
