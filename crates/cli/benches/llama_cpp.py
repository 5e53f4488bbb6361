"""Runs llama.cpp for `assay bench engine`: one JSON request a line on standard input, one answer a line on output.

The library inside the package `xllamacpp` is called through its C interface, so that only its evaluation is timed and
it gets exactly the token ids that Assay gets.
"""

import ctypes as c
import glob
import json
import os
import sys
import time

import gguf_file

u32, i32, pointer = c.c_uint32, c.c_int32, c.c_void_p


class ModelParams(c.Structure):
    """Only passed on as the library fills it in; no smaller than the library's own."""

    _fields_ = [("rest", c.c_uint64 * 32)]


class ContextParams(c.Structure):
    """As above; what is set here has been at the start of it in every version."""

    _fields_ = [("n_ctx", u32), ("n_batch", u32), ("n_ubatch", u32), ("rest", u32 * 125)]


class Batch(c.Structure):
    _fields_ = [("n_tokens", i32), ("token", pointer), ("embd", pointer), ("pos", pointer)]
    _fields_ += [("n_seq_id", pointer), ("seq_id", pointer), ("logits", pointer)]


def library():
    import xllamacpp

    (path,) = glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "xllamacpp*.so"))
    lib = c.CDLL(path)
    signatures = {
        "llama_log_set": (None, [pointer, pointer]),
        "llama_model_default_params": (ModelParams, []),
        "llama_context_default_params": (ContextParams, []),
        "llama_model_load_from_file": (pointer, [c.c_char_p, ModelParams]),
        "llama_init_from_model": (pointer, [pointer, ContextParams]),
        "llama_n_ctx": (u32, [pointer]),
        "llama_set_n_threads": (None, [pointer, i32, i32]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, c.c_bool]),
        "llama_batch_get_one": (Batch, [pointer, i32]),
        "llama_decode": (i32, [pointer, Batch]),
        "llama_synchronize": (None, [pointer]),
        "llama_get_logits_ith": (c.POINTER(c.c_float), [pointer, i32]),
        "llama_print_system_info": (c.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Engine:
    """One model and one context, whose cache is emptied before each round."""

    def __init__(self, lib, path, threads, tokens):
        self.lib = lib
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = tokens
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context or not tokens <= lib.llama_n_ctx(self.context) < tokens + 512:
            raise SystemExit("llama.cpp did not take the settings of its context")
        lib.llama_set_n_threads(self.context, threads, threads)

    def decode(self, tokens):
        """Runs some tokens, and waits for the logits of the last."""
        ids = (i32 * len(tokens))(*tokens)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(c.cast(ids, pointer), len(tokens))):
            raise SystemExit("llama.cpp cannot evaluate a batch")
        self.lib.llama_synchronize(self.context)
        return self.lib.llama_get_logits_ith(self.context, -1)

    def round(self, prompt, answer):
        """Seconds to run the prompt, and seconds for each token of the answer."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        start = time.perf_counter()
        self.decode(prompt)
        times = [time.perf_counter()]
        for token in answer:
            self.decode([token])
            times.append(time.perf_counter())
        return times[0] - start, [later - earlier for earlier, later in zip(times, times[1:])]


def main():
    lib = library()
    quiet = c.CFUNCTYPE(None, c.c_int, c.c_char_p, pointer)(lambda level, text, data: None)
    lib.llama_log_set(c.cast(quiet, pointer), None)
    engines = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "quantise" in request:
            gguf_file.write_q8_0(request["quantise"], request["into"])
            answer = {}
        elif "load" in request:
            engines[request["name"]] = Engine(lib, request["load"], request["threads"], request["tokens"])
            answer = {"features": lib.llama_print_system_info().decode().strip()}
        else:
            prompt, steps = engines[request["run"]].round(request["prompt"], request["answer"])
            answer = {"prompt_seconds": [prompt], "answer_seconds": steps}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
