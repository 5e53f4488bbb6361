"""Writes data/families.json: logits of llama.cpp for the tiny model of each architecture. With --check, compares instead.

    ASSAY_FAMILIES=/tmp/families cargo test -p assay-engine --test families write_models -- --ignored
    python crates/engine/tests/make_families.py /tmp/families        # with numpy and xllamacpp installed

The models are float32 files. llama.cpp does not apply the window of Phi 3, so that is compared on a short prompt only.
"""

import glob
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "cli", "benches"))
import llama_cpp


PATH = os.path.join(HERE, "data", "families.json")


def main(folder, check=False):
    lib = llama_cpp.library()
    prompt = json.load(open(os.path.join(folder, "prompt.json")))
    answers = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.gguf"))):
        name = os.path.basename(path)[:-5]
        long = name.endswith("Long")
        engine = llama_cpp.Engine(lib, path, 1, 8448 if long else 256)
        answers[name] = {}
        for length in [len(prompt)] if long else [20] if name == "Phi3" else [20, 80]:
            lib.llama_memory_clear(lib.llama_get_memory(engine.context), True)
            for start in range(0, length, 512):
                logits = engine.decode(prompt[start : min(start + 512, length)])
            answers[name][length] = [round(logits[i], 5) for i in range(267)]
    if check:
        return compare(answers, json.load(open(PATH)))
    with open(PATH, "w") as out:
        json.dump(answers, out, separators=(",", ":"))
        out.write("\n")


def compare(made, kept):
    """Processors round floats differently, but far less than this."""
    assert made.keys() == kept.keys(), (made.keys(), kept.keys())
    for name, lengths in kept.items():
        for length, logits in lengths.items():
            far = max(abs(a - b) for a, b in zip(made[name][int(length)], logits, strict=True))
            assert far < 2e-3 * (max(logits) - min(logits)), f"{name}, {length} tokens: off by {far}"
    print(f"{len(kept)} architectures as kept")


main(sys.argv[1], "--check" in sys.argv)
