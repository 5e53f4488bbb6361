"""The models of `assay bench proof`, and EZKL on them. One request and one answer, a line of JSON each, on standard input and output."""

import json
import os
import resource
import sys
import time
import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

warnings.filterwarnings("ignore")
BATCH = 1024


def images(side):
    """The digits of scikit-learn, enlarged to side x side, as bytes."""
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    at = np.arange(side) * 8 // side
    big = digits.reshape(-1, 8, 8)[:, at][:, :, at]
    return np.round(big * (255 / 16)).astype(np.float32), labels


def write(folder, name, model, inputs):
    path = os.path.join(folder, name)
    open(path + ".onnx", "wb").write(model.SerializeToString())
    json.dump({"inputs": inputs.reshape(len(inputs), -1).tolist()}, open(path + ".json", "w"))


def perceptron(folder):
    """MLP 784-128-64-10, trained, with its scaling left out of the file: the same file for everyone."""
    from sklearn.neural_network import MLPClassifier

    pictures, labels = images(28)
    inputs = pictures.reshape(-1, 784)
    fitted = MLPClassifier((128, 64), max_iter=15, random_state=0).fit(inputs / 255, labels)
    nodes, constants, last = [], [], "x"
    for layer, (matrix, bias) in enumerate(zip(fitted.coefs_, fitted.intercepts_)):
        matrix = matrix.T / 255 if layer == 0 else matrix.T
        constants += [numpy_helper.from_array(a.astype(np.float32), f"{k}{layer}") for k, a in (("w", matrix), ("b", bias))]
        out = f"h{layer}" if layer < 2 else "scores"
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [out], transB=1))
        last = out
        if layer < 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{layer}"]))
            last = f"r{layer}"
    write(folder, "mlp", assemble(nodes, constants, [1, 784]), inputs[:BATCH])


def lenet(folder):
    """LeNet-5 on 28x28 images, with random weights: only its shapes matter here."""
    random = np.random.default_rng(1)
    constant = lambda name, *shape: numpy_helper.from_array(
        (random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32), name)
    zeros = lambda name, size: numpy_helper.from_array(np.zeros(size, np.float32), name)
    conv = lambda x, i, pad: helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], kernel_shape=[5, 5], pads=[pad] * 4,
                                             strides=[1, 1])  # EZKL does not know the default
    relu = lambda x, y: helper.make_node("Relu", [x], [y])
    pool = lambda x, y: helper.make_node("MaxPool", [x], [y], kernel_shape=[2, 2], strides=[2, 2])
    gemm = lambda x, i, y: helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [y], transB=1)
    nodes = [
        conv("x", 0, 2), relu("c0", "r0"), pool("r0", "p0"),
        conv("p0", 1, 0), relu("c1", "r1"), pool("r1", "p1"),
        helper.make_node("Flatten", ["p1"], ["f"]),
        gemm("f", 2, "h2"), relu("h2", "r2"), gemm("r2", 3, "h3"), relu("h3", "r3"), gemm("r3", 4, "scores"),
    ]
    shapes = [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    constants = [constant(f"w{i}", *shape) for i, shape in enumerate(shapes)]
    constants += [zeros(f"b{i}", shape[0]) for i, shape in enumerate(shapes)]
    pictures, _ = images(28)
    write(folder, "lenet", assemble(nodes, constants, [1, 1, 28, 28]), pictures[:BATCH] / 255)


def assemble(nodes, constants, shape, kind=TensorProto.FLOAT, scores=(1, 10)):
    graph = helper.make_graph(nodes, "model", [helper.make_tensor_value_info("x", kind, shape)],
                              [helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def gpt(folder):
    """A transformer of GPT-2's kind with 0.26M parameters: 4 layers of 72 with 4 heads, 96 words, 64 tokens, all logits."""
    transformer(folder, "gpt", words=96, tokens=64, width=72, heads=4, layers=4)


def gpt2(folder):
    """GPT-2's sizes, 124M parameters: 12 layers of 768 with 12 heads, 50,257 words, of which the last of 64 tokens gets logits. The
    table of words is the head's matrix as well."""
    transformer(folder, "gpt2", words=50257, tokens=64, width=768, heads=12, layers=12, tied=True)


def transformer(folder, file, words, tokens, width, heads, layers, tied=False):
    """A transformer whose weights are random, since only its shapes matter here. The nodes are those that PyTorch exports."""
    random = np.random.default_rng(2)
    nodes, constants = [], []

    def constant(name, value):
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    normal = lambda name, *shape, scale=None: constant(
        name, (random.normal(size=shape) * (scale or 1 / np.sqrt(shape[0]))).astype(np.float32))
    small = lambda name, size: normal(name, size, scale=0.02)

    def node(operator, inputs, output, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def linear(x, name, rows, columns, scale=None):
        product = node("MatMul", [x, normal(f"{name}.w", columns, rows, scale=scale)], f"{name}.product")
        return node("Add", [product, small(f"{name}.b", rows)], name)

    def norm(x, name):
        weights = [constant(f"{name}.w", (1 + 0.1 * random.normal(size=width)).astype(np.float32)), small(f"{name}.b", width)]
        return node("LayerNormalization", [x, *weights], name, axis=-1, epsilon=1e-5)

    # As GPT-2 has them: what a layer adds is smaller the more layers there are.
    added = lambda columns: 1 / np.sqrt(2 * layers * columns) if tied else None
    table = normal("words", words, width, scale=0.14 if tied else 0.7)
    x = node("Add", [node("Gather", [table, "x"], "embedding"), normal("places", tokens, width, scale=0.1 if tied else 0.3)], "start")
    by_head = constant("by_head", np.array([1, tokens, heads, width // heads]))
    together = constant("together", np.array([1, tokens, width]))
    thirds = constant("thirds", np.array([width] * 3))
    mask = constant("mask", np.triu(np.ones((1, 1, tokens, tokens), bool), 1))
    never, root = constant("never", np.float32(-1e4)), constant("root", np.float32(np.sqrt(width // heads)))
    half, one, root2 = (constant(n, np.float32(v)) for n, v in (("half", 0.5), ("one", 1), ("root2", np.sqrt(2))))
    for layer in range(layers):
        name = lambda part: f"{layer}.{part}"
        qkv = linear(norm(x, name("first")), name("qkv"), 3 * width, width)
        parts = [name(part) for part in "qkv"]
        nodes.append(helper.make_node("Split", [qkv, thirds], parts, axis=2))
        split = [node("Reshape", [part, by_head], f"{part}.reshaped") for part in parts]
        turn = lambda x, order: node("Transpose", [x], f"{x}.turned", perm=order)
        q, k, v = turn(split[0], [0, 2, 1, 3]), turn(split[1], [0, 2, 3, 1]), turn(split[2], [0, 2, 1, 3])
        scores = node("Div", [node("MatMul", [q, k], name("products")), root], name("scores"))
        masked = node("Where", [mask, never, scores], name("masked"))
        mixed = node("MatMul", [node("Softmax", [masked], name("softmax"), axis=-1), v], name("mixed"))
        flat = node("Reshape", [turn(mixed, [0, 2, 1, 3]), together], name("flat"))
        x = node("Add", [x, linear(flat, name("projection"), width, width, added(width))], name("middle"))
        up = linear(norm(x, name("second")), name("up"), 4 * width, width)
        erf = node("Erf", [node("Div", [up, root2], name("scaled"))], name("erf"))
        gate = node("Mul", [half, node("Add", [erf, one], name("raised"))], name("gate"))
        x = node("Add", [x, linear(node("Mul", [up, gate], name("gelu")), name("down"), width, 4 * width, added(4 * width))],
                 name("end"))
    if tied:
        bounds = [constant(f"last.{part}", np.array([value])) for part, value in (("from", -1), ("to", 2**31), ("axis", 1))]
        x = node("Slice", [x, *bounds], "last.token")
    x = norm(x, "last")
    head = node("Transpose", [table], "head", perm=[1, 0]) if tied else normal("head", width, words)
    node("MatMul", [x, head], "scores")
    inputs = random.integers(0, words, size=(32, tokens))
    shape = (1, 1 if tied else tokens, words)
    write(folder, file, assemble(nodes, constants, [1, tokens], TensorProto.INT64, shape), inputs)


def forest(folder):
    """100 trees of depth 6."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    pictures, labels = images(8)
    inputs = pictures.reshape(-1, 64)
    fitted = RandomForestClassifier(100, max_depth=6, random_state=0).fit(inputs, labels)
    write(folder, "forest", to_onnx(fitted, inputs[:1]), inputs[:BATCH])


def peer(folder, name):
    """EZKL on one example: seconds and bytes."""
    import ezkl

    path = lambda suffix: os.path.join(folder, f"{name}.ezkl.{suffix}")
    model = os.path.join(folder, f"{name}.onnx")
    rows = json.load(open(os.path.join(folder, f"{name}.json")))["inputs"]
    json.dump({"input_data": [rows[0]]}, open(path("data"), "w"))
    timed = {}

    def step(stage, call):
        started = time.perf_counter()
        assert call() is not False, stage
        timed[stage] = timed.get(stage, 0) + time.perf_counter() - started

    step("setup", lambda: ezkl.gen_settings(model, path("settings")))
    step("setup", lambda: ezkl.calibrate_settings(path("data"), model, path("settings"), "resources"))
    step("setup", lambda: ezkl.compile_circuit(model, path("circuit"), path("settings")))
    # A reference string of one's own: the public one would have to be downloaded. Making it is not counted.
    ezkl.gen_srs(path("srs"), json.load(open(path("settings")))["run_args"]["logrows"])
    step("setup", lambda: ezkl.setup(path("circuit"), path("vk"), path("pk"), path("srs")))
    step("prove", lambda: ezkl.gen_witness(path("data"), path("circuit"), path("witness")))
    step("prove", lambda: ezkl.prove(path("witness"), path("circuit"), path("pk"), path("proof"), path("srs")))
    step("verify", lambda: ezkl.verify(path("proof"), path("settings"), path("vk"), path("srs")))
    proof = json.load(open(path("proof")))
    return {
        **timed,
        "proof_bytes": len(proof["hex_proof"].removeprefix("0x")) // 2,
        "key_bytes": os.path.getsize(path("pk")),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "version": ezkl.__version__,
    }


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        folder = request["folder"]
        if request["do"] == "models":
            for make in (perceptron, lenet, forest, gpt):
                make(folder)
            answer = {}
        elif request["do"] == "gpt2":
            gpt2(folder)
            answer = {}
        else:
            # EZKL prints to standard output, which is for answers.
            kept = os.dup(1)
            os.dup2(2, 1)
            answer = peer(folder, request["name"])
            os.dup2(kept, 1)
        print(json.dumps(answer), flush=True)
