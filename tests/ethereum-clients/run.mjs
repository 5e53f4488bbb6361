// Real Ethereum clients against a validator: each sends, deploys, reads logs and subscribes as far as it can. Makes a genesis with the
// system contracts, starts a validator of it, drives the commands of the terminal beside the clients, and kills the validator in between.
//   node run.mjs BINARY [PYTHON]     PYTHON has web3.py; without it that part is left out
import { execFile, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import assert from "node:assert/strict";
import {
  Contract, ContractFactory, HDNodeWallet, Interface, JsonRpcProvider, Mnemonic, Wallet, WebSocketProvider, keccak256, parseEther,
} from "ethers";
import * as viem from "viem";
import { mnemonicToAccount } from "viem/accounts";
import { plan } from "../../contracts/scripts/genesis.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "..", "..");
const [binary, python] = process.argv.slice(2);
const MNEMONIC = "test test test test test test test test test test test junk";
const DEPLOYER = "0x00000000000000000000000000000000000a55a1";

const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

const step = (name) => console.log(`-- ${name}`);
const run = promisify(execFile);
const folder = mkdtempSync(join(tmpdir(), "assay-node-"));
const at = (name) => join(folder, name);
const env = { ...process.env, ASSAY_HOME: folder, ASSAY_PASSWORD: "a password for tests" };
/** A command of the terminal; what it prints as JSON. */
const assay = async (...args) => JSON.parse((await run(binary, ["--json", ...args], { env, maxBuffer: 1 << 26 })).stdout);
/** One that must fail: its exit status and its message. */
const refused = async (...args) => {
  try {
    await assay(...args);
  } catch (error) {
    return [error.code, JSON.parse(error.stdout).error];
  }
  throw new Error(`${args.join(" ")} was not refused`);
};
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const wallet = (i) => HDNodeWallet.fromMnemonic(Mnemonic.fromPhrase(MNEMONIC), `m/44'/60'/0'/0/${i}`);
const [listen, rpc] = [await freePort(), await freePort()];
const url = `http://127.0.0.1:${rpc}`;
const ws = `ws://127.0.0.1:${rpc}`;

/** A genesis from a description, held to the deployment that other chains get. */
async function makeGenesis() {
  const { key } = await assay("keys", "validator", at("validator.key"));
  assert.equal(statSync(at("validator.key")).mode & 0o777, 0o600);
  const description = JSON.parse(readFileSync(join(root, "contracts", "genesis.example.json"), "utf8"));
  Object.assign(description, {
    chainId: 31415,
    alloc: Object.fromEntries(Array.from({ length: 10 }, (_, i) => [wallet(i).address, parseEther("10000").toString()])),
    validators: [{ key, endpoint: `127.0.0.1:${listen}`, beneficiary: wallet(9).address }],
  });
  description.supply[1].holder = wallet(9).address;
  // Seconds instead of days.
  Object.assign(description.parameters.governor, { delay: 1, period: 4 });
  description.parameters.timelock.delay = 1;
  writeFileSync(at("description.json"), JSON.stringify(description));
  const made = await assay("genesis", "make", at("description.json"), "--out", at("genesis.json"));
  assert.deepEqual(await assay("genesis", "check", at("genesis.json")), made);
  const genesis = JSON.parse(readFileSync(at("genesis.json"), "utf8"));
  const expected = plan(description, DEPLOYER);
  const lower = (steps) => steps.map(({ name, to, data }) => ({ name, to: to && to.toLowerCase(), data: data.toLowerCase() }));
  assert.deepEqual(lower(genesis.system.steps), lower(expected.steps));
  assert.deepEqual(new Map(Object.entries(genesis.system.addresses)), new Map(Object.entries(expected.addresses)));
  // What is wrong is said, and nothing is written.
  description.parameters.staking.unbonding = 1;
  writeFileSync(at("wrong.json"), JSON.stringify(description));
  const [code, why] = await refused("genesis", "make", at("wrong.json"), "--out", at("none.json"));
  assert.equal(code, 1);
  assert.match(why, /staking/);
  assert.throws(() => statSync(at("none.json")));
}

async function start() {
  const args = ["node", "--genesis", at("genesis.json"), "--key", at("validator.key"), "--data", at("data")];
  args.push("--listen", `127.0.0.1:${listen}`, "--rpc", `127.0.0.1:${rpc}`);
  const child = spawn(binary, args, { stdio: ["ignore", "inherit", "inherit"] });
  child.gone = new Promise((resolve) => child.on("exit", resolve));
  for (let i = 0; ; i++) {
    try {
      const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "eth_chainId", params: [] });
      await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body });
      return child;
    } catch (error) {
      if (i > 1200 || child.exitCode !== null) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

const opg = JSON.parse(readFileSync(join(root, "contracts", "artifacts", "Opg.json"), "utf8"));
const TOTAL = parseEther("1000000000");
const supply = (holder) => [["all", holder, TOTAL]];

async function withEthers() {
  const provider = new JsonRpcProvider(url, undefined, { polling: true, pollingInterval: 50, cacheTimeout: -1 });
  const socket = new WebSocketProvider(ws);
  const me = wallet(0).connect(provider);
  const heads = [];
  await socket.on("block", (number) => heads.push(number));
  const receipt = await (await me.sendTransaction({ to: wallet(1).address, value: 5n })).wait();
  assert.equal(receipt.status, 1);
  // Base class: ethers recomputes nothing of a block, so the hash is checked against the encoded transaction.
  const signed = await me.signTransaction(await me.populateTransaction({ to: me.address }));
  const sent = await provider.broadcastTransaction(signed);
  assert.equal(sent.hash, keccak256(signed));
  await sent.wait();

  const token = await new ContractFactory(opg.abi, opg.bytecode, me).deploy(supply(me.address));
  await token.waitForDeployment();
  assert.equal(await token.balanceOf(me.address), TOTAL);
  const events = [];
  const live = new Contract(await token.getAddress(), opg.abi, socket);
  await live.on("Transfer", (from, to, value) => events.push(value));
  await (await token.transfer(wallet(2).address, 7n)).wait();
  const logs = await token.queryFilter(token.filters.Transfer(me.address, wallet(2).address), 0);
  assert.deepEqual(logs.map((log) => log.args[2]), [7n]);
  for (let i = 0; i < 100 && (events.length < 1 || heads.length < 1); i++) await new Promise((r) => setTimeout(r, 50));
  assert.deepEqual(events, [7n]);
  assert.ok(heads.length > 0, "no head arrived over the WebSocket");
  // Errors as ethers knows them.
  await assert.rejects(token.transfer(wallet(2).address, 2n * TOTAL), { code: "CALL_EXCEPTION" });
  await assert.rejects(wallet(0).connect(provider).sendTransaction({ to: me.address, nonce: 0, gasLimit: 21000 }), { code: "NONCE_EXPIRED" });
  const poor = HDNodeWallet.createRandom().connect(provider);
  await assert.rejects(poor.sendTransaction({ to: me.address, value: 1n, gasLimit: 21000 }), { code: "INSUFFICIENT_FUNDS" });
  await socket.destroy();
  provider.destroy();
  return await token.getAddress();
}

async function withViem() {
  const chain = viem.defineChain({ id: 31415, name: "Assay", nativeCurrency: { name: "A", symbol: "A", decimals: 18 }, rpcUrls: { default: { http: [url] } } });
  const account = mnemonicToAccount(MNEMONIC, { addressIndex: 3 });
  const reader = viem.createPublicClient({ chain, transport: viem.http(url), pollingInterval: 50 });
  const writer = viem.createWalletClient({ account, chain, transport: viem.http(url) });
  const socket = viem.createPublicClient({ chain, transport: viem.webSocket(ws) });
  const heads = [];
  const unwatch = socket.watchBlocks({ onBlock: (block) => heads.push(block.number) });
  const hash = await writer.deployContract({ abi: opg.abi, bytecode: opg.bytecode, args: [[{ class: "all", holder: account.address, amount: TOTAL }]] });
  const { contractAddress: address, status } = await reader.waitForTransactionReceipt({ hash });
  assert.equal(status, "success");
  const transfer = await writer.writeContract({ address, abi: opg.abi, functionName: "transfer", args: [wallet(4).address, 9n] });
  await reader.waitForTransactionReceipt({ hash: transfer });
  const logs = await reader.getContractEvents({ address, abi: opg.abi, eventName: "Transfer", args: { to: wallet(4).address }, fromBlock: 0n });
  assert.equal(logs.length, 1);
  assert.equal(await reader.readContract({ address, abi: opg.abi, functionName: "balanceOf", args: [wallet(4).address] }), 9n);
  const proof = await reader.getProof({ address, storageKeys: [viem.pad("0x0", { size: 32 })] });
  assert.ok(proof.accountProof.length > 0);
  // eth_simulateV1: a transfer by one who has nothing on the chain, over two blocks, and what it would move.
  const poor = viem.getAddress(`0x${"ab".repeat(20)}`);
  const blocks = await reader.simulateBlocks({
    traceTransfers: true,
    blocks: [
      { stateOverrides: [{ address: poor, balance: 10n }], calls: [{ account: poor, to: wallet(4).address, value: 7n }] },
      { calls: [{ account: account.address, to: address, abi: opg.abi, functionName: "balanceOf", args: [wallet(4).address] }] },
    ],
  });
  assert.deepEqual([blocks[0].calls[0].status, blocks[1].calls[0].result], ["success", 9n]);
  assert.equal(BigInt(blocks[0].calls[0].logs[0].data), 7n);
  assert.equal(blocks[1].number, blocks[0].number + 1n);
  const refusal = reader.simulateBlocks({ blocks: [{ calls: [{ account: poor, to: wallet(4).address, value: 7n }] }] });
  await assert.rejects(refusal, /insufficient funds/i);
  // EIP-7702: the account lends itself the token's code.
  const authorization = await writer.signAuthorization({ contractAddress: address, executor: "self" });
  const delegated = await writer.sendTransaction({ to: account.address, authorizationList: [authorization], data: "0x18160ddd" });
  await reader.waitForTransactionReceipt({ hash: delegated });
  assert.equal(await reader.getCode({ address: account.address }), `0xef0100${address.slice(2)}`.toLowerCase());
  for (let i = 0; i < 100 && heads.length < 1; i++) await new Promise((r) => setTimeout(r, 50));
  assert.ok(heads.length > 0, "no head arrived");
  unwatch();
  (await socket.transport.getRpcClient()).close();
}

async function withCast() {
  const program = join(here, "node_modules", ".bin", "cast");
  const cast = async (...args) => (await run(program, args, { env: { ...process.env, ETH_RPC_URL: url } })).stdout.trim();
  const key = wallet(5).privateKey;
  assert.equal(await cast("chain-id"), "31415");
  const sent = JSON.parse(await cast("send", wallet(6).address, "--value", "1ether", "--private-key", key, "--json"));
  assert.equal(sent.status, "0x1");
  assert.ok((await cast("balance", wallet(6).address, "--ether")).startsWith("10001"));
  const init = new Interface(opg.abi).encodeDeploy([supply(wallet(5).address)]).slice(2);
  const made = JSON.parse(await cast("send", "--private-key", key, "--json", "--create", opg.bytecode + init));
  assert.equal(made.status, "0x1");
  const total = await cast("call", made.contractAddress, "totalSupply()(uint256)");
  assert.equal(total.split(" ")[0], TOTAL.toString());
  const block = JSON.parse(await cast("block", "latest", "--json"));
  assert.ok(BigInt(block.number ?? block.header?.number) > 0n);
  assert.ok(JSON.parse(await cast("logs", "--from-block", "0", "--address", made.contractAddress, "--json")).length > 0);
  const trace = JSON.parse(await cast("rpc", "debug_traceTransaction", made.transactionHash, '{"tracer":"callTracer"}'));
  assert.equal(trace.type, "CREATE");
  assert.ok(JSON.parse(await cast("proof", made.contractAddress, "0x0")).storageProof.length === 1);
}

/** The faucet: coins and OPG, once for an address. */
async function withFaucet() {
  const port = await freePort();
  const args = ["--json", "faucet", "--key", at("faucet.key"), "--rpc", url, "--listen", `127.0.0.1:${port}`];
  writeFileSync(at("faucet.key"), wallet(9).privateKey, { mode: 0o600 });
  const child = spawn(binary, [...args, "--opg", "2.5", "--coins", "0.1"], { env, stdio: ["ignore", "pipe", "inherit"] });
  await new Promise((resolve) => child.stdout.once("data", resolve));
  const ask = (body) =>
    fetch(`http://127.0.0.1:${port}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  try {
    const poor = HDNodeWallet.createRandom().address;
    const both = await Promise.all([ask({ address: poor }), ask({ address: poor })]);
    assert.deepEqual(both.map((answer) => answer.status).sort(), [200, 429]);
    const late = both.find((answer) => answer.status === 429);
    assert.ok(Number(late.headers.get("retry-after")) > 86_000);
    assert.match((await late.json()).error, /within a day/);
    const provider = new JsonRpcProvider(url);
    const token = new Contract(JSON.parse(readFileSync(at("genesis.json"), "utf8")).system.addresses.opg, opg.abi, provider);
    assert.deepEqual([await provider.getBalance(poor), await token.balanceOf(poor)], [parseEther("0.1"), parseEther("2.5")]);
    assert.equal((await ask({ address: "0x12" })).status, 400);
    assert.equal((await (await fetch(`http://127.0.0.1:${port}`)).json()).left_today, 99);
    provider.destroy();
  } finally {
    child.kill();
  }
}

/** The commands of the terminal: keys, stake, governance, powers. */
async function withTerminal() {
  // A key from elsewhere, encrypted; what it printed and what lies there do not have it.
  const secret = wallet(9).privateKey.slice(2);
  const child = run(binary, ["--json", "keys", "import", "holder"], { env });
  child.child.stdin.end(secret);
  const printed = (await child).stdout;
  assert.equal(JSON.parse(printed).address.toLowerCase(), wallet(9).address.toLowerCase());
  const file = readFileSync(at("keys/holder.json"), "utf8");
  assert.equal(statSync(at("keys/holder.json")).mode & 0o777, 0o600);
  assert.ok(!printed.includes(secret) && !file.includes(secret));
  assert.match((await refused("keys", "new", "holder"))[1], /exists and is kept/);
  const wrong = run(binary, ["--json", "claim", "--key", "holder", "--rpc", url], { env: { ...env, ASSAY_PASSWORD: "another" } });
  await assert.rejects(wrong, (error) => error.code === 2 && /password is wrong/.test(error.stdout));
  // The keystore is ethers' too, so a file with the key serves from here: decrypting costs a second by design.
  assert.equal((await Wallet.fromEncryptedJson(file, env.ASSAY_PASSWORD)).address, wallet(9).address);
  writeFileSync(at("holder.key"), wallet(9).privateKey, { mode: 0o600 });
  const signer = ["--key", at("holder.key"), "--rpc", url];

  assert.match((await refused("stake", "5000", ...signer))[1], /assay join/);
  const { key } = await assay("keys", "validator", at("validator.key"));
  const joining = ["join", "--role", "validator", "--network", at("genesis.json"), "--validator-key", key, ...signer, "--stake"];
  assert.match((await refused(...joining, "1"))[1], /SelfStakeTooLow/);
  assert.equal((await assay(...joining, "4000")).stake, parseEther("4000").toString());
  assert.equal((await assay("stake", "1000", ...signer)).stake, parseEther("5000").toString());
  assert.equal((await assay("delegate", wallet(9).address, "500.5", ...signer)).stake, parseEther("5500.5").toString());
  assert.equal((await assay("unstake", "0.5", ...signer)).stake, parseEther("5500").toString());
  assert.match((await refused("unstake", "1000000", ...signer))[1], /5500 OPG/);
  assert.match((await refused("claim", ...signer))[1], /nothing is there/);

  const power = await assay("power", "--rpc", url);
  const holder = (what) => power.powers.find((entry) => entry.power.includes(what)).holder;
  assert.equal(holder("stop new work"), wallet(3).address);
  assert.equal(holder("queue"), "AssayGovernor");
  assert.equal(holder("carry out"), "anybody");
  assert.equal(holder("roles"), "TimelockController itself");
  assert.deepEqual([power.consensus.nakamoto, power.stakeNakamoto, power.supply.classes.length], [1, 1, 3]);

  const parameters = { window: 7200, answerTime: 21600, demandFee: "1", penalty: "5", auditBps: 300, validatorBps: 500, treasuryBps: 200 };
  const settlement = ["Settlement", "setParameters"];
  const bad = JSON.stringify([{ ...parameters, window: undefined }]);
  assert.match((await refused("gov", "propose", ...settlement, bad, "--title", "x", ...signer))[1], /setParameters\(\(uint32/);
  const title = "A window of two hours";
  const { proposal } = await assay("gov", "propose", ...settlement, JSON.stringify([parameters]), "--title", title, ...signer);
  const short = proposal.slice(0, 12);
  assert.match((await refused("gov", "queue", short, ...signer))[1], /GovernorUnexpectedProposalState/);
  const state = async () => (await assay("gov", "list", "--rpc", url)).proposals[0].state;
  const until = async (wanted) => {
    for (let i = 0; (await state()) !== wanted; i++) assert.ok(i < 200, `never ${wanted}`), await sleep(100);
  };
  await until("active");
  await assay("gov", "vote", short, "for", ...signer);
  assert.match((await refused("gov", "vote", short, "for", ...signer))[1], /GovernorAlreadyCastVote/);
  await until("succeeded");
  assert.equal((await assay("gov", "queue", short, ...signer)).state, "queued");
  for (let i = 0; ; i++) {
    try {
      assert.equal((await assay("gov", "execute", short, ...signer)).state, "executed");
      break;
    } catch (error) {
      assert.ok(i < 50 && /TimelockUnexpectedOperationState/.test(error.stdout), error.stdout);
      await sleep(200);
    }
  }
  const [listed] = (await assay("gov", "list", "--rpc", url)).proposals;
  assert.match(listed.calls[0], /^Settlement\.setParameters .*"window":7200/);
  const contract = JSON.parse(readFileSync(join(root, "contracts", "artifacts", "Settlement.json"), "utf8"));
  const { addresses } = JSON.parse(readFileSync(at("genesis.json"), "utf8")).system;
  const provider = new JsonRpcProvider(url);
  assert.equal((await new Contract(addresses.settlement, contract.abi, provider).parameters()).window, 7200n);
  provider.destroy();
}

let node;
let failed = true;
try {
  step("genesis");
  await makeGenesis();
  step("start");
  node = await start();
  step("the system contracts are those of the description");
  const script = join(root, "contracts", "scripts", "genesis.mjs");
  const check = ["check", at("description.json"), "--deployer", DEPLOYER, "--rpc", url];
  console.log(execFileSync("node", [script, ...check], { encoding: "utf8" }).trim());
  step("ethers, viem, cast, web3.py and the terminal, side by side");
  const others = [withViem(), withCast(), withTerminal()];
  if (python) others.push(run(python, [join(here, "client.py"), url]));
  const [token] = await Promise.all([withEthers(), ...others]);
  step("the faucet");
  await withFaucet();
  step("killed and started again");
  const provider = new JsonRpcProvider(url);
  const before = await provider.getBlock("latest");
  node.kill("SIGKILL");
  await node.gone;
  node = await start();
  assert.equal((await provider.getBlock(before.number)).hash, before.hash);
  assert.ok((await provider.getCode(token)).length > 2);
  const me = wallet(0).connect(provider);
  await (await me.sendTransaction({ to: me.address })).wait();
  assert.ok((await provider.getBlockNumber()) > before.number);
  provider.destroy();
  step("done");
  failed = false;
} catch (error) {
  // Before the node ends, with which the clients' connections break.
  console.error(error);
} finally {
  node?.kill();
  await node?.gone;
  rmSync(folder, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);
