// Settings: how answers are drawn, the key, and light or dark.

import { $ } from "./dom.js";
import { readKey, writeKey } from "./server.js";
import { readValue, writeValue } from "./store.js";

const STORED = "ramp.settings";
const inputs = () => $("settings").querySelectorAll("input, textarea");
let settings = {};

// Only what the fields below could have written: a strange value would be refused with each answer.
export function readSettings() {
  const stored = readValue(STORED, {});
  settings = {};
  for (const { name, type } of inputs()) {
    const value = stored[name];
    const isRight = type === "number" ? Number.isFinite(value) : typeof value === "string";
    if (isRight && name !== "key") settings[name] = value;
  }
}

export const setting = (name, defaults) => settings[name] ?? defaults[name];

// focus: the name of the field to begin with.
export function openSettings(defaults, focus) {
  const dialog = $("settings");
  const fill = (values) => {
    for (const input of inputs()) {
      if (input.name === "key") input.value = readKey();
      else input.value = values[input.name] ?? defaults[input.name] ?? "";
    }
  };
  fill(settings);
  $("defaults").onclick = () => fill({});
  dialog.showModal();
  if (focus) dialog.querySelector(`[name="${focus}"]`).focus();
}

// Take over what was entered.
export function takeSettings(defaults) {
  settings = {};
  for (const { name, type, value } of inputs()) {
    if (name === "key") writeKey(value.trim());
    else if (value !== "" && value !== `${defaults[name] ?? ""}`) {
      settings[name] = type === "number" ? Number(value) : value;
    }
  }
  writeValue(STORED, settings);
}

// Light or dark: as the system has it, until the button chooses the other one.
const THEME = "ramp.appearance";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function readTheme() {
  const chosen = readValue(THEME, "");
  if (["light", "dark"].includes(chosen)) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

export function switchTheme() {
  const system = dark.matches ? "dark" : "light";
  const now = document.documentElement.dataset.theme ?? system;
  const other = now === "dark" ? "light" : "dark";
  // Back at what the system has, the page follows it again.
  writeValue(THEME, other === system ? "" : other);
  readTheme();
}
