"""Runs OpenVINO GenAI for `assay bench engine`: one JSON request a line on standard input, one answer a line on output.

It reads the GGUF file itself and rounds the weights as it sees fit. It cannot be told the tokens of the answer, so it
chooses its own, the most likely ones.
"""

import json
import sys
import time

import numpy
import openvino
import openvino_genai as genai


class Clock(genai.StreamerBase):
    def __init__(self):
        super().__init__()
        self.times = []

    def write(self, tokens):
        now = time.perf_counter()
        self.times += [now] * (len(tokens) if isinstance(tokens, list) else 1)
        return genai.StreamingStatus.RUNNING

    def end(self):
        pass


def main():
    pipeline = None
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            pipeline = genai.LLMPipeline(request["load"], "CPU", INFERENCE_NUM_THREADS=request["threads"])
            answer = {"version": genai.__version__}
        else:
            config = genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = request["tokens"] + 1
            config.do_sample, config.ignore_eos, config.apply_chat_template = False, True, False
            ids = openvino.Tensor(numpy.array([request["prompt"]], dtype=numpy.int64))
            clock = Clock()
            start = time.perf_counter()
            pipeline.generate(genai.TokenizedInputs(ids, openvino.Tensor(numpy.ones_like(ids.data))), config, clock)
            times = clock.times
            answer = {
                "prompt_seconds": [times[0] - start],
                "answer_seconds": [later - earlier for earlier, later in zip(times, times[1:])],
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
