// The list of conversations: search, export and import.

import { $, button, make, say } from "./dom.js";
import { listChats, makeFile, readFile } from "./store.js";

const AROUND = 30; // characters on either side of what was searched

export const titleOf = (chat) => chat.title || "Untitled";

// Where a conversation holds the words: {} in its title, {turn, text} in a turn; null nowhere.
function search(chat, words) {
  if (!words || chat.title.toLowerCase().includes(words)) return {};
  for (const turn of chat.turns) {
    const at = turn.content.toLowerCase().indexOf(words);
    if (at < 0) continue;
    const text = turn.content.slice(Math.max(0, at - AROUND), at + words.length + AROUND);
    return { turn: turn.id, text: `… ${text} …` };
  }
  return null;
}

function findShown() {
  const words = $("find").value.trim().toLowerCase();
  return listChats()
    .map((chat) => ({ chat, hit: search(chat, words) }))
    .filter(({ hit }) => hit);
}

// open(chat, turn) and drop(chat) are what the buttons do.
export function drawList(current, open, drop) {
  const shown = findShown();
  const focused = document.activeElement?.dataset.key;
  $("list").replaceChildren(
    ...shown.map(({ chat, hit }) => {
      const title = titleOf(chat);
      const lines = [make("span", {}, title), hit.text ? make("small", {}, hit.text) : null];
      const isCurrent = chat === current ? "true" : null;
      const props = {
        class: "title",
        title,
        "data-key": chat.id,
        onclick: () => open(chat, hit.turn),
      };
      return make(
        "li",
        {},
        make("button", { type: "button", "aria-current": isCurrent, ...props }, ...lines),
        button("×", () => drop(chat), { class: "drop", "aria-label": `Delete ${title}` }),
      );
    }),
  );
  if (focused) $("list").querySelector(`[data-key="${focused}"]`)?.focus();
  const isSearch = Boolean($("find").value.trim());
  $("none").hidden = !isSearch || shown.length > 0;
  $("export").disabled = !shown.length;
  $("export").textContent = isSearch ? `Export these ${shown.length}` : "Export all";
}

export function openFirst() {
  $("list").querySelector(".title")?.click();
}

export function exportShown() {
  const shown = findShown().map(({ chat }) => chat);
  const blob = new Blob([makeFile(shown)], { type: "application/json" });
  const url = URL.createObjectURL(blob);
  const day = new Date().toISOString().slice(0, 10);
  make("a", { href: url, download: `ramp-conversations-${day}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000); // after the browser has read it
  say(`Exported ${count(shown.length)}.`);
}

export async function importFiles(input) {
  try {
    for (const file of input.files) {
      const [number, news] = await readFile(file);
      say(`Imported ${count(number)}. ${news}`);
    }
  } catch (error) {
    say(error.message);
  }
  input.value = ""; // or the same file could not be chosen again
}

const count = (n) => (n === 1 ? "one conversation" : `${n} conversations`);
