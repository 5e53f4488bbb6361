//! Who runs when.
//!
//! Time is counted in tokens that the engine has run. A sequence gets a rank when it is submitted: that time, later by
//! its priority's delay, and not before the ranks that its tenant has used up, so that a tenant with many requests is
//! passed by one with few (start-time fair queueing: Goyal, Vin and Cheng, 1996). The smallest rank goes first. As the
//! time grows with every step, newer sequences rank behind an old one whatever their priority: nobody starves.

use std::collections::HashMap;

use crate::kv::Tenant;

/// Tenants whose use is remembered.
const TENANTS: usize = 1024;

/// How urgent a sequence is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits in the middle of an answer.
    High,
    /// As usual.
    #[default]
    Normal,
    /// Nobody waits for it.
    Low,
}

impl Priority {
    /// Tokens that others may run first, at most.
    fn delay(self) -> u64 {
        match self {
            Priority::High => 0,
            Priority::Normal => 4096,
            Priority::Low => 32_768,
        }
    }
}

/// How a sequence is treated beside others. Nothing here changes its tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Service {
    /// How urgent it is.
    pub priority: Priority,
    /// Who asks. Sequences of one tenant read each other's keys and values where their texts begin alike, and they
    /// count as one in the queue. How long a prompt takes then tells whether somebody with the same tenant has sent its
    /// beginning before; so a tenant must be something that nobody else can name. `None` shares nothing.
    pub tenant: Option<Tenant>,
}

/// Gives out ranks.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Tokens run so far.
    now: u64,
    /// For each tenant, the rank after its last sequence.
    used: HashMap<Option<Tenant>, u64>,
}

impl Clock {
    pub(crate) fn run(&mut self, tokens: usize) {
        self.now += tokens as u64;
    }

    /// The rank of a new sequence that may take `cost` tokens.
    pub(crate) fn rank(&mut self, service: &Service, cost: usize) -> u64 {
        if self.used.len() >= TENANTS {
            self.used.retain(|_, used| *used > self.now);
        }
        let start = self.used.get(&service.tenant).map_or(self.now, |&used| used.max(self.now));
        // Past the limit the tenants are served in order of arrival, which is fair enough to stay bounded.
        if self.used.len() < TENANTS || self.used.contains_key(&service.tenant) {
            self.used.insert(service.tenant, start + cost as u64);
        }
        start + service.priority.delay()
    }
}

/// Divides `budget` among `needs`: all get the same, but nobody more than it needs (max-min fairness). What cannot be
/// divided goes to the first.
pub(crate) fn shares(needs: &[usize], budget: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|&index| needs[index]); // stable
    let (mut left, mut shares) = (budget, vec![0; needs.len()]);
    for (done, &index) in order.iter().enumerate() {
        shares[index] = needs[index].min(left.div_ceil(needs.len() - done));
        left -= shares[index];
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_needs_are_met_and_long_ones_share() {
        assert_eq!(shares(&[1000, 10, 1000], 128), [59, 10, 59]);
        assert_eq!(shares(&[1000, 1000, 1000], 128), [43, 43, 42]);
        assert_eq!(shares(&[5, 5, 5], 2), [1, 1, 0]);
        assert!(shares(&[], 2).is_empty());
    }

    proptest! {
        #[test]
        fn shares_use_the_budget_and_are_fair(needs in prop::collection::vec(0usize..300, 0..12), budget in 0usize..600) {
            let found = shares(&needs, budget);
            prop_assert_eq!(found.iter().sum::<usize>(), budget.min(needs.iter().sum()));
            for (share, need) in found.iter().zip(&needs) {
                prop_assert!(share <= need);
                // Who gets less than it needs gets no less than any other, but for the rest of the division.
                prop_assert!(share == need || found.iter().skip(1).all(|other| *other <= share + 1));
            }
        }
    }

    fn tenant(byte: u8) -> Service {
        Service { tenant: Some(Tenant([byte; 32])), ..Service::default() }
    }

    #[test]
    fn a_tenant_with_one_request_passes_one_with_many() {
        let mut clock = Clock::default();
        let many: Vec<u64> = (0..5).map(|_| clock.rank(&tenant(1), 100)).collect();
        let one = clock.rank(&tenant(2), 100);
        assert!(many.is_sorted() && one == many[0] && one < many[1]);
        clock.run(10_000);
        assert!(clock.rank(&tenant(3), 100) > many[4], "later ones rank behind");
    }

    #[test]
    fn nobody_is_passed_for_ever() {
        let mut clock = Clock::default();
        let low = clock.rank(&Service { priority: Priority::Low, ..tenant(1) }, 10);
        let high = Service { priority: Priority::High, ..tenant(2) };
        assert!(clock.rank(&high, 10) < clock.rank(&tenant(3), 10));
        assert!(clock.rank(&high, 10) < low);
        clock.run(40_000);
        assert!(clock.rank(&high, 10) > low);
    }

    #[test]
    fn the_memory_of_tenants_is_bounded() {
        let mut clock = Clock::default();
        for number in 0u32..5000 {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&number.to_le_bytes());
            clock.rank(&Service { tenant: Some(Tenant(name)), ..Service::default() }, 10);
        }
        assert!(clock.used.len() <= TENANTS);
    }
}
