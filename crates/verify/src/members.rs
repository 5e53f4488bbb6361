use assay_receipt::{Address, Domain, Members, Signed};

/// Why a list of members is not to be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembersError {
    /// A length or range is beyond its limit, or the signature is none.
    #[error("the list of members is not valid: {0}; ask its signer for a new one")]
    Invalid(#[from] assay_receipt::Error),
    /// Somebody else signed it, or it was altered after it was signed.
    #[error(
        "the list of members is signed by {found}, not by {expected}, or was altered after it was signed; get the right \
         file or correct the signer's address"
    )]
    Signer {
        /// Whose signature it is.
        found: Address,
        /// Whose it should be.
        expected: Address,
    },
    /// A newer list was seen before.
    #[error(
        "the list of members has the serial {found}, older than {least}, which was seen before; get the newest file"
    )]
    Serial {
        /// Serial of the list.
        found: u64,
        /// The least that is acceptable.
        least: u64,
    },
    /// It does not count any more.
    #[error(
        "the list of members expired at {expires_at_s} and it is {now_s} (seconds since 1970); ask its signer for a new one"
    )]
    Expired {
        /// When it stopped to count.
        expires_at_s: u64,
        /// The time that the caller gave.
        now_s: u64,
    },
}

/// Checks that a list of members is to be used: its limits, its signature, its serial and its expiry. Returns whose
/// signature it is.
///
/// Without an expected `signer` any signature is taken: then the caller must compare the address with one that it knows.
/// `now_s` is the time in seconds since 1970, UTC; `least_serial` is the highest serial that the caller has seen before.
///
/// # Errors
/// [`MembersError`] names the first thing that is wrong.
///
/// ```
/// use assay_receipt::{Domain, Key, Members, Signed};
/// use assay_verify::{MembersError, check_members};
///
/// let key = Key::from_bytes([7; 32])?;
/// let list = Members { serial: 3, issued_at_s: 1, expires_at_s: 100, members: Vec::new() };
/// let domain = Domain::default();
/// let signed = Signed::sign(&key, &domain, list);
/// assert_eq!(check_members(&signed, Some(&key.address()), &domain, 99, 3), Ok(key.address()));
/// assert!(matches!(check_members(&signed, None, &domain, 100, 3), Err(MembersError::Expired { .. })));
/// # Ok::<(), assay_receipt::Error>(())
/// ```
pub fn check_members(
    signed: &Signed<Members>,
    signer: Option<&Address>,
    domain: &Domain,
    now_s: u64,
    least_serial: u64,
) -> Result<Address, MembersError> {
    let list = &signed.statement;
    list.validate()?;
    let found = signed.signer(domain)?;
    if let Some(&expected) = signer
        && expected != found
    {
        return Err(MembersError::Signer { found, expected });
    }
    if list.serial < least_serial {
        return Err(MembersError::Serial { found: list.serial, least: least_serial });
    }
    if now_s >= list.expires_at_s {
        return Err(MembersError::Expired { expires_at_s: list.expires_at_s, now_s });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use assay_receipt::Key;

    use super::*;

    fn signed() -> (Signed<Members>, Address) {
        let key = Key::from_bytes([7; 32]).unwrap();
        let list = Members { serial: 3, issued_at_s: 1, expires_at_s: 100, members: Vec::new() };
        (Signed::sign(&key, &Domain::default(), list), key.address())
    }

    #[test]
    fn a_good_list_is_taken_and_its_signer_named() {
        let (list, signer) = signed();
        for wanted in [None, Some(&signer)] {
            assert_eq!(check_members(&list, wanted, &Domain::default(), 99, 3), Ok(signer));
        }
    }

    #[test]
    fn every_fault_is_found() {
        let (list, signer) = signed();
        let domain = Domain::default();
        let check =
            |list: &Signed<Members>, now_s, least| check_members(list, Some(&signer), &domain, now_s, least);
        assert_eq!(check(&list, 100, 0), Err(MembersError::Expired { expires_at_s: 100, now_s: 100 }));
        assert_eq!(check(&list, 9, 4), Err(MembersError::Serial { found: 3, least: 4 }));
        let mut longer = list.clone();
        longer.statement.expires_at_s = 1_000;
        assert!(matches!(check(&longer, 9, 0), Err(MembersError::Signer { .. } | MembersError::Invalid(_))));
        let stranger = Key::from_bytes([8; 32]).unwrap();
        let forged = Signed::sign(&stranger, &domain, list.statement.clone());
        assert_eq!(
            check(&forged, 9, 0),
            Err(MembersError::Signer { found: stranger.address(), expected: signer })
        );
        let elsewhere = Domain { chain_id: 1, ..domain };
        assert!(check_members(&list, Some(&signer), &elsewhere, 9, 0).is_err());
        let mut void = list.clone();
        void.statement.issued_at_s = 100;
        assert!(matches!(check(&void, 9, 0), Err(MembersError::Invalid(_))));
        let mut unsigned = list;
        unsigned.signature = assay_receipt::Signature([0; 65]);
        assert!(matches!(check(&unsigned, 9, 0), Err(MembersError::Invalid(_))));
    }
}
