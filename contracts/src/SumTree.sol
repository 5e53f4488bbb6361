// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title SumTree
/// @notice A Merkle tree whose nodes carry the sum of the amounts below them, so that an opening of one leaf also fits the
/// sum of all.
///
///     leaf(i) = keccak256(0x00 || i as 8 bytes || amount as 16 bytes || hash of the data)
///     node    = keccak256(0x01 || left || sum of left as 16 bytes || right || sum of right as 16 bytes)
///
/// Numbers are big-endian. The last node of an odd level goes up unchanged, so the number of leaves fixes the shape of
/// every opening.
library SumTree {
    /// @notice Hash of leaf `index` with the given amount and hash of its data.
    function leaf(uint64 index, uint128 amount, bytes32 data) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0), index, amount, data));
    }

    /// @notice Whether leaf `index` of `count` leads to `root` with `sum`.
    /// @param siblings Hashes on the way, lowest first, without an entry where the node has no sibling.
    /// @param sums Their sums.
    function verify(
        bytes32 root,
        uint128 sum,
        uint256 count,
        uint256 index,
        uint256 amount,
        bytes32 hash,
        bytes32[] calldata siblings,
        uint128[] calldata sums
    ) internal pure returns (bool) {
        if (index >= count || siblings.length != sums.length) return false;
        uint256 used;
        for (; count > 1; count = (count + 1) / 2) {
            if (index ^ 1 < count) {
                if (used == siblings.length) return false;
                bytes32 other = siblings[used];
                uint128 otherSum = sums[used];
                ++used;
                if (amount > type(uint128).max) return false;
                hash = index & 1 == 0
                    ? keccak256(abi.encodePacked(uint8(1), hash, uint128(amount), other, otherSum))
                    : keccak256(abi.encodePacked(uint8(1), other, otherSum, hash, uint128(amount)));
                // Sums are added in 256 bits: no overflow can hide an amount.
                amount += otherSum;
            }
            index /= 2;
        }
        return used == siblings.length && hash == root && amount == sum;
    }
}
