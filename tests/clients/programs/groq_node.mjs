// The npm package `groq-sdk`, at Groq's own paths.

import Groq from "groq-sdk";
import { city, getWeather, groqModel as model, joined, key, run, tool, url, user } from "./conversation.mjs";

const chat = new Groq({ baseURL: `${url}/groq`, apiKey: key }).chat.completions;
const messages = [user()];

await run({
  async unary() {
    return (await chat.create({ model, messages })).choices[0].message.content;
  },

  async stream() {
    const chunks = await chat.create({ model, messages, stream: true });
    return joined(chunks, (chunk) => chunk.choices[0]?.delta.content);
  },

  async tool() {
    const { message } = (await chat.create({ model, messages, tools: [tool] })).choices[0];
    const [call] = message.tool_calls;
    const content = getWeather(JSON.parse(call.function.arguments));
    const asked = { role: "assistant", tool_calls: message.tool_calls };
    const result = { role: "tool", tool_call_id: call.id, content };
    const answer = await chat.create({ model, messages: [...messages, asked, result] });
    return answer.choices[0].message.content;
  },

  async parse() {
    const json_schema = { name: "city", schema: city };
    const response_format = { type: "json_schema", json_schema };
    const answer = await chat.create({ model, messages, response_format });
    return JSON.parse(answer.choices[0].message.content);
  },
});
