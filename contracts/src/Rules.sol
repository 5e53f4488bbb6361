// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";
import {Deposits} from "./Deposits.sol";
import {Key, Registry} from "./Registry.sol";
import {Leaf, Line} from "./Settlement.sol";
import {Receipt, Statements, Voucher} from "./Statements.sol";

/// @title Rules
/// @notice What makes a receipt payable: one function, which settlement asks before it strikes a receipt and which anybody
/// can call beforehand. It holds nothing and changes nothing.
contract Rules is System {
    using Statements for *;

    /// @notice What clocks may differ, in milliseconds.
    uint256 public constant CLOCK_SKEW_MS = 60_000;

    Registry private immutable _REGISTRY;
    Deposits private immutable _DEPOSITS;
    address private immutable _SETTLEMENT;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {
        _REGISTRY = Registry(a.registry);
        _DEPOSITS = Deposits(a.deposits);
        _SETTLEMENT = a.settlement;
    }

    /// @notice Nothing is set at first; called once, when the proxy is built.
    function initialize() external initializer {}

    /// @notice Why a receipt is not payable; empty when it is. All the checks, in this order; docs/settlement.md explains them.
    /// @param worker The batch's worker.
    /// @param submittedAt The batch's time, in seconds since 1970.
    /// @param line The line that has it.
    /// @param amount The amount that the tree has for it.
    /// @param leaf The receipt, its voucher and both signatures.
    function fault(address worker, uint256 submittedAt, Line calldata line, uint128 amount, Leaf calldata leaf)
        external
        view
        returns (string memory)
    {
        Receipt calldata r = leaf.receipt;
        if (r.price != amount) return "amount";
        if (r.worker != worker) return "worker";
        if (r.payer != line.payer) return "payer";
        if (r.model != line.model) return "model";
        if (r.nonce < line.first || r.nonce > line.last) return "nonce";
        // A worker may say only what its signature stands for, or that the output is a proof, which only an integer graph's is.
        if (r.level != 0 && (r.level != 3 || r.arithmetic >> 31 == 0)) return "level";
        if (r.receivedAtMs > r.firstTokenAtMs || r.firstTokenAtMs > r.finishedAtMs) return "times";
        if (r.finishedAtMs > submittedAt * 1000 + CLOCK_SKEW_MS) return "future";
        Key memory key = _REGISTRY.keyOf(worker);
        if (r.keyEpoch != key.epoch) return "key epoch";
        if (r.receivedAtMs + CLOCK_SKEW_MS < uint256(key.from) * 1000) return "before the key";
        if (key.until != 0 && r.receivedAtMs > uint256(key.until) * 1000 + CLOCK_SKEW_MS) return "after the key";
        bytes32 domain = Statements.separator(_SETTLEMENT);
        if (domain.digest(r.hash()).signer(leaf.signature) != worker) return "signature";
        return _voucherFault(domain, submittedAt, r, leaf.voucher, leaf.voucherSignature);
    }

    function _voucherFault(
        bytes32 domain,
        uint256 submittedAt,
        Receipt calldata r,
        Voucher calldata v,
        bytes calldata signature
    ) private view returns (string memory) {
        if (v.payer != r.payer || v.worker != r.worker || v.model != r.model) return "voucher parties";
        if (v.request != r.request || v.nonce != r.nonce) return "voucher request";
        if (r.receivedAtMs > v.expiresAtMs) return "voucher expired";
        // 2^128 times 2^32, twice, fits 256 bits.
        uint256 price = uint256(v.promptPrice) * r.promptTokens + uint256(v.completionPrice) * r.completionTokens;
        if (r.price != price) return "price";
        if (r.price > v.cap || r.price > r.cap) return "cap";
        address signer = domain.digest(v.hash()).signer(signature);
        if (signer == address(0)) return "voucher signature";
        if (signer != v.payer && _DEPOSITS.signerUntil(v.payer, signer) < submittedAt) return "voucher signature";
        return "";
    }
}
