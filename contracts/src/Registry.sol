// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Addresses, System} from "./System.sol";
import {Statements} from "./Statements.sol";

/// A person or firm that runs workers.
/// @param bond What it has at stake, in 10^-18 OPG.
/// @param leaving Part of it that was asked back and still answers for the past; not in `bond`.
/// @param leavesAt When `leaving` may be withdrawn, in seconds since 1970.
/// @param workers Number of its workers that are not retired.
/// @param name What it calls itself; nobody vouches for it.
struct Operator {
    uint128 bond;
    uint128 leaving;
    uint64 leavesAt;
    uint32 workers;
    string name;
}

/// A worker's signing key, which is also its name in statements. It is never deleted, so that old receipts stay checkable.
/// @param operator Who runs it; zero when the key is unknown.
/// @param epoch Counts the keys of one worker from 1.
/// @param from First second in which it signs, since 1970.
/// @param until Last second in which it signs; 0 while it is in use.
struct Key {
    address operator;
    uint64 epoch;
    uint64 from;
    uint64 until;
}

/// One model that a worker serves.
/// @param promptPrice Price of a prompt token in 10^-18 OPG.
/// @param completionPrice Price of a sampled token in 10^-18 OPG.
/// @param arithmetic Version of the arithmetic; 0 for a forwarder.
/// @param context Longest context in tokens.
/// @param levels Bit `n` is set when level `n` is offered: 0 signed, 1 attested, 2 replayed, 3 proved.
/// @param name Name by which callers ask for it.
struct Offer {
    uint128 promptPrice;
    uint128 completionPrice;
    uint32 arithmetic;
    uint32 context;
    uint8 levels;
    string name;
}

/// What `member` tells a gateway about a worker.
struct Member {
    address operator;
    string operatorName;
    uint128 bond;
    address worker;
    uint64 keyEpoch;
    string url;
    bytes32 tlsSha256;
    bytes32[] models;
    Offer[] offers;
}

/// @title Registry
/// @notice Operators with their bonds, and their workers with keys, endpoints and offers. Gateways read members from here.
/// A bond answers for what its operator's workers sign: settlement and disputes take from it, by rules and not by anybody's
/// discretion. It can be withdrawn only after a delay in which the past can still be challenged.
contract Registry is System, EIP712 {
    /// @notice Most workers of one operator.
    uint256 public constant WORKERS = 64;
    /// @notice Most models of one worker.
    uint256 public constant OFFERS = 64;
    /// @notice Longest name or URL, in bytes.
    uint256 public constant TEXT = 256;
    /// @notice Shortest delay of a withdrawal: longer than any challenge window and dispute together.
    uint256 public constant SHORTEST_DELAY = 14 days;

    bytes32 private constant WORKER_KEY = keccak256("WorkerKey(address operator,address worker,uint64 epoch)");

    /// @notice The caller runs no registered operator.
    error NotOperator(address caller);
    /// @notice The caller is registered already.
    error AlreadyOperator(address caller);
    /// @notice The worker is not one of the caller's, or is retired.
    error NotYourWorker(address worker);
    /// @notice The key was registered before; every key is used once.
    error KeyUsed(address worker);
    /// @notice The new key did not sign its registration.
    error KeyProof(address worker);
    /// @notice The bond would be below the least one while workers are in use.
    error BondTooLow(uint256 bond, uint256 least);
    /// @notice Nothing can be withdrawn before the given time.
    error NotYet(uint256 time);
    /// @notice A text is empty or longer than `TEXT` bytes.
    error TextLength(uint256 length);
    /// @notice The limit of workers or offers is reached.
    error TooMany(uint256 limit);
    /// @notice Amounts are not zero.
    error ZeroAmount();
    /// @notice No such offer.
    error NoOffer(bytes32 model);

    /// @notice An operator registered.
    event OperatorRegistered(address indexed operator, string name);
    /// @notice The bond of an operator is now the given one, with the given part on its way out.
    event BondChanged(address indexed operator, uint256 bond, uint256 leaving);
    /// @notice Tokens of a bond were taken by a contract of the deployment.
    event BondTaken(address indexed operator, address indexed by, uint256 amount);
    /// @notice A worker's key came into use.
    event KeyAdded(address indexed operator, address indexed worker, uint64 epoch);
    /// @notice A worker's key went out of use.
    event KeyRetired(address indexed operator, address indexed worker, uint64 epoch);
    /// @notice A worker's endpoint is now the given one.
    event EndpointSet(address indexed worker, string url, bytes32 tlsSha256);
    /// @notice A worker offers a model.
    event OfferSet(address indexed worker, bytes32 indexed model, Offer offer);
    /// @notice A worker no longer offers a model.
    event OfferRemoved(address indexed worker, bytes32 indexed model);
    /// @notice Governance set the parameters.
    event ParametersSet(uint128 leastBond, uint64 delay);

    /// @notice Least bond of an operator with workers, in 10^-18 OPG.
    uint128 public leastBond;
    /// @notice Delay of a withdrawal in seconds, at least `SHORTEST_DELAY`.
    uint64 public delay;

    address private immutable _SETTLEMENT;
    address private immutable _DISPUTES;

    mapping(address operator => Operator) private _operators;
    mapping(address worker => Key) private _keys;
    mapping(address worker => string) private _urls;
    mapping(address worker => bytes32) private _tls;
    mapping(address worker => bytes32[]) private _models;
    mapping(address worker => mapping(bytes32 model => Offer)) private _offers;
    address[] private _workers;
    mapping(address worker => uint256 indexPlusOne) private _index;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) EIP712("Assay Registry", "1") {
        _SETTLEMENT = a.settlement;
        _DISPUTES = a.disputes;
    }

    /// @notice Sets the first parameters; called once, when the proxy is built.
    function initialize(uint128 leastBond_, uint64 delay_) external initializer {
        _setParameters(leastBond_, delay_);
    }

    /// @notice Sets the parameters. Governance only.
    /// @param leastBond_ Least bond of an operator with workers, in 10^-18 OPG, not zero.
    /// @param delay_ Delay of a withdrawal in seconds, `SHORTEST_DELAY` to 90 days.
    function setParameters(uint128 leastBond_, uint64 delay_) external onlyGovernance {
        _setParameters(leastBond_, delay_);
    }

    function _setParameters(uint128 leastBond_, uint64 delay_) private {
        if (leastBond_ == 0) revert ParameterRange("leastBond");
        if (delay_ < SHORTEST_DELAY || delay_ > 90 days) revert ParameterRange("delay");
        (leastBond, delay) = (leastBond_, delay_);
        emit ParametersSet(leastBond_, delay_);
    }

    /// @notice Registers the caller as an operator with a bond, which it must have approved.
    /// @param name What it calls itself, 1 to `TEXT` bytes.
    /// @param bond Amount in 10^-18 OPG, at least `leastBond`.
    function registerOperator(string calldata name, uint128 bond) external newWork {
        if (bytes(_operators[msg.sender].name).length != 0) revert AlreadyOperator(msg.sender);
        _text(name);
        if (bond < leastBond) revert BondTooLow(bond, leastBond);
        _operators[msg.sender].name = name;
        _operators[msg.sender].bond = bond;
        emit OperatorRegistered(msg.sender, name);
        emit BondChanged(msg.sender, bond, 0);
        OPG.transferFrom(msg.sender, address(this), bond);
    }

    /// @notice Adds to the bond of an operator. Anybody may pay; disputes give back so what they took.
    /// @param operator Whose bond.
    /// @param amount Amount in 10^-18 OPG.
    function addBond(address operator, uint128 amount) external {
        Operator storage o = _operator(operator);
        if (amount == 0) revert ZeroAmount();
        o.bond += amount;
        emit BondChanged(operator, o.bond, o.leaving);
        OPG.transferFrom(msg.sender, address(this), amount);
    }

    /// @notice Asks a part of the bond back. It goes on answering for the past until it is withdrawn; the delay begins anew
    /// for what was already on its way.
    /// @param amount Amount in 10^-18 OPG.
    function leaveBond(uint128 amount) external {
        Operator storage o = _operator(msg.sender);
        if (amount == 0) revert ZeroAmount();
        if (amount > o.bond) revert BondTooLow(o.bond, amount);
        uint128 rest = o.bond - amount;
        if (o.workers > 0 && rest < leastBond) revert BondTooLow(rest, leastBond);
        o.bond = rest;
        o.leaving += amount;
        o.leavesAt = uint64(block.timestamp) + delay;
        emit BondChanged(msg.sender, rest, o.leaving);
    }

    /// @notice Withdraws what was asked back, once its delay is over.
    function withdrawBond() external {
        Operator storage o = _operator(msg.sender);
        uint128 amount = o.leaving;
        if (amount == 0) revert ZeroAmount();
        if (block.timestamp < o.leavesAt) revert NotYet(o.leavesAt);
        o.leaving = 0;
        emit BondChanged(msg.sender, o.bond, 0);
        OPG.transfer(msg.sender, amount);
    }

    /// @notice Takes tokens of a bond, first of what stays, then of what leaves. Settlement and disputes only.
    /// @param operator Whose bond.
    /// @param amount Most to take, in 10^-18 OPG.
    /// @return taken What was there and is now the caller's.
    function take(address operator, uint128 amount) external returns (uint128 taken) {
        if (msg.sender != _SETTLEMENT && msg.sender != _DISPUTES) revert NotAllowed(msg.sender);
        Operator storage o = _operators[operator];
        uint128 first = amount < o.bond ? amount : o.bond;
        uint128 rest = amount - first;
        uint128 second = rest < o.leaving ? rest : o.leaving;
        o.bond -= first;
        o.leaving -= second;
        taken = first + second;
        emit BondChanged(operator, o.bond, o.leaving);
        emit BondTaken(operator, msg.sender, taken);
        OPG.transfer(msg.sender, taken);
    }

    /// @notice Adds a worker. Its key signs `WorkerKey(operator, worker, epoch 1)` in this contract's domain
    /// (name `Assay Registry`, version `1`), so nobody can register a key that is not theirs.
    /// @param worker Address of the key.
    /// @param url Where it listens, 1 to `TEXT` bytes.
    /// @param tlsSha256 SHA-256 of its TLS certificate in DER form.
    /// @param signature The key's signature.
    function addWorker(address worker, string calldata url, bytes32 tlsSha256, bytes calldata signature) external newWork {
        Operator storage o = _operator(msg.sender);
        if (o.bond < leastBond) revert BondTooLow(o.bond, leastBond);
        if (o.workers >= WORKERS) revert TooMany(WORKERS);
        o.workers += 1;
        _addKey(worker, 1, url, tlsSha256, signature);
    }

    /// @notice Replaces a worker's key by the next; offers stay with the worker.
    /// @param old The key in use.
    /// @param next The next key, which signs `WorkerKey(operator, next, epoch)` with the epoch after the old one.
    /// @param signature The next key's signature.
    function rotateKey(address old, address next, bytes calldata signature) external {
        Key storage k = _own(old);
        string memory url = _urls[old];
        bytes32 tls = _tls[old];
        bytes32[] memory models = _models[old];
        _retireKey(old, k);
        _addKey(next, k.epoch + 1, url, tls, signature);
        for (uint256 i; i < models.length; ++i) {
            _models[next].push(models[i]);
            _offers[next][models[i]] = _offers[old][models[i]];
            delete _offers[old][models[i]];
            emit OfferSet(next, models[i], _offers[next][models[i]]);
        }
        delete _models[old];
    }

    /// @notice Retires a worker. Its receipts up to now stay checkable.
    function retireWorker(address worker) external {
        Key storage k = _own(worker);
        _retireKey(worker, k);
        _operators[msg.sender].workers -= 1;
    }

    /// @notice Sets where a worker listens.
    function setEndpoint(address worker, string calldata url, bytes32 tlsSha256) external {
        _own(worker);
        _setEndpoint(worker, url, tlsSha256);
    }

    /// @notice Offers a model, or changes the offer.
    function setOffer(address worker, bytes32 model, Offer calldata offer) external newWork {
        _own(worker);
        _text(offer.name);
        if (bytes(_offers[worker][model].name).length == 0) {
            if (_models[worker].length >= OFFERS) revert TooMany(OFFERS);
            _models[worker].push(model);
        }
        _offers[worker][model] = offer;
        emit OfferSet(worker, model, offer);
    }

    /// @notice Takes an offer back.
    function removeOffer(address worker, bytes32 model) external {
        _own(worker);
        if (bytes(_offers[worker][model].name).length == 0) revert NoOffer(model);
        delete _offers[worker][model];
        bytes32[] storage models = _models[worker];
        for (uint256 i; i < models.length; ++i) {
            if (models[i] == model) {
                models[i] = models[models.length - 1];
                models.pop();
                break;
            }
        }
        emit OfferRemoved(worker, model);
    }

    /// @notice An operator; its name is empty when it is unknown.
    function operatorOf(address operator) external view returns (Operator memory) {
        return _operators[operator];
    }

    /// @notice A key, in use or retired; its operator is zero when it is unknown.
    function keyOf(address worker) external view returns (Key memory) {
        return _keys[worker];
    }

    /// @notice What a worker offers for a model; its name is empty when it offers none.
    function offerOf(address worker, bytes32 model) external view returns (Offer memory) {
        return _offers[worker][model];
    }

    /// @notice Number of workers in use.
    function workerCount() external view returns (uint256) {
        return _workers.length;
    }

    /// @notice Worker number `i` of those in use; the order changes when a worker leaves.
    function workerAt(uint256 i) external view returns (address) {
        return _workers[i];
    }

    /// @notice All about worker number `i` of those in use.
    function member(uint256 i) external view returns (Member memory m) {
        m.worker = _workers[i];
        Key memory k = _keys[m.worker];
        m.operator = k.operator;
        m.operatorName = _operators[k.operator].name;
        m.bond = _operators[k.operator].bond;
        m.keyEpoch = k.epoch;
        m.url = _urls[m.worker];
        m.tlsSha256 = _tls[m.worker];
        m.models = _models[m.worker];
        m.offers = new Offer[](m.models.length);
        for (uint256 j; j < m.models.length; ++j) {
            m.offers[j] = _offers[m.worker][m.models[j]];
        }
    }

    function _operator(address operator) private view returns (Operator storage o) {
        o = _operators[operator];
        if (bytes(o.name).length == 0) revert NotOperator(operator);
    }

    function _own(address worker) private view returns (Key storage k) {
        k = _keys[worker];
        if (k.operator != msg.sender || k.until != 0) revert NotYourWorker(worker);
    }

    function _text(string memory text) private pure {
        uint256 length = bytes(text).length;
        if (length == 0 || length > TEXT) revert TextLength(length);
    }

    function _addKey(address worker, uint64 epoch, string memory url, bytes32 tls, bytes calldata signature) private {
        if (_keys[worker].operator != address(0)) revert KeyUsed(worker);
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(WORKER_KEY, msg.sender, worker, epoch)));
        if (worker == address(0) || Statements.signer(digest, signature) != worker) revert KeyProof(worker);
        _keys[worker] = Key(msg.sender, epoch, uint64(block.timestamp), 0);
        _workers.push(worker);
        _index[worker] = _workers.length;
        emit KeyAdded(msg.sender, worker, epoch);
        _setEndpoint(worker, url, tls);
    }

    function _retireKey(address worker, Key storage k) private {
        k.until = uint64(block.timestamp);
        uint256 place = _index[worker];
        address last = _workers[_workers.length - 1];
        _workers[place - 1] = last;
        _index[last] = place;
        _workers.pop();
        delete _index[worker];
        emit KeyRetired(k.operator, worker, k.epoch);
    }

    function _setEndpoint(address worker, string memory url, bytes32 tls) private {
        _text(url);
        _urls[worker] = url;
        _tls[worker] = tls;
        emit EndpointSet(worker, url, tls);
    }
}
