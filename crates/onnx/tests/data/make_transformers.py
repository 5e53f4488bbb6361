"""Makes the transformers that the tests read, and their reference outputs. Needs PyTorch besides what make.py needs; the files in this
folder were made with torch 2.15.0, onnx 1.23.2 and onnxruntime 1.31.1 (onnxruntime is the judge).

    python make_transformers.py
"""

import json
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

warnings.filterwarnings("ignore")
KEPT = 150


class Block(nn.Module):
    """As in GPT-2: attention and a perceptron, each behind a layer norm and added to what comes in."""

    def __init__(self, width, heads, tokens, causal, fused):
        super().__init__()
        self.heads, self.causal, self.fused = heads, causal, fused
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("mask", torch.tril(torch.ones(tokens, tokens)).view(1, 1, tokens, tokens))

    def forward(self, x):
        batch, tokens, width = x.shape
        parts = self.qkv(self.first(x)).split(width, dim=2)
        q, k, v = (part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = (q @ k.transpose(-2, -1)) / (width // self.heads) ** 0.5
            if self.causal:
                scores = scores.masked_fill(self.mask[:, :, :tokens, :tokens] == 0, float("-inf"))
            y = scores.softmax(-1) @ v
        x = x + self.projection(y.transpose(1, 2).reshape(batch, tokens, width))
        gelu = functional.gelu(self.up(self.second(x)), approximate="tanh" if self.fused else "none")
        return x + self.down(gelu)


class Characters(nn.Module):
    """The next character of a text."""

    def __init__(self, words, tokens, width, heads, layers):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads, tokens, True, True) for _ in range(layers))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x)[:, -1])


class Rows(nn.Module):
    """A digit from the rows of its image."""

    def __init__(self, tokens, width, heads):
        super().__init__()
        self.inner, self.places = nn.Linear(8, width), nn.Parameter(torch.randn(tokens, width) * 0.1)
        self.block, self.last, self.head = Block(width, heads, tokens, False, False), nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, rows):
        return self.head(self.last(self.block(self.inner(rows / 16) + self.places)).mean(1))


def train(model, inputs, targets, steps, batch=64):
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        at = torch.randint(len(inputs), (batch,))
        loss = functional.cross_entropy(model(inputs[at]), targets[at])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    right = (model(inputs[-2000:]).argmax(-1) == targets[-2000:]).float().mean()
    print(f"{type(model).__name__}: loss {loss.item():.3f}, right {right.item():.3f}")


class Best(nn.Module):
    """The class with the highest score."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).argmax(-1)


def keep(name, model, inputs, dynamo, opset):
    torch.onnx.export(Best(model), (inputs[:1],), f"{name}.onnx", dynamo=dynamo, opset_version=opset, input_names=["x"],
                      **({"external_data": False} if dynamo else {"dynamic_axes": {"x": {0: "n"}}}))
    session = onnxruntime.InferenceSession(f"{name}.onnx")
    expected = [int(session.run(None, {"x": x[None].numpy()})[0].reshape(-1)[0]) for x in inputs]
    rows = [[float(f"{x:.6g}") for x in row.reshape(-1)] for row in inputs.numpy().astype(np.float64)]
    json.dump({"inputs": rows, "expected": [[e] for e in expected]}, open(f"{name}.json", "w"), separators=(",", ":"))


torch.manual_seed(0)
torch.set_num_threads(1)
text = open("/usr/share/common-licenses/GPL-2").read().lower()
text = " ".join(text.split())
letters = sorted(set(text))
ids = torch.tensor([letters.index(letter) for letter in text])
TOKENS = 16
windows = ids.unfold(0, TOKENS + 1, 1)
model = Characters(len(letters), TOKENS, 32, 4, 2)
train(model, windows[:, :-1], windows[:, -1], 700)
order = torch.randperm(len(windows))[:KEPT]
keep("licence_gpt", model, windows[order, :-1], True, 18)

from sklearn.datasets import load_digits

digits, labels = load_digits(return_X_y=True)
digits, labels = torch.tensor(digits, dtype=torch.float32).view(-1, 8, 8), torch.tensor(labels)
model = Rows(8, 16, 2)
train(model, digits, labels, 400)
order = torch.randperm(len(digits))[:KEPT]
keep("digits_transformer", model, digits[order], False, 14)
