"""Makes the models and reference outputs that the tests read. Needs scikit-learn, skl2onnx, onnx and onnxruntime; the files
in this folder were made with scikit-learn 1.9.1, skl2onnx 1.20.0, onnx 1.23.2 and onnxruntime 1.31.1 (onnxruntime is the judge).

    python make.py
"""

import json
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

warnings.filterwarnings("ignore")
KEPT = 150  # examples of each data set whose inputs and outputs are kept


def keep(name, model, inputs):
    open(f"{name}.onnx", "wb").write(model.SerializeToString())
    session = onnxruntime.InferenceSession(f"{name}.onnx")
    out = np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0]).reshape(len(inputs), -1)
    rows = [[float(f"{x:.6g}") for x in row] for row in inputs.reshape(len(inputs), -1).astype(np.float64)]
    json.dump({"inputs": rows, "expected": out.tolist()}, open(f"{name}.json", "w"), separators=(",", ":"))


def fitted(name, model, data):
    inputs, targets = data(return_X_y=True)
    inputs = inputs.astype(np.float32)
    model.fit(inputs, targets)
    order = np.random.default_rng(0).permutation(len(inputs))[:KEPT]
    # What the JSON file says is what the judge sees.
    kept = np.array([[float(f"{x:.6g}") for x in row] for row in inputs[order].astype(np.float64)], dtype=np.float32)
    keep(name, to_onnx(model, inputs[:1]), kept)


fitted("digits_mlp", MLPClassifier((32, 16), max_iter=80, random_state=0), load_digits)
fitted("cancer_mlp", make_pipeline(StandardScaler(), MLPClassifier((16,), activation="tanh", random_state=0)), load_breast_cancer)
fitted("diabetes_mlp", make_pipeline(MinMaxScaler(), MLPRegressor(hidden_layer_sizes=(24, 12), max_iter=900, random_state=0)), load_diabetes)
fitted("diabetes_linear", LinearRegression(), load_diabetes)
fitted("iris_logistic", make_pipeline(StandardScaler(), LogisticRegression()), load_iris)
fitted("iris_forest", RandomForestClassifier(10, max_depth=5, random_state=0), load_iris)
fitted("cancer_boosting", GradientBoostingClassifier(n_estimators=15, max_depth=3, random_state=0), load_breast_cancer)
fitted("diabetes_boosting", GradientBoostingRegressor(n_estimators=30, max_depth=3, random_state=0), load_diabetes)


def network():
    """Convolutions with every trimming that is supported, on 8x8 digits; the weights are random."""
    random = np.random.default_rng(1)
    constant = lambda name, *shape: numpy_helper.from_array((random.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32), name)
    nodes = [
        helper.make_node("Mul", ["x", "sixteenth"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=2),
        helper.make_node("Add", ["c2", "r1"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0]),
        helper.make_node("Conv", ["p2", "w3"], ["c3"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        helper.make_node("HardSwish", ["c3"], ["h3"]),
        helper.make_node("Transpose", ["h3"], ["t3"], perm=[0, 2, 3, 1]),
        helper.make_node("AveragePool", ["h3"], ["a3"], kernel_shape=[2, 2]),
        helper.make_node("Flatten", ["t3"], ["f3"]),
        helper.make_node("Flatten", ["a3"], ["g3"]),
        helper.make_node("Concat", ["f3", "g3"], ["all"], axis=1),
        helper.make_node("Gemm", ["all", "w4", "b4"], ["hidden"], transB=1),
        helper.make_node("Sigmoid", ["hidden"], ["s4"]),
        helper.make_node("Gemm", ["s4", "w5", "b5"], ["scores"], transB=1),
    ]
    constants = [
        numpy_helper.from_array(np.float32(1 / 16), "sixteenth"),
        constant("w1", 4, 1, 3, 3), constant("b1", 4),
        numpy_helper.from_array(np.array([1, 0.5, 2, 1], np.float32), "gamma"), constant("beta", 4), constant("mean", 4),
        numpy_helper.from_array(np.array([1, 0.25, 2, 1], np.float32), "variance"),
        constant("w2", 4, 2, 3, 3), constant("b2", 4), constant("w3", 6, 4, 2, 2),
        constant("w4", 12, 30), constant("b4", 12), constant("w5", 10, 12), constant("b5", 10),
    ]
    info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "cnn", [info("x", ["n", 1, 8, 8])], [info("scores", ["n", 10])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(model)
    return model


keep("digits_cnn", network(), load_digits(return_X_y=True)[0][:KEPT].reshape(-1, 1, 8, 8).astype(np.float32))
