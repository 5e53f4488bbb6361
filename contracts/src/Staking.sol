// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Votes} from "@openzeppelin/contracts/governance/utils/Votes.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Addresses, System} from "./System.sol";

/// A validator.
/// @param tokens Bonded OPG of all its delegators, in 10^-18 OPG.
/// @param shares Shares of it; one share is one 10^-18 OPG until a slash.
/// @param leavingTokens OPG on its way out, which a slash still reaches.
/// @param leavingShares Shares of that.
/// @param pool Counts the pools of leaving OPG: a new one begins when the one before is empty.
/// @param index Rewards per bonded token, times 2^128, up to which the validator is paid.
/// @param perShare Rewards per share for delegators, times 2^128.
/// @param earned Commission that the owner has not claimed, in 10^-18 OPG.
/// @param commissionBps What the owner keeps of rewards, in hundredths of a per cent.
/// @param commissionAt When the commission was last changed, in seconds since 1970.
/// @param jailedUntil It has no seats before this time, in seconds since 1970; the largest value for ever.
/// @param key Public key of its consensus messages (32 bytes), then where it is reached.
/// @param tombstoned It was slashed for an equivocation: it stays in jail, and nothing is taken from it again.
struct Validator {
    uint128 tokens;
    uint128 shares;
    uint128 leavingTokens;
    uint128 leavingShares;
    uint64 pool;
    uint256 index;
    uint256 perShare;
    uint128 earned;
    uint16 commissionBps;
    uint64 commissionAt;
    uint64 jailedUntil;
    bytes key;
    bool tombstoned;
}

/// Whose a consensus key is.
/// @param validator Owner address of the validator.
/// @param until Since when its signatures do not count against the validator, in seconds since 1970; zero while it is in use.
struct Holder {
    address validator;
    uint64 until;
}

/// What a delegator has with one validator.
/// @param shares Bonded shares.
/// @param paid `perShare` up to which it is paid.
/// @param owed Rewards not claimed, in 10^-18 OPG.
/// @param votes Votes that the shares carry.
struct Delegation {
    uint128 shares;
    uint256 paid;
    uint128 owed;
    uint128 votes;
}

/// OPG on its way out.
/// @param shares Shares of the validator's leaving OPG.
/// @param time When it may be withdrawn, in seconds since 1970.
/// @param pool The pool that it has shares of; worth nothing once that was slashed to nothing.
struct Leaving {
    uint128 shares;
    uint64 time;
    uint64 pool;
}

/// Governed parameters of staking.
/// @param unbonding Delay of a withdrawal in seconds, 7 to 60 days.
/// @param equivocationBps Share of the stake that an equivocation costs, 1 to 10,000 hundredths of a per cent.
/// @param downtimeBps Share that an absence costs, at most 100.
/// @param downtimeJail Seconds in jail after an absence, at most 30 days.
/// @param leastSelf Stake that an owner must put up itself, in 10^-18 OPG, not zero.
/// @param seats Seats of the committee, 1 to 1,000.
struct StakingParameters {
    uint64 unbonding;
    uint16 equivocationBps;
    uint16 downtimeBps;
    uint64 downtimeJail;
    uint128 leastSelf;
    uint32 seats;
}

/// @title Staking
/// @notice Validators, delegations, rewards and slashes. Stake elects seats: `committee` is what the node reads at the end
/// of an epoch. Shares make a slash reach all delegators and all who are leaving in proportion, without a loop. Staked OPG
/// votes in governance; a delegator's votes are those of the OPG that it put in, until it touches its delegation again
/// after a slash.
/// @dev All rounding is against the caller. Consensus faults are reported by the node itself in a system call, whose
/// sender no key has (the address of EIP-4788); on a chain that knows no such call nobody can slash.
contract Staking is System, Votes {
    /// @notice Sender of the node's system calls.
    address public constant CONSENSUS = 0xffffFFFfFFffffffffffffffFfFFFfffFFFfFFfE;
    /// @notice Most validators.
    uint256 public constant VALIDATORS = 128;
    /// @notice Most withdrawals that one delegator has under way with one validator.
    uint256 public constant LEAVINGS = 16;
    /// @notice Largest rise of a commission in one step, and least time between two, in hundredths of a per cent and seconds.
    uint256 public constant COMMISSION_STEP = 100;
    /// @notice See `COMMISSION_STEP`.
    uint256 public constant COMMISSION_REST = 7 days;

    uint256 private constant ONE = 1 << 128;
    uint256 private constant BPS = 10_000;

    /// @notice The caller is not the consensus of the node.
    error NotConsensus(address caller);
    /// @notice There is no such validator.
    error UnknownValidator(address validator);
    /// @notice The caller is a validator already.
    error AlreadyValidator(address validator);
    /// @notice The limit of validators or withdrawals is reached.
    error TooMany(uint256 limit);
    /// @notice Amounts are not zero, and not more than there is.
    error BadAmount(uint256 amount, uint256 available);
    /// @notice What is registered has 32 to 128 bytes, of which the first 32, the key, were never anybody's before.
    error BadKey();
    /// @notice The commission is above 100 %, or rises too fast.
    error BadCommission(uint256 bps);
    /// @notice The owner's own stake would be below the least one.
    error SelfStakeTooLow(uint256 stake, uint256 least);
    /// @notice Not before the given time (seconds since 1970).
    error NotYet(uint256 time);
    /// @notice Nothing is there to withdraw or claim.
    error Nothing();
    /// @notice The validator's stake was slashed to nothing: it takes no more.
    error Ruined(address validator);
    /// @notice Nobody is bonded who could get the reward.
    error NobodyBonded();

    /// @notice A validator joined.
    event ValidatorJoined(address indexed validator, bytes key, uint16 commissionBps);
    /// @notice A validator has another consensus key, or is reached elsewhere, from the next election on.
    event KeySet(address indexed validator, bytes key);
    /// @notice The commission of a validator is now the given one.
    event CommissionSet(address indexed validator, uint16 commissionBps);
    /// @notice OPG was bonded.
    event Delegated(address indexed delegator, address indexed validator, uint256 amount, uint256 shares);
    /// @notice OPG began to leave.
    event Undelegated(address indexed delegator, address indexed validator, uint256 amount, uint256 availableAt);
    /// @notice OPG left.
    event Withdrawn(address indexed delegator, address indexed validator, uint256 amount);
    /// @notice Rewards were claimed.
    event Claimed(address indexed account, address indexed validator, uint256 amount);
    /// @notice Rewards came in.
    event Distributed(address indexed from, uint256 amount);
    /// @notice A validator was slashed.
    event Slashed(address indexed validator, uint256 burnt, bool equivocation);
    /// @notice A validator has no seats before the given time.
    event Jailed(address indexed validator, uint256 until);
    /// @notice A validator left jail.
    event Unjailed(address indexed validator);
    /// @notice Governance set the parameters.
    event ParametersSet(StakingParameters parameters);

    StakingParameters private _parameters;
    address[] private _list;
    mapping(address validator => Validator) private _validators;
    mapping(bytes32 key => Holder) private _holders;
    mapping(address validator => mapping(address delegator => Delegation)) private _delegations;
    mapping(address validator => mapping(address delegator => Leaving[])) private _leavings;

    /// @notice Rewards per bonded token of all validators out of jail, times 2^128.
    uint256 public rewardIndex;
    /// @notice Bonded OPG of all validators out of jail, in 10^-18 OPG.
    uint128 public bonded;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) EIP712("Assay Staking", "1") {}

    /// @notice Sets the first parameters; called once, when the proxy is built.
    function initialize(StakingParameters calldata p) external initializer {
        _setParameters(p);
    }

    /// @notice Sets the parameters. Governance only.
    function setParameters(StakingParameters calldata p) external onlyGovernance {
        _setParameters(p);
    }

    function _setParameters(StakingParameters calldata p) private {
        if (p.unbonding < 7 days || p.unbonding > 60 days) revert ParameterRange("unbonding");
        if (p.equivocationBps == 0 || p.equivocationBps > BPS) revert ParameterRange("equivocationBps");
        if (p.downtimeBps > 100) revert ParameterRange("downtimeBps");
        if (p.downtimeJail > 30 days) revert ParameterRange("downtimeJail");
        if (p.leastSelf == 0) revert ParameterRange("leastSelf");
        if (p.seats == 0 || p.seats > 1_000) revert ParameterRange("seats");
        _parameters = p;
        emit ParametersSet(p);
    }

    /// @notice The parameters.
    function parameters() external view returns (StakingParameters memory) {
        return _parameters;
    }

    /// @notice Makes the caller a validator.
    /// @param key Public key of its consensus messages (32 bytes), then where it is reached, together at most 128 bytes.
    /// @param commissionBps What it keeps of rewards.
    /// @param amount Its own stake, at least `leastSelf`, which it must have approved.
    function join(bytes calldata key, uint16 commissionBps, uint128 amount) external newWork {
        if (_validators[msg.sender].key.length != 0) revert AlreadyValidator(msg.sender);
        if (_list.length >= VALIDATORS) revert TooMany(VALIDATORS);
        _hold(key);
        if (commissionBps > BPS) revert BadCommission(commissionBps);
        if (amount < _parameters.leastSelf) revert SelfStakeTooLow(amount, _parameters.leastSelf);
        _list.push(msg.sender);
        Validator storage v = _validators[msg.sender];
        (v.key, v.commissionBps, v.commissionAt, v.index) =
            (key, commissionBps, uint64(block.timestamp), rewardIndex);
        emit ValidatorJoined(msg.sender, key, commissionBps);
        _delegateTo(msg.sender, amount);
    }

    /// @notice Replaces the caller's consensus key, or says where else it is reached, from the next election on. What the old key
    /// signed counts against the validator for as long as its stake could take to leave; then nobody can use the key any more.
    /// @param key As in `join`.
    function setKey(bytes calldata key) external {
        Validator storage v = _validator(msg.sender);
        bytes memory before = v.key;
        bytes32 old = bytes32(before);
        if (bytes32(key) != old) {
            _hold(key);
            _holders[old].until = uint64(block.timestamp) + _parameters.unbonding;
        } else if (key.length < 32 || key.length > 128) {
            revert BadKey();
        }
        v.key = key;
        emit KeySet(msg.sender, key);
    }

    /// Makes a key that nobody ever had the caller's.
    function _hold(bytes calldata key) private {
        bytes32 head = bytes32(key);
        if (key.length < 32 || key.length > 128 || _holders[head].validator != address(0)) revert BadKey();
        _holders[head].validator = msg.sender;
    }

    /// @notice Changes the caller's commission: down at any time, up by `COMMISSION_STEP` every `COMMISSION_REST`.
    function setCommission(uint16 commissionBps) external {
        Validator storage v = _validator(msg.sender);
        if (commissionBps > v.commissionBps) {
            if (commissionBps > BPS || commissionBps - v.commissionBps > COMMISSION_STEP) revert BadCommission(commissionBps);
            uint256 next = v.commissionAt + COMMISSION_REST;
            if (block.timestamp < next) revert NotYet(next);
        }
        _accrue(v);
        (v.commissionBps, v.commissionAt) = (commissionBps, uint64(block.timestamp));
        emit CommissionSet(msg.sender, commissionBps);
    }

    /// @notice Bonds OPG with a validator.
    /// @param validator Owner address of the validator.
    /// @param amount In 10^-18 OPG, which the caller must have approved.
    function delegateStake(address validator, uint128 amount) external newWork {
        _delegateTo(validator, amount);
    }

    function _delegateTo(address validator, uint128 amount) private {
        Validator storage v = _validator(validator);
        if (amount == 0) revert BadAmount(0, 0);
        if (v.shares > 0 && v.tokens == 0) revert Ruined(validator);
        Delegation storage d = _settle(v, validator, msg.sender);
        uint128 shares = v.shares == 0 ? amount : uint128(Math.mulDiv(amount, v.shares, v.tokens));
        if (shares == 0) revert BadAmount(amount, 0);
        v.tokens += amount;
        v.shares += shares;
        d.shares += shares;
        if (!_jailed(v)) bonded += amount;
        if (delegates(msg.sender) == address(0)) _delegate(msg.sender, msg.sender);
        _setVotes(v, d, msg.sender);
        emit Delegated(msg.sender, validator, amount, shares);
        OPG.transferFrom(msg.sender, address(this), amount);
    }

    /// @notice Asks bonded OPG back. It earns nothing from now on and a slash still reaches it until it is withdrawn.
    /// @param validator Owner address of the validator.
    /// @param shares Shares to give up.
    function undelegateStake(address validator, uint128 shares) external {
        Validator storage v = _validator(validator);
        Delegation storage d = _settle(v, validator, msg.sender);
        if (shares == 0 || shares > d.shares) revert BadAmount(shares, d.shares);
        Leaving[] storage queue = _leavings[validator][msg.sender];
        if (queue.length >= LEAVINGS) revert TooMany(LEAVINGS);
        uint128 amount = uint128(Math.mulDiv(shares, v.tokens, v.shares));
        v.tokens -= amount;
        v.shares -= shares;
        d.shares -= shares;
        if (!_jailed(v)) bonded -= amount;
        if (msg.sender == validator && d.shares > 0) {
            uint256 rest = Math.mulDiv(d.shares, v.tokens, v.shares);
            if (rest < _parameters.leastSelf) revert SelfStakeTooLow(rest, _parameters.leastSelf);
        }
        _setVotes(v, d, msg.sender);
        if (v.leavingTokens == 0) {
            v.leavingShares = 0;
            v.pool += 1;
        }
        uint128 leaving =
            v.leavingShares == 0 ? amount : uint128(Math.mulDiv(amount, v.leavingShares, v.leavingTokens));
        v.leavingTokens += amount;
        v.leavingShares += leaving;
        uint64 time = uint64(block.timestamp) + _parameters.unbonding;
        queue.push(Leaving(leaving, time, v.pool));
        emit Undelegated(msg.sender, validator, amount, time);
    }

    /// @notice Withdraws all OPG of the caller whose delay is over.
    /// @param validator Owner address of the validator.
    /// @return amount In 10^-18 OPG.
    function withdraw(address validator) external returns (uint128 amount) {
        Validator storage v = _validator(validator);
        Leaving[] storage queue = _leavings[validator][msg.sender];
        uint256 i;
        bool any;
        while (i < queue.length) {
            Leaving memory entry = queue[i];
            if (entry.time > block.timestamp) {
                ++i;
                continue;
            }
            any = true;
            if (entry.pool == v.pool) {
                uint128 part = uint128(Math.mulDiv(entry.shares, v.leavingTokens, v.leavingShares));
                v.leavingTokens -= part;
                v.leavingShares -= entry.shares;
                amount += part;
            }
            queue[i] = queue[queue.length - 1];
            queue.pop();
        }
        if (!any) revert Nothing();
        emit Withdrawn(msg.sender, validator, amount);
        OPG.transfer(msg.sender, amount);
    }

    /// @notice Claims the caller's rewards with a validator, and its commission when it is the caller.
    /// @return amount In 10^-18 OPG.
    function claim(address validator) external returns (uint128 amount) {
        Validator storage v = _validator(validator);
        Delegation storage d = _settle(v, validator, msg.sender);
        amount = d.owed;
        d.owed = 0;
        if (msg.sender == validator) {
            amount += v.earned;
            v.earned = 0;
        }
        _setVotes(v, d, msg.sender);
        if (amount == 0) revert Nothing();
        emit Claimed(msg.sender, validator, amount);
        OPG.transfer(msg.sender, amount);
    }

    /// @notice Shares a reward over all bonded OPG out of jail. Anybody may give one; settlement gives the validators' part.
    /// @param amount In 10^-18 OPG, which the caller must have approved.
    function distribute(uint128 amount) external {
        if (bonded == 0) revert NobodyBonded();
        rewardIndex += Math.mulDiv(amount, ONE, bonded);
        emit Distributed(msg.sender, amount);
        OPG.transferFrom(msg.sender, address(this), amount);
    }

    /// @notice Slashes and jails a validator for ever, because it signed two histories, also one that was removed: a slash reaches
    /// what is still leaving. The node's consensus only. Who was slashed for it before is left alone.
    function equivocated(address validator) external {
        Validator storage v = _fault(validator);
        if (v.tombstoned) return;
        v.tombstoned = true;
        _slash(validator, v, _parameters.equivocationBps, true);
        _jail(validator, v, type(uint64).max);
    }

    /// @notice Slashes and jails a validator for a while, because it was absent. The node's consensus only. Who is in jail, where nobody
    /// has seats to be absent from, is left alone.
    function absent(address validator) external {
        Validator storage v = _fault(validator);
        if (_jailed(v)) return;
        _slash(validator, v, _parameters.downtimeBps, false);
        _jail(validator, v, uint64(block.timestamp) + _parameters.downtimeJail);
    }

    /// @notice Leaves jail, when its time is over and the owner's own stake suffices.
    function unjail() external {
        Validator storage v = _validator(msg.sender);
        if (v.jailedUntil == 0) revert Nothing();
        if (block.timestamp < v.jailedUntil) revert NotYet(v.jailedUntil);
        uint256 own = stakeOf(msg.sender, msg.sender);
        if (own < _parameters.leastSelf) revert SelfStakeTooLow(own, _parameters.leastSelf);
        v.jailedUntil = 0;
        v.index = rewardIndex;
        bonded += v.tokens;
        emit Unjailed(msg.sender);
    }

    /// @notice Removes a validator whose owner has less than half of the least stake in it, or which is in jail for an equivocation,
    /// from the list and from the committee. Anybody may. An absence, which costs far less than half, is made up for with more stake.
    /// Its delegators can still take their OPG out.
    function remove(address validator) external {
        Validator storage v = _validator(validator);
        uint256 own = stakeOf(validator, validator);
        uint256 least = _parameters.leastSelf / 2;
        if (own >= least && !v.tombstoned) revert BadAmount(own, least);
        for (uint256 i; i < _list.length; ++i) {
            if (_list[i] == validator) {
                _list[i] = _list[_list.length - 1];
                _list.pop();
                _jail(validator, v, type(uint64).max);
                return;
            }
        }
        revert UnknownValidator(validator);
    }

    /// @notice The committee that the present stake elects: one vote a seat, seats in proportion to the bonded OPG
    /// (largest remainders, the validator that joined first among equals).
    /// @return validators Owner addresses, without those that have no seat.
    /// @return keys Their consensus keys.
    /// @return seats Their seats, which add up to the parameter `seats`, or none when nobody is bonded.
    function committee()
        external
        view
        returns (address[] memory validators, bytes[] memory keys, uint256[] memory seats)
    {
        uint256 n = _list.length;
        uint256 left = _parameters.seats;
        uint256[] memory stake = new uint256[](n);
        uint256 total;
        for (uint256 i; i < n; ++i) {
            Validator storage v = _validators[_list[i]];
            if (!_jailed(v)) stake[i] = v.tokens;
            total += stake[i];
        }
        uint256[] memory won = new uint256[](n);
        uint256[] memory remainder = new uint256[](n);
        if (total == 0) return (validators, keys, seats);
        for (uint256 i; i < n; ++i) {
            uint256 part = stake[i] * _parameters.seats;
            (won[i], remainder[i]) = (part / total, part % total);
            left -= won[i];
        }
        // Fewer seats are left than there are validators with a remainder.
        for (; left > 0; --left) {
            uint256 best;
            for (uint256 i = 1; i < n; ++i) {
                if (remainder[i] > remainder[best]) best = i;
            }
            won[best] += 1;
            remainder[best] = 0;
        }
        uint256 seated;
        for (uint256 i; i < n; ++i) {
            if (won[i] > 0) ++seated;
        }
        (validators, keys, seats) = (new address[](seated), new bytes[](seated), new uint256[](seated));
        uint256 j;
        for (uint256 i; i < n; ++i) {
            if (won[i] == 0) continue;
            (validators[j], keys[j], seats[j]) = (_list[i], _validators[_list[i]].key, won[i]);
            ++j;
        }
    }

    /// @notice Number of validators on the list.
    function validatorCount() external view returns (uint256) {
        return _list.length;
    }

    /// @notice Owner address of validator number `i` of the list; the order changes when one is removed.
    function validatorAt(uint256 i) external view returns (address) {
        return _list[i];
    }

    /// @notice A validator.
    function validatorOf(address validator) external view returns (Validator memory) {
        return _validators[validator];
    }

    /// @notice Owner address of the validator against which signatures of a consensus key count; zero when there is none, or no more.
    function holderOf(bytes32 key) external view returns (address) {
        Holder memory h = _holders[key];
        return h.until == 0 || block.timestamp < h.until ? h.validator : address(0);
    }

    /// @notice A delegation.
    function delegationOf(address validator, address delegator) external view returns (Delegation memory) {
        return _delegations[validator][delegator];
    }

    /// @notice What a delegation is worth now, in 10^-18 OPG, rounded down.
    function stakeOf(address validator, address delegator) public view returns (uint256) {
        Validator storage v = _validators[validator];
        uint128 shares = _delegations[validator][delegator].shares;
        return shares == 0 ? 0 : Math.mulDiv(shares, v.tokens, v.shares);
    }

    /// @notice Withdrawals of a delegator under way.
    function leavingsOf(address validator, address delegator) external view returns (Leaving[] memory) {
        return _leavings[validator][delegator];
    }

    /// @notice Time of votes: seconds since 1970, as the token's.
    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    /// @notice Machine-readable form of `clock` (EIP-6372).
    // solhint-disable-next-line func-name-mixedcase
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    mapping(address account => uint256) private _votingUnits;

    function _getVotingUnits(address account) internal view override returns (uint256) {
        return _votingUnits[account];
    }

    function _validator(address validator) private view returns (Validator storage v) {
        v = _validators[validator];
        if (v.key.length == 0) revert UnknownValidator(validator);
    }

    function _fault(address validator) private view returns (Validator storage) {
        if (msg.sender != CONSENSUS) revert NotConsensus(msg.sender);
        return _validator(validator);
    }

    function _jailed(Validator storage v) private view returns (bool) {
        return v.jailedUntil != 0;
    }

    /// Brings the rewards of a validator up to date: before its tokens, shares or commission change.
    function _accrue(Validator storage v) private {
        if (!_jailed(v) && v.shares > 0) {
            uint256 reward = Math.mulDiv(v.tokens, rewardIndex - v.index, ONE);
            uint256 commission = Math.mulDiv(reward, v.commissionBps, BPS);
            v.earned += uint128(commission);
            v.perShare += Math.mulDiv(reward - commission, ONE, v.shares);
        }
        v.index = rewardIndex;
    }

    function _settle(Validator storage v, address validator, address delegator) private returns (Delegation storage d) {
        _accrue(v);
        d = _delegations[validator][delegator];
        d.owed += uint128(Math.mulDiv(d.shares, v.perShare - d.paid, ONE));
        d.paid = v.perShare;
    }

    function _setVotes(Validator storage v, Delegation storage d, address delegator) private {
        uint128 votes = d.shares == 0 ? 0 : uint128(Math.mulDiv(d.shares, v.tokens, v.shares));
        uint128 before = d.votes;
        if (votes == before) return;
        d.votes = votes;
        if (votes > before) {
            _votingUnits[delegator] += votes - before;
            _transferVotingUnits(address(0), delegator, votes - before);
        } else {
            _votingUnits[delegator] -= before - votes;
            _transferVotingUnits(delegator, address(0), before - votes);
        }
    }

    function _slash(address validator, Validator storage v, uint256 bps, bool equivocation) private {
        _accrue(v);
        uint128 fromBonded = uint128(Math.mulDiv(v.tokens, bps, BPS, Math.Rounding.Ceil));
        uint128 fromLeaving = uint128(Math.mulDiv(v.leavingTokens, bps, BPS, Math.Rounding.Ceil));
        v.tokens -= fromBonded;
        v.leavingTokens -= fromLeaving;
        if (!_jailed(v)) bonded -= fromBonded;
        emit Slashed(validator, fromBonded + fromLeaving, equivocation);
        OPG.burn(fromBonded + fromLeaving);
    }

    function _jail(address validator, Validator storage v, uint64 until) private {
        _accrue(v);
        if (!_jailed(v)) bonded -= v.tokens;
        if (until > v.jailedUntil) v.jailedUntil = until;
        emit Jailed(validator, v.jailedUntil);
    }
}
