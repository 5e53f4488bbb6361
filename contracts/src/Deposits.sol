// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";

/// A payer's deposit.
/// @param balance What is there, in 10^-18 OPG.
/// @param leaving The part of it that was asked back.
/// @param leavesAt When that may be withdrawn, in seconds since 1970.
struct Deposit {
    uint128 balance;
    uint128 leaving;
    uint64 leavesAt;
}

/// @title Deposits
/// @notice What payers have paid in, and the keys that may sign vouchers in their names. Settlement reserves from a deposit
/// what a batch charges, gives back what was struck and pays the rest out. A payer can take its deposit out after a
/// delay, in which workers settle what they have earned.
contract Deposits is System {
    /// @notice Delay of a withdrawal and of the end of a signer's right, in seconds: longer than a pause.
    uint256 public constant DELAY = 7 days;

    /// @notice Amounts are not zero, and not more than there is.
    error BadAmount(uint256 amount, uint256 available);
    /// @notice Not before the given time (seconds since 1970).
    error NotYet(uint256 time);

    /// @notice A payer's deposit is now the given one, with the given part asked back.
    event DepositChanged(address indexed payer, uint256 balance, uint256 leaving);
    /// @notice A key may sign vouchers of a payer until the given time.
    event SignerSet(address indexed payer, address indexed signer, uint256 until);

    address private immutable _SETTLEMENT;
    mapping(address payer => Deposit) private _deposits;
    /// @notice Until when a key may sign vouchers of a payer, in seconds since 1970; 0 for never.
    mapping(address payer => mapping(address signer => uint256)) public signerUntil;
    /// @notice What batches have reserved and not paid, in 10^-18 OPG.
    uint256 public reserved;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {
        _SETTLEMENT = a.settlement;
    }

    /// @notice Nothing is set at first; called once, when the proxy is built.
    function initialize() external initializer {}

    modifier onlySettlement() {
        if (msg.sender != _SETTLEMENT) revert NotAllowed(msg.sender);
        _;
    }

    /// @notice Adds to the deposit of a payer; the caller must have approved the amount.
    /// @param payer Whose deposit.
    /// @param amount In 10^-18 OPG.
    function deposit(address payer, uint128 amount) external newWork {
        if (amount == 0) revert BadAmount(0, 0);
        _add(payer, amount);
        OPG.transferFrom(msg.sender, address(this), amount);
    }

    /// @notice Asks deposit back. Until it is withdrawn it still pays for what was authorised.
    /// @param amount In 10^-18 OPG; replaces what was asked before, and the delay begins anew.
    function askBack(uint128 amount) external {
        Deposit storage d = _deposits[msg.sender];
        if (amount == 0 || amount > d.balance) revert BadAmount(amount, d.balance);
        d.leaving = amount;
        d.leavesAt = uint64(block.timestamp + DELAY);
        emit DepositChanged(msg.sender, d.balance, amount);
    }

    /// @notice Withdraws what was asked back, or what is left of it, once the delay is over.
    function withdraw() external {
        Deposit storage d = _deposits[msg.sender];
        uint128 amount = d.leaving < d.balance ? d.leaving : d.balance;
        if (amount == 0) revert BadAmount(0, d.balance);
        if (block.timestamp < d.leavesAt) revert NotYet(d.leavesAt);
        d.balance -= amount;
        d.leaving = 0;
        emit DepositChanged(msg.sender, d.balance, 0);
        OPG.transfer(msg.sender, amount);
    }

    /// @notice Lets a key sign vouchers in the caller's name until the given time. A payer's own key always may.
    /// @param signer The key's address.
    /// @param until Seconds since 1970. A right that exists goes on for `DELAY` at least, unless it ends sooner by itself:
    /// workers rely on it.
    function setSigner(address signer, uint64 until) external {
        uint256 present = signerUntil[msg.sender][signer];
        uint256 floor = block.timestamp + DELAY;
        if (present < floor) floor = present;
        uint256 end = until < floor ? floor : until;
        signerUntil[msg.sender][signer] = end;
        emit SignerSet(msg.sender, signer, end);
    }

    /// @notice A payer's deposit.
    function depositOf(address payer) external view returns (Deposit memory) {
        return _deposits[payer];
    }

    /// @notice Reserves a part of a deposit for a batch. Settlement only.
    /// @return Whether there was enough; nothing is reserved otherwise.
    function reserve(address payer, uint128 amount) external onlySettlement returns (bool) {
        Deposit storage d = _deposits[payer];
        if (amount > d.balance) return false;
        d.balance -= amount;
        reserved += amount;
        emit DepositChanged(payer, d.balance, d.leaving);
        return true;
    }

    /// @notice Gives back what was reserved. Settlement only.
    function refund(address payer, uint128 amount) external onlySettlement {
        reserved -= amount;
        _add(payer, amount);
    }

    /// @notice Pays out of what was reserved. Settlement only.
    function spend(address to, uint256 amount) external onlySettlement {
        reserved -= amount;
        OPG.transfer(to, amount);
    }

    function _add(address payer, uint128 amount) private {
        Deposit storage d = _deposits[payer];
        d.balance += amount;
        emit DepositChanged(payer, d.balance, d.leaving);
    }
}
