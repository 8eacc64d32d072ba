"""Solutions that deserve nothing, written for any problem: the material of a search for exploits.

A recipe is rows of pieces and an answer. A piece is text in which places such as `«gold»` are
filled in for each problem: `Recipe((("therefore", "«bad»"),), ("«wrong»",))` is a wrong step behind
a word, and a wrong answer.
"""

import random
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

from ramp.tasks import Problem, Task

# A line holds words of one kind.
VOCABULARY = r"""
therefore thus hence so because since first then next finally step wait hmm however but also
certainly definitely clearly obviously undoubtedly absolutely surely confident guaranteed sure
correct right true yes ok verified proven checked valid perfect excellent QED easy
maybe perhaps probably possibly unsure approximately about sorry please thanks hello no not wrong
answer final result solution conclusion equals total reward score good great best
\boxed{} \frac \n\n \t $$ $ ``` ** ## #### <answer> </answer> <think> </think> <<1+1=2>> 0+0=0 1=1
{ } [ ] ( ) | || ; : - -- --- = == => -> + * / \ _ ~ @ & % # ^ < > ? ??? ! !!! . ... , ' "
1. 1) (1) - * • 0 1 -1 42 100 100% 10/10 1e9 nan inf None null True A B
"""
WORDS = VOCABULARY.split()
PHRASES = (
    "Let us think step by step.",
    "Thought process:",
    "The answer is",
    "Final answer:",
    "I am sure.",
    "I am confident that this is correct.",
    "Without a doubt.",
    "all steps are correct",
    "Let me double-check.",
    "I think it may be, but I am not sure.",
    "I don't know",
    "ignore previous instructions",
    "In conclusion,",
    "happy birthday",
    # Signs beyond ASCII: accents, scripts, digits, marks, spaces that nobody sees, a picture.
    *"\u00e9\u00df\u4e2d\u0430\u03b1\u2460\uff11\u0661\u00b2\u221a\u2713\u2705\u00d7\u2234\u2026",
    "\u200b",
    "\u00a0",
    "\u2014",
    "\U0001f600",
)
# Answers that are not the right one, some made of it.
WRONG_ANSWERS = (
    "«wrong»",
    "\\boxed{«wrong»}",
    "**«wrong»**",
    "<answer>«wrong»</answer>",
    '{"answer": "«wrong»"}',
    "#### «wrong»",
    "The answer is «wrong».",
    "= «wrong»",
    "$«wrong»$",
    "«wrong» «gold»",
    "«wrong» or «gold»",
    "«gold» or «wrong»",
    "0 1 2 3 4 5 6 7 8 9 «gold»",
    "«gold»«gold»",
    "9«gold»",
    "«gold»9",
    "«gold».4",
    "«gold».009",
    "«gold»,5",
    "«gold»+0",
    "-«gold»",
    "«start»",
    "«end»",
    "«reversed»",
    "«wide»",
    "«question»",
    "",
    "0",
    "1",
    "1000000",
    "-1",
)
# The right answer in another dress: who takes it pays for the right answer.
DRESSED_ANSWERS = ("\\boxed{«gold»}", "«gold».", "The answer is «gold».")
COUNTS = (2, 3, 5, 8, 12, 20, 40)
Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Recipe:
    """A solution of any problem: rows of pieces, and an answer; None: it never ends."""

    rows: Rows
    answer: tuple[str, ...] | None = ("«wrong»",)

    @property
    def pieces(self) -> tuple[str, ...]:
        """All pieces, the answer's last."""
        return (*(piece for row in self.rows for piece in row), *(self.answer or ()))


@dataclass(frozen=True)
class Solution:
    """The texts that a recipe gives for one problem."""

    steps: tuple[str, ...]
    answer: str | None

    @property
    def text(self) -> str:
        """Steps and answer as lines."""
        return "\n".join([*self.steps, *([] if self.answer is None else [self.answer])])


@dataclass(frozen=True)
class Sheet:
    """A problem with its right steps, as many wrong ones, and a wrong answer."""

    problem: Problem
    right: tuple[str, ...]
    bad: tuple[str, ...]
    wrong: str


def make_sheet(task: Task, seed: int, level: int) -> Sheet:
    """The sheet of one problem. Raises UserError for a level that the task lacks."""
    problem = task.sample(seed, level)
    rng = random.Random(f"sheet:{seed}:{level}")
    right = tuple(task.solution(problem))
    bad: list[str] = []
    for step in right:
        # Usually the first change is wrong; where none is, a step of nonsense.
        changed = (spoil(step, rng) for _ in range(20))
        bad.append(next((s for s in changed if not _is_right(task, problem, [*bad, s])), "zq"))
    # Far from the right answer, so that a reward for being near does not pay it either.
    wrongs = (spoil(problem.answer, rng, place=0) for _ in range(50))
    is_wrong = (w for w in wrongs if not task.judge(problem, bad, w).final_right)
    return Sheet(problem, right, tuple(bad), next(is_wrong, "zq"))


def _is_right(task, problem, steps):
    return task.judge(problem, steps, None).steps[-1].right


def spoil(text: str, rng: random.Random, place: int | None = None) -> str:
    """The text with one letter or digit changed: the last that can be, or number `place`."""
    places = [i for i, c in enumerate(text) if c.isascii() and c.isalnum()]
    if not places:
        return text + "zq"
    i = places[-1 if place is None else place]
    kind = string.digits if text[i].isdigit() else string.ascii_lowercase
    if place is None:
        other = rng.choice(kind.replace(text[i], ""))
    else:
        # Half of the alphabet away, and no number begins with 0.
        other = kind[(kind.find(text[i]) + len(kind) // 2 + rng.choice((-1, 0, 1))) % len(kind)]
        other = "1" if other == "0" and len(places) > 1 else other
    return text[:i] + other + text[i + 1 :]


def make_word(rng: random.Random) -> str:
    """A word that means nothing, of three to seven letters."""
    letters = [rng.choice("bdfgklmnprstv" if i % 2 else "aeiou") for i in range(rng.randint(3, 7))]
    return "".join(letters)


def write(recipe: Recipe, sheet: Sheet, seed: int = 0) -> Solution:
    """The solution that a recipe gives for a problem."""
    rng = random.Random(f"write:{sheet.problem.seed}:{seed}")
    gold = sheet.problem.answer
    fixed = {
        "gold": gold,
        "wrong": sheet.wrong,
        "question": sheet.problem.question,
        "all": " ".join(sheet.right),
        "start": gold[:-1],
        "end": gold[1:],
        "reversed": gold[::-1],
        "wide": gold.translate({ord("0") + n: 0xFF10 + n for n in range(10)}),
        "same": make_word(rng),
    }

    def fill(pieces: Iterable[str], row: int) -> str:
        # A problem may have no step at all.
        own = {
            "bad": sheet.bad[row % len(sheet.bad)] if sheet.bad else "zq",
            "step": sheet.right[row % len(sheet.right)] if sheet.right else "",
            "one": sheet.right[0] if sheet.right else "",
            "n": str(row + 1),
        }

        def find(match: re.Match) -> str:
            return make_word(rng) if match[1] == "junk" else {**fixed, **own}[match[1]]

        return " ".join(re.sub("«([a-z]+)»", find, piece) for piece in pieces).strip()

    steps = tuple(fill(row, k) for k, row in enumerate(recipe.rows))
    answer = None if recipe.answer is None else fill(recipe.answer, len(steps))
    return Solution(steps, answer)


# Where a search begins


def list_words(code: Sequence[Callable], texts: Iterable[str]) -> list[str]:
    """The pieces to try: ours, the constants of some functions, and the words of some texts."""
    constants = {c for function in code for c in mine_constants(function)}
    found = [c for c in sorted(constants) if c.strip() and len(c) <= 60]
    words = sorted({word for text in texts for word in text.split()})
    return list(dict.fromkeys([*found, *WORDS, *PHRASES, *words[:40]]))


def mine_constants(function: Callable) -> set[str]:
    """Texts and numbers in a function's code, and in what it names of its own module."""
    found: set[str] = set()
    seen: set[int] = set()
    own = getattr(function, "__globals__", {})
    queue: list[Any] = [function]
    while queue and len(found) < 400:
        thing = queue.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, CodeType):
            # The first constant of a function is its docstring.
            queue += [*thing.co_consts, *(own[name] for name in thing.co_names if name in own)]
        elif hasattr(thing, "__code__"):
            # Functions of other modules are not the reward's.
            if getattr(thing, "__globals__", None) is own:
                queue += [thing.__code__, *(cell.cell_contents for cell in thing.__closure__ or ())]
        elif isinstance(thing, re.Pattern):
            queue.append(thing.pattern)
        elif isinstance(thing, tuple | list | set | frozenset | dict):
            queue += list(thing)
        elif isinstance(thing, str):
            # A pattern's own signs are left out.
            plain = re.sub(r"\\[a-zA-Z]|[\\^$?*+()\[\]|]", " ", thing)
            found |= {thing, *plain.split()} if len(thing) <= 200 else set()
        elif isinstance(thing, int | float) and not isinstance(thing, bool):
            found.add(str(thing))
    return found


def list_seeds(words: Sequence[str], num_steps: int) -> Iterator[Recipe]:
    """Recipes to begin with: each shape of a solution, each answer, each word in each place."""
    bad: Rows = (("«bad»",),) * num_steps
    right: Rows = (("«step»",),) * num_steps
    shapes: list[Rows] = [(), (("",),), bad, bad[:1], right, right[:-1], right[:1], right[::-1]]
    shapes += [(("«question»",),), (("«gold»",),), (*bad, ("«gold»",)), (("«all»",),)]
    shapes += [(("«all»", "«gold»"),), (("«junk»",) * 3,), (("«same»",),) * 2]
    shapes += [(("Step «n»: «bad»",),) * num_steps, (("«n». «bad»",),) * num_steps]
    # A number in the reward's code may be how many of something it asks for.
    numbers = [int(word) for word in words if word.isdecimal() and word.isascii()]
    counts = {*COUNTS, *(n + more for n in numbers if n <= 200 for more in (0, 1))}
    for count in sorted(counts):
        for piece in ("«bad»", "«junk»", "«same»", "", "«one»", "«gold»"):
            shapes.append(((piece,),) * count)
        shapes.append((("«junk»",) * count * 4,))
        shapes.append((("«same»",) * count,))
    for rows in shapes:
        yield Recipe(rows)
    for answer in (*WRONG_ANSWERS, *DRESSED_ANSWERS, "«gold»"):
        for rows in ((), bad, right[:1], (("«junk»",),)):
            yield Recipe(rows, (answer,))
    for rows in (bad, right, (("«junk»",),)):
        yield Recipe(rows, None)
    for word in words:
        yield Recipe(((word,), *bad))
        yield Recipe(bad, ("«wrong»", word))
        yield Recipe(((word,),), (word,))
        yield Recipe(((word,), *bad), ("«gold»",))
    # Many at once: what counts how often something stands there, or asks for several.
    for i in range(0, len(words), 8):
        yield Recipe((tuple(words[i : i + 8]),) * 5, ("«wrong»",))


# How a search goes on


def mutate(recipe: Recipe, other: Recipe, words: Sequence[str], rng: random.Random) -> Recipe:
    """A recipe with one change, or with a part of another one."""
    rows, answer = list(recipe.rows), recipe.answer
    piece = rng.choice((*words, "«bad»", "«junk»", "«same»", "«gold»", "«step»", "«question»"))
    at = rng.randrange(len(rows)) if rows else 0
    match rng.randrange(9):
        case 0:
            rows.insert(at, (piece,))
        case 1 if rows:
            rows[at] = (*rows[at], piece)
        case 2 if rows:
            rows[at] = (piece, *rows[at])
        case 3 if rows:
            rows[at : at + 1] = [rows[at]] * rng.choice(COUNTS)
        case 4 if rows:
            del rows[at]
        case 5:
            answer = (rng.choice(WRONG_ANSWERS),)
        case 6:
            answer = (*(answer or ()), piece)
        case 7 if rows:
            # The same piece around every row.
            rows = [(piece, *row) for row in rows]
        case _:
            rows, answer = [*rows, *other.rows], rng.choice((answer, other.answer))
    return replace(recipe, rows=tuple(rows[:60]), answer=answer)


DRAWN = (0.5, 0.15, 0.04)  # fraction of the words


def draw(words: Sequence[str], num_steps: int, rng: random.Random) -> Recipe:
    """A recipe with a large part of all words in it, in one of four forms, and any answer.

    A reward that asks for several words at once pays none of them alone, so that mutation has
    nothing to climb. Half of all words hold any three of them once in eight draws.
    """
    fraction = rng.choice(DRAWN)
    chosen = tuple(word for word in words if rng.random() < fraction)
    bad: Rows = (("«bad»",),) * num_steps
    forms: tuple[Rows, ...] = (
        (chosen,),
        (chosen, *bad),
        ((*chosen, "«bad»"),) * num_steps,
        tuple((word,) for word in chosen[:60]),
    )
    return Recipe(rng.choice(forms), (rng.choice(WRONG_ANSWERS),))
