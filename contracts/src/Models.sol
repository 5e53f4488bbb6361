// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Addresses, System} from "./System.sol";

/// A registered model.
/// @param author Who registered it and gets its share of fees; zero when it is not registered.
/// @param feeBps The author's share of each answer's price, in hundredths of a per cent.
/// @param registeredAt Seconds since 1970.
/// @param name Its name.
struct Model {
    address author;
    uint16 feeBps;
    uint64 registeredAt;
    string name;
}

/// @title Models
/// @notice Models whose authors take a share of the fees of every answer. A model that nobody registered is served as well,
/// without such a share. Registration is open; governance can strike an author that is none.
contract Models is System {
    /// @notice Largest share of an author, in hundredths of a per cent.
    uint256 public constant LARGEST_FEE = 2_000;
    /// @notice Longest name, in bytes.
    uint256 public constant TEXT = 256;

    /// @notice The model is registered already.
    error AlreadyRegistered(bytes32 model);
    /// @notice The caller is not the author.
    error NotAuthor(address caller);
    /// @notice Zero is no model id and nobody's address, and a name has 1 to `TEXT` bytes.
    error Malformed();
    /// @notice A share above `LARGEST_FEE`, or, later, above the one before.
    error FeeTooHigh(uint256 feeBps);

    /// @notice A model was registered, or its author or share changed; the author is zero when it was struck.
    event ModelSet(bytes32 indexed model, address indexed author, uint16 feeBps, string name);
    /// @notice Governance set the price of a registration.
    event PriceSet(uint128 price);

    /// @notice What a registration costs, in 10^-18 OPG. It is burnt.
    uint128 public price;
    mapping(bytes32 model => Model) private _models;

    /// @param a The addresses of the deployment.
    constructor(Addresses memory a) System(a) {}

    /// @notice Sets the first price; called once, when the proxy is built.
    function initialize(uint128 price_) external initializer {
        price = price_;
        emit PriceSet(price_);
    }

    /// @notice Sets the price of a registration. Governance only.
    /// @param price_ In 10^-18 OPG.
    function setPrice(uint128 price_) external onlyGovernance {
        price = price_;
        emit PriceSet(price_);
    }

    /// @notice Registers a model with the caller as its author, who pays `price`.
    /// @param model Model id.
    /// @param feeBps The author's share, at most `LARGEST_FEE`.
    /// @param name Its name.
    function register(bytes32 model, uint16 feeBps, string calldata name) external newWork {
        if (_models[model].author != address(0)) revert AlreadyRegistered(model);
        if (model == 0 || bytes(name).length == 0 || bytes(name).length > TEXT) revert Malformed();
        if (feeBps > LARGEST_FEE) revert FeeTooHigh(feeBps);
        _models[model] = Model(msg.sender, feeBps, uint64(block.timestamp), name);
        emit ModelSet(model, msg.sender, feeBps, name);
        OPG.burnFrom(msg.sender, price);
    }

    /// @notice Lowers the author's share. It cannot be raised: workers and callers may rely on it.
    function lowerFee(bytes32 model, uint16 feeBps) external {
        Model storage m = _own(model);
        if (feeBps > m.feeBps) revert FeeTooHigh(feeBps);
        m.feeBps = feeBps;
        emit ModelSet(model, m.author, feeBps, m.name);
    }

    /// @notice Hands a model to another author.
    function transferModel(bytes32 model, address author) external {
        Model storage m = _own(model);
        if (author == address(0)) revert Malformed();
        m.author = author;
        emit ModelSet(model, author, m.feeBps, m.name);
    }

    /// @notice Strikes a registration by somebody who is not the author. Governance only.
    function strike(bytes32 model) external onlyGovernance {
        delete _models[model];
        emit ModelSet(model, address(0), 0, "");
    }

    /// @notice A model; its author is zero when it is not registered.
    function modelOf(bytes32 model) external view returns (Model memory) {
        return _models[model];
    }

    function _own(bytes32 model) private view returns (Model storage m) {
        m = _models[model];
        if (m.author != msg.sender) revert NotAuthor(msg.sender);
    }
}
