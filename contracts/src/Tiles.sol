// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// A tile with its way to the root.
/// @param index Its number.
/// @param data Its 4,096 bytes; the last tile may be shorter.
/// @param siblings Hashes on the way, lowest first, without an entry where the node has no sibling.
struct Tile {
    uint64 index;
    bytes data;
    bytes32[] siblings;
}

/// @title Tiles
/// @notice The Merkle tree of docs/artifact.md, over a model's data and over an execution trace, and little-endian numbers
/// in what was opened.
///
///     leaf(i) = keccak256(0x00 || i as 8 bytes || length as 4 bytes || tile)
///     node    = keccak256(0x01 || left || right)
///
/// The last node of an odd level goes up unchanged.
library Tiles {
    /// @notice Bytes of a tile.
    uint256 internal constant TILE = 4096;

    /// @notice A tile does not belong to the root.
    error WrongTile(uint256 index);
    /// @notice A byte that is needed was not opened.
    error NotOpened(uint256 offset);

    /// @notice Hash of tile `index`.
    function leaf(uint64 index, bytes memory data) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0), index, uint32(data.length), data));
    }

    /// @notice Hash of an inner node.
    function node(bytes32 left, bytes32 right) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(1), left, right));
    }

    /// @notice Number of tiles of `size` bytes.
    function count(uint256 size) internal pure returns (uint256) {
        return (size + TILE - 1) / TILE;
    }

    /// @notice Reverts unless all tiles belong to the data of `size` bytes with the given root.
    function check(bytes32 root, uint256 size, Tile[] calldata tiles) internal pure {
        for (uint256 i; i < tiles.length; ++i) {
            if (!belongs(root, size, tiles[i])) revert WrongTile(tiles[i].index);
        }
    }

    /// @notice Whether a tile belongs to the data of `size` bytes with the given root.
    function belongs(bytes32 root, uint256 size, Tile calldata t) internal pure returns (bool) {
        uint256 width = count(size);
        uint256 place = t.index;
        if (place >= width) return false;
        uint256 length = size - place * TILE;
        if (t.data.length != (length < TILE ? length : TILE)) return false;
        bytes32 hash = leaf(t.index, t.data);
        uint256 used;
        for (; width > 1; width = (width + 1) / 2) {
            if (place ^ 1 < width) {
                if (used == t.siblings.length) return false;
                hash = place & 1 == 0 ? node(hash, t.siblings[used]) : node(t.siblings[used], hash);
                ++used;
            }
            place /= 2;
        }
        return used == t.siblings.length && hash == root;
    }

    /// @notice Bytes `offset` to `offset + length` of what was opened.
    function read(Tile[] calldata tiles, uint256 offset, uint256 length) internal pure returns (bytes memory out) {
        uint256 end = offset + length;
        uint256 from = offset;
        out = new bytes(length);
        while (from < end) {
            uint256 index = from / TILE;
            uint256 stop = (index + 1) * TILE < end ? (index + 1) * TILE : end;
            uint256 i;
            while (i < tiles.length && tiles[i].index != index) ++i;
            if (i == tiles.length || stop - index * TILE > tiles[i].data.length) revert NotOpened(from);
            bytes calldata data = tiles[i].data[from - index * TILE:stop - index * TILE];
            assembly {
                calldatacopy(add(add(out, 32), sub(from, offset)), data.offset, data.length)
            }
            from = stop;
        }
    }

    /// @notice Unsigned little-endian number of `width` bytes at place `i` of a packed list.
    function unsigned(bytes memory data, uint256 i, uint256 width) internal pure returns (uint256 value) {
        require((i + 1) * width <= data.length);
        assembly {
            let word := mload(add(add(data, 32), mul(i, width)))
            for { let j := 0 } lt(j, width) { j := add(j, 1) } { value := or(value, shl(mul(8, j), byte(j, word))) }
        }
    }

    /// @notice Signed little-endian number of `width` bytes at place `i` of a packed list.
    function signed(bytes memory data, uint256 i, uint256 width) internal pure returns (int256) {
        uint256 value = unsigned(data, i, width);
        uint256 shift = 256 - 8 * width;
        return int256(value << shift) >> shift;
    }

    /// @notice The number as `width` little-endian bytes (two's complement).
    function pack(int256 value, uint256 width) internal pure returns (bytes memory out) {
        out = new bytes(width);
        for (uint256 i; i < width; ++i) {
            out[i] = bytes1(uint8(uint256(value) >> (8 * i)));
        }
    }
}
