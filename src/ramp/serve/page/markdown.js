// Markdown as models write it, built of elements and text nodes.
//
// Headings, lists, quotes, tables, code, emphasis and links; markup in the text stays text, and no
// picture is loaded. Whatever a model writes, time grows with its length and depth is bounded.
// Unlike CommonMark, a line end within a paragraph stays one, and 2*3*4 is arithmetic.

import { button, copy, make } from "./dom.js";

const MAX_DEPTH = 8; // of quotes and lists inside each other

// Draw `source` into `target`. Blocks that are as they were keep their elements, so text that
// somebody has selected stays selected while the end of an answer is being written.
export function render(target, source) {
  const blocks = splitBlocks(source.split("\n"), 0);
  blocks.forEach((block, i) => {
    const old = target.children[i];
    const key = block.kind.name + block.lines.join("\n");
    if (old?.markdown === key) return;
    const element = block.kind.build(block.lines, 0);
    element.markdown = key;
    if (old) old.replaceWith(element);
    else target.append(element);
  });
  while (target.children.length > blocks.length) target.lastChild.remove();
}

// Blocks

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})\s*(\S*)/;
const isBlank = (line) => !line.trim();
const isDelimiter = (line = "") =>
  /^[\s|:-]+$/.test(line) && line.includes("|") && line.includes("-");
const indentOf = (line) => line.length - line.trimStart().length;

// begins: whether a block starts at line i; end: where it ends; build: its element.
const KINDS = [
  {
    name: "code",
    begins: (lines, i) => FENCE.test(lines[i]),
    end(lines, i) {
      const mark = FENCE.exec(lines[i])[1];
      const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
      return Math.min(lines.length, endWhere(lines, i, closes) + 1); // not closed: the rest
    },
    build: buildCode,
  },
  {
    name: "heading",
    begins: (lines, i) => /^ {0,3}#{1,6}\s/.test(lines[i]),
    end: (lines, i) => i + 1,
    build(lines) {
      const level = /#+/.exec(lines[0])[0].length;
      // The page has an h1 of its own, and an h2 above each answer would be too loud.
      return make(`h${Math.min(6, level + 2)}`, {}, inline(lines[0].trim().slice(level).trim()));
    },
  },
  {
    name: "rule",
    begins: (lines, i) => /^ {0,3}([-*_])(?: *\1){2,} *$/.test(lines[i]),
    end: (lines, i) => i + 1,
    build: () => make("hr"),
  },
  {
    name: "table",
    begins: (lines, i) => lines[i].includes("|") && isDelimiter(lines[i + 1]),
    end: (lines, i) => endWhere(lines, i, (line) => !line.includes("|")),
    build: buildTable,
  },
  {
    name: "quote",
    begins: (lines, i) => /^ {0,3}>/.test(lines[i]),
    end: (lines, i) => endWhere(lines, i, (line) => !/^ {0,3}>/.test(line)),
    build(lines, depth) {
      const inner = lines.map((line) => line.replace(/^ {0,3}> ?/, ""));
      return make("blockquote", {}, ...buildBlocks(inner, depth + 1));
    },
  },
  { name: "list", begins: (lines, i) => ITEM.test(lines[i]), end: findListEnd, build: buildList },
];
const PARAGRAPH = {
  name: "paragraph",
  build: (lines) => make("p", {}, inline(lines.map((line) => line.trimEnd()).join("\n"))),
};

function endWhere(lines, i, isEnd) {
  let end = i + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  return end;
}

function splitBlocks(lines, depth) {
  const blocks = [];
  // Beyond some depth everything is a paragraph: a thousand > would be a thousand calls.
  const kinds = depth < MAX_DEPTH ? KINDS : [];
  const kindAt = (i) => kinds.find((kind) => kind.begins(lines, i));
  for (let i = 0; i < lines.length;) {
    if (isBlank(lines[i])) {
      i += 1;
      continue;
    }
    const kind = kindAt(i);
    let end = kind?.end(lines, i) ?? i + 1;
    // A number ends a paragraph only as 1., since a line may well begin with a year.
    const ends = (k) => isBlank(lines[k]) || (kindAt(k) && !/^\s*(?!1[.)])\d+[.)]/.test(lines[k]));
    if (!kind) while (end < lines.length && !ends(end)) end += 1;
    blocks.push({ kind: kind ?? PARAGRAPH, lines: lines.slice(i, end) });
    i = end;
  }
  return blocks;
}

const buildBlocks = (lines, depth) =>
  splitBlocks(lines, depth).map(({ kind, lines }) => kind.build(lines, depth));

function buildCode(lines) {
  const [opening, mark, language] = FENCE.exec(lines[0]);
  const isClosed = lines.length > 1 && lines.at(-1).trim().startsWith(mark);
  const indent = indentOf(opening);
  const own = lines.slice(1, isClosed ? -1 : undefined);
  const text = own.map((line) => line.slice(Math.min(indent, indentOf(line)))).join("\n");
  const act = button("Copy", (e) => copy(e.currentTarget, text), { "aria-label": "Copy the code" });
  const bar = make("div", { class: "bar" }, make("span", {}, language.slice(0, 30)), act);
  // Long lines scroll within the block, by keyboard too.
  const box = make("pre", { tabindex: 0, "aria-label": "Code" }, make("code", {}, text));
  return make("figure", { class: "code" }, bar, box);
}

const splitRow = (line) =>
  line
    .trim()
    .replace(/^\||(?<!\\)\|$/g, "")
    .split(/(?<!\\)\|/);

function buildTable(lines) {
  const sides = splitRow(lines[1]).map((cell) => {
    const [left, right] = [cell.trim().startsWith(":"), cell.trim().endsWith(":")];
    return right ? (left ? "middle" : "right") : null;
  });
  const row = (line, tag) => {
    const cells = splitRow(line).slice(0, sides.length);
    return make("tr", {}, ...cells.map((c, k) => make(tag, { class: sides[k] }, inline(c.trim()))));
  };
  const head = make("thead", {}, row(lines[0], "th"));
  const body = make("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
  const table = make("table", {}, head, body);
  return make(
    "div",
    { class: "wide-table", tabindex: 0, role: "group", "aria-label": "Table" },
    table,
  );
}

const isOrdered = (line) => /\d/.test(ITEM.exec(line)[2]);

function findListEnd(lines, i) {
  const first = indentOf(lines[i]);
  const goesOn = (line) => {
    if (indentOf(line) > first + 1) return true;
    return ITEM.test(line) && indentOf(line) >= first && isOrdered(line) === isOrdered(lines[i]);
  };
  let end = i + 1;
  for (let k = end; k < lines.length; k += 1) {
    // Blank lines belong to a list only if it goes on after them.
    if (isBlank(lines[k])) continue;
    if (goesOn(lines[k])) end = k + 1;
    else if (k === end && !KINDS.some((kind) => kind.begins(lines, k))) end = k + 1;
    else break;
  }
  return end;
}

function buildList(lines, depth) {
  const first = indentOf(lines[0]);
  const items = [];
  let width = 0; // of the marker, which the lines of an item are indented by
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && (!items.length || found[1].length < width) && found[1].length <= first + 1) {
      width = Math.min(found[0].length, found[1].length + found[2].length + 4);
      items.push([line.slice(found[0].length)]);
    } else {
      items.at(-1).push(line.slice(Math.min(width, indentOf(line))));
    }
  }
  const build = (own) => {
    const blocks = buildBlocks(own, depth + 1);
    // A line alone is set without the space around a paragraph.
    if (blocks[0]?.tagName === "P") blocks[0].className = "tight";
    return make("li", {}, ...blocks);
  };
  const ordered = isOrdered(lines[0]);
  const start = ordered ? { start: parseInt(lines[0].trim(), 10) } : {};
  return make(ordered ? "ol" : "ul", start, ...items.map(build));
}

// Text in a line

const MARK = /`+|\\[\\`*_~#|]|\*{1,3}|_{1,2}|~~|!?\[|https?:\/\//g;
const TAGS = { "***": "strong", "**": "strong", "*": "em", __: "strong", _: "em", "~~": "del" };
const LINK = /!?\[([^[\]\n]{1,500})\]\(((?:[^\s()]|\([^\s()]*\)){1,2000})(?: "[^"\n]{0,200}")?\)/y;
const ADDRESS = /https?:\/\/[^\s<>"`]{1,2000}/y;

// What a mark stands for: [element or text, where it ends], or nothing where it is a mere
// character.
const PIECES = {
  "`"(text, start, mark, missing) {
    // Marks that are never closed are looked for once, not once each.
    if (missing.has(mark)) return null;
    const end = text.slice(start + mark.length).search(new RegExp(`(?<!\`)${mark}(?!\`)`));
    if (end < 0) return void missing.add(mark);
    const own = text.slice(start + mark.length, start + mark.length + end);
    // A space at both ends lets code begin or end with a mark of its own.
    const isPadded = own.startsWith(" ") && own.endsWith(" ") && own.trim();
    const code = isPadded ? own.slice(1, -1) : own;
    return [make("code", {}, code), start + 2 * mark.length + end];
  },
  "\\": (text, start) => [text[start + 1], start + 2],
  "["(text, start) {
    const found = matchAt(LINK, text, start);
    return found && [link(found[2], inline(found[1], LINKLESS)), start + found[0].length];
  },
  h(text, start) {
    let url = matchAt(ADDRESS, text, start)?.[0].replace(/[.,;:!?*_~'\]]{1,9}$/, "");
    if (!url) return null;
    if (url.endsWith(")") && !url.includes("(")) url = url.replace(/\){1,9}$/, "");
    return [link(url, url), start + url.length];
  },
};
const LINKLESS = { "`": PIECES["`"], "\\": PIECES["\\"] }; // within the text of a link
PIECES["!"] = PIECES["["]; // a picture is shown as a link: to load it would tell others who reads

function matchAt(pattern, text, start) {
  pattern.lastIndex = start;
  return pattern.exec(text);
}

function link(url, inside) {
  // No script, no file, no data: what is not an address of the web or of mail stays text.
  if (!/^(https?:\/\/|mailto:)/i.test(url)) return make("span", {}, inside, ` (${url})`);
  const rel = "noopener noreferrer nofollow";
  return make("a", { href: url, title: url, target: "_blank", rel }, inside);
}

function inline(text, pieces = PIECES) {
  const open = [{ mark: "", element: new DocumentFragment() }]; // emphasis not closed yet
  const missing = new Set();
  let done = 0;
  const write = (...pieces) => open.at(-1).element.append(...pieces);
  const unwind = (depth) => {
    // what was never closed is a mere character
    while (open.length > depth) {
      const { mark, element } = open.pop();
      write(mark);
      while (element.firstChild) write(element.firstChild);
    }
  };
  for (const found of text.matchAll(MARK)) {
    const start = found.index;
    const mark = found[0];
    if (start < done) continue; // inside of a piece
    const piece = pieces[mark[0]]?.(text, start, mark, missing);
    if (piece) {
      write(text.slice(done, start), piece[0]);
      done = piece[1];
      continue;
    }
    if (!TAGS[mark]) continue;
    const { opens, closes } = sides(mark, text[start - 1] ?? " ", text[start + mark.length] ?? " ");
    const depth = open.findIndex((frame) => frame.mark === mark);
    if (depth > 0 ? !closes : !opens) continue;
    write(text.slice(done, start));
    done = start + mark.length;
    if (depth > 0) {
      unwind(depth + 1);
      const { element } = open.pop();
      write(element);
    } else {
      open.push({ mark, element: make(TAGS[mark], { class: mark === "***" ? "slanted" : null }) });
    }
  }
  write(text.slice(done));
  unwind(1);
  return open[0].element;
}

function sides(mark, before, after) {
  const isWord = (c) => (mark[0] === "_" ? /[\p{L}\p{N}_]/u : /\w/).test(c);
  const isInside = isWord(before) && isWord(after); // snake_case, 2*3*4
  const isPlain = isInside && (mark === "*" || mark[0] === "_");
  return { opens: !isPlain && /\S/.test(after), closes: !isPlain && /\S/.test(before) };
}
