// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Models} from "../src/Models.sol";
import {Key, Member, Offer, Operator, Registry} from "../src/Registry.sol";
import {ServiceLevels, Terms} from "../src/ServiceLevels.sol";
import {Failure, Receipt, Statements} from "../src/Statements.sol";
import {System} from "../src/System.sol";
import {Treasury} from "../src/Treasury.sol";
import {Deployment} from "./Deployment.sol";

contract RegistryTest is Deployment {
    using Statements for *;

    uint256 constant KEY = 0x3042;
    uint256 constant NEXT = 0x3043;
    bytes32 constant MODEL = bytes32(uint256(5));
    address worker;

    function setUp() public override {
        super.setUp();
        worker = enlist(bob, KEY);
    }

    function offer() internal pure returns (Offer memory) {
        return Offer(1 ether, 2 ether, 1, 8192, 5, "a model");
    }

    // ---- operators ----

    function test_operators() public {
        vm.startPrank(bob);
        vm.expectRevert(abi.encodeWithSelector(Registry.AlreadyOperator.selector, bob));
        registry.registerOperator("again", BOND);
        vm.stopPrank();
        vm.startPrank(carol);
        vm.expectPartialRevert(Registry.BondTooLow.selector);
        registry.registerOperator("c", BOND - 1);
        vm.expectPartialRevert(Registry.TextLength.selector);
        registry.registerOperator("", BOND);
        vm.expectPartialRevert(Registry.TextLength.selector);
        registry.registerOperator(string(new bytes(257)), BOND);
        vm.expectPartialRevert(Registry.NotOperator.selector);
        registry.leaveBond(1);
        vm.expectPartialRevert(Registry.NotOperator.selector);
        registry.addBond(carol, 1);
        vm.expectPartialRevert(Registry.NotOperator.selector);
        registry.addWorker(carol, "u", 0, "");
        vm.stopPrank();
        vm.prank(guardian);
        pause.pause("x");
        vm.prank(carol);
        vm.expectPartialRevert(System.Paused.selector);
        registry.registerOperator("c", BOND);
    }

    function test_a_bond_leaves_after_its_delay() public {
        vm.startPrank(bob);
        vm.expectPartialRevert(Registry.BondTooLow.selector);
        registry.leaveBond(BOND + 1); // a worker is in use
        vm.expectPartialRevert(Registry.BondTooLow.selector);
        registry.leaveBond(2 * BOND + 1);
        vm.expectRevert(Registry.ZeroAmount.selector);
        registry.leaveBond(0);
        vm.expectRevert(Registry.ZeroAmount.selector);
        registry.withdrawBond();
        registry.leaveBond(BOND);
        vm.warp(block.timestamp + 21 days - 1);
        vm.expectPartialRevert(Registry.NotYet.selector);
        registry.withdrawBond();
        vm.warp(block.timestamp + 1);
        uint256 before = opg.balanceOf(bob);
        registry.withdrawBond();
        assertEq(opg.balanceOf(bob) - before, BOND, "withdrawn");
        registry.retireWorker(worker);
        registry.leaveBond(BOND);
        vm.expectRevert(Registry.ZeroAmount.selector);
        registry.addBond(bob, 0);
        registry.addBond(bob, 5);
        assertEq(registry.operatorOf(bob).bond, 5, "added");
        vm.stopPrank();
    }

    function test_what_leaves_still_answers() public {
        vm.prank(bob);
        registry.leaveBond(BOND);
        vm.expectRevert(abi.encodeWithSelector(System.NotAllowed.selector, address(this)));
        registry.take(bob, 1);
        vm.prank(disputes);
        assertEq(registry.take(bob, BOND + 5), BOND + 5, "both parts");
        Operator memory o = registry.operatorOf(bob);
        assertEq(o.bond, 0, "first what stays");
        assertEq(o.leaving, BOND - 5, "then what leaves");
        vm.prank(address(settlement));
        assertEq(registry.take(bob, BOND), BOND - 5, "no more than there is");
    }

    // ---- workers ----

    function test_a_key_must_sign_and_is_used_once() public {
        bytes memory proof = workerKeySignature(NEXT, carol, 1);
        vm.startPrank(bob);
        vm.expectRevert(abi.encodeWithSelector(Registry.KeyProof.selector, vm.addr(NEXT)));
        registry.addWorker(vm.addr(NEXT), "u", 0, proof); // signed for another operator
        vm.expectRevert(abi.encodeWithSelector(Registry.KeyUsed.selector, worker));
        registry.addWorker(worker, "u", 0, proof);
        vm.expectRevert(abi.encodeWithSelector(Registry.KeyProof.selector, address(0)));
        registry.addWorker(address(0), "u", 0, "");
        vm.stopPrank();
    }

    function test_rotation_keeps_the_old_key_checkable() public {
        vm.startPrank(bob);
        registry.setOffer(worker, MODEL, offer());
        bytes memory stale = workerKeySignature(NEXT, bob, 1);
        vm.expectRevert(abi.encodeWithSelector(Registry.KeyProof.selector, vm.addr(NEXT)));
        registry.rotateKey(worker, vm.addr(NEXT), stale);
        vm.warp(block.timestamp + 100);
        registry.rotateKey(worker, vm.addr(NEXT), workerKeySignature(NEXT, bob, 2));
        vm.stopPrank();
        Key memory old = registry.keyOf(worker);
        Key memory next = registry.keyOf(vm.addr(NEXT));
        assertEq(old.operator, bob, "still bob's");
        assertEq(old.until, block.timestamp, "until");
        assertEq(next.epoch, 2, "epoch");
        assertEq(next.from, block.timestamp, "from");
        assertEq(registry.workerCount(), 1, "one worker");
        assertEq(registry.operatorOf(bob).workers, 1, "one worker");
        Member memory m = registry.member(0);
        assertEq(m.worker, vm.addr(NEXT), "listed");
        assertEq(m.models.length, 1, "offers stay");
        assertEq(bytes(registry.offerOf(worker, MODEL).name).length, 0, "with the new key");
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(Registry.NotYourWorker.selector, worker));
        registry.retireWorker(worker);
    }

    function test_workers_and_offers_are_their_operators() public {
        vm.startPrank(carol);
        bytes memory refusal = abi.encodeWithSelector(Registry.NotYourWorker.selector, worker);
        vm.expectRevert(refusal);
        registry.setOffer(worker, MODEL, offer());
        vm.expectRevert(refusal);
        registry.removeOffer(worker, MODEL);
        vm.expectRevert(refusal);
        registry.setEndpoint(worker, "u", 0);
        vm.expectRevert(refusal);
        registry.retireWorker(worker);
        vm.expectRevert(refusal);
        registry.rotateKey(worker, carol, "");
        vm.stopPrank();
        vm.startPrank(bob);
        vm.expectRevert(abi.encodeWithSelector(Registry.NoOffer.selector, MODEL));
        registry.removeOffer(worker, MODEL);
        registry.setOffer(worker, MODEL, offer());
        registry.setOffer(worker, bytes32(uint256(6)), offer());
        registry.setOffer(worker, MODEL, offer());
        assertEq(registry.member(0).models.length, 2, "two");
        registry.removeOffer(worker, MODEL);
        assertEq(registry.member(0).models.length, 1, "one");
        registry.setEndpoint(worker, "https://elsewhere.example", bytes32(uint256(2)));
        vm.stopPrank();
    }

    function test_workers_and_offers_are_bounded() public {
        vm.startPrank(bob);
        for (uint256 i; i < 64; ++i) {
            registry.setOffer(worker, bytes32(i + 1), offer());
        }
        vm.expectRevert(abi.encodeWithSelector(Registry.TooMany.selector, 64));
        registry.setOffer(worker, bytes32(uint256(99)), offer());
        for (uint256 i = 1; i < 64; ++i) {
            bytes memory proof = workerKeySignature(0x9000 + i, bob, 1);
            registry.addWorker(vm.addr(0x9000 + i), "u", 0, proof);
        }
        bytes memory last = workerKeySignature(0x9999, bob, 1);
        vm.expectRevert(abi.encodeWithSelector(Registry.TooMany.selector, 64));
        registry.addWorker(vm.addr(0x9999), "u", 0, last);
        vm.stopPrank();
    }

    function test_registry_parameters() public {
        vm.expectPartialRevert(System.NotGovernance.selector);
        registry.setParameters(1, 14 days);
        vm.startPrank(address(timelock));
        vm.expectRevert(abi.encodeWithSelector(System.ParameterRange.selector, "leastBond"));
        registry.setParameters(0, 14 days);
        vm.expectRevert(abi.encodeWithSelector(System.ParameterRange.selector, "delay"));
        registry.setParameters(1, 14 days - 1);
        registry.setParameters(5_000 ether, 14 days);
        vm.stopPrank();
        bytes memory proof = workerKeySignature(NEXT, bob, 1);
        vm.prank(bob);
        vm.expectPartialRevert(Registry.BondTooLow.selector);
        registry.addWorker(vm.addr(NEXT), "u", 0, proof);
    }

    // ---- models ----

    function test_models() public {
        uint256 supply = opg.totalSupply();
        vm.startPrank(carol);
        models.register(MODEL, 500, "a model");
        assertEq(supply - opg.totalSupply(), 100 ether, "the price is burnt");
        vm.expectRevert(abi.encodeWithSelector(Models.AlreadyRegistered.selector, MODEL));
        models.register(MODEL, 500, "a model");
        vm.expectRevert(Models.Malformed.selector);
        models.register(0, 500, "a model");
        vm.expectRevert(Models.Malformed.selector);
        models.register(bytes32(uint256(9)), 500, "");
        vm.expectPartialRevert(Models.FeeTooHigh.selector);
        models.register(bytes32(uint256(9)), 2_001, "a model");
        vm.expectPartialRevert(Models.FeeTooHigh.selector);
        models.lowerFee(MODEL, 501);
        models.lowerFee(MODEL, 400);
        vm.expectRevert(Models.Malformed.selector);
        models.transferModel(MODEL, address(0));
        models.transferModel(MODEL, dave);
        vm.expectRevert(abi.encodeWithSelector(Models.NotAuthor.selector, carol));
        models.lowerFee(MODEL, 1);
        vm.expectPartialRevert(System.NotGovernance.selector);
        models.strike(MODEL);
        vm.expectPartialRevert(System.NotGovernance.selector);
        models.setPrice(1);
        vm.stopPrank();
        vm.startPrank(address(timelock));
        models.strike(MODEL);
        models.setPrice(1);
        vm.stopPrank();
        assertEq(models.modelOf(MODEL).author, address(0), "struck");
    }

    // ---- service levels ----

    function terms() internal pure returns (Terms memory) {
        return Terms(500, 20_000, true, 10 ether, 25 ether);
    }

    function receipt(uint64 first, uint64 all, uint32 tokens) internal view returns (Receipt memory r) {
        r.worker = worker;
        r.keyEpoch = 1;
        r.payer = carol;
        r.completionTokens = tokens;
        r.receivedAtMs = uint64(block.timestamp) * 1000;
        r.firstTokenAtMs = r.receivedAtMs + first;
        r.finishedAtMs = r.receivedAtMs + all;
    }

    function signed(bytes32 structHash) internal view returns (bytes memory) {
        return sign(KEY, Statements.separator(address(settlement)).digest(structHash));
    }

    function test_a_missed_promise_pays_the_caller() public {
        vm.prank(bob);
        levels.makePromise(worker, terms(), 100 ether);
        uint256 before = opg.balanceOf(carol);
        Receipt memory r = receipt(501, 600, 1);
        bytes memory signature = signed(r.hash());
        levels.claimReceipt(r, signature);
        assertEq(opg.balanceOf(carol) - before, 10 ether, "late");
        vm.expectPartialRevert(ServiceLevels.AlreadyClaimed.selector);
        levels.claimReceipt(r, signature);
        // 16 tokens in a second are less than 20 a second.
        r = receipt(0, 1000, 16);
        levels.claimReceipt(r, signed(r.hash()));
        assertEq(opg.balanceOf(carol) - before, 20 ether, "slow");
        // The day's limit is used up, and there again tomorrow.
        Failure memory f;
        (f.worker, f.keyEpoch, f.payer, f.code) = (worker, 1, carol, 1);
        f.receivedAtMs = uint64(block.timestamp) * 1000;
        signature = signed(f.hash());
        vm.expectPartialRevert(ServiceLevels.UsedUp.selector);
        levels.claimFailure(f, signature);
        vm.warp(block.timestamp + 1 days);
        f.receivedAtMs = uint64(block.timestamp) * 1000;
        levels.claimFailure(f, signed(f.hash()));
        assertEq(opg.balanceOf(carol) - before, 30 ether, "failure");
    }

    function test_a_kept_promise_pays_nothing() public {
        vm.prank(bob);
        levels.makePromise(worker, terms(), 25 ether);
        Receipt[3] memory kept = [receipt(500, 600, 1), receipt(0, 1000, 20), receipt(0, 60_000, 15)];
        for (uint256 i; i < 3; ++i) {
            bytes memory signature = signed(kept[i].hash());
            vm.expectRevert(ServiceLevels.Kept.selector);
            levels.claimReceipt(kept[i], signature);
        }
        Failure memory f;
        (f.worker, f.keyEpoch, f.payer) = (worker, 1, carol);
        f.receivedAtMs = uint64(block.timestamp) * 1000;
        uint8[7] memory callers = [2, 3, 4, 5, 6, 9, 10];
        for (uint256 i; i < 7; ++i) {
            f.code = callers[i];
            bytes memory signature = signed(f.hash());
            vm.expectRevert(ServiceLevels.Kept.selector);
            levels.claimFailure(f, signature);
        }
    }

    function test_claims_are_checked() public {
        Receipt memory r = receipt(501, 600, 1);
        bytes memory signature = signed(r.hash());
        vm.expectPartialRevert(ServiceLevels.NoPromise.selector);
        levels.claimReceipt(r, signature);
        vm.prank(bob);
        levels.makePromise(worker, terms(), 25 ether);
        bytes memory wrong = sign(NEXT, Statements.separator(address(settlement)).digest(r.hash()));
        vm.expectRevert(ServiceLevels.BadSignature.selector);
        levels.claimReceipt(r, wrong);
        r.keyEpoch = 2;
        signature = signed(r.hash());
        vm.expectRevert(ServiceLevels.BadSignature.selector);
        levels.claimReceipt(r, signature);
        r = receipt(501, 600, 1);
        r.receivedAtMs -= 1000; // before the promise
        signature = signed(r.hash());
        vm.expectPartialRevert(ServiceLevels.NotCovered.selector);
        levels.claimReceipt(r, signature);
        r = receipt(501, 600, 1);
        signature = signed(r.hash());
        vm.warp(block.timestamp + 7 days + 1);
        vm.expectPartialRevert(ServiceLevels.NotCovered.selector);
        levels.claimReceipt(r, signature);
    }

    function test_a_promise_ends_with_notice() public {
        vm.startPrank(bob);
        vm.expectPartialRevert(ServiceLevels.NoPromise.selector);
        levels.withdraw(worker);
        vm.expectRevert(ServiceLevels.BadTerms.selector);
        levels.makePromise(worker, Terms(0, 0, false, 1, 1), 1);
        vm.expectRevert(ServiceLevels.BadTerms.selector);
        levels.makePromise(worker, Terms(1, 0, false, 2, 1), 5);
        vm.expectRevert(ServiceLevels.BadTerms.selector);
        levels.makePromise(worker, Terms(1, 0, false, 1, 5), 4);
        levels.makePromise(worker, terms(), 25 ether);
        vm.expectPartialRevert(ServiceLevels.AlreadyPromised.selector);
        levels.makePromise(worker, terms(), 25 ether);
        levels.addBond(worker, 5 ether);
        vm.expectPartialRevert(ServiceLevels.NoPromise.selector);
        levels.returnBond(worker);
        levels.withdraw(worker);
        vm.expectPartialRevert(ServiceLevels.NoPromise.selector);
        levels.withdraw(worker);
        vm.warp(block.timestamp + 12 hours);
        Receipt memory r = receipt(501, 600, 1);
        levels.claimReceipt(r, signed(r.hash()));
        vm.warp(block.timestamp + 12 hours);
        r = receipt(501, 600, 1);
        bytes memory signature = signed(r.hash());
        vm.expectPartialRevert(ServiceLevels.NotCovered.selector);
        levels.claimReceipt(r, signature);
        vm.expectPartialRevert(ServiceLevels.NotYet.selector);
        levels.returnBond(worker);
        vm.warp(block.timestamp + 8 days);
        uint256 before = opg.balanceOf(bob);
        levels.returnBond(worker);
        assertEq(opg.balanceOf(bob) - before, 20 ether, "the rest");
        vm.stopPrank();
        vm.prank(carol);
        vm.expectPartialRevert(ServiceLevels.NotYourWorker.selector);
        levels.makePromise(worker, terms(), 25 ether);
        vm.expectPartialRevert(ServiceLevels.NoPromise.selector);
        levels.addBond(worker, 1);
    }

    // ---- treasury ----

    function test_treasury() public {
        vm.prank(carol);
        opg.transfer(address(treasury), 10 ether);
        vm.expectPartialRevert(System.NotGovernance.selector);
        treasury.pay(carol, 1, "x");
        vm.expectPartialRevert(System.NotGovernance.selector);
        treasury.recordRelease("1.0.0", "x86_64-unknown-linux-gnu", bytes32(uint256(1)));
        vm.startPrank(address(timelock));
        vm.expectRevert(Treasury.NoRecipient.selector);
        treasury.pay(address(0), 1, "x");
        vm.expectRevert(Treasury.NoHash.selector);
        treasury.recordRelease("1.0.0", "x86_64-unknown-linux-gnu", 0);
        treasury.pay(dave, 3 ether, "work");
        treasury.recordRelease("1.0.0", "x86_64-unknown-linux-gnu", bytes32(uint256(1)));
        vm.stopPrank();
        assertEq(opg.balanceOf(address(treasury)), 7 ether, "paid");
        assertEq(treasury.releaseCount(), 1, "one");
        assertEq(treasury.release(0).sha256, bytes32(uint256(1)), "hash");
    }
}
