// A tiny model in integers, run entry by entry in JavaScript's big integers: a second implementation of
// docs/arithmetic.md and of the trace of docs/disputes.md, for the tests of the dispute game.
import { keccak256, concat, getBytes, hexlify, toBeHex, zeroPadValue } from "ethers";

export const SEGMENT = 1024;
const TILE = 4096;

// ---- arithmetic ----

const bits = (v) => (v === 0n ? 0 : v.toString(2).length);
export const rshift = (v, s) => (s === 0n ? v : (v + (1n << (s - 1n))) >> s);
const rdiv = (n, d) => (n + d / 2n) / d;
const sat = (v) => (v > 2147483647n ? 2147483647n : v < -2147483648n ? -2147483648n : v);
const abs = (v) => (v < 0n ? -v : v);
const sqrt = (n) => {
  if (n < 2n) return n;
  let x = 1n << BigInt((bits(n) + 1) >> 1);
  for (;;) {
    const y = (x + n / x) >> 1n;
    if (y >= x) return x;
    x = y;
  }
};
const ZERO = { m: 0n, e: 0n };
const shifted = (a, k) => {
  if (a.m === 0n) return a;
  const e = a.e + k;
  return { m: a.m, e: e > 32767n ? 32767n : e < -32767n ? -32767n : e };
};
const int = (n) => {
  if (n === 0n) return ZERO;
  const s = BigInt(bits(n) - 31);
  if (s <= 0n) return { m: n << -s, e: s };
  const m = rshift(n, s);
  return m === 1n << 31n ? { m: 1n << 30n, e: s + 1n } : { m, e: s };
};
const mul = (a, b) => shifted(int(a.m * b.m), a.e + b.e);
const recip = (a) => (a.m === 0n ? ZERO : shifted(int(rdiv(1n << 61n, a.m)), -61n - a.e));
const isqrt = (n) => {
  if (n === 0n) return ZERO;
  const z = BigInt((64 - bits(n)) & ~1);
  return shifted(recip(int(sqrt(n << z))), z / 2n);
};
const LOG2E = 1549082005n;
const INV = { m: rdiv(1n << 41n, 2047n), e: -41n };
const apply = (sum, m, s) => sat(s > 0n ? rshift(sum * m, s) : (sum * m) << -s);
const rescale = (sum, a, b) => apply(sum, rshift(a.m * b.m, 31n), -(a.e + b.e + 47n));
const rescale1 = (sum, a, k) => apply(sum, a.m, -(a.e + k + 16n));

const EXP2 = (() => {
  let c = 1n << 61n;
  for (let i = 0; i < 10; i++) c = sqrt(c << 62n);
  const out = [];
  for (let i = 0, p = 1n << 62n; i <= 1024; i++, p = (p * c) >> 62n) out.push(rshift(p, 32n));
  return out;
})();
export const exp2neg = (t) => {
  const n = t >> 16n;
  if (n > 30n) return 0n;
  const i = Number((t >> 6n) & 1023n);
  return rshift(EXP2[i] - rshift((EXP2[i] - EXP2[i + 1]) * (t & 63n), 6n), n);
};
export const sigmoid = (x) => {
  const e = exp2neg(rshift(abs(x) * LOG2E, 30n));
  const entry = (i) => rdiv(1n << 40n, 1024n + i);
  const i = e >> 20n;
  const q = entry(i) - rshift((entry(i) - entry(i + 1n)) * ((e >> 10n) & 1023n), 10n);
  return x >= 0n ? q : rshift(e * q, 30n);
};
const quantiser = (max) => {
  if (max === 0n) return { unit: ZERO, r: 0n, shift: 0n };
  const shift = BigInt(bits(max) + 19);
  return { unit: mul(int(max), INV), r: (2047n << shift) / max, shift };
};

// ---- bytes ----

const le = (value, width) => {
  const out = new Uint8Array(width);
  let v = BigInt.asUintN(width * 8, BigInt(value));
  for (let i = 0; i < width; i++, v >>= 8n) out[i] = Number(v & 255n);
  return out;
};
const cat = (...parts) => {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) (out.set(p, at), (at += p.length));
  return out;
};
const scaleBytes = (s) => cat(le(s.m, 4), le(s.e, 4));
const be8 = (n) => zeroPadValue(toBeHex(n), 8);

// ---- the Merkle tree of docs/artifact.md ----

export class Tree {
  constructor(data) {
    this.data = data;
    this.levels = [[]];
    for (let i = 0; i * TILE < data.length; i++) {
      const tile = this.tile(i);
      const head = new DataView(new ArrayBuffer(13));
      head.setBigUint64(1, BigInt(i));
      head.setUint32(9, tile.length);
      this.levels[0].push(keccak256(cat(new Uint8Array(head.buffer), tile)));
    }
    while (this.levels.at(-1).length > 1) {
      const below = this.levels.at(-1);
      const up = [];
      for (let i = 0; i < below.length; i += 2) {
        up.push(i + 1 < below.length ? keccak256(concat(["0x01", below[i], below[i + 1]])) : below[i]);
      }
      this.levels.push(up);
    }
  }
  tile(i) {
    return this.data.subarray(i * TILE, Math.min((i + 1) * TILE, this.data.length));
  }
  get root() {
    return this.levels.at(-1)[0];
  }
  open(index) {
    const siblings = [];
    for (let level = 0, i = index; level < this.levels.length - 1; level++, i >>= 1) {
      if ((i ^ 1) < this.levels[level].length) siblings.push(this.levels[level][i ^ 1]);
    }
    return { index, data: hexlify(this.tile(index)), siblings };
  }
  /** Openings of all tiles that hold one of the ranges [offset, length]. */
  openRanges(ranges) {
    const tiles = new Set();
    for (const [offset, length] of ranges) {
      for (let i = Math.floor(offset / TILE); i * TILE < offset + length; i++) tiles.add(i);
    }
    return [...tiles].map((i) => this.open(i));
  }
  /** The nodes four levels below a node, or the leaves, if they are nearer. */
  below(level, index) {
    const down = Math.min(level, 4);
    return this.levels[level - down].slice(index << down, (index + 1) << down);
  }
}

// ---- a model ----

/** Numbers below `n`, the same for the same seed. */
export function dice(seed) {
  let state = seed >>> 0;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
}

/** Stored weights (docs/arithmetic.md, 4.3) as numbers, row by row. */
export function expand(data, bits, rows, cols) {
  const out = new Int16Array(rows * cols);
  const chunk = 32 + 32 * bits;
  for (let r = 0; r < rows; r++) {
    for (let first = 0; first < cols; first += 64) {
      const view = new DataView(data.buffer, data.byteOffset + ((r >> 2) * Math.ceil(cols / 64) + first / 64) * chunk, chunk);
      const parameter = (i) => view.getInt16((r & 3) * 8 + 2 * i, true);
      const integers = 32 + (r & 3) * 8 * bits;
      const q = new Array(64);
      for (let j = 0; j < 16; j++) {
        for (let part = 0; part < 4; part++) {
          if (bits === 8) q[16 * part + j] = (view.getUint16(integers + 32 * (part >> 1) + 2 * j, true) >> (8 * (part & 1))) & 255;
          else q[16 * part + j] = (view.getUint16(integers + 2 * j, true) >> (4 * part)) & 15;
          if (bits === 6) q[16 * part + j] |= ((view.getUint8(integers + 32 + j) >> (2 * part)) & 3) << 4;
        }
      }
      for (let i = 0; i < 64 && first + i < cols; i++) {
        const value = q[i] >= 1 << (bits - 1) ? q[i] - (1 << bits) : q[i];
        const [k, m] = bits === 6 ? [parameter(i >> 4), 0] : [parameter(2 * (i >> 5)), parameter(2 * (i >> 5) + 1)];
        out[r * cols + first + i] = m + Math.floor((value * k + (1 << (bits - 2))) / (1 << (bits - 1)));
      }
    }
  }
  return out;
}

/** A linear layer's output for a sum (docs/arithmetic.md, 4.3). */
export function linearOut(sum, cols, x, w) {
  const h = BigInt(Math.max(0, bits(BigInt(cols)) - 6));
  return rescale(rshift(sum, h), shifted(x, h), w);
}

/** A model with random weights in the layout of docs/artifact.md. */
export function makeModel(config, seed = 1) {
  const next = dice(seed);
  const sections = [];
  const parts = [];
  let at = 0;
  const add = (name, kind, rows, cols, data) => {
    const pad = (64 - (at % 64)) % 64;
    parts.push(new Uint8Array(pad), data);
    sections.push({ name, kind, rows, cols, offset: at + pad, bytes: data.length });
    at += pad + data.length;
  };
  const values = {};
  const list = (name, kind, n, width, draw) => {
    values[name] = Array.from({ length: n }, draw);
    add(name, kind, 1, n, cat(...values[name].map((v) => le(v, width))));
  };
  let turn = 0;
  const matrix = (name, rows, cols, bias) => {
    const bits = [4, 6, 8][turn++ % 3];
    const data = new Uint8Array(Math.ceil(rows / 4) * Math.ceil(cols / 64) * (32 + 32 * bits));
    for (let at = 0; at < data.length; at += 32 + 32 * bits) {
      const view = new DataView(data.buffer, at);
      for (let i = 0; i < 16; i++) view.setInt16(2 * i, next(14001) - 7000, true);
      // Offsets are small enough for 14 bits.
      if (bits !== 6) for (let i = 1; i < 16; i += 2) view.setInt16(2 * i, next(2001) - 1000, true);
      for (let i = 32; i < 32 + 32 * bits; i++) data[at + i] = next(256);
    }
    const scales = Array.from({ length: rows }, () => ({ m: (1n << 30n) + BigInt(next(1 << 30)), e: -42n - BigInt(next(2)) }));
    values[name] = { weights: expand(data, bits, rows, cols), scales, cols, bits };
    add(`${name}.weights`, `weights${bits}`, rows, cols, data);
    add(`${name}.scales`, "scales", rows, 1, cat(...scales.map((s) => cat(le(s.m, 4), le(s.e, 2), le(0, 2)))));
    if (bias) list(`${name}.bias`, "q16", rows, 4, () => BigInt(next(65536) - 32768));
  };
  const c = config;
  const norm = () => BigInt(40000 + next(60000));
  matrix("embedding", c.vocab, c.dim);
  for (let l = 0; l < c.layers; l++) {
    const p = `layers.${l}.`;
    list(`${p}attention_norm`, "q16", c.dim, 4, norm);
    matrix(`${p}q`, c.heads * c.head_dim, c.dim, c.qkv_bias);
    matrix(`${p}k`, c.kv_heads * c.head_dim, c.dim, c.qkv_bias);
    matrix(`${p}v`, c.kv_heads * c.head_dim, c.dim, c.qkv_bias);
    if (c.qk_norm) {
      list(`${p}q_norm`, "q16", c.head_dim, 4, norm);
      list(`${p}k_norm`, "q16", c.head_dim, 4, norm);
    }
    matrix(`${p}o`, c.dim, c.heads * c.head_dim);
    list(`${p}ffn_norm`, "q16", c.dim, 4, norm);
    matrix(`${p}gate`, c.ffn, c.dim);
    matrix(`${p}up`, c.ffn, c.dim);
    matrix(`${p}down`, c.dim, c.ffn);
  }
  list("output_norm", "q16", c.dim, 4, norm);
  if (!c.tied_embeddings) matrix("output", c.vocab, c.dim);
  const angle = (f) => () => BigInt(Math.round(f * 2 ** 30)) - BigInt(next(1 << 28));
  list("rope_cos", "q30", (c.context * c.head_dim) / 2, 4, angle(0.9));
  list("rope_sin", "q30", (c.context * c.head_dim) / 2, 4, angle(0.4));
  const tree = new Tree(cat(...parts));
  const manifest = JSON.stringify({
    format: 2,
    arithmetic: 2,
    name: 'a "model", for tests,"config":{',
    config,
    chat_template: '{"name":"layers.0.q.weights","kind":',
    data_bytes: tree.data.length,
    root: tree.root,
    sections,
  });
  const bytes = new TextEncoder().encode(manifest);
  return { config, values, tree, manifest, bytes, id: keccak256(bytes), sections };
}

/** A model from the bytes of its artifact (docs/artifact.md). */
export function loadModel(file) {
  const head = new DataView(file.buffer, file.byteOffset);
  const length = Number(head.getBigUint64(16, true));
  const bytes = file.subarray(24, 24 + length);
  const manifest = new TextDecoder().decode(bytes);
  const { config, sections, data_bytes } = JSON.parse(manifest);
  const start = Math.ceil((24 + length) / TILE) * TILE;
  const data = file.subarray(start, start + data_bytes);
  const values = {};
  for (const { name, kind, rows, cols, offset, bytes: size } of sections) {
    const part = data.subarray(offset, offset + size);
    const view = new DataView(part.buffer, part.byteOffset, part.length);
    const [, matrix, what] = name.match(/^(.*)\.(weights|scales)$/) ?? [];
    if (what === "weights") {
      const bits = Number(kind.slice("weights".length));
      values[matrix] = { weights: expand(part, bits, rows, cols), cols, bits };
    } else if (what === "scales") {
      const at = (i) => ({ m: BigInt(view.getUint32(8 * i, true)), e: BigInt(view.getInt16(8 * i + 4, true)) });
      values[matrix].scales = Array.from({ length: size / 8 }, (_, i) => at(i));
    } else if (kind !== "tokenizer") {
      values[name] = Array.from({ length: size / 4 }, (_, i) => BigInt(view.getInt32(4 * i, true)));
    }
  }
  return { config, values, tree: new Tree(data), manifest, bytes, id: keccak256(bytes), sections };
}

// ---- the trace ----

const HALF = (n) => Math.ceil(n / SEGMENT);

/** Arrays of the trace as docs/disputes.md has them: dimensions by name, bytes of an entry, part. */
const ARRAYS = [
  ["n", "1", "1", 4, 0], ["n", "dim", "1", 4, 0],
  ["n", "sDim", "1", 32, 1], ["n", "1", "1", 32, 1], ["n", "dim", "1", 2, 1],
  ["n", "q", "sDim", 8, 1], ["n", "q", "1", 4, 1], ["n", "kv", "sDim", 8, 1], ["n", "kv", "1", 4, 1],
  ["n", "kv", "sDim", 8, 1], ["n", "kv", "1", 4, 1],
  ["normed", "q", "1", 4, 1], ["normed", "kv", "1", 4, 1],
  ["n", "q", "1", 4, 1], ["n", "kv", "1", 4, 1],
  ["n", "heads", "1", 16, 1], ["n", "q", "1", 2, 1], ["n", "kvHeads", "1", 16, 1], ["n", "kv", "1", 2, 1],
  ["kvHeads", "n", "1", 16, 1], ["kv", "n", "1", 2, 1],
  ["heads", "1", "tri", 4, 1], ["heads", "n", "sN", 8, 1], ["heads", "n", "1", 8, 1],
  ["heads", "1", "tri", 4, 1], ["heads", "1", "tri", 4, 1], ["heads", "n", "sN", 8, 1], ["heads", "n", "1", 8, 1],
  ["n", "q", "sN", 8, 1], ["n", "q", "1", 4, 1],
  ["n", "sQ", "1", 4, 1], ["n", "1", "1", 16, 1], ["n", "q", "1", 2, 1], ["n", "dim", "sQ", 8, 1], ["n", "dim", "1", 4, 1],
  ["n", "sDim", "1", 32, 1], ["n", "1", "1", 32, 1], ["n", "dim", "1", 2, 1],
  ["n", "ffn", "sDim", 8, 1], ["n", "ffn", "1", 4, 1], ["n", "ffn", "sDim", 8, 1], ["n", "ffn", "1", 4, 1], ["n", "ffn", "1", 4, 1],
  ["n", "sFfn", "1", 4, 1], ["n", "1", "1", 16, 1], ["n", "ffn", "1", 2, 1], ["n", "dim", "sFfn", 8, 1], ["n", "dim", "1", 4, 1],
  ["outputs", "sDim", "1", 32, 2], ["outputs", "1", "1", 32, 2], ["outputs", "dim", "1", 2, 2],
  ["outputs", "vocab", "sDim", 8, 2], ["outputs", "vocab", "1", 4, 2], ["penalised", "vocab", "1", 4, 2], ["adjusted", "vocab", "1", 4, 2],
  ["outputs", "sVocab", "1", 8, 2], ["outputs", "1", "1", 8, 2],
  ["ranked", "vocab", "1", 4, 2], ["topK", "steps", "search", 16, 2], ["topP", "steps", "search", 16, 2],
  ["drawn", "vocab", "1", 4, 2], ["drawn", "sVocab", "1", 8, 2], ["drawn", "1", "1", 16, 2], ["outputs", "1", "1", 4, 2],
];
export const CELLS = ARRAYS.length;
// Steps of a search: the totals, one for each bit of a rank, the result.
const STEPS = 66;

const penalised = (s) => ![0, 1000].includes(s.repetitionPenaltyMilli) || s.frequencyPenaltyMilli !== 0 || s.presencePenaltyMilli !== 0;
// Pairs of a token and thousandths; whose hash is in the request.
export const biases = (s) => s.biases ?? [];

/**
 * Runs a prompt and a claimed output, and writes the trace. `cheat(cell, layer, a, b, c, bytes)` may return other bytes for
 * an entry; everything after is then computed from those, as a cheat would.
 */
export function run(model, prompt, output, sampling, cheat = () => undefined) {
  const c = model.config;
  const d = c.head_dim;
  const size = {
    1: 1, n: prompt.length + output.length - 1, dim: c.dim, q: c.heads * d, kv: c.kv_heads * d, heads: c.heads,
    kvHeads: c.kv_heads, ffn: c.ffn, vocab: c.vocab, outputs: output.length,
  };
  Object.assign(size, {
    sDim: HALF(size.dim), sN: HALF(size.n), sQ: HALF(size.q), sFfn: HALF(size.ffn), sVocab: HALF(size.vocab),
    tri: (size.n * (size.n + 1)) / 2,
    normed: c.qk_norm ? size.n : 0,
    penalised: penalised(sampling) ? output.length : 0,
    adjusted: penalised(sampling) || biases(sampling).length > 0 ? output.length : 0,
    drawn: sampling.temperatureMilli !== 0 && sampling.topK !== 1 ? output.length : 0,
    steps: STEPS, search: 1 + HALF(size.vocab),
  });
  size.topK = sampling.topK > 1 ? size.drawn : 0;
  size.topP = sampling.topPPpm < 1_000_000 ? size.drawn : 0;
  size.ranked = Math.max(size.topK, size.topP);
  const start = [];
  const ends = [];
  const sums = [0, 0, 0];
  for (const [x, y, z, width, part] of ARRAYS) {
    start.push(sums[part]);
    const last = sums[part] + size[x] * size[y] * size[z] * width;
    sums[part] = Math.ceil(last / 32) * 32;
    ends.push([last, sums[part]]);
  }
  const end = sums[0] + sums[1] * c.layers;
  const bytes = new Uint8Array(end + sums[2]);
  const place = (cell, layer, a, b = 0, z = 0) => {
    const [, y, last, width, part] = ARRAYS[cell];
    const flat = last === "tri" ? a * size.tri + (b * (b + 1)) / 2 + z : (a * size[y] + b) * size[last] + z;
    return [start[cell] + flat * width + (part === 1 ? sums[0] + layer * sums[1] : part === 2 ? end : 0), width];
  };
  const entries = [];
  const put = (cell, layer, a, b, z, data) => {
    const [at, width] = place(cell, layer, a, b, z);
    const own = cheat(cell, layer, a, b, z, data) ?? data;
    if (own.length !== width) throw new Error(`entry ${cell} has ${own.length} bytes`);
    bytes.set(own, at);
    entries.push([cell, layer, a, b, z]);
  };
  const view = new DataView(bytes.buffer);
  const i16 = (cell, l, a, b, z) => BigInt(view.getInt16(place(cell, l, a, b, z)[0], true));
  const i32 = (cell, l, a, b, z, off = 0) => BigInt(view.getInt32(place(cell, l, a, b, z)[0] + off, true));
  const u32 = (cell, l, a, b, z, off = 0) => BigInt(view.getUint32(place(cell, l, a, b, z)[0] + off, true));
  const i64 = (cell, l, a, b, z, off = 0) => view.getBigInt64(place(cell, l, a, b, z)[0] + off, true);
  const u64 = (cell, l, a, b, z, off = 0) => view.getBigUint64(place(cell, l, a, b, z)[0] + off, true);
  const scaleAt = (cell, l, a, b) => ({ m: u32(cell, l, a, b, 0), e: i32(cell, l, a, b, 0, 4) });
  const V = model.values;
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const segments = (n) => range(HALF(n)).map((s) => [s, s * SEGMENT, Math.min(n, (s + 1) * SEGMENT)]);

  const norm = (cell, l, rows, stream, w) => {
    for (const a of range(rows)) {
      for (const [s, from, to] of segments(c.dim)) {
        let squares = 0n, most = 0n, least = 0n;
        for (let i = from; i < to; i++) {
          const x = stream(a, i), p = x * w[i];
          squares += x * x;
          if (p > most) most = p;
          if (p < least) least = p;
        }
        put(cell, l, a, s, 0, cat(le(squares, 16), le(most, 8), le(least, 8)));
      }
      let squares = 0n, most = 0n, least = 0n;
      for (const [s] of segments(c.dim)) {
        squares += u64(cell, l, a, s, 0) + (u64(cell, l, a, s, 0, 8) << 64n);
        const m = i64(cell, l, a, s, 0, 16), n = i64(cell, l, a, s, 0, 24);
        if (m > most) most = m;
        if (n < least) least = n;
      }
      let mean = (squares + BigInt(c.dim >> 1)) / BigInt(c.dim) + BigInt(c.rms_eps_q32);
      if (mean >= 1n << 64n) mean = (1n << 64n) - 1n;
      const wide = bits(most > -least ? most : -least);
      const h = BigInt(Math.max(0, wide - 30));
      const up = rshift(most, h), down = -rshift(least, h);
      const { unit, r, shift } = quantiser(up > down ? up : down);
      const scale = mul(shifted(unit, h - 32n), shifted(isqrt(mean), 16n));
      put(cell + 1, l, a, 0, 0, cat(scaleBytes(scale), le(r, 4), le(shift, 4), le(h, 4), new Uint8Array(12)));
      for (const i of range(c.dim)) {
        const p = rshift(stream(a, i) * w[i], u32(cell + 1, l, a, 0, 0, 16));
        put(cell + 2, l, a, i, 0, le(rshift(p * u32(cell + 1, l, a, 0, 0, 8), u32(cell + 1, l, a, 0, 0, 12)), 2));
      }
    }
  };
  const linear = (cell, l, rows, name, input, residual) => {
    const { weights, scales, cols } = V[name];
    const bias = V[`${name}.bias`];
    for (const a of range(rows)) {
      const x = range(cols).map((i) => Number(i16(input, l, a, i, 0)));
      for (const r of range(scales.length)) {
        for (const [s, from, to] of segments(cols)) {
          let sum = 0; // below 2^53
          for (let i = from; i < to; i++) sum += x[i] * weights[r * cols + i];
          put(cell, l, a, r, s, le(sum, 8));
        }
      }
      for (const r of range(scales.length)) {
        let sum = 0n;
        for (const [s] of segments(cols)) sum += i64(cell, l, a, r, s);
        let out = linearOut(sum, cols, scaleAt(input - 1, l, a, 0), scales[r]);
        if (bias) out = sat(out + bias[r]);
        if (residual) out = sat(out + residual(a, r));
        put(cell + 1, l, a, r, 0, le(out, 4));
      }
    }
  };
  const row = (cell, l, a, b, max) => {
    const { unit, r, shift } = quantiser(max);
    put(cell, l, a, b, 0, cat(scaleBytes(shifted(unit, -16n)), le(r, 4), le(shift, 4)));
  };
  const quantised = (x, cell, l, a, b) => le(rshift(x * u32(cell, l, a, b, 0, 8), u32(cell, l, a, b, 0, 12)), 2);

  range(size.n).forEach((t) => put(0, 0, t, 0, 0, le([...prompt, ...output][t], 4)));
  for (const t of range(size.n)) {
    const token = Number(u32(0, 0, t, 0, 0));
    for (const i of range(c.dim)) {
      const inside = token < c.vocab;
      put(1, 0, t, i, 0, le(inside ? rescale1(BigInt(V.embedding.weights[token * c.dim + i]), V.embedding.scales[token], 0n) : 0, 4));
    }
  }
  for (const l of range(c.layers)) {
    const p = `layers.${l}.`;
    const x = l === 0 ? (a, i) => i32(1, 0, a, i, 0) : (a, i) => i32(47, l - 1, a, i, 0);
    norm(2, l, size.n, x, V[`${p}attention_norm`]);
    linear(5, l, size.n, `${p}q`, 4);
    linear(7, l, size.n, `${p}k`, 4);
    linear(9, l, size.n, `${p}v`, 4);
    if (c.qk_norm) {
      for (const [cell, from, w] of [[11, 6, V[`${p}q_norm`]], [12, 8, V[`${p}k_norm`]]]) {
        for (const t of range(size.n)) {
          for (const j of range(cell === 11 ? size.q : size.kv)) {
            const first = j - (j % d);
            const xs = range(d).map((i) => i32(from, l, t, first + i, 0));
            let mean = (xs.reduce((s, v) => s + v * v, 0n) + BigInt(d >> 1)) / BigInt(d) + BigInt(c.rms_eps_q32);
            if (mean >= 1n << 64n) mean = (1n << 64n) - 1n;
            const max = xs.map((v, i) => abs(v * w[i])).reduce((m, v) => (v > m ? v : m), 0n);
            const h = BigInt(Math.max(0, bits(max) - 30));
            put(cell, l, t, j, 0, le(rescale1(rshift(xs[j % d] * w[j % d], h), shifted(isqrt(mean), 16n), h - 32n), 4));
          }
        }
      }
    }
    for (const [cell, from, n] of [[13, c.qk_norm ? 11 : 6, size.q], [14, c.qk_norm ? 12 : 8, size.kv]]) {
      for (const t of range(size.n)) {
        for (const j of range(n)) {
          const own = j % d, half = d >> 1;
          const i = c.rope === "half" ? own % half : own >> 1;
          const second = c.rope === "half" ? own >= half : (own & 1) === 1;
          const other = c.rope === "half" ? (second ? j - half : j + half) : j ^ 1;
          const cos = V.rope_cos[t * half + i], sin = V.rope_sin[t * half + i];
          const [u, v] = [i32(from, l, t, j, 0), i32(from, l, t, other, 0)];
          put(cell, l, t, j, 0, le(sat(rshift(second ? v * sin + u * cos : u * cos - v * sin, 30n)), 4));
        }
      }
    }
    const headMax = (from, t, h) => range(d).map((i) => abs(i32(from, l, t, h * d + i, 0))).reduce((m, v) => (v > m ? v : m), 0n);
    for (const t of range(size.n)) for (const h of range(c.heads)) row(15, l, t, h, headMax(13, t, h));
    for (const t of range(size.n)) for (const j of range(size.q)) put(16, l, t, j, 0, quantised(i32(13, l, t, j, 0), 15, l, t, Math.floor(j / d)));
    for (const t of range(size.n)) for (const h of range(c.kv_heads)) row(17, l, t, h, headMax(14, t, h));
    for (const t of range(size.n)) for (const j of range(size.kv)) put(18, l, t, j, 0, quantised(i32(14, l, t, j, 0), 17, l, t, Math.floor(j / d)));
    for (const h of range(c.kv_heads)) for (const t of range(size.n)) row(19, l, h, t, headMax(10, t, h));
    for (const j of range(size.kv)) for (const t of range(size.n)) put(20, l, j, t, 0, quantised(i32(10, l, t, j, 0), 19, l, Math.floor(j / d), t));
    const group = c.heads / c.kv_heads;
    const factor = mul(isqrt(BigInt(d)), { m: LOG2E, e: -30n });
    const each = (f) => range(c.heads).forEach((h) => range(size.n).forEach((t) => range(t + 1).forEach((s) => f(h, t, s))));
    const parts = (f) => range(c.heads).forEach((h) => range(size.n).forEach((t) => segments(size.n).forEach(([s, from, to]) => f(h, t, s, range(Math.max(0, Math.min(to, t + 1) - from)).map((i) => from + i)))));
    each((h, t, s) => {
      const kv = Math.floor(h / group);
      let sum = 0n;
      for (const i of range(d)) sum += i16(16, l, t, h * d + i, 0) * i16(18, l, s, kv * d + i, 0);
      put(21, l, h, t, s, le(rescale(sum, mul(scaleAt(15, l, t, h), factor), scaleAt(17, l, s, kv)), 4));
    });
    const LEAST = -(1n << 31n), NONE = -40000n;
    const most = (xs, least) => xs.reduce((m, v) => (v > m ? v : m), least);
    parts((h, t, s, list) => {
      const kv = Math.floor(h / group);
      const e = list.map((i) => scaleAt(19, l, kv, i)).filter((v) => v.m !== 0n).map((v) => v.e);
      put(22, l, h, t, s, cat(le(most(list.map((i) => i32(21, l, h, t, i)), LEAST), 4), le(most(e, NONE), 4)));
    });
    for (const h of range(c.heads)) {
      for (const t of range(size.n)) {
        const all = segments(size.n).map(([s]) => s);
        put(23, l, h, t, 0, cat(le(most(all.map((s) => i32(22, l, h, t, s)), LEAST), 4), le(most(all.map((s) => i32(22, l, h, t, s, 4)), NONE), 4)));
      }
    }
    each((h, t, s) => {
      const gap = i32(23, l, h, t, 0) - i32(21, l, h, t, s);
      put(24, l, h, t, s, le(exp2neg(gap > 0n ? gap : 0n), 4));
    });
    each((h, t, s) => {
      const v = scaleAt(19, l, Math.floor(h / group), s);
      let down = i32(23, l, h, t, 0, 4) - v.e;
      down = down < 0n ? 0n : down > 31n ? 31n : down;
      put(25, l, h, t, s, le(rshift(u32(24, l, h, t, s) * (v.m >> down), 39n), 4));
    });
    parts((h, t, s, list) => put(26, l, h, t, s, le(list.reduce((n, i) => n + rshift(u32(24, l, h, t, i), 8n), 0n), 8)));
    for (const h of range(c.heads)) {
      for (const t of range(size.n)) {
        const total = segments(size.n).reduce((n, [s]) => n + i64(26, l, h, t, s), 0n);
        put(27, l, h, t, 0, scaleBytes(recip(int(BigInt.asUintN(64, total)))));
      }
    }
    for (const t of range(size.n)) {
      for (const j of range(size.q)) {
        const h = Math.floor(j / d);
        const column = Math.floor(h / group) * d + (j % d);
        for (const [s, from, to] of segments(size.n)) {
          let sum = 0n;
          for (let i = from; i < Math.min(to, t + 1); i++) sum += u32(25, l, h, t, i) * i16(20, l, column, i, 0);
          put(28, l, t, j, s, le(sum, 8));
        }
      }
    }
    for (const t of range(size.n)) {
      for (const j of range(size.q)) {
        const h = Math.floor(j / d);
        const e = i32(23, l, h, t, 0, 4);
        const sum = segments(size.n).reduce((n, [s]) => n + i64(28, l, t, j, s), 0n);
        put(29, l, t, j, 0, le(e === NONE ? 0 : rescale1(sum, scaleAt(27, l, h, t), 31n + e), 4));
      }
    }
    const quantise = (cell, n) => {
      for (const t of range(size.n)) {
        for (const [s, from, to] of segments(n)) {
          put(cell, l, t, s, 0, le(most(range(to - from).map((i) => abs(i32(cell - 1, l, t, from + i, 0))), 0n), 4));
        }
      }
      for (const t of range(size.n)) row(cell + 1, l, t, 0, most(segments(n).map(([s]) => u32(cell, l, t, s, 0)), 0n));
      for (const t of range(size.n)) for (const j of range(n)) put(cell + 2, l, t, j, 0, quantised(i32(cell - 1, l, t, j, 0), cell + 1, l, t, 0));
    };
    quantise(30, size.q);
    linear(33, l, size.n, `${p}o`, 32, x);
    norm(35, l, size.n, (a, i) => i32(34, l, a, i, 0), V[`${p}ffn_norm`]);
    linear(38, l, size.n, `${p}gate`, 37);
    linear(40, l, size.n, `${p}up`, 37);
    for (const t of range(size.n)) {
      for (const j of range(c.ffn)) {
        const gate = i32(39, l, t, j, 0);
        put(42, l, t, j, 0, le(sat(rshift(rshift(gate * sigmoid(gate), 30n) * i32(41, l, t, j, 0), 16n)), 4));
      }
    }
    quantise(43, c.ffn);
    linear(46, l, size.n, `${p}down`, 45, (a, r) => i32(34, l, a, r, 0));
  }
  norm(48, 0, size.outputs, (a, i) => i32(c.layers ? 47 : 1, Math.max(0, c.layers - 1), prompt.length - 1 + a, i, 0), V.output_norm);
  linear(51, 0, size.outputs, c.tied_embeddings ? "embedding" : "output", 50);
  const P = sampling;
  const logits = size.adjusted ? 54 : 52;
  const floorDiv = (n, q) => (n >= 0n ? n / q : -((-n + q - 1n) / q));
  for (const o of range(size.outputs)) {
    if (penalised(P)) {
      for (const v of range(c.vocab)) {
        let seen;
        if (o === 0) seen = range(prompt.length).some((t) => u32(0, 0, t, 0, 0) === BigInt(v)) ? 1n << 31n : 0n;
        else {
          seen = u32(53, 0, o - 1, v, 0);
          if (u32(0, 0, prompt.length - 1 + o, 0, 0) === BigInt(v)) seen = (seen | (1n << 31n)) + 1n;
        }
        put(53, 0, o, v, 0, le(seen, 4));
      }
    }
    if (size.adjusted) {
      for (const v of range(c.vocab)) {
        let x = i32(52, 0, o, v, 0);
        const seen = penalised(P) ? u32(53, 0, o, v, 0) : 0n;
        const banned = x === -(1n << 31n);
        if (x !== -(1n << 31n) && seen >> 31n) {
          const R = BigInt(P.repetitionPenaltyMilli);
          if (R !== 0n && R !== 1000n) x = x > 0n ? rdiv(1000n * x, R) : -((-x * R + 500n) / 1000n);
          const n = seen & 0x7fffffffn;
          if (n > 0n) x -= floorDiv(65536n * (n * BigInt(P.frequencyPenaltyMilli) + BigInt(P.presencePenaltyMilli)) + 500n, 1000n);
          x = sat(x);
          if (x === -(1n << 31n)) x++;
        }
        for (const [token, milli] of banned ? [] : biases(P)) {
          if (token === v) x = sat(x + floorDiv(65536n * BigInt(milli) + 500n, 1000n));
          if (x === -(1n << 31n)) x++;
        }
        put(54, 0, o, v, 0, le(x, 4));
      }
    }
    for (const [s, from, to] of segments(c.vocab)) {
      let best = -(1n << 31n), id = from;
      for (let v = from; v < to; v++) if (i32(logits, 0, o, v, 0) > best) [best, id] = [i32(logits, 0, o, v, 0), v];
      put(55, 0, o, s, 0, cat(le(best, 4), le(id, 4)));
    }
    let best = i32(55, 0, o, 0, 0), id = u32(55, 0, o, 0, 0, 4);
    for (const [s] of segments(c.vocab)) if (i32(55, 0, o, s, 0) > best) [best, id] = [i32(55, 0, o, s, 0), u32(55, 0, o, s, 0, 4)];
    put(56, 0, o, 0, 0, cat(le(best, 4), le(id, 4)));
    if (!size.drawn) {
      put(63, 0, o, 0, 0, le(u32(56, 0, o, 0, 0, 4), 4));
      continue;
    }
    const F = rdiv(1000n * LOG2E, BigInt(P.temperatureMilli));
    const weight = (v) => {
      const x = i32(logits, 0, o, v, 0), top = i32(56, 0, o, 0, 0);
      if (x === -(1n << 31n) || top < x) return 0n;
      const t = rshift((top - x) * F, 30n);
      return t >= 1n << 32n ? 0n : exp2neg(t);
    };
    const rank = (v) => ((i32(logits, 0, o, v, 0) + (1n << 31n)) << 32n) | (0xffffffffn - BigInt(v));
    let least = 0n;
    if (size.ranked) for (const v of range(c.vocab)) put(57, 0, o, v, 0, le(weight(v), 4));
    // The largest rank from which on enough is kept.
    const search = (cell, enough) => {
      const base = least;
      const tried = (step) => u64(cell, 0, o, step, 0) | (step > 0 && step < STEPS - 1 ? 1n << BigInt(STEPS - 2 - step) : 0n);
      const totals = (step) => [0, 8].map((off) => segments(c.vocab).reduce((n, [s]) => n + u64(cell, 0, o, step, 1 + s, off), 0n));
      for (const step of range(STEPS)) {
        let found = 0n;
        if (step > 1) found = enough(totals(0), totals(step - 1)) ? tried(step - 1) : u64(cell, 0, o, step - 1, 0);
        put(cell, 0, o, step, 0, le(found, 16));
        const from_ = tried(step) > base ? tried(step) : base;
        for (const [s, from, to] of segments(c.vocab)) {
          let sum = 0n, count = 0n;
          for (let v = from; v < to; v++) if (u32(57, 0, o, v, 0) > 0n && rank(v) >= from_) (sum += u32(57, 0, o, v, 0), count++);
          put(cell, 0, o, step, 1 + s, cat(le(sum, 8), le(count, 8)));
        }
      }
      least = u64(cell, 0, o, STEPS - 1, 0);
    };
    if (size.topK) search(58, (_, [, count]) => count >= BigInt(P.topK));
    if (size.topP) search(59, ([all], [sum, count]) => count > 0n && 1000000n * sum >= BigInt(P.topPPpm) * all);
    for (const v of range(c.vocab)) {
      let w = size.ranked ? (rank(v) < least ? 0n : u32(57, 0, o, v, 0)) : weight(v);
      if (1000000n * w < BigInt(P.minPPpm) << 30n) w = 0n;
      put(60, 0, o, v, 0, le(w, 4));
    }
    for (const [s, from, to] of segments(c.vocab)) put(61, 0, o, s, 0, le(range(to - from).reduce((n, i) => n + u32(60, 0, o, from + i, 0), 0n), 8));
    const all = segments(c.vocab).map(([s]) => s);
    const u = BigInt(keccak256(concat([be8(P.seed), be8(o)]))) >> 192n;
    let x = (u * all.reduce((n, s) => n + u64(61, 0, o, s, 0), 0n)) >> 64n;
    let s = 0;
    while (s + 1 < all.length && x >= u64(61, 0, o, s, 0)) (x -= u64(61, 0, o, s, 0), s++);
    put(62, 0, o, 0, 0, cat(le(s, 8), le(x, 8)));
    s = Number(u64(62, 0, o, 0, 0));
    x = u64(62, 0, o, 0, 0, 8);
    let token = 0;
    if (s < all.length) {
      const [, from, to] = segments(c.vocab)[s];
      for (token = from; token + 1 < to && x >= u32(60, 0, o, token, 0); token++) x -= u32(60, 0, o, token, 0);
    }
    put(63, 0, o, 0, 0, le(token, 4));
  }
  const tokens = range(size.outputs).map((o) => Number(u32(63, 0, o, 0, 0)));
  // Bytes between arrays, which are zero: [array, layer, first, behind].
  const padding = [];
  ARRAYS.forEach(([, , , , part], cell) => {
    for (const l of range(part === 1 ? c.layers : 1)) {
      const base = part === 1 ? sums[0] + l * sums[1] : part === 2 ? end : 0;
      if (ends[cell][1] > ends[cell][0]) padding.push([cell, l, base + ends[cell][0], base + ends[cell][1]]);
    }
  });
  return { bytes, entries, place, tokens, size, padding, tree: new Tree(bytes) };
}

/** Which ranges of the trace and which sections of the model an entry's operation reads. */
export function inputs(model, trace, [cell, l, a, b, z]) {
  const c = model.config, d = c.head_dim, n = trace.size;
  const group = c.heads / c.kv_heads;
  const t = [];
  const m = [];
  const row = (cell, l, a, b, z, count) => {
    const [at, width] = trace.place(cell, l, a, b, z);
    t.push([at, width * count]);
  };
  const segment = (s, total) => [s * SEGMENT, Math.min(total - s * SEGMENT, SEGMENT)];
  const past = (t, s) => [s * SEGMENT, Math.max(0, Math.min(t + 1 - s * SEGMENT, SEGMENT))];
  const section = (name, from, count, width) => m.push([name, from * width, count * width]);
  const weights = (name, r, from, count) => {
    const { cols, bits } = model.values[name];
    const chunk = 32 + 32 * bits;
    const first = (r >> 2) * Math.ceil(cols / 64) + Math.floor(from / 64);
    m.push([`${name}.weights`, first * chunk, Math.ceil(((from % 64) + count) / 64) * chunk]);
  };
  const p = `layers.${l}.`;
  row(cell, l, a, b, z, 1);
  const stream = (cell, from, count) => {
    if (cell >= 35 && cell < 48) row(34, l, a, from, 0, count);
    else if (cell >= 48) c.layers ? row(47, c.layers - 1, n.n - n.outputs + a, from, 0, count) : row(1, 0, n.n - n.outputs + a, from, 0, count);
    else l === 0 ? row(1, 0, a, from, 0, count) : row(47, l - 1, a, from, 0, count);
  };
  const normName = cell >= 48 ? "output_norm" : p + (cell < 35 ? "attention_norm" : "ffn_norm");
  const matrix =
    cell <= 10 ? [p + (cell <= 6 ? "q" : cell <= 8 ? "k" : "v"), 4, c.dim]
    : cell <= 34 ? [`${p}o`, 32, n.q]
    : cell <= 41 ? [p + (cell <= 39 ? "gate" : "up"), 37, c.dim]
    : cell <= 47 ? [`${p}down`, 45, c.ffn]
    : [c.tied_embeddings ? "embedding" : "output", 50, c.dim];
  const logits = n.adjusted ? 54 : 52;
  if (cell === 1) {
    row(0, 0, a, 0, 0, 1);
    const token = new DataView(trace.bytes.buffer).getUint32(trace.place(0, 0, a)[0], true);
    if (token < c.vocab) {
      weights("embedding", token, b, 1);
      section("embedding.scales", token, 1, 8);
    }
  } else if ([2, 35, 48].includes(cell)) {
    const [from, count] = segment(b, c.dim);
    stream(cell, from, count);
    section(normName, from, count, 4);
  } else if ([3, 36, 49].includes(cell)) row(cell - 1, l, a, 0, 0, n.sDim);
  else if ([4, 37, 50].includes(cell)) {
    stream(cell, b, 1);
    section(normName, b, 1, 4);
    row(cell - 1, l, a, 0, 0, 1);
  } else if ([5, 7, 9, 33, 38, 40, 46, 51].includes(cell)) {
    const [name, input, cols] = matrix;
    const [from, count] = segment(z, cols);
    row(input, l, a, from, 0, count);
    weights(name, b, from, count);
  } else if ([6, 8, 10, 34, 39, 41, 47, 52].includes(cell)) {
    const [name, input, cols] = matrix;
    row(cell - 1, l, a, b, 0, HALF(cols));
    row(input - 1, l, a, 0, 0, 1);
    section(`${name}.scales`, b, 1, 8);
    if (cell <= 10 && c.qkv_bias) section(`${name}.bias`, b, 1, 4);
    if (cell === 34) stream(2, b, 1);
    if (cell === 47) row(34, l, a, b, 0, 1);
  } else if (cell === 11 || cell === 12) {
    row(cell === 11 ? 6 : 8, l, a, b - (b % d), 0, d);
    section(p + (cell === 11 ? "q_norm" : "k_norm"), 0, d, 4);
  } else if (cell === 13 || cell === 14) {
    const source = cell === 13 ? (c.qk_norm ? 11 : 6) : c.qk_norm ? 12 : 8;
    row(source, l, a, b - (b % d), 0, d);
    const half = d >> 1, own = b % d;
    const i = a * half + (c.rope === "half" ? own % half : own >> 1);
    section("rope_cos", i, 1, 4);
    section("rope_sin", i, 1, 4);
  } else if (cell === 15 || cell === 17) row(cell === 15 ? 13 : 14, l, a, b * d, 0, d);
  else if (cell === 19) row(10, l, b, a * d, 0, d);
  else if (cell === 16 || cell === 18) {
    row(cell === 16 ? 13 : 14, l, a, b, 0, 1);
    row(cell - 1, l, a, Math.floor(b / d), 0, 1);
  } else if (cell === 20) {
    row(10, l, b, a, 0, 1);
    row(19, l, Math.floor(a / d), b, 0, 1);
  } else if (cell === 21) {
    const kv = Math.floor(a / group);
    row(15, l, b, a, 0, 1);
    row(17, l, z, kv, 0, 1);
    row(16, l, b, a * d, 0, d);
    row(18, l, z, kv * d, 0, d);
  } else if (cell === 22) {
    const [from, count] = past(b, z);
    if (count) (row(21, l, a, b, from, count), row(19, l, Math.floor(a / group), from, 0, count));
  } else if (cell === 23) row(22, l, a, b, 0, n.sN);
  else if (cell === 24) (row(23, l, a, b, 0, 1), row(21, l, a, b, z, 1));
  else if (cell === 25) (row(19, l, Math.floor(a / group), z, 0, 1), row(23, l, a, b, 0, 1), row(24, l, a, b, z, 1));
  else if (cell === 26) {
    const [from, count] = past(b, z);
    if (count) row(24, l, a, b, from, count);
  } else if (cell === 27) row(26, l, a, b, 0, n.sN);
  else if (cell === 28) {
    const [from, count] = past(a, z);
    const h = Math.floor(b / d);
    if (count) (row(25, l, h, a, from, count), row(20, l, Math.floor(h / group) * d + (b % d), from, 0, count));
  } else if (cell === 29) {
    const h = Math.floor(b / d);
    row(23, l, h, a, 0, 1);
    row(27, l, h, a, 0, 1);
    row(28, l, a, b, 0, n.sN);
  } else if (cell === 30 || cell === 43) {
    const [from, count] = segment(b, cell === 30 ? n.q : c.ffn);
    row(cell - 1, l, a, from, 0, count);
  } else if (cell === 31 || cell === 44) row(cell - 1, l, a, 0, 0, HALF(cell === 31 ? n.q : c.ffn));
  else if (cell === 32 || cell === 45) (row(cell - 3, l, a, b, 0, 1), row(cell - 1, l, a, 0, 0, 1));
  else if (cell === 42) (row(39, l, a, b, 0, 1), row(41, l, a, b, 0, 1));
  else if (cell === 53) {
    if (a === 0) row(0, 0, 0, 0, 0, n.n - n.outputs + 1);
    else (row(53, 0, a - 1, b, 0, 1), row(0, 0, n.n - n.outputs + a, 0, 0, 1));
  } else if (cell === 54) {
    row(52, 0, a, b, 0, 1);
    if (n.penalised) row(53, 0, a, b, 0, 1);
  }
  else if (cell === 55) {
    const [from, count] = segment(b, c.vocab);
    row(logits, 0, a, from, 0, count);
  } else if (cell === 56) row(55, 0, a, 0, 0, n.sVocab);
  else if (cell === 57) (row(logits, 0, a, b, 0, 1), row(56, 0, a, 0, 0, 1));
  else if ((cell === 58 || cell === 59) && z > 0) {
    const [from, count] = segment(z - 1, c.vocab);
    row(logits, 0, a, from, 0, count);
    row(57, 0, a, from, 0, count);
    row(cell, 0, a, b, 0, 1);
    if (cell === 59 && n.topK) row(58, 0, a, STEPS - 1, 0, 1);
  } else if (cell === 58 || cell === 59) {
    if (b > 1) (row(cell, 0, a, b - 1, 0, n.search), row(cell, 0, a, 0, 1, n.sVocab));
  } else if (cell === 60) {
    row(logits, 0, a, b, 0, 1);
    if (n.ranked) (row(57, 0, a, b, 0, 1), row(n.topP ? 59 : 58, 0, a, STEPS - 1, 0, 1));
    else row(56, 0, a, 0, 0, 1);
  } else if (cell === 61) {
    const [from, count] = segment(b, c.vocab);
    row(60, 0, a, from, 0, count);
  } else if (cell === 62) row(61, 0, a, 0, 0, n.sVocab);
  else if (cell === 63) {
    row(56, 0, a, 0, 0, 1);
    if (n.drawn) {
      row(62, 0, a, 0, 0, 1);
      const s = Number(new DataView(trace.bytes.buffer).getBigUint64(trace.place(62, 0, a)[0], true));
      if (s < n.sVocab) {
        const [from, count] = segment(s, c.vocab);
        row(60, 0, a, from, 0, count);
      }
    }
  }
  return { trace: t, sections: m };
}

/** The case against an entry, as the contract takes it: `openTrace` opens tiles of the accused trace. */
export function makeCase(model, trace, subject, entry, openTrace) {
  const text = model.manifest;
  const where = (needle) => new TextEncoder().encode(text.slice(0, text.indexOf(needle))).length;
  const need = inputs(model, trace, entry);
  const places = [where(',"config":{"architecture":"'), where(',"data_bytes":')];
  const ranges = [];
  for (const [name, from, length] of need.sections) {
    places.push(where(`{"name":"${name}","kind"`));
    ranges.push([model.sections.find((s) => s.name === name).offset + from, length]);
  }
  const [cell, layer, a, b, c] = entry;
  return {
    subject,
    manifest: hexlify(model.bytes),
    claim: { cell, layer, a, b, c, places, tokens: cell === 54 ? biases(subject.sampling).flatMap(([token, milli]) => [token, milli >>> 0]) : [] },
    trace: openTrace(need.trace),
    model: model.tree.openRanges(ranges),
  };
}
