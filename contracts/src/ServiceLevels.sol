// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";
import {Key, Registry} from "./Registry.sol";
import {Failure, Receipt, Statements} from "./Statements.sol";

/// What a worker promises.
/// @param firstTokenMs Longest time to the first token, in milliseconds; 0 for no promise.
/// @param milliTokensPerS Least speed from the first token on, in thousandths of a token a second; 0 for no promise. It
/// counts for answers of 16 tokens and more.
/// @param failures Whether a refusal or a broken answer that is the worker's own doing (busy, draining, upstream,
/// internal) is a missed promise: the promise of availability.
/// @param compensation What a missed promise pays the caller, in 10^-18 OPG, not zero.
/// @param dailyLimit Most that is paid in a day (UTC, by the statement's time), in 10^-18 OPG, not below `compensation`.
struct Terms {
    uint32 firstTokenMs;
    uint64 milliTokensPerS;
    bool failures;
    uint128 compensation;
    uint128 dailyLimit;
}

/// A promise with its bond.
/// @param terms What is promised.
/// @param operator Who gets the rest of the bond back.
/// @param bond What is left of it, in 10^-18 OPG.
/// @param from The promise holds for requests received from this second on, since 1970.
/// @param until And before this one; 0 while it is not withdrawn.
struct Promise {
    Terms terms;
    address operator;
    uint128 bond;
    uint64 from;
    uint64 until;
}

/// @title ServiceLevels
/// @notice Bonds behind promises of speed and availability. The worker's own signature on its times, or on a failure, is the
/// evidence: whoever shows it gets the payer paid, once for each statement, and nobody decides anything. Times are those of
/// the worker's clock; a caller that measured otherwise has the signed chunks and its own policy, not this bond.
contract ServiceLevels is System {
    using Statements for *;

    /// @notice How long a promise holds after it was withdrawn, in seconds.
    uint256 public constant NOTICE = 1 days;
    /// @notice How long a statement can be claimed after the request was received, in seconds.
    uint256 public constant CLAIM_TIME = 7 days;
    /// @notice Least number of sampled tokens for which the speed counts.
    uint256 public constant TOKENS = 16;

    /// @notice The worker is not one of the caller's, or is retired.
    error NotYourWorker(address worker);
    /// @notice The terms promise nothing, or their amounts are out of range.
    error BadTerms();
    /// @notice The worker has a promise already; withdraw it first.
    error AlreadyPromised(address worker);
    /// @notice The worker has no such promise, or it was withdrawn already.
    error NoPromise(address worker);
    /// @notice Not before the given time (seconds since 1970).
    error NotYet(uint256 time);
    /// @notice The statement is not signed by the worker's key of that epoch.
    error BadSignature();
    /// @notice The statement was claimed before.
    error AlreadyClaimed(bytes32 statement);
    /// @notice The promise did not hold when the request was received, or that is too long ago.
    error NotCovered(uint256 receivedAt);
    /// @notice The promise was kept.
    error Kept();
    /// @notice The day's limit, or the bond, is used up.
    error UsedUp(uint256 left);

    /// @notice A worker made a promise.
    event Promised(address indexed worker, Terms terms, uint256 bond);
    /// @notice A bond grew.
    event BondAdded(address indexed worker, uint256 bond);
    /// @notice A promise ends at the given time.
    event Withdrawn(address indexed worker, uint256 until);
    /// @notice The rest of a bond went back.
    event BondReturned(address indexed worker, uint256 amount);
    /// @notice A missed promise was paid.
    event Compensated(address indexed worker, address indexed payer, bytes32 indexed statement, string miss, uint256 amount);

    Registry private immutable _REGISTRY;
    address private immutable _SETTLEMENT;
    mapping(address worker => Promise) private _promises;
    mapping(bytes32 statement => bool) private _claimed;
    mapping(address worker => mapping(uint256 day => uint256)) private _paid;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {
        _REGISTRY = Registry(a.registry);
        _SETTLEMENT = a.settlement;
    }

    /// @notice Nothing is set at first; called once, when the proxy is built.
    function initialize() external initializer {}

    /// @notice Makes a promise for a worker of the caller, who must have approved the bond.
    /// @param worker The worker.
    /// @param terms What it promises.
    /// @param bond In 10^-18 OPG, at least the daily limit.
    function makePromise(address worker, Terms calldata terms, uint128 bond) external newWork {
        Key memory key = _REGISTRY.keyOf(worker);
        if (key.operator != msg.sender || key.until != 0) revert NotYourWorker(worker);
        if (_promises[worker].operator != address(0)) revert AlreadyPromised(worker);
        if (terms.firstTokenMs == 0 && terms.milliTokensPerS == 0 && !terms.failures) revert BadTerms();
        if (terms.compensation == 0 || terms.dailyLimit < terms.compensation || bond < terms.dailyLimit) revert BadTerms();
        _promises[worker] = Promise(terms, msg.sender, bond, uint64(block.timestamp), 0);
        emit Promised(worker, terms, bond);
        OPG.transferFrom(msg.sender, address(this), bond);
    }

    /// @notice Adds to the bond of a promise. Anybody may.
    function addBond(address worker, uint128 amount) external {
        Promise storage p = _promises[worker];
        if (p.operator == address(0)) revert NoPromise(worker);
        p.bond += amount;
        emit BondAdded(worker, p.bond);
        OPG.transferFrom(msg.sender, address(this), amount);
    }

    /// @notice Withdraws a promise: it still holds for requests that arrive within `NOTICE`.
    function withdraw(address worker) external {
        Promise storage p = _promises[worker];
        if (p.operator != msg.sender || p.until != 0) revert NoPromise(worker);
        p.until = uint64(block.timestamp + NOTICE);
        emit Withdrawn(worker, p.until);
    }

    /// @notice Returns what is left of the bond, once nothing can be claimed any more.
    function returnBond(address worker) external {
        Promise memory p = _promises[worker];
        if (p.operator != msg.sender || p.until == 0) revert NoPromise(worker);
        if (block.timestamp < p.until + CLAIM_TIME) revert NotYet(p.until + CLAIM_TIME);
        delete _promises[worker];
        emit BondReturned(worker, p.bond);
        OPG.transfer(p.operator, p.bond);
    }

    /// @notice Pays the payer of a receipt whose own times show a missed promise. Anybody may call.
    function claimReceipt(Receipt calldata r, bytes calldata signature) external {
        bytes32 statement = Statements.separator(_SETTLEMENT).digest(r.hash());
        Promise storage p = _covered(r.worker, r.keyEpoch, r.receivedAtMs, statement, signature);
        string memory miss = missed(p.terms, r);
        if (bytes(miss).length == 0) revert Kept();
        _compensate(p, r.worker, r.payer, r.receivedAtMs, statement, miss);
    }

    /// @notice Pays the payer of a signed failure, if the promise covers failures. Anybody may call.
    function claimFailure(Failure calldata f, bytes calldata signature) external {
        bytes32 statement = Statements.separator(_SETTLEMENT).digest(f.hash());
        Promise storage p = _covered(f.worker, f.keyEpoch, f.receivedAtMs, statement, signature);
        // 0 busy, 1 draining, 7 upstream, 8 internal: the worker's doing. All others are the caller's.
        if (!p.terms.failures || !(f.code <= 1 || f.code == 7 || f.code == 8)) revert Kept();
        _compensate(p, f.worker, f.payer, f.receivedAtMs, statement, "failure");
    }

    /// @notice What a receipt misses of the terms: `first token`, `speed`, or nothing.
    function missed(Terms memory terms, Receipt calldata r) public pure returns (string memory) {
        if (r.firstTokenAtMs < r.receivedAtMs || r.finishedAtMs < r.firstTokenAtMs) return "";
        if (terms.firstTokenMs != 0 && r.firstTokenAtMs - r.receivedAtMs > terms.firstTokenMs) return "first token";
        uint256 ms = r.finishedAtMs - r.firstTokenAtMs;
        if (
            terms.milliTokensPerS != 0 && r.completionTokens >= TOKENS
                && uint256(r.completionTokens) * 1_000_000 < uint256(terms.milliTokensPerS) * ms
        ) return "speed";
        return "";
    }

    /// @notice A promise; its operator is zero when there is none.
    function promiseOf(address worker) external view returns (Promise memory) {
        return _promises[worker];
    }

    function _covered(address worker, uint64 epoch, uint64 receivedAtMs, bytes32 statement, bytes calldata signature)
        private
        view
        returns (Promise storage p)
    {
        p = _promises[worker];
        if (p.operator == address(0)) revert NoPromise(worker);
        if (_REGISTRY.keyOf(worker).epoch != epoch || statement.signer(signature) != worker) revert BadSignature();
        if (_claimed[statement]) revert AlreadyClaimed(statement);
        uint256 received = receivedAtMs / 1000;
        bool late = block.timestamp > received + CLAIM_TIME || received > block.timestamp + 60;
        if (late || received < p.from || (p.until != 0 && received >= p.until)) revert NotCovered(received);
    }

    function _compensate(
        Promise storage p,
        address worker,
        address payer,
        uint64 receivedAtMs,
        bytes32 statement,
        string memory miss
    ) private {
        uint128 amount = p.terms.compensation;
        uint256 day = receivedAtMs / 1000 / 1 days;
        uint256 paid = _paid[worker][day];
        if (paid + amount > p.terms.dailyLimit) revert UsedUp(p.terms.dailyLimit - paid);
        if (p.bond < amount) revert UsedUp(p.bond);
        _claimed[statement] = true;
        _paid[worker][day] = paid + amount;
        p.bond -= amount;
        emit Compensated(worker, payer, statement, miss, amount);
        OPG.transfer(payer, amount);
    }
}
