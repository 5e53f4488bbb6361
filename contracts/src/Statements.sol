// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// A worker's word on one answer. Field by field the type of docs/receipt.md.
/// @param worker The worker that signs.
/// @param keyEpoch Epoch of its key.
/// @param model Model that answered.
/// @param arithmetic Version of the arithmetic; 0 for a forwarder.
/// @param level 0 signed, 1 attested, 2 replayed, 3 proved.
/// @param request Salted commitment to the request.
/// @param output Salted commitment to the output.
/// @param chunks Number of streamed chunks.
/// @param chain Last link of the chunk chain.
/// @param trace Root of the execution trace, or zero.
/// @param promptTokens Tokens of the prompt.
/// @param completionTokens Tokens that were sampled.
/// @param price Price in 10^-18 OPG.
/// @param payer Who pays.
/// @param cap Most that the payer agreed to, in 10^-18 OPG.
/// @param nonce The caller's nonce.
/// @param sequence Counts the worker's statements from 0.
/// @param previous Hash of the statement before.
/// @param receivedAtMs Milliseconds since 1970 by the worker's clock, like the other times.
/// @param firstTokenAtMs When the first token was ready.
/// @param finishedAtMs When the answer was complete.
struct Receipt {
    address worker;
    uint64 keyEpoch;
    bytes32 model;
    uint32 arithmetic;
    uint8 level;
    bytes32 request;
    bytes32 output;
    uint64 chunks;
    bytes32 chain;
    bytes32 trace;
    uint32 promptTokens;
    uint32 completionTokens;
    uint128 price;
    address payer;
    uint128 cap;
    bytes32 nonce;
    uint64 sequence;
    bytes32 previous;
    uint64 receivedAtMs;
    uint64 firstTokenAtMs;
    uint64 finishedAtMs;
}

/// A worker's word that it refused or broke off a request. Field by field the type of docs/receipt.md.
struct Failure {
    address worker;
    uint64 keyEpoch;
    bytes32 model;
    bytes32 request;
    bytes32 nonce;
    address payer;
    uint8 code;
    string message;
    uint64 retryAfterMs;
    uint64 chunks;
    bytes32 chain;
    uint64 sequence;
    bytes32 previous;
    uint64 receivedAtMs;
    uint64 finishedAtMs;
}

/// An auditor's word after it replayed another worker's answer. Field by field the type of docs/receipt.md.
struct Audit {
    address auditor;
    uint64 keyEpoch;
    bytes32 receipt;
    bytes32 model;
    uint32 arithmetic;
    uint8 verdict;
    string field;
    uint64 position;
    uint64 expected;
    uint64 claimed;
    uint64 sequence;
    bytes32 previous;
    uint64 auditedAtMs;
    uint64 computeMs;
}

/// A payer's word that one answer to one request may be charged, and on which terms. docs/settlement.md says how it is
/// used.
/// @param payer Who pays.
/// @param worker Who may charge.
/// @param model Model that is to answer.
/// @param request Salted commitment to the request.
/// @param nonce The caller's nonce; nonces of a payer to a worker settle in ascending order.
/// @param prompt `keccak256(salt || token ids as 32-byte words)` of the prompt as the caller tokenised it; zero when the
/// caller leaves that to the worker.
/// @param promptPrice Price of a prompt token in 10^-18 OPG.
/// @param completionPrice Price of a sampled token in 10^-18 OPG.
/// @param cap Most that may be charged, in 10^-18 OPG.
/// @param expiresAtMs The request must be received by then, in milliseconds since 1970.
struct Voucher {
    address payer;
    address worker;
    bytes32 model;
    bytes32 request;
    bytes32 nonce;
    bytes32 prompt;
    uint128 promptPrice;
    uint128 completionPrice;
    uint128 cap;
    uint64 expiresAtMs;
}

/// @title Statements
/// @notice EIP-712 hashes of what workers, auditors and payers sign, as docs/receipt.md defines them. The domain is that of
/// the settlement contract (name `Assay`, version `1`), in every contract that reads a statement.
library Statements {
    bytes32 private constant DOMAIN =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 private constant RECEIPT = keccak256(
        "Receipt(address worker,uint64 keyEpoch,bytes32 model,uint32 arithmetic,uint8 level,bytes32 request,bytes32 output,uint64 chunks,bytes32 chain,bytes32 trace,uint32 promptTokens,uint32 completionTokens,uint128 price,address payer,uint128 cap,bytes32 nonce,uint64 sequence,bytes32 previous,uint64 receivedAtMs,uint64 firstTokenAtMs,uint64 finishedAtMs)"
    );
    bytes32 private constant FAILURE = keccak256(
        "Failure(address worker,uint64 keyEpoch,bytes32 model,bytes32 request,bytes32 nonce,address payer,uint8 code,string message,uint64 retryAfterMs,uint64 chunks,bytes32 chain,uint64 sequence,bytes32 previous,uint64 receivedAtMs,uint64 finishedAtMs)"
    );
    bytes32 private constant AUDIT = keccak256(
        "Audit(address auditor,uint64 keyEpoch,bytes32 receipt,bytes32 model,uint32 arithmetic,uint8 verdict,string field,uint64 position,uint64 expected,uint64 claimed,uint64 sequence,bytes32 previous,uint64 auditedAtMs,uint64 computeMs)"
    );
    bytes32 private constant VOUCHER = keccak256(
        "Voucher(address payer,address worker,bytes32 model,bytes32 request,bytes32 nonce,bytes32 prompt,uint128 promptPrice,uint128 completionPrice,uint128 cap,uint64 expiresAtMs)"
    );

    /// @notice Domain separator of the statements that `settlement` settles.
    function separator(address settlement) internal view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN, keccak256("Assay"), keccak256("1"), block.chainid, settlement));
    }

    /// @notice EIP-712 digest of a struct hash.
    function digest(bytes32 domain, bytes32 structHash) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", domain, structHash));
    }

    /// @notice EIP-712 hashStruct of a receipt.
    function hash(Receipt memory r) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT, r));
    }

    /// @notice EIP-712 hashStruct of a voucher.
    function hash(Voucher memory v) internal pure returns (bytes32) {
        return keccak256(abi.encode(VOUCHER, v));
    }

    /// @notice EIP-712 hashStruct of a failure.
    function hash(Failure memory f) internal pure returns (bytes32) {
        bytes memory head = abi.encode(FAILURE, f.worker, f.keyEpoch, f.model, f.request, f.nonce, f.payer, f.code);
        bytes memory tail = abi.encode(
            keccak256(bytes(f.message)),
            f.retryAfterMs,
            f.chunks,
            f.chain,
            f.sequence,
            f.previous,
            f.receivedAtMs,
            f.finishedAtMs
        );
        return keccak256(bytes.concat(head, tail));
    }

    /// @notice EIP-712 hashStruct of an audit.
    function hash(Audit memory a) internal pure returns (bytes32) {
        bytes memory head =
            abi.encode(AUDIT, a.auditor, a.keyEpoch, a.receipt, a.model, a.arithmetic, a.verdict, keccak256(bytes(a.field)));
        bytes memory tail =
            abi.encode(a.position, a.expected, a.claimed, a.sequence, a.previous, a.auditedAtMs, a.computeMs);
        return keccak256(bytes.concat(head, tail));
    }

    /// @notice Who signed a digest; zero when the signature is not canonical (65 bytes, low `s`, `v` 27 or 28).
    function signer(bytes32 digest_, bytes memory signature) internal pure returns (address) {
        (address who, ECDSA.RecoverError fault,) = ECDSA.tryRecover(digest_, signature);
        return fault == ECDSA.RecoverError.NoError ? who : address(0);
    }
}
