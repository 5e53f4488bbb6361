// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Audit, Failure, Receipt, Statements} from "../src/Statements.sol";
import {Test} from "./Test.sol";

/// The vectors of docs/receipt.md: what Rust and Python agree on.
contract StatementsTest is Test {
    using Statements for *;

    string json = vm.readFile("../docs/vectors/receipt.json");
    string place;

    function number(string memory name) internal view returns (uint256) {
        return vm.parseJsonUint(json, string.concat(place, ".typed_data.message.", name));
    }

    function word(string memory name) internal view returns (bytes32) {
        return vm.parseJsonBytes32(json, string.concat(place, ".typed_data.message.", name));
    }

    function account(string memory name) internal view returns (address) {
        return vm.parseJsonAddress(json, string.concat(place, ".typed_data.message.", name));
    }

    function text(string memory name) internal view returns (string memory) {
        return vm.parseJsonString(json, string.concat(place, ".typed_data.message.", name));
    }

    function check(bytes32 structHash) internal view {
        // The vectors' chain id is that of forge's own chain.
        bytes32 domain = Statements.separator(vm.parseJsonAddress(json, ".domain.contract"));
        assertEq(domain, vm.parseJsonBytes32(json, ".domain_separator"), "domain");
        bytes32 digest = domain.digest(structHash);
        assertEq(digest, vm.parseJsonBytes32(json, string.concat(place, ".digest")), "digest");
        bytes memory signature = vm.parseJsonBytes(json, string.concat(place, ".signature"));
        address signer = vm.parseJsonAddress(json, string.concat(place, ".signer"));
        assertEq(digest.signer(signature), signer, "signer");
        // Only the canonical form counts.
        signature[64] = bytes1(uint8(signature[64]) - 27);
        assertEq(digest.signer(signature), address(0), "v of 0 or 1");
        signature[64] = bytes1((uint8(signature[64]) ^ 1) + 27);
        assembly {
            let s := mload(add(signature, 64))
            mstore(add(signature, 64), sub(0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141, s))
        }
        assertEq(digest.signer(signature), address(0), "s in the upper half");
    }

    function kind(string memory name) internal returns (bool) {
        return keccak256(bytes(vm.parseJsonString(json, string.concat(place, ".typed_data.primaryType"))))
            == keccak256(bytes(name));
    }

    function test_vectors() public {
        uint256 seen;
        for (uint256 i; i < 4; ++i) {
            place = string.concat(".statements[", string(abi.encodePacked(bytes1(uint8(48 + i)))), "]");
            if (kind("Receipt")) {
                check(receipt().hash());
                seen |= 1;
            } else if (kind("Failure")) {
                check(failure().hash());
                seen |= 2;
            } else if (kind("Audit")) {
                check(audit().hash());
                seen |= 4;
            }
        }
        assertEq(seen, 7, "a receipt, a failure and an audit");
    }

    function receipt() internal view returns (Receipt memory r) {
        r.worker = account("worker");
        r.keyEpoch = uint64(number("keyEpoch"));
        r.model = word("model");
        r.arithmetic = uint32(number("arithmetic"));
        r.level = uint8(number("level"));
        r.request = word("request");
        r.output = word("output");
        r.chunks = uint64(number("chunks"));
        r.chain = word("chain");
        r.trace = word("trace");
        r.promptTokens = uint32(number("promptTokens"));
        r.completionTokens = uint32(number("completionTokens"));
        r.price = uint128(number("price"));
        r.payer = account("payer");
        r.cap = uint128(number("cap"));
        r.nonce = word("nonce");
        r.sequence = uint64(number("sequence"));
        r.previous = word("previous");
        r.receivedAtMs = uint64(number("receivedAtMs"));
        r.firstTokenAtMs = uint64(number("firstTokenAtMs"));
        r.finishedAtMs = uint64(number("finishedAtMs"));
    }

    function failure() internal view returns (Failure memory f) {
        f.worker = account("worker");
        f.keyEpoch = uint64(number("keyEpoch"));
        f.model = word("model");
        f.request = word("request");
        f.nonce = word("nonce");
        f.payer = account("payer");
        f.code = uint8(number("code"));
        f.message = text("message");
        f.retryAfterMs = uint64(number("retryAfterMs"));
        f.chunks = uint64(number("chunks"));
        f.chain = word("chain");
        f.sequence = uint64(number("sequence"));
        f.previous = word("previous");
        f.receivedAtMs = uint64(number("receivedAtMs"));
        f.finishedAtMs = uint64(number("finishedAtMs"));
    }

    function audit() internal view returns (Audit memory a) {
        a.auditor = account("auditor");
        a.keyEpoch = uint64(number("keyEpoch"));
        a.receipt = word("receipt");
        a.model = word("model");
        a.arithmetic = uint32(number("arithmetic"));
        a.verdict = uint8(number("verdict"));
        a.field = text("field");
        a.position = uint64(number("position"));
        a.expected = uint64(number("expected"));
        a.claimed = uint64(number("claimed"));
        a.sequence = uint64(number("sequence"));
        a.previous = word("previous");
        a.auditedAtMs = uint64(number("auditedAtMs"));
        a.computeMs = uint64(number("computeMs"));
    }
}
