#!/usr/bin/env python3
"""Checks a proof of an answer as docs/trace-proof.md defines it, but for the replay, in code that shares nothing with Assay's.

`trace_proof.py KEY PROOF TEXT WEIGHTS`: the text is {"prompt": [token, ...], "answer": [...]}; the weights are those of all matrices in
their order, rows of integers, from which the opened columns are computed again. The model has neither experts nor rotary tables of
several kinds. It prints what it checked and exits with 1 at the first difference.
"""

import json
import math
import struct
import sys

from blake3 import blake3
from eth_utils import keccak

P = 2**61 - 1
ROOT = (678189120356968810, 1898929536999512666)
QUERIES = 104


def require(condition, what):
    if not condition:
        sys.exit(f"not so: {what}")


def add(a, b):
    return ((a[0] + b[0]) % P, (a[1] + b[1]) % P)


def mul(a, b):
    return ((a[0] * b[0] - a[1] * b[1]) % P, (a[0] * b[1] + a[1] * b[0]) % P)


def power(a, n):
    out = (1, 0)
    while n:
        if n & 1:
            out = mul(out, a)
        a = mul(a, a)
        n >>= 1
    return out


def numbers(data):
    out = [struct.unpack_from("<QQ", data, at) for at in range(0, len(data), 16)]
    require(all(part < P for number in out for part in number), "every number is below the prime")
    return out


class Draw:
    """Numbers from the extended output of a hash."""

    def __init__(self, seed, most):
        self.bytes = blake3(seed).digest(length=most)
        self.at = 0

    def word(self, size):
        self.at += size
        return int.from_bytes(self.bytes[self.at - size : self.at], "little")

    def part(self):
        while True:
            part = self.word(8) & P
            if part < P:
                return part

    def number(self):
        return (self.part(), self.part())


def rev(number, bits):
    return int(format(number, f"0{bits}b")[::-1], 2)


def main():
    key, proof = (open(path, "rb").read() for path in sys.argv[1:3])
    text, weights = (json.load(open(path)) for path in sys.argv[3:5])

    # The key.
    require(key[:16] == b"ASSAYCM\n" + struct.pack("<II", 1, 0), "the key begins as it should")
    name = key[-32:]
    require(keccak(key[:-32]) == name, "the key's id is the hash of what comes before")
    manifest_len, sections_len = struct.unpack_from("<QQ", key, 16)
    shape = json.loads(key[32 : 32 + manifest_len])["config"]
    hashes = key[32 + manifest_len + sections_len : -32]
    inner, kv = (shape[heads] * shape["head_dim"] for heads in ("heads", "kv_heads"))
    dim, ffn = shape["dim"], shape["ffn"]
    layer = [(inner, dim), (kv, dim), (kv, dim), (dim, inner), (ffn, dim), (ffn, dim), (dim, ffn)]
    matrices = layer * shape["layers"] + [(shape["vocab"], dim)]
    require([(len(w), len(w[0])) for w in weights] == matrices, "the weights have the model's shape")
    classes = sorted({cols for _, cols in matrices})

    def layout(n):
        beside = {cols: 2**n // cols for cols in classes}
        counts = [math.ceil(math.ceil(rows / 2) / beside[cols]) for rows, cols in matrices]
        return sum(counts) * QUERIES + sum(beside[cols] * cols for cols in classes), beside, counts

    n = min(range(math.ceil(math.log2(classes[-1])), 25), key=lambda n: layout(n)[0])
    _, beside, counts = layout(n)
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    rows = sum(counts)
    front = (shape["vocab"] + shape["context"]) * 32
    require(len(hashes) == front + 32 * 2 ** (n + 1), "the key has a hash for each token, position and place")

    # The proof, taken apart.
    require(proof[:16] == b"ASSAYTP\n" + struct.pack("<II", 1, 0), "the proof begins as it should")
    require(proof[16:48] == name, "the proof names the key")
    columns_len = 16 * sum(cols for _, cols in matrices)
    sums_len = 16 * sum(beside[cols] * cols for cols in classes)
    opening = proof[len(proof) - columns_len - sums_len - 16 * QUERIES * rows :]
    trace = proof[48 : len(proof) - len(opening)]
    require(trace[:8] == b"ASSAYLT\n", "a trace comes first")
    message_u, message_v = opening[:columns_len], opening[columns_len : columns_len + sums_len]
    opened = numbers(opening[columns_len + sums_len :])
    u, v, at = [], {}, 0
    for _, cols in matrices:
        u.append(numbers(message_u[at : at + 16 * cols]))
        at += 16 * cols
    at = 0
    for cols in classes:
        v[cols] = numbers(message_v[at : at + 16 * cols * beside[cols]])
        at += 16 * cols * beside[cols]

    # Step 1.
    statement = b"assay trace proof 1" + name
    for tokens in (text["prompt"], text["answer"]):
        statement += struct.pack("<Q", len(tokens)) + b"".join(struct.pack("<I", token) for token in tokens)
    h0 = blake3(statement + blake3(trace).digest()).digest()
    draw = Draw(h0, 64 * (max(counts) + max(beside.values())) + 64)
    down = [draw.number() for _ in range(max(counts))]
    side = [draw.number() for _ in range(max(beside.values()))]
    # Step 2: with the weights at hand, the projections themselves.
    for (height, cols), w, projection in zip(matrices, weights, u):
        sums = [(0, 0)] * cols
        for row in range(height):
            d, s = divmod(row // 2, beside[cols])
            q = mul(mul(down[d], side[s]), (0, 1) if row % 2 else (1, 0))
            sums = [add(total, (q[0] * x, q[1] * x)) for total, x in zip(sums, w[row])]
        require(sums == projection, "a projection is the weighted sum of the matrix's rows")
    h1 = blake3(h0 + message_u).digest()
    draw = Draw(h1, 64 * len(matrices) + 64)
    delta = [draw.number() for _ in matrices]
    # Step 3.
    for cols in classes:
        for x in range(cols):
            left, right = (0, 0), (0, 0)
            for (_, other), mix, projection in zip(matrices, delta, u):
                if other == cols:
                    left = add(left, mul(mix, projection[x]))
            for s in range(beside[cols]):
                right = add(right, mul(side[s], v[cols][s * cols + x]))
            require(left == right, "projections and sums agree")
    h2 = blake3(h1 + message_v).digest()
    # Step 4.
    draw = Draw(h2, 4 * QUERIES)
    omega = power(ROOT, 2 ** (61 - (n + 1)))
    for query in range(QUERIES):
        place = draw.word(4) % 2 ** (n + 1)
        column = opened[query * rows : (query + 1) * rows]
        state = bytes(32)
        for start in range(0, rows, 30):
            part = b"".join(struct.pack("<QQ", *number) for number in column[start : start + 30])
            state = blake3(state + part).digest()
        require(hashes[front + 32 * place :][:32] == state, "a column has the key's hash")
        point = power(omega, rev(place, n + 1))
        powers = [(1, 0)]
        while len(powers) < 2**n:
            powers.append(mul(powers[-1], point))

        def value(message):
            total = (0, 0)
            for number, factor in zip(message, powers):
                total = add(total, mul(number, factor))
            return total

        for cols in classes:
            total = (0, 0)
            for (_, other), mix, first, count in zip(matrices, delta, firsts, counts):
                for d in range(count if other == cols else 0):
                    total = add(total, mul(mul(mix, down[d]), column[first + d]))
            require(total == value(v[cols]), "the weighted sum of a column is the sum's code word there")
        if query < 2:
            for (height, cols), w, first, count in zip(matrices, weights, firsts, counts):
                zero = [0] * cols
                for d in range(count):
                    message = []
                    for s in range(beside[cols]):
                        pair = 2 * (d * beside[cols] + s)
                        even, odd = (w[row] if row < height else zero for row in (pair, pair + 1))
                        message += [(re % P, im % P) for re, im in zip(even, odd)]
                    require(value(message) == column[first + d], "a column has the code words of the weights")
    print(f"{len(matrices)} matrices in {rows} rows of 2^{n} numbers, {QUERIES} columns: all as specified")


main()
