// The npm package `openai`: chat and responses, and its helpers.

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { getWeather, joined, key, openaiModel as model, question, run, tool, url, user } from "./conversation.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const chat = client.chat.completions;
const City = z.object({ name: z.string(), population: z.number().int() });
const messages = [user()];

await run({
  async unary() {
    return (await chat.create({ model, messages })).choices[0].message.content;
  },

  async stream() {
    const chunks = await chat.create({ model, messages, stream: true });
    return joined(chunks, (chunk) => chunk.choices[0].delta.content);
  },

  async helper_stream() {
    return chat.stream({ model, messages }).finalContent();
  },

  async tool() {
    const { message } = (await chat.create({ model, messages, tools: [tool] })).choices[0];
    const [call] = message.tool_calls;
    const content = getWeather(JSON.parse(call.function.arguments));
    const result = { role: "tool", tool_call_id: call.id, content };
    const answer = await chat.create({ model, messages: [...messages, message, result] });
    return answer.choices[0].message.content;
  },

  async runner_tool() {
    const run = { ...tool.function, function: getWeather, parse: JSON.parse };
    const tools = [{ type: "function", function: run }];
    return chat.runTools({ model, messages, tools, stream: true }).finalContent();
  },

  async parse() {
    const response_format = zodResponseFormat(City, "city");
    return (await chat.parse({ model, messages, response_format })).choices[0].message.parsed;
  },

  async responses_unary() {
    return (await client.responses.create({ model, input: question })).output_text;
  },

  async responses_stream() {
    const events = client.responses.stream({ model, input: question });
    return (await events.finalResponse()).output_text;
  },

  async responses_parse() {
    const text = { format: zodTextFormat(City, "city") };
    return (await client.responses.parse({ model, input: question, text })).output_parsed;
  },
});
