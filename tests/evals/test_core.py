"""CORE: prompts written out by hand, one question at a time in numpy, a model that can only count, and the command."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ramp import cli
from ramp.config import Config, Eval
from ramp.evals import core, questions
from ramp.evals.questions import CHOICE, CONTINUE, SCHEMA, Item, Row, Task
from ramp.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
SHARED = os.environ.get("RAMP_SHARED_DATA", "")
BYTES = Tokenizer.bytes_only()

FILES = {
    "animals.jsonl": [
        {"query": f"Question: what does a {a} say?", "choices": [s, t, t + " loudly"], "gold": i % 2}
        for i, (a, s, t) in enumerate(
            [("cow", "moo", "baa"), ("dog", "woof", "meow"), ("cat", "woof", "meow"), ("hen", "cluck", "moo"),
             ("pig", "oink", "cluck")]
        )
    ],
    "who.jsonl": [
        {"context_options": ["Ann thanked Bea because Ann", "Ann thanked Bea because Bea"], "continuation": "had helped.",
         "gold": 1},
        {"context_options": ["The cup fell off the tray, the cup", "The cup fell off the tray, the tray"],
         "continuation": "broke.", "gold": 0},
        {"context_options": ["Tom lent Sam a pen so Sam", "Tom lent Sam a pen so Tom"], "continuation": "could write.",
         "gold": 0},
    ],
    "capitals.jsonl": [
        {"context": f"  The capital of {c} is ", "continuation": k, "category": "world"}
        for c, k in [("France", "Paris"), ("Peru", "Lima\u2028"), ("Kenya", "Nairobi"), ("Japan", "Tokyo"), ("Togo", "Lomé")]
    ],
}  # fmt: skip
CORE_YAML = """icl_tasks:
-
  label: animals
  dataset_uri: small/animals.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: who
  dataset_uri: small/who.jsonl
  num_fewshot: [0]
  icl_task_type: schema
-
  label: capitals
  dataset_uri: small/capitals.jsonl
  num_fewshot: [9]
  icl_task_type: language_modeling
  has_categories: true
"""
CHANCE = 'Eval Task,Random baseline,Description\nanimals,25,"two\nlines, quoted"\nwho,50,\ncapitals,0,\nunused,10,\n'


def write_bundle(path: Path) -> Path:
    (path / "eval_data" / "small").mkdir(parents=True)
    (path / "core.yaml").write_text(CORE_YAML)
    (path / "eval_meta_data.csv").write_text(CHANCE)
    for name, records in FILES.items():
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (path / "eval_data" / "small" / name).write_text(lines, encoding="utf-8")
    return path


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_bundle(tmp_path / "bundle")


# ---------------------------------------------------------------------------------------------------- prompts
def drawn(records: list, shots: int) -> list[tuple[dict, list[dict]]]:
    """Each question with its examples, from the words of the contract: shuffled, then drawn from all the others."""
    records = list(records)
    random.Random(1337).shuffle(records)
    out = []
    for i, record in enumerate(records):
        others = [other for other in records if other is not record]
        out.append((record, random.Random(1234 + i).sample(others, min(shots, len(others)))))
    return out


def naive(name: str, tokenizer: Tokenizer) -> list[list[tuple[list[int], int, int]]]:
    """By question, by pair: ids, where the judged ones begin, and gold; everything spelt out."""

    def ids(text):
        return [tokenizer.bos, *tokenizer.encode(text)]

    def alike(rows):
        n = 0
        while all(len(r) > n for r in rows) and len({r[n] for r in rows}) == 1:
            n += 1
        return n

    out = []
    if name == "animals":
        for q, examples in drawn(FILES["animals.jsonl"], 2):
            before = "".join(
                f"{e['query']}\nAnswer: {e['choices'][e['gold']]}\n\n" for e in examples
            )
            rows = [ids(f"{before}{q['query']}\nAnswer: {choice}") for choice in q["choices"]]
            out.append([(r, min(alike(rows), len(r) - 1), q["gold"]) for r in rows])
    elif name == "who":
        for q, _ in drawn(FILES["who.jsonl"], 0):
            rows = [ids(f"{option} {q['continuation']}") for option in q["context_options"]]
            out.append([(r, len(r) - alike([x[::-1] for x in rows]), q["gold"]) for r in rows])
    else:
        for q, examples in drawn(FILES["capitals.jsonl"], 9):
            before = "".join(f"{e['context'].strip()} {e['continuation']}\n\n" for e in examples)
            bare = ids(before + q["context"].strip())
            row = ids(f"{before}{q['context'].strip()} {q['continuation']}")
            out.append([(row, alike([row, bare]), 0)])
    return out


def test_prompts_are_as_the_contract_says(bundle):
    tasks = {t.label: t for t in questions.read_bundle(bundle)}
    words = [json.dumps(r, ensure_ascii=False) for records in FILES.values() for r in records]
    merged = Tokenizer.train(words * 3, 420)
    assert merged.vocab_size > 300
    for (label, task), tokenizer in product(tasks.items(), (BYTES, merged)):
        rows = iter(questions.make_rows(task, tokenizer, 4096))
        for i, pairs in enumerate(naive(label, tokenizer)):
            for ids, start, gold in pairs:
                row = next(rows)
                assert (row.item, row.ids.tolist(), row.cropped) == (i, ids, False)
                assert len(ids) - row.num_judged == start
                assert task.items[i].gold == gold
        assert next(rows, None) is None


def test_one_prompt_by_hand():
    task = Task(
        "t",
        CHOICE,
        1,
        0.25,
        (Item((("Q1", "a"), ("Q1", "b")), 1), Item((("Q2", "c"), ("Q2", "d")), 0)),
        "\nA: ",
    )
    assert task.examples(0) == "Q2\nA: c\n\n"
    assert [BYTES.decode_bytes(r.ids) for r in questions.make_rows(task, BYTES, 99)][:2] == [
        b"Q2\nA: c\n\nQ1\nA: a",
        b"Q2\nA: c\n\nQ1\nA: b",
    ]
    assert [r.num_judged for r in questions.make_rows(task, BYTES, 99)] == [1, 1, 1, 1]


@given(n=st.integers(2, 30), shots=st.integers(0, 12), seed=st.integers(0, 2**31))
def test_examples_never_hold_the_question_and_come_back_the_same(n, shots, seed):
    items = tuple(Item(((f"<{i}>", "x"),), 0) for i in range(n))
    task = Task("t", CONTINUE, shots, 0.0, items)
    for i in range(n):
        shown = task.examples(i, seed).split("\n\n")[:-1]
        assert len(set(shown)) == len(shown) == min(shots, n - 1)
        assert f"<{i}> x" not in shown
        assert task.examples(i, seed) == task.examples(i, seed)


def test_a_limit_asks_the_same_questions_first(bundle):
    for task in questions.read_bundle(bundle):
        some, whole = (
            questions.make_rows(task, BYTES, 4096, limit=2),
            questions.make_rows(task, BYTES, 4096),
        )
        assert {r.item for r in some} == {0, 1}
        for a, b in zip(some, whole, strict=False):
            assert a.ids.tolist() == b.ids.tolist()


@pytest.mark.parametrize("context", [3, 10, 60, 10_000])
def test_long_rows_lose_their_beginning(bundle, context):
    for task in questions.read_bundle(bundle):
        for row, whole in zip(
            *(questions.make_rows(task, BYTES, n) for n in (context, 10_000)), strict=True
        ):
            assert row.ids.tolist() == whole.ids.tolist()[-context - 1 :]
            assert row.cropped == (len(whole.ids) > context + 1)
            assert row.num_judged == min(whole.num_judged, context)


# ---------------------------------------------------------------------------------------------------- the model
C = tiny.model(context_len=160)
MESHES = [(1, 1, 1), (1, 4, 2), (2, 2, 1)]


one_row = jax.jit(partial(tiny.logits, C))


def slow(params: dict, rows: list[Row]) -> np.ndarray:
    """One row at a time, not padded; softmax and argmax in numpy, float64."""
    out = []
    for row in rows:
        tokens = np.pad(row.ids[:-1], (0, -(len(row.ids) - 1) % 32))[
            None
        ]  # causal: the pad tells nothing, few programs
        logits = np.asarray(one_row(params, tokens)[0], np.float64)
        nats, hits = 0.0, 0
        for t in range(len(row.ids) - 1 - row.num_judged, len(row.ids) - 1):
            nats -= logits[t, row.ids[t + 1]] - np.log(np.sum(np.exp(logits[t])))
            hits += int(np.argmax(logits[t]) == row.ids[t + 1])
        out.append((nats, hits))
    return np.array(out)


def random_rows(n: int) -> list[Row]:
    rng = np.random.default_rng(5)
    rows = []
    for i, length in enumerate([2, 128, 129, 130, 161, 160, *rng.integers(2, 161, n)]):
        judged = int(rng.integers(1, length)) if i else 1
        rows.append(Row(i, rng.integers(0, 320, length).astype(np.int32), judged, False))
    return rows


@pytest.mark.parametrize("dims", MESHES)
def test_batches_judge_like_one_row_at_a_time(bundle, dims):
    tasks = questions.read_bundle(bundle)
    asked = {t.label: questions.make_rows(t, BYTES, C.context_len) for t in tasks}
    chance_rows = random_rows(20)
    with jax.set_mesh(tiny.mesh()):
        params = {"lm": tiny.lively(C)}
        want = {label: slow(params["lm"], rows) for label, rows in asked.items()}
        want_random = slow(params["lm"], chance_rows)
    with jax.set_mesh(tiny.mesh(*dims)):
        params = {"lm": tiny.lively(C)}
        got = core.score_rows(Config(model=C, eval=Eval(batch_size=8)), params, chance_rows)
        np.testing.assert_allclose(got, want_random, rtol=2e-5)
        for task in tasks:
            rows = asked[task.label]
            got = core.score_rows(Config(model=C, eval=Eval(batch_size=8)), params, rows)
            np.testing.assert_allclose(got, want[task.label], rtol=2e-5)
            best = {}
            for row, (nats, _) in zip(rows, want[task.label], strict=True):
                best.setdefault(row.item, []).append(nats / row.num_judged)
            if task.kind != CONTINUE:
                right = [
                    min(range(len(b)), key=b.__getitem__) == task.items[i].gold
                    for i, b in best.items()
                ]
                assert core.grade_rows(task, rows, got).tolist() == right


def test_order_and_size_of_batches_change_nothing():
    rows, polls = random_rows(30), []
    order = np.random.default_rng(0).permutation(len(rows))
    with jax.set_mesh(tiny.mesh()):
        params = {"lm": tiny.lively(C)}
        whole = core.score_rows(
            Config(model=C, eval=Eval(batch_size=16)), params, rows, polls.append
        )
        for batch, chosen in product((1, 7), (np.arange(len(rows)), order)):
            got = core.score_rows(
                Config(model=C, eval=Eval(batch_size=batch)), params, [rows[i] for i in chosen]
            )
            np.testing.assert_allclose(got, whole[chosen], rtol=1e-5)
    assert polls == list(range(len(polls)))


def counting_model() -> tuple:
    """No blocks, an identity for a table, a head that shifts: after byte b it expects byte b + 1 and nothing else."""
    c = tiny.model(depth=0, width=320, context_len=128)
    params = tiny.init(c)
    params["embed"]["table"] = jax.device_put(
        np.eye(320, dtype=np.float32), params["embed"]["table"].sharding
    )
    shift = np.roll(np.eye(320, dtype=np.float32), 1, axis=1)
    params["head"]["weight"] = jax.device_put(shift, params["head"]["weight"].sharding)
    return c, {"lm": params}


def counts(text: str) -> bool:
    return all(ord(b) == ord(a) + 1 for a, b in pairwise(text))


def test_a_model_that_counts_is_right_where_counting_is():
    letters = "".join(map(chr, range(33, 127)))
    some = [
        ("abc", "def"),
        ("abc", "dex"),
        ("abx", "y"),
        (letters[:10], letters[10:90]),
        (letters[:10], letters[10:89] + "!"),
    ]
    tasks = [
        Task("c", CONTINUE, 2, 0.0, tuple(Item((pair,), 0) for pair in some), ""),
        Task(
            "m",
            CHOICE,
            0,
            0.5,
            (Item((("abc", "d"), ("abc", "e")), 0), Item((("abc", "e"), ("abc", "d")), 0)),
            "",
        ),
        Task(
            "s",
            SCHEMA,
            0,
            0.5,
            (Item((("ab", "c"), ("ax", "c")), 0), Item((("ax", "c"), ("ab", "c")), 0)),
            "",
        ),
        Task(
            "prefix", CHOICE, 0, 0.5, (Item((("a", "b"), ("a", "bc")), 0),), ""
        ),  # one goes on from the other
        Task("same", CHOICE, 0, 0.5, (Item((("a", "b"), ("a", "b")), 0),), ""),
    ]
    truth = [[counts(a[-1] + b) for a, b in some], [True, False], [True, False], [True], [True]]
    with jax.set_mesh(tiny.mesh()):
        c, params = counting_model()
        for task, right in zip(tasks, truth, strict=True):
            rows = questions.make_rows(task, BYTES, c.context_len)
            got = core.grade_rows(
                task, rows, core.score_rows(Config(model=c, eval=Eval(batch_size=4)), params, rows)
            )
            assert got.tolist() == right, task.label


def test_a_model_that_prefers_nothing_is_not_right():
    """All logits equal: the argmax is the first token, not any token."""
    task = Task("c", CONTINUE, 0, 0.0, (Item((("ab", "c"),), 0),))
    with jax.set_mesh(tiny.mesh()):
        params = jax.tree.map(lambda w: w * 0, tiny.init(C))
        rows = questions.make_rows(task, BYTES, C.context_len)
        found = core.score_rows(Config(model=C, eval=Eval(batch_size=4)), {"lm": params}, rows)
    assert not core.grade_rows(task, rows, found).any()
    np.testing.assert_allclose(found[0, 0], rows[0].num_judged * np.log(320), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------- the figure
@given(
    right=st.lists(st.booleans(), min_size=1, max_size=50),
    chance=st.sampled_from([0.0, 0.091, 0.25, 0.5, 0.62]),
    options=st.integers(1, 5),
)
def test_centred_accuracy(right, chance, options):
    items = (Item((("q", "a"),) * options, 0),) * (len(right) + 3)
    rows = [Row(i, np.zeros(2, np.int32), 1, i % 2 == 0) for i in range(len(right))]
    f = core.score_task(Task("t", CHOICE, 0, chance, items), rows, np.array(right))
    k, n = sum(right), len(right)
    assert f.accuracy == pytest.approx(k / n)
    assert f.centred * (1 - chance) + chance == pytest.approx(k / n)
    assert f.se**2 == pytest.approx(k * (n - k) / n**3)
    assert f.centred_se * (1 - chance) == pytest.approx(f.se)
    assert f.guess == pytest.approx(1 / options if options > 1 else 0)
    assert (f.items, f.rows, f.cropped) == (n, n, (n + 1) // 2)
    assert core.summarize({"a": f}).core == f.centred
    two = core.summarize({"a": f, "b": replace(f, centred=1.0, centred_se=0.0, centred_guess=0.0)})
    assert two.core == pytest.approx((f.centred + 1) / 2)
    assert two.se == pytest.approx(f.centred_se / 2)
    assert two.guess == pytest.approx(f.centred_guess / 2)


# ---------------------------------------------------------------------------------------------------- wrong things
def refused(capsys, tmp_path, *words: object) -> str:
    code = cli.main(
        [
            "eval",
            str(ROOT / "configs" / "smoke.toml"),
            "--run",
            str(tmp_path / "run"),
            *map(str, words),
        ]
    )
    error = capsys.readouterr().err
    assert code == 2, error
    assert (
        error.startswith("ramp: ")
        and len(error.strip().splitlines()) == 1
        and "Traceback" not in error
    )
    assert not (tmp_path / "run").exists()
    return error


def test_what_the_command_line_refuses(bundle, tmp_path, capsys):
    assert "no suite 'cort'" in refused(capsys, tmp_path, "--suite", "cort")
    assert "--bundle DIR" in refused(capsys, tmp_path, "--suite", "core")
    assert "limit" in refused(
        capsys, tmp_path, "--suite", "core", "--bundle", bundle, "--limit", -1
    )
    assert "belong to --suite core" in refused(capsys, tmp_path, "--bundle", bundle)
    assert "nowhere/core.yaml cannot be read" in refused(
        capsys, tmp_path, "--suite", "core", "--bundle", "nowhere"
    )


LINES = {
    "cut": ('{"query": "a", "choi', "line 2"),
    "no field": ('{"query": "a", "choices": ["b", "c"]}', "no 'gold'"),
    "gold outside": ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2"),
    "gold of another type": ('{"query": "a", "choices": ["b", "c"], "gold": true}', "gold is True"),
    "one choice": ('{"query": "a", "choices": ["b"], "gold": 0}', "line 2"),
    "choices in one text": ('{"query": "a", "choices": "bc", "gold": 0}', "line 2"),
    "empty choice": ('{"query": "a", "choices": ["b", ""], "gold": 0}', "empty"),
    "a number": ('{"query": 5, "choices": ["b", "c"], "gold": 0}', "a text is"),
    "a list": ("[]", "line 2"),
    "not UTF-8": (b"\xff\xfe", "line 2"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_malformed_line_is_named(bundle, tmp_path, capsys, name):
    line, says = LINES[name]
    file = bundle / "eval_data" / "small" / "animals.jsonl"
    first, *rest = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([first, line if isinstance(line, bytes) else line.encode(), *rest]))
    error = refused(capsys, tmp_path, "--suite", "core", "--bundle", bundle)
    assert "animals.jsonl, line 2" in error
    assert says in error


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("core.yaml", "schema", "scheme"),
        ("core.yaml", "num_fewshot: [0]", "num_fewshot: []"),
        ("core.yaml", "num_fewshot: [0]", "num_fewshot: [-1]"),
        ("core.yaml", "num_fewshot: [0]", "num_fewshot: [some]"),
        ("core.yaml", "label: who", "label: animals"),
        ("core.yaml", "label: who", "label: whom"),
        ("core.yaml", "small/who.jsonl", "small/nobody.jsonl"),
        ("core.yaml", 'continuation_delimiter: "\\nAnswer: "', "continuation_delimiter: 3"),
        ("core.yaml", CORE_YAML, ""),
        ("core.yaml", CORE_YAML, "icl_tasks: []"),
        ("core.yaml", CORE_YAML, "icl_tasks: {a: [}"),
        ("eval_meta_data.csv", "who,50", "who,half"),
        ("eval_meta_data.csv", "who,50", "who,100"),
        ("eval_meta_data.csv", "Random baseline", "Baseline"),
        ("eval_data/small/who.jsonl", None, ""),
    ],
)
def test_a_malformed_bundle_is_one_sentence(bundle, tmp_path, capsys, file, old, new):
    text = (bundle / file).read_text()
    assert old is None or old in text
    (bundle / file).write_text(new if old is None else text.replace(old, new))
    assert str(bundle) in refused(capsys, tmp_path, "--suite", "core", "--bundle", bundle)


# ---------------------------------------------------------------------------------------------------- the command
def test_the_command_reports_what_it_found(bundle, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "xla"
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(
            f"the cow says moo and the dog says woof {i} times. " * 50
        )
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }

    def ramp(*words):
        command = [sys.executable, "-m", "ramp.cli", *map(str, words)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=200, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    flags = [
        "--text.sources",
        f"file:{tmp_path}/*.txt",
        "--text.val_fraction",
        0.5,
        "--text.tokenizer",
        "bytes",
    ]
    flags += ["--pretrain.num_samples", 0, "--pretrain.steps", 2, "--stages", "prepare", "pretrain"]
    ramp("run", ROOT / "configs" / "smoke.toml", "--run", run, *flags)
    out = ramp("eval", run, "--suite", "core", "--bundle", bundle, "--limit", 3)
    found = json.loads((run / "report.json").read_text())["core"]
    assert set(found["tasks"]) == {"animals", "who", "capitals"}
    assert found["limit"] == 3 and found["chance"] == 0
    assert found["core"] == pytest.approx(np.mean([t["centred"] for t in found["tasks"].values()]))
    assert (
        found["tasks"]["animals"]["cropped"] > 0
    )  # two examples and a question are more than 128 bytes
    assert f"CORE {found['core']:.4f} ± {found['se']:.4f}" in out
    assert all(label in out for label in found["tasks"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drawn = [line for line in lines if line["stage"] == "core"]
    assert len(drawn) == 1 and drawn[0]["eval/core"] == pytest.approx(found["core"])
    assert drawn[0]["eval/core/who"] == pytest.approx(found["tasks"]["who"]["centred"])
    assert any(line["stage"] == "pretrain" for line in lines)
    again = ramp("eval", run, "--suite", "core", "--bundle", bundle, "--limit", 3)
    assert [line for line in again.splitlines() if "±" in line] == [
        line for line in out.splitlines() if "±" in line
    ]

    found = json.loads((run / "report.json").read_text())["core"]
    words = [
        sys.executable,
        "-m",
        "ramp.cli",
        "eval",
        str(run),
        "--suite",
        "core",
        "--bundle",
        str(bundle),
    ]
    with subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout.readline().startswith(
            "core"
        )  # asked to stop while the first batch compiles
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 75, process.stderr.read()
    assert json.loads((run / "report.json").read_text())["core"] == found


# ---------------------------------------------------------------------------------------------------- the real bundle
@pytest.mark.skipif(
    not SHARED, reason="RAMP_SHARED_DATA does not name the folder that holds core_eval"
)
def test_all_22_tasks_parse_and_noise_scores_near_chance():
    tasks = questions.read_bundle(Path(SHARED) / "core_eval")
    assert len(tasks) == 22
    assert {t.kind for t in tasks} == {CHOICE, SCHEMA, CONTINUE}
    c = tiny.model(context_len=256)
    config, figures = Config(model=c, eval=Eval(batch_size=16)), {}
    with jax.set_mesh(tiny.mesh(data=2)):
        params = {"lm": tiny.lively(c)}
        for task in tasks:
            rows = questions.make_rows(task, BYTES, c.context_len, limit=20)
            figures[task.label] = core.score_task(
                task, rows, core.grade_rows(task, rows, core.score_rows(config, params, rows))
            )
    found = core.summarize(figures)
    assert abs(found.core - found.guess) < 4 * found.se
    assert all(
        f.accuracy == 0 for t, f in zip(tasks, figures.values(), strict=True) if t.kind == CONTINUE
    )
    assert all(f.items == 20 for f in figures.values())
