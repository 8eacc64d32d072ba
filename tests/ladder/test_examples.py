"""The figures in the examples of the lessons are what the mechanisms make of the same inputs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ramp import config
from ramp.config import Thresholds
from ramp.ladder import generations, learn, lesson, mechanisms, page, probes, reliability
from ramp.ladder.rungs import RUNGS, find_top
from ramp.model import cost
from ramp.nines.sequential import count_evidence, log_capital_above
from ramp.synth import guard
from ramp.train.optim import POLAR

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
    # Four units of rung 8 make the product, wanted or not.
    signs = np.array([[1.0, -1, 1, -1], [1, -1, -1, 1]])
    product = mechanisms.feed_forward(
        np.array([[-5.0, 3]]), signs, np.array([[1.0], [1], [-1], [-1]])
    )
    assert product.item() / 4 == -15 and "-15 for (-5, 3)" in " ".join(
        RUNGS[12].lesson.idea.split()
    )


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
    for name, rarest, commonest, dear in lines("the guard"):
        g = int(name.split()[1]) if name.startswith("generation") else 0
        p = real ** ((1 / generations.TEMPERATURE) ** g)
        p /= p.sum()
        rows = generations.NUM_ROWS * p
        assert rows[0] == pytest.approx(read(rarest), abs=0.05)
        assert rows[-1] == pytest.approx(read(commonest), abs=0.05)
        assert -np.log2(p[0]) == pytest.approx(read(dear), abs=0.05)


def test_twenty_rows_that_are_dearer():
    made = np.exp(mechanisms.weigh_evidence(np.ones(20)))
    idea = " ".join(RUNGS[22].lesson.idea.split())
    assert "20 rows, each dearer by one unit (see" in idea
    assert "make 92,000 coins of 1 (the logarithm is 11.4)" in idea
    assert made == pytest.approx(92_000, rel=0.01) and round(np.log(made), 1) == 11.4


def test_how_the_guard_bets():
    """What is needed to compute the 92,000 by hand, and when a model is dropped."""
    words = RUNGS[22].lesson.words
    stakes = re.search(r"each of seven: (.*) of what", " ".join(words["capital, stake"].split()))[1]
    told = [float(x) for x in re.split(r", | and ", stakes)]
    assert told == mechanisms.STAKES.tolist() == guard.BETS.tolist()
    assert np.mean((1 + np.array(told)) ** 20) == pytest.approx(92_000, rel=0.01)
    limits = Thresholds()
    unit = words["unit (of what a row costs)"]
    assert f"{1 + limits.max_loss_rise:g} times" in unit
    assert f"{guard.CUT:g} times" in unit and f"{guard.MIN_CUT:.0%}" in unit
    level = limits.false_alarm_rate / guard.NUM_TESTS
    assert 1 / level == 500 and "one time in 500" in " ".join(words["limit"].split())
    for test, coins in ((1, "1,000"), (2, "3,000"), (3, "6,000")):
        assert np.exp(guard.log_threshold(level, test)) == pytest.approx(read(coins))
        assert coins in words["limit"]
    assert limits.repair_increment == 0.1 and "a tenth of all rows" in RUNGS[22].lesson.idea


def test_a_demonstration_and_a_proof():
    _, _, shipped, trials, made, proved = lines("reliability")
    told = re.search(r"eight stakes: (.*) have (.*) of it", " ".join(RUNGS[23].lesson.idea.split()))
    stakes, shares = ([float(x) for x in re.split(r", | and ", part)] for part in told.groups())
    assert sum(shares) == pytest.approx(1)
    for column, rate in ((1, reliability.GOOD), (2, reliability.BAD)):
        passed, count = (int(x.replace(",", "")) for x in trials[column].split(" of "))
        assert passed == round(rate * count)
        went = (np.arange(count) >= count - passed).astype(float)
        capital = np.exp(log_capital_above(count_evidence(went), reliability.BAR))
        assert capital == pytest.approx(read(made[column]), rel=0.02)
        # By the stakes and shares that the page gives.
        by_hand = mechanisms.prove(went, reliability.BAR, np.array(stakes), np.array(shares))
        assert np.exp(by_hand) == pytest.approx(read(made[column]), rel=0.02)
        assert reliability.judge_proof(went) == proved[column].startswith("yes")
        assert shipped[column].startswith("yes") and reliability.judge_demo(np.ones(10))
    # How long one failure delays the proof.
    assert "665" in RUNGS[23].lesson.pays
    for count, failures in ((366, 0), (665, 1)):
        for n in (count, count - 1):
            passed = (np.arange(n) >= failures).astype(float)
            assert reliability.judge_proof(passed) == (n == count)


# Figures of the text: weights and work, of the configuration that `ramp ladder` takes


@pytest.fixture(scope="module")
def text_config():
    c = config.load(Path("ladder"))
    return replace(c, text=replace(c.text, tokenizer="bytes"))


def model(number, c):
    """The model of a rung on the text."""
    return learn.make_rung_config(RUNGS[number], c).model


def find_work(number, c):
    """FLOPs per token, and those of attention among them."""
    m = model(number, c)
    return cost.flops_per_token(m, 256), cost.attention_flops_per_token(m, 256)


def told(number, part):
    """A text of a lesson in one line."""
    return " ".join(getattr(RUNGS[number].lesson, part).split())


def test_sizes_that_the_page_opens_with(text_config):
    t = config.resolve(text_config).pretrain
    reading = " ".join(" ".join(page.TEXTS.reading).split())
    tokens = t.steps * t.batch_size * t.seq_len
    assert (t.batch_size, t.seq_len, t.steps) == (4, 256, 96)
    assert f"{tokens:,} bytes" in reading and "4 rows of 256 bytes, 1,024 bytes" in reading
    sizes = [(m.width, m.depth, m.num_heads) for m in (model(i, text_config) for i in (2, 8, 9))]
    assert sizes == [(256, 0, 1), (128, 1, 4), (128, 4, 4)]
    # A step that is n steps old counts half as much for every ten: its mean age.
    fade = 0.5 ** (1 / page.make_curve("", learn.CorpusResult(curve=[1.0])).half_life)
    assert round(fade / (1 - fade)) == 14 and "lags behind by about 14 steps" in reading
    assert find_top().number == 14 and "as rung 14" in page.TEXTS.bits


def test_work_that_is_told(text_config):
    for number in (3, 4, 5):
        assert find_work(number, text_config)[1] == 197_376
        assert "197,376" in told(number, "pays")
    # Rungs whose work is taken for equal to that of the last one.
    top, _ = find_work(14, text_config)
    near = [
        i for i in range(2, 18) if abs(top / find_work(i, text_config)[0] - 1) < learn.SAME_FLOPS
    ]
    assert near == [9, 10, 11, 12, 14, 15, 16, 17]
    assert f"less than {learn.SAME_FLOPS:.0%}" in " ".join(page.TEXTS.bits.split())
    more = find_work(12, text_config)[0] / find_work(11, text_config)[0]
    # 88 of 96 steps.
    assert f"{more - 1:.1%} more work" in told(12, "pays") and f"{8 / 96:.1%} fewer" in told(
        12, "pays"
    )
    assert round(100 * (1 - 88 / 96 * more)) == 2 and "about 2%" in told(12, "pays")
    assert f"{1 - find_work(17, text_config)[0] / top:.1%}" in told(17, "pays")


def test_weights_that_are_told(text_config):
    two, below, this = (cost.count_params(model(i, text_config)) for i in (2, 14, 15))
    assert two == 2 * 384 * 256 == 3 * 65_536 and f"{two:,}" in told(2, "pays")
    assert this - below == 4 * 384 * 128 + 192 == 196_800 and "196,800" in told(15, "pays")
    assert 12 * 4 * 4 == 192 and model(15, text_config).vocab_size == 384


def test_products_of_muon(text_config):
    """Three products in each round, of each matrix in the blocks, shared by the tokens of a step."""
    m = model(14, text_config)
    d, f = m.width, m.mlp_dim
    sides = [(d, d)] * 4 + [(d, f)] * 3
    flops = sum(len(POLAR) * (2 * a * a * b + 2 * a**3 + 2 * a * a * b) for a, b in sides)
    assert 3 * len(POLAR) == 15
    assert f"{m.depth * flops / 1024 / 1e6:.1f} million FLOPs" in told(14, "pays")


def test_what_guessing_comes_to():
    assert f"{probes.recall_chance(12):.2%}"[:5] in told(5, "fails")
    assert f"{probes.two_hops_chance(8):.5f}" == "0.61875" and ".6188" in told(9, "fails")
    assert np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 6]) == pytest.approx(0.2375)
    assert f"{0.0028 * 3.454:.2f}" == "0.01" and RUNGS[2].margin == -0.0028


def test_adding_tells_which_mark_came_last():
    """Of all pairs of distances, by weights of one mark that grows and one that falls."""
    for a in range(1, 12):
        for b in set(range(1, 12)) - {a}:
            assert (a + (12 - b) > 12) == (a > b)
    assert 5 + (12 - 6) == 11 and 6 + (12 - 5) == 13
