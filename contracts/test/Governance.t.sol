// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {IGovernor} from "@openzeppelin/contracts/governance/IGovernor.sol";
import {Initializable} from "@openzeppelin/contracts/proxy/utils/Initializable.sol";
import {Audits} from "../src/Audits.sol";
import {Settlement, SettlementParameters} from "../src/Settlement.sol";
import {Addresses, System} from "../src/System.sol";
import {Treasury} from "../src/Treasury.sol";
import {Deployment} from "./Deployment.sol";

/// Another version of the treasury.
contract Treasury2 is Treasury {
    constructor(Addresses memory a) Treasury(a) {}

    function version() external pure returns (uint256) {
        return 2;
    }
}

contract GovernanceTest is Deployment {
    address[] targets;
    uint256[] values;
    bytes[] calls;

    function setUp() public override {
        super.setUp();
        vm.prank(alice);
        opg.delegate(alice);
        vm.prank(bob);
        opg.delegate(bob);
        vm.warp(block.timestamp + 1);
    }

    function proposal(address target, bytes memory call) internal {
        targets = new address[](1);
        values = new uint256[](1);
        calls = new bytes[](1);
        (targets[0], calls[0]) = (target, call);
    }

    /// Takes the proposal through vote and delay.
    function accept(string memory description) internal {
        vm.prank(alice);
        uint256 id = governor.propose(targets, values, calls, description);
        vm.warp(block.timestamp + 1 days + 1);
        vm.prank(alice);
        governor.castVote(id, 1);
        vm.warp(block.timestamp + 5 days);
        bytes32 hash = keccak256(bytes(description));
        governor.queue(targets, values, calls, hash);
        vm.expectPartialRevert(TimelockController.TimelockUnexpectedOperationState.selector);
        governor.execute(targets, values, calls, hash);
        vm.warp(block.timestamp + 2 days);
        governor.execute(targets, values, calls, hash);
    }

    function test_a_parameter_changes_through_vote_and_delay() public {
        SettlementParameters memory p = settlement.parameters();
        p.window = 2 days;
        proposal(address(settlement), abi.encodeCall(Settlement.setParameters, (p)));
        accept("a longer window");
        assertEq(settlement.parameters().window, 2 days, "window");
    }

    function test_an_upgrade_needs_a_vote() public {
        Addresses memory a;
        (a.timelock, a.opg, a.pause) = (address(timelock), address(opg), address(pause));
        Treasury2 next = new Treasury2(a);
        vm.expectRevert(abi.encodeWithSelector(System.NotGovernance.selector, address(this)));
        treasury.upgradeToAndCall(address(next), "");
        proposal(address(treasury), abi.encodeCall(treasury.upgradeToAndCall, (address(next), "")));
        accept("the next treasury");
        assertEq(Treasury2(address(treasury)).version(), 2, "upgraded");
    }

    function test_a_vote_that_is_lost_changes_nothing() public {
        proposal(address(audits), abi.encodeCall(Audits.setSamples, (9)));
        vm.prank(alice);
        uint256 id = governor.propose(targets, values, calls, "lost");
        vm.warp(block.timestamp + 1 days + 1);
        vm.prank(bob);
        governor.castVote(id, 0);
        vm.warp(block.timestamp + 5 days);
        vm.expectPartialRevert(IGovernor.GovernorUnexpectedProposalState.selector);
        governor.queue(targets, values, calls, keccak256("lost"));
    }

    function test_too_few_votes_propose_nothing() public {
        proposal(address(audits), abi.encodeCall(Audits.setSamples, (9)));
        vm.prank(carol); // has tokens, and delegated its votes to nobody
        vm.expectPartialRevert(IGovernor.GovernorInsufficientProposerVotes.selector);
        governor.propose(targets, values, calls, "x");
    }

    function test_staked_tokens_vote() public {
        vm.prank(carol);
        staking.join(abi.encode("key"), 0, 200_000 ether);
        vm.warp(block.timestamp + 1);
        assertEq(governor.getVotes(carol, block.timestamp - 1), 200_000 ether, "votes");
        proposal(address(audits), abi.encodeCall(Audits.setSamples, (9)));
        vm.prank(carol);
        governor.propose(targets, values, calls, "by a staker");
    }

    function test_the_deployer_has_no_power() public {
        assertTrue(!timelock.hasRole(timelock.DEFAULT_ADMIN_ROLE(), address(this)), "no admin");
        assertTrue(!timelock.hasRole(timelock.PROPOSER_ROLE(), address(this)), "no proposer");
        vm.expectRevert();
        timelock.schedule(address(opg), 0, "", 0, 0, 2 days);
    }

    function test_nothing_is_initialised_twice_and_no_code_at_all_by_itself() public {
        SettlementParameters memory p = settlement.parameters();
        vm.expectRevert(Initializable.InvalidInitialization.selector);
        settlement.initialize(p);
        vm.expectRevert(Initializable.InvalidInitialization.selector);
        treasury.initialize();
        Addresses memory a;
        Settlement code = new Settlement(a);
        vm.expectRevert(Initializable.InvalidInitialization.selector);
        code.initialize(p);
    }
}
