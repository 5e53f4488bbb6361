// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// A place in a model's data.
/// @param offset First byte.
/// @param rows Rows.
/// @param cols Elements of a row.
/// @param bits The digit at the end of its kind: the bits of a stored weight; 0 for other kinds.
struct Section {
    uint256 offset;
    uint256 rows;
    uint256 cols;
    uint256 bits;
}

/// @title Manifest
/// @notice Reads what a referee needs out of a model's manifest, whose keccak256 is the model id. Callers say where to look;
/// what stands there is compared byte by byte. A manifest is canonical JSON, in whose strings a quotation mark always
/// follows a backslash, so text like `{"name":` or `,"config":` can only be what it seems.
library Manifest {
    /// @notice The manifest does not say what was expected at a place.
    error NotThere(uint256 place, string expected);

    /// @notice The place after `text`, which must stand at `place`.
    function skip(bytes calldata m, uint256 place, string memory text) internal pure returns (uint256) {
        uint256 end = place + bytes(text).length;
        if (end > m.length || keccak256(m[place:end]) != keccak256(bytes(text))) revert NotThere(place, text);
        return end;
    }

    /// @notice The number that stands after `text` at `place`, and the place after it.
    function number(bytes calldata m, uint256 place, string memory text)
        internal
        pure
        returns (uint256 value, uint256 next)
    {
        next = skip(m, place, text);
        uint256 first = next;
        while (next < m.length && m[next] >= "0" && m[next] <= "9") {
            value = value * 10 + uint8(m[next]) - 48;
            ++next;
        }
        if (next == first) revert NotThere(next, "a number");
    }

    /// @notice Whether `true` stands after `text` at `place`, else `false` must, and the place after it.
    function flag(bytes calldata m, uint256 place, string memory text)
        internal
        pure
        returns (bool value, uint256 next)
    {
        next = skip(m, place, text);
        value = next < m.length && m[next] == "t";
        next = skip(m, next, value ? "true" : "false");
    }

    /// @notice The directory's entry of a section, which begins at `place`.
    function section(bytes calldata m, uint256 place, string memory name) internal pure returns (Section memory s) {
        uint256 next = skip(m, place, string.concat("{\"name\":\"", name, "\",\"kind\":\""));
        while (next < m.length && m[next] != "\"") ++next;
        uint256 last = uint8(m[next - 1]);
        s.bits = last >= 48 && last <= 57 ? last - 48 : 0;
        (s.rows, next) = number(m, next, "\",\"rows\":");
        (s.cols, next) = number(m, next, ",\"cols\":");
        (s.offset,) = number(m, next, ",\"offset\":");
    }

    /// @notice Length and Merkle root of the data; `,"data_bytes":` begins at `place`.
    function data(bytes calldata m, uint256 place) internal pure returns (uint256 size, bytes32 root) {
        uint256 next;
        (size, next) = number(m, place, ",\"data_bytes\":");
        next = skip(m, next, ",\"root\":\"0x");
        uint256 value;
        for (uint256 i; i < 64; ++i) {
            uint256 c = uint8(m[next + i]);
            value = value << 4 | (c >= 97 ? c - 87 : c - 48);
        }
        root = bytes32(value);
    }
}
