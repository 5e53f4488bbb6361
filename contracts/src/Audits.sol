// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";
import {Key, Registry} from "./Registry.sol";
import {Batch, Line, Opening, Settlement} from "./Settlement.sol";
import {Audit, Statements} from "./Statements.sol";

/// @title Audits
/// @notice Sampled audits of settled receipts. The hash of the block after a batch's draw was asked for decides which
/// receipts are audited and by which workers of other operators, so a worker cannot foresee it when it answers or when it
/// submits. An auditor that signs a verdict in time earns an equal part of the auditors' share of the batch; what is left
/// goes to the treasury. Whoever finds a difference can open a dispute.
contract Audits is System {
    using Statements for *;

    /// @notice Blocks after which the hash of a block is gone.
    uint256 public constant HASHES = 256;

    /// @notice The batch is not pending.
    error NotPending(uint256 batch);
    /// @notice The draw was not asked for, or its block is not there yet.
    error TooEarly();
    /// @notice The draw was made, or was asked for and its block is still known.
    error AlreadyDrawn(uint256 batch);
    /// @notice The audit is not the one that was drawn, or was recorded already.
    error BadAudit(string why);

    /// @notice The audits of a batch are drawn by the block after the given one.
    event DrawAsked(uint256 indexed batch, uint256 blockNumber);
    /// @notice The audits of a batch were drawn.
    event Drawn(uint256 indexed batch, bytes32 seed);
    /// @notice A drawn audit was made; it is paid with the batch.
    event Audited(uint256 indexed batch, uint256 indexed sample, address indexed auditor, uint8 verdict);
    /// @notice The auditors' share of a batch was credited; the rest went to the treasury.
    event Shared(uint256 indexed batch, uint256 toAuditors, uint256 toTreasury);
    /// @notice Credits were withdrawn.
    event CreditWithdrawn(address indexed account, uint256 amount);
    /// @notice Governance set the number of audits for each batch.
    event SamplesSet(uint8 samples);

    Registry private immutable _REGISTRY;
    Settlement private immutable _SETTLEMENT;
    address private immutable _TREASURY;

    /// @notice Audits drawn for each batch, 0 to 32.
    uint8 public samples;
    mapping(uint256 batch => uint256 blockNumber) private _askedIn;
    /// @notice What draws the audits of a batch; zero before the draw.
    mapping(uint256 batch => bytes32) public seedOf;
    mapping(uint256 batch => mapping(uint256 sample => address operator)) private _audited;
    /// @notice What an operator may withdraw, in 10^-18 OPG.
    mapping(address operator => uint256) public credit;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {
        _REGISTRY = Registry(a.registry);
        _SETTLEMENT = Settlement(a.settlement);
        _TREASURY = a.treasury;
    }

    /// @notice Sets the first number of audits; called once, when the proxy is built.
    function initialize(uint8 samples_) external initializer {
        _setSamples(samples_);
    }

    /// @notice Sets the number of audits for each batch, at most 32. Governance only.
    function setSamples(uint8 samples_) external onlyGovernance {
        _setSamples(samples_);
    }

    function _setSamples(uint8 samples_) private {
        if (samples_ > 32) revert ParameterRange("samples");
        samples = samples_;
        emit SamplesSet(samples_);
    }

    /// @notice Asks for the draw of a pending batch, which the hash of the next block decides; or draws, once that is
    /// there. A draw that nobody makes while the hash is known can be asked for again. Anybody may call.
    /// @param id Number of the batch.
    function draw(uint256 id) external {
        if (_SETTLEMENT.batchOf(id).state != 1) revert NotPending(id);
        if (seedOf[id] != 0) revert AlreadyDrawn(id);
        uint256 asked = _askedIn[id];
        if (asked == 0 || block.number > asked + HASHES) {
            _askedIn[id] = block.number;
            emit DrawAsked(id, block.number);
            return;
        }
        if (block.number <= asked + 1) revert TooEarly();
        bytes32 seed = keccak256(abi.encode(blockhash(asked + 1), id));
        seedOf[id] = seed;
        emit Drawn(id, seed);
    }

    /// @notice What a draw chose.
    /// @param id Number of the batch.
    /// @param lines Its lines.
    /// @param sample Number of the audit, below `samples`.
    /// @return line Index of the line.
    /// @return index Index of the leaf in it.
    /// @return auditor The worker that is to audit; zero when no other operator has one.
    function drawn(uint256 id, Line[] calldata lines, uint256 sample)
        public
        view
        returns (uint32 line, uint32 index, address auditor)
    {
        Batch memory b = _SETTLEMENT.batchOf(id);
        if (b.state != 1 || keccak256(abi.encode(lines)) != b.lines) revert NotPending(id);
        bytes32 seed = seedOf[id];
        if (seed == 0) revert TooEarly();
        if (sample >= samples) revert BadAudit("sample");
        uint256 pick = uint256(keccak256(abi.encode(seed, sample, "leaf"))) % b.leaves;
        for (uint256 i; i < lines.length; ++i) {
            if (b.accepted >> i & 1 == 0) continue;
            if (pick < lines[i].count) {
                (line, index) = (uint32(i), uint32(pick));
                break;
            }
            pick -= lines[i].count;
        }
        auditor = _auditor(uint256(keccak256(abi.encode(seed, sample, "auditor"))), _REGISTRY.keyOf(b.worker).operator);
    }

    function _auditor(uint256 start, address operator) private view returns (address) {
        uint256 n = _REGISTRY.workerCount();
        uint256 most = _REGISTRY.WORKERS();
        // An operator has at most `most` workers, so that many steps and one more pass all of its own.
        for (uint256 i; i < n && i <= most; ++i) {
            address worker = _REGISTRY.workerAt((start % n + i) % n);
            if (_REGISTRY.keyOf(worker).operator != operator) return worker;
        }
        return address(0);
    }

    /// @notice Records a drawn audit of a pending batch. A verdict of `unable` earns nothing and is refused.
    /// @param id Number of the batch.
    /// @param lines Its lines.
    /// @param sample Number of the audit.
    /// @param o The audited receipt and its place.
    /// @param statement The audit.
    /// @param signature The auditor's signature.
    function audit(
        uint256 id,
        Line[] calldata lines,
        uint256 sample,
        Opening calldata o,
        Audit calldata statement,
        bytes calldata signature
    ) external {
        if (_audited[id][sample] != address(0)) revert BadAudit("recorded");
        {
            (uint32 line, uint32 index, address auditor) = drawn(id, lines, sample);
            if (o.line != line || o.index != index) revert BadAudit("leaf");
            if (statement.auditor != auditor || auditor == address(0)) revert BadAudit("auditor");
        }
        {
            (, bytes32 receiptHash) = _SETTLEMENT.opened(id, lines, o);
            if (statement.receipt != receiptHash) revert BadAudit("receipt");
        }
        if (statement.verdict > 1) revert BadAudit("verdict");
        Key memory key = _REGISTRY.keyOf(statement.auditor);
        if (statement.keyEpoch != key.epoch) revert BadAudit("key epoch");
        bytes32 digest = Statements.separator(address(_SETTLEMENT)).digest(statement.hash());
        if (digest.signer(signature) != statement.auditor) revert BadAudit("signature");
        _audited[id][sample] = key.operator;
        emit Audited(id, sample, statement.auditor, statement.verdict);
    }

    /// @notice Shares out what settlement sent for a batch. Settlement only.
    /// @param id Number of the batch.
    /// @param amount What was sent, in 10^-18 OPG.
    function share(uint256 id, uint256 amount) external {
        if (msg.sender != address(_SETTLEMENT)) revert NotAllowed(msg.sender);
        uint256 rest = amount;
        for (uint256 i; i < samples; ++i) {
            address operator = _audited[id][i];
            if (operator == address(0)) continue;
            credit[operator] += amount / samples;
            rest -= amount / samples;
        }
        emit Shared(id, amount - rest, rest);
        OPG.transfer(_TREASURY, rest);
    }

    /// @notice Withdraws the caller's credit.
    function withdrawCredit() external {
        uint256 amount = credit[msg.sender];
        credit[msg.sender] = 0;
        emit CreditWithdrawn(msg.sender, amount);
        OPG.transfer(msg.sender, amount);
    }
}
