// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC20Votes} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Votes.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";

/// A class of the first supply, as it stands in the genesis file.
/// @param class Name of the class, for example `treasury` or `operators`.
/// @param holder Who gets it.
/// @param amount Amount in 10^-18 OPG.
struct Allocation {
    string class;
    address holder;
    uint256 amount;
}

/// @title Opg
/// @notice The token: ERC-20 with permit (EIP-2612), votes (EIP-5805, by timestamp) and transfers with authorisation
/// (EIP-3009). The whole supply is minted when it is built, to documented classes; there is no function that mints, no
/// owner and no pause. Burning is open to every holder, for what is theirs.
contract Opg is ERC20, ERC20Burnable, ERC20Permit, ERC20Votes, ERC3009 {
    /// @notice The whole first supply, in 10^-18 OPG: a thousand million OPG.
    uint256 public constant SUPPLY = 1_000_000_000 ether;

    /// @notice The classes do not add up to the supply.
    error SupplyMismatch(uint256 allocated);

    /// @notice A class of the first supply was minted.
    event Allocated(string class, address indexed holder, uint256 amount);

    Allocation[] private _allocations;

    /// @param allocations_ The classes; they add up to `SUPPLY`.
    constructor(Allocation[] memory allocations_) ERC20("Assay OPG", "OPG") ERC20Permit("Assay OPG") {
        uint256 total;
        for (uint256 i; i < allocations_.length; ++i) {
            Allocation memory a = allocations_[i];
            total += a.amount;
            _mint(a.holder, a.amount);
            _allocations.push(a);
            emit Allocated(a.class, a.holder, a.amount);
        }
        if (total != SUPPLY) revert SupplyMismatch(total);
    }

    /// @notice The classes of the first supply, as they were minted.
    function allocations() external view returns (Allocation[] memory) {
        return _allocations;
    }

    /// @notice Time of votes: seconds since 1970.
    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    /// @notice Machine-readable form of `clock` (EIP-6372).
    // solhint-disable-next-line func-name-mixedcase
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    /// @inheritdoc ERC20Permit
    function nonces(address owner) public view override(ERC20Permit, Nonces) returns (uint256) {
        return super.nonces(owner);
    }

    function _update(address from, address to, uint256 value) internal override(ERC20, ERC20Votes) {
        super._update(from, to, value);
    }
}
