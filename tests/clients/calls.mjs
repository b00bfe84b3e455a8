// What the tests ask of the openai package in Node: the calls of calls.py. Prints JSON.
import { createReadStream } from "node:fs";
import OpenAI from "openai";
import { VERSION } from "openai/version";

const [url, image, mask] = process.argv.slice(-3);
const ask = { model: "shakespeare", prompt: "ROMEO:\n", max_tokens: 40, seed: 7 };
const draw = { model: "emoji", prompt: "Food & Drink", seed: 7 };
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const create = (more) => client.completions.create({ ...ask, ...more });
const texts = async (more) => (await create(more)).choices.map((choice) => choice.text);

async function stream(more) {
  const chunks = [];
  for await (const chunk of await create({ ...more, stream: true })) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  return {
    text: choices.map((choice) => choice.text).join(""),
    finish_reason: choices.at(-1).finish_reason,
    token_logprobs: choices.flatMap((choice) => choice.logprobs?.token_logprobs ?? []),
    usage: chunks.at(-1).usage ?? null,
  };
}

async function error(call) {
  try {
    await call();
  } catch (failed) {
    const name = failed.constructor.name;
    return failed.status ? [name, failed.status, failed.type, failed.code, failed.param] : [name];
  }
  return [];
}

async function slotsInUse() {
  const metrics = await (await fetch(`${url}/metrics`)).text();
  return Number(/^aft_slots_in_use\{model="shakespeare"\} (.*)$/m.exec(metrics)[1]);
}

async function waitUntilFree() {
  const deadline = Date.now() + 10_000;
  while ((await slotsInUse()) && Date.now() < deadline) await new Promise((done) => setTimeout(done, 50));
}

async function leaveEarly() {
  let during;
  await waitUntilFree(); // a call that gave up a moment ago
  for await (const _ of await create({ max_tokens: null, stream: true })) {
    during = await slotsInUse();
    break;
  }
  await waitUntilFree();
  return [during, await slotsInUse()];
}

async function edit() {
  const files = { image: createReadStream(image), mask: createReadStream(mask) };
  const events = [];
  for await (const event of await client.images.edit({ ...draw, ...files, stream: true, partial_images: 1 }))
    events.push(event);
  return { types: events.map((event) => event.type), image: events.at(-1).b64_json };
}

const ids = await client.post("/tokenize", { body: { model: "shakespeare", prompt: ask.prompt } });
const models = [];
for await (const model of client.models.list()) models.push([model.id, model.object]);
const answers = {
  version: VERSION,
  whole: await create(),
  again: (await texts())[0],
  stream: await stream({ stream_options: { include_usage: true } }),
  stream_logprobs: await stream({ logprobs: 0 }),
  stop: await stream({ stop: ["\n"] }),
  n: await texts({ n: 2 }),
  prompts: await texts({ prompt: ["ROMEO:\n", "JULIET:\n"] }),
  ids: (await texts({ prompt: ids.tokens }))[0],
  echo: (await create({ max_tokens: 0, echo: true, logprobs: 2 })).choices[0].logprobs,
  models,
  model: (await client.models.retrieve("emoji")).id,
  image: (await client.images.generate(draw)).data[0].b64_json,
  edit: await edit(),
  errors: {
    model: await error(() => create({ model: "nobody" })),
    one_model: await error(() => client.models.retrieve("nobody")),
    range: await error(() => create({ temperature: 3 })),
    unknown: await error(() => create({ nonsense: 1 })),
    route: await error(() => client.embeddings.create({ model: "shakespeare", input: "x" })),
    timeout: await error(() => client.completions.create({ ...ask, max_tokens: 100_000 }, { timeout: 50 })),
  },
  leave_early: await leaveEarly(),
  many: await Promise.all([...Array(16).keys()].map(async (seed) => (await stream({ seed })).text)),
};
process.stdout.write(JSON.stringify(answers));
