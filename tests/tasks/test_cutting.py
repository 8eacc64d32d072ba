"""Steps are cut where the model writes them, on the tokens of any tokenizer."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.tasks import chain
from ramp.tasks.cutting import cut_solution, open_cut, write_solution
from ramp.tasks.questions import find_number
from ramp.text.tokenizer import Tokenizer

BYTES = Tokenizer.bytes_only()
# Merges of its own: " the", and tokens that hold line ends together with what is before or behind.
TRAINED = Tokenizer.train(["First, the cat.\n\nThen the dog.\nSo the answer is 12.\n\n"] * 50, 320)
TEXT = "First, 3+4=7 cats.\n\nThen the 7 dogs.\n\n\nSo the answer is 12.\n"


def cut(steps, text=TEXT, tokenizer=BYTES, end=True, find=None):
    task = replace(chain.TASK, steps=steps, find_answer=find)
    ids = tokenizer.encode(text) + [tokenizer.end] * end
    return ids, cut_solution(tokenizer, task, ids)


@pytest.mark.parametrize("tokenizer", [BYTES, TRAINED])
def test_lines(tokenizer):
    ids, parsed = cut("newline", tokenizer=tokenizer)
    assert parsed.steps == ("First, 3+4=7 cats.", "Then the 7 dogs.")
    assert parsed.answer == "So the answer is 12."
    assert len(parsed.step_of_token) == len(ids) and parsed.step_of_token[-1] == 2
    assert sorted(parsed.step_of_token) == list(parsed.step_of_token)
    # Cut off, it has no answer, and the tokens stay where they are.
    ids, broken = cut("newline", tokenizer=tokenizer, end=False)
    assert broken.answer is None and broken.step_of_token == parsed.step_of_token[:-1]


def test_sentences():
    text = "Dr. Ho has 3.5 kg. He buys 2! Is it 5.5? Yes."
    _, parsed = cut("sentence", text)
    assert parsed.steps == ("Dr. Ho has 3.5 kg.", "He buys 2!", "Is it 5.5?")
    assert parsed.answer == "Yes."
    _, parsed = cut("sentence", "\u4e09\u3002\u56db\u3002")  # two sentences without a space
    assert len(parsed.steps) == 1


def test_a_pattern_of_ones_own_and_the_answer_that_the_task_finds():
    _, parsed = cut("regex:;", "a=1; b=2; so 1,234 it is", find=find_number)
    assert parsed.steps == ("a=1;", "b=2;") and parsed.answer == "1234"
    # The reserved token is a line end to whoever looks for the answer.
    ids = [*BYTES.encode("7"), BYTES.step, *BYTES.encode("12"), BYTES.end]
    task = replace(chain.TASK, find_answer=find_number)
    assert cut_solution(BYTES, task, ids).answer == "12"
    for bad in ("regex:(", "lines"):
        with pytest.raises(UserError, match=r"reinforce[.]steps"):
            open_cut(bad)


@given(st.text(max_size=40), st.sampled_from(["newline", "sentence", "regex:b", "regex:.(?=b)"]))
def test_every_token_belongs_to_the_piece_that_it_is_in(text, steps):
    """Pieces in their order make the text again, and none is without a token."""
    for tokenizer in (BYTES, TRAINED):
        ids, parsed = cut(steps, text, tokenizer)
        own = parsed.step_of_token[:-1]
        assert set(own) == set(range(len(parsed.steps) + 1)) or not own
        pieces = [
            tokenizer.decode([i for i, s in zip(ids, own, strict=False) if s == k]).strip()
            for k in range(len(parsed.steps) + 1)
        ]
        assert pieces == [*parsed.steps, parsed.answer]


def test_ids_that_the_tokenizer_has_no_name_for():
    task = replace(chain.TASK, steps="newline")
    parsed = cut_solution(BYTES, task, [999, 10, 65, BYTES.end, 66])
    assert parsed.steps == ("\ufffd",) and parsed.answer == "A"
    assert parsed.step_of_token == (0, 0, 1, 1, -1)
    assert cut_solution(BYTES, task, []).answer is None


@pytest.mark.parametrize("steps", ["token", "newline"])
def test_what_is_written_is_cut_as_it_was_written(steps):
    task = replace(chain.TASK, steps=steps)
    parsed = cut_solution(BYTES, task, write_solution(BYTES, task, ["a7", "b4"], "4"))
    assert (parsed.steps, parsed.answer) == (("a7", "b4"), "4")


def test_a_pattern_that_matches_nothing_at_all_is_refused():
    nothing = "matches where there is nothing"
    cases = [(f"regex:{p}", nothing) for p in ("x*", "", "(?=.)")] + [("regex:(", "is no reg")]
    for steps, words in cases:
        with pytest.raises(UserError, match=words) as raised:
            open_cut(steps)
        open_cut(re.findall(r"'(regex:[^']*)'", str(raised.value))[-1])  # the remedy
    open_cut("regex:(?m)$")  # at the ends of lines, and nowhere else
