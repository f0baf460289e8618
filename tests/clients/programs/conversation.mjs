// What each program asks its client for, and how it hands back what it got: see conversation.py.

export const url = process.env.GATEWAY_URL;
export const key = process.env.GATEWAY_KEY;
export const openaiModel = "gpt-6-luna";
export const groqModel = "openai/gpt-oss-20b";
export const question = "how are you";

export const city = {
  type: "object",
  properties: { name: { type: "string" }, population: { type: "integer" } },
  required: ["name", "population"],
  additionalProperties: false,
};

export const tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather.",
    parameters: {
      type: "object",
      properties: { city: { type: "string" } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

export const getWeather = ({ city }) => `sunny in ${city}`;

export const user = () => ({ role: "user", content: question });

export async function joined(iterable, text) {
  const found = [];
  for await (const item of iterable) found.push(text(item) ?? "");
  return found.join("");
}

export async function run(checks) {
  const results = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      results[name] = { got: await check() };
    } catch (error) {
      results[name] = { failed: String(error.stack ?? error) };
    }
  }
  console.log(JSON.stringify(results));
}
