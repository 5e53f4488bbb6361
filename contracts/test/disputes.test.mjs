// The dispute game on anvil: every kind of operation against the referees, then whole games between honest and cheating
// sides. The honest sides know what they computed and what was revealed to them, nothing else.
import { test, before, after } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { AbiCoder, ZeroHash, concat, getBytes, hexlify, id, keccak256, solidityPacked, toBeHex, zeroPadValue } from "ethers";
import { artifact } from "../scripts/genesis.mjs";
import { chain } from "./chain.mjs";
import { CELLS, Tree, dice, expand, inputs, linearOut, makeCase, makeModel, run } from "./model.mjs";

const GREEDY = {
  temperatureMilli: 0, topK: 0, topPPpm: 1_000_000, minPPpm: 0, repetitionPenaltyMilli: 1000,
  frequencyPenaltyMilli: 0, presencePenaltyMilli: 0, logitBias: keccak256("0x"), seed: 7,
};
const DRAWN = { ...GREEDY, temperatureMilli: 800, minPPpm: 20_000, repetitionPenaltyMilli: 1300, frequencyPenaltyMilli: -120, presencePenaltyMilli: 250 };
const BIASES = [[7, 2_500], [300, 9_000], [7, -100], [40, -(2 ** 31)]];
const logitBias = keccak256(concat(BIASES.map(([token, milli]) => keccak256(
  AbiCoder.defaultAbiCoder().encode(["bytes32", "uint32", "int32"], [id("LogitBias(uint32 token,int32 milli)"), token, milli]),
))));
const RANKED = { ...DRAWN, topK: 20, topPPpm: 700_000, logitBias, biases: BIASES };
const LLAMA = {
  architecture: "llama", layers: 2, dim: 32, heads: 4, kv_heads: 2, head_dim: 8, ffn: 48, vocab: 64, context: 32,
  rms_eps_q32: 42950, rope: "interleaved", tied_embeddings: true, qkv_bias: false, qk_norm: false,
};
const QWEN = { ...LLAMA, architecture: "qwen3", layers: 1, rope: "half", tied_embeddings: false, qkv_bias: true, qk_norm: true };
// More than one segment of 1,024 columns in every sum over columns and over the vocabulary.
const WIDE = { ...LLAMA, layers: 1, dim: 1030, heads: 1, kv_heads: 1, head_dim: 4, ffn: 1026, vocab: 1040, context: 8 };

let c;
const models = {};
before(async () => {
  c = await chain();
  Object.assign(models, { llama: makeModel(LLAMA, 1), qwen: makeModel(QWEN, 2), wide: makeModel(WIDE, 3) });
});
after(() => c.stop());

/** An honest answer: the tokens that the model gives. */
function answer(model, prompt, count, sampling) {
  const output = [];
  while (output.length < count) output.push(run(model, prompt, [...output, 0], sampling).tokens[output.length]);
  return output;
}
const salt = id("salt");
const words = (tokens) => concat(tokens.map((t) => zeroPadValue(toBeHex(t), 32)));
const subjectOf = (model, prompt, output, sampling) => ({
  model: model.id, promptTokens: prompt.length, completionTokens: output.length,
  prompt: keccak256(concat([salt, words(prompt)])), salt, outputTokens: keccak256(words(output)), constraintKind: 0, sampling,
});
const judgeOf = (cell) => (cell >= 53 ? 2 : cell >= 11 && cell <= 29 ? 1 : 0);
const referee = (i) => c.at(["LayerReferee", "AttentionReferee", "SamplerReferee"][i], ["layerReferee", "attentionReferee", "samplerReferee"][i]);
const honestCase = (model, trace, subject, entry) => makeCase(model, trace, subject, entry, (ranges) => trace.tree.openRanges(ranges));

for (const [name, sampling, tokens, samples] of [["llama", GREEDY, 3, 1], ["qwen", RANKED, 2, 1], ["wide", RANKED, 1, 0]]) {
  test(`every operation of ${name}: what is right is never refuted, what is wrong always`, { timeout: 600_000 }, async () => {
    const model = models[name];
    const roll = dice(name.length);
    const prompt = name === "wide" ? [3, 1030] : [5, 60, 5];
    const output = answer(model, prompt, tokens, sampling);
    const trace = run(model, prompt, output, sampling);
    assert.deepEqual(trace.tokens, output, "the answer replays");
    const subject = subjectOf(model, prompt, output, sampling);
    const kinds = new Map();
    for (const entry of trace.entries) (kinds.get(entry[0]) ?? kinds.set(entry[0], []).get(entry[0])).push(entry);
    const seen = new Set();
    for (const [cell, entries] of kinds) {
      if (cell === 0) continue;
      seen.add(cell);
      // The last one has the last, shorter segment.
      const chosen = [entries.at(-1), ...Array.from({ length: samples }, () => entries[roll(entries.length)])];
      for (const entry of chosen) {
        const judge = referee(judgeOf(cell));
        const kase = honestCase(model, trace, subject, entry);
        assert.equal(await judge.refutes(trace.tree.root, trace.bytes.length, kase), false, `right: ${entry}`);
        const [at, width] = trace.place(...entry);
        const bytes = trace.bytes.slice();
        bytes[at + roll(width)] ^= 1 << roll(8);
        const wrong = { ...trace, bytes, tree: new Tree(bytes) };
        const lie = makeCase(model, trace, subject, entry, (ranges) => wrong.tree.openRanges(ranges));
        assert.equal(await judge.refutes(wrong.tree.root, bytes.length, lie), true, `wrong: ${entry}`);
        if (entry !== chosen[0]) continue;
        // Another referee does not judge it, and a proof of another root counts for nothing.
        assert.equal(await c.failure(referee((judgeOf(cell) + 1) % 3), "refutes", trace.tree.root, trace.bytes.length, kase), "NoSuchEntry");
        assert.equal(await c.failure(judge, "refutes", wrong.tree.root, bytes.length, kase), "WrongTile");
      }
    }
    const expected = Array.from({ length: CELLS }, (_, i) => i).filter((i) => {
      if (i === 0) return false;
      if ([11, 12].includes(i)) return model.config.qk_norm;
      if ([53, 54, 60, 61, 62].includes(i)) return sampling !== GREEDY;
      if ([57, 58, 59].includes(i)) return sampling === RANKED;
      return true;
    });
    assert.deepEqual([...seen].sort((x, y) => x - y), expected, "every kind was tried");
  });
}

test("claims about tokens, size and padding", { timeout: 120_000 }, async () => {
  const model = models.llama;
  const prompt = [5, 60, 5, 1];
  const output = answer(model, prompt, 3, GREEDY);
  const trace = run(model, prompt, output, GREEDY);
  const judge = referee(2);
  const base = honestCase(model, trace, subjectOf(model, prompt, output, GREEDY), [63, 0, 0, 0, 0]);
  const claim = (kase, change, ranges) => ({ ...kase, claim: { ...kase.claim, b: 0, c: 0, layer: 0, ...change }, trace: trace.tree.openRanges(ranges) });
  const other = [5, 60, 6, 1];
  const refutes = (kase, size = trace.bytes.length) => judge.refutes(trace.tree.root, size, kase);
  // The trace is of these very tokens.
  for (let i = 0; i < prompt.length; i++) assert.equal(await refutes(claim(base, { cell: 65, a: i, tokens: prompt }, [trace.place(0, 0, i)])), false);
  for (let i = 0; i < 2; i++) assert.equal(await refutes(claim(base, { cell: 65, a: prompt.length + i, tokens: output }, [trace.place(0, 0, prompt.length + i)])), false);
  for (let i = 0; i < 3; i++) assert.equal(await refutes(claim(base, { cell: 64, a: i, tokens: output }, [trace.place(63, 0, i)])), false);
  // It is not of other prompts and outputs.
  const kase = { ...base, subject: subjectOf(model, other, output, GREEDY) };
  assert.equal(await refutes(claim(kase, { cell: 65, a: 2, tokens: other }, [trace.place(0, 0, 2)])), true);
  const false_ = [output[0], output[1], output[2] ^ 1];
  const lied = { ...base, subject: subjectOf(model, prompt, false_, GREEDY) };
  assert.equal(await refutes(claim(lied, { cell: 64, a: 2, tokens: false_ }, [trace.place(63, 0, 2)])), true);
  assert.equal(await c.failure(judge, "refutes", trace.tree.root, trace.bytes.length, claim(base, { cell: 64, a: 2, tokens: false_ }, [trace.place(63, 0, 2)])), "WrongTokens");
  // Both have the number of tokens that the output claims.
  for (const tokens of [prompt, output]) assert.equal(await refutes(claim(base, { cell: 68, a: 0, tokens }, [])), false);
  const inflated = { ...base, subject: { ...base.subject, promptTokens: 5 } };
  assert.equal(await refutes(claim(inflated, { cell: 68, a: 0, tokens: prompt }, [])), true);
  const longer = { ...base, subject: { ...base.subject, completionTokens: 4 } };
  assert.equal(await refutes(claim(longer, { cell: 68, a: 0, tokens: output }, [])), true);
  assert.equal(await c.failure(judge, "refutes", trace.tree.root, trace.bytes.length, claim(base, { cell: 68, a: 0, tokens: other }, [])), "WrongTokens");
  // Its size follows from the model and the numbers of tokens.
  assert.equal(await refutes(claim(base, { cell: 66, a: 0 }, [])), false);
  assert.equal(await refutes(claim(base, { cell: 66, a: 0 }, []), trace.bytes.length + 32), true);
  // Between arrays there are zeros.
  const [cell, layer, first, behind] = trace.padding[0];
  assert.equal(await refutes(claim(base, { cell: 67, a: first, b: cell, layer }, [[first, 1]])), false);
  const bytes = trace.bytes.slice();
  bytes[behind - 1] = 9;
  const tree = new Tree(bytes);
  const dirty = { ...claim(base, { cell: 67, a: behind - 1, b: cell, layer }, []), trace: tree.openRanges([[behind - 1, 1]]) };
  assert.equal(await judge.refutes(tree.root, bytes.length, dirty), true);
  assert.equal(await c.failure(judge, "refutes", tree.root, bytes.length, { ...dirty, claim: { ...dirty.claim, a: behind } }), "NoSuchEntry");
  assert.equal(await c.failure(judge, "refutes", tree.root, bytes.length, { ...dirty, claim: { ...dirty.claim, a: first - 1 } }), "NoSuchEntry");
  // What no contract judges yet says so.
  // That is what depends on what a constraint bans, the claim that the output is another one included, and no more than that.
  const t = trace;
  for (const constraintKind of [1, 4, 255]) {
    const bound = { ...base, subject: { ...base.subject, constraintKind } };
    const k = honestCase(model, trace, bound.subject, [63, 0, 0, 0, 0]);
    assert.equal(await c.failure(judge, "refutes", t.tree.root, t.bytes.length, k), "Unsupported");
    const said = claim(bound, { cell: 64, a: 0, tokens: output }, [t.place(63, 0, 0)]);
    assert.equal(await c.failure(judge, "refutes", t.tree.root, t.bytes.length, said), "Unsupported");
    assert.equal(await refutes(claim(bound, { cell: 65, a: 0, tokens: prompt }, [t.place(0, 0, 0)])), false);
    assert.equal(await refutes(claim(bound, { cell: 66, a: 0 }, [])), false);
  }
  // Biases are those of the request.
  const biased = { ...GREEDY, logitBias, biases: BIASES };
  const own = run(model, prompt, output, biased);
  const moved = honestCase(model, own, subjectOf(model, prompt, output, biased), [54, 0, 1, 7, 0]);
  assert.equal(await judge.refutes(own.tree.root, own.bytes.length, moved), false);
  for (const tokens of [[], moved.claim.tokens.slice(1), moved.claim.tokens.slice(2), [...moved.claim.tokens, 1, 1], moved.claim.tokens.with(1, 2_501)]) {
    const other = { ...moved, claim: { ...moved.claim, tokens } };
    assert.equal(await c.failure(judge, "refutes", own.tree.root, own.bytes.length, other), "WrongTokens");
  }
  // A manifest that is not the model's, places that are not there, entries that do not exist.
  const l = honestCase(model, trace, base.subject, [5, 0, 1, 2, 0]);
  const call = (change) => c.failure(referee(0), "refutes", trace.tree.root, trace.bytes.length, change);
  assert.equal(await call({ ...l, manifest: hexlify(new TextEncoder().encode(model.manifest + " ")) }), "NotThere");
  assert.equal(await call({ ...l, claim: { ...l.claim, places: [l.claim.places[0], l.claim.places[1], l.claim.places[2] + 1] } }), "NotThere");
  assert.equal(await call({ ...l, claim: { ...l.claim, a: trace.size.n } }), "NoSuchEntry");
  assert.equal(await call({ ...l, claim: { ...l.claim, layer: 2 } }), "NoSuchEntry");
  assert.equal(await call({ ...l, claim: { ...l.claim, cell: 69 } }), "NoSuchEntry");
  assert.equal(await call({ ...l, model: [] }), "NotOpened");
});

test("the second implementation expands weights and rescales sums as the vectors of the arithmetic say", () => {
  const file = new URL("../../docs/vectors/arithmetic.json", import.meta.url);
  const { linear } = JSON.parse(readFileSync(file, "utf8"));
  const seen = new Set();
  for (const { matrix, tokens, row_scales, values, token_scales, bias_q16, out_q16 } of linear) {
    const { bits, rows, cols } = matrix;
    const weights = expand(getBytes(`0x${matrix.bytes}`), bits, rows, cols);
    const scale = ([m, e]) => ({ m: BigInt(m), e: BigInt(e) });
    for (let t = 0; t < tokens; t++) {
      for (let r = 0; r < rows; r++) {
        let sum = 0;
        for (let i = 0; i < cols; i++) sum += weights[r * cols + i] * values[t * cols + i];
        const out = Number(linearOut(BigInt(sum), cols, scale(token_scales[t]), scale(row_scales[r])));
        const want = out_q16[t * rows + r];
        const saturated = Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, out + (bias_q16 ? bias_q16[r] : 0)));
        assert.equal(saturated, want);
      }
    }
    seen.add(bits);
  }
  assert.deepEqual([...seen].sort(), [4, 6, 8]);
});

// ---- whole games ----

const coder = AbiCoder.defaultAbiCoder();
const openingType = artifact("Settlement").abi.find((f) => f.name === "strike").inputs[2];
const leafType = openingType.components.find((f) => f.name === "leaf");
const RECEIPT = [["address", "worker"], ["uint64", "keyEpoch"], ["bytes32", "model"], ["uint32", "arithmetic"], ["uint8", "level"], ["bytes32", "request"], ["bytes32", "output"], ["uint64", "chunks"], ["bytes32", "chain"], ["bytes32", "trace"], ["uint32", "promptTokens"], ["uint32", "completionTokens"], ["uint128", "price"], ["address", "payer"], ["uint128", "cap"], ["bytes32", "nonce"], ["uint64", "sequence"], ["bytes32", "previous"], ["uint64", "receivedAtMs"], ["uint64", "firstTokenAtMs"], ["uint64", "finishedAtMs"]];
const VOUCHER = [["address", "payer"], ["address", "worker"], ["bytes32", "model"], ["bytes32", "request"], ["bytes32", "nonce"], ["bytes32", "prompt"], ["uint128", "promptPrice"], ["uint128", "completionPrice"], ["uint128", "cap"], ["uint64", "expiresAtMs"]];
const AUDIT = [["address", "auditor"], ["uint64", "keyEpoch"], ["bytes32", "receipt"], ["bytes32", "model"], ["uint32", "arithmetic"], ["uint8", "verdict"], ["string", "field"], ["uint64", "position"], ["uint64", "expected"], ["uint64", "claimed"], ["uint64", "sequence"], ["bytes32", "previous"], ["uint64", "auditedAtMs"], ["uint64", "computeMs"]];
const fields = (list) => list.map(([type, name]) => ({ type, name }));
const ether = 10n ** 18n;
let nonce = 1000n;
let ready;

/** Registers an operator with a worker, and a payer with a deposit, once. */
async function network() {
  if (ready) return ready;
  const [, operator, challenger, , payer, worker, auditor] = c.wallets;
  const opg = c.at("Opg", "opg", operator);
  const { addresses } = c.made;
  // The community's part belongs to account 2, the challenger.
  await c.tx(c.at("Opg", "opg", challenger).transfer(payer.address, 1_000_000n * ether));
  for (const wallet of [operator, challenger, payer]) {
    for (const field of ["registry", "deposits", "disputes"]) await c.tx(c.at("Opg", "opg", wallet).approve(addresses[field], 2n ** 255n));
  }
  const network = await c.provider.getNetwork();
  const domain = { name: "Assay Registry", version: "1", chainId: network.chainId, verifyingContract: addresses.registry };
  const types = { WorkerKey: fields([["address", "operator"], ["address", "worker"], ["uint64", "epoch"]]) };
  for (const [owner, key] of [[operator, worker], [challenger, auditor]]) {
    const registry = c.at("Registry", "registry", owner);
    await c.tx(registry.registerOperator("an operator", 1_000_000n * ether));
    const proof = await key.signTypedData(domain, types, { operator: owner.address, worker: key.address, epoch: 1 });
    await c.tx(registry.addWorker(key.address, "https://worker.example", id("tls"), proof));
  }
  await c.tx(c.at("Deposits", "deposits", payer).deposit(payer.address, 500_000n * ether));
  ready = { operator, challenger, payer, worker, auditor, opg, domain: { ...domain, name: "Assay", verifyingContract: addresses.settlement } };
  return ready;
}

/** Settles one receipt for a claimed output and returns what a challenger needs. */
async function settle(model, prompt, output, sampling) {
  const { operator, payer, worker, domain } = await network();
  const disputes = c.at("Disputes", "disputes");
  const request = {
    model: model.id, promptKind: 2, messages: keccak256("0x"), tools: keccak256("0x"), toolChoice: keccak256("0x"), parallelToolCalls: false,
    text: keccak256("0x"), tokens: keccak256(words(prompt)), maxTokens: 64, stop: keccak256("0x"), sampling, constraintKind: 0,
    constraint: keccak256("0x"), logprobs: keccak256("0x"), nowUnixS: 0,
  };
  const parts = {
    text: id("text"), toolCalls: keccak256("0x"), finishReason: 1, tokens: keccak256(words(output)), promptTokens: prompt.length,
    completionTokens: output.length, logprobs: keccak256("0x"),
  };
  const now = BigInt((await c.provider.getBlock("latest")).timestamp) * 1000n;
  const receipt = {
    worker: worker.address, keyEpoch: 1, model: model.id, arithmetic: 2, level: 0,
    request: await disputes.commitment("request", salt, await disputes.hashRequest(request)),
    output: await disputes.commitment("output", salt, await disputes.hashOutput(parts)),
    chunks: 1, chain: id("chain"), trace: ZeroHash, promptTokens: prompt.length, completionTokens: output.length, price: 1000n * ether,
    payer: payer.address, cap: 1000n * ether, nonce: zeroPadValue(toBeHex(nonce++), 32), sequence: 0, previous: ZeroHash,
    receivedAtMs: now, firstTokenAtMs: now, finishedAtMs: now,
  };
  receipt.price = BigInt(prompt.length + output.length) * ether;
  const voucher = {
    payer: payer.address, worker: worker.address, model: model.id, request: receipt.request, nonce: receipt.nonce,
    prompt: keccak256(concat([salt, words(prompt)])), promptPrice: ether, completionPrice: ether, cap: receipt.cap, expiresAtMs: now,
  };
  const leaf = {
    receipt, voucher,
    signature: await worker.signTypedData(domain, { Receipt: fields(RECEIPT) }, receipt),
    voucherSignature: await payer.signTypedData(domain, { Voucher: fields(VOUCHER) }, voucher),
  };
  const data = keccak256(coder.encode([leafType], [leaf]));
  const root = keccak256(solidityPacked(["uint8", "uint64", "uint128", "bytes32"], [0, 0, receipt.price, data]));
  const lines = [{ payer: payer.address, model: model.id, count: 1, sum: receipt.price, first: receipt.nonce, last: receipt.nonce, root }];
  const settlement = c.at("Settlement", "settlement", operator);
  await c.tx(settlement.submit(worker.address, lines));
  const batch = await settlement.batchCount();
  const opening = { line: 0, index: 0, amount: receipt.price, leaf, siblings: [], sums: [] };
  return { batch, lines, opening, request, parts, price: receipt.price };
}

/** What a challenger knows of the other's tree: its own, where nothing else was revealed. */
class Knowledge {
  constructor(tree) {
    this.tree = tree;
    this.nodes = new Map();
    this.tiles = new Map();
  }
  learn(level, index, hash) {
    this.nodes.set(`${level}/${index}`, hash);
  }
  /** Nodes `down` levels below (level, index), and all between. */
  learnBelow(level, index, down, hashes) {
    let first = index << down;
    for (let l = level - down; hashes.length > 0; l++) {
      hashes.forEach((hash, i) => this.learn(l, first + i, hash));
      if (hashes.length === 1 && l >= level) break;
      const up = [];
      for (let i = 0; i < hashes.length; i += 2) up.push(i + 1 < hashes.length ? keccak256(concat(["0x01", hashes[i], hashes[i + 1]])) : hashes[i]);
      hashes = up;
      first >>= 1;
      if (l + 1 > level) break;
    }
  }
  node(level, index) {
    return this.nodes.get(`${level}/${index}`) ?? this.tree.levels[level][index];
  }
  open(ranges) {
    const tiles = new Set();
    for (const [at, length] of ranges) for (let i = Math.floor(at / 4096); i * 4096 < at + length; i++) tiles.add(i);
    return [...tiles].map((index) => {
      const siblings = [];
      for (let level = 0, i = index; level < this.tree.levels.length - 1; level++, i >>= 1) {
        if ((i ^ 1) < this.tree.levels[level].length) siblings.push(this.node(level, i ^ 1));
      }
      return { index, data: this.tiles.get(index) ?? hexlify(this.tree.tile(index)), siblings };
    });
  }
}

/**
 * Plays a game to its end and returns who won. `theirs` is the worker's trace, `ours` the challenger's. `worker` and
 * `challenger` name their strategies.
 */
async function play({ model, prompt, output, sampling, theirs, ours, worker = "plays", challenger = "honest", roll, probe = false }) {
  const n = await network();
  const settled = await settle(model, prompt, output, sampling);
  const subject = subjectOf(model, prompt, output, sampling);
  const asChallenger = c.at("Disputes", "disputes", n.challenger);
  const asWorker = c.at("Disputes", "disputes", n.operator);
  let gas = 0n, bytes = 0, rounds = 0;
  const move = async (contract, method, ...args) => {
    const receipt = await c.tx(contract[method](...args));
    const length = getBytes(contract.interface.encodeFunctionData(method, args)).length;
    gas += receipt.gasUsed;
    bytes += length;
    const most = (moves[method] ??= { gas: 0, bytes: 0 });
    most.gas = Math.max(most.gas, Number(receipt.gasUsed));
    most.bytes = Math.max(most.bytes, length);
    return receipt;
  };
  await move(asChallenger, "open", settled.batch, settled.lines, settled.opening, salt, settled.request, settled.parts);
  const dispute = await asChallenger.disputeCount();
  const over = async () => (await asChallenger.disputeOf(dispute)).turn === 0n;
  const giveUp = async () => {
    await c.pass(3601);
    await move(asWorker, "timeout", dispute);
  };
  const finish = async () => {
    const [event] = await asChallenger.queryFilter(asChallenger.filters.Ended(dispute), 0, "latest");
    return { workerWon: event.args.workerWon, how: event.args.how, gas, bytes, rounds, receipt: event.args.receipt, dispute, settled };
  };
  if (worker === "silent at once") {
    await giveUp();
    return finish();
  }
  await move(asWorker, "commit", dispute, theirs.tree.root, worker === "wrong size" ? theirs.bytes.length + 4096 * 7 : theirs.bytes.length);
  const know = new Knowledge(ours.tree);
  const accuse = (judge, kase) => move(asChallenger, "accuse", dispute, judge, kase);
  const special = (change, ranges) => {
    const kase = makeCase(model, ours, subject, [63, 0, 0, 0, 0], () => know.open(ranges));
    return { ...kase, claim: { ...kase.claim, b: 0, c: 0, layer: 0, ...change } };
  };
  const claimed = await asChallenger.disputeOf(dispute);
  if (challenger === "honest") {
    if (Number(claimed.size) !== ours.bytes.length) {
      await accuse(2, special({ cell: 66, a: 0 }, []));
      return finish();
    }
    if (claimed.root === ours.tree.root) {
      const wrong = ours.tokens.findIndex((t, i) => t !== output[i]);
      if (wrong < 0) {
        await giveUp(); // the answer is right after all
        return finish();
      }
      await accuse(2, special({ cell: 64, a: wrong, tokens: output }, [ours.place(63, 0, wrong)]));
      return finish();
    }
  }
  let children = [claimed.root];
  let level = Number(claimed.level);
  let index = 0;
  for (;;) {
    if (challenger === "silent" && rounds === 1) {
      await giveUp();
      return finish();
    }
    // The challenger descends to the first node that differs from its own.
    const down = Math.min(level, 4);
    level -= down;
    let child = 0;
    if (challenger === "honest") {
      child = children.findIndex((hash, i) => hash !== ours.tree.levels[level][(index << down) + i]);
      assert.ok(child >= 0, "an honest challenger finds what differs");
    } else child = roll(children.length);
    index = (index << down) + child;
    if (probe) assert.equal(await c.failure(asChallenger, "choose", dispute, children.length, children), "NoSuchChild");
    if (probe) assert.equal(await c.failure(asChallenger, "choose", dispute, 0, [ZeroHash]), "WrongReveal");
    await move(asChallenger, "choose", dispute, child, children);
    rounds++;
    if (worker === "silent later" && rounds === 2) {
      await giveUp();
      return finish();
    }
    if (level === 0) break;
    children = theirs.tree.below(level, index);
    if (probe) assert.equal(await c.failure(asWorker, "reveal", dispute, [...children, ZeroHash]), "WrongReveal");
    if (probe) assert.equal(await c.failure(asWorker, "reveal", dispute, children.map((_, i) => (i ? children[i] : ZeroHash))), "WrongReveal");
    await move(asWorker, "reveal", dispute, children);
    know.learnBelow(level, index, Math.min(level, 4), children);
  }
  const tile = theirs.tree.tile(index);
  if (probe) assert.equal(await c.failure(asWorker, "revealTile", dispute, hexlify(tile.slice(1))), "WrongReveal");
  await move(asWorker, "revealTile", dispute, hexlify(tile));
  know.learn(0, index, theirs.tree.levels[0][index]);
  know.tiles.set(index, hexlify(tile));
  if (challenger !== "honest") {
    // It accuses whatever it likes: the referee finds nothing.
    for (let i = 0; i < 5; i++) {
      const entry = ours.entries.filter((e) => e[0] > 0)[roll(ours.entries.length - ours.size.n)];
      const kase = makeCase(model, theirs, subject, entry, (ranges) => theirs.tree.openRanges(ranges));
      assert.equal(await c.failure(asChallenger, "accuse", dispute, judgeOf(entry[0]), kase), "NotRefuted");
    }
    assert.equal(await over(), false);
    await giveUp();
    return finish();
  }
  const own = ours.tree.tile(index);
  const at = index * 4096 + tile.findIndex((byte, i) => byte !== own[i]);
  const pad = ours.padding.find(([, , first, behind]) => at >= first && at < behind);
  if (pad) {
    await accuse(2, special({ cell: 67, a: at, b: pad[0], layer: pad[1] }, [[at, 1]]));
    return finish();
  }
  const entry = ours.entries.find((e) => {
    const [first, width] = ours.place(...e);
    return at >= first && at < first + width;
  });
  if (entry[0] === 0) {
    const own = entry[2] < prompt.length;
    await accuse(2, special({ cell: 65, a: entry[2], tokens: own ? prompt : output }, [ours.place(...entry)]));
  } else {
    await accuse(judgeOf(entry[0]), makeCase(model, ours, subject, entry, (ranges) => know.open(ranges)));
  }
  return finish();
}

// Gas and bytes: of whole games, and the most that one move took.
const table = [];
const moves = {};
after(() => {
  console.table(table);
  console.table(moves);
});

test("an honest challenger wins against a cheat in every kind of entry", { timeout: 900_000 }, async () => {
  const roll = dice(11);
  for (const [name, sampling] of [["llama", GREEDY], ["qwen", RANKED]]) {
    const model = models[name];
    const prompt = [9, 33, 2];
    const output = answer(model, prompt, 2, sampling);
    const ours = run(model, prompt, output, sampling);
    const kinds = [...new Set(ours.entries.map(([cell]) => cell))];
    for (const cell of kinds) {
      if (name === "qwen" && ![0, 6, 11, 12, 13, 20, 53, 54, 57, 58, 59, 60, 61, 62, 63].includes(cell)) continue;
      const entries = ours.entries.filter((e) => e[0] === cell);
      const target = entries[roll(entries.length)].join();
      // Everything after the lie follows from it, as if the model were another one.
      const theirs = run(model, prompt, output, sampling, (...args) => {
        const bytes = args.pop();
        if (args.join() !== target) return undefined;
        const lie = bytes.slice();
        lie[cell === 0 || cell === 63 ? 0 : roll(Math.min(4, lie.length))] ^= 1;
        return lie;
      });
      const ended = await play({ model, prompt, output, sampling, theirs, ours });
      assert.equal(ended.workerWon, false, `${name}, entry ${target}`);
      assert.equal(ended.how, "refuted", `${name}, entry ${target}`);
      table.push({ model: name, array: cell, rounds: ended.rounds, gas: Number(ended.gas), bytes: ended.bytes });
    }
  }
});

test("an honest challenger wins against a false output, a lie in the padding, a wrong size and silence", { timeout: 300_000 }, async () => {
  const model = models.llama;
  const prompt = [9, 33, 2];
  const honest = answer(model, prompt, 3, GREEDY);
  const ours = run(model, prompt, honest, GREEDY);
  // A cheaper model's token, in a true trace of the false output.
  const output = [honest[0], honest[1] ^ 1, honest[2]];
  const lied = run(model, prompt, output, GREEDY);
  let ended = await play({ model, prompt, output, sampling: GREEDY, theirs: lied, ours: lied });
  assert.deepEqual([ended.workerWon, ended.how], [false, "refuted"]);
  // The same with the sampler's step changed to fit.
  const fitted = run(model, prompt, output, GREEDY, (cell, l, a) => (cell === 63 ? new Uint8Array([output[a], 0, 0, 0]) : undefined));
  ended = await play({ model, prompt, output, sampling: GREEDY, theirs: fitted, ours: lied });
  assert.deepEqual([ended.workerWon, ended.how], [false, "refuted"]);
  const bytes = ours.bytes.slice();
  bytes[ours.padding[1][2]] = 1;
  ended = await play({ model, prompt, output: honest, sampling: GREEDY, theirs: { ...ours, bytes, tree: new Tree(bytes) }, ours });
  assert.deepEqual([ended.workerWon, ended.how], [false, "refuted"]);
  ended = await play({ model, prompt, output: honest, sampling: GREEDY, theirs: ours, ours, worker: "wrong size" });
  assert.deepEqual([ended.workerWon, ended.how], [false, "refuted"]);
  // A trace of another request of the right size.
  const elsewhere = run(model, [9, 33, 3], honest, GREEDY);
  ended = await play({ model, prompt, output: honest, sampling: GREEDY, theirs: elsewhere, ours });
  assert.deepEqual([ended.workerWon, ended.how], [false, "refuted"]);
  for (const worker of ["silent at once", "silent later"]) {
    ended = await play({ model, prompt, output: honest, sampling: GREEDY, theirs: elsewhere, ours, worker });
    assert.deepEqual([ended.workerWon, ended.how], [false, "silence"]);
  }
});

test("an honest worker wins against every accusation and silence", { timeout: 300_000 }, async () => {
  const model = models.llama;
  const prompt = [9, 33, 2];
  const output = answer(model, prompt, 3, GREEDY);
  const trace = run(model, prompt, output, GREEDY);
  const n = await network();
  for (let seed = 0; seed < 4; seed++) {
    const challenger = seed === 0 ? "silent" : "random";
    const registry = c.at("Registry", "registry");
    const bond = (await registry.operatorOf(n.operator.address)).bond;
    const before = await n.opg.balanceOf(n.operator.address);
    const ended = await play({ model, prompt, output, sampling: GREEDY, theirs: trace, ours: trace, challenger, roll: dice(seed) });
    assert.deepEqual([ended.workerWon, ended.how], [true, "silence"]);
    assert.equal((await registry.operatorOf(n.operator.address)).bond, bond, "the bond is whole again");
    assert.equal((await n.opg.balanceOf(n.operator.address)) - before, 50n * ether, "half the challenger's bond");
    // The price is the worker's once no dispute can begin any more.
    const disputes = c.at("Disputes", "disputes", n.operator);
    assert.equal(await c.failure(disputes, "conclude", ended.receipt), "NotConcluded");
    await c.pass(86_400);
    const held = await n.opg.balanceOf(n.operator.address);
    await c.tx(disputes.conclude(ended.receipt));
    assert.equal((await n.opg.balanceOf(n.operator.address)) - held, (ended.settled.price * 90n) / 100n);
    assert.equal(await c.failure(disputes, "conclude", ended.receipt), "NotConcluded");
  }
});

const asFinder = () => c.at("Disputes", "disputes", ready.payer);

test("governance sets parameters and referees within ranges", async () => {
  const { timelock, layerReferee } = c.made.addresses;
  await c.provider.send("anvil_impersonateAccount", [timelock]);
  await c.provider.send("anvil_setBalance", [timelock, toBeHex(ether)]);
  const disputes = c.at("Disputes", "disputes", await c.provider.getSigner(timelock));
  const parameters = (change) => Object.values({ bond: 100n * ether, moveTime: 3600, winnerBps: 5000, ...change });
  for (const change of [{ bond: 0 }, { moveTime: 599 }, { moveTime: 86_401 }, { winnerBps: 0 }, { winnerBps: 9_001 }]) {
    assert.equal(await c.failure(disputes, "setParameters", parameters(change)), "ParameterRange", Object.keys(change)[0]);
  }
  assert.equal(await c.failure(disputes, "setParameters", parameters({})), null);
  assert.equal(await c.failure(disputes, "setReferees", 0, [layerReferee]), "NoReferee");
  assert.equal(await c.failure(disputes, "setReferees", 3, Array(9).fill(layerReferee)), "NoReferee");
  assert.equal(await c.failure(disputes, "setReferees", 3, [layerReferee]), null);
  assert.equal((await disputes.refereesOf(2)).length, 3);
  assert.equal((await disputes.refereesOf(1)).length, 0, "nobody judges version 1");
});

test("what a game moves, and who may move", { timeout: 300_000 }, async () => {
  const model = models.llama;
  const prompt = [9, 33, 2];
  const output = answer(model, prompt, 2, GREEDY);
  const ours = run(model, prompt, output, GREEDY);
  const theirs = run(model, prompt, output, GREEDY, (cell, l, a, b, z, bytes) => ([cell, l, a, b].join() === "6,0,1,3" ? bytes.map((x) => x ^ 1) : undefined));
  const n = await network();
  const opg = c.at("Opg", "opg");
  const registry = c.at("Registry", "registry");
  const deposits = c.at("Deposits", "deposits");
  const bond = (await registry.operatorOf(n.operator.address)).bond;
  const supply = await opg.totalSupply();
  const challenger = await opg.balanceOf(n.challenger.address);
  const deposit = (await deposits.depositOf(n.payer.address)).balance;
  const ended = await play({ model, prompt, output, sampling: GREEDY, theirs, ours });
  assert.equal(bond - (await registry.operatorOf(n.operator.address)).bond, 100n * ether, "the liar's bond");
  assert.equal((await opg.balanceOf(n.challenger.address)) - challenger, 50n * ether, "half to the winner");
  assert.equal(supply - (await opg.totalSupply()), 50n * ether, "the rest burnt");
  assert.equal((await deposits.depositOf(n.payer.address)).balance, deposit, "the caller refunded");
  assert.equal(await opg.balanceOf(c.made.addresses.disputes), 0n, "nothing stays");
  const disputes = c.at("Disputes", "disputes", n.challenger);
  assert.equal(await disputes.refuted(ended.receipt), true);
  assert.equal(await c.failure(disputes, "conclude", ended.receipt), "NotConcluded");
  assert.equal(await c.failure(disputes, "timeout", ended.dispute), "NotYourTurn");
  // An auditor that agreed with it loses a bond, once.
  const audit = { auditor: n.auditor.address, keyEpoch: 1, receipt: ended.receipt, model: model.id, arithmetic: 2, verdict: 0, field: "", position: 0, expected: 0, claimed: 0, sequence: 0, previous: ZeroHash, auditedAtMs: 0, computeMs: 0 };
  const signAudit = (key, a) => key.signTypedData(n.domain, { Audit: fields(AUDIT) }, a);
  const agreed = await signAudit(n.auditor, audit);
  assert.equal(await c.failure(asFinder(), "punishAuditor", audit, await signAudit(n.worker, audit)), "NotPunishable");
  const differs = { ...audit, verdict: 1 };
  assert.equal(await c.failure(asFinder(), "punishAuditor", differs, await signAudit(n.auditor, differs)), "NotPunishable");
  const elsewhere = { ...audit, receipt: id("another receipt") };
  assert.equal(await c.failure(asFinder(), "punishAuditor", elsewhere, await signAudit(n.auditor, elsewhere)), "NotPunishable");
  const [found, auditorBond] = [await opg.balanceOf(n.payer.address), (await registry.operatorOf(n.challenger.address)).bond];
  await c.tx(asFinder().punishAuditor(audit, agreed));
  assert.equal((await opg.balanceOf(n.payer.address)) - found, 50n * ether, "half to who showed it");
  assert.equal(auditorBond - (await registry.operatorOf(n.challenger.address)).bond, 100n * ether, "the auditor's bond");
  assert.equal(await c.failure(asFinder(), "punishAuditor", audit, agreed), "NotPunishable");
  const { settled } = ended;
  const open = (change = {}) => c.failure(disputes, "open", settled.batch, settled.lines, settled.opening, salt, { ...settled.request, ...change.request }, { ...settled.parts, ...change.parts });
  assert.equal(await open(), "NotConcluded", "a refuted receipt is not disputed again");
  assert.equal(await open({ request: { maxTokens: 65 } }), "WrongParts");
  assert.equal(await open({ request: { model: id("other") } }), "WrongParts");
  assert.equal(await open({ parts: { finishReason: 0 } }), "WrongParts");
  assert.equal(await open({ parts: { completionTokens: 0 } }), "WrongParts");
  // A new one, move by move.
  const fresh = await settle(model, prompt, output, GREEDY);
  await c.tx(disputes.open(fresh.batch, fresh.lines, fresh.opening, salt, fresh.request, fresh.parts));
  const dispute = await disputes.disputeCount();
  const asWorker = c.at("Disputes", "disputes", n.operator);
  assert.equal(await c.failure(disputes, "open", fresh.batch, fresh.lines, fresh.opening, salt, fresh.request, fresh.parts), "NotConcluded", "once each");
  assert.equal(await c.failure(disputes, "commit", dispute, id("root"), 5), "NotYourTurn");
  assert.equal(await c.failure(asWorker, "commit", dispute, id("root"), 0), "WrongTrace");
  assert.equal(await c.failure(asWorker, "reveal", dispute, []), "NotYourTurn");
  assert.equal(await c.failure(asWorker, "timeout", dispute), "Deadline");
  assert.equal(await c.failure(c.at("Disputes", "disputes", n.auditor), "commit", dispute, ours.tree.root, ours.bytes.length), "NotYourTurn", "another worker");
  // The worker's own key moves for its operator.
  await c.tx(c.at("Disputes", "disputes", n.worker).commit(dispute, ours.tree.root, ours.bytes.length));
  assert.equal(await c.failure(asWorker, "choose", dispute, 0, [ours.tree.root]), "NotYourTurn");
  const kase = honestCase(model, ours, subjectOf(model, prompt, output, GREEDY), [6, 0, 1, 3, 0]);
  assert.equal(await c.failure(asWorker, "accuse", dispute, 0, kase), "NotYourTurn");
  assert.equal(await c.failure(disputes, "accuse", dispute, 0, kase), "NotRefuted");
  assert.equal(await c.failure(disputes, "accuse", dispute, 3, kase), "NoReferee");
  assert.equal(await c.failure(disputes, "accuse", dispute, 0, { ...kase, subject: { ...kase.subject, salt: id("x") } }), "WrongSubject");
  await c.pass(3601);
  assert.equal(await c.failure(disputes, "choose", dispute, 0, [ours.tree.root]), "Deadline");
  await c.tx(disputes.timeout(dispute));
  assert.equal(inputs(model, ours, [6, 0, 1, 3, 0]).trace.length, 3);
});
