"""`ramp synth measure`: verdicts on samples made in known ways, files of every kind, mistakes."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from experiments.collapse import constructions
from experiments.collapse.constructions import CONSTRUCTIONS
from ramp import cli
from ramp.synth import compare, measure
from ramp.synth.docs import Docs
from ramp.synth.texts import Vocabulary, split_plain
from ramp.synth.verdicts import judge


def make_texts(n, seed):
    """Texts of sentences that keep to a subject: names and things come again in a text."""
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(7)
    lexicon = ["".join(world.choice(list("abdegiklmnoprstuv"), 6)) for _ in range(3000)]
    weight = 1 / np.arange(3, 3003)
    weight /= weight.sum()
    small = ["the", "of", "and", "to", "in", "was", "that", "for"]
    texts = []
    for _ in range(n):
        subject = rng.choice(lexicon, 3)
        size = rng.integers(3, 9)
        words = zip(
            rng.choice(subject, (size, 2)),
            rng.choice(lexicon, (size, 3), p=weight),
            rng.choice(small, (size, 2)),
            strict=True,
        )
        lines = [f"the {s} {a} {e} the {b} {f} {t} {c}." for (s, t), (a, b, c), (e, f) in words]
        texts.append(" ".join(lines))
    return texts


@pytest.fixture(scope="module")
def parts():
    foreign = [
        "".join(chr(0x430 + ord(c) % 30) if c.isalpha() else c for c in text)
        for text in make_texts(150, 3)
    ]
    return constructions.split(make_texts(1500, 1), 250, 1, foreign)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_the_verdict_says_what_was_done(parts, name):
    if name == "half of them from bigrams":
        pytest.skip("these texts keep to a subject too little for half of them to show")
    if name == "rare words replaced":
        pytest.skip("so few words that it is a small vocabulary; see the next test")
    real, material = parts
    make, wanted = CONSTRUCTIONS[name]
    judged = constructions.compare(real, make(material), material.train)
    assert judged.is_right(wanted), [finding.sentence for finding in judged.findings]
    if wanted not in ("diverse", "joined"):
        assert judged.findings[0].culprits


def test_rare_words_that_go_are_missed(parts):
    real, m = parts
    ordered = [word for word, _ in Counter(m.words()).most_common()]
    rare = set(ordered[200:])

    def change(words):
        is_kept = m.rng.random(len(words)) < 0.7
        return [
            word if keep or word not in rare else m.draw(ordered[:60])
            for word, keep in zip(words, is_kept, strict=True)
        ]

    judged = constructions.compare(real, m.each(change), m.train)
    assert judged.is_right("rare"), [finding.sentence for finding in judged.findings]


def test_real_text_is_within_chance_whatever_its_length():
    """|z| < 3 in at least 99% of figures, of real text as it is, joined, halved and cut."""
    zs = []
    for seed in range(3):
        real, material = constructions.split(make_texts(720, 50 + seed), 120, seed, [])
        for name in constructions.REAL:
            samples = CONSTRUCTIONS[name][0](material)
            judged = constructions.compare(real, samples, material.train, seed)
            zs += [f.z for f in judged.evidence.panel.values()]
            assert not any(finding.is_against for finding in judged.findings)
    assert np.mean(np.abs(zs) < 3) >= 0.99 and len(zs) > 150


def make_speeches(n, seed):
    """Half of them texts, half of them a few words that all say alike: another kind of text."""
    rng = np.random.default_rng(seed)
    words = sorted(set(" ".join(make_texts(9, 7)).split()))[:50] + 5 * ["the", "of", "and", "to"]
    short = [" ".join(rng.choice(words, rng.integers(6, 12))) + "." for _ in range(n // 2)]
    return [str(text) for text in rng.permutation(short + make_texts(n - n // 2, seed))]


@pytest.mark.parametrize("seed", range(3))
def test_short_texts_are_compared_with_short_texts(seed):
    speeches = make_speeches(1200, seed)
    short = sorted(speeches[:600], key=lambda text: len(text.split()))[:200]
    judged = constructions.compare(speeches[600:], short, short[:1], seed)
    assert judged.evidence.matching.is_nearest
    assert [finding.name for finding in judged.findings] == ["shorter", "diverse"]


@pytest.mark.parametrize("times", [2, 400])
def test_real_text_that_repeats_accuses_no_sample(times):
    texts = make_texts(800, 12)
    real = texts[: 400 // times] * times
    judged = constructions.compare(real, texts[400:], texts[:1])
    assert [f.name for f in judged.findings if f.is_against] == ["repetitive"]


def make_calls(n, seed):
    """A few words each, of which some are alike by chance: "what, sir ?"."""
    rng = np.random.default_rng(seed)
    heads, names = [f"say{i} well" for i in range(60)], [f"sir{i}" for i in range(8)]
    return [f"{rng.choice(heads)} {rng.choice(names)}, come {rng.integers(40)}." for _ in range(n)]


@pytest.mark.parametrize("seed", range(3))
def test_texts_of_few_words_repeat_as_those_of_real_text_do(seed):
    calls = make_calls(600, seed)
    real = make_texts(1000, seed) + calls[:300]
    judged = constructions.compare(real, calls[300:], calls[:1], seed)
    variants = judged.evidence.shares["variants"]
    assert variants.value > 0.2 and abs(variants.z) < 3
    assert "collapsed" not in {finding.name for finding in judged.findings}
    # Ten of them over and over are seen all the same.
    judged = constructions.compare(real, calls[300:480] + 12 * calls[480:490], calls[:1], seed)
    assert judged.findings[0].name == "repeats" and judged.findings[0].is_against


def test_without_texts_of_that_length_nothing_is_said(parts):
    real, m = parts
    judged = constructions.compare(real, m.base, m.train)
    panel = judged.evidence.panel | {"rare": measure.Comparison(0.1, 0.2, 0.5, -6.0)}
    for lengths_differ, wanted in ((False, "rare"), (True, "lonely")):
        evidence = replace(
            judged.evidence, panel=panel, lengths_differ=lengths_differ, num_partners=3
        )
        findings = judge(judged.comparing, evidence)
        assert findings[0].name == wanted and findings[0].is_against


@pytest.mark.parametrize("seed", range(3))
def test_long_texts_are_not_joined(seed):
    """Long single texts are two short ones put together in nothing but their length."""
    texts = sorted(make_texts(900, seed), key=lambda text: len(text.split()))
    judged = constructions.compare(texts[:500], texts[-250:], texts[:1], seed)
    assert judged.evidence.length_ratio > 1.5
    assert judged.findings[0].name == "longer"
    pairs = [" ".join(pair) for pair in zip(texts[:250], texts[250:500], strict=True)]
    judged = constructions.compare(texts[:500:2], pairs[1::2], texts[:1], seed)
    assert "joined" in {finding.name for finding in judged.findings}


def make_bursts(rng, n, least, most):
    """Single texts in which an uncommon word comes back within forty uncommon ones."""
    texts = []
    for size in rng.integers(least, most, n).tolist():
        named: list[str] = []
        words = []
        for is_common in rng.random(size) < 0.5:
            if not is_common:
                is_back = bool(named) and rng.random() < 0.4
                named.append(str(rng.choice(named[-40:])) if is_back else f"w{rng.integers(8000)}")
            words.append(f"c{rng.integers(60)}" if is_common else named[-1])
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_words_that_come_back_soon_are_no_seam(seed):
    rng = np.random.default_rng(seed)
    real, long = make_bursts(rng, 400, 60, 140), make_bursts(rng, 200, 160, 280)
    names = {finding.name for finding in constructions.compare(real, long, real[:1]).findings}
    assert "longer" in names and "joined" not in names
    short = make_bursts(rng, 400, 60, 140)
    pairs = [" ".join(pair) for pair in zip(short[::2], short[1::2], strict=True)]
    judged = constructions.compare(real, pairs, real[:1])
    assert "joined" in {finding.name for finding in judged.findings}


OPENING = "once upon a time in a small town far away"


def test_a_phrase_hides_no_copies(parts):
    real, m = parts

    def change():
        text = m.draw(m.other[:8]).split(" ")
        text[5::9] = [m.draw(m.words()[:500]) for _ in text[5::9]]
        return " ".join(text)

    samples = [f"{OPENING} {text}" for text in m.replace_some(0.8, change)]
    judged = constructions.compare(real, samples, m.train)
    assert judged.findings[0].name == "collapsed"
    assert "of 8 texts" in judged.findings[0].sentence
    assert "phrase" in {finding.name for finding in judged.findings}


def test_short_texts_with_one_phrase_are_not_collapsed(parts):
    real, m = parts
    short = [" ".join(text.split(" ")[:30]) for text in real]
    lengths = m.rng.integers(12, 30, len(m.base)).tolist()
    bases = zip(m.base, lengths, strict=True)
    samples = [" ".join([OPENING, *text.split(" ")[:size]]) for text, size in bases]
    judged = constructions.compare(short, samples, m.train)
    assert judged.evidence.shares["variants"].value > 0.1
    assert [finding.name for finding in judged.findings if finding.is_against] == ["phrase"]


def make_long_texts(n, seed):
    """Texts that name what they are about in their first half, and take it up in the second."""
    rng = np.random.default_rng(seed)
    lexicon = sorted(
        {word for text in make_texts(900, 7) for word in text.split() if word != "the"}
    )
    texts = []
    for _ in range(n):
        named = rng.choice(lexicon, 30)
        words = [*named, *rng.permutation(named)]
        texts.append(
            " ".join(f"the {a} of {b}." for a, b in zip(words[::2], words[1::2], strict=True))
        )
    return texts


def test_long_texts_unlike_short_ones_are_not_joined():
    judged = constructions.compare(make_texts(500, 1), make_long_texts(250, 2), ["no text"])
    assert judged.evidence.length_ratio > 1.5
    assert "joined" not in {finding.name for finding in judged.findings}


@pytest.mark.parametrize("where", ["opening", "ending", "middle"])
def test_a_phrase_that_many_have_is_named(parts, where):
    real, m = parts
    phrase = "all is well that ends so well."
    samples = list(m.base)
    for i in range(0, len(samples), 3):
        words = samples[i].split(" ")
        at = {"opening": 0, "ending": len(words), "middle": len(words) // 2}[where]
        samples[i] = " ".join([*words[:at], phrase, *words[at:]])
    judged = constructions.compare(real, samples, m.train)
    assert judged.is_right("phrase"), [finding.sentence for finding in judged.findings]
    assert "well" in judged.findings[0].culprits[0].text


def test_partners_are_of_one_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 500), rng.integers(20, 200, 300)
    bands = compare.Bands.from_lengths(*lengths)
    n = int(bands.partners.sum())
    drawn, rest, rows = bands.draw(n, rng)
    assert sorted([*drawn, *rest]) == list(range(500)) and len(set(rows)) == len(rows) == n > 50
    pairs = np.sort(lengths[0][drawn]), np.sort(lengths[1][rows])
    assert (pairs[0] < compare.BAND * pairs[1] + 1).all()
    assert (pairs[1] < compare.BAND * pairs[0] + 1).all()
    # At most half of the real texts of a length: the others are the reference.
    size = len(bands.partners)
    used, there = (np.bincount(band, minlength=size) for band in (bands.real[drawn], bands.real))
    assert (2 * used <= there).all()
    # Shares of single texts stand beside as many real ones of each length, or all of it.
    alike = np.bincount(bands.real[bands.take_real(rng)], minlength=size)
    assert (alike == np.minimum(there, np.bincount(bands.sample, minlength=size))).all()


def test_a_page_fits_a_phone(tmp_path):
    """The first column of figures takes several lines; a long path can be broken."""
    real = write(tmp_path / "real.jsonl", make_texts(80, 5))
    page = tmp_path / "page.html"
    cli.main(["synth", "measure", real, real, "--page", str(page)])
    text = page.read_text("utf-8")
    small = text[text.index("@media (max-width") :]
    assert ".figures td:first-child {\n    white-space: normal" in small
    read = text[text.index("What was read") :]
    assert '<table class="words">' in read and f"80 texts of {real}" in read


def write(path, texts, field="text"):
    path.write_text(
        "".join(json.dumps({"id": i, field: t}) + "\n" for i, t in enumerate(texts)), "utf-8"
    )
    return str(path)


def test_the_command(tmp_path, capsys):
    texts = make_texts(300, 5)
    real = write(tmp_path / "real.jsonl", texts[:200], "question")
    same = write(tmp_path / "same.jsonl", texts[200:], "answer")
    assert cli.main(["synth", "measure", real, same]) == 0
    told = capsys.readouterr().out
    assert told.startswith("as diverse as real text")
    assert "text found in the field 'question'" in told and "at most half of the 200" not in told
    collapsed = write(tmp_path / "bad.jsonl", texts[200:] + texts[:2] * 20)
    page = tmp_path / "page.html"
    words = ["synth", "measure", real, collapsed, "--page", str(page), "--json"]
    assert cli.main(words) == 1
    figures = json.loads(capsys.readouterr().out)
    assert figures["verdict"] == "collapsed" and figures["compared"]["texts"] == 100
    assert "variants" in figures["shares"] and figures["figures"]["coverage_1"]["z"] is not None
    assert "variants of 2 texts" in page.read_text("utf-8")
    # Copies of the real text are told, too.
    assert {f["name"] for f in figures["findings"]} == {"collapsed", "copied"}


def test_texts_that_cannot_be_told(tmp_path, capsys):
    real = write(tmp_path / "real.jsonl", make_texts(60, 5))
    one_word = write(tmp_path / "words.jsonl", ["a"] * 2 + [f"w{i}" for i in range(40)])
    assert cli.main(["synth", "measure", real, one_word]) == 1
    told = capsys.readouterr().out
    assert "none" in told and "cannot tell" in told
    same = write(tmp_path / "same.jsonl", make_texts(3, 9) * 20)
    assert cli.main(["synth", "measure", same, same]) == 1
    assert "cannot tell: 95% of the real texts are variants" in capsys.readouterr().out
    few = write(tmp_path / "few.jsonl", make_texts(4, 9))
    assert cli.main(["synth", "measure", real, few]) == 1
    assert "cannot tell" in capsys.readouterr().out


def test_what_is_repeated_and_what_is_too_few():
    texts = make_texts(500, 5)
    real = texts[200:]
    for n, samples in ((60, texts[:50] + texts[:1] * 10), (200, texts[:190] + texts[:10])):
        judged = constructions.compare(real, samples, real[:1])
        assert judged.findings[0].name == "repeats" and len(samples) == n
    for samples, real_texts, name in (
        (texts[:63], real, "few"),
        (texts[:64], real, "diverse"),
        (texts[:100], real[:63], "few"),
    ):
        judged = constructions.compare(real_texts, samples, real_texts[:1])
        assert judged.findings[0].name == name
    # Another subject with as many words is no small vocabulary.
    other = [text.replace("a", "y") for text in texts[:100]]
    judged = constructions.compare(real, other, real[:1])
    assert judged.findings[0].name == "drifted"


@pytest.mark.parametrize("step", [4, 6, 8])
@pytest.mark.parametrize("source", ["train", "real"])
def test_copies_with_words_changed_are_copies(parts, step, source):
    real, m = parts
    words = m.words()
    pool = m.train if source == "train" else real

    def change():
        text = m.draw(pool).split(" ")
        text[step - 1 :: step] = [m.draw(words) for _ in text[step - 1 :: step]]
        return " ".join(text)

    judged = constructions.compare(real, m.replace_some(0.1, change), m.train)
    assert judged.is_right("copied"), [finding.sentence for finding in judged.findings]
    assert 0.08 < judged.evidence.shares["copied"].value < 0.12


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("missing.jsonl", None, "matches no file"),
        ("empty.jsonl", b"", "holds no text"),
        ("one.jsonl", b'{"text": "a b c"}\n', "holds 1 text and"),
        ("wrong.jsonl#answer", b'{"text": "a b c"}\n', "the fields there are: text."),
        ("binary.txt", bytes(range(256)) * 20, "is no text"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, name, content, said):
    real = write(tmp_path / "real.jsonl", make_texts(40, 5))
    path = tmp_path / name.split("#")[0]
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["synth", "measure", real, str(tmp_path / name)]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told
    assert cli.main(["synth", "measure", real, real, "--page", str(tmp_path / "no" / "p")]) == 2
    assert "a directory that exists" in capsys.readouterr().err


def test_plain_files_are_parted_as_they_are_written():
    assert split_plain("a b<|endoftext|>c\n\nd<|endoftext|>\n")[0] == ["a b", "c\n\nd"]
    assert split_plain("a\nb\n\nc\nd\n\n\ne")[0] == ["a\nb", "c\nd", "e"]
    assert split_plain("\n".join(map(str, range(200))) + "\n\n1\n")[0][:3] == ["0", "1", "2"]
    assert split_plain("alone\n") == (["alone"], "nothing: it is one text")


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't STOP.", ["don", "'", "t", "stop", "."]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("日本語だ", list("日本語だ")),
        ("한국어 말", ["한국어", "말"]),
    ],
)
def test_words_of_any_language(text, words):
    vocabulary = Vocabulary()
    names = vocabulary.split(text)
    known = list(vocabulary.ids)
    assert [known[i] for i in names] == words


def test_what_is_empty_is_no_number():
    real = Docs.from_lists([[1, 2, 3]] * 20)
    for sample in (Docs.from_lists([[], []]), Docs.from_lists([[5], [6]])):
        figures = measure.measure_sample(real, sample)
        for name in ("kl_lost", "kl_drift", "unseen_mass", "distinct_2"):
            assert np.isnan(figures[name]), name
    nothing = compare.compare_values(np.array([np.nan]), np.array([1.0, 2.0] * 4), 1.0)
    assert np.isnan(nothing.z)


def test_one_repeated_pair_is_no_alarm():
    """No resample has a near-duplicate, the sample has one: that is no evidence (z was 36)."""
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 3000, 40) for _ in range(400)]
    pool, sample = Docs.from_lists(docs[:300]), Docs.from_lists([*docs[300:], docs[300]])
    null = measure.Null.resample(pool, 101, lambda d: measure.measure_sample(pool, d))
    z = null.compare(measure.measure_sample(pool, sample))["near_duplicates"].z
    assert 0 < z < 2
