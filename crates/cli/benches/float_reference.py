"""Models in float32, for `assay bench quality`: weights as the file has them, every step in float32. It knows the
architectures llama, qwen2 and gemma3.

Requests are lines of JSON on standard input. The answer to a window of tokens is a line of JSON and then the logits of
every position as little-endian float32, made a few rows at a time.
"""

import json
import sys

import numpy as np

import gguf_file


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x / 2 * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))


class Model:
    def __init__(self, path):
        file = gguf_file.File(path)
        name = file.fields["general.architecture"]
        if name not in ("llama", "qwen2", "gemma3"):
            raise SystemExit(f"the float reference does not know the architecture {name}")
        field = lambda part, default=None: file.fields.get(f"{name}.{part}", default)
        self.layers, self.heads = field("block_count"), field("attention.head_count")
        self.kv_heads = field("attention.head_count_kv")
        self.epsilon = np.float32(field("attention.layer_norm_rms_epsilon"))
        width = field("embedding_length")
        self.dim = field("attention.key_length", width // self.heads)
        self.base = field("rope.freq_base", 10000.0)
        self.gemma, self.neighbours = name == "gemma3", name == "llama"
        self.window = field("attention.sliding_window") if self.gemma else None
        self.scale = np.float32(np.sqrt(width)) if self.gemma else np.float32(1)
        self.weights = {name: file.floats(name) for name in file.tensors}
        self.output = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def norm(self, x, name):
        """The norm of this name, if the model has it."""
        if name not in self.weights:
            return x
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.epsilon) * self.weights[name]

    def rotate(self, x, base):
        """Rotates neighbours or halves: x is [heads, tokens, dim]."""
        frequency = base ** (-np.arange(0, self.dim, 2) / self.dim)
        angle = np.arange(x.shape[1])[:, None] * frequency
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        if self.neighbours:
            a, b = x[..., ::2], x[..., 1::2]
            return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
        a, b = x[..., : self.dim // 2], x[..., self.dim // 2 :]
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def heads_of(self, x, count):
        return x.reshape(len(x), count, self.dim).transpose(1, 0, 2)

    def hidden(self, tokens):
        """What the output matrix is multiplied with, for every position."""
        x = self.weights["token_embd.weight"][tokens] * self.scale
        place = np.arange(len(tokens))
        ago = place[:, None] - place
        for layer in range(self.layers):
            local = self.gemma and layer % 6 != 5
            hidden = (ago < 0) | (ago >= self.window) if local else ago < 0
            part = lambda name: f"blk.{layer}.{name}"
            linear = lambda x, name: x @ self.weights[part(name + ".weight")].T + self.weights.get(
                part(name + ".bias"), np.float32(0)
            )
            h = self.norm(x, part("attn_norm.weight"))
            q, k = self.heads_of(linear(h, "attn_q"), self.heads), self.heads_of(linear(h, "attn_k"), self.kv_heads)
            base = 10000.0 if local else self.base
            q = self.rotate(self.norm(q, part("attn_q_norm.weight")), base)
            k = self.rotate(self.norm(k, part("attn_k_norm.weight")), base)
            v = self.heads_of(linear(h, "attn_v"), self.kv_heads)
            k, v = (np.repeat(a, self.heads // self.kv_heads, axis=0) for a in (k, v))
            scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(self.dim))
            scores[:, hidden] = -np.inf
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed = (scores @ v).transpose(1, 0, 2).reshape(len(x), -1)
            x = x + self.norm(linear(mixed, "attn_output"), part("post_attention_norm.weight"))
            h = self.norm(x, part("ffn_norm.weight"))
            gate = (gelu if self.gemma else silu)(linear(h, "ffn_gate"))
            x = x + self.norm(linear(gate * linear(h, "ffn_up"), "ffn_down"), part("post_ffw_norm.weight"))
        return self.norm(x, "output_norm.weight")


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
        hidden = model.hidden(request["tokens"])
        assert hidden.dtype == np.float32
        print(json.dumps({"positions": len(hidden)}), flush=True)
        for rows in np.array_split(hidden, -(-len(hidden) // 32)):
            sys.stdout.buffer.write((rows @ model.output.T).astype("<f4").tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
