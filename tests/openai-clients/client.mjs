// The official JavaScript client against an Assay gateway, whose address is in ASSAY_URL.

import assert from "node:assert/strict";
import OpenAI from "openai";

const MODEL = "smollm2-135m-instruct";
const { ASSAY_URL, ASSAY_LIMITED_URL, ASSAY_LIMITED_KEY } = process.env;
const client = new OpenAI({ baseURL: `${ASSAY_URL}/v1`, apiKey: "none", maxRetries: 0, timeout: 300_000 });

const user = (content) => [{ role: "user", content }];
const request = (more = {}) => ({
  model: MODEL,
  messages: user("What is the capital of France?"),
  max_tokens: 24,
  temperature: 0,
  ...more,
});
const chat = (more) => client.chat.completions.create(request(more));

/** The receipt's place in an answer. */
function assay(answer) {
  assert.match(answer.assay.receipt_hash, /^0x[0-9a-f]{64}$/);
  assert.match(answer.assay.state, /^(signed|pending|replayed)$/);
  return answer.assay;
}

async function refused(kind, code, promise) {
  const error = await promise.then(
    () => assert.fail(`${kind.name} was expected`),
    (error) => error,
  );
  assert.equal(error.constructor, kind, String(error));
  assert.equal(error.code, code);
  return error;
}

const tool = {
  name: "get_weather",
  description: "Current weather of a city",
  parameters: {
    type: "object",
    properties: { city: { type: "string", maxLength: 24 } },
    required: ["city"],
    additionalProperties: false,
  },
};

const schema = {
  type: "object",
  properties: { capital: { type: "string", maxLength: 20 }, on_an_island: { type: "boolean" } },
  required: ["capital", "on_an_island"],
  additionalProperties: false,
};

const tests = {
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert(names.includes(MODEL));
    assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  },

  async chat() {
    const { data, response } = await client.chat.completions.create(request()).withResponse();
    assert.match(data.choices[0].message.content, /Paris/);
    const { prompt_tokens, completion_tokens, total_tokens } = data.usage;
    assert.equal(prompt_tokens + completion_tokens, total_tokens);
    const found = assay(data);
    assert.equal(response.headers.get("x-assay-receipt"), found.receipt_hash);
    assert.equal(data._request_id, found.request_id);
    const bundle = await client.get(ASSAY_URL + found.bundle_url);
    assert.equal(bundle.output.text, data.choices[0].message.content);
  },

  async streams() {
    const whole = await chat();
    let text = "";
    let usage, receipt;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
      receipt = chunk.assay ?? receipt;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.deepEqual(usage, whole.usage);
    assay({ assay: receipt });
    const helper = client.chat.completions.stream(request());
    assert.equal(await helper.finalContent(), text);
  },

  async abort() {
    const stream = await chat({ stream: true, max_tokens: 400 });
    for await (const _ of stream) break; // leaves the loop and hangs up
    assert(stream.controller.signal.aborted);
  },

  async tools() {
    const tools = [{ type: "function", function: tool }];
    const answer = await chat({ messages: user("Weather in Paris?"), tools, tool_choice: "required", max_tokens: 96 });
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city"]);
    const messages = [
      ...user("Weather in Paris?"),
      answer.choices[0].message,
      ...answer.choices[0].message.tool_calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "18 degrees" })),
    ];
    assert((await chat({ messages, tools, tool_choice: "none" })).choices[0].message.content);
  },

  async structuredOutput() {
    const response_format = { type: "json_schema", json_schema: { name: "country", strict: true, schema } };
    const answer = await chat({ messages: user("Describe France."), response_format, max_tokens: 64 });
    const found = JSON.parse(answer.choices[0].message.content);
    assert.equal(typeof found.capital, "string");
    assert.equal(typeof found.on_an_island, "boolean");
  },

  async logprobsChoicesAndSeeds() {
    const answer = await chat({ logprobs: true, top_logprobs: 2, n: 2, seed: 5, temperature: 1, max_tokens: 8 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
    for (const { logprobs, message } of answer.choices) {
      const bytes = logprobs.content.flatMap((entry) => entry.bytes);
      assert(Buffer.from(bytes).toString().startsWith(message.content));
    }
    const again = await chat({ seed: 5, temperature: 1, max_tokens: 8 });
    assert.equal(again.choices[0].message.content, answer.choices[0].message.content);
  },

  async completions() {
    const more = { model: MODEL, prompt: "The capital of France is", max_tokens: 8, temperature: 0 };
    const answer = await client.completions.create(more);
    assert.match(answer.choices[0].text, /Paris/);
    let text = "";
    for await (const chunk of await client.completions.create({ ...more, stream: true })) text += chunk.choices[0].text;
    assert.equal(text, answer.choices[0].text);
  },

  async responses() {
    const more = { model: MODEL, input: "What is the capital of France?", max_output_tokens: 24, temperature: 0 };
    const answer = await client.responses.create(more);
    assert.match(answer.output_text, /Paris/);
    assay(answer);
    let text = "";
    for await (const event of await client.responses.create({ ...more, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, answer.output_text);
    const final = await client.responses.stream(more).finalResponse();
    assert.equal(final.output[0].content[0].text, text);
  },

  async embeddings() {
    const input = ["That is a happy person", "That is a very happy person"];
    const answer = await client.embeddings.create({ model: "all-minilm-l6-v2", input });
    const [a, b] = answer.data.map((entry) => entry.embedding);
    assert.equal(a.length, 384);
    const cosine = a.reduce((sum, x, i) => sum + x * b[i], 0);
    assert.ok(Math.abs(cosine - 0.943) < 0.01, `${cosine}`);
    assert.match(answer.data[1].assay.receipt_hash, /^0x/);
  },

  async errors() {
    await refused(
      OpenAI.BadRequestError,
      "unsupported_parameter",
      client.embeddings.create({ model: MODEL, input: "x" }),
    );
    await refused(OpenAI.NotFoundError, "model_not_found", chat({ model: "gpt-9" }));
    await refused(
      OpenAI.BadRequestError,
      "context_length_exceeded",
      chat({ messages: user("word ".repeat(20_000)) }),
    );
    const limited = (apiKey) => new OpenAI({ baseURL: `${ASSAY_LIMITED_URL}/v1`, apiKey, maxRetries: 0 });
    await refused(OpenAI.AuthenticationError, "invalid_api_key", limited("sk-wrong").models.list());
    const known = limited(ASSAY_LIMITED_KEY);
    assert((await known.models.list()).data.some((model) => model.id === MODEL));
    let error;
    for (let asked = 0; asked < 5 && !error; asked += 1) {
      error = await known.chat.completions.create(request({ model: "gpt-9" })).catch((error) => error);
      if (error instanceof OpenAI.NotFoundError) error = undefined;
    }
    assert.equal(error?.constructor, OpenAI.RateLimitError);
    assert(Number(error.headers.get("retry-after")) > 0);
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`javascript: ${name} passed`);
}
