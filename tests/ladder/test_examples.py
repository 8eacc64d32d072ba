"""The figures in the examples of the lessons are what the mechanisms make of the same inputs."""

import re

import numpy as np
import pytest

from ramp.ladder import generations, lesson, mechanisms, reliability
from ramp.ladder.rungs import RUNGS
from ramp.nines.sequential import count_evidence, log_capital_above

EXAMPLES = {rung.name: rung.lesson for rung in RUNGS if rung.lesson.example}


def read(text):
    """The first number, or the vector in parentheses, of a cell."""
    vector = re.match(r"\(([^)]*)\)", text)
    if vector:
        return [float(x) for x in vector[1].split(",")]
    return float(re.match(r"-?[\d,.]*\d", text)[0].replace(",", ""))


def lines(name):
    """The lines of an example, without their heads, each a list of cells."""
    return EXAMPLES[name].example[1:]


def test_every_rung_shows_what_goes_in_and_what_comes_out():
    """By the row of a probe, or by an example that can be checked by hand."""
    from ramp.ladder.practices import PRACTICES
    from ramp.ladder.probes import PROBES

    # These two keep no rows; of the learned bigram a step is worked out in the text.
    silent = {"generations", "promises"}
    for rung in RUNGS:
        has_row = rung.probe in (PROBES.keys() | PRACTICES.keys()) - silent
        assert has_row or rung.name in EXAMPLES or rung.name == "bigram, learned"
    for told in EXAMPLES.values():
        assert told.shows and len({len(line) for line in told.example}) == 1
        assert "<table" in "".join(lesson.render_example(told))


def test_letters_cost_what_their_counts_say():
    cost = [float(cell.split("= ")[1].split()[0]) for *_, cell in lines("unigram")]
    times = [read(line[2]) for line in lines("unigram")]
    np.testing.assert_allclose(cost, np.log2(6 / np.array(times)), atol=5e-4)
    assert mechanisms.unigram_bits(b"banana") == pytest.approx(np.dot(cost, times) / 6, abs=5e-4)
    _, after = mechanisms.softmax(np.array([-0.5, 0.5]))
    assert f"{after:.2f}" == "0.73" and "probability .73" in RUNGS[2].lesson.idea


def test_scores_are_bounded():
    for cell, without, bounded in lines("QK-norm"):
        q = np.array([read(cell)])
        assert (q @ q.T / np.sqrt(2)).item() == pytest.approx(read(without), abs=5e-3)
        ones = np.ones(2)
        got = mechanisms.score_normed(q, q, ones, ones).item()
        assert got == pytest.approx(read(bounded), abs=5e-3)


def test_a_gate_decides():
    one, first, second = np.eye(1), np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])
    for pair, wanted, below, this in lines("SwiGLU"):
        a, b = map(float, pair.split(","))
        x = np.array([[a, b]])
        assert read(wanted) == max(a, 0) * b
        assert mechanisms.feed_forward(x, first + second, one).item() == read(below)
        got = mechanisms.swiglu(x, first, second, one).item()
        assert got == pytest.approx(read(this), abs=0.05)


def test_bytes_that_are_kept():
    (_, below, this), (_, much, less) = lines("grouped queries")
    for single, many in ((below, much), (this, less)):
        product, total = single.split(" = ")
        count = np.prod([int(x) for x in product.split(" x ")])
        assert count == read(total) and count * 10_000 / 1e6 == pytest.approx(read(many))


def test_steps_of_two_optimizers():
    gradient = np.array([[5.0, 4.0], [4.0, 5.0]])
    for cell, asked, adam, muon in lines("Muon"):
        x = np.array(read(cell))
        assert (x @ gradient).tolist() == read(asked)
        # Of a first step the usual size of a number is its own.
        assert (x @ np.sign(gradient)).tolist() == read(adam)
        np.testing.assert_allclose(x @ mechanisms.orthogonalize(gradient), read(muon), atol=1e-12)


def test_two_letters_are_told_apart():
    for name in ("value embeddings", "x0 and residual scalars"):
        columns = np.array([[read(cell) for cell in line[1:]] for line in lines(name)])
        embedding, added, stream = columns[:3]
        np.testing.assert_array_equal(embedding + added, stream)
        assert np.array_equal(*stream) and not np.array_equal(*columns[-1])
        for x, x0, column in zip(stream, embedding, columns.swapaxes(0, 1), strict=True):
            if name == "value embeddings":
                value, row = column[3][None, None], column[4][None, None]
                np.testing.assert_array_equal(column[3], x)
                got = mechanisms.add_values(x[None], value, row, np.zeros((2, 1)))[0, 0]
            else:
                got = mechanisms.mix_embedding(x, x0, 1.0, 0.5)
            np.testing.assert_array_equal(got, column[-1])


def test_places_that_are_read():
    for place, below, this in lines("sliding windows"):
        t = int(read(place))
        assert read(below) == t + 1
        assert mechanisms.near_mask(256, 128)[t].sum() == read(this)


def test_rare_kinds_disappear():
    real = generations.list_probabilities(64)
    for name, rarest, commonest, cost in lines("the guard"):
        g = int(name.split()[1]) if name.startswith("generation") else 0
        p = real ** ((1 / generations.TEMPERATURE) ** g)
        p /= p.sum()
        rows = generations.NUM_ROWS * p
        assert rows[0] == pytest.approx(read(rarest), abs=0.05)
        assert rows[-1] == pytest.approx(read(commonest), abs=0.05)
        assert -np.log2(p[0]) == pytest.approx(read(cost), abs=0.05)


def test_twenty_rows_that_are_dearer():
    made = np.exp(mechanisms.weigh_evidence(np.ones(20)))
    assert "make 92,000 coins" in " ".join(RUNGS[22].lesson.idea.split())
    assert made == pytest.approx(92_000, rel=0.01)


def test_a_demonstration_and_a_proof():
    _, _, shipped, trials, made, proved = lines("reliability")
    for column, rate in ((1, reliability.GOOD), (2, reliability.BAD)):
        passed, count = (int(x.replace(",", "")) for x in trials[column].split(" of "))
        assert passed == round(rate * count)
        went = (np.arange(count) >= count - passed).astype(float)
        capital = np.exp(log_capital_above(count_evidence(went), reliability.BAR))
        assert capital == pytest.approx(read(made[column]), rel=0.02)
        assert reliability.judge_proof(went) == proved[column].startswith("yes")
        assert shipped[column].startswith("yes") and reliability.judge_demo(np.ones(10))
    # How long one failure delays the proof.
    assert "665" in RUNGS[23].lesson.pays
    for count, failures in ((366, 0), (665, 1)):
        for n in (count, count - 1):
            passed = (np.arange(n) >= failures).astype(float)
            assert reliability.judge_proof(passed) == (n == count)
