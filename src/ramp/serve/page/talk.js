// The conversation on show: its turns, their branches, and the answers that are being written.

import { makeAnswer, makeSamples, makeVerdict, measureDiversity } from "./answers.js";
import { $, announce, button, copy, make, say } from "./dom.js";
import { drawList, titleOf } from "./list.js";
import { call, stream } from "./server.js";
import { openSettings, setting } from "./settings.js";
import {
  addTurn,
  chats,
  find,
  findLeaf,
  listChildren,
  listPath,
  makeId,
  remove,
  save,
} from "./store.js";
import { hideTip, letWalk, makeTokens } from "./tokens.js";

const NUM_SAMPLES = 10;

export const page = {
  chat: null, // the conversation on show
  info: { model: "", can_chat: true, settings: {}, tasks: {}, shape: { context: 0 } },
};
const live = new Map(); // id of a conversation -> its answer that is being written
const failures = new Map(); // id of a conversation -> why the last answer to it failed
const shaded = new Set(); // ids of turns whose probabilities are on show

// Moving about

export function open(chat, turn = null) {
  page.chat = chat;
  if (turn) chat.leaf = findLeaf(chat, turn);
  history.replaceState(null, "", `#${chat.id}`);
  draw({ toEnd: true });
  if (turn) document.querySelector(`[data-turn="${turn}"]`)?.scrollIntoView({ block: "center" });
}

export const openFresh = () =>
  open({ id: makeId(), title: "", updated: Date.now(), leaf: null, turns: [] });

export function drop(chat) {
  live.get(chat.id)?.controller.abort();
  remove(chat);
  if (chat === page.chat) openFresh();
  else drawChats();
  const undo = () => {
    chats.set(chat.id, chat);
    keep(chat);
    open(chat);
  };
  say(`Deleted “${titleOf(chat)}”.`, ["Undo", undo]);
  $("new").focus(); // the button that had the focus is gone
}

function keep(chat) {
  const problem = save(chat);
  if (problem) say(problem);
}

// What another tab did to a conversation; null: to all of them.
export function hearOtherTab(id, leaf) {
  const { chat } = page;
  const wasDeleted = chat.turns.length && !chats.has(chat.id);
  if (wasDeleted) {
    live.get(chat.id)?.controller.abort();
    openFresh();
    say(`“${titleOf(chat)}” was deleted in another tab.`);
  } else if (chat.id === id && !live.has(id)) {
    // It went on from what is on show here.
    chat.leaf = findLeaf(chat, chat.leaf);
    draw();
  } else {
    if (chat.id !== id && chats.has(id)) chats.get(id).leaf = leaf;
    drawChats();
  }
}

// Drawing

export const drawChats = () => drawList(page.chat, open, drop);

// toEnd: scroll to the end. focus: the key of a button to focus.
export function draw({ toEnd = false, focus = document.activeElement?.dataset.key } = {}) {
  drawChats();
  const talk = $("talk");
  const { chat } = page;
  const isRunning = live.has(chat.id);
  $("stop").hidden = !isRunning;
  $("send").hidden = isRunning;
  $("ten").disabled = $("problem").disabled = isRunning;
  // What somebody is editing stays, whatever another tab does.
  if (!toEnd && !focus && talk.querySelector("textarea")) return;
  hideTip();
  const unfolded = [...talk.querySelectorAll("details[open]")].map(
    (d) => d.closest("article").dataset.turn,
  );
  const change = () => {
    const path = listPath(chat);
    const articles = path.map((turn) => drawTurn(chat, turn));
    const answer = live.get(chat.id);
    if (answer?.turn.parent === chat.leaf) articles.push(drawLive(answer));
    const failure = failures.get(chat.id);
    if (failure?.leaf === chat.leaf) articles.push(drawFailure(failure));
    talk.replaceChildren(...(articles.length ? articles : [drawWelcome()]));
    for (const article of articles) {
      if (unfolded.includes(article.dataset.turn)) article.querySelector("details").open = true;
    }
  };
  follow(change, toEnd);
  if (focus) document.querySelector(`[data-key="${focus}"]`)?.focus();
}

// Change the conversation, and stay at its end if it was there.
function follow(change, toEnd = false) {
  const talk = $("talk");
  const isAtEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  change();
  if (isAtEnd || toEnd) talk.scrollTop = talk.scrollHeight;
}

function drawWelcome() {
  const { can_chat: canChat, model } = page.info;
  const starters = canChat
    ? ["Hello, how are you?", "Tell me a joke.", "What is Mount Everest?"]
    : ["The people of the United States", "Mount Everest is"];
  const told = canChat
    ? "Ask something, or let it answer ten times and see how different the answers are."
    : "This model continues text; it has not learnt to chat.";
  const begin = (text) => button(text, () => ask(text));
  return make(
    "div",
    { class: "welcome" },
    make("h2", {}, model ? `Talk to ${model}` : "ramp"),
    make("div", {}, told),
    make("div", { class: "starters" }, ...starters.map(begin)),
  );
}

function makeArticle(kind, turn, ...inside) {
  const who = kind === "user" ? "You" : (turn.model ?? page.info.model);
  const name = make("div", { class: kind === "user" ? "hidden-words" : "who" }, who);
  const props = { class: kind, "aria-label": who, "data-turn": turn.id };
  return make("article", props, name, ...inside);
}

function drawTurn(chat, turn) {
  const isMine = turn.role === "user";
  const acts = make("div", { class: "acts" });
  const act = (label, action, name = label, more = {}) => {
    const props = { "aria-label": name, "data-key": `${turn.id} ${label}`, ...more };
    acts.append(button(label, action, props));
  };
  const isBusy = { disabled: live.has(chat.id) };
  const plain = !page.info.can_chat;
  let shown = [make("div", { class: "said plain", dir: "auto" }, turn.content)];

  if (isMine) {
    act("Copy", (e) => copy(e.currentTarget, turn.content), "Copy your message");
    act("Edit", () => edit(chat, turn), "Edit your message", isBusy);
    const isLast = chat.leaf === turn.id && !live.has(chat.id);
    if (isLast && !failures.has(chat.id)) act("Answer", () => answer(chat));
  } else if (turn.samples) {
    shown = makeSamples(turn.samples, plain, (sample, number) => {
      const { parent, model } = turn;
      const foot = `sample ${number} of ${turn.samples.length}`;
      addTurn(chat, { ...sample, id: makeId(), parent, role: "assistant", model, foot });
      keep(chat);
      draw();
    });
    act("Sample again", () => answerAgain(chat, turn, NUM_SAMPLES), "Sample again", isBusy);
  } else {
    act("Copy", (e) => copy(e.currentTarget, turn.content), "Copy the answer");
    act("Regenerate", () => answerAgain(chat, turn), "Regenerate", isBusy);
    shown = [drawAnswer(turn, plain, act)];
  }
  addBranches(chat, turn, acts);
  if (turn.foot) acts.append(make("span", { class: "foot" }, turn.foot));
  const kind = isMine ? "user" : `model${turn.samples ? " many" : ""}`;
  return makeArticle(kind, turn, ...shown, acts);
}

function drawAnswer(turn, plain, act) {
  if (turn.verdict) return makeVerdict(turn.verdict);
  if (turn.tokens?.length) {
    const isOn = shaded.has(turn.id);
    const toggle = () => {
      if (isOn) shaded.delete(turn.id);
      else shaded.add(turn.id);
      draw();
      // Where the arrow keys walk.
      if (!isOn) document.querySelector(`[data-turn="${turn.id}"] .tokens`)?.focus();
    };
    act("Probabilities", toggle, "Probabilities", { "aria-pressed": isOn });
    if (isOn) {
      const tokens = makeTokens(turn.content, turn.tokens);
      letWalk(tokens);
      return make("div", { class: "said plain shaded", dir: "auto" }, tokens);
    }
  }
  const made = makeAnswer(plain);
  made.update(turn);
  return made.element;
}

// The other versions of a turn, after an edit or a second answer.
function addBranches(chat, turn, acts) {
  const versions = listChildren(chat, turn.parent);
  const at = versions.indexOf(turn);
  if (versions.length < 2) return;
  const go = (sign, to, name) => {
    const show = () => {
      chat.leaf = findLeaf(chat, versions[to].id);
      keep(chat);
      draw();
    };
    const props = {
      "aria-label": name,
      "data-key": `${turn.parent} ${name}`,
      disabled: !versions[to],
    };
    return button(sign, show, props);
  };
  const number = make("span", { class: "foot" }, `${at + 1} of ${versions.length}`);
  acts.append(
    make(
      "span",
      { class: "branches" },
      go("‹", at - 1, "Earlier version"),
      number,
      go("›", at + 1, "Later version"),
    ),
  );
}

function drawLive(entry) {
  const plain = !page.info.can_chat;
  const answers = (entry.turn.samples ?? [entry.turn]).map(() => makeAnswer(plain));
  entry.update = () => answers.forEach((made, i) => made.update(...entry.read(i)));
  entry.update();
  const elements = answers.map((made) => made.element);
  if (!entry.turn.samples) return makeArticle("model", entry.turn, ...elements);
  const cards = elements.map((element) => make("li", {}, element));
  return makeArticle("model many", entry.turn, make("ol", { class: "samples" }, ...cards));
}

// Why there is no answer, or only a part of one, and the ways on.
function drawFailure({ error, again }) {
  const ways = [];
  if (error.status === 401)
    ways.push(button("Enter the key", () => openSettings(page.info.settings, "key")));
  if ([400, 413, 422].includes(error.status)) {
    ways.push(button("Settings", () => openSettings(page.info.settings)));
    ways.push(button("New conversation", openFresh));
  }
  ways.push(button("Try again", again, { "data-key": "again" }));
  const said = make("div", { class: "said plain" }, error.message);
  const acts = make("div", { class: "acts" }, ...ways);
  return make("article", { class: "error", "aria-label": "Error" }, said, acts);
}

function edit(chat, turn) {
  const box = make("textarea", { class: "edit", "aria-label": "Edit your message", dir: "auto" });
  box.value = turn.content;
  const focus = `${turn.id} Edit`;
  const cancel = () => draw({ focus });
  const done = () => {
    const text = box.value.trim();
    if (!text || live.has(chat.id)) return;
    say();
    put(chat, text, turn.parent);
    answer(chat);
  };
  box.addEventListener("keydown", (event) => {
    if (isSend(event)) {
      event.preventDefault();
      done();
    }
    if (event.key === "Escape" && !isComposing(event)) {
      event.stopPropagation();
      cancel();
    }
  });
  const acts = make("div", { class: "acts" }, button("Send", done), button("Cancel", cancel));
  document.querySelector(`[data-turn="${turn.id}"]`).replaceChildren(box, acts);
  box.focus();
}

// Whoever writes Chinese or Japanese presses Enter and Escape to choose characters too; some
// browsers end that before the key is told, and mark it as 229.
export const isComposing = (event) => event.isComposing || event.keyCode === 229;
export const isSend = (event) => event.key === "Enter" && !event.shiftKey && !isComposing(event);

// Asking

export function stop() {
  live.get(page.chat.id)?.controller.abort();
}

// What has been written is kept where the page is left too.
export function stopAll() {
  for (const { controller } of live.values()) controller.abort();
}

// Add a question; one that was never answered gives way to it.
function put(chat, text, parent, task) {
  addTurn(chat, { id: makeId(), parent, role: "user", content: text, ...(task ? { task } : {}) });
  chat.title ||= text.slice(0, 60);
  chats.set(chat.id, chat);
  keep(chat);
}

export function ask(text, task, n = 1) {
  const { chat } = page;
  if (live.has(chat.id)) return;
  say();
  const last = find(chat, chat.leaf);
  put(chat, text, last?.role === "user" ? last.parent : chat.leaf, task);
  answer(chat, n);
}

function answerAgain(chat, turn, n = 1) {
  say();
  chat.leaf = turn.parent;
  answer(chat, n);
}

// Ten answers to the last question once more.
export function sampleAgain() {
  const last = find(page.chat, page.chat.leaf);
  if (!last) say("Write something first.");
  else if (last.role === "user") answer(page.chat, NUM_SAMPLES);
  else answerAgain(page.chat, last, NUM_SAMPLES);
}

function makeRequest(turns, n) {
  const { can_chat: canChat, model, settings, shape } = page.info;
  const get = (name) => setting(name, settings);
  const body = { model, n, stream_options: { include_usage: true }, truncation: "auto" };
  for (const name of ["temperature", "top_k", "top_p", "min_p", "seed"]) body[name] = get(name);
  if (!canChat) {
    const longest = Math.max(1, Math.min(get("tokens"), shape.context - 2));
    return [
      "v1/completions",
      { ...body, prompt: turns.at(-1).content, logprobs: 5, max_tokens: longest },
    ];
  }
  const system = get("system") ? [{ role: "system", content: get("system") }] : [];
  const messages = [...system, ...turns.map(({ role, content }) => ({ role, content }))];
  const own = { messages, logprobs: true, top_logprobs: 5, max_tokens: get("tokens") };
  return ["v1/chat/completions", { ...body, ...own }];
}

async function answer(chat, n = 1) {
  if (live.has(chat.id)) return;
  const question = find(chat, chat.leaf);
  const turn = {
    id: makeId(),
    parent: chat.leaf,
    role: "assistant",
    model: page.info.model,
    content: "",
  };
  const makePart = () => ({ content: "", thinking: "", tokens: [] });
  const parts = Array.from({ length: n }, makePart);
  if (n > 1) turn.samples = parts;
  const ended = new Set();
  const controller = new AbortController();
  const entry = { controller, turn, read: (i) => [parts[i], !ended.has(i)] };
  let first = 0;
  const heard = (i, { text, thinking, tokens, ended: why }) => {
    if (!parts[i]) return;
    parts[i].content += text;
    parts[i].thinking += thinking;
    parts[i].tokens.push(...tokens);
    if (text || thinking) first ||= performance.now();
    if (why) ended.add(i);
    parts[i].isCut = why === "length";
    // As often as the screen is drawn, and no oftener.
    entry.frame ||= requestAnimationFrame(() => {
      entry.frame = 0;
      if (chat === page.chat) follow(() => entry.update?.());
    });
  };

  const hadFailed = failures.delete(chat.id);
  live.set(chat.id, entry);
  draw({ toEnd: true, focus: "" });
  focusBox();
  let leftOut = 0;
  let error = null;
  const began = performance.now();
  try {
    // It may have been started anew, with another model.
    if (hadFailed || !page.info.model) await loadInfo();
    turn.model = page.info.model;
    const [path, body] = makeRequest(listPath(chat, turn.parent), n);
    leftOut = await stream(path, body, controller.signal, heard);
  } catch (caught) {
    error = caught;
  }
  cancelAnimationFrame(entry.frame);
  live.delete(chat.id);
  const isStopped = controller.signal.aborted;
  const written = parts.filter((part) => part.content || part.thinking);
  if (written.length || !error) {
    const seconds = Math.max(0.001, (performance.now() - (first || began)) / 1000);
    finish(chat, turn, n > 1 ? written : parts, { seconds, isStopped, error, leftOut });
    if (question?.task && n === 1 && !error) await judge(turn, question.task);
  }
  if (error && !isStopped) {
    const again = () => answerAgain(chat, { parent: turn.parent }, n);
    failures.set(chat.id, { error, again, leaf: chat.leaf });
  }
  if (chats.has(chat.id)) keep(chat);
  if (chat === page.chat) draw();
  else drawChats();
  announce(error && !isStopped ? error.message : describe(turn));
}

function describe(turn) {
  if (!turn.samples) return turn.content;
  return measureDiversity(turn.samples)
    .map(([name, value]) => `${name}: ${value}`)
    .join("; ");
}

// Put what was written into the conversation.
function finish(chat, turn, parts, { seconds, isStopped, error, leftOut }) {
  const tidy = ({ content, thinking, tokens }) => ({
    content,
    tokens,
    ...(thinking ? { thinking } : {}),
  });
  if (turn.samples) {
    turn.samples = parts.map(({ content, thinking, tokens }) => ({
      content: thinking ? `<think>${thinking}</think>${content}` : content,
      tokens,
    }));
    turn.content = turn.samples[0].content;
  } else {
    Object.assign(turn, tidy(parts[0]));
    const count = turn.tokens.length;
    const unit = count === 1 ? "token" : "tokens";
    const notes = count ? [`${count} ${unit}, ${(count / seconds).toFixed(0)} a second`] : [];
    if (isStopped) notes.push("stopped");
    else if (parts[0].isCut) notes.push("ended at the limit of its length");
    else if (error) notes.push("cut off");
    if (leftOut) notes.push(`the ${leftOut} oldest turns no longer fit and were left out`);
    turn.foot = notes.join("; ");
  }
  const { leaf } = chat;
  addTurn(chat, turn);
  // Somebody looked at another branch meanwhile.
  if (leaf !== turn.parent) chat.leaf = leaf;
}

async function judge(turn, { task, level, seed }) {
  try {
    turn.verdict = await call("ramp/judge", { task, level, seed, text: turn.content });
  } catch (error) {
    say(error.message);
  }
}

export const focusBox = () => {
  // On a phone the keyboard would cover the answer.
  if (matchMedia("(hover: hover)").matches) $("text").focus();
};

// The model that is served.
export async function loadInfo() {
  page.info = await call("ramp/info");
  const { model, stage, shape, can_chat: canChat, tasks } = page.info;
  document.title = $("name").textContent = model;
  $("about").textContent =
    `${stage}, ${shape.depth} layers, width ${shape.width}, context ${shape.context}`;
  $("text").placeholder = canChat ? "Say something" : "A text to continue";
  const option = (name) => make("option", { value: name }, name || "No task");
  $("task").replaceChildren(...["", ...Object.keys(tasks)].map(option));
  $("task").hidden = !canChat || !Object.keys(tasks).length;
}
