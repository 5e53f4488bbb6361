// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Leaving, Staking, StakingParameters} from "../src/Staking.sol";
import {System} from "../src/System.sol";
import {Deployment} from "./Deployment.sol";

contract StakingTest is Deployment {
    address constant CONSENSUS = 0xffffFFFfFFffffffffffffffFfFFFfffFFFfFFfE;

    function setUp() public override {
        super.setUp();
        join(alice, 2_000 ether, 1_000);
    }

    function join(address who, uint128 amount, uint16 commission) internal {
        vm.prank(who);
        staking.join(abi.encode(who), commission, amount);
    }

    function stake(address who, address validator, uint128 amount) internal {
        vm.prank(who);
        staking.delegateStake(validator, amount);
    }

    function unstake(address who, address validator, uint128 shares) internal {
        vm.prank(who);
        staking.undelegateStake(validator, shares);
    }

    function fault(bool equivocation, address validator) internal {
        vm.prank(CONSENSUS);
        if (equivocation) staking.equivocated(validator);
        else staking.absent(validator);
    }

    function test_join_refuses() public {
        vm.startPrank(bob);
        vm.expectRevert(Staking.BadKey.selector);
        staking.join("short", 0, 1_000 ether);
        vm.expectRevert(Staking.BadKey.selector);
        staking.join(abi.encode(alice), 0, 1_000 ether);
        vm.expectPartialRevert(Staking.BadCommission.selector);
        staking.join(abi.encode(bob), 10_001, 1_000 ether);
        vm.expectPartialRevert(Staking.SelfStakeTooLow.selector);
        staking.join(abi.encode(bob), 0, 999 ether);
        vm.stopPrank();
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(Staking.AlreadyValidator.selector, alice));
        staking.join(abi.encode(bob), 0, 1_000 ether);
        for (uint256 i = 1; i < 128; ++i) {
            address who = address(uint160(0x1000 + i));
            vm.prank(dave);
            opg.transfer(who, 1_000 ether);
            vm.prank(who);
            opg.approve(address(staking), 1_000 ether);
            join(who, 1_000 ether, 0);
        }
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(Staking.TooMany.selector, 128));
        staking.join(abi.encode(bob), 0, 1_000 ether);
        uint256 gas = gasleft();
        staking.committee();
        log("committee of 128 validators", gas - gasleft());
    }

    function test_unknown_validators_and_amounts_are_refused() public {
        vm.startPrank(bob);
        vm.expectRevert(abi.encodeWithSelector(Staking.UnknownValidator.selector, carol));
        staking.delegateStake(carol, 1);
        vm.expectPartialRevert(Staking.BadAmount.selector);
        staking.delegateStake(alice, 0);
        vm.expectPartialRevert(Staking.BadAmount.selector);
        staking.undelegateStake(alice, 1);
        vm.expectRevert(Staking.Nothing.selector);
        staking.withdraw(alice);
        vm.expectRevert(Staking.Nothing.selector);
        staking.claim(alice);
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(Staking.NotConsensus.selector, address(this)));
        staking.equivocated(alice);
        vm.expectRevert(abi.encodeWithSelector(Staking.NotConsensus.selector, address(this)));
        staking.absent(alice);
    }

    function test_stake_leaves_after_the_delay() public {
        stake(bob, alice, 500 ether);
        unstake(bob, alice, 200 ether);
        vm.warp(block.timestamp + 21 days - 1);
        vm.prank(bob);
        vm.expectRevert(Staking.Nothing.selector);
        staking.withdraw(alice);
        vm.warp(block.timestamp + 1);
        uint256 before = opg.balanceOf(bob);
        vm.prank(bob);
        staking.withdraw(alice);
        assertEq(opg.balanceOf(bob) - before, 200 ether, "withdrawn");
        assertEq(staking.stakeOf(alice, bob), 300 ether, "the rest");
    }

    function test_withdrawals_are_bounded() public {
        stake(bob, alice, 500 ether);
        for (uint256 i; i < 16; ++i) {
            unstake(bob, alice, 1 ether);
        }
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(Staking.TooMany.selector, 16));
        staking.undelegateStake(alice, 1 ether);
        vm.warp(block.timestamp + 21 days);
        vm.prank(bob);
        assertEq(staking.withdraw(alice), 16 ether, "all at once");
        assertEq(staking.leavingsOf(alice, bob).length, 0, "queue");
    }

    function test_an_owner_keeps_the_least_stake_or_leaves_wholly() public {
        vm.prank(alice);
        vm.expectPartialRevert(Staking.SelfStakeTooLow.selector);
        staking.undelegateStake(alice, 1_001 ether);
        vm.expectPartialRevert(Staking.BadAmount.selector);
        staking.remove(alice);
        unstake(alice, alice, 2_000 ether);
        staking.remove(alice);
        assertEq(staking.validatorCount(), 0, "removed");
        vm.expectRevert(abi.encodeWithSelector(Staking.UnknownValidator.selector, alice));
        staking.remove(alice);
    }

    function test_an_absence_with_the_least_stake_is_made_up_for() public {
        uint128 more = staking.parameters().leastSelf;
        unstake(alice, alice, 2_000 ether - more);
        fault(false, alice);
        vm.warp(block.timestamp + 31 days);
        vm.expectPartialRevert(Staking.BadAmount.selector);
        staking.remove(alice);
        vm.prank(alice);
        vm.expectPartialRevert(Staking.SelfStakeTooLow.selector);
        staking.unjail();
        stake(alice, alice, 1 ether);
        vm.prank(alice);
        staking.unjail();
        (address[] memory seated,,) = staking.committee();
        assertEq(seated.length, 1, "seats again");
    }

    function test_a_slash_reaches_all_in_proportion_also_who_is_leaving() public {
        stake(bob, alice, 2_000 ether);
        stake(carol, alice, 4_000 ether);
        unstake(carol, alice, 1_000 ether);
        uint256 supply = opg.totalSupply();
        fault(true, alice);
        assertEq(staking.stakeOf(alice, alice), 1_900 ether, "alice");
        assertEq(staking.stakeOf(alice, bob), 1_900 ether, "bob");
        assertEq(staking.stakeOf(alice, carol), 2_850 ether, "carol");
        assertEq(supply - opg.totalSupply(), 400 ether, "burnt");
        vm.warp(block.timestamp + 21 days);
        vm.prank(carol);
        assertEq(staking.withdraw(alice), 950 ether, "leaving");
        // Once is enough, and there is no way back.
        fault(true, alice);
        assertEq(staking.stakeOf(alice, bob), 1_900 ether, "bob");
        vm.prank(alice);
        vm.expectPartialRevert(Staking.NotYet.selector);
        staking.unjail();
        (address[] memory seated,,) = staking.committee();
        assertEq(seated.length, 0, "no seats");
    }

    function test_who_was_removed_is_still_slashed_for_what_is_leaving() public {
        stake(bob, alice, 2_000 ether);
        unstake(bob, alice, 1_000 ether);
        unstake(alice, alice, 2_000 ether);
        staking.remove(alice);
        assertEq(staking.validatorOf(alice).jailedUntil, type(uint64).max, "out");
        // An absence costs nothing: it has no seats.
        fault(false, alice);
        assertEq(uint256(staking.validatorOf(alice).tokens), 1_000 ether, "untouched");
        uint256 supply = opg.totalSupply();
        fault(true, alice);
        assertEq(supply - opg.totalSupply(), 200 ether, "burnt");
        fault(true, alice);
        assertEq(supply - opg.totalSupply(), 200 ether, "once");
        vm.warp(block.timestamp + 21 days);
        vm.prank(alice);
        assertEq(staking.withdraw(alice), 1_900 ether, "alice");
        vm.prank(bob);
        assertEq(staking.withdraw(alice), 950 ether, "bob");
        assertEq(staking.stakeOf(alice, bob), 950 ether, "bob's bonded");
        assertEq(uint256(staking.bonded()), 0, "nobody is bonded");
    }

    function test_who_was_slashed_for_an_equivocation_can_be_removed() public {
        fault(true, alice);
        assertTrue(staking.validatorOf(alice).tombstoned, "tombstoned");
        staking.remove(alice);
        assertEq(staking.validatorCount(), 0, "removed");
        unstake(alice, alice, 2_000 ether);
        vm.warp(block.timestamp + 21 days);
        vm.prank(alice);
        assertEq(staking.withdraw(alice), 1_900 ether, "the rest is hers");
    }

    function test_an_absence_in_jail_costs_nothing_more() public {
        fault(false, alice);
        uint256 left = staking.validatorOf(alice).tokens;
        uint64 until = staking.validatorOf(alice).jailedUntil;
        vm.warp(block.timestamp + 5 minutes);
        fault(false, alice);
        assertEq(staking.validatorOf(alice).tokens, left, "stake");
        assertEq(staking.validatorOf(alice).jailedUntil, until, "jail");
        // But an equivocation does.
        fault(true, alice);
        assertTrue(staking.validatorOf(alice).tokens < left, "slashed");
        vm.warp(block.timestamp + 10 minutes);
        vm.prank(alice);
        vm.expectPartialRevert(Staking.NotYet.selector);
        staking.unjail();
    }

    function test_a_key_is_replaced_and_counts_until_stake_could_have_left() public {
        bytes memory next = abi.encodePacked(keccak256("next"), "192.0.2.1:8640");
        bytes32 old = bytes32(abi.encode(alice));
        assertEq(staking.holderOf(old), alice, "old");
        assertEq(staking.holderOf(keccak256("next")), address(0), "nobody's yet");
        vm.prank(alice);
        staking.setKey(next);
        (, bytes[] memory keys,) = staking.committee();
        assertEq(keccak256(keys[0]), keccak256(next), "elected with the new key");
        assertEq(staking.holderOf(keccak256("next")), alice, "new");
        vm.warp(block.timestamp + 21 days - 1);
        assertEq(staking.holderOf(old), alice, "old, before the delay is over");
        vm.warp(block.timestamp + 1);
        assertEq(staking.holderOf(old), address(0), "old, after it");
        assertEq(staking.holderOf(keccak256("next")), alice, "new");
        // The old one is nobody's for ever, not even hers.
        vm.prank(alice);
        vm.expectRevert(Staking.BadKey.selector);
        staking.setKey(abi.encode(alice));
        vm.prank(bob);
        vm.expectRevert(Staking.BadKey.selector);
        staking.join(abi.encode(alice), 0, 1_000 ether);
    }

    function test_an_endpoint_changes_without_the_key() public {
        vm.prank(alice);
        staking.setKey(abi.encodePacked(abi.encode(alice), "192.0.2.1:8640"));
        assertEq(staking.validatorOf(alice).key.length, 46, "registered");
        vm.warp(block.timestamp + 22 days);
        assertEq(staking.holderOf(bytes32(abi.encode(alice))), alice, "still hers");
    }

    function test_a_key_that_is_none_or_not_free_is_refused() public {
        join(bob, 1_000 ether, 0);
        bytes[4] memory wrong =
            [bytes("short"), new bytes(129), abi.encode(bob), abi.encodePacked(abi.encode(bob), "192.0.2.1:8640")];
        for (uint256 i; i < wrong.length; ++i) {
            vm.prank(alice);
            vm.expectRevert(Staking.BadKey.selector);
            staking.setKey(wrong[i]);
        }
        vm.prank(alice);
        vm.expectRevert(Staking.BadKey.selector);
        staking.setKey(abi.encodePacked(abi.encode(alice), new bytes(97)));
        vm.prank(carol);
        vm.expectRevert(abi.encodeWithSelector(Staking.UnknownValidator.selector, carol));
        staking.setKey(abi.encode(carol));
    }

    function test_who_bonds_after_a_slash_does_not_pay_for_it() public {
        fault(false, alice);
        uint256 own = staking.stakeOf(alice, alice);
        stake(bob, alice, 1_000 ether);
        assertTrue(staking.stakeOf(alice, bob) >= 1_000 ether - 1, "bob");
        assertTrue(staking.stakeOf(alice, alice) >= own, "alice");
        unstake(bob, alice, staking.delegationOf(alice, bob).shares);
        vm.warp(block.timestamp + 21 days);
        vm.prank(bob);
        assertTrue(staking.withdraw(alice) >= 1_000 ether - 2, "all of it");
    }

    function test_jail_and_back() public {
        stake(bob, alice, 2_000 ether);
        fault(false, alice);
        vm.startPrank(alice);
        vm.expectPartialRevert(Staking.NotYet.selector);
        staking.unjail();
        vm.warp(block.timestamp + 10 minutes);
        staking.unjail();
        vm.expectRevert(Staking.Nothing.selector);
        staking.unjail();
        vm.stopPrank();
        (address[] memory seated,, uint256[] memory seats) = staking.committee();
        assertEq(seated.length, 1, "seated");
        assertEq(seats[0], 100, "all seats");
        assertEq(uint256(staking.bonded()), staking.validatorOf(alice).tokens, "bonded");
    }

    function test_unjail_needs_the_least_stake() public {
        StakingParameters memory p = staking.parameters();
        p.downtimeBps = 100;
        p.leastSelf = 1_990 ether;
        vm.prank(address(timelock));
        staking.setParameters(p);
        fault(false, alice);
        vm.warp(block.timestamp + 10 minutes);
        vm.prank(alice);
        vm.expectPartialRevert(Staking.SelfStakeTooLow.selector);
        staking.unjail();
    }

    function test_rewards_follow_stake_and_commission() public {
        stake(bob, alice, 2_000 ether);
        join(carol, 4_000 ether, 0);
        vm.prank(dave);
        staking.distribute(800 ether);
        vm.prank(bob);
        assertTrue(200 ether * 90 / 100 - staking.claim(alice) <= 2, "bob: a quarter less the commission");
        vm.prank(alice);
        assertTrue(200 ether * 110 / 100 - staking.claim(alice) <= 4, "alice: a quarter and the commission");
        vm.prank(carol);
        assertTrue(400 ether - staking.claim(carol) <= 2, "carol: half");
        // In jail nobody earns.
        fault(false, alice);
        vm.prank(dave);
        staking.distribute(100 ether);
        vm.prank(bob);
        vm.expectRevert(Staking.Nothing.selector);
        staking.claim(alice);
        fault(false, carol);
        vm.prank(dave);
        vm.expectRevert(Staking.NobodyBonded.selector);
        staking.distribute(1);
    }

    function test_commission_rises_slowly() public {
        vm.startPrank(alice);
        vm.expectPartialRevert(Staking.NotYet.selector);
        staking.setCommission(1_100);
        vm.warp(block.timestamp + 7 days);
        vm.expectPartialRevert(Staking.BadCommission.selector);
        staking.setCommission(1_101);
        staking.setCommission(1_100);
        staking.setCommission(0);
        vm.stopPrank();
    }

    function test_seats_are_proportional() public {
        join(bob, 3_000 ether, 0);
        join(carol, 5_000 ether, 0);
        (address[] memory who,, uint256[] memory seats) = staking.committee();
        assertEq(who.length, 3, "three");
        assertEq(seats[0], 20, "alice");
        assertEq(seats[1], 30, "bob");
        assertEq(seats[2], 50, "carol");
    }

    function test_votes_follow_stake() public {
        stake(bob, alice, 500 ether);
        vm.warp(block.timestamp + 1);
        assertEq(staking.getPastVotes(bob, block.timestamp - 1), 500 ether, "staked");
        fault(true, alice);
        unstake(bob, alice, 100 ether);
        vm.warp(block.timestamp + 1);
        assertEq(staking.getPastVotes(bob, block.timestamp - 1), 380 ether, "after the slash and the withdrawal");
    }

    function test_new_work_stops_in_a_pause_and_leaving_does_not() public {
        stake(bob, alice, 500 ether);
        vm.prank(guardian);
        pause.pause("x");
        vm.startPrank(bob);
        vm.expectPartialRevert(System.Paused.selector);
        staking.delegateStake(alice, 1);
        vm.expectPartialRevert(System.Paused.selector);
        staking.join(abi.encode(bob), 0, 1_000 ether);
        staking.undelegateStake(alice, 500 ether);
        vm.warp(block.timestamp + 21 days);
        staking.withdraw(alice);
        vm.stopPrank();
    }

    function test_parameters_have_ranges() public {
        StakingParameters memory p = staking.parameters();
        vm.expectPartialRevert(System.NotGovernance.selector);
        staking.setParameters(p);
        vm.startPrank(address(timelock));
        for (uint256 i; i < 6; ++i) {
            p = staking.parameters();
            if (i == 0) p.unbonding = 7 days - 1;
            if (i == 1) p.equivocationBps = 0;
            if (i == 2) p.downtimeBps = 101;
            if (i == 3) p.downtimeJail = 31 days;
            if (i == 4) p.leastSelf = 0;
            if (i == 5) p.seats = 1_001;
            vm.expectPartialRevert(System.ParameterRange.selector);
            staking.setParameters(p);
        }
        staking.setParameters(staking.parameters());
        vm.stopPrank();
    }

    /// Any sequence of stakes, withdrawals, rewards, slashes: nobody takes out more than is there, and what is owed is
    /// covered.
    function testFuzz_conservation(uint256 seed) public {
        address[4] memory who = [alice, bob, carol, dave];
        join(bob, 1_500 ether, 500);
        for (uint256 i; i < 40; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            address actor = who[(seed >> 8) % 4];
            address validator = who[(seed >> 16) % 2];
            uint128 amount = uint128((seed >> 24) % 3_000 ether + 1);
            uint256 kind = seed % 8;
            vm.warp(block.timestamp + (seed >> 200) % 10 days);
            vm.prank(kind == 5 ? CONSENSUS : actor);
            bytes memory call = kind <= 1
                ? abi.encodeCall(Staking.delegateStake, (validator, amount))
                : kind == 2
                ? abi.encodeCall(Staking.undelegateStake, (validator, amount))
                : kind == 3
                ? abi.encodeCall(Staking.withdraw, (validator))
                : kind == 4
                ? abi.encodeCall(Staking.claim, (validator))
                : kind == 5
                ? abi.encodeCall(Staking.absent, (validator))
                : kind == 6 ? abi.encodeCall(Staking.distribute, (amount)) : abi.encodeCall(Staking.unjail, ());
            (bool ok,) = address(staking).call(call);
            ok;
        }
        // Everybody leaves.
        for (uint256 v; v < 2; ++v) {
            for (uint256 i = 4; i > 0; --i) {
                vm.startPrank(who[i - 1]);
                uint128 shares = staking.delegationOf(who[v], who[i - 1]).shares;
                Leaving[] memory queue = staking.leavingsOf(who[v], who[i - 1]);
                if (queue.length > 0) {
                    vm.warp(block.timestamp + 21 days);
                    staking.withdraw(who[v]);
                }
                if (shares > 0) {
                    staking.undelegateStake(who[v], shares);
                    vm.warp(block.timestamp + 21 days);
                    staking.withdraw(who[v]);
                }
                try staking.claim(who[v]) {} catch {}
                vm.stopPrank();
            }
            assertEq(staking.validatorOf(who[v]).tokens, 0, "nothing bonded");
            assertEq(staking.validatorOf(who[v]).leavingTokens, 0, "nothing leaving");
        }
        assertEq(uint256(staking.bonded()), 0, "bonded");
        assertEq(
            opg.totalSupply(),
            opg.balanceOf(alice) + opg.balanceOf(bob) + opg.balanceOf(carol) + opg.balanceOf(dave)
                + opg.balanceOf(address(staking)),
            "every token is somewhere"
        );
    }
}
