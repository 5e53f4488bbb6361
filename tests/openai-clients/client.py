"""The official Python client against an Assay gateway, whose address is in ASSAY_URL."""

import json
import os
import pathlib
import subprocess
import tempfile

import openai
from openai import OpenAI
from pydantic import BaseModel

MODEL = "smollm2-135m-instruct"
ENCODER = "all-minilm-l6-v2"
URL = os.environ["ASSAY_URL"]
LIMITED_URL = os.environ["ASSAY_LIMITED_URL"]
KEY = os.environ["ASSAY_LIMITED_KEY"]

client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=300)


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


def chat(text: str = "What is the capital of France?", **more):
    more = {"model": MODEL, "messages": user(text), "max_tokens": 24, "temperature": 0, **more}
    return client.chat.completions.create(**more)


def assay(answer) -> dict:
    """The receipt's place in an answer; everything in it that a caller relies on is there."""
    found = answer.model_extra["assay"]
    assert found["state"] in ("signed", "pending", "replayed"), found
    assert found["receipt_hash"].startswith("0x") and len(found["receipt_hash"]) == 66
    assert found["bundle_url"] == f"/assay/receipts/{found['request_id']}"
    return found


def refused(kind, code, call, *arguments, **more):
    try:
        call(*arguments, **more)
    except kind as error:
        assert type(error) is kind, error
        assert error.code == code, (error.code, error.body)
        assert error.body["message"], error.body
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    refused(openai.NotFoundError, "model_not_found", client.models.retrieve, "gpt-9")


def plain_chat():
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=user("What is the capital of France?"), max_tokens=24, temperature=0
    )
    answer = raw.parse()
    choice = answer.choices[0]
    assert "Paris" in choice.message.content, choice
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    found = assay(answer)
    assert answer.id == found["request_id"] == raw.headers["x-request-id"] == answer._request_id
    assert raw.headers["x-assay-receipt"] == found["receipt_hash"]
    assert raw.headers["x-assay-bundle"] == found["bundle_url"]
    # The receipt passes the product's own check, offline.
    bundle = client.get(URL + found["bundle_url"], cast_to=object)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "receipt.json"
        path.write_text(json.dumps(bundle))
        subprocess.run([os.environ["ASSAY"], "verify", str(path)], check=True, stdout=subprocess.DEVNULL)
        bundle["output"]["text"] += "!"
        path.write_text(json.dumps(bundle))
        done = subprocess.run([os.environ["ASSAY"], "verify", str(path)], capture_output=True)
        assert done.returncode != 0, "a changed answer must not pass"


def streams_equal_answers():
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 4, "it streams"
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert usage == [whole.usage] and chunks[-1].choices == []
    finished = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert [chunk.choices[0].finish_reason for chunk in finished] == [whole.choices[0].finish_reason]
    assay(finished[0])
    assert len({chunk.id for chunk in chunks}) == 1
    # The client's own helper puts the pieces together.
    with client.chat.completions.stream(
        model=MODEL, messages=user("What is the capital of France?"), max_tokens=24, temperature=0
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == text


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 24}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def tools():
    question = "What is the weather in Paris?"
    for choice in ({"type": "function", "function": {"name": "get_weather"}}, "required"):
        answer = chat(question, tools=[TOOL], tool_choice=choice, max_tokens=96)
        assert answer.choices[0].finish_reason == "tool_calls", answer
        call = answer.choices[0].message.tool_calls[0]
        assert call.type == "function" and call.function.name == "get_weather" and call.id
        assert list(json.loads(call.function.arguments)) == ["city"]
    chunks = chat(question, tools=[TOOL], tool_choice="required", max_tokens=96, stream=True)
    calls = {}
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or []:
            found = calls.setdefault(delta.index, ["", "", ""])
            for place, piece in enumerate((delta.id, delta.function.name, delta.function.arguments)):
                found[place] += piece or ""
    whole = [[call.id, call.function.name, call.function.arguments] for call in answer.choices[0].message.tool_calls]
    assert list(calls.values()) == whole
    # The tool's answer goes back as the client sends it.
    messages = user(question)
    messages.append(answer.choices[0].message)
    for call in answer.choices[0].message.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "18 degrees"})
    final = chat(messages=messages, tools=[TOOL], tool_choice="none")
    assert final.choices[0].message.content and not final.choices[0].message.tool_calls
    assert chat(question, tools=[TOOL], tool_choice="none").choices[0].finish_reason != "tool_calls"


class Country(BaseModel):
    capital: str
    on_an_island: bool


SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 20}, "on_an_island": {"type": "boolean"}},
    "required": ["capital", "on_an_island"],
    "additionalProperties": False,
}


def structured_output():
    form = {"type": "json_schema", "json_schema": {"name": "country", "strict": True, "schema": SCHEMA}}
    answer = chat("Describe France.", response_format=form, max_tokens=64)
    found = Country.model_validate_json(answer.choices[0].message.content)
    assert isinstance(found.on_an_island, bool)
    # By a Pydantic class, as the client translates it.
    parsed = client.chat.completions.parse(
        model=MODEL, messages=user("Describe France."), response_format=Country, max_tokens=200, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Country)
    answer = chat("Give me JSON.", response_format={"type": "json_object"}, max_tokens=200)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def logprobs():
    answer = chat(logprobs=True, top_logprobs=3, max_tokens=8)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    assert b"".join(bytes(entry.bytes) for entry in content).decode().startswith(answer.choices[0].message.content)
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.token == entry.top_logprobs[0].token, "greedy takes the likeliest"


def choices_seeds_and_stops():
    answer = chat("Tell me a story.", n=2, temperature=1, seed=5)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1] and texts[0] != texts[1]
    # The second choice has the next seed.
    for seed, text in ((5, texts[0]), (5, texts[0]), (6, texts[1])):
        assert chat("Tell me a story.", temperature=1, seed=seed).choices[0].message.content == text
    text = chat().choices[0].message.content
    cut = chat(stop=[text[8:11]])
    assert cut.choices[0].message.content == text[: text.index(text[8:11])]
    assert cut.choices[0].finish_reason == "stop"
    assert chat(max_tokens=3).choices[0].finish_reason == "length"
    assert chat(max_tokens=openai.omit, max_completion_tokens=3).usage.completion_tokens == 3


def completions():
    more = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    answer = client.completions.create(**more, logprobs=2)
    assert "Paris" in answer.choices[0].text and answer.usage.completion_tokens <= 8
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens
    assay(answer)
    chunks = list(client.completions.create(**more, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    several = client.completions.create(**{**more, "prompt": ["One", "Two"]})
    assert [choice.index for choice in several.choices] == [0, 1]


def responses():
    more = {"model": MODEL, "input": "What is the capital of France?", "max_output_tokens": 24, "temperature": 0}
    answer = client.responses.create(**more)
    assert "Paris" in answer.output_text and answer.status in ("completed", "incomplete")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assay(answer)
    events = list(client.responses.create(**more, stream=True))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == answer.output_text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(**more) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == deltas
    parsed = client.responses.parse(**{**more, "max_output_tokens": 200}, text_format=Country)
    assert isinstance(parsed.output_parsed, Country)
    tool = {"type": "function", **TOOL["function"], "strict": True}
    called = client.responses.create(**{**more, "max_output_tokens": 96}, tools=[tool], tool_choice="required")
    assert called.output[0].type == "function_call" and called.output[0].name == "get_weather"
    turns = [{"role": "user", "content": "Weather?"}, *called.output]
    turns.append({"type": "function_call_output", "call_id": called.output[0].call_id, "output": "18 degrees"})
    assert client.responses.create(**{**more, "input": turns}).output_text


def verification():
    for moment in ("before_first_token", "before_end"):
        answer = chat(extra_body={"assay": {"level": "replayed", "moment": moment}})
        found = assay(answer)
        assert found["state"] == found["level"] == "replayed", found
        assert found["audit"]["verdict"] == "agrees" and found["audit"]["auditor"] != found["worker"]


def embeddings():
    # What its publisher's documentation prints for these sentences.
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    published = [1, 0.695, 0.943, 0.257]
    level = {"assay": {"level": "replayed"}}
    answer = client.embeddings.create(model=ENCODER, input=texts, extra_body=level)  # base64, decoded by the client
    plain = client.embeddings.create(model=ENCODER, input=texts, encoding_format="float")
    assert [entry.index for entry in answer.data] == [0, 1, 2, 3] and answer.usage.total_tokens > 20
    assert [entry.embedding for entry in answer.data] == [entry.embedding for entry in plain.data]
    first = answer.data[0].embedding
    assert len(first) == 384
    for entry, expected in zip(answer.data, published):
        cosine = sum(a * b for a, b in zip(first, entry.embedding))
        assert abs(cosine - expected) < 0.01, (cosine, expected)
        assert assay(entry)["state"] == "replayed" and assay(entry)["audit"]["verdict"] == "agrees"
    receipts = {assay(entry)["receipt_hash"] for entry in answer.data}
    assert len(receipts) == 4 and assay(answer)["receipt_hash"] in receipts
    one = client.embeddings.create(model=ENCODER, input=texts[0], dimensions=384)
    assert one.data[0].embedding == first
    refused(openai.BadRequestError, "unsupported_parameter", client.embeddings.create, model=ENCODER, input="x", dimensions=8)
    refused(openai.BadRequestError, "context_length_exceeded", client.embeddings.create, model=ENCODER, input="word " * 600)


def errors():
    embeddings = refused(openai.BadRequestError, "unsupported_parameter", client.embeddings.create, model=MODEL, input="x")
    assert embeddings.param == "model" and embeddings.type == "invalid_request_error"
    assert refused(openai.NotFoundError, "model_not_found", chat, model="gpt-9").param == "model"
    refused(openai.BadRequestError, "context_length_exceeded", chat, "word " * 20_000)
    wrong = refused(openai.BadRequestError, "invalid_type", chat, extra_body={"temperature": "hot"})
    assert wrong.param == "temperature", wrong
    stream = refused(openai.BadRequestError, "context_length_exceeded", chat, "word " * 20_000, stream=True)
    assert stream.request_id
    stranger = OpenAI(base_url=f"{LIMITED_URL}/v1", api_key="sk-wrong", max_retries=0)
    refused(openai.AuthenticationError, "invalid_api_key", stranger.models.list)
    known = OpenAI(base_url=f"{LIMITED_URL}/v1", api_key=KEY, max_retries=0, timeout=300)
    assert known.models.list().data
    ask = {"model": MODEL, "messages": user("Hi"), "max_tokens": 1}
    for _ in range(2):
        assert known.chat.completions.create(**ask).choices
    for _ in range(2):
        refused(openai.NotFoundError, "model_not_found", known.chat.completions.create, **{**ask, "model": "x"})
    limited = refused(openai.RateLimitError, "rate_limit_exceeded", known.chat.completions.create, **ask)
    assert int(limited.response.headers["retry-after"]) > 0


for test in (
    models,
    plain_chat,
    streams_equal_answers,
    tools,
    structured_output,
    logprobs,
    choices_seeds_and_stops,
    completions,
    responses,
    verification,
    embeddings,
    errors,
):
    test()
    print(f"python: {test.__name__} passed", flush=True)
