"""Teachers: what they are shown, what they say of each token, and who is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from test_rollouts import TOKENIZER, written
from test_stage import SETTINGS

from ramp import config
from ramp.config import Config, Text, replace_train
from ramp.credit import learn, teacher
from ramp.errors import UserError
from ramp.rundir import RunDir
from ramp.stages import checks
from ramp.stages.checks import check_reinforce
from ramp.text.tokenizer import Tokenizer
from ramp.train import restore
from ramp.train.checkpoint import Checkpoints

MODEL = tiny.model(vocab_size=264, context_len=192)


@pytest.fixture(scope="module")
def lm():
    with jax.set_mesh(tiny.mesh()):
        yield tiny.lively(MODEL)


def group(*texts):
    return replace(written(*texts), group_size=len(texts))


def test_a_right_sibling_is_shown_or_else_the_error():
    r = group("a7|b4|4.", "a2|b4|5.", "a7|b5|5.")
    shown = teacher.shown_texts(TOKENIZER, r, r.outcome_b.reshape(1, -1))
    assert shown[0] == ""  # right itself, and nobody else is
    assert all("a7\nb4\n4" in text for text in shown[1:])
    shown = teacher.shown_texts(TOKENIZER, r, np.zeros((1, 3), np.float32))
    assert shown[0] == "" and "here:\na2\n" in shown[1] and "here:\nb5\n" in shown[2]


def test_the_model_is_asked_about_the_tokens_that_were_sampled(lm):
    """What is shown moves the tokens along the row; each gets its own log-probability back."""
    r = group("a7|b4|4.", "a2|b4|5.")
    got = teacher.ask_shown_model(
        MODEL, lm, SETTINGS, TOKENIZER, r, np.array([[np.nan, 0]], np.float32)
    )
    assert np.isnan(got[0]).all()  # right itself, and nobody else is
    text = teacher.shown_texts(TOKENIZER, r, np.zeros((1, 2), np.float32))[1]
    prompt = teacher.prompt_ids(TOKENIZER, f"{r.problems[1].question}\n\n{text}")
    ids = np.array([prompt + r.ids(1)], np.int32)
    logps = jax.jit(teacher.token_logps, static_argnums=(0, 4))
    logp, _ = logps(MODEL, lm, ids[:, :-1], ids[:, 1:], SETTINGS.temperature)
    want = np.asarray(logp)[0, len(prompt) - 1 :]
    n = len(r.ids(1))
    np.testing.assert_allclose(got[1, :n], want - r.logps_bn[1, :n], atol=1e-4)
    short = replace(MODEL, context_len=40)
    got = teacher.ask_shown_model(short, lm, SETTINGS, TOKENIZER, r, np.ones((1, 2), np.float32))
    assert np.isnan(got).all()  # too long for the context


def test_an_iteration_with_itself_as_teacher(lm):
    t = replace(SETTINGS, method="self_teacher", kl_coef=0.0)
    got = learn.collect_batch(MODEL, t, TOKENIZER, {"lm": lm}, None, 0, 0)
    assert np.isfinite(got.advantage_bn).all() and np.abs(got.advantage_bn).max() > 0


def save_run(path, c, tokenizer):
    """A run directory with a fine-tuned model."""
    rundir = RunDir(path)
    c = config.resolve(Config(text=Text(tokenizer="bytes"), model=c))
    rundir.data.mkdir(parents=True)
    rundir.check_or_create(c)
    tokenizer.save(rundir.tokenizer)
    checkpoints = Checkpoints(rundir.checkpoints("finetune"))
    params = {"lm": tiny.lively(c.model, seed=7)}
    checkpoints.save(1, {"params": params}, restore.make_meta("finetune", c, tokenizer))
    checkpoints.close()
    return str(path), params["lm"]


def test_a_teacher_is_another_run(tmp_path, lm):
    """A deeper model; a token that it finds likelier than the sampler did is praised."""
    path, its_lm = save_run(tmp_path / "big", replace(MODEL, depth=3), TOKENIZER)
    t = replace(SETTINGS, method="teacher", teacher=path, kl_coef=0.0)
    check_reinforce(Config(reinforce=t))
    got = learn.collect_batch(MODEL, t, TOKENIZER, {"lm": lm}, None, 0, 0)
    r = got.rollouts
    want = teacher.compare_with_sampler(
        replace(MODEL, depth=3), its_lm, r, t.train.seq_len, t.temperature
    )
    np.testing.assert_allclose(got.advantage_bn, want * r.mask_bn, atol=1e-4)
    with pytest.raises(UserError, match="another tokenizer"):
        teacher.ask_teacher(t, Tokenizer.train(["another text"] * 9, 300), r)
    with pytest.raises(UserError, match="not a run directory"):
        check_reinforce(Config(reinforce=replace(t, teacher=str(tmp_path / "none"))))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"method": "pass_at_k", "group_size": 3}, "lower the one or raise the other"),
        ({"entropy_control": "kl_cov"}, "reinforce.epochs"),
        ({"method": "teacher"}, "set both or neither"),
        ({"teacher": "runs/big"}, "set both or neither"),
        ({"method": "self_teacher"}, "lower reinforce.max_new_tokens"),
    ],
)
def test_what_cannot_work_is_refused_and_the_remedy_works(keys, words, monkeypatch):
    monkeypatch.setattr(checks, "open_run", lambda path: None)  # runs/big is there
    t = replace(SETTINGS, num_prompts=2, **keys)
    with pytest.raises(UserError, match=words):
        check_reinforce(Config(model=replace(MODEL, context_len=128), reinforce=t))
    mended = {
        "pass_at_k": replace(t, pass_k=3),
        "teacher": replace(t, teacher="runs/big"),
        "self_teacher": replace_train(t, seq_len=22),
    }.get(t.method, replace(t, teacher="", epochs=2))
    check_reinforce(Config(model=replace(MODEL, context_len=128), reinforce=mended))
