// What answers look like: text with its thinking folded, verdicts on steps, ten samples.

import { button, make } from "./dom.js";
import { render } from "./markdown.js";

// What a model thought before it answered. Some templates write the opening tag into the prompt.
export function splitThinking(content) {
  const text = content.trimStart();
  const opens = text.startsWith("<think>");
  const end = text.indexOf("</think>");
  if (!opens && end < 0) return { thinking: "", text: content, isOpen: false };
  const start = opens ? "<think>".length : 0;
  const thinking = text.slice(start, end < 0 ? undefined : end).trim();
  return {
    thinking,
    text: end < 0 ? "" : text.slice(end + "</think>".length).trimStart(),
    isOpen: end < 0,
  };
}

// The element of an answer, with `update` to draw it anew while it grows. plain: no Markdown.
export function makeAnswer(plain) {
  const thought = make("div", { class: "text" });
  const summary = make("summary");
  const fold = make("details", { class: "thinking", hidden: true }, summary, thought);
  const body = make("div", { class: "text" });
  const update = (turn, isLive = false) => {
    const { thinking, text, isOpen } = splitThinking(turn.content);
    const all = [turn.thinking, thinking].filter(Boolean).join("\n\n");
    fold.hidden = !all;
    if (all) {
      const isThinking = isLive && (isOpen || !text);
      summary.textContent = isThinking ? "Thinking …" : "Thought first";
      render(thought, all);
    }
    body.classList.toggle("plain", plain);
    if (plain) body.textContent = text;
    else render(body, text);
    body.classList.toggle("writing", isLive);
    const nothing = isOpen ? "The answer ended within the thinking." : "The model said nothing.";
    if (!text && !isLive) body.replaceChildren(make("p", { class: "foot" }, nothing));
  };
  return { element: make("div", { class: "said", dir: "auto" }, fold, body), update };
}

export function makeVerdict(verdict) {
  const lines = verdict.lines.map(({ text, right, why }) =>
    make(
      "li",
      { class: right ? "right" : "wrong" },
      make("span", { class: "mark", "aria-hidden": "true" }, right ? "✓" : "✗"),
      make("span", { class: "hidden-words" }, right ? "right: " : "wrong: "),
      make("span", {}, text || "(nothing)"),
      make("span", { class: "why" }, why),
    ),
  );
  const { verified, lucky, answer, solution } = verdict;
  let sum = `The right answer is ${answer} (${solution.join("  ")}).`;
  if (lucky) sum = `The right answer, ${answer}, over a wrong step: luck.`;
  if (verified) sum = "Right, and every step too.";
  const list = make("ol", { class: "verdict" }, ...lines);
  return make("div", { class: "said" }, list, make("div", { class: "foot" }, sum));
}

// Cards of samples, with their figures above; keep(sample, number) for the one that is chosen.
export function makeSamples(samples, plain, keep) {
  const seen = new Set();
  const cards = samples.map((sample, k) => {
    const answer = makeAnswer(plain);
    answer.update(sample);
    const key = words(sample.content).join(" ");
    const again = seen.has(key);
    seen.add(key);
    const acts = make(
      "div",
      { class: "acts" },
      button("Keep this one", () => keep(sample, k + 1)),
    );
    if (again) acts.append(make("span", { class: "foot" }, "said before"));
    return make("li", { class: again ? "same" : null }, answer.element, acts);
  });
  const figures = measureDiversity(samples).map(([name, value, title]) =>
    make("div", { title }, make("dt", {}, name), make("dd", {}, value)),
  );
  return [
    make("dl", { class: "figures", "aria-label": "How different the answers are" }, ...figures),
    make("ol", { class: "samples" }, ...cards),
  ];
}

const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}']+/gu) ?? [];

function measureOverlap(one, two) {
  const both = [...one].filter((word) => two.has(word)).length;
  return both / Math.max(1, one.size + two.size - both);
}

// [name, value, what it is] of each figure.
export function measureDiversity(samples) {
  const all = samples.map((sample) => words(sample.content));
  const pairs = all.flatMap((w) => w.slice(1).map((word, i) => `${w[i]} ${word}`));
  const sets = all.map((w) => new Set(w));
  const overlaps = sets.flatMap((one, a) =>
    sets.slice(0, a).map((two) => measureOverlap(one, two)),
  );
  const mean = (list) => list.reduce((sum, x) => sum + x, 0) / list.length;
  const entropies = samples
    .flatMap((s) => s.tokens ?? [])
    .map((t) => t.h)
    .filter((h) => h != null);
  const different = new Set(all.map((w) => w.join(" "))).size;
  return [
    [
      "different answers",
      `${different} of ${samples.length}`,
      "as words, punctuation and capitals aside",
    ],
    [
      "distinct-2",
      pairs.length ? (new Set(pairs).size / pairs.length).toFixed(2) : "–",
      "different pairs of neighbouring words, as a share of all pairs (Li et al. 2016)",
    ],
    [
      "overlap of two answers",
      overlaps.length ? mean(overlaps).toFixed(2) : "–",
      "mean over pairs of answers: shared words as a share of all their words (Jaccard)",
    ],
    [
      "entropy of a token",
      entropies.length ? `${(mean(entropies) / Math.LN2).toFixed(2)} bits` : "–",
      "the model's own uncertainty before each token, at temperature 1",
    ],
  ];
}
