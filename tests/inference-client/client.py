"""Triton's official client against a gateway that serves the models of `models()` in crates/gateway/tests/gateway.rs:

    python client.py 127.0.0.1:8600
"""

import base64
import hashlib
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("scores")
assert not client.is_model_ready("nothing")
assert client.get_server_metadata()["name"] == "assay"
about = client.get_model_metadata("scores")
assert about["inputs"][0]["shape"] == [-1, 2], about

rows = np.array([[2.0, 1.0], [1.0, 3.0]])
expected = [[2.0, 1.0, 2.3], [1.0, 3.0, 3.0]]
for kind, name in ((np.float32, "FP32"), (np.float64, "FP64"), (np.int32, "INT32")):
    for binary in (True, False):
        tensor = triton.InferInput("input", [2, 2], name)
        tensor.set_data_from_numpy(rows.astype(kind), binary_data=binary)
        # The client names no type of its own; without binary tensors the gateway wants one.
        headers = None if binary else {"Content-Type": "application/json"}
        answer = client.infer("scores", [tensor], headers=headers)
        assert np.allclose(answer.as_numpy("output"), expected), answer.as_numpy("output")
        assert list(answer.as_numpy("label")) == ["both", "right"], answer.as_numpy("label")

answer = client.infer("scores", [tensor], headers=headers, parameters={"assay_level": "proved"}, request_id="1")
response = answer.get_response()
proof = base64.b64decode(response["parameters"]["assay_proof"])
assert response["id"] == "1" and proof.startswith(b"ASSAYPF")
assert response["parameters"]["assay_proof_sha256"] == "0x" + hashlib.sha256(proof).hexdigest()

for wrong, shape in (("nothing", [2, 2]), ("scores", [1, 4])):
    tensor = triton.InferInput("input", shape, "FP64")
    tensor.set_data_from_numpy(rows.reshape(shape))
    try:
        client.infer(wrong, [tensor])
    except InferenceServerException as error:
        assert error.message(), error
    else:
        raise AssertionError("a wrong request was answered")
print("Triton's client agrees")
