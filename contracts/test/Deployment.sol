// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ERC1967Proxy} from "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {IVotes} from "@openzeppelin/contracts/governance/utils/IVotes.sol";
import {AssayGovernor} from "../src/AssayGovernor.sol";
import {Audits} from "../src/Audits.sol";
import {Deposits} from "../src/Deposits.sol";
import {Models} from "../src/Models.sol";
import {Allocation, Opg} from "../src/Opg.sol";
import {Pause} from "../src/Pause.sol";
import {Registry} from "../src/Registry.sol";
import {Rules} from "../src/Rules.sol";
import {ServiceLevels} from "../src/ServiceLevels.sol";
import {Settlement, SettlementParameters} from "../src/Settlement.sol";
import {Staking, StakingParameters} from "../src/Staking.sol";
import {Addresses} from "../src/System.sol";
import {Treasury} from "../src/Treasury.sol";
import {Test} from "./Test.sol";

/// A whole deployment, with actors that have OPG. The dispute game is the address `disputes`, which tests play themselves.
abstract contract Deployment is Test {
    Opg opg;
    TimelockController timelock;
    AssayGovernor governor;
    Pause pause;
    Staking staking;
    Registry registry;
    Models models;
    Deposits deposits;
    Rules rules;
    Settlement settlement;
    Audits audits;
    ServiceLevels levels;
    Treasury treasury;
    address disputes = address(0xD15);
    address guardian = address(0x6A);

    address alice = vm.addr(0xA11CE);
    address bob = vm.addr(0xB0B);
    address carol = vm.addr(0xCA401);
    address dave = vm.addr(0xDA7E);

    uint128 constant BOND = 1_000 ether;
    uint128 constant PENALTY = 10 ether;

    function setUp() public virtual {
        Allocation[] memory classes = new Allocation[](4);
        classes[0] = Allocation("alice", alice, 250_000_000 ether);
        classes[1] = Allocation("bob", bob, 250_000_000 ether);
        classes[2] = Allocation("carol", carol, 250_000_000 ether);
        classes[3] = Allocation("dave", dave, 250_000_000 ether);
        opg = new Opg(classes);
        address[] memory none = new address[](0);
        address[] memory anyone = new address[](1);
        timelock = new TimelockController(2 days, none, anyone, address(this));
        pause = new Pause(address(timelock), guardian);

        uint256 n = vm.getNonce(address(this));
        // Every contract is an implementation and a proxy: the proxies are at the odd nonces from here on.
        Addresses memory a = Addresses({
            timelock: address(timelock),
            opg: address(opg),
            pause: address(pause),
            staking: vm.computeCreateAddress(address(this), n + 1),
            registry: vm.computeCreateAddress(address(this), n + 3),
            models: vm.computeCreateAddress(address(this), n + 5),
            deposits: vm.computeCreateAddress(address(this), n + 7),
            rules: vm.computeCreateAddress(address(this), n + 9),
            settlement: vm.computeCreateAddress(address(this), n + 11),
            audits: vm.computeCreateAddress(address(this), n + 13),
            serviceLevels: vm.computeCreateAddress(address(this), n + 15),
            disputes: disputes,
            treasury: vm.computeCreateAddress(address(this), n + 17)
        });
        StakingParameters memory sp = StakingParameters(21 days, 500, 1, 10 minutes, 1_000 ether, 100);
        SettlementParameters memory tp = SettlementParameters(1 days, 6 hours, 1 ether, PENALTY, 300, 500, 200);
        staking = Staking(proxy(address(new Staking(a)), abi.encodeCall(Staking.initialize, (sp))));
        registry = Registry(proxy(address(new Registry(a)), abi.encodeCall(Registry.initialize, (BOND, 21 days))));
        models = Models(proxy(address(new Models(a)), abi.encodeCall(Models.initialize, (100 ether))));
        deposits = Deposits(proxy(address(new Deposits(a)), abi.encodeCall(Deposits.initialize, ())));
        rules = Rules(proxy(address(new Rules(a)), abi.encodeCall(Rules.initialize, ())));
        settlement = Settlement(proxy(address(new Settlement(a)), abi.encodeCall(Settlement.initialize, (tp))));
        audits = Audits(proxy(address(new Audits(a)), abi.encodeCall(Audits.initialize, (4))));
        levels = ServiceLevels(proxy(address(new ServiceLevels(a)), abi.encodeCall(ServiceLevels.initialize, ())));
        treasury = Treasury(proxy(address(new Treasury(a)), abi.encodeCall(Treasury.initialize, ())));
        require(address(treasury) == a.treasury && address(settlement) == a.settlement, "predicted addresses");

        governor = new AssayGovernor(
            IVotes(address(opg)), IVotes(address(staking)), timelock, 1 days, 5 days, 100_000 ether, 4
        );
        timelock.grantRole(timelock.PROPOSER_ROLE(), address(governor));
        timelock.grantRole(timelock.CANCELLER_ROLE(), address(governor));
        timelock.renounceRole(timelock.DEFAULT_ADMIN_ROLE(), address(this));

        address[4] memory actors = [alice, bob, carol, dave];
        for (uint256 i; i < 4; ++i) {
            address[6] memory spenders = [
                address(staking), address(registry), address(models), address(deposits), address(settlement), address(levels)
            ];
            for (uint256 j; j < 6; ++j) {
                vm.prank(actors[i]);
                opg.approve(spenders[j], type(uint256).max);
            }
        }
    }

    function proxy(address implementation, bytes memory data) internal returns (address) {
        return address(new ERC1967Proxy(implementation, data));
    }

    function workerKeySignature(uint256 key, address operator, uint64 epoch) internal view returns (bytes memory) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Assay Registry"),
                keccak256("1"),
                block.chainid,
                address(registry)
            )
        );
        bytes32 kind = keccak256("WorkerKey(address operator,address worker,uint64 epoch)");
        bytes32 hash = keccak256(abi.encode(kind, operator, vm.addr(key), epoch));
        return sign(key, keccak256(abi.encodePacked("\x19\x01", domain, hash)));
    }

    function sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// Registers `operator` with the least bond and a worker of the given key.
    function enlist(address operator, uint256 key) internal returns (address worker) {
        worker = vm.addr(key);
        bytes memory proof = workerKeySignature(key, operator, 1);
        vm.startPrank(operator);
        if (bytes(registry.operatorOf(operator).name).length == 0) registry.registerOperator("an operator", BOND * 2);
        registry.addWorker(worker, "https://worker.example", bytes32(uint256(1)), proof);
        vm.stopPrank();
    }
}
