// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";
import {Case, FORCED_CALL, IReferee, Sampling, Subject} from "./Referee.sol";
import {Key, Registry} from "./Registry.sol";
import {Batch, Line, Opening, Settlement} from "./Settlement.sol";
import {Audit, Receipt, Statements} from "./Statements.sol";
import {Tiles} from "./Tiles.sol";

/// The fields of a request, hashed where EIP-712 hashes them: what its commitment opens to.
struct RequestParts {
    bytes32 model;
    uint8 promptKind;
    bytes32 messages;
    bytes32 tools;
    bytes32 toolChoice;
    bool parallelToolCalls;
    bytes32 text;
    bytes32 tokens;
    uint32 maxTokens;
    bytes32 stop;
    Sampling sampling;
    uint8 constraintKind;
    bytes32 constraint;
    bytes32 logprobs;
    uint64 nowUnixS;
}

/// The fields of an output, hashed where EIP-712 hashes them.
struct OutputParts {
    bytes32 text;
    bytes32 toolCalls;
    uint8 finishReason;
    bytes32 tokens;
    uint32 promptTokens;
    uint32 completionTokens;
    bytes32 logprobs;
}

/// A dispute.
/// @param challenger Who says that the answer is not the model's.
/// @param deadline When the side whose turn it is loses, in seconds since 1970.
/// @param turn 0 over or unknown, 1 the worker commits to a trace, 2 the challenger chooses or accuses, 3 the worker reveals.
/// @param level Height of the present node: 0 for a tile; `STEP` above the root before the first choice.
/// @param operator Operator of the worker.
/// @param arithmetic Version of the arithmetic, which names the referee.
/// @param size Length of the trace in bytes.
/// @param index Number of the present node on its level.
/// @param worker The worker, which moves for its operator.
/// @param challengerBond What the challenger put up, in 10^-18 OPG.
/// @param workerBond What was taken of the operator's bond.
/// @param receipt EIP-712 digest of the receipt.
/// @param subject keccak256 of what the trace is of.
/// @param root Root of the trace.
/// @param node The present node.
/// @param children keccak256 of what was revealed below it.
struct Dispute {
    address challenger;
    uint40 deadline;
    uint8 turn;
    uint8 level;
    address operator;
    uint32 arithmetic;
    uint64 size;
    uint64 index;
    address worker;
    uint128 challengerBond;
    uint128 workerBond;
    bytes32 receipt;
    bytes32 subject;
    bytes32 root;
    bytes32 node;
    bytes32 children;
}

/// Governed parameters of disputes.
/// @param bond What each side puts up, in 10^-18 OPG, not zero.
/// @param moveTime Seconds for a move, 10 minutes to 1 day.
/// @param winnerBps Share of the loser's bond that the winner gets, 1 to 9,000 hundredths of a per cent; the rest is burnt.
struct DisputeParameters {
    uint128 bond;
    uint32 moveTime;
    uint16 winnerBps;
}

/// @title Disputes
/// @notice The game of docs/disputes.md. A challenger posts a bond against a receipt of a pending batch. The worker commits
/// to the execution trace; the challenger descends its Merkle tree, sixteen ways a round, to the first tile that differs
/// from its own trace, which the worker reveals; then the challenger accuses one entry, and a referee recomputes that
/// entry from Merkle-proved inputs. Whoever is silent loses. The loser's bond goes to the winner in part, the rest is
/// burnt; a caller whose receipt was refuted has its money back.
contract Disputes is System {
    using Statements for *;
    using Tiles for *;

    /// @notice Levels of the tree that a round descends.
    uint256 public constant STEP = 4;

    /// @notice No such referee judges the arithmetic; 0 is a forwarder's, which nobody can judge.
    error NoReferee(uint32 arithmetic);
    /// @notice The parts do not open the receipt's commitments.
    error WrongParts(string which);
    /// @notice It is not the caller's turn, or not this move's.
    error NotYourTurn(uint256 dispute);
    /// @notice The deadline is over, or not over yet.
    error Deadline(uint256 time);
    /// @notice The revealed hashes or bytes do not belong to the present node.
    error WrongReveal();
    /// @notice The root is not the one in the receipt, or the length is zero or above 2^48.
    error WrongTrace();
    /// @notice There is no such child.
    error NoSuchChild(uint256 child);
    /// @notice The subject is not the dispute's.
    error WrongSubject();
    /// @notice The entry is what the operation gives.
    error NotRefuted();
    /// @notice The receipt's disputes are not over, or were concluded.
    error NotConcluded();
    /// @notice The audit does not agree with a refuted receipt, or was punished.
    error NotPunishable();

    /// @notice A dispute began.
    event Opened(uint256 indexed dispute, bytes32 indexed receipt, address indexed challenger, address operator);
    /// @notice The worker committed to a trace.
    event Committed(uint256 indexed dispute, bytes32 root, uint64 size);
    /// @notice The challenger descended to a node.
    event Chosen(uint256 indexed dispute, uint256 level, uint256 index);
    /// @notice The worker revealed the nodes below the present one. They are in the log and not only in a transaction's input, so that
    /// an operator that is a contract cannot hide them.
    event Revealed(uint256 indexed dispute, uint256 level, uint256 index, bytes32[] children);
    /// @notice The worker revealed a tile.
    event TileRevealed(uint256 indexed dispute, uint256 index, bytes tile);
    /// @notice A dispute ended.
    event Ended(uint256 indexed dispute, bytes32 indexed receipt, bool workerWon, string how);
    /// @notice No dispute of a receipt is left and none refuted it: the worker has its price.
    event Concluded(bytes32 indexed receipt);
    /// @notice An auditor that agreed with a refuted receipt was punished.
    event AuditorPunished(bytes32 indexed audit, address indexed auditor, uint256 amount);
    /// @notice Governance named the referees of a version of the arithmetic.
    event RefereesSet(uint32 indexed arithmetic, IReferee[] referees);
    /// @notice Governance set the parameters.
    event ParametersSet(DisputeParameters parameters);

    Registry private immutable _REGISTRY;
    Settlement private immutable _SETTLEMENT;

    DisputeParameters private _parameters;
    /// @notice Number of disputes; they are counted from 1.
    uint256 public disputeCount;
    mapping(uint32 arithmetic => IReferee[]) private _referees;
    mapping(uint256 dispute => Dispute) private _disputes;
    /// @notice Disputes of a receipt that are under way.
    mapping(bytes32 receipt => uint256) public underWay;
    /// @notice Whether a receipt was refuted.
    mapping(bytes32 receipt => bool) public refuted;
    mapping(bytes32 receipt => uint256) private _heldUntil;
    mapping(bytes32 audit => bool) private _punished;
    mapping(address challenger => mapping(bytes32 receipt => bool)) private _challenged;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {
        _REGISTRY = Registry(a.registry);
        _SETTLEMENT = Settlement(a.settlement);
    }

    /// @notice Sets the first parameters and the referees of arithmetic 2; called once, when the proxy is built.
    function initialize(DisputeParameters calldata p, IReferee[] calldata first) external initializer {
        _setParameters(p);
        _setReferees(2, first);
    }

    /// @notice Sets the parameters. Governance only. Disputes under way keep their bonds.
    function setParameters(DisputeParameters calldata p) external onlyGovernance {
        _setParameters(p);
    }

    function _setParameters(DisputeParameters calldata p) private {
        if (p.bond == 0) revert ParameterRange("bond");
        if (p.moveTime < 10 minutes || p.moveTime > 1 days) revert ParameterRange("moveTime");
        if (p.winnerBps == 0 || p.winnerBps > 9_000) revert ParameterRange("winnerBps");
        _parameters = p;
        emit ParametersSet(p);
    }

    /// @notice Names the referees of a version of the arithmetic: each judges a part of its operations. Governance only.
    /// @param arithmetic The version, not 0.
    /// @param judges The referees, at most 8; none for a version that is no longer judged.
    function setReferees(uint32 arithmetic, IReferee[] calldata judges) external onlyGovernance {
        _setReferees(arithmetic, judges);
    }

    function _setReferees(uint32 arithmetic, IReferee[] calldata judges) private {
        if (arithmetic == 0 || judges.length > 8) revert NoReferee(arithmetic);
        _referees[arithmetic] = judges;
        emit RefereesSet(arithmetic, judges);
    }

    /// @notice The referees of a version of the arithmetic.
    function refereesOf(uint32 arithmetic) external view returns (IReferee[] memory) {
        return _referees[arithmetic];
    }

    /// @notice The parameters.
    function parameters() external view returns (DisputeParameters memory) {
        return _parameters;
    }

    /// @notice A dispute.
    function disputeOf(uint256 id) external view returns (Dispute memory) {
        return _disputes[id];
    }

    // ---- moves ----

    /// @notice Opens a dispute about a receipt of a pending batch. The caller must have approved the bond. Several
    /// challengers can dispute one receipt, so nobody can shield it by losing on purpose.
    /// @param batch Number of the batch.
    /// @param lines Its lines.
    /// @param o The receipt and its place.
    /// @param salt The request's salt.
    /// @param request The request's parts.
    /// @param output The output's parts.
    /// @return id Number of the dispute.
    function open(
        uint256 batch,
        Line[] calldata lines,
        Opening calldata o,
        bytes32 salt,
        RequestParts calldata request,
        OutputParts calldata output
    ) external returns (uint256 id) {
        Receipt calldata r = o.leaf.receipt;
        if (_referees[r.arithmetic].length == 0) revert NoReferee(r.arithmetic);
        if (output.completionTokens == 0 || output.promptTokens == 0) revert WrongParts("tokens");
        if (request.model != r.model) revert WrongParts("model");
        if (commitment("request", salt, hashRequest(request)) != r.request) revert WrongParts("request");
        if (commitment("output", salt, hashOutput(output)) != r.output) revert WrongParts("output");
        bytes32 receipt = _hold(batch, lines, o);
        id = ++disputeCount;
        Dispute storage d = _disputes[id];
        d.challenger = msg.sender;
        d.worker = r.worker;
        d.operator = _REGISTRY.keyOf(r.worker).operator;
        d.arithmetic = r.arithmetic;
        d.receipt = receipt;
        d.root = r.trace;
        d.subject = keccak256(abi.encode(_subject(o, salt, request, output)));
        d.challengerBond = _parameters.bond;
        underWay[receipt] += 1;
        _turn(d, 1);
        emit Opened(id, receipt, msg.sender, d.operator);
        d.workerBond = _REGISTRY.take(d.operator, _parameters.bond);
        OPG.transferFrom(msg.sender, address(this), d.challengerBond);
    }

    function _subject(Opening calldata o, bytes32 salt, RequestParts calldata request, OutputParts calldata output)
        private
        pure
        returns (Subject memory)
    {
        return Subject({
            model: request.model,
            promptTokens: output.promptTokens,
            completionTokens: output.completionTokens,
            prompt: o.leaf.voucher.prompt,
            salt: salt,
            outputTokens: output.tokens,
            constraintKind: _constraint(request),
            sampling: request.sampling
        });
    }

    /// What kind of constraint a request has; a call of a tool that must be made is one as well.
    function _constraint(RequestParts calldata r) private pure returns (uint8) {
        bool free = r.toolChoice == keccak256("auto") || r.toolChoice == keccak256("none") || r.toolChoice == keccak256("");
        return r.constraintKind != 0 || free ? r.constraintKind : FORCED_CALL;
    }

    function _hold(uint256 batch, Line[] calldata lines, Opening calldata o) private returns (bytes32 receipt) {
        Batch memory b;
        (b, receipt) = _SETTLEMENT.opened(batch, lines, o);
        if (refuted[receipt] || _challenged[msg.sender][receipt]) revert NotConcluded();
        _challenged[msg.sender][receipt] = true;
        if (_heldUntil[receipt] != 0) return receipt;
        _heldUntil[receipt] = b.finalAt;
        _SETTLEMENT.hold(batch, lines, o);
    }

    /// @notice The worker commits to its trace; this and its other moves can be sent by its own key or its operator's. When the receipt names a root, it must be that one.
    /// @param id Number of the dispute.
    /// @param root Merkle root of the trace.
    /// @param size Length of the trace in bytes.
    function commit(uint256 id, bytes32 root, uint64 size) external {
        Dispute storage d = _move(id, 1);
        if (size == 0 || size > 1 << 48 || (d.root != 0 && d.root != root)) revert WrongTrace();
        d.root = root;
        d.node = root;
        d.size = size;
        uint256 level;
        for (uint256 width = Tiles.count(size); width > 1; width = (width + 1) / 2) {
            ++level;
        }
        // As if a node above the root had been revealed: the challenger descends to the root, or accuses at once.
        d.level = uint8(level + STEP);
        d.children = keccak256(abi.encode(_one(root)));
        _turn(d, 2);
        emit Committed(id, root, size);
    }

    function _one(bytes32 hash) private pure returns (bytes32[] memory list) {
        list = new bytes32[](1);
        list[0] = hash;
    }

    /// @notice The challenger descends to one of the revealed nodes and asks what is below it.
    /// @param id Number of the dispute.
    /// @param child Which of them, from 0; after `commit` there is one, the root.
    /// @param children What was revealed.
    function choose(uint256 id, uint64 child, bytes32[] calldata children) external {
        Dispute storage d = _move(id, 2);
        if (keccak256(abi.encode(children)) != d.children) revert WrongReveal();
        if (child >= children.length) revert NoSuchChild(child);
        uint256 down = d.level < STEP ? d.level : STEP;
        d.level -= uint8(down);
        d.index = uint64((uint256(d.index) << down) + child);
        d.node = children[child];
        _turn(d, 3);
        emit Chosen(id, d.level, d.index);
    }

    /// @notice The worker reveals the nodes up to `STEP` levels below the present one.
    /// @param id Number of the dispute.
    /// @param children Their hashes, from left to right.
    function reveal(uint256 id, bytes32[] calldata children) external {
        Dispute storage d = _move(id, 3);
        if (d.level == 0 || fold(d.level, d.index, d.size, children) != d.node) revert WrongReveal();
        d.children = keccak256(abi.encode(children));
        _turn(d, 2);
        emit Revealed(id, d.level, d.index, children);
    }

    /// @notice The worker reveals the tile that the challenger chose. The challenger must accuse an entry next.
    /// @param id Number of the dispute.
    /// @param tile The tile's bytes.
    function revealTile(uint256 id, bytes calldata tile) external {
        Dispute storage d = _move(id, 3);
        // A tile of another length has a hash too, and no opening that the challenger could use.
        if (d.level != 0) revert WrongReveal();
        uint256 length = d.size - d.index * Tiles.TILE;
        if (tile.length != (length < Tiles.TILE ? length : Tiles.TILE)) revert WrongReveal();
        if (Tiles.leaf(d.index, tile) != d.node) revert WrongReveal();
        d.children = 0;
        _turn(d, 2);
        emit TileRevealed(id, d.index, tile);
    }

    /// @notice The challenger accuses one entry of the trace. If the referee finds that the operation gives something else,
    /// the worker has lost; otherwise the call reverts, and the challenger's time goes on.
    /// @param id Number of the dispute.
    /// @param judge Which of the arithmetic's referees is to judge, from 0.
    /// @param k The case.
    function accuse(uint256 id, uint256 judge, Case calldata k) external {
        Dispute storage d = _move(id, 2);
        if (keccak256(abi.encode(k.subject)) != d.subject) revert WrongSubject();
        if (judge >= _referees[d.arithmetic].length) revert NoReferee(d.arithmetic);
        if (!_referees[d.arithmetic][judge].refutes(d.root, d.size, k)) revert NotRefuted();
        _end(id, d, false, "refuted");
    }

    /// @notice Ends a dispute in which the side whose turn it is was silent until the deadline. Anybody may call.
    function timeout(uint256 id) external {
        Dispute storage d = _disputes[id];
        if (d.turn == 0) revert NotYourTurn(id);
        if (block.timestamp <= d.deadline) revert Deadline(d.deadline);
        _end(id, d, d.turn == 2, "silence");
    }

    /// @notice Gives the worker the price of a receipt that no dispute refuted, once none is under way and none can begin.
    function conclude(bytes32 receipt) external {
        uint256 until = _heldUntil[receipt];
        if (until == 0 || underWay[receipt] != 0 || refuted[receipt] || block.timestamp < until) revert NotConcluded();
        _heldUntil[receipt] = type(uint256).max;
        emit Concluded(receipt);
        _SETTLEMENT.release(receipt, true);
    }

    /// @notice Punishes an auditor that signed its agreement with a refuted receipt: it loses a bond, of which the caller
    /// gets the winner's share.
    function punishAuditor(Audit calldata audit, bytes calldata signature) external {
        bytes32 digest = Statements.separator(address(_SETTLEMENT)).digest(audit.hash());
        if (audit.verdict != 0 || !refuted[audit.receipt] || _punished[digest]) revert NotPunishable();
        Key memory key = _REGISTRY.keyOf(audit.auditor);
        if (key.operator == address(0) || digest.signer(signature) != audit.auditor) revert NotPunishable();
        _punished[digest] = true;
        uint128 taken = _REGISTRY.take(key.operator, _parameters.bond);
        emit AuditorPunished(digest, audit.auditor, taken);
        _split(taken, msg.sender);
    }

    // ---- ends ----

    function _end(uint256 id, Dispute storage d, bool workerWon, string memory how) private {
        d.turn = 0;
        bytes32 receipt = d.receipt;
        underWay[receipt] -= 1;
        bool first = !workerWon && !refuted[receipt];
        if (first) refuted[receipt] = true;
        emit Ended(id, receipt, workerWon, how);
        if (workerWon) {
            if (d.workerBond > 0) {
                OPG.approve(address(_REGISTRY), d.workerBond);
                _REGISTRY.addBond(d.operator, d.workerBond);
            }
            _split(d.challengerBond, d.operator);
        } else {
            OPG.transfer(d.challenger, d.challengerBond);
            _split(d.workerBond, d.challenger);
        }
        if (first) _SETTLEMENT.release(receipt, false);
    }

    function _split(uint256 amount, address winner) private {
        uint256 share = amount * _parameters.winnerBps / 10_000;
        OPG.transfer(winner, share);
        OPG.burn(amount - share);
    }

    function _move(uint256 id, uint8 turn) private view returns (Dispute storage d) {
        d = _disputes[id];
        bool own = turn == 2 ? msg.sender == d.challenger : msg.sender == d.operator || msg.sender == d.worker;
        if (d.turn != turn || !own) revert NotYourTurn(id);
        if (block.timestamp > d.deadline) revert Deadline(d.deadline);
    }

    function _turn(Dispute storage d, uint8 turn) private {
        d.turn = turn;
        d.deadline = uint40(block.timestamp + _parameters.moveTime);
    }

    // ---- hashes ----

    /// @notice The node at `level` and `index` over the given nodes `STEP` levels (or `level`, if that is less) below it, in
    /// the tree over `size` bytes; zero when their number is wrong.
    function fold(uint256 level, uint256 index, uint256 size, bytes32[] memory nodes) public pure returns (bytes32) {
        uint256 down = level < STEP ? level : STEP;
        uint256 width = Tiles.count(size);
        for (uint256 i; i < level - down; ++i) {
            width = (width + 1) / 2;
        }
        uint256 first = index << down;
        if (first >= width) return 0;
        uint256 count = width - first < 1 << down ? width - first : 1 << down;
        if (nodes.length != count) return 0;
        for (; count > 1; count = (count + 1) / 2) {
            for (uint256 i; i < count / 2; ++i) {
                nodes[i] = Tiles.node(nodes[2 * i], nodes[2 * i + 1]);
            }
            if (count & 1 == 1) nodes[count / 2] = nodes[count - 1];
        }
        return nodes[0];
    }

    /// @notice A salted commitment of docs/receipt.md.
    function commitment(string memory kind, bytes32 salt, bytes32 structHash) public pure returns (bytes32) {
        return keccak256(abi.encodePacked(keccak256(abi.encodePacked("assay/", kind, salt)), structHash));
    }

    bytes32 private constant _REQUEST = keccak256(
        "Request(bytes32 model,uint8 promptKind,Message[] messages,string[] tools,string toolChoice,bool parallelToolCalls,string text,uint32[] tokens,uint32 maxTokens,string[] stop,Sampling sampling,uint8 constraintKind,string constraint,uint8[] logprobs,uint64 nowUnixS)LogitBias(uint32 token,int32 milli)Message(string role,string content,string[] name,string[] toolCalls,string[] toolCallId)Sampling(uint32 temperatureMilli,uint32 topK,uint32 topPPpm,uint32 minPPpm,uint32 repetitionPenaltyMilli,int32 frequencyPenaltyMilli,int32 presencePenaltyMilli,LogitBias[] logitBias,uint64 seed)"
    );
    bytes32 private constant _SAMPLING = keccak256(
        "Sampling(uint32 temperatureMilli,uint32 topK,uint32 topPPpm,uint32 minPPpm,uint32 repetitionPenaltyMilli,int32 frequencyPenaltyMilli,int32 presencePenaltyMilli,LogitBias[] logitBias,uint64 seed)LogitBias(uint32 token,int32 milli)"
    );
    bytes32 private constant _OUTPUT = keccak256(
        "Output(string text,string[] toolCalls,uint8 finishReason,uint32[] tokens,uint32 promptTokens,uint32 completionTokens,TokenLogprob[] logprobs)TokenLogprob(uint32 token,int32 logprobQ16,TopLogprob[] top)TopLogprob(uint32 token,int32 logprobQ16)"
    );

    /// @notice EIP-712 hashStruct of a request.
    function hashRequest(RequestParts calldata r) public pure returns (bytes32) {
        bytes memory head = abi.encode(
            _REQUEST, r.model, r.promptKind, r.messages, r.tools, r.toolChoice, r.parallelToolCalls, r.text, r.tokens
        );
        bytes memory tail = abi.encode(
            r.maxTokens,
            r.stop,
            keccak256(abi.encode(_SAMPLING, r.sampling)),
            r.constraintKind,
            r.constraint,
            r.logprobs,
            r.nowUnixS
        );
        return keccak256(bytes.concat(head, tail));
    }

    /// @notice EIP-712 hashStruct of an output.
    function hashOutput(OutputParts calldata o) public pure returns (bytes32) {
        return keccak256(abi.encode(_OUTPUT, o));
    }
}
