// What the page asks of the server, and what it makes of a refusal.

const KEY = "ramp.key";

// For this tab and until it closes; other tabs and later days do not see it.
export const readKey = () => {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
};
export const writeKey = (key) => {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    /* asked again */
  }
};

// A sentence for people, with the HTTP status it came with, 0 where there was none.
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function send(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = readKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  const request = body ? { method: "POST", body: JSON.stringify(body) } : {};
  let response;
  try {
    response = await fetch(path, { ...request, headers, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    // A header can carry no such key, and fetch says so by the same error.
    if (/[^ -~]/.test(key)) throw new Refusal("This key holds characters that no key has.", 401);
    throw new Refusal(
      "The server does not answer. Does it still run, and is the network there?",
      0,
    );
  }
  if (response.ok) return response;
  throw new Refusal(await readReason(response), response.status);
}

async function readReason(response) {
  // What the server says is for programs, which send a header.
  if (response.status === 401)
    return "The server asks for a key, and this tab has none or a wrong one.";
  const sentence = response.status === 429 ? "The server is busy" : "The server did not take this";
  let reason = `it answered ${response.status}`;
  try {
    const { message } = (await response.json()).error;
    if (typeof message === "string") reason = message;
  } catch {
    /* something else answered, a proxy for example */
  }
  return `${sentence}: ${reason}.`;
}

export async function call(path, body) {
  const response = await send(path, body);
  try {
    return await response.json();
  } catch {
    throw new Refusal("The server's answer cannot be read. Is this address ramp's own?", 0);
  }
}

// Events of a stream, whole, however the network cuts them.
async function* readEvents(response, signal) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const broken = new Refusal("The connection broke before the end of the answer.", 0);
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw signal.aborted ? error : broken;
    }
    // The server says when it has said all; without that something between has hung up.
    if (part.done) throw broken;
    rest += decoder.decode(part.value, { stream: true });
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (frame === "data: [DONE]") return;
      if (frame.startsWith("data: ")) yield parseEvent(frame.slice(6));
    }
  }
}

const makeUnreadable = () => new Refusal("A part of the answer cannot be read.", 0);

function parseEvent(json) {
  let event;
  try {
    event = JSON.parse(json);
  } catch {
    throw makeUnreadable();
  }
  if (event?.error) throw new Refusal(`The server broke off: ${event.error.message}.`, 503);
  return event;
}

// Send a request that streams; `heard(i, {text, thinking, tokens, ended})` for each piece of answer
// i. The number of turns that no longer fitted and were left out.
export async function stream(path, body, signal, heard) {
  const response = await send(path, { ...body, stream: true }, signal);
  let leftOut = 0;
  for await (const event of readEvents(response, signal)) {
    for (const [index, piece] of readPieces(event)) heard(index, piece);
    leftOut = event.ramp?.turns_left_out ?? leftOut;
  }
  return leftOut;
}

function readPieces(event) {
  try {
    return event.choices.map((choice) => [choice.index, readChoice(choice)]);
  } catch {
    throw makeUnreadable();
  }
}

function readChoice({ delta, text, logprobs, finish_reason: ended }) {
  if (!delta) return { text: text ?? "", thinking: "", tokens: readOldTokens(logprobs), ended };
  const thinking = delta.reasoning_content ?? delta.reasoning ?? "";
  const tokens = (logprobs?.content ?? []).map((t) => ({
    t: t.token,
    b: t.bytes,
    lp: t.logprob,
    h: t.entropy,
    top: t.top_logprobs.map((other) => [other.token, other.logprob]),
  }));
  return { text: delta.content ?? "", thinking, tokens, ended };
}

const readOldTokens = (logprobs) =>
  (logprobs?.tokens ?? []).map((t, i) => ({
    t,
    lp: logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs[i]),
  }));
