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
    conv = lambda x, i, pad: helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], kernel_shape=[5, 5], pads=[pad] * 4)
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


def assemble(nodes, constants, shape):
    info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "model", [info("x", shape)], [info("scores", [1, 10])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


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


for line in sys.stdin:
    request = json.loads(line)
    folder = request["folder"]
    if request["do"] == "models":
        for make in (perceptron, lenet, forest):
            make(folder)
        answer = {}
    else:
        # EZKL prints to standard output, which is for answers.
        kept = os.dup(1)
        os.dup2(2, 1)
        answer = peer(folder, request["name"])
        os.dup2(kept, 1)
    print(json.dumps(answer), flush=True)
