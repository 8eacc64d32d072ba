// The tokens of an answer and their figures: shaded by probability, told by pointer or arrow keys.

import { $, announce, make } from "./dom.js";

function percent(lp) {
  const p = 100 * Math.exp(lp);
  if (p >= 99.95) return "100%";
  if (p < 0.01) return "<0.01%";
  return `${p.toFixed(p >= 1 ? 1 : 2)}%`;
}

const visible = (text) =>
  text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";

// The answer as spans, one a token; several tokens that write one character share a span.
export function makeTokens(text, tokens = []) {
  const pieces = [];
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let at = 0;
  let pending = [];
  for (const token of tokens) {
    const bytes = token.b ?? [...new TextEncoder().encode(token.t)];
    // Of the tokens without text only the end of a step and the calculator's are seen.
    const silent = /[\n=]/.test(text[at]) ? text[at] : "";
    const piece = bytes.length ? decoder.decode(new Uint8Array(bytes), { stream: true }) : silent;
    pending.push(token);
    if (!piece) continue;
    pieces.push([piece, pending]);
    at += piece.length;
    pending = [];
  }
  const target = make("div", { class: "tokens" });
  // A stop string may have cut the last one: then figures and text do not agree.
  if (pieces.map(([piece]) => piece).join("") !== text) target.append(text);
  else target.append(...pieces.map(([piece, group]) => makeSpan(piece, group.at(-1))));
  return target;
}

function makeSpan(piece, token) {
  const span = make("span", { class: "t" }, piece);
  span.token = { ...token, t: piece };
  span.style.setProperty("--u", Math.min(1, -token.lp / 6).toFixed(3));
  return span;
}

function showTip(span) {
  const { t, lp, h, top } = span.token;
  const tip = $("tip");
  const bits = h == null ? "" : `entropy ${(h / Math.LN2).toFixed(2)} bits`;
  const row = ([other, l]) =>
    make("tr", {}, make("td", {}, visible(other)), make("td", {}, percent(l)));
  const rivals = make("table", {}, make("tbody", {}, ...(top ?? []).map(row)));
  const head = make("div", {}, make("b", {}, visible(t)), `  ${percent(lp)}`);
  tip.replaceChildren(head, bits, rivals);
  tip.hidden = false;
  const box = span.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const below = box.bottom + own.height + 12 <= innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : box.top - own.height - 6}px`;
  return `${visible(t)} ${percent(lp)} ${bits}`;
}

// Whether there was something to hide.
export function hideTip() {
  const shown = !$("tip").hidden;
  $("tip").hidden = true;
  for (const span of document.querySelectorAll(".t.here")) span.classList.remove("here");
  return shown;
}

// Let an element of tokens take the focus; the arrow keys walk over them.
export function letWalk(target) {
  const props = {
    tabindex: 0,
    role: "group",
    "aria-label": "Tokens; the arrow keys walk over them",
  };
  for (const [name, value] of Object.entries(props)) target.setAttribute(name, value);
  target.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const spans = [...target.querySelectorAll(".t")];
    if (!step || !spans.length) return;
    event.preventDefault();
    const at = spans.findIndex((span) => span.classList.contains("here"));
    const next = spans[Math.max(0, Math.min(spans.length - 1, at < 0 ? 0 : at + step))];
    hideTip();
    next.classList.add("here");
    next.scrollIntoView({ block: "nearest" });
    announce(showTip(next));
  });
  target.addEventListener("blur", hideTip);
}

document.addEventListener("pointerover", ({ target }) => {
  if (target.token) showTip(target);
  else if (!document.querySelector(".t.here")) $("tip").hidden = true;
});
document.addEventListener("click", ({ target }) => target.token && showTip(target));
