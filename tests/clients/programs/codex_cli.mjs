// OpenAI's coding CLI `codex`, with the gateway as its provider and `wire_api = "responses"`.
//
// It tries a WebSocket first, is told 426, and goes on with HTTP. It runs the command that the model
// asks for; the simulator asks for one named `simulated`, which is a function of the shell here.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { openaiModel, question, run, url } from "./conversation.mjs";

const codex = fileURLToPath(new URL("../node_modules/.bin/codex", import.meta.url));
const home = process.env.HOME;
mkdirSync(`${home}/.codex`);
writeFileSync(`${home}/.codex/config.toml`, `
model_provider = "gateway"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.gateway]
name = "gateway"
base_url = "${url}/v1"
env_key = "GATEWAY_KEY"
wire_api = "responses"
supports_websockets = true
request_max_retries = 0
stream_max_retries = 0
`);
writeFileSync(`${home}/.bash_profile`, "simulated() { echo sunny in simulated; }\nexport -f simulated\n");

// The items of one turn, without those that tell of the CLI's own troubles.
function items(...options) {
  const given = ["exec", "--json", "--skip-git-repo-check", ...options, question];
  const done = spawnSync(codex, given, { input: "", encoding: "utf8", timeout: 200_000 });
  assert.equal(done.status, 0, done.stdout + done.stderr);
  const events = done.stdout.trim().split("\n").map((line) => JSON.parse(line));
  assert.equal(events.at(-1).type, "turn.completed", done.stdout);
  return events
    .filter((event) => event.type === "item.completed" && event.item.type !== "error")
    .map((event) => event.item);
}

await run({
  async stream() {
    const [message] = items("--model", openaiModel);
    return message.text;
  },

  // To a model that it does not know it offers its tools in the way of every client.
  async command() {
    const options = ["--model", "sim-model", "--sandbox", "danger-full-access"];
    const [command, message] = items(...options);
    assert.equal(command.type, "command_execution");
    return [command.aggregated_output.trim(), message.text.split("Output: ").at(-1)];
  },
});
