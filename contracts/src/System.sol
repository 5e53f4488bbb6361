// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Initializable} from "@openzeppelin/contracts/proxy/utils/Initializable.sol";
import {UUPSUpgradeable} from "@openzeppelin/contracts/proxy/utils/UUPSUpgradeable.sol";
import {Opg} from "./Opg.sol";
import {Pause} from "./Pause.sol";

/// The addresses of one deployment. Every contract gets all of them when it is built, so no function exists that could
/// point a contract at another one: only an upgrade through governance can.
/// @param timelock The TimelockController behind the governor: the only holder of governed powers.
/// @param opg The token.
/// @param pause The emergency pause.
/// @param staking Validators and delegations.
/// @param registry Operators and workers.
/// @param models Models and their authors.
/// @param deposits Payers' deposits.
/// @param rules What makes a receipt payable.
/// @param settlement Settlement of receipts; the EIP-712 domain of all statements.
/// @param audits Sampled audits.
/// @param serviceLevels Service-level bonds.
/// @param disputes The dispute game.
/// @param treasury The treasury.
struct Addresses {
    address timelock;
    address opg;
    address pause;
    address staking;
    address registry;
    address models;
    address deposits;
    address rules;
    address settlement;
    address audits;
    address serviceLevels;
    address disputes;
    address treasury;
}

/// @title System
/// @notice What all upgradeable contracts of Assay share: the addresses of the deployment, the right of the timelock to
/// set parameters and to upgrade, and the check of the emergency pause. It holds no state of its own.
abstract contract System is Initializable, UUPSUpgradeable {
    /// @notice The caller is not the timelock of governance.
    error NotGovernance(address caller);
    /// @notice The caller is not the contract of this deployment that may do this.
    error NotAllowed(address caller);
    /// @notice New work is stopped until the given time (seconds since 1970).
    error Paused(uint256 until);
    /// @notice A parameter is outside the range that its documentation gives.
    error ParameterRange(string name);

    /// @notice The timelock of governance.
    address public immutable TIMELOCK;
    /// @notice The token.
    Opg public immutable OPG;
    /// @notice The emergency pause.
    Pause public immutable PAUSE;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) {
        TIMELOCK = a.timelock;
        OPG = Opg(a.opg);
        PAUSE = Pause(a.pause);
        _disableInitializers();
    }

    /// @dev Governed powers.
    modifier onlyGovernance() {
        if (msg.sender != TIMELOCK) revert NotGovernance(msg.sender);
        _;
    }

    /// @dev Functions that begin new work. Nothing that ends work, pays, withdraws or defends has this modifier.
    modifier newWork() {
        uint256 until = PAUSE.until();
        if (block.timestamp < until) revert Paused(until);
        _;
    }

    function _authorizeUpgrade(address) internal view override onlyGovernance {}
}
