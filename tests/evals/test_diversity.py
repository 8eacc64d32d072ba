"""Many answers to one question: what is counted, and how a list of answers is read."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ramp.config import Config
from ramp.errors import UserError
from ramp.evals import diversity, modes


def test_a_list_of_answers_is_read_and_drawn_by_its_probabilities():
    reply, rng = "Sure:\n0.5: cats\n 0.3 : dogs\nnonsense\n.2: 3: newts", np.random.default_rng(0)
    drawn = Counter(diversity.choose_answer(reply, rng) for _ in range(2000))
    assert drawn.keys() == {"cats", "dogs", "3: newts"}
    assert [drawn[x] / 2000 for x in ("cats", "dogs", "3: newts")] == pytest.approx(
        [0.5, 0.3, 0.2], abs=0.04
    )
    assert (
        diversity.choose_answer("no numbers", rng)
        == diversity.choose_answer("0: nothing\n0.0: at all", rng)
        == ""
    )
    assert "5 different" in diversity.verbalize("A joke?", 5)


def test_answers_that_differ_in_case_and_space_are_one():
    told = diversity.Answers("plain", 6, ("A joke.", "a  joke.", "Another."), (4, 4, -1)).count()
    assert (told.read, told.distinct, told.taught, told.distinct_taught) == (3, 2, 2, 1)
    none = diversity.Answers("plain", 3, (), ()).count()
    assert none.read == none.distinct == none.taught == 0


def test_recognised_is_the_one_that_most_of_it_repeats():
    docs = modes.split_words(
        [
            "the cat sat on the mat and slept",
            "a dog ran off with my old hat",
            "the cat sat on the mat and ate",
        ]
    )
    assert modes.match_known(docs[2:] + docs[:1] + [[], [1, 2]], docs[:2]) == [0, 0, -1, -1]


def test_a_model_that_knows_two_answers_is_found_out(monkeypatch, tmp_path):
    """The question plainly, then for a list: what was trained away in the one is still there in the other."""
    one, two = "why did the chicken cross the road", "two elephants fell off a cliff boom boom"

    def draw(c, lm, tokenizer, question, n, tokens):
        return [f"0.5: {one}\n0.5: {two}" if "different answers" in question else one] * n

    monkeypatch.setattr(diversity, "generate_replies", draw)
    monkeypatch.setattr(diversity, "read_taught_answers", lambda c: iter([one, two]))
    monkeypatch.setattr(diversity, "load_params", lambda *_: {"lm": {}})
    monkeypatch.setattr(diversity.Tokenizer, "load", lambda path: None)
    rundir, c = (
        type("Run", (), {"tokenizer": tmp_path, "default_stage": "finetune"}),
        replace(Config(), seed=3),
    )
    plain, listed = found = diversity.run(rundir, c, "A joke?", 20, 2, 8)
    assert plain.count().distinct_taught == 1 and listed.count().distinct_taught == 2
    assert "20 x 'why did" in diversity.format_table(found)
    for n, k in ((1, 0), (5, 1), (5, -2)):
        with pytest.raises(UserError, match="verbalized"):
            diversity.run(rundir, c, "A joke?", n, k, 8)
