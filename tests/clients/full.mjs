// The openai package in Node against a full service: the calls of full.py. Prints JSON.
import OpenAI, { RateLimitError } from "openai";

const [url, key, other] = process.argv.slice(-3);
const ask = { model: "shakespeare", prompt: "", max_tokens: 5, seed: 7 };
const connect = (apiKey, maxRetries) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries });
const client = connect(key, 0);

async function error(client) {
  try {
    await client.completions.create(ask);
  } catch (failed) {
    return [failed.constructor.name, failed.status, failed.headers.get("retry-after") ?? ""];
  }
  throw new Error("the call succeeds");
}

const endless = await client.completions.create({ ...ask, max_tokens: null, stream: true });
const chunks = endless[Symbol.asyncIterator]();
for (let i = 0; i < 20; i++) await chunks.next(); // until the service knows its rate
const full = await error(client);
const told = []; // how long the attempt that fails is to wait
const watched = async (...request) => {
  const response = await fetch(...request);
  if (response.status === 503) {
    told.push(response.headers.get("retry-after"));
    setTimeout(() => endless.controller.abort(), 200); // once it has failed, the slot becomes free
  }
  return response;
};
const began = Date.now();
const patient = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 2, fetch: watched });
const text = (await patient.completions.create(ask)).choices[0].text;
const waited = [(Date.now() - began) / 1000, ...told];
const wrong = await error(connect("wrong", 0));
const busy = connect(other, 0);
let limited;
try {
  for (let i = 0; i < 100; i++) await busy.models.list();
} catch (failed) {
  if (!(failed instanceof RateLimitError)) throw failed;
  limited = await error(busy);
}
process.stdout.write(JSON.stringify({ full, text, waited, wrong, limited }));
