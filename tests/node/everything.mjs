// Asks for everything with the npm package `openai`, at the base URL in OPENAI_BASE_URL.
// Prints one JSON object: the name of each check, and null or what went wrong in it.

import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ maxRetries: 0, timeout: 100_000 });
const model = "gpt-6-luna";
const messages = [{ role: "user", content: "how are you" }];
const sound = () => toFile(Buffer.alloc(64_000), "talk.wav");

async function all(iterable) {
  const found = [];
  for await (const item of iterable) found.push(item);
  return found;
}

const checks = {
  async chat() {
    const whole = await client.chat.completions.create({ model, messages });
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    const chunks = await all(stream);
    assert.ok(chunks.every((chunk) => chunk.usage == null));
    const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
    assert.equal(text, whole.choices[0].message.content);
  },

  async usage_in_a_stream() {
    const stream_options = { include_usage: true };
    const stream = await client.chat.completions.create({
      model, messages, stream: true, stream_options,
    });
    const last = (await all(stream)).at(-1);
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.prompt_tokens, 3);
  },

  async tools() {
    const tools = [{ type: "function", function: { name: "get_weather", parameters: {} } }];
    const answer = await client.chat.completions.create({ model, messages, tools });
    assert.equal(answer.choices[0].message.tool_calls[0].function.name, "get_weather");
  },

  async completions() {
    const answer = await client.completions.create({ model, prompt: "one two three" });
    assert.equal(answer.usage.prompt_tokens, 3);
  },

  async embeddings() {
    const [short, plain] = await Promise.all([
      client.embeddings.create({ model, input: "one two" }),
      client.embeddings.create({ model, input: "one two", encoding_format: "float" }),
    ]);
    assert.deepEqual(short.data[0].embedding, plain.data[0].embedding);
  },

  async responses() {
    const made = await client.responses.create({ model, input: "how are you" });
    assert.match(made.output_text, /simulated/);
    const again = await client.responses.retrieve(made.id);
    assert.equal(again.output_text, made.output_text);
    await client.responses.delete(made.id);
    await assert.rejects(client.responses.retrieve(made.id), OpenAI.NotFoundError);
  },

  async responses_as_events() {
    const events = await all(
      await client.responses.create({ model, input: "hello", stream: true }),
    );
    assert.equal(events[0].type, "response.created");
    assert.equal(events.at(-1).type, "response.completed");
  },

  async transcription() {
    const heard = await client.audio.transcriptions.create({ model, file: await sound() });
    assert.match(heard.text, /simulated/);
    const events = await all(
      await client.audio.transcriptions.create({ model, file: await sound(), stream: true }),
    );
    assert.equal(events.at(-1).type, "transcript.text.done");
  },

  async speech() {
    const asked = { model, voice: "alloy", input: "hello", response_format: "wav" };
    const answer = await client.audio.speech.create(asked);
    const pieces = await all(answer.body);
    assert.equal(Buffer.concat(pieces).subarray(0, 4).toString(), "RIFF");
    assert.equal(Buffer.concat(pieces).length, 16_384);
  },

  async images() {
    const made = await client.images.generate({ model, prompt: "a cat", n: 2 });
    assert.equal(made.data.length, 2);
    const image = await toFile(Buffer.from("png"), "a.png", { type: "image/png" });
    assert.ok((await client.images.edit({ model, prompt: "a dog", image })).data);
  },

  async files() {
    const content = Buffer.from(Array.from({ length: 2000 }, (_, n) => n % 256));
    const file = await toFile(content, "notes.bin");
    const made = await client.files.create({ file, purpose: "batch" });
    assert.equal(made.bytes, content.length);
    const answer = await client.files.content(made.id);
    assert.deepEqual(Buffer.from(await answer.arrayBuffer()), content);
    assert.ok((await client.files.delete(made.id)).deleted);
    await assert.rejects(client.files.retrieve(made.id), OpenAI.NotFoundError);
  },

  async pages() {
    const made = [];
    for (let n = 0; n < 5; n++) {
      const file = await toFile(Buffer.from("x"), `${n}.txt`);
      made.push((await client.files.create({ file, purpose: "evals" })).id);
    }
    const query = { purpose: "evals", limit: 2, order: "asc", after: made[0] };
    const listed = await all(client.files.list(query));
    assert.deepEqual(listed.map((file) => file.id), made.slice(1));
    for (const id of made) await client.files.delete(id);
  },

  async uploads_in_parts() {
    const begun = await client.uploads.create({
      bytes: 6, filename: "a.txt", mime_type: "text/plain", purpose: "assistants",
    });
    const part_ids = [];
    for (const text of ["abc", "def"]) {
      const data = await toFile(Buffer.from(text), "part");
      part_ids.push((await client.uploads.parts.create(begun.id, { data })).id);
    }
    const done = await client.uploads.complete(begun.id, { part_ids });
    assert.equal(await (await client.files.content(done.file.id)).text(), "abcdef");
  },

  async batches() {
    const made = await client.batches.create({
      input_file_id: "file-1", endpoint: "/v1/embeddings", completion_window: "24h",
    });
    assert.equal((await client.batches.cancel(made.id)).status, "cancelling");
  },

  async models() {
    const listed = (await all(client.models.list())).map((found) => found.id);
    assert.ok(listed.includes("sim-model"));
    assert.equal((await client.models.retrieve("sim-model")).owned_by, "simulator");
  },

  async moderations() {
    assert.equal((await client.moderations.create({ input: "a" })).results[0].flagged, false);
  },

  async vector_stores() {
    const stores = client.vectorStores;
    const store = await stores.create({ name: "notes" });
    await stores.fileBatches.create(store.id, { file_ids: ["f-1", "f-2", "f-3"] });
    const files = await all(stores.files.list(store.id, { limit: 2, order: "asc" }));
    assert.deepEqual(files.map((file) => file.id), ["f-1", "f-2", "f-3"]);
    assert.equal((await all(stores.search(store.id, { query: "x" })))[0].score, 0.5);
    assert.ok((await stores.delete(store.id)).deleted);
  },

  async raw_responses() {
    const { data, response, request_id } = await client.chat.completions
      .create({ model, messages })
      .withResponse();
    assert.equal(data.object, "chat.completion");
    assert.equal(response.headers.get("x-wrapper-provider"), "openai");
    assert.equal(request_id, response.headers.get("x-request-id"));
    assert.ok(response.headers.get("x-ratelimit-remaining-requests"));
  },

  async refusals() {
    const headers = { "x-sim": "status=429; retry-after=7; code=own" };
    await assert.rejects(client.embeddings.create({ model, input: "x" }, { headers }), (error) => {
      assert.ok(error instanceof OpenAI.RateLimitError);
      assert.equal(error.code, "own");
      assert.equal(error.headers.get("retry-after"), "7");
      return true;
    });
  },

  async an_abort_ends_the_stream() {
    const stream = await client.chat.completions.create(
      { model, messages, stream: true },
      { headers: { "x-sim": "events=1000; gap=0.02", "x-sim-book": process.env.BOOK } },
    );
    for await (const _ of stream) break;
    assert.ok(stream.controller.signal.aborted);
  },
};

const results = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    results[name] = null;
  } catch (error) {
    results[name] = String(error.stack ?? error);
  }
}
console.log(JSON.stringify(results));
