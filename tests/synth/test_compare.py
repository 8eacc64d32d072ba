"""`ramp synth measure`: verdicts on samples made in known ways, files of every kind, mistakes."""

import json

import numpy as np
import pytest

from experiments.collapse import constructions
from experiments.collapse.constructions import CONSTRUCTIONS
from ramp import cli
from ramp.synth import compare, measure
from ramp.synth.docs import Docs
from ramp.synth.texts import Vocabulary, split_plain


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
    real, material = parts
    make, wanted = CONSTRUCTIONS[name]
    judged = constructions.compare(real, make(material), material.train)
    assert judged.is_right(wanted), [finding.sentence for finding in judged.findings]
    if wanted not in ("diverse", "joined"):
        assert judged.findings[0].culprits


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
