"""Makes what only large models have, in small files. `rows_gpt`: a transformer, as `assay bench proof` makes them, whose table of words is
so large that its rows become the graph's inputs; the file computes it. `wide_norm`: a layer norm whose sum of squares leaves the bounds.
Needs onnx 1.23.2 and onnxruntime 1.32.0.

    python make_large.py
"""

import json
import os
import sys

import numpy as np
import onnxruntime
from onnx import helper, load, numpy_helper

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(FOLDER, "../../../cli/benches"))
from proof_models import assemble, transformer  # noqa: E402

WORDS, WIDTH, CLASSES = 6000, 24, 32

transformer(FOLDER, "rows_gpt", words=WORDS, tokens=16, width=WIDTH, heads=3, layers=2, tied=True)
path = os.path.join(FOLDER, "rows_gpt")
model, random = load(path + ".onnx"), np.random.default_rng(3)
graph = model.graph
normal = lambda name, *shape: numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
graph.initializer.remove(next(one for one in graph.initializer if one.name == "words"))
graph.node.remove(next(node for node in graph.node if node.name == "head"))
# Row 80 a + b is the sum of row a of one small table and row b of another one.
parts = [normal("tens", 75, 1, WIDTH), normal("ones", 1, 80, WIDTH), numpy_helper.from_array(np.array([WORDS, WIDTH]), "square")]
graph.initializer.extend([*parts, normal("head", WIDTH, CLASSES)])
made = [helper.make_node("Add", ["tens", "ones"], ["sums"]), helper.make_node("Reshape", ["sums", "square"], ["words"])]
nodes = [*made, *graph.node]
del graph.node[:]
graph.node.extend(nodes)
graph.output[0].type.tensor_type.shape.dim[-1].dim_value = CLASSES
inputs = np.array(json.load(open(path + ".json"))["inputs"])


def judge(name, model, inputs):
    path = os.path.join(FOLDER, name)
    open(path + ".onnx", "wb").write(model.SerializeToString())
    session = onnxruntime.InferenceSession(path + ".onnx")
    expected = [session.run(None, {"x": row[None]})[0].ravel() for row in inputs]
    rows = [[round(x, 3) for x in row] for row in inputs.reshape(len(inputs), -1).tolist()]
    json.dump({"inputs": rows, "expected": np.round(expected, 5).tolist()}, open(path + ".json", "w"))


judge("rows_gpt", model, inputs.astype(np.int64))
nodes = [helper.make_node("LayerNormalization", ["x", "gain", "offset"], ["norm"], axis=-1),
         helper.make_node("MatMul", ["norm", "matrix"], ["scores"])]
constants = [normal("gain", 64), normal("offset", 64), normal("matrix", 64, 4)]
model = assemble(nodes, constants, [1, 3, 64], scores=(1, 3, 4))
judge("wide_norm", model, np.round(random.normal(size=(24, 3, 64)), 3).astype(np.float32))
