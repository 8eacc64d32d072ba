// Elements by description, and the two places where the page speaks.

export const $ = (id) => document.getElementById(id);

// Strings become text nodes and nothing else: no text of anybody's becomes markup.
export function make(tag, props = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...inside.filter((x) => x != null));
  return element;
}

export function button(label, action, more = {}) {
  return make("button", { type: "button", ...more, onclick: action }, label);
}

// To everybody, under the box; ways: [label, action] of buttons beside it.
export function say(text = "", ...ways) {
  const press = ([label, action]) =>
    button(
      label,
      () => {
        say();
        action();
      },
      { class: "edged" },
    );
  $("hint").replaceChildren(text, ...ways.map(press));
}

// To screen readers alone.
export function announce(text) {
  $("status").textContent = text;
}

export async function copy(where, text) {
  let isDone = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers have a clipboard on https and on this machine only; this older way works on http.
    const box = make("textarea", { class: "hidden-words" });
    box.value = text;
    where.after(box);
    box.select();
    isDone = document.execCommand("copy");
    box.remove();
    where.focus();
  }
  where.textContent = isDone ? "Copied" : "Not allowed";
  setTimeout(() => {
    where.textContent = "Copy";
  }, 1200);
}
