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
    for name, rarest, *costs in lines("the guard"):
        g = int(name.split()[1]) if name.startswith("generation") else 0
        p = real ** ((1 / generations.TEMPERATURE) ** g)
        p /= p.sum()
        rows = generations.NUM_ROWS * p
        assert rows[0] == pytest.approx(read(rarest), abs=0.05)
        bits = -np.log2(p)
        made = bits[0], bits[-1], real @ bits
        np.testing.assert_allclose([read(cost) for cost in costs], made, atol=0.005)
        # In the real text the commonest kind occurs three times as often.
        assert g or [round(x) for x in (rows[0], rows[-1])] == [8, 24]
    assert generations.write_rows(64, np.array([0, 63])).tolist() == [[16, 0, 8], [16, 7, 15]]
    assert "the row `16 0 8`" in told(22, "fails") and "one, `16 7 15`" in told(22, "fails")


def test_rows_that_are_dearer_by_the_units_of_the_page():
    """Scaled as the guard scales them: 6.53 bits in place of 6, of which .03 is let pass."""
    first = np.full(58, 6.0)
    tolerance = Thresholds().max_loss_rise
    worse = guard.scale_differences(np.full(58, 6.53), first, tolerance)
    assert 6.53 - (1 + tolerance) * 6 == pytest.approx(0.5)
    assert (guard.MIN_CUT, guard.CUT) == (0.18 / 6, 4 / 0.5)
    np.testing.assert_allclose(worse[:2], 2.8, atol=0.05)
    np.testing.assert_allclose(worse[2:], 1 / 8)
    made = [np.exp(mechanisms.weigh_evidence(worse[:n])) for n in (20, 57, 58)]
    assert made[0] == pytest.approx(20.7, abs=0.05) and made[1] < 1000 <= made[2]
    idea = told(22, "idea")
    assert "costs 6 bits under the first model and .53 more under the new one" in idea
    assert "units of .18 bits, 3% of a row, the others in units of 4 bits, 8 times" in idea
    assert "after 20 rows 1 coin has become 20.7, and after 58 more than 1,000" in idea


def test_what_the_cut_breaks_and_how_often():
    """Losses are cut and gains are not: with many cut, bets win on a model that is better."""
    rows = np.array([1.0, 1, 1, 1, -5])
    assert rows.mean() < 0 < np.maximum(rows, -1).mean()
    # As the page says, four dearer by one unit and one cheaper by five.
    log_made = mechanisms.weigh_evidence(np.tile(np.maximum(rows, -1), 20))
    assert log_made > np.log(1000)
    assert "four dearer by one unit and one cheaper by five" in told(22, "idea")
    real = generations.list_probabilities(64)
    counts = []
    for g in range(1, 9):
        p = real ** ((1 / generations.TEMPERATURE) ** g)
        bits = np.log2(p.sum() / p)
        for seed in range(20):
            kinds = np.random.default_rng(seed).choice(64, generations.NUM_HELD_OUT, p=real)
            scaled = guard.scale_differences(bits[kinds], -np.log2(real[kinds]), 0.005)
            counts.append((scaled <= -1).sum())
    assert max(counts) == 2 and "in 20 draws of 2,048 real rows, at most 2 of" in told(22, "idea")


def test_how_the_guard_bets():
    """The stakes, the unit, and when a model is dropped."""
    words = RUNGS[22].lesson.words
    stakes = re.search(r"each of seven: (.*) of what", " ".join(words["capital, stake"].split()))[1]
    told = [float(x) for x in re.split(r", | and ", stakes)]
    assert told == mechanisms.STAKES.tolist() == guard.BETS.tolist()
    limits = Thresholds()
    unit = words["unit (of what a row costs)"]
    assert f"{1 + limits.max_loss_rise:g} times" in unit
    assert f"{guard.CUT:g} times" in unit and f"{guard.MIN_CUT:.0%}" in unit
    level = limits.false_alarm_rate / guard.NUM_TESTS
    assert 1 / level == 500 and "one time in 500" in " ".join(words["limit"].split())
    for test, coins in ((1, "1,000"), (2, "3,000"), (3, "6,000")):
        assert np.exp(guard.log_threshold(level, test)) == pytest.approx(read(coins))
        assert coins in words["limit"]
    assert "renewed after 2, 4, 8 rows" in unit
    assert limits.repair_increment == 0.1 and "a tenth of all rows" in " ".join(
        RUNGS[22].lesson.idea.split()
    )


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
    bits = " ".join(page.TEXTS.bits.split())
    assert f"less than {learn.SAME_FLOPS:.0%} more work than a model" in bits
    assert f"rung 13, with {top / find_work(13, text_config)[0] - 1:.1%}, has two" in bits
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
    # A window of narrow heads: 2 D² weights in place of a matrix for each place.
    window = cost.count_params(model(3, text_config))
    assert 2 * 128**2 == 32_768 and 8 * 128**2 == 131_072 and 2 * 384 * 128 == 98_304
    assert window == 32_768 + 131_072 + 98_304 == 262_144
    assert all(x in told(3, "pays") for x in ("32,768", "131,072", "98,304", "262,144"))
    assert model(3, text_config).head_dim == 16 and "of two narrow ones" in told(3, "pays")
    without, normed = (cost.count_params(model(i, text_config)) for i in (9, 10))
    assert normed - without == 9 * 128 == 1152 and "= 1,152" in told(10, "pays")


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
    assert f"{probes.two_hops_chance(8):.5f}" == "0.61875" and ".6188" in told(9, "notice")
    assert np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 6]) == pytest.approx(0.2375)
    assert f"{0.0028 * 3.454:.2f}" == "0.01" and RUNGS[2].margin == -0.0028


def test_adding_tells_which_mark_came_last():
    """Of all pairs of distances, by weights of one mark that grows and one that falls."""
    for a in range(1, 12):
        for b in set(range(1, 12)) - {a}:
            assert (a + (12 - b) > 12) == (a > b)
    assert 5 + (12 - 6) == 11 and 6 + (12 - 5) == 13


def test_a_table_of_five_letters_has_an_empty_row():
    text = "bananas"
    after = {text[i : i + 5]: text[i + 5] for i in range(len(text) - 5)}
    assert after == {"banan": "a", "anana": "s"} and "canan" not in after
    assert round(256**8 / 1e18) == 18 and "18 billion billion" in told(2, "fails")


def test_no_digit_by_itself_says_anything_of_the_sum():
    """At equal scores the loss has no slope in what each digit adds; it is convex, so none is better."""
    a, b, c = np.indices((10, 10, 10)).reshape(3, -1)
    is_answer = np.eye(10)[(a + b + c) % 10]
    for digit in (a, b, c):
        for value in range(10):
            np.testing.assert_allclose(is_answer[digit == value].mean(axis=0), 1 / 10)


def test_squares_have_no_leap_of_their_slope():
    """What a gate makes at a = 0 no number of units of rung 8 makes: its slope leaps by b."""
    a, b, step = np.array([-1e-6, 1e-6]), 3.0, 1e-7

    def leap(function):
        slopes = (function(a + step) - function(a - step)) / (2 * step)
        return slopes[1] - slopes[0]

    assert leap(lambda a: np.maximum(a, 0) * b) == pytest.approx(b)
    for u, v in np.random.default_rng(0).normal(size=(20, 2)):
        assert abs(leap(lambda a, u=u, v=v: np.maximum(u * a + v * b, 0) ** 2)) < 1e-3


def test_two_steps_lead_to_neither_of_the_first_two_keys():
    rng = np.random.default_rng(0)
    tokens, answers = probes.PROBES["two hops"].rows(rng, 8, 50)
    for row, answer in zip(tokens, answers[:, -1], strict=True):
        points = dict(divmod(int(pair), 8) for pair in row[:8])
        key = int(row[-1]) - 8 * 8 - 8
        assert answer == points[points[key]] and answer not in (key, points[key])
        # One circle.
        seen, place = [], key
        while place not in seen:
            seen.append(place)
            place = points[place]
        assert len(seen) == len(points) and 5 <= len(points) <= 8 and place == key


def test_the_probes_that_are_told():
    rates, widths = {}, {}
    for rung in RUNGS[3:12]:
        probe = probes.PROBES[rung.probe]
        c = learn.make_probe_config(rung, probe, probe.size)
        rates[rung.number] = c.pretrain.adam_lr * c.pretrain.lr_scale
        widths[rung.number] = c.model.width
    assert rates[10] == pytest.approx(12 * rates[5]) == pytest.approx(0.018)
    assert ".018 in place of .0015" in told(10, "notice")
    assert [number for number, width in widths.items() if width == 32] == [9, 10, 11]
    assert {widths[number] for number in range(3, 9)} == {64}
    deep = learn.make_probe_config(RUNGS[11], probes.PROBES["deep"], 12).model
    assert deep.head_dim == 8 and "h = 8 numbers, whose root is 2.83" in told(11, "idea")
    assert round(8**0.5, 2) == 2.83 and learn.EXAMPLES == 12
