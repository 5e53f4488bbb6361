// docs/powers.md against the compiled contracts and against a deployed system.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Contract, Interface, TypedDataEncoder } from "ethers";
import { artifact, check } from "../scripts/genesis.mjs";
import { chain } from "./chain.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const PRIVILEGED = new Set(["governance", "governor", "guardian", "consensus", "settlement", "settlement, disputes", "disputes", "nobody"]);
// What a stranger gets from a function with a privileged caller.
const REFUSALS = new Set(["NotGovernance", "NotAllowed", "NotConsensus", "NotGuardian", "GovernorOnlyExecutor", "AccessControlUnauthorizedAccount", "TimelockUnauthorizedCaller", "InvalidInitialization"]);

/** Rows of the two tables: contract, function, who. */
function rows() {
  const text = readFileSync(join(here, "../../docs/powers.md"), "utf8");
  const out = [];
  for (const line of text.split("\n")) {
    const cells = line.split("|").map((cell) => cell.trim());
    const contract = cells[2]?.match(/^`(\w+)`$/)?.[1];
    if (contract) for (const [, name] of cells[3].matchAll(/`(\w+)`/g)) out.push([contract, name, cells[1]]);
  }
  return out;
}
const interfaces = readdirSync(join(here, "../artifacts")).map((file) => [file.slice(0, -5), new Interface(artifact(file.slice(0, -5)).abi)]);
const changing = interfaces.flatMap(([name, abi]) => {
  const out = [];
  abi.forEachFunction((f) => ["view", "pure"].includes(f.stateMutability) || out.push([name, f]));
  return out;
});

let c;
before(async () => (c = await chain()));
after(() => c.stop());

test("the table has every function that can change state, once, and no other", () => {
  const listed = rows().map(([contract, name]) => `${contract}.${name}`);
  assert.deepEqual([...listed].sort(), changing.map(([contract, f]) => `${contract}.${f.name}`).sort());
});

/** An argument of a type that says as little as possible. */
function nothing(type) {
  if (type.baseType === "array") return [];
  if (type.baseType === "tuple") return type.components.map(nothing);
  if (type.type === "address") return "0x00000000000000000000000000000000000000a1";
  if (type.type === "bool") return false;
  if (type.type === "string") return "";
  if (type.type === "bytes") return "0x";
  if (type.type.startsWith("bytes")) return `0x${"00".repeat(Number(type.type.slice(5)))}`;
  return 0;
}

test("a stranger is refused where the table says so, and nowhere else for who it is", async () => {
  const who = new Map(rows().map(([contract, name, holder]) => [`${contract}.${name}`, holder]));
  const stranger = c.wallets[9];
  const field = (name) => (name === "AssayGovernor" ? "governor" : name === "TimelockController" ? "timelock" : name[0].toLowerCase() + name.slice(1));
  const errors = new Interface(interfaces.flatMap(([, abi]) => abi.fragments.filter((f) => f.type === "error").map((f) => f.format("full"))).filter((e, i, all) => all.indexOf(e) === i));
  for (const [name, f] of changing) {
    const contract = new Contract(c.made.addresses[field(name)], [f], stranger);
    let error = null;
    try {
      await contract[f.name].staticCall(...f.inputs.map(nothing));
    } catch (e) {
      const data = e.data ?? e.info?.error?.data;
      error = (data && data !== "0x" && errors.parseError(data)?.name) || "reverted";
    }
    const holder = who.get(`${name}.${f.name}`);
    if (PRIVILEGED.has(holder)) assert.ok(REFUSALS.has(error), `${name}.${f.name} is for ${holder}, and a stranger got ${error}`);
    else assert.ok(!REFUSALS.has(error), `${name}.${f.name} is for ${holder}, and a stranger got ${error}`);
  }
});

test("a deployment is what its file says, and leaves its deployer nothing", async () => {
  assert.deepEqual(await check(c.provider, c.made), []);
  const made = { ...c.made, addresses: { ...c.made.addresses, governor: c.wallets[0].address } };
  assert.notDeepEqual(await check(c.provider, made), [], "the check finds a wrong holder");
  const opg = c.at("Opg", "opg");
  const classes = await opg.allocations();
  assert.deepEqual(classes.map((a) => a.class), c.genesis.supply.map((s) => s.class));
  assert.equal(await opg.totalSupply(), 10n ** 27n);
  assert.equal(await opg.balanceOf(c.wallets[0].address), 0n);
  assert.equal(await c.at("Pause", "pause").guardian(), c.genesis.guardian);
  console.log(`the whole deployment costs ${c.gas} gas`);
});

test("requests, outputs and their commitments are those of the receipt's vectors", async () => {
  const vectors = JSON.parse(readFileSync(join(here, "../../docs/vectors/receipt.json"), "utf8"));
  const disputes = c.at("Disputes", "disputes");
  let seen = 0;
  for (const { kind, salt, typed_data: typed, struct_hash: hash, commitment } of vectors.commitments) {
    const { EIP712Domain: _, ...types } = typed.types;
    const encoder = TypedDataEncoder.from(types);
    // A string, a list or a struct is hashed, a number stands as it is.
    const part = ({ name, type }) => {
      const value = typed.message[name];
      return type === "string" || type.endsWith("]") ? encoder.getEncoder(type)(value) : value;
    };
    const parts = Object.fromEntries(types[typed.primaryType].map((field) => [field.name, part(field)]));
    if (kind === "request") {
      const fields = types.Sampling.map(({ name, type }) => [name, type.endsWith("]") ? encoder.getEncoder(type)(parts.sampling[name]) : parts.sampling[name]]);
      parts.sampling = Object.fromEntries(fields);
      assert.equal(await disputes.hashRequest(parts), hash);
    } else assert.equal(await disputes.hashOutput(parts), hash);
    assert.equal(await disputes.commitment(kind, salt, hash), commitment);
    seen++;
  }
  assert.equal(seen, 6);
});
