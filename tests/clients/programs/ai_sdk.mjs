// Vercel's AI SDK (`ai`) with its providers `openai`, `openai-compatible` and `groq`.

import { createGroq } from "@ai-sdk/groq";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { getWeather, groqModel, joined, key, openaiModel, question as prompt, run, url } from "./conversation.mjs";

const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: key });
const compatible = createOpenAICompatible({
  name: "gateway", baseURL: `${url}/v1`, apiKey: key, includeUsage: true,
  supportsStructuredOutputs: true,
});
const groq = createGroq({ baseURL: `${url}/groq/openai/v1`, apiKey: key });
const models = {
  chat: openai.chat(openaiModel),
  responses: openai.responses(openaiModel),
  compatible: compatible(openaiModel),
  groq: groq(groqModel),
};
const tools = {
  get_weather: tool({
    description: "The weather.",
    inputSchema: z.object({ city: z.string() }),
    execute: async (input) => getWeather(input),
  }),
};
const schema = z.object({ name: z.string(), population: z.number().int() });

const checks = {};
for (const [name, model] of Object.entries(models)) {
  checks[`${name}_unary`] = async () => (await generateText({ model, prompt })).text;
  checks[`${name}_stream`] = async () =>
    joined(streamText({ model, prompt, onError: ({ error }) => { throw error; } }).textStream, (text) => text);
  checks[`${name}_tool`] = async () =>
    (await generateText({ model, prompt, tools, stopWhen: stepCountIs(3) })).text;
  checks[`${name}_stream_of_a_tool`] = async () => {
    const result = streamText({ model, prompt, tools, stopWhen: stepCountIs(3) });
    return joined(result.textStream, (text) => text);
  };
  checks[`${name}_parse`] = async () =>
    (await generateText({ model, prompt, output: Output.object({ schema }) })).output;
}

await run(checks);
