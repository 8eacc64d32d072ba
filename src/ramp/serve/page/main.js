// The page begins here: what its keys and buttons do.

import { $, make, say } from "./dom.js";
import { exportShown, importFiles, openFirst } from "./list.js";
import { call } from "./server.js";
import { openSettings, readSettings, readTheme, switchTheme, takeSettings } from "./settings.js";
import { chats, listen, readAll, removeRecords } from "./store.js";
import { ask, draw, drawChats, focusBox, hearOtherTab, isComposing, isSend } from "./talk.js";
import { loadInfo, open, openFresh, page, sampleAgain, stop, stopAll } from "./talk.js";
import { hideTip } from "./tokens.js";

let problem = null; // the problem of a task that was put into the box

// The box

function take(n) {
  const text = $("text").value.trim();
  if (!text || $("send").hidden) return false;
  $("text").value = "";
  fitBox();
  ask(text, problem?.question === text ? problem : null, n);
  problem = null;
  return true;
}

function fitBox() {
  const box = $("text");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, innerHeight * 0.4)}px`;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  take(1);
});
$("text").addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  take(1);
});
$("text").addEventListener("input", fitBox);
$("ten").addEventListener("click", () => take(10) || sampleAgain());
$("stop").addEventListener("click", stop);

// Tasks

function chooseTask() {
  const levels = page.info.tasks[$("task").value] ?? 0;
  const option = (_, i) => make("option", { value: i + 1, selected: i === 1 }, `level ${i + 1}`);
  $("level").replaceChildren(...Array.from({ length: levels }, option));
  $("level").hidden = $("problem").hidden = !levels;
  if (levels) makeProblem();
}

async function makeProblem() {
  const seed = Math.floor(Math.random() * 2 ** 31);
  const query = new URLSearchParams({ task: $("task").value, level: $("level").value, seed });
  try {
    problem = await call(`ramp/problem?${query}`);
    $("text").value = problem.question;
    fitBox();
    focusBox();
  } catch (error) {
    say(error.message, ["Try again", makeProblem]);
  }
}

$("task").addEventListener("change", chooseTask);
$("level").addEventListener("change", makeProblem);
$("problem").addEventListener("click", makeProblem);

// Conversations

function showMenu(on) {
  const wasOn = $("side").classList.contains("open");
  $("side").classList.toggle("open", on);
  $("menu").setAttribute("aria-expanded", on);
  // What lies under the list takes no key.
  document.querySelector("main").inert = on;
  if (on) $("new").focus();
  else if (wasOn) $("menu").focus();
  return wasOn;
}

$("new").addEventListener("click", () => {
  showMenu(false);
  openFresh();
  focusBox();
});
$("menu").addEventListener("click", () => showMenu(!$("side").classList.contains("open")));
$("list").addEventListener("click", ({ target }) => {
  if (!target.closest(".title")) return;
  showMenu(false);
  focusBox();
});
$("find").addEventListener("input", drawChats);
$("find").addEventListener(
  "keydown",
  (event) => event.key === "Enter" && !isComposing(event) && openFirst(),
);
$("export").addEventListener("click", exportShown);
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  await importFiles($("file"));
  drawChats();
});

// Settings

$("theme").addEventListener("click", switchTheme);
$("open-settings").addEventListener("click", () => openSettings(page.info.settings));
$("cancel").addEventListener("click", () => $("settings").close());
// Done, or Enter in a field; Escape and Cancel leave all as it was.
$("settings").addEventListener("submit", () => {
  takeSettings(page.info.settings);
  if (!page.info.model) begin();
});

// Escape closes what is on top, and only that; with nothing open it stops the answer.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || isComposing(event) || $("settings").open) return;
  if ($("find").value) {
    $("find").value = "";
    drawChats();
    return;
  }
  if (!hideTip() && !showMenu(false)) stop();
});
document.addEventListener("click", ({ target }) => {
  if (!target.closest("nav, #menu, dialog") && $("side").classList.contains("open"))
    showMenu(false);
});

// A reload, or a copy of the address in another tab, comes back to the same conversation.
function openFromAddress() {
  const chat = chats.get(location.hash.slice(1));
  if (chat) open(chat);
  else openFresh();
}

async function begin() {
  try {
    await loadInfo();
    draw();
  } catch (error) {
    const enter = ["Enter the key", () => openSettings(page.info.settings, "key")];
    say(error.message, error.status === 401 ? enter : ["Try again", begin]);
  }
}

readTheme();
readSettings();
window.addEventListener("storage", () => {
  readTheme();
  readSettings();
});
listen(hearOtherTab);
window.addEventListener("pagehide", stopAll);
const unreadable = readAll();
openFromAddress();
window.addEventListener("hashchange", openFromAddress);
focusBox();
await begin();
if (unreadable.length) {
  const forget = () => removeRecords(unreadable);
  say("Some stored conversations cannot be read; they are left as they are.", [
    "Remove them",
    forget,
  ]);
}
