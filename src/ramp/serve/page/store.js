// Conversations as this browser keeps them: one record each, so that two tabs never write over each
// other's. A conversation is a tree of turns; what is on show is the way from a leaf to the root.
// Nothing that is read, from the store or from a file, is used before it has been checked.

const RECORD = "ramp.chat.";
const MAX_FILE = 20 << 20; // bytes of an import

export const chats = new Map(); // id -> conversation
export const makeId = () => crypto.getRandomValues(new Uint32Array(2)).join("-");

// Access itself throws where a browser keeps nothing for a site.
const box = (() => {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
})();

export function readValue(name, otherwise) {
  try {
    return JSON.parse(box.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function writeValue(name, value) {
  try {
    box.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// What a record may hold

const fail = (at, what) => {
  throw new Error(`${at} must be ${what}`);
};
const text = (most) => (v, at) =>
  (typeof v === "string" && v.length <= most) || fail(at, `text of at most ${most} characters`);
const number = (v, at) => Number.isFinite(v) || fail(at, "a number");
const flag = (v, at) => typeof v === "boolean" || fail(at, "true or false");
const name = (v, at) => /^[\w-]{1,64}$/.test(v) || fail(at, "a name of letters and digits");
const optional = (rule) => (v, at) => v == null || rule(v, at);
const oneOf =
  (...values) =>
  (v, at) =>
    values.includes(v) || fail(at, values.join(" or "));
const list = (rule, most) => (v, at) => {
  if (!Array.isArray(v) || v.length > most) fail(at, `a list of at most ${most}`);
  v.forEach((x, i) => rule(x, `${at}[${i}]`));
};
const record = (rules) => (v, at) => {
  if (v === null || typeof v !== "object" || Array.isArray(v)) fail(at, "an object");
  for (const key of Object.keys(v)) {
    if (!Object.hasOwn(rules, key)) fail(`${at}.${key.slice(0, 40)}`, "left out: it is not known");
  }
  for (const [key, rule] of Object.entries(rules)) rule(v[key], `${at}.${key}`);
};
const likely = (v, at) => {
  if (!Array.isArray(v) || v.length !== 2) fail(at, "a token and its log-probability");
  text(1000)(v[0], at);
  number(v[1], at);
};

// A token: its text, its bytes, its log-probability, the entropy there, the likeliest others.
const tokens = list(
  record({
    t: text(1000),
    b: optional(list(number, 1000)),
    lp: number,
    h: optional(number),
    top: optional(list(likely, 20)),
  }),
  1 << 17,
);
const content = text(MAX_FILE);
const problem = { task: text(100), level: number, seed: number, question: content };
const verdict = {
  lines: list(record({ text: content, right: flag, why: text(10000) }), 1000),
  right: flag,
  verified: flag,
  lucky: flag,
  answer: content,
  solution: list(content, 1000),
};
const turn = {
  id: name,
  parent: optional(name),
  role: oneOf("user", "assistant"),
  content,
  thinking: optional(content),
  model: optional(text(1000)),
  foot: optional(text(1000)),
  task: optional(record(problem)),
  tokens: optional(tokens),
  samples: optional(list(record({ content, tokens: optional(tokens) }), 16)),
  verdict: optional(record(verdict)),
};
const chat = {
  id: name,
  title: text(200),
  updated: number,
  leaf: optional(name),
  turns: list(record(turn), 10000),
};

// The conversation, or an Error that says what is wrong with it.
function check(value, at) {
  record(chat)(value, at);
  const seen = new Set();
  for (const [i, { id, parent }] of value.turns.entries()) {
    // A parent stands before its children, so there is no circle.
    if (parent != null && !seen.has(parent)) fail(`${at}.turns[${i}].parent`, "an earlier turn");
    if (seen.has(id)) fail(`${at}.turns[${i}].id`, "its own");
    seen.add(id);
  }
  if (value.leaf != null && !seen.has(value.leaf)) fail(`${at}.leaf`, "a turn");
  return value;
}

// The tree

export const find = (chat, id) => chat.turns.find((turn) => turn.id === id);
export const listChildren = (chat, parent) =>
  chat.turns.filter((turn) => (turn.parent ?? null) === (parent ?? null));

// The turns from the first one to a leaf.
export function listPath(chat, leaf = chat.leaf) {
  const turns = new Map(chat.turns.map((turn) => [turn.id, turn]));
  const path = [];
  for (let turn = turns.get(leaf); turn; turn = turns.get(turn.parent)) path.push(turn);
  return path.reverse();
}

// The end of the newest branch below a turn.
export function findLeaf(chat, id) {
  // Children stand after their parents, so one pass finds the last of the last.
  const newest = new Map(chat.turns.map((turn) => [turn.parent ?? null, turn.id]));
  let leaf = id;
  while (newest.has(leaf)) leaf = newest.get(leaf);
  return leaf;
}

export function addTurn(chat, turn) {
  chat.turns.push(turn);
  chat.leaf = turn.id;
  return turn;
}

// All turns of two versions of a conversation; those of the first where both have one.
function join(own, other) {
  const ids = new Set(own.turns.map((turn) => turn.id));
  own.turns.push(...other.turns.filter((turn) => !ids.has(turn.id)));
  own.leaf ??= other.leaf;
}

// Keeping

function parse(raw) {
  try {
    return check(JSON.parse(raw), "conversation");
  } catch {
    return null;
  }
}

const listRecords = () => Object.keys(box ?? {}).filter((key) => key.startsWith(RECORD));

// Read all that is kept; the keys of records that nobody can read, which are left as they are.
export function readAll() {
  const unreadable = [];
  for (const key of listRecords()) {
    const found = parse(box.getItem(key));
    if (found && key === RECORD + found.id) chats.set(found.id, found);
    else unreadable.push(key);
  }
  if (readOldList()) unreadable.push(OLD_LIST);
  return unreadable;
}

export function removeRecords(keys) {
  for (const key of keys) box.removeItem(key);
}

// Write a conversation down with what other tabs have added to it; what there is to say about that.
export function save(chat, now = Date.now()) {
  if (!chats.has(chat.id)) return ""; // deleted meanwhile
  const stored = parse(box?.getItem(RECORD + chat.id) ?? null);
  if (stored) join(chat, stored);
  chat.updated = now;
  // Strange figures from a server would make the record one that nobody can read.
  if (!parse(JSON.stringify(chat))) dropFigures(chat);
  if (write(chat)) return "";
  if (!box) return "This browser keeps nothing for this page: export what you want to keep.";
  // The figures of tokens take ten times the room of the text.
  for (const old of [
    ...listChats()
      .filter((c) => c !== chat)
      .reverse(),
    chat,
  ]) {
    dropFigures(old);
    write(old);
    if (write(chat))
      return "No room was left in this browser: probabilities of old answers are dropped.";
  }
  return (
    "No room is left in this browser, and this conversation is not kept: " +
    "export it, or delete others."
  );
}

function dropFigures(chat) {
  for (const turn of chat.turns) {
    delete turn.tokens;
    for (const sample of turn.samples ?? []) delete sample.tokens;
  }
}

const write = (chat) => writeValue(RECORD + chat.id, chat);

// The newest first.
export const listChats = () => [...chats.values()].sort((a, b) => b.updated - a.updated);

export function remove(chat) {
  chats.delete(chat.id);
  box?.removeItem(RECORD + chat.id);
}

// Call back with the id of a conversation that another tab wrote or deleted, null for all of them,
// and with the leaf that it left off at.
export function listen(changed) {
  window.addEventListener("storage", ({ key, newValue }) => {
    if (key === null) {
      chats.clear();
      changed(null);
    }
    if (!key?.startsWith(RECORD)) return;
    const id = key.slice(RECORD.length);
    const found = newValue === null ? null : parse(newValue);
    const own = chats.get(id);
    if (newValue === null) chats.delete(id);
    else if (found?.id !== id)
      return; // not written by this page
    else if (!own) chats.set(id, found);
    else {
      join(own, found);
      own.updated = Math.max(own.updated, found.updated);
      // Both wrote at once: the one that came last lacks turns of the other.
      if (own.turns.length > found.turns.length) write(own);
    }
    changed(id, found?.leaf);
  });
}

// Before there were records there was one list, of conversations without branches.
const OLD_LIST = "ramp.chats";

function readOldList() {
  const old = readValue(OLD_LIST, []);
  const rest = [old].flat().filter((entry) => {
    try {
      const id = makeId();
      const turns = entry.turns.filter((turn) => !turn.error);
      turns.forEach((turn, i) =>
        Object.assign(turn, { id: `${i}`, parent: i ? `${i - 1}` : null }),
      );
      const title = `${entry.title}`.slice(0, 200);
      const made = { id, title, updated: Date.now(), leaf: turns.at(-1).id, turns };
      chats.set(id, check(made, "conversation"));
      return !write(made);
    } catch {
      return true;
    }
  });
  if (rest.length) writeValue(OLD_LIST, rest);
  else box?.removeItem(OLD_LIST);
  return rest.length;
}

// Files

const FORMAT = "ramp conversations";

export function makeFile(list) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations: list });
}

// Take in the conversations of a file, all or none; [how many, what there is to say].
export async function readFile(file) {
  const refuse = (why) => {
    throw new Error(`“${file.name}” was not imported: ${why}.`);
  };
  if (file.size > MAX_FILE) refuse(`it is larger than ${MAX_FILE >> 20} MB`);
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    refuse("it is no JSON");
  }
  if (data?.format !== FORMAT) refuse("it is no export of this page");
  if (data.version !== 1) refuse("it is of a newer version of this page");
  try {
    list((value, at) => check(value, at), 10000)(data.conversations, "conversations");
  } catch (error) {
    refuse(error.message);
  }
  const told = data.conversations.map((found) => {
    const own = chats.get(found.id);
    if (own) join(own, found);
    else chats.set(found.id, found);
    return save(own ?? found, found.updated);
  });
  return [data.conversations.length, told.find(Boolean) ?? ""];
}
