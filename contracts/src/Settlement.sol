// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";
import {Audits} from "./Audits.sol";
import {Deposits} from "./Deposits.sol";
import {Models} from "./Models.sol";
import {Registry} from "./Registry.sol";
import {Rules} from "./Rules.sol";
import {Staking} from "./Staking.sol";
import {Receipt, Statements, Voucher} from "./Statements.sol";
import {SumTree} from "./SumTree.sol";

/// The receipts of one payer and one model in a batch.
/// @param payer Who pays.
/// @param model Model that answered.
/// @param count Number of receipts, 1 to 2^20.
/// @param sum Their prices together, in 10^-18 OPG.
/// @param first Least nonce of them.
/// @param last Largest nonce of them.
/// @param root Root of the sum tree over them, ordered by nonce.
struct Line {
    address payer;
    bytes32 model;
    uint32 count;
    uint128 sum;
    bytes32 first;
    bytes32 last;
    bytes32 root;
}

/// A receipt with all that makes it payable: a leaf's data, which the worker keeps and serves until the batch is final.
struct Leaf {
    Receipt receipt;
    bytes signature;
    Voucher voucher;
    bytes voucherSignature;
}

/// A leaf with its place in a batch.
/// @param line Index of the line.
/// @param index Index of the leaf in the line.
/// @param amount Amount that the tree has for it, in 10^-18 OPG.
/// @param leaf The data.
/// @param siblings Hashes on the way to the root, lowest first.
/// @param sums Their sums.
struct Opening {
    uint32 line;
    uint32 index;
    uint128 amount;
    Leaf leaf;
    bytes32[] siblings;
    uint128[] sums;
}

/// A batch.
/// @param worker The worker whose receipts they are.
/// @param submittedAt Seconds since 1970.
/// @param finalAt When it can be paid, if no demand is open.
/// @param demands Number of open demands.
/// @param state 0 unknown, 1 pending, 2 paid, 3 void.
/// @param accepted Bit `i` is set when line `i` counts.
/// @param lines keccak256 of the ABI encoding of the lines.
/// @param sum What the accepted lines reserve, less what was struck or held, in 10^-18 OPG.
/// @param leaves Number of receipts of the accepted lines.
struct Batch {
    address worker;
    uint40 submittedAt;
    uint40 finalAt;
    uint8 state;
    uint32 demands;
    uint256 accepted;
    bytes32 lines;
    uint128 sum;
    uint64 leaves;
}

/// Governed parameters of settlement.
/// @param window Seconds in which a batch can be challenged, 1 hour to 7 days.
/// @param answerTime Seconds to answer a demand, 1 hour to 2 days.
/// @param demandFee What a demand costs and an answer earns, in 10^-18 OPG.
/// @param penalty What a struck receipt costs its operator besides the price, in 10^-18 OPG, not zero.
/// @param auditBps Share of auditors in fees, in hundredths of a per cent; with the next two at most 5,000.
/// @param validatorBps Share of validators.
/// @param treasuryBps Share of the treasury.
struct SettlementParameters {
    uint32 window;
    uint32 answerTime;
    uint128 demandFee;
    uint128 penalty;
    uint16 auditBps;
    uint16 validatorBps;
    uint16 treasuryBps;
}

/// @title Settlement
/// @notice Pays workers for receipts, in batches. A batch commits to its receipts by one sum tree for each payer and model
/// and costs the same for one receipt or a million. Until its window ends, anybody who holds the data can strike a receipt
/// that is not payable (`strike`, `strikeOrder`: all checks of docs/settlement.md, on chain, on that receipt alone), and
/// anybody who lacks the data can demand it (`demand`): a worker that does not publish it in time loses the batch. A
/// struck receipt costs its operator a penalty and does not touch the others. Nonces of a payer, a worker and a model
/// settle in ascending order, so no receipt is paid twice. Payers deposit in advance (`Deposits`).
contract Settlement is System {
    using Statements for *;

    /// @notice Most lines of a batch.
    uint256 public constant LINES = 256;
    /// @notice Most receipts of a line.
    uint256 public constant LEAVES = 1 << 20;

    uint256 private constant BPS = 10_000;
    uint8 private constant PENDING = 1;
    uint8 private constant PAID = 2;
    uint8 private constant VOID = 3;

    /// @notice The worker's key is unknown, or the caller does not run it.
    error NotYourWorker(address worker);
    /// @notice A batch has 1 to `LINES` lines.
    error BadLines(uint256 lines);
    /// @notice None of the lines counts.
    error NothingAccepted();
    /// @notice The lines are not those of the batch.
    error WrongLines(uint256 batch);
    /// @notice The batch is not pending.
    error NotPending(uint256 batch);
    /// @notice The window of the batch is over.
    error WindowOver(uint256 finalAt);
    /// @notice Not before the given time (seconds since 1970).
    error NotYet(uint256 time);
    /// @notice A demand is open.
    error DemandOpen(uint256 demands);
    /// @notice No such demand is open, or its time is over, or not over.
    error BadDemand();
    /// @notice The opening does not lead to the line's root and sum.
    error BadOpening();
    /// @notice The receipt is payable.
    error Payable();
    /// @notice The two receipts are in order.
    error InOrder();
    /// @notice The leaf was struck or is held already.
    error AlreadyDone();
    /// @notice Amounts are not zero, and not more than there is.
    error BadAmount(uint256 amount, uint256 available);
    /// @notice The operator's bond is below the least one.
    error BondTooLow(uint256 bond, uint256 least);

    /// @notice A batch was submitted. `accepted` has bit `i` set when line `i` counts.
    event Submitted(uint256 indexed batch, address indexed worker, Line[] lines, uint256 accepted, uint256 finalAt);
    /// @notice A line does not count, for the given reason; its nonces can be settled later.
    event LineRefused(uint256 indexed batch, uint256 line, string reason);
    /// @notice A receipt was struck: the payer got its price back, the operator paid a penalty.
    event Struck(uint256 indexed batch, uint256 line, uint256 index, string fault, address indexed by, uint256 penalty);
    /// @notice Somebody demands the data of a leaf.
    event Demanded(uint256 indexed batch, uint256 line, uint256 index, address indexed by, uint256 until);
    /// @notice The data of a leaf was published; it is in the transaction's input.
    event Answered(uint256 indexed batch, uint256 line, uint256 index);
    /// @notice A batch is void: its payers have their deposits back.
    event Voided(uint256 indexed batch);
    /// @notice A batch was paid.
    event Settled(uint256 indexed batch, address indexed operator, uint256 toOperator, uint256 toValidators, uint256 toTreasury);
    /// @notice An author's share was credited.
    event AuthorCredited(address indexed author, bytes32 indexed model, uint256 amount);
    /// @notice A receipt's price is held until a dispute ends.
    event Held(bytes32 indexed receipt, uint256 amount);
    /// @notice A held price went to the operator or back to the payer.
    event Released(bytes32 indexed receipt, bool toWorker, uint256 amount);
    /// @notice Credits were withdrawn.
    event CreditWithdrawn(address indexed account, uint256 amount);
    /// @notice Governance set the parameters.
    event ParametersSet(SettlementParameters parameters);

    struct Demand {
        address by;
        uint40 until;
        uint128 fee;
    }

    struct Hold {
        uint128 amount;
        address payer;
        address operator;
        bytes32 model;
    }

    Rules private immutable _RULES;
    Registry private immutable _REGISTRY;
    Deposits private immutable _DEPOSITS;
    Models private immutable _MODELS;
    Staking private immutable _STAKING;
    Audits private immutable _AUDITS;
    address private immutable _DISPUTES;
    address private immutable _TREASURY;

    SettlementParameters private _parameters;
    /// @notice Number of batches; they are counted from 1.
    uint256 public batchCount;
    mapping(uint256 batch => Batch) private _batches;
    mapping(uint256 batch => mapping(uint256 line => uint128)) private _struck;
    mapping(bytes32 leafKey => bool) private _done;
    mapping(bytes32 leafKey => Demand) private _demands;
    mapping(address payer => mapping(address worker => mapping(bytes32 model => bytes32))) private _settledUpTo;
    mapping(bytes32 receipt => Hold) private _holds;
    /// @notice What an account may withdraw: authors' shares and challengers' rewards, in 10^-18 OPG.
    mapping(address account => uint256) public credit;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {
        _RULES = Rules(a.rules);
        _REGISTRY = Registry(a.registry);
        _DEPOSITS = Deposits(a.deposits);
        _MODELS = Models(a.models);
        _STAKING = Staking(a.staking);
        _AUDITS = Audits(a.audits);
        _DISPUTES = a.disputes;
        _TREASURY = a.treasury;
    }

    /// @notice Sets the first parameters; called once, when the proxy is built.
    function initialize(SettlementParameters calldata p) external initializer {
        _setParameters(p);
    }

    /// @notice Sets the parameters. Governance only. Batches under way keep their times.
    function setParameters(SettlementParameters calldata p) external onlyGovernance {
        _setParameters(p);
    }

    function _setParameters(SettlementParameters calldata p) private {
        if (p.window < 1 hours || p.window > 7 days) revert ParameterRange("window");
        if (p.answerTime < 1 hours || p.answerTime > 2 days) revert ParameterRange("answerTime");
        if (p.penalty == 0) revert ParameterRange("penalty");
        if (uint256(p.auditBps) + p.validatorBps + p.treasuryBps > 5_000) revert ParameterRange("shares");
        _parameters = p;
        emit ParametersSet(p);
    }

    /// @notice The parameters.
    function parameters() external view returns (SettlementParameters memory) {
        return _parameters;
    }

    // ---- batches ----

    /// @notice Largest nonce that was settled for a payer, a worker and a model. Only larger ones can be settled.
    function settledUpTo(address payer, address worker, bytes32 model) external view returns (bytes32) {
        return _settledUpTo[payer][worker][model];
    }

    /// @notice Submits a batch. A line that cannot count (its payer's deposit is too small, its nonces were passed, its
    /// numbers make no sense) is left out and named by an event; the others count.
    /// @param worker The worker that signed the receipts; the caller is its operator or the worker itself.
    /// @param lines 1 to `LINES` lines.
    /// @return id Number of the batch.
    function submit(address worker, Line[] calldata lines) external newWork returns (uint256 id) {
        address operator = _REGISTRY.keyOf(worker).operator;
        if (operator == address(0) || (msg.sender != operator && msg.sender != worker)) revert NotYourWorker(worker);
        if (lines.length == 0 || lines.length > LINES) revert BadLines(lines.length);
        uint256 bond = _REGISTRY.operatorOf(operator).bond;
        if (bond < _REGISTRY.leastBond()) revert BondTooLow(bond, _REGISTRY.leastBond());
        id = ++batchCount;
        Batch memory b;
        for (uint256 i; i < lines.length; ++i) {
            string memory why = _accept(worker, lines[i]);
            if (bytes(why).length != 0) {
                emit LineRefused(id, i, why);
                continue;
            }
            b.accepted |= 1 << i;
            // Sums were subtracted from balances that the supply bounds, counts have 2^28 together at most.
            b.sum += lines[i].sum;
            b.leaves += lines[i].count;
        }
        if (b.accepted == 0) revert NothingAccepted();
        b.worker = worker;
        b.submittedAt = uint40(block.timestamp);
        b.finalAt = uint40(block.timestamp + _parameters.window);
        b.state = PENDING;
        b.lines = keccak256(abi.encode(lines));
        _batches[id] = b;
        emit Submitted(id, worker, lines, b.accepted, b.finalAt);
    }

    function _accept(address worker, Line calldata line) private returns (string memory why) {
        if (line.count == 0 || line.count > LEAVES) return "count";
        if (line.first > line.last || (line.count > 1 && line.first == line.last)) return "nonces";
        if (line.first <= _settledUpTo[line.payer][worker][line.model]) return "nonces were settled";
        if (!_DEPOSITS.reserve(line.payer, line.sum)) return "deposit";
        _settledUpTo[line.payer][worker][line.model] = line.last;
    }

    /// @notice A batch.
    function batchOf(uint256 id) external view returns (Batch memory) {
        return _batches[id];
    }

    /// @notice Checks that a leaf belongs to a pending batch; reverts when it does not.
    /// @return batch The batch.
    /// @return receiptHash The receipt's EIP-712 digest.
    function opened(uint256 id, Line[] calldata lines, Opening calldata o)
        external
        view
        returns (Batch memory batch, bytes32 receiptHash)
    {
        (batch,) = _open(id, lines, o);
        receiptHash = Statements.separator(address(this)).digest(o.leaf.receipt.hash());
    }

    /// @notice Strikes a receipt that is not payable. The payer gets its price back; the operator pays `penalty`, half to
    /// the caller, the rest burnt. If its bond does not cover the penalty, the whole batch is void.
    /// @param id Number of the batch.
    /// @param lines Its lines.
    /// @param o The receipt and its place.
    function strike(uint256 id, Line[] calldata lines, Opening calldata o) external {
        (Batch storage b, Line calldata line) = _open(id, lines, o);
        string memory why = _RULES.fault(b.worker, b.submittedAt, line, o.amount, o.leaf);
        if (bytes(why).length == 0) revert Payable();
        _strike(id, b, lines, o, why);
    }

    /// @notice Strikes the later of two receipts of a line that are not in strictly ascending order of nonces.
    /// @param id Number of the batch.
    /// @param lines Its lines.
    /// @param a The earlier leaf.
    /// @param o The later leaf.
    function strikeOrder(uint256 id, Line[] calldata lines, Opening calldata a, Opening calldata o) external {
        _open(id, lines, a);
        (Batch storage b,) = _open(id, lines, o);
        if (a.line != o.line || a.index >= o.index) revert BadOpening();
        if (a.leaf.receipt.nonce < o.leaf.receipt.nonce) revert InOrder();
        _strike(id, b, lines, o, "order of nonces");
    }

    function _strike(uint256 id, Batch storage b, Line[] calldata lines, Opening calldata o, string memory why) private {
        _deduct(id, b, o);
        Line calldata line = lines[o.line];
        _DEPOSITS.refund(line.payer, o.amount);
        uint128 penalty = _parameters.penalty;
        uint128 taken = _REGISTRY.take(_REGISTRY.keyOf(b.worker).operator, penalty);
        credit[msg.sender] += taken / 2;
        emit Struck(id, o.line, o.index, why, msg.sender, taken);
        OPG.burn(taken - taken / 2);
        if (taken < penalty) _void(id, b, lines);
    }

    /// Takes a leaf's amount out of a batch, once.
    function _deduct(uint256 id, Batch storage b, Opening calldata o) private {
        bytes32 key = _leafKey(id, o.line, o.index);
        if (_done[key]) revert AlreadyDone();
        _done[key] = true;
        _struck[id][o.line] += o.amount;
        b.sum -= o.amount;
    }

    function _void(uint256 id, Batch storage b, Line[] calldata lines) private {
        b.state = VOID;
        for (uint256 i; i < lines.length; ++i) {
            if (b.accepted >> i & 1 == 0) continue;
            _DEPOSITS.refund(lines[i].payer, lines[i].sum - _struck[id][i]);
        }
        b.sum = 0;
        emit Voided(id);
    }

    /// @notice Demands that the data of a leaf be published. Costs `demandFee`, which the answer earns; without an answer
    /// in time the batch is void and the caller gets the fee back and half a penalty.
    /// @param id Number of the batch.
    /// @param lines Its lines.
    /// @param line Index of an accepted line.
    /// @param index Index of a leaf in it.
    function demand(uint256 id, Line[] calldata lines, uint32 line, uint32 index) external {
        Batch storage b = _pending(id, lines);
        if (block.timestamp >= b.finalAt) revert WindowOver(b.finalAt);
        if (line >= lines.length || b.accepted >> line & 1 == 0 || index >= lines[line].count) revert BadOpening();
        Demand storage d = _demands[_leafKey(id, line, index)];
        if (d.by != address(0) || _done[_leafKey(id, line, index)]) revert AlreadyDone();
        (d.by, d.until, d.fee) = (msg.sender, uint40(block.timestamp + _parameters.answerTime), _parameters.demandFee);
        b.demands += 1;
        emit Demanded(id, line, index, msg.sender, d.until);
        OPG.transferFrom(msg.sender, address(this), d.fee);
    }

    /// @notice Publishes the data of a leaf that was demanded. Anybody may; the fee goes to the caller. There is at least an
    /// hour left afterwards to strike it.
    function answer(uint256 id, Line[] calldata lines, Opening calldata o) external {
        Batch storage b = _pending(id, lines);
        Demand storage d = _demands[_leafKey(id, o.line, o.index)];
        if (d.until == 0 || block.timestamp > d.until) revert BadDemand();
        _check(b, lines, o);
        uint40 earliest = uint40(block.timestamp + 1 hours);
        if (b.finalAt < earliest) b.finalAt = earliest;
        b.demands -= 1;
        d.until = 0;
        credit[msg.sender] += d.fee;
        emit Answered(id, o.line, o.index);
    }

    /// @notice Voids a batch of which a demand was not answered in time. The operator pays a penalty, half to who demanded.
    function expire(uint256 id, Line[] calldata lines, uint32 line, uint32 index) external {
        Batch storage b = _pending(id, lines);
        Demand storage d = _demands[_leafKey(id, line, index)];
        if (d.until == 0 || block.timestamp <= d.until) revert BadDemand();
        b.demands -= 1;
        d.until = 0;
        uint128 taken = _REGISTRY.take(_REGISTRY.keyOf(b.worker).operator, _parameters.penalty);
        credit[d.by] += d.fee + taken / 2;
        _void(id, b, lines);
        OPG.burn(taken - taken / 2);
    }

    /// @notice Gives the fee of a demand back that can have no answer any more, since its batch became void before.
    function refundDemand(uint256 id, uint32 line, uint32 index) external {
        Demand storage d = _demands[_leafKey(id, line, index)];
        if (_batches[id].state != VOID || d.until == 0) revert BadDemand();
        d.until = 0;
        credit[d.by] += d.fee;
    }

    /// @notice Pays a batch whose window is over. Anybody may call.
    /// @param id Number of the batch.
    /// @param lines Its lines.
    function pay(uint256 id, Line[] calldata lines) external {
        Batch storage b = _pending(id, lines);
        if (block.timestamp < b.finalAt) revert NotYet(b.finalAt);
        if (b.demands != 0) revert DemandOpen(b.demands);
        b.state = PAID;
        SettlementParameters memory p = _parameters;
        uint256 authors;
        for (uint256 i; i < lines.length; ++i) {
            if (b.accepted >> i & 1 == 0) continue;
            authors += _creditAuthor(lines[i].model, lines[i].sum - _struck[id][i]);
        }
        uint256 audits = uint256(b.sum) * p.auditBps / BPS;
        uint256 validators = uint256(b.sum) * p.validatorBps / BPS;
        uint256 treasury = uint256(b.sum) * p.treasuryBps / BPS;
        uint256 toOperator = b.sum - authors - validators - treasury - audits;
        if (_STAKING.bonded() == 0) (treasury, validators) = (treasury + validators, 0);
        address operator = _REGISTRY.keyOf(b.worker).operator;
        emit Settled(id, operator, toOperator, validators, treasury);
        _DEPOSITS.spend(address(this), authors + validators);
        if (validators > 0) {
            OPG.approve(address(_STAKING), validators);
            _STAKING.distribute(uint128(validators));
        }
        _DEPOSITS.spend(address(_AUDITS), audits);
        _AUDITS.share(id, audits);
        _DEPOSITS.spend(_TREASURY, treasury);
        _DEPOSITS.spend(operator, toOperator);
    }

    function _creditAuthor(bytes32 model, uint256 amount) private returns (uint256 share) {
        address author = _MODELS.modelOf(model).author;
        if (author == address(0)) return 0;
        share = amount * _MODELS.modelOf(model).feeBps / BPS;
        credit[author] += share;
        emit AuthorCredited(author, model, share);
    }

    /// @notice Withdraws the caller's credit.
    function withdrawCredit() external {
        uint256 amount = credit[msg.sender];
        if (amount == 0) revert BadAmount(0, 0);
        credit[msg.sender] = 0;
        emit CreditWithdrawn(msg.sender, amount);
        OPG.transfer(msg.sender, amount);
    }

    // ---- disputes ----

    /// @notice Takes the price of a receipt out of its batch and holds it until its dispute ends. Disputes only.
    /// @return receiptHash The receipt's EIP-712 digest.
    function hold(uint256 id, Line[] calldata lines, Opening calldata o) external returns (bytes32 receiptHash) {
        if (msg.sender != _DISPUTES) revert NotAllowed(msg.sender);
        (Batch storage b, Line calldata line) = _open(id, lines, o);
        _deduct(id, b, o);
        receiptHash = Statements.separator(address(this)).digest(o.leaf.receipt.hash());
        _holds[receiptHash] = Hold(o.amount, line.payer, _REGISTRY.keyOf(b.worker).operator, line.model);
        emit Held(receiptHash, o.amount);
    }

    /// @notice Ends a hold: the price goes to the operator, less the author's and the network's shares, or back to the
    /// payer. Disputes only.
    function release(bytes32 receiptHash, bool toWorker) external {
        if (msg.sender != _DISPUTES) revert NotAllowed(msg.sender);
        Hold memory h = _holds[receiptHash];
        delete _holds[receiptHash];
        emit Released(receiptHash, toWorker, h.amount);
        if (toWorker) {
            uint256 author = _creditAuthor(h.model, h.amount);
            SettlementParameters memory p = _parameters;
            uint256 others = uint256(h.amount) * (uint256(p.auditBps) + p.validatorBps + p.treasuryBps) / BPS;
            _DEPOSITS.spend(address(this), author);
            _DEPOSITS.spend(_TREASURY, others);
            _DEPOSITS.spend(h.operator, h.amount - author - others);
        } else if (h.payer != address(0)) {
            _DEPOSITS.refund(h.payer, h.amount);
        }
    }

    function _leafKey(uint256 id, uint256 line, uint256 index) private pure returns (bytes32) {
        return keccak256(abi.encode(id, line, index));
    }

    function _pending(uint256 id, Line[] calldata lines) private view returns (Batch storage b) {
        b = _batches[id];
        if (b.state != PENDING) revert NotPending(id);
        if (keccak256(abi.encode(lines)) != b.lines) revert WrongLines(id);
    }

    function _open(uint256 id, Line[] calldata lines, Opening calldata o)
        private
        view
        returns (Batch storage b, Line calldata line)
    {
        b = _pending(id, lines);
        if (block.timestamp >= b.finalAt && b.demands == 0) revert WindowOver(b.finalAt);
        _check(b, lines, o);
        line = lines[o.line];
    }

    function _check(Batch storage b, Line[] calldata lines, Opening calldata o) private view {
        if (o.line >= lines.length || b.accepted >> o.line & 1 == 0) revert BadOpening();
        Line calldata line = lines[o.line];
        bytes32 leaf = SumTree.leaf(o.index, o.amount, keccak256(abi.encode(o.leaf)));
        if (!SumTree.verify(line.root, line.sum, line.count, o.index, o.amount, leaf, o.siblings, o.sums)) {
            revert BadOpening();
        }
    }
}
