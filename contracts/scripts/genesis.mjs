// The deployment of the system contracts as a list of transactions, made from a readable file (genesis.example.json).
//
//   node scripts/genesis.mjs plan FILE --deployer 0x… [--nonce N]   prints the transactions as JSON
//   node scripts/genesis.mjs deploy FILE --rpc URL                                 sends them; the key is read from $DEPLOYER_KEY
//   node scripts/genesis.mjs check FILE --rpc URL --deployer 0x… [--nonce N]       compares a chain with the file
//
// The list depends on the file, the deployer and its first nonce alone, and so do all addresses: a node runs it as its
// genesis, any other EVM chain takes it from an account. Afterwards the deployer has no power left.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { AbiCoder, Contract, Interface, JsonRpcProvider, NonceManager, Wallet, getCreateAddress, id } from "ethers";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

const read = new Map();
/** A committed artifact: `abi` and `bytecode`. */
export function artifact(name) {
  if (!read.has(name)) read.set(name, JSON.parse(readFileSync(join(root, "artifacts", `${name}.json`), "utf8")));
  return read.get(name);
}

/** The upgradeable contracts in the order of their deployment, and the field of `Addresses` that each has. */
export const PROXIES = [
  ["Staking", "staking"],
  ["Registry", "registry"],
  ["Models", "models"],
  ["Deposits", "deposits"],
  ["Rules", "rules"],
  ["Settlement", "settlement"],
  ["Audits", "audits"],
  ["ServiceLevels", "serviceLevels"],
  ["Disputes", "disputes"],
  ["Treasury", "treasury"],
];
const FIELDS = ["timelock", "opg", "pause", "staking", "registry", "models", "deposits", "rules", "settlement", "audits", "serviceLevels", "disputes", "treasury"];

/**
 * The transactions of a deployment: `steps` (name, data, to; to is null for a creation), and `addresses` by name.
 * `genesis` is the content of the file.
 */
export function plan(genesis, deployer, nonce = 0) {
  const addresses = {};
  const create = (name, offset) => (addresses[name] = getCreateAddress({ from: deployer, nonce: nonce + offset }));
  create("opg", 0);
  create("timelock", 1);
  create("pause", 2);
  create("layerReferee", 3);
  create("attentionReferee", 4);
  create("samplerReferee", 5);
  PROXIES.forEach(([, field], i) => create(field, 7 + 2 * i));
  create("governor", 6 + 2 * PROXIES.length);
  const resolve = (holder) => (holder.startsWith("0x") ? holder : addresses[holder] ?? fail(`nobody is called ${holder}`));
  const g = genesis;
  const p = g.parameters;
  const steps = [];
  const deploy = (name, contract, ...args) => {
    const { abi, bytecode } = artifact(contract);
    const data = bytecode + new Interface(abi).encodeDeploy(args).slice(2);
    steps.push({ name, to: null, data });
  };
  const call = (name, to, contract, method, ...args) => {
    steps.push({ name, to, data: new Interface(artifact(contract).abi).encodeFunctionData(method, args) });
  };
  deploy("opg", "Opg", g.supply.map((s) => [s.class, resolve(s.holder), s.amount]));
  // Anybody may carry out what was queued and has waited; the governor alone queues, once it is there.
  const nobody = "0x0000000000000000000000000000000000000000";
  deploy("timelock", "TimelockController", p.timelock.delay, [], [nobody], deployer);
  deploy("pause", "Pause", addresses.timelock, g.guardian);
  deploy("layerReferee", "LayerReferee");
  deploy("attentionReferee", "AttentionReferee");
  deploy("samplerReferee", "SamplerReferee");
  const all = FIELDS.map((field) => addresses[field]);
  const initial = {
    Staking: [Object.values(p.staking)],
    Registry: [p.registry.leastBond, p.registry.delay],
    Models: [p.models.price],
    Deposits: [],
    Rules: [],
    Settlement: [Object.values(p.settlement)],
    Audits: [p.audits.samples],
    ServiceLevels: [],
    Disputes: [Object.values(p.disputes), [addresses.layerReferee, addresses.attentionReferee, addresses.samplerReferee]],
    Treasury: [],
  };
  for (const [contract, field] of PROXIES) {
    deploy(`${field} (code)`, contract, all);
    const implementation = getCreateAddress({ from: deployer, nonce: nonce + steps.length - 1 });
    addresses[`${field}Code`] = implementation;
    const { abi } = artifact(contract);
    deploy(field, "ERC1967Proxy", implementation, new Interface(abi).encodeFunctionData("initialize", initial[contract]));
  }
  const v = p.governor;
  deploy("governor", "AssayGovernor", addresses.opg, addresses.staking, addresses.timelock, v.delay, v.period, v.threshold, v.quorumPercent);
  const role = (name) => (name === "DEFAULT_ADMIN_ROLE" ? `0x${"00".repeat(32)}` : id(name));
  call("the governor may queue", addresses.timelock, "TimelockController", "grantRole", role("PROPOSER_ROLE"), addresses.governor);
  call("the governor may cancel", addresses.timelock, "TimelockController", "grantRole", role("CANCELLER_ROLE"), addresses.governor);
  call("the deployer has no power left", addresses.timelock, "TimelockController", "renounceRole", role("DEFAULT_ADMIN_ROLE"), deployer);
  return { deployer, nonce, steps, addresses };
}

function fail(message) {
  throw new Error(message);
}

/** Sends a plan's transactions from `signer` (an ethers signer, whose next nonce is the plan's), one after the other. */
export async function send(signer, { steps, addresses }, report = () => {}) {
  let gas = 0n;
  for (const [i, { name, to, data }] of steps.entries()) {
    report(`${i + 1}/${steps.length} ${name}`);
    const receipt = await (await signer.sendTransaction({ to, data })).wait();
    if (receipt.status !== 1) fail(`the transaction "${name}" failed`);
    gas += receipt.gasUsed;
  }
  return { addresses, gas };
}

/** Compares a chain with a plan: every address has code, proxies point at theirs, nobody but the governor has a role. */
export async function check(provider, { deployer, addresses }) {
  const faults = [];
  for (const [name, address] of Object.entries(addresses)) {
    if ((await provider.getCode(address)) === "0x") faults.push(`${name}: no code at ${address}`);
  }
  const slot = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";
  for (const [, field] of PROXIES) {
    const code = AbiCoder.defaultAbiCoder().decode(["address"], await provider.getStorage(addresses[field], slot))[0];
    if (code !== addresses[`${field}Code`]) faults.push(`${field} runs ${code}, not ${addresses[`${field}Code`]}`);
  }
  const timelock = new Contract(addresses.timelock, artifact("TimelockController").abi, provider);
  const wants = [
    ["PROPOSER_ROLE", addresses.governor, true],
    ["CANCELLER_ROLE", addresses.governor, true],
    ["EXECUTOR_ROLE", "0x0000000000000000000000000000000000000000", true],
    ["PROPOSER_ROLE", deployer, false],
    ["DEFAULT_ADMIN_ROLE", deployer, false],
    ["DEFAULT_ADMIN_ROLE", addresses.timelock, true],
  ];
  for (const [role, who, want] of wants) {
    const hash = role === "DEFAULT_ADMIN_ROLE" ? `0x${"00".repeat(32)}` : id(role);
    if ((await timelock.hasRole(hash, who)) !== want) faults.push(`${who} ${want ? "lacks" : "has"} ${role}`);
  }
  return faults;
}

async function main([command, file, ...rest]) {
  const option = (name) => (rest.includes(name) ? rest[rest.indexOf(name) + 1] : undefined);
  const genesis = JSON.parse(readFileSync(file, "utf8"));
  const nonce = Number(option("--nonce") ?? 0);
  if (command === "plan") {
    const made = plan(genesis, option("--deployer") ?? fail("--deployer is missing"), nonce);
    console.log(JSON.stringify(made, null, 2));
  } else if (command === "deploy") {
    const provider = new JsonRpcProvider(option("--rpc"));
    const wallet = new Wallet(process.env.DEPLOYER_KEY ?? fail("$DEPLOYER_KEY is not set"), provider);
    const made = plan(genesis, wallet.address, await provider.getTransactionCount(wallet.address));
    const { gas } = await send(new NonceManager(wallet), made, console.error);
    console.log(JSON.stringify({ gas: gas.toString(), nonce: made.nonce, addresses: made.addresses }, null, 2));
  } else if (command === "check") {
    const made = plan(genesis, option("--deployer") ?? fail("--deployer is missing"), nonce);
    const faults = await check(new JsonRpcProvider(option("--rpc")), made);
    faults.forEach((fault) => console.error(fault));
    console.log(faults.length === 0 ? "the chain has the contracts of the file" : `${faults.length} faults`);
    process.exitCode = faults.length === 0 ? 0 : 1;
  } else fail("say plan, deploy or check");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main(process.argv.slice(2)).catch((error) => {
    console.error(error.message);
    process.exitCode = 2;
  });
}
