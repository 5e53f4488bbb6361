// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Opg, Allocation} from "../src/Opg.sol";
import {Pause} from "../src/Pause.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {Test} from "./Test.sol";

contract OpgTest is Test {
    Opg opg;
    uint256 constant KEY = 7;
    address alice = vm.addr(KEY);
    address bob = address(0xB0B);

    bytes32 constant TRANSFER = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 constant RECEIVE = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 constant CANCEL = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)");

    function setUp() public {
        Allocation[] memory classes = new Allocation[](2);
        classes[0] = Allocation("treasury", address(1), 400_000_000 ether);
        classes[1] = Allocation("operators", alice, 600_000_000 ether);
        opg = new Opg(classes);
    }

    function digest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", opg.DOMAIN_SEPARATOR(), structHash));
    }

    function signed(bytes32 kind, address from, address to, uint256 value, uint256 a, uint256 b, bytes32 nonce)
        internal
        view
        returns (uint8, bytes32, bytes32)
    {
        return vm.sign(KEY, digest(keccak256(abi.encode(kind, from, to, value, a, b, nonce))));
    }

    function test_supply_is_minted_once_to_its_classes() public view {
        assertEq(opg.totalSupply(), opg.SUPPLY(), "supply");
        assertEq(opg.allocations().length, 2, "classes");
        assertEq(opg.balanceOf(alice), 600_000_000 ether, "alice");
    }

    function test_classes_must_add_up() public {
        Allocation[] memory classes = new Allocation[](1);
        classes[0] = Allocation("all", alice, 5);
        vm.expectRevert(abi.encodeWithSelector(Opg.SupplyMismatch.selector, 5));
        new Opg(classes);
    }

    function test_permit() public {
        bytes32 kind = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 hash = digest(keccak256(abi.encode(kind, alice, bob, 5, 0, block.timestamp)));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(KEY, hash);
        opg.permit(alice, bob, 5, block.timestamp, v, r, s);
        vm.prank(bob);
        opg.transferFrom(alice, bob, 5);
        assertEq(opg.balanceOf(bob), 5, "bob");
        vm.expectRevert();
        opg.permit(alice, bob, 5, block.timestamp, v, r, s);
    }

    function test_transfer_with_authorization_once_and_in_time() public {
        uint256 t = block.timestamp;
        (uint8 v, bytes32 r, bytes32 s) = signed(TRANSFER, alice, bob, 9, t, t + 10, "n");
        bytes memory call = abi.encodeWithSignature(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)",
            alice, bob, 9, t, t + 10, bytes32("n"), v, r, s
        );
        (bool ok,) = address(opg).call(call);
        assertTrue(!ok, "not yet valid");
        vm.warp(t + 10);
        (ok,) = address(opg).call(call);
        assertTrue(!ok, "no longer valid");
        vm.warp(t + 5);
        (ok,) = address(opg).call(call);
        assertTrue(ok, "valid");
        (ok,) = address(opg).call(call);
        assertTrue(!ok, "used");
        assertEq(opg.balanceOf(bob), 9, "bob");
        assertTrue(opg.authorizationState(alice, "n"), "recorded");
    }

    function test_receive_is_for_the_receiver_alone() public {
        uint256 t = block.timestamp;
        (uint8 v, bytes32 r, bytes32 s) = signed(RECEIVE, alice, bob, 9, 0, t + 10, "n");
        vm.expectRevert(abi.encodeWithSelector(IERC20Errors.ERC20InvalidReceiver.selector, bob));
        opg.receiveWithAuthorization(alice, bob, 9, 0, t + 10, "n", v, r, s);
        vm.prank(bob);
        opg.receiveWithAuthorization(alice, bob, 9, 0, t + 10, "n", v, r, s);
        assertEq(opg.balanceOf(bob), 9, "bob");
    }

    function test_cancelled_authorization_is_used_up() public {
        uint256 t = block.timestamp;
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(KEY, digest(keccak256(abi.encode(CANCEL, alice, bytes32("n")))));
        opg.cancelAuthorization(alice, "n", v, r, s);
        (v, r, s) = signed(TRANSFER, alice, bob, 9, 0, t + 10, "n");
        vm.expectRevert(abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, alice, bytes32("n")));
        opg.transferWithAuthorization(alice, bob, 9, 0, t + 10, "n", v, r, s);
    }

    function test_a_signature_for_other_terms_moves_nothing() public {
        uint256 t = block.timestamp;
        (uint8 v, bytes32 r, bytes32 s) = signed(TRANSFER, alice, bob, 9, 0, t + 10, "n");
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        opg.transferWithAuthorization(alice, bob, 10, 0, t + 10, "n", v, r, s);
    }

    function test_votes_follow_the_clock() public {
        vm.prank(alice);
        opg.delegate(alice);
        vm.warp(block.timestamp + 1);
        assertEq(opg.getPastVotes(alice, block.timestamp - 1), 600_000_000 ether, "votes");
        assertEq(opg.clock(), block.timestamp, "clock");
        assertEq(keccak256(bytes(opg.CLOCK_MODE())), keccak256("mode=timestamp"), "mode");
    }
}

contract PauseTest is Test {
    address timelock = address(0x71);
    address guardian = address(0x6A);
    Pause pause;

    function setUp() public {
        pause = new Pause(timelock, guardian);
    }

    function test_expires_by_itself_and_rests() public {
        vm.prank(guardian);
        pause.pause("a bug");
        uint256 until = block.timestamp + pause.LONGEST();
        assertEq(pause.until(), until, "until");
        vm.warp(until + pause.REST() - 1);
        vm.expectRevert(abi.encodeWithSelector(Pause.Resting.selector, until + pause.REST()));
        vm.prank(guardian);
        pause.pause("again");
        vm.warp(until + pause.REST());
        vm.prank(guardian);
        pause.pause("again");
    }

    function test_only_the_guardian_pauses() public {
        vm.expectRevert(abi.encodeWithSelector(Pause.NotGuardian.selector, address(this)));
        pause.pause("x");
    }

    function test_only_governance_ends_it_or_names_a_guardian() public {
        vm.expectRevert(abi.encodeWithSelector(Pause.NotGovernance.selector, address(this)));
        pause.unpause();
        vm.expectRevert(abi.encodeWithSelector(Pause.NotGovernance.selector, address(this)));
        pause.setGuardian(address(this));
        vm.prank(timelock);
        vm.expectRevert(Pause.NotPaused.selector);
        pause.unpause();
        vm.prank(guardian);
        pause.pause("x");
        vm.prank(timelock);
        pause.unpause();
        assertEq(pause.until(), block.timestamp, "ended");
        vm.prank(timelock);
        pause.setGuardian(address(0));
        vm.expectRevert(abi.encodeWithSelector(Pause.NotGuardian.selector, guardian));
        vm.prank(guardian);
        pause.pause("x");
    }
}
