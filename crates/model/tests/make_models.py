"""Writes data/models.json: the ids that llama.cpp gives the texts of data/tokenizer.json, for whole published models.

    python make_models.py NAME=MODEL.gguf ...        # with xllamacpp and numpy installed

Qwen's published tokenizer normalises texts to NFC, which llama.cpp does not, so texts in another form are left out (null)
for it.
"""

import ctypes as c
import json
import os
import sys
import unicodedata

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "cli", "benches"))
import llama_cpp


def main(models):
    lib = llama_cpp.library()
    lib.llama_model_get_vocab.restype, lib.llama_model_get_vocab.argtypes = c.c_void_p, [c.c_void_p]
    lib.llama_tokenize.restype = c.c_int32
    lib.llama_tokenize.argtypes = [c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool]
    texts = json.load(open(os.path.join(HERE, "data", "tokenizer.json")))["texts"]
    result = {}
    for name, path in (model.split("=", 1) for model in models):
        model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        vocabulary = lib.llama_model_get_vocab(model)

        def ids(text, control):
            if name.startswith("qwen") and unicodedata.normalize("NFC", text) != text:
                return None
            data, room = text.encode(), (c.c_int32 * (4 * len(text) + 16))()
            count = lib.llama_tokenize(vocabulary, data, len(data), room, len(room), False, control)
            assert count >= 0
            return list(room[:count])

        result[name] = {"control": [ids(x, True) for x in texts], "plain": [ids(x, False) for x in texts]}
    with open(os.path.join(HERE, "data", "models.json"), "w") as out:
        json.dump(result, out, separators=(",", ":"))
        out.write("\n")


main(sys.argv[1:])
