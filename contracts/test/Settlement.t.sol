// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Audits} from "../src/Audits.sol";
import {Deposits} from "../src/Deposits.sol";
import {Batch, Leaf, Line, Opening, Settlement, SettlementParameters} from "../src/Settlement.sol";
import {SumTree} from "../src/SumTree.sol";
import {System} from "../src/System.sol";
import {Audit, Receipt, Statements, Voucher} from "../src/Statements.sol";
import {Deployment} from "./Deployment.sol";

contract SettlementTest is Deployment {
    using Statements for *;

    uint256 constant WORKER = 0x3042;
    uint256 constant PAYER = 0xCA401;
    bytes32 constant MODEL = bytes32(uint256(0x4d));
    uint128 constant PRICE = 31 * 2 ether + 4 * 5 ether;

    address worker;
    address payer = carol;

    function setUp() public override {
        super.setUp();
        worker = enlist(bob, WORKER);
        vm.prank(payer);
        deposits.deposit(payer, 1_000_000 ether);
    }

    function leafOf(uint256 i) internal view returns (Leaf memory l) {
        uint64 now_ = uint64(block.timestamp) * 1000;
        l.receipt = Receipt({
            worker: worker,
            keyEpoch: 1,
            model: MODEL,
            arithmetic: 1,
            level: 0,
            request: keccak256(abi.encode("request", i)),
            output: keccak256(abi.encode("output", i)),
            chunks: 4,
            chain: keccak256("chain"),
            trace: 0,
            promptTokens: 31,
            completionTokens: 4,
            price: PRICE,
            payer: payer,
            cap: PRICE + 1,
            nonce: bytes32(uint256(1000 + i * 10)),
            sequence: uint64(i),
            previous: 0,
            receivedAtMs: now_ - 300,
            firstTokenAtMs: now_ - 200,
            finishedAtMs: now_
        });
        l.voucher = Voucher({
            payer: payer,
            worker: worker,
            model: MODEL,
            request: l.receipt.request,
            nonce: l.receipt.nonce,
            prompt: 0,
            promptPrice: 2 ether,
            completionPrice: 5 ether,
            cap: PRICE,
            expiresAtMs: now_
        });
        seal(l);
    }

    function seal(Leaf memory l) internal view {
        bytes32 domain = Statements.separator(address(settlement));
        l.signature = sign(WORKER, domain.digest(l.receipt.hash()));
        l.voucherSignature = sign(PAYER, domain.digest(l.voucher.hash()));
    }

    function leaves(uint256 n) internal view returns (Leaf[] memory all) {
        all = new Leaf[](n);
        for (uint256 i; i < n; ++i) {
            all[i] = leafOf(i);
        }
    }

    struct Node {
        bytes32 hash;
        uint128 sum;
    }

    /// The sum tree over the leaves, and the way from leaf `index` to its root.
    function tree(Leaf[] memory all, uint256 index)
        internal
        pure
        returns (Node memory root, bytes32[] memory siblings, uint128[] memory sums)
    {
        Node[] memory level = new Node[](all.length);
        for (uint256 i; i < all.length; ++i) {
            uint128 amount = all[i].receipt.price;
            level[i] = Node(
                keccak256(abi.encodePacked(uint8(0), uint64(i), amount, keccak256(abi.encode(all[i])))), amount
            );
        }
        siblings = new bytes32[](32);
        sums = new uint128[](32);
        uint256 used;
        while (level.length > 1) {
            if (index ^ 1 < level.length) {
                (siblings[used], sums[used]) = (level[index ^ 1].hash, level[index ^ 1].sum);
                ++used;
            }
            index /= 2;
            Node[] memory up = new Node[]((level.length + 1) / 2);
            for (uint256 i; i < up.length; ++i) {
                Node memory l = level[2 * i];
                if (2 * i + 1 == level.length) {
                    up[i] = l;
                    continue;
                }
                Node memory r = level[2 * i + 1];
                up[i] = Node(keccak256(abi.encodePacked(uint8(1), l.hash, l.sum, r.hash, r.sum)), l.sum + r.sum);
            }
            level = up;
        }
        assembly {
            mstore(siblings, used)
            mstore(sums, used)
        }
        root = level[0];
    }

    function lineOf(Leaf[] memory all) internal view returns (Line memory) {
        (Node memory root,,) = tree(all, 0);
        return Line({
            payer: payer,
            model: MODEL,
            count: uint32(all.length),
            sum: root.sum,
            first: all[0].receipt.nonce,
            last: all[all.length - 1].receipt.nonce,
            root: root.hash
        });
    }

    function open(Leaf[] memory all, uint256 index) internal pure returns (Opening memory o) {
        (, o.siblings, o.sums) = tree(all, index);
        o.index = uint32(index);
        o.amount = all[index].receipt.price;
        o.leaf = all[index];
    }

    function submit(Leaf[] memory all) internal returns (uint256 id, Line[] memory lines) {
        lines = new Line[](1);
        lines[0] = lineOf(all);
        vm.prank(bob);
        id = settlement.submit(worker, lines);
    }

    // ---- the normal way ----

    function test_a_batch_is_paid_after_its_window_in_the_governed_shares() public {
        vm.prank(alice);
        staking.join(abi.encode("key of alice"), 0, 1_000 ether);
        vm.prank(dave);
        models.register(MODEL, 1_000, "a model");
        (uint256 id, Line[] memory lines) = submit(leaves(5));
        uint256 sum = 5 * uint256(PRICE);
        assertEq(deposits.depositOf(payer).balance, 1_000_000 ether - sum, "reserved");
        vm.expectPartialRevert(Settlement.NotYet.selector);
        settlement.pay(id, lines);
        vm.warp(block.timestamp + 1 days);
        uint256 before = opg.balanceOf(bob);
        settlement.pay(id, lines);
        // 3 % auditors (nobody audited: to the treasury), 5 % validators, 2 % treasury, 10 % author.
        assertEq(opg.balanceOf(bob) - before, sum * 80 / 100, "operator");
        assertEq(opg.balanceOf(address(treasury)), sum * 5 / 100, "treasury");
        assertEq(settlement.credit(dave), sum / 10, "author");
        uint256 aliceBefore = opg.balanceOf(alice);
        vm.prank(alice);
        staking.claim(alice);
        assertTrue(sum * 5 / 100 - (opg.balanceOf(alice) - aliceBefore) <= 3, "validators");
        vm.prank(dave);
        settlement.withdrawCredit();
        assertEq(settlement.credit(dave), 0, "withdrawn");
        assertEq(opg.balanceOf(address(settlement)), 0, "nothing is left over");
        assertEq(opg.balanceOf(address(deposits)), deposits.depositOf(payer).balance, "deposits are whole");
        vm.expectRevert(abi.encodeWithSelector(Settlement.NotPending.selector, id));
        settlement.pay(id, lines);
        vm.prank(dave);
        vm.expectPartialRevert(Settlement.BadAmount.selector);
        settlement.withdrawCredit();
    }

    function test_a_receipt_settles_once() public {
        Leaf[] memory all = leaves(3);
        submit(all);
        Line[] memory lines = new Line[](1);
        lines[0] = lineOf(all);
        vm.prank(bob);
        vm.expectRevert(Settlement.NothingAccepted.selector);
        settlement.submit(worker, lines);
        assertEq(settlement.settledUpTo(payer, worker, MODEL), all[2].receipt.nonce, "settled");
    }

    function test_a_line_that_cannot_count_does_not_block_the_others() public {
        Leaf[] memory all = leaves(2);
        Line[] memory lines = new Line[](4);
        lines[0] = lineOf(all);
        lines[0].payer = dave; // has no deposit
        lines[1] = lineOf(all);
        lines[2] = lineOf(all); // the same nonces again
        lines[3] = lineOf(all);
        lines[3].count = 0;
        vm.prank(bob);
        uint256 id = settlement.submit(worker, lines);
        assertEq(settlement.batchOf(id).accepted, 2, "line 1");
        assertEq(settlement.batchOf(id).sum, 2 * uint256(PRICE), "sum");
        vm.warp(block.timestamp + 1 days);
        settlement.pay(id, lines);
    }

    function test_submit_refuses() public {
        Line[] memory lines = new Line[](1);
        lines[0] = lineOf(leaves(1));
        vm.expectRevert(abi.encodeWithSelector(Settlement.NotYourWorker.selector, worker));
        settlement.submit(worker, lines);
        vm.startPrank(bob);
        vm.expectRevert(abi.encodeWithSelector(Settlement.NotYourWorker.selector, dave));
        settlement.submit(dave, lines);
        vm.expectRevert(abi.encodeWithSelector(Settlement.BadLines.selector, 0));
        settlement.submit(worker, new Line[](0));
        vm.expectRevert(abi.encodeWithSelector(Settlement.BadLines.selector, 257));
        settlement.submit(worker, new Line[](257));
        lines[0].first = bytes32(uint256(lines[0].last) + 1);
        vm.expectRevert(Settlement.NothingAccepted.selector);
        settlement.submit(worker, lines);
        vm.stopPrank();
        vm.prank(guardian);
        pause.pause("x");
        vm.prank(bob);
        vm.expectPartialRevert(System.Paused.selector);
        settlement.submit(worker, lines);
    }

    function test_a_batch_needs_the_least_bond() public {
        vm.prank(address(settlement));
        registry.take(bob, BOND + 1);
        Line[] memory lines = new Line[](1);
        lines[0] = lineOf(leaves(1));
        vm.prank(bob);
        vm.expectPartialRevert(Settlement.BondTooLow.selector);
        settlement.submit(worker, lines);
    }

    // ---- strikes ----

    uint256 constant KINDS = 18;

    /// A change that makes a receipt not payable, and the name of the fault.
    function spoil(uint256 kind, Leaf memory l) internal view returns (string memory why) {
        if (kind == 0) {
            l.receipt.worker = dave;
            why = "worker";
        }
        if (kind == 1) {
            l.receipt.payer = dave;
            why = "payer";
        }
        if (kind == 2) {
            l.receipt.model = 0;
            why = "model";
        }
        if (kind == 3) {
            l.receipt.nonce = l.voucher.nonce = bytes32(uint256(1));
            why = "nonce";
        }
        if (kind == 4) {
            l.receipt.level = 2;
            why = "level";
        }
        if (kind == 5) {
            l.receipt.firstTokenAtMs = l.receipt.finishedAtMs + 1;
            why = "times";
        }
        if (kind == 6) {
            l.receipt.finishedAtMs += 61_000;
            why = "future";
        }
        if (kind == 7) {
            l.receipt.keyEpoch = 2;
            why = "key epoch";
        }
        if (kind == 8) {
            l.receipt.receivedAtMs -= 100_000_000;
            why = "before the key";
        }
        if (kind == 9) {
            l.voucher.worker = dave;
            why = "voucher parties";
        }
        if (kind == 10) {
            l.voucher.request = 0;
            why = "voucher request";
        }
        if (kind == 11) {
            l.voucher.expiresAtMs = l.receipt.receivedAtMs - 1;
            why = "voucher expired";
        }
        if (kind == 12) {
            l.receipt.promptTokens += 1;
            why = "price";
        }
        if (kind == 13) {
            l.voucher.cap = PRICE - 1;
            why = "cap";
        }
        if (kind == 14) {
            l.receipt.cap = PRICE - 1;
            why = "cap";
        }
        seal(l);
        if (kind == 15) {
            l.signature = sign(PAYER, l.receipt.hash());
            why = "signature";
        }
        if (kind == 16) {
            l.voucherSignature = l.signature;
            why = "voucher signature";
        }
        if (kind == 17) {
            l.signature[64] = bytes1(uint8(l.signature[64]) - 27);
            why = "signature";
        }
    }

    function test_every_fault_is_struck_and_the_others_are_paid() public {
        for (uint256 kind; kind < KINDS; ++kind) {
            setUp();
            Leaf[] memory all = leaves(5);
            string memory why = spoil(kind, all[2]);
            Line[] memory lines = new Line[](1);
            lines[0] = lineOf(leaves(5));
            (Node memory root,,) = tree(all, 0);
            lines[0].root = root.hash;
            vm.prank(bob);
            uint256 id = settlement.submit(worker, lines);
            Opening memory o = open(all, 2);
            string memory found = rules.fault(worker, block.timestamp, lines[0], o.amount, o.leaf);
            require(keccak256(bytes(found)) == keccak256(bytes(why)), string.concat("want ", why, ", got ", found));
            uint256 bond = registry.operatorOf(bob).bond;
            vm.prank(dave);
            settlement.strike(id, lines, o);
            assertEq(settlement.credit(dave), PENALTY / 2, "the striker's half");
            assertEq(bond - registry.operatorOf(bob).bond, PENALTY, "the penalty");
            assertEq(opg.totalSupply(), opg.SUPPLY() - PENALTY / 2, "the burnt half");
            assertEq(deposits.depositOf(payer).balance, 1_000_000 ether - 4 * uint256(PRICE), "refunded");
            vm.expectRevert(Settlement.AlreadyDone.selector);
            settlement.strike(id, lines, o);
            o = open(all, 1);
            vm.expectRevert(Settlement.Payable.selector);
            settlement.strike(id, lines, o);
            vm.warp(block.timestamp + 1 days);
            uint256 before = opg.balanceOf(bob);
            settlement.pay(id, lines);
            assertEq(opg.balanceOf(bob) - before, 4 * uint256(PRICE) * 90 / 100, "the other four");
        }
    }

    /// What a worker says of itself is `signed`, and `proved` where the arithmetic is an integer graph's, whose output is a proof.
    function test_a_receipt_may_say_proved_where_the_output_is_a_proof() public view {
        uint32[4] memory arithmetics = [uint32(1), (1 << 30) + 1, (1 << 31) + 5, type(uint32).max];
        for (uint256 i; i < 4; ++i) {
            for (uint8 level; level < 5; ++level) {
                Leaf[] memory all = leaves(1);
                (all[0].receipt.arithmetic, all[0].receipt.level) = (arithmetics[i], level);
                seal(all[0]);
                string memory found = rules.fault(worker, block.timestamp, lineOf(all), PRICE, all[0]);
                bool fits = level == 0 || (level == 3 && i >= 2);
                assertTrue((bytes(found).length == 0) == fits, "payable");
                assertTrue(fits || keccak256(bytes(found)) == keccak256("level"), "the fault");
            }
        }
    }

    function test_the_tree_may_not_claim_another_amount() public {
        Leaf[] memory all = leaves(1);
        Line[] memory lines = new Line[](1);
        lines[0] = lineOf(all);
        lines[0].sum = PRICE + 5;
        lines[0].root = keccak256(abi.encodePacked(uint8(0), uint64(0), PRICE + 5, keccak256(abi.encode(all[0]))));
        vm.prank(bob);
        uint256 id = settlement.submit(worker, lines);
        Opening memory o = open(all, 0);
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.strike(id, lines, o);
        o.amount = PRICE + 5;
        settlement.strike(id, lines, o);
    }

    function test_a_receipt_after_its_key_was_retired_is_struck() public {
        vm.warp(block.timestamp + 1 hours);
        vm.prank(bob);
        registry.retireWorker(worker);
        vm.warp(block.timestamp + 1 hours);
        Leaf[] memory all = leaves(1);
        (uint256 id, Line[] memory lines) = submit(all);
        require(
            keccak256(bytes(rules.fault(worker, block.timestamp, lines[0], PRICE, all[0]))) == keccak256("after the key"),
            "fault"
        );
        settlement.strike(id, lines, open(all, 0));
    }

    function test_two_receipts_with_one_nonce_are_out_of_order() public {
        Leaf[] memory all = leaves(4);
        all[2].receipt.nonce = all[1].receipt.nonce;
        all[2].voucher.nonce = all[1].receipt.nonce;
        seal(all[2]);
        (uint256 id, Line[] memory lines) = submit(all);
        Opening memory a = open(all, 1);
        Opening memory b = open(all, 2);
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.strikeOrder(id, lines, b, a);
        Opening memory c = open(all, 3);
        vm.expectRevert(Settlement.InOrder.selector);
        settlement.strikeOrder(id, lines, b, c);
        settlement.strikeOrder(id, lines, a, b);
        assertEq(settlement.batchOf(id).sum, 3 * uint256(PRICE), "sum");
    }

    function test_a_signer_of_the_payer_counts_until_its_right_ends() public {
        uint256 key = 0x5151;
        vm.prank(payer);
        deposits.setSigner(vm.addr(key), uint64(block.timestamp + 30 days));
        Leaf[] memory all = leaves(1);
        bytes32 domain = Statements.separator(address(settlement));
        all[0].voucherSignature = sign(key, domain.digest(all[0].voucher.hash()));
        Line memory line = lineOf(all);
        assertEq(bytes(rules.fault(worker, block.timestamp, line, PRICE, all[0])).length, 0, "payable");
        // Taking the right back leaves workers a week.
        vm.prank(payer);
        deposits.setSigner(vm.addr(key), 0);
        assertEq(deposits.signerUntil(payer, vm.addr(key)), block.timestamp + 7 days, "a week");
        assertTrue(bytes(rules.fault(worker, block.timestamp + 8 days, line, PRICE, all[0])).length != 0, "over");
    }

    function test_strike_refuses_wrong_openings() public {
        Leaf[] memory all = leaves(5);
        spoil(4, all[2]);
        (uint256 id, Line[] memory lines) = submit(all);
        Opening memory o = open(all, 2);
        o.index = 3;
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.strike(id, lines, o);
        o.index = 5;
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.strike(id, lines, o);
        o = open(all, 2);
        o.line = 1;
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.strike(id, lines, o);
        o = open(all, 2);
        o.sums[0] += 1;
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.strike(id, lines, o);
        o = open(all, 2);
        lines[0].sum += 1;
        vm.expectRevert(abi.encodeWithSelector(Settlement.WrongLines.selector, id));
        settlement.strike(id, lines, o);
        lines[0].sum -= 1;
        vm.warp(block.timestamp + 1 days);
        vm.expectPartialRevert(Settlement.WindowOver.selector);
        settlement.strike(id, lines, o);
    }

    function test_a_bond_that_cannot_pay_a_penalty_voids_the_batch() public {
        Leaf[] memory all = leaves(5);
        spoil(15, all[2]);
        (uint256 id, Line[] memory lines) = submit(all);
        vm.prank(address(settlement));
        registry.take(bob, BOND * 2 - PENALTY + 1);
        settlement.strike(id, lines, open(all, 2));
        assertEq(uint256(settlement.batchOf(id).state), 3, "void");
        assertEq(deposits.depositOf(payer).balance, 1_000_000 ether, "all refunded");
        assertEq(deposits.reserved(), 0, "nothing reserved");
    }

    // ---- demands ----

    function test_a_demand_is_answered_for_its_fee() public {
        Leaf[] memory all = leaves(5);
        (uint256 id, Line[] memory lines) = submit(all);
        vm.prank(dave);
        settlement.demand(id, lines, 0, 3);
        vm.expectRevert(Settlement.AlreadyDone.selector);
        vm.prank(dave);
        settlement.demand(id, lines, 0, 3);
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.demand(id, lines, 0, 5);
        vm.expectRevert(Settlement.BadOpening.selector);
        settlement.demand(id, lines, 1, 0);
        vm.warp(block.timestamp + 1 days);
        vm.expectPartialRevert(Settlement.WindowOver.selector);
        settlement.demand(id, lines, 0, 1);
        vm.warp(block.timestamp - 1 days + 5 hours);
        vm.expectRevert(Settlement.BadDemand.selector);
        settlement.expire(id, lines, 0, 3);
        vm.expectRevert(Settlement.BadDemand.selector);
        settlement.answer(id, lines, open(all, 2));
        vm.prank(bob);
        settlement.answer(id, lines, open(all, 3));
        assertEq(settlement.credit(bob), 1 ether, "fee");
        vm.expectRevert(Settlement.BadDemand.selector);
        settlement.answer(id, lines, open(all, 3));
    }

    function test_an_answer_leaves_an_hour_to_strike() public {
        Leaf[] memory all = leaves(2);
        spoil(15, all[1]);
        (uint256 id, Line[] memory lines) = submit(all);
        uint256 t = block.timestamp;
        vm.warp(t + 1 days - 1);
        vm.prank(dave);
        settlement.demand(id, lines, 0, 1);
        vm.warp(t + 1 days + 1);
        vm.expectPartialRevert(Settlement.DemandOpen.selector);
        settlement.pay(id, lines);
        settlement.answer(id, lines, open(all, 1));
        vm.warp(t + 1 days + 59 minutes);
        settlement.strike(id, lines, open(all, 1));
    }

    function test_a_demand_without_an_answer_voids_the_batch() public {
        Leaf[] memory all = leaves(5);
        (uint256 id, Line[] memory lines) = submit(all);
        vm.prank(dave);
        settlement.demand(id, lines, 0, 3);
        vm.prank(dave);
        settlement.demand(id, lines, 0, 4);
        vm.warp(block.timestamp + 6 hours + 1);
        vm.expectRevert(Settlement.BadDemand.selector);
        settlement.answer(id, lines, open(all, 3));
        settlement.expire(id, lines, 0, 3);
        assertEq(settlement.credit(dave), 1 ether + PENALTY / 2, "fee and half a penalty");
        assertEq(deposits.depositOf(payer).balance, 1_000_000 ether, "refunded");
        settlement.refundDemand(id, 0, 4);
        assertEq(settlement.credit(dave), 2 ether + PENALTY / 2, "the other fee");
        vm.expectRevert(Settlement.BadDemand.selector);
        settlement.refundDemand(id, 0, 4);
        vm.expectRevert(abi.encodeWithSelector(Settlement.NotPending.selector, id));
        settlement.pay(id, lines);
    }

    // ---- disputes' side ----

    function test_hold_and_release() public {
        for (uint256 i; i < 2; ++i) {
            setUp();
            Leaf[] memory all = leaves(3);
            (uint256 id, Line[] memory lines) = submit(all);
            Opening memory o = open(all, 1);
            vm.expectRevert(abi.encodeWithSelector(System.NotAllowed.selector, address(this)));
            settlement.hold(id, lines, o);
            vm.prank(disputes);
            bytes32 receipt = settlement.hold(id, lines, o);
            vm.prank(disputes);
            vm.expectRevert(Settlement.AlreadyDone.selector);
            settlement.hold(id, lines, o);
            vm.warp(block.timestamp + 1 days);
            settlement.pay(id, lines);
            vm.expectRevert(abi.encodeWithSelector(System.NotAllowed.selector, address(this)));
            settlement.release(receipt, true);
            uint256 before = opg.balanceOf(bob);
            vm.prank(disputes);
            settlement.release(receipt, i == 0);
            if (i == 0) assertEq(opg.balanceOf(bob) - before, uint256(PRICE) * 90 / 100, "to the worker");
            else assertEq(deposits.depositOf(payer).balance, 1_000_000 ether - 2 * uint256(PRICE), "to the payer");
            assertEq(deposits.reserved(), 0, "nothing reserved");
            vm.prank(disputes);
            settlement.release(receipt, false);
            assertEq(opg.balanceOf(address(deposits)), deposits.depositOf(payer).balance, "released once");
        }
    }

    // ---- audits ----

    function auditOf(address auditor, bytes32 receipt) internal view returns (Audit memory a) {
        a.auditor = auditor;
        a.keyEpoch = 1;
        a.receipt = receipt;
        a.model = MODEL;
        a.arithmetic = 1;
        a.auditedAtMs = uint64(block.timestamp) * 1000;
    }

    function test_audits_are_drawn_and_paid() public {
        address auditor = enlist(dave, 0xDEAF);
        Leaf[] memory all = leaves(5);
        (uint256 id, Line[] memory lines) = submit(all);
        audits.draw(id);
        vm.expectRevert(Audits.TooEarly.selector);
        audits.draw(id);
        vm.expectRevert(Audits.TooEarly.selector);
        audits.drawn(id, lines, 0);
        vm.roll(block.number + 2);
        audits.draw(id);
        vm.expectRevert(abi.encodeWithSelector(Audits.AlreadyDrawn.selector, id));
        audits.draw(id);
        (, uint32 index, address who) = audits.drawn(id, lines, 0);
        assertEq(who, auditor, "the only worker of another operator");
        bytes32 domain = Statements.separator(address(settlement));
        Audit memory a = auditOf(auditor, domain.digest(all[index].receipt.hash()));
        bytes memory signature = sign(0xDEAF, domain.digest(a.hash()));
        Opening memory o = open(all, index);
        Opening memory other = open(all, (index + 1) % 5);
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "leaf"));
        audits.audit(id, lines, 0, other, a, signature);
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "sample"));
        audits.audit(id, lines, 4, o, a, signature);
        bytes memory wrong = sign(WORKER, domain.digest(a.hash()));
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "signature"));
        audits.audit(id, lines, 0, o, a, wrong);
        a.verdict = 2;
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "verdict"));
        audits.audit(id, lines, 0, o, a, signature);
        a.verdict = 0;
        a.keyEpoch = 2;
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "key epoch"));
        audits.audit(id, lines, 0, o, a, signature);
        a.keyEpoch = 1;
        a.auditor = worker;
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "auditor"));
        audits.audit(id, lines, 0, o, a, signature);
        a.auditor = auditor;
        a.receipt = 0;
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "receipt"));
        audits.audit(id, lines, 0, o, a, signature);
        a.receipt = domain.digest(all[index].receipt.hash());
        audits.audit(id, lines, 0, o, a, signature);
        vm.expectRevert(abi.encodeWithSelector(Audits.BadAudit.selector, "recorded"));
        audits.audit(id, lines, 0, o, a, signature);
        vm.expectRevert(abi.encodeWithSelector(System.NotAllowed.selector, address(this)));
        audits.share(id, 5);
        vm.warp(block.timestamp + 1 days);
        settlement.pay(id, lines);
        uint256 share = 5 * uint256(PRICE) * 3 / 100;
        assertEq(audits.credit(dave), share / 4, "one of four samples");
        uint256 before = opg.balanceOf(dave);
        vm.prank(dave);
        audits.withdrawCredit();
        assertEq(opg.balanceOf(dave) - before, share / 4, "withdrawn");
        vm.expectRevert(abi.encodeWithSelector(Audits.NotPending.selector, id));
        audits.draw(id);
    }

    function test_a_draw_that_was_missed_can_be_asked_for_again() public {
        (uint256 id,) = submit(leaves(5));
        audits.draw(id);
        vm.roll(block.number + 300);
        audits.draw(id);
        assertEq(audits.seedOf(id), bytes32(0), "asked again");
        vm.roll(block.number + 2);
        audits.draw(id);
        assertTrue(audits.seedOf(id) != 0, "drawn");
    }

    // ---- deposits ----

    function test_a_deposit_leaves_after_a_week_and_pays_until_then() public {
        vm.startPrank(payer);
        vm.expectPartialRevert(Deposits.BadAmount.selector);
        deposits.askBack(1_000_001 ether);
        deposits.askBack(1_000_000 ether);
        vm.expectPartialRevert(Deposits.NotYet.selector);
        deposits.withdraw();
        vm.stopPrank();
        submit(leaves(2));
        vm.warp(block.timestamp + 7 days);
        uint256 before = opg.balanceOf(payer);
        vm.prank(payer);
        deposits.withdraw();
        assertEq(opg.balanceOf(payer) - before, 1_000_000 ether - 2 * uint256(PRICE), "the rest");
        vm.prank(payer);
        vm.expectPartialRevert(Deposits.BadAmount.selector);
        deposits.withdraw();
        vm.expectPartialRevert(Deposits.BadAmount.selector);
        deposits.deposit(payer, 0);
    }

    function test_only_settlement_moves_deposits() public {
        bytes memory refusal = abi.encodeWithSelector(System.NotAllowed.selector, address(this));
        vm.expectRevert(refusal);
        deposits.reserve(payer, 1);
        vm.expectRevert(refusal);
        deposits.refund(payer, 1);
        vm.expectRevert(refusal);
        deposits.spend(payer, 1);
    }

    // ---- parameters ----

    function test_parameters_have_ranges() public {
        SettlementParameters memory p = settlement.parameters();
        vm.expectRevert(abi.encodeWithSelector(System.NotGovernance.selector, address(this)));
        settlement.setParameters(p);
        vm.startPrank(address(timelock));
        p.window = 59 minutes;
        vm.expectRevert(abi.encodeWithSelector(System.ParameterRange.selector, "window"));
        settlement.setParameters(p);
        p.window = 1 days;
        p.answerTime = 3 days;
        vm.expectRevert(abi.encodeWithSelector(System.ParameterRange.selector, "answerTime"));
        settlement.setParameters(p);
        p.answerTime = 1 hours;
        p.penalty = 0;
        vm.expectRevert(abi.encodeWithSelector(System.ParameterRange.selector, "penalty"));
        settlement.setParameters(p);
        p.penalty = 1;
        p.auditBps = 5_001;
        vm.expectRevert(abi.encodeWithSelector(System.ParameterRange.selector, "shares"));
        settlement.setParameters(p);
        p.auditBps = 1;
        settlement.setParameters(p);
        vm.expectRevert(abi.encodeWithSelector(System.ParameterRange.selector, "samples"));
        audits.setSamples(33);
        audits.setSamples(32);
        vm.stopPrank();
    }

    // ---- gas ----

    function test_gas() public {
        Leaf[] memory all = leaves(64);
        (Line memory line) = lineOf(all);
        line.count = 1 << 20; // the cost does not depend on it
        Line[] memory lines = new Line[](1);
        lines[0] = line;
        vm.prank(bob);
        uint256 gas = gasleft();
        uint256 id = settlement.submit(worker, lines);
        log("submit, one line of any number of receipts", gas - gasleft());
        vm.warp(block.timestamp + 1 days);
        gas = gasleft();
        settlement.pay(id, lines);
        log("pay, one line", gas - gasleft());
        gas = gasleft();
        rules.fault(worker, block.timestamp, line, PRICE, all[1]);
        log("checking one receipt with its voucher (execution alone)", gas - gasleft());
        log("bytes of one receipt with its voucher", abi.encode(all[1]).length);
    }

    /// Any sequence of batches, strikes, demands, answers, holds, releases and payments: what the contracts hold is what they
    /// owe, and no nonce counts twice.
    function testFuzz_conservation(uint256 seed) public {
        Leaf[] memory all = leaves(4);
        spoil(15, all[1]);
        Line[] memory lines = new Line[](1);
        uint256 fees;
        uint256 next = 1;
        bytes32 held;
        for (uint256 i; i < 24; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            uint256 id = 1 + (seed >> 8) % next;
            uint256 index = (seed >> 16) % 4;
            vm.warp(block.timestamp + (seed >> 200) % 4 hours);
            uint256 kind = seed % 8;
            if (kind == 0) {
                Leaf[] memory fresh = all;
                for (uint256 j; j < 4; ++j) {
                    fresh[j].receipt.nonce = bytes32(uint256(10_000 + 100 * i + j));
                    fresh[j].voucher.nonce = fresh[j].receipt.nonce;
                    if (j != 1) seal(fresh[j]);
                }
                lines[0] = lineOf(fresh);
                vm.prank(bob);
                try settlement.submit(worker, lines) {
                    ++next;
                } catch {}
                continue;
            }
            if (lines[0].count == 0) continue;
            Opening memory o = open(all, index);
            vm.startPrank(kind == 5 || kind == 6 ? disputes : dave);
            if (kind == 1) try settlement.strike(id, lines, o) {} catch {}
            if (kind == 2) try settlement.demand(id, lines, 0, uint32(index)) { fees += 1 ether; } catch {}
            if (kind == 3) try settlement.answer(id, lines, o) { fees -= 1 ether; } catch {}
            if (kind == 4) try settlement.expire(id, lines, 0, uint32(index)) { fees -= 1 ether; } catch {}
            if (kind == 5) try settlement.hold(id, lines, o) returns (bytes32 r) { held = r; } catch {}
            if (kind == 6) try settlement.release(held, seed >> 255 == 1) {} catch {}
            if (kind == 7) try settlement.pay(id, lines) {} catch {}
            vm.stopPrank();
            uint256 owed = settlement.credit(dave) + settlement.credit(bob) + fees;
            assertEq(opg.balanceOf(address(settlement)), owed, "settlement holds credits and fees");
            uint256 whole = uint256(deposits.depositOf(payer).balance) + deposits.reserved();
            assertEq(opg.balanceOf(address(deposits)), whole, "deposits hold balances and what is reserved");
        }
    }

    function testFuzz_openings(uint8 n, uint8 index, uint8 other) public view {
        uint256 count = bound(n, 1, 40);
        Leaf[] memory all = leaves(1);
        all = new Leaf[](count);
        for (uint256 i; i < count; ++i) {
            all[i].receipt.price = uint128(i * i + 1);
        }
        uint256 at_ = bound(index, 0, count - 1);
        (Node memory root, bytes32[] memory siblings, uint128[] memory sums) = tree(all, at_);
        assertTrue(this.verify(root, count, at_, all[at_], siblings, sums), "opens");
        uint256 wrong = bound(other, 0, count);
        if (wrong != at_) {
            assertTrue(!this.verify(root, count, wrong, all[at_], siblings, sums), "at its place alone");
        }
        if (siblings.length > 0) {
            sums[0] += 1;
            assertTrue(!this.verify(root, count, at_, all[at_], siblings, sums), "with its sums alone");
            sums[0] -= 1;
            assembly {
                mstore(siblings, sub(mload(siblings), 1))
                mstore(sums, sub(mload(sums), 1))
            }
            assertTrue(!this.verify(root, count, at_, all[at_], siblings, sums), "with all siblings");
        }
    }

    function verify(
        Node calldata root,
        uint256 count,
        uint256 index,
        Leaf calldata leaf,
        bytes32[] calldata siblings,
        uint128[] calldata sums
    ) external pure returns (bool) {
        bytes32 hash = SumTree.leaf(uint64(index), leaf.receipt.price, keccak256(abi.encode(leaf)));
        return SumTree.verify(root.hash, root.sum, count, index, leaf.receipt.price, hash, siblings, sums);
    }
}
