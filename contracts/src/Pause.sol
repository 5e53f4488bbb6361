// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Pause
/// @notice The emergency pause. A guardian, named by governance, can stop new work (registrations, deposits, stakes,
/// batches, promises) for three days at most, and then not again for thirty days after it ended. It cannot stop
/// payments, withdrawals, challenges, disputes or votes, and it can change nothing. Governance can end a pause and name
/// another guardian, or none.
contract Pause {
    /// @notice Longest pause, in seconds.
    uint256 public constant LONGEST = 3 days;
    /// @notice Time after the end of a pause before the next may begin, in seconds.
    uint256 public constant REST = 30 days;

    /// @notice The caller is not the timelock of governance.
    error NotGovernance(address caller);
    /// @notice The caller is not the guardian.
    error NotGuardian(address caller);
    /// @notice The next pause may begin at the given time (seconds since 1970).
    error Resting(uint256 until);
    /// @notice No pause is under way.
    error NotPaused();

    /// @notice New work is stopped until the given time, for the given reason.
    event PauseBegan(uint256 until, string reason);
    /// @notice Governance ended the pause early.
    event PauseEnded();
    /// @notice The guardian is now the given one; zero for none.
    event GuardianSet(address guardian);

    /// @notice The timelock of governance.
    address public immutable TIMELOCK;
    /// @notice Who may pause; zero for nobody.
    address public guardian;
    /// @notice End of the last pause, in seconds since 1970; in the past when none is under way.
    uint256 public until;

    /// @param timelock The timelock of governance.
    /// @param guardian_ The first guardian; zero for none.
    constructor(address timelock, address guardian_) {
        TIMELOCK = timelock;
        guardian = guardian_;
        emit GuardianSet(guardian_);
    }

    /// @notice Stops new work for three days. Guardian only.
    /// @param reason A sentence for those who are stopped.
    function pause(string calldata reason) external {
        if (msg.sender != guardian) revert NotGuardian(msg.sender);
        if (until != 0 && block.timestamp < until + REST) revert Resting(until + REST);
        until = block.timestamp + LONGEST;
        emit PauseBegan(until, reason);
    }

    /// @notice Ends a pause early. Governance only.
    function unpause() external {
        if (msg.sender != TIMELOCK) revert NotGovernance(msg.sender);
        if (block.timestamp >= until) revert NotPaused();
        until = block.timestamp;
        emit PauseEnded();
    }

    /// @notice Names another guardian. Governance only.
    /// @param guardian_ The guardian; zero for none.
    function setGuardian(address guardian_) external {
        if (msg.sender != TIMELOCK) revert NotGovernance(msg.sender);
        guardian = guardian_;
        emit GuardianSet(guardian_);
    }
}
