// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";

/// A released binary.
/// @param version Its version, for example `1.2.0`.
/// @param target What it runs on, for example `x86_64-unknown-linux-gnu`.
/// @param sha256 SHA-256 of the file.
/// @param recordedAt Seconds since 1970.
struct Release {
    string version;
    string target;
    bytes32 sha256;
    uint64 recordedAt;
}

/// @title Treasury
/// @notice Holds the OPG of the community and the record of released binaries. Governance alone can pay from it and add
/// to the record; nobody can change a record.
contract Treasury is System {
    /// @notice A hash of zero names no file.
    error NoHash();
    /// @notice Zero is nobody's address.
    error NoRecipient();

    /// @notice Governance paid.
    event Paid(address indexed to, uint256 amount, string purpose);
    /// @notice Governance recorded a release.
    event Released(uint256 indexed index, string version, string target, bytes32 sha256);

    Release[] private _releases;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {}

    /// @notice Nothing is set at first; called once, when the proxy is built.
    function initialize() external initializer {}

    /// @notice Pays OPG. Governance only.
    /// @param to Who gets it.
    /// @param amount Amount in 10^-18 OPG.
    /// @param purpose A sentence for the record.
    function pay(address to, uint256 amount, string calldata purpose) external onlyGovernance {
        if (to == address(0)) revert NoRecipient();
        emit Paid(to, amount, purpose);
        OPG.transfer(to, amount);
    }

    /// @notice Records the hash of a released binary. Governance only.
    /// @param version Its version.
    /// @param target What it runs on.
    /// @param sha256_ SHA-256 of the file, not zero.
    function recordRelease(string calldata version, string calldata target, bytes32 sha256_) external onlyGovernance {
        if (sha256_ == 0) revert NoHash();
        emit Released(_releases.length, version, target, sha256_);
        _releases.push(Release(version, target, sha256_, uint64(block.timestamp)));
    }

    /// @notice Number of recorded releases.
    function releaseCount() external view returns (uint256) {
        return _releases.length;
    }

    /// @notice A recorded release, counted from 0.
    function release(uint256 index) external view returns (Release memory) {
        return _releases[index];
    }
}
