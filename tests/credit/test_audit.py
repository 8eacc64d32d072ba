"""The audit: known credit gives known figures, right estimators are found right, attacks are attacks."""

from dataclasses import replace

import browser
import numpy as np
import pytest
from test_rollouts import TOKENIZER, written

from ramp.credit import audit, page
from ramp.credit.advantages import METHODS
from ramp.credit.learn import checker_credit
from ramp.tasks import Step, chain, questions, words
from ramp.tasks.protocol import solution_ids


def group_of_four():
    """One lucky success, one clean one, two failures with a right step."""
    r = written("a2|b4|4.", "a7|b4|4.", "a7|b5|5.", "a7|b9|9.")
    r = replace(r, group_size=4)
    return r, {
        name: np.asarray(METHODS[name](checker_credit(r)))
        for name in ("rloo", "step_local", "first_error")
    }


def test_misassigned_credit_of_a_group_known_by_hand():
    r, credited = group_of_four()
    outcome = audit.misassigned_credit(r, credited["rloo"])
    assert outcome.wrong_up == 1 and outcome.right_down == 1 and outcome.lucky == 0.5
    assert outcome.mass_on_wrong == pytest.approx(
        1 / 6
    )  # of the six steps of the two successes one is wrong
    assert outcome.bits == pytest.approx(1)  # half up, half down: one bit a rollout
    for name in ("step_local", "first_error"):
        process = audit.misassigned_credit(r, credited[name])
        assert process.wrong_up == process.right_down == process.mass_on_wrong == 0
    assert audit.misassigned_credit(r, credited["step_local"]).bits > 1


def test_diversity_counts_distinct_verified_solutions():
    r = written("a7|b4|4.", "a7|b4|4.", "a2|b4|4.", "a7|b5|5.")
    result = audit.measure_diversity(replace(r, group_size=4), (1, 2, 16))
    assert result.pass_at_k == {1: 0.5, 2: pytest.approx(1 - 1 / 6)}
    assert result.distinct == 1


def test_pictures_show_every_token_and_every_verdict():
    r, credited = group_of_four()
    text = page.render_page(TOKENIZER, r, credited, range(4), "Credit <here>")
    shown = range(page.SIBLINGS)
    assert "Credit &lt;here&gt;" in text and "right by luck" in text
    assert text.count('class="card"') == page.SIBLINGS and text.count("<section") == 2
    steps = [step for row in shown for step in r.verdicts[row].all_steps]
    assert text.count("✗") == sum(step.right is False for step in steps)
    assert text.count("<span style") == 3 * sum(len(r.ids(row)) for row in shown)
    # Numbers stand in the open, and a method's name is explained.
    assert text.count("<b>+") + text.count("<b>-") == 3 * len(steps)
    assert METHODS["rloo"].assign.__doc__.split(":")[0] in text
    assert "wrong operation" in page.describe_rollout(
        TOKENIZER, r, credited, 0
    ) and "rloo" in page.describe_rollout(TOKENIZER, r, credited, 0)
    assert len(page.plot_rollouts(TOKENIZER, r, credited, [0]).axes[0].patches) == 3 * len(r.ids(0))
    assert page.blend_color(0.0, 1.0) == (255, 255, 255) and page.blend_color(1.0, 0.0) == (
        255,
        255,
        255,
    )
    green, red = page.blend_color(1.0, 1.0), page.blend_color(-1.0, 1.0)
    assert green[1] > green[0] and red[0] > red[1]


def test_an_answer_follows_or_not_and_is_right_or_not():
    """Above an answer that is wrong nothing says that it is right: it follows from wrong steps."""
    r = written("a2|b5|5.", "a7|b4|4.")
    text = page.describe_rollout(TOKENIZER, r, {}, 0)
    assert "the answer is wrong" in text and "ok  right" not in text.splitlines()[-1]
    assert page.describe_step(Step(True), is_answer=True) == "follows from the steps"


def test_a_page_counts_what_it_shows_and_leaves_out_what_nobody_judged():
    r, credited = group_of_four()
    said = page.render_page(TOKENIZER, r, credited, [0], "")
    assert "Of 4 solutions 3 are shown. 2 have the answer 4, 1 with every step right." in said
    # Questions from a file, one of them cut off: its answer is missing, and no step is judged.
    problems = [replace(problem, answer="4") for problem in r.problems]
    texts = ["4", "5", "x"]
    ids = [TOKENIZER.encode(text) + [TOKENIZER.end] * (text != "x") for text in texts]
    task = replace(chain.TASK, judge=questions.judge)
    r = audit.solutions_as_rollouts(TOKENIZER, task, problems[:3], ids, group_size=3)
    credited = {"step_local": np.zeros(r.tokens_bn.shape)}
    said = page.render_page(TOKENIZER, r, credited, [0], "")
    assert "Of 3 solutions 3 are shown. 1 have the answer 4." in said
    assert "malformed" not in said and "every step right" not in said and "✗" not in said
    assert "The answer is missing" in said and "step right" not in said
    r = replace(r, problems=[replace(problem, answer="") for problem in problems[:3]])
    said = page.render_page(TOKENIZER, r, credited, [0], "")
    assert "Of 3 solutions 3 are shown.</p>" in said


def test_a_page_shows_different_problems_and_different_solutions():
    problems = [chain.sample(seed, 2) for seed in (1, 1, 2, 3)]
    ids = [
        solution_ids(TOKENIZER, chain.solution(p)[: k % 3], p.answer)
        for p in problems
        for k in (0, 0, 1, 2)
    ]
    rows = [p for p in problems for _ in range(4)]
    r = replace(audit.solutions_as_rollouts(TOKENIZER, chain.TASK, rows, ids), group_size=4)
    chosen = page.choose_siblings(r, [2, 1, 6])
    # Given rows first, equal solutions once; other problems follow, none of them twice.
    assert chosen == [[2, 1, 3], [8, 10, 11], [12, 14, 15]]
    questions = [r.problems[c[0]].question for c in chosen]
    assert len(set(questions)) == len(questions)


def test_a_page_shows_a_right_solution_where_there_is_one():
    """Beside wrong ones, however far down it stands; one that is right throughout before luck."""
    problem = chain.make(3, (("a", "+", 4), ("b", "*", 2)))

    def choose(*texts):
        ids = [[*TOKENIZER.encode(text.replace("|", "\n")), TOKENIZER.end] for text in texts]
        task = replace(chain.TASK, steps="newline")
        r = audit.solutions_as_rollouts(TOKENIZER, task, [problem] * 6, ids, group_size=6)
        return page.choose_siblings(r, [0, 1, 2])

    wrong = ["a1|b1|1", "a2|b2|2", "a3|b3|3", "a5|b5|5"]
    assert choose(*wrong, "a9|b9|9", "a7|b4|4") == [[0, 1, 5]]
    assert choose(*wrong, "a2|b4|4", "a7|b4|4") == [[0, 1, 5]]  # number 4 is lucky
    assert choose(*wrong, "a2|b4|4", "x") == [[0, 1, 4]]
    assert choose("a7|b4|4", *wrong, "x") == [[0, 1, 2]]
    assert choose(*wrong, "y", "x") == [[0, 1, 2]]


@pytest.mark.skipif(not browser.CHROMIUM, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_a_screen(width, tmp_path):
    """Nothing scrolls sideways, on a phone or on a desk, with long steps neither."""
    problem = words.sample(4, 3)
    steps = [*words.solution(problem), "x" * 90]
    ids = [solution_ids(TOKENIZER, s, problem.answer) for s in (steps, steps[:-1], [])]
    r = audit.solutions_as_rollouts(TOKENIZER, words.TASK, [problem] * 3, ids)
    r = replace(r, group_size=3)
    methods = {"step_local": np.asarray(METHODS["step_local"](checker_credit(r)))}
    path = tmp_path / "credit.html"
    path.write_text(page.render_page(TOKENIZER, r, methods, [0], "Credit"), "utf-8")
    chromium = browser.Browser(tmp_path / "profile")
    try:
        chromium.open(path.as_uri(), width)
        assert chromium.js("document.documentElement.scrollWidth") <= width
    finally:
        chromium.close()
