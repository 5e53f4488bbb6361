"""A Llama model in float32, for `assay bench quality`: weights as the file has them, every step in float32.

Requests are lines of JSON on standard input. The answer to a window of tokens is a line of JSON and then the logits of
every position as little-endian float32.
"""

import json
import sys

import numpy as np

import gguf_file


class Model:
    def __init__(self, path):
        file = gguf_file.File(path)
        if file.fields["general.architecture"] != "llama":
            raise SystemExit("the float reference knows the llama architecture only")
        field = lambda name: file.fields["llama." + name]
        self.layers, self.heads = field("block_count"), field("attention.head_count")
        self.kv_heads = field("attention.head_count_kv")
        self.epsilon = np.float32(field("attention.layer_norm_rms_epsilon"))
        self.dim = field("embedding_length") // self.heads
        self.base = field("rope.freq_base")
        self.weights = {name: file.floats(name) for name in file.tensors}
        self.output = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def norm(self, x, name):
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.epsilon) * self.weights[name]

    def rotate(self, x):
        """Rotates neighbouring pairs: x is [heads, tokens, dim]."""
        frequency = self.base ** (-np.arange(0, self.dim, 2) / self.dim)
        angle = np.arange(x.shape[1])[:, None] * frequency
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        even, odd = x[..., ::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    def heads_of(self, x, count):
        return x.reshape(len(x), count, self.dim).transpose(1, 0, 2)

    def logits(self, tokens):
        x = self.weights["token_embd.weight"][tokens]
        future = np.triu(np.full((len(tokens), len(tokens)), -np.inf, dtype=np.float32), 1)
        for layer in range(self.layers):
            w = lambda name: self.weights[f"blk.{layer}.{name}.weight"].T
            h = self.norm(x, f"blk.{layer}.attn_norm.weight")
            q = self.rotate(self.heads_of(h @ w("attn_q"), self.heads))
            k = self.rotate(self.heads_of(h @ w("attn_k"), self.kv_heads))
            v = self.heads_of(h @ w("attn_v"), self.kv_heads)
            k, v = (np.repeat(a, self.heads // self.kv_heads, axis=0) for a in (k, v))
            scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(self.dim)) + future
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            x = x + (scores @ v).transpose(1, 0, 2).reshape(x.shape) @ w("attn_output")
            h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
            gate = h @ w("ffn_gate")
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up"))) @ w("ffn_down")
        return self.norm(x, "output_norm.weight") @ self.output.T


def main():
    model = None
    # The sigmoid of a very negative number divides by infinity, which is what it should do.
    np.seterr(over="ignore")
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            model = Model(request["load"])
            print(json.dumps({"vocabulary": len(model.output)}), flush=True)
            continue
        logits = model.logits(request["tokens"])
        assert logits.dtype == np.float32
        print(json.dumps({"positions": len(logits)}), flush=True)
        sys.stdout.buffer.write(logits.astype("<f4").tobytes())
        sys.stdout.buffer.flush()


main()
