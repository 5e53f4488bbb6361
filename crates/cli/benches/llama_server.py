"""Runs llama.cpp's server for `assay bench serve`: one line of JSON on standard input starts it, one line on output says
where it listens, and it ends when the input does."""

import json
import os
import sys

import xllamacpp


def main():
    request = json.loads(sys.stdin.readline())
    # What the library prints must not get between the lines of JSON.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_parallel = request["callers"]
    params.n_ctx = request["callers"] * request["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = -1
    params.log_json = False
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), file=answers, flush=True)
    sys.stdin.read()


main()
