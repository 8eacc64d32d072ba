"""Every task: gold solutions are verified, spoilt ones are caught, verdicts on ids equal verdicts on text."""

import textwrap
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.tasks import TASKS, addition, calculator, chain, paths, protocol, swaps, words
from ramp.tasks.protocol import (
    Problem,
    add_typos,
    make_slices,
    parse,
    prompt_ids,
    render,
    solution_ids,
)
from ramp.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes_only()
names = st.sampled_from(sorted(TASKS))
seeds, levels = st.integers(0, 10**6), st.integers(1, 8)


def judge_ids(tokenizer, task, problem, ids):
    parsed = parse(tokenizer, ids)
    return parsed, task.judge(problem, parsed.steps, parsed.answer)


@given(names, seeds, levels)
def test_gold_is_verified_and_sampling_is_pure(name, seed, level):
    task = TASKS[name]
    problem = task.sample(seed, level)
    assert problem == task.sample(seed, level)
    verdict = task.judge(problem, task.solution(problem), problem.answer)
    assert verdict.verified and verdict.first_error is None and not verdict.lucky


@given(seeds, levels)
def test_forgotten_carries_are_the_only_mistakes(seed, level):
    problem = addition.sample(seed, level)
    solve = addition.TASK.mistake.solve
    right = addition.solution(problem)
    assert solve(problem, 0.0) == (right, problem.answer)
    steps, answer = solve(problem, 1.0)
    assert all(step.count("+") == 1 for step in steps)
    verdict = addition.judge(problem, steps, answer)
    # Columns of the same digits may be taken for each other, so wrong steps are not counted.
    carried = any(int(step.split("=")[1]) >= 10 for step in steps[:-1])
    assert verdict.verified != carried
    assert carried or answer == problem.answer
    # With a chance between the two, the same arguments make the same solution.
    assert solve(problem, 0.5) == solve(problem, 0.5)


def test_a_chance_of_a_mistake_is_kept():
    forgotten = carries = 0
    for seed in range(2000):
        problem = addition.sample(seed, 3)
        steps, answer = addition.forget_carries(problem, 0.8)
        verdict = addition.judge(problem, steps, answer)
        due = [int(step.split("=")[1]) >= 10 for step in steps[:-1]]
        carries += sum(due)
        forgotten += sum(step.why == "wrong operand" for step in verdict.steps)
    assert abs(forgotten / carries - 0.8) < 4 * (0.8 * 0.2 / carries) ** 0.5


@given(names, seeds, levels)
def test_parsing_ids_inverts_rendering(name, seed, level):
    task = TASKS[name]
    problem = task.sample(seed, level)
    steps = task.solution(problem)
    ids = solution_ids(TOKENIZER, steps, problem.answer)
    parsed, verdict = judge_ids(TOKENIZER, task, problem, ids)
    assert parsed.steps == tuple(steps) and parsed.answer == problem.answer and verdict.verified
    assert [i for i, t in enumerate(ids) if t == TOKENIZER.step] == [
        i
        for i, (a, b) in enumerate(
            zip(parsed.step_of_token, parsed.step_of_token[1:], strict=False)
        )
        if a != b
    ]
    whole, weights = render(TOKENIZER, problem, steps, problem.answer)
    assert whole == prompt_ids(TOKENIZER, problem.question) + ids and sum(weights) == len(ids)


@given(
    names,
    seeds,
    levels,
    st.lists(st.text(max_size=12), max_size=10),
    st.one_of(st.none(), st.text(max_size=8)),
)
def test_nonsense_is_never_verified_and_never_raises(name, seed, level, steps, answer):
    task = TASKS[name]
    problem = task.sample(seed, level)
    verdict = task.judge(problem, steps, answer)
    assert len(verdict.steps) == len(steps)
    if verdict.verified:  # chance may write a right solution; then it must be one
        assert task.judge(problem, steps, problem.answer).verified and steps


@given(names, seeds, st.integers(1, 6))
def test_the_bare_answer_is_luck(name, seed, level):
    task = TASKS[name]
    problem = task.sample(seed, level)
    verdict = task.judge(problem, [], problem.answer)
    assert verdict.final_right and verdict.lucky and verdict.first_error == 0


@given(seeds, st.integers(1, 8), st.data())
def test_chain_against_a_slow_judge(seed, level, data):
    """Oracle: recompute every step from the text of the question."""
    problem = chain.sample(seed, level)
    start, *ops = problem.question.split(" ")
    values = data.draw(st.lists(st.integers(0, 9), min_size=level, max_size=level))
    steps = [f"{op[0]}{v}" for op, v in zip(ops, values, strict=True)]
    verdict = chain.judge(problem, steps, str(values[-1]))
    before = int(start)
    for op, value, step in zip(ops, values, verdict.steps, strict=True):
        assert step.right == (calculator.calculate(f"{before}{op[1]}{op[2]}") % 10 == value)
        before = value
    assert verdict.final_right == (str(values[-1]) == problem.answer) and verdict.answer.right


def test_reasons():
    p = chain.make(3, (("a", "+", 4), ("b", "*", 2), ("c", "-", 1)))
    assert p.question == "3 a+4 b*2 c-1" and chain.solution(p) == ["a7", "b4", "c3"]
    why = lambda *steps: [s.why for s in chain.judge(p, steps, "3").steps]  # noqa: E731
    assert why("a2") == ["wrong operation"]  # 3 * 4
    assert why("a5") == ["wrong operand"]  # 3 + 2
    assert why("a0") == ["wrong value"]
    assert why("b6") == ["wrong operation"]
    assert why("a7", "a7") == ["", "irrelevant"]
    assert why("a7", "x", "c6") == ["", "malformed", ""]
    assert chain.judge(p, ["a2", "b4", "c3"], "3").lucky  # 3*4=2, then 2*2=4: right again
    assert chain.judge(p, ["a7", "b4", "c3", "d3"], "3").first_error == 3
    assert not chain.judge(p, ["a7", "b4"], "3").verified

    q = Problem("addition", 0, 2, "47+25", (47, 25), "72")
    assert addition.solution(q) == ["7+5=12", "4+2+1=7"]
    judged = addition.judge(q, ["7+5=11", "4+2+1=7"], "71")
    assert (
        [s.why for s in judged.steps] == ["wrong value", ""]
        and judged.answer.right
        and not judged.final_right
    )
    assert addition.judge(q, ["7+5=12", "4+2=6"], "62").steps[1].why == "wrong operand"
    assert addition.judge(q, ["7*5=35"], "35").steps[0].why == "wrong operation"

    w = words.sample(3, 3)  # 30 / 2 / 5 * 5
    assert [s.why for s in words.judge(w, ["<<30/2=16>>16"], "16").steps] == ["wrong value"]
    assert words.judge(w, ["<<30*2=60>>60"], "60").steps[0].why == "wrong operation"
    assert words.judge(w, ["<<30/7=4>>4"], "4").steps[0].why == "wrong operand"
    assert words.judge(w, ["<<5/2=2.5>>2.5"], "2.5").steps[0].why == "irrelevant"
    assert words.judge(w, ["she has 30/2=15"], "15").steps[0].why == "malformed"
    assert words.judge(w, ["<<30/2=15>>16"], "15").steps[0].why == "malformed"

    edges = frozenset({("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")})
    g = Problem("paths", 0, 2, "", (edges, "a", "c"), "abc")
    assert (
        paths.judge(g, ["ad", "dc"], "adc").verified
        and paths.judge(g, ["ab", "bc"], "abc").verified
    )
    assert [s.why for s in paths.judge(g, ["ac", "ab", "cb", "bb"], "").steps] == [
        "wrong operation",
        "wrong operand",
        "wrong operand",
        "wrong operation",
    ]
    assert swaps.judge(Problem("swaps", 0, 2, "312", None, "123"), ["132", "123"], "123").verified
    assert [
        s.why
        for s in swaps.judge(
            Problem("swaps", 0, 2, "123", None, "123"), ["132", "312"], "123"
        ).steps
    ] == [
        "irrelevant",
        "irrelevant",
    ]


@given(seeds, st.integers(1, 8))
def test_shortest_walks_are_shortest(seed, level):
    """Oracle: grow the set of walks, not of nodes."""
    problem = paths.sample(seed, level)
    edges, start, goal = problem.gold
    walks, n = [start], 0
    while not any(w[-1] == goal for w in walks):
        walks = [w + b for w in walks for b in paths.neighbours(edges, w[-1]) if b not in w]
        n += 1
    assert n == len(problem.answer) - 1 and problem.answer in walks


@given(st.lists(st.integers(0, 263), max_size=40))
def test_parse_covers_every_token(ids):
    parsed = parse(TOKENIZER, ids)
    assert len(parsed.step_of_token) == len(ids)
    ended = TOKENIZER.end in ids
    assert (parsed.answer is None) == (not ended)
    upto = ids.index(TOKENIZER.end) + 1 if ended else len(ids)
    assert all(s >= 0 for s in parsed.step_of_token[:upto]) and set(
        parsed.step_of_token[upto:]
    ) <= {-1}
    assert len(parsed.steps) == ids[:upto].count(TOKENIZER.step)


def test_rollouts_that_end_badly():
    problem = chain.sample(1, 3)
    steps = chain.solution(problem)
    ids = solution_ids(TOKENIZER, steps, problem.answer)
    for cut in (
        ids[:-1],
        ids[:4],
        [],
        [TOKENIZER.step] * 5,
        [TOKENIZER.end],
        [*ids[:-2], TOKENIZER.end],
    ):
        _, verdict = judge_ids(TOKENIZER, chain.TASK, problem, cut)
        assert not verdict.verified and not verdict.final_right and verdict.first_error is not None


@given(names, seeds, levels)
def test_slices_are_solved_by_their_own_gold(name, seed, level):
    assume(name != "swaps" or level < 7)  # a longer row would need more than ten digits
    task = TASKS[name]
    for kind, problem in make_slices(task, seed, level):
        assert task.judge(problem, task.solution(problem), problem.answer).verified
        if kind in ("reworded", "typos"):
            assert problem.answer == task.sample(seed, level).answer
        if kind == "reworded":
            assert problem.question != task.sample(seed, level).question


@given(st.text(max_size=60), seeds)
def test_typos_keep_what_counts(text, seed):
    assert sorted(add_typos(text, seed)) == sorted(text)
    assert [c for c in add_typos(text, seed) if not c.isalpha()] == [
        c for c in text if not c.isalpha()
    ]


def test_words_kept_out_of_training_are():
    held = {wordings[-1].split("{n}")[0] for wordings in words.WORDINGS.values()}
    seen = " ".join(words.sample(seed, 4).question for seed in range(300))
    assert not any(text in seen for text in held)


def test_the_example_of_the_docstring_is_a_task():
    """The protocol's own example: right solutions are verified, and it answers any nonsense."""
    example = protocol.__doc__.split("`ramp/tasks/doubling.py`:")[1].split("As tokens")[0]
    names: dict = {}
    exec(textwrap.dedent(example), names)
    task = names["TASK"]
    for seed, level in product(range(20), (1, 2, 9)):
        problem = task.sample(seed, level)
        steps = task.solution(problem)
        assert problem == task.sample(seed, level) and problem.task == task.name
        assert task.judge(problem, steps, problem.answer).verified
        assert task.judge(problem, steps[:-1], problem.answer).lucky
        assert not task.judge(problem, [*steps, "7"], None).verified
        wrong = task.judge(problem, ["x", "5", *steps[2:]], problem.answer)
        assert next(step.why for step in wrong.steps[:2]) == "malformed"
    with pytest.raises(UserError, match="not 0"):
        task.sample(0, 0)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_levels_out_of_range_are_said(name):
    with pytest.raises(UserError, match="not 0"):
        TASKS[name].sample(0, 0)
    if name in ("chain", "paths", "swaps"):
        with pytest.raises(UserError, match="not 99"):
            TASKS[name].sample(0, 99)
