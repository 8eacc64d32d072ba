"""Teachers teach: a policy moves towards a stronger model, and a model learns from how its group did."""

from dataclasses import replace
from itertools import islice

import jax
import numpy as np
import pytest
import tiny
from test_rollouts import TOKENIZER

from experiments.credit import training
from experiments.results import Results, init_lm
from ramp import tasks
from ramp.config import Reinforce, replace_train
from ramp.credit import learn, rollouts, teacher
from ramp.model.loss import next_token_loss
from ramp.tasks.protocol import Problem, Task, close_steps, prompt_ids, solution_ids

LETTERS = "abcd"


def ask(seed, level):
    """A digit, to which one of four letters belongs."""
    digit = seed % 10
    return Problem("letters", seed, level, f"{digit}?", digit, LETTERS[(3 * digit + 1) % 4])


def judge(problem, steps, answer):
    return close_steps([], answer, problem.answer, problem.answer)


TASK = Task("letters", ask, lambda problem: [], judge)
MODEL = tiny.model(vocab_size=264, context_len=128, depth=1)
T = replace_train(
    Reinforce(task="letters", level=1, reward="verified", num_prompts=8, group_size=8),
    steps=60,
    seq_len=32,
    lr_scale=1e-3,
    adam_lr=1.0,
    embed_lr=1.0,
    head_lr=1.0,
    scalar_lr=1.0,
    warmup_steps=0,
)
T = replace(T, max_new_tokens=2)


def say(rng, first, row, is_taught):
    """A conversation: the plain question, or with a solution that is shown, and a letter.

    After a solution that is shown comes that solution; to the plain question the right letter of one
    who is taught, any letter else.
    """
    problem = ask(first + row, 1)
    letter = rng.choice(list(LETTERS))
    question = problem.question
    if row % 2:
        question += f"\n\n{letter}"
    elif is_taught:
        letter = problem.answer
    prompt, reply = prompt_ids(TOKENIZER, question), solution_ids(TOKENIZER, [], letter)
    return prompt + reply, [0] * len(prompt) + [1] * len(reply)


def teach(params, update, steps, is_taught):
    """Parameters after more conversations."""
    for i in range(steps):
        rng = np.random.default_rng([is_taught, i])
        said = [say(rng, 24 * i, row, is_taught) for row in range(24)]
        params, _ = update(params, learn.shard_batch(rollouts.pack_conversations(said, 24)))
    return params


@pytest.fixture(scope="module")
def models():
    """A policy that reads what it is shown and guesses else, and one that knows the letters too."""
    t = replace_train(T, warmup_steps=10, steps=230, decay_fraction=0.3, lr_scale=5e-3)
    with jax.set_mesh(tiny.mesh()):
        first, update = training.make_trainer(MODEL, t, next_token_loss(MODEL, 0.0))
        policy = teach(first(init_lm(MODEL)), update, 150, False)
        # The update takes its state for itself.
        kept = jax.tree.map(lambda a: a + 0, policy.params)
        yield {"policy": kept, "teacher": teach(policy, update, 80, True).params}


def train(method, models, monkeypatch, tmp_path, count):
    """(KL to the teacher in nats a token, verified) of the rollouts of each iteration."""
    monkeypatch.setitem(tasks.TASKS, "letters", TASK)
    lm = models["teacher"]["lm"]
    monkeypatch.setattr(teacher, "_load_teacher", lambda *_: (MODEL, lm))
    shown_texts = teacher.shown_texts

    def show_alone(*args):
        """What is shown without the words around it, which so small a model does not read past."""
        texts = shown_texts(*args)
        return [text.split("\n")[1] if "right solution" in text else "" for text in texts]

    monkeypatch.setattr(teacher, "shown_texts", show_alone)
    t = replace(T, method=method, teacher="big" if method == "teacher" else "")
    b, history = Results(tmp_path, MODEL, t), []
    for got, _, _ in islice(training.run_reinforce(b, t, models["policy"], 0), count):
        r = got.rollouts
        gap = teacher.compare_with_sampler(MODEL, lm, r, t.train.seq_len, t.temperature)
        history.append((-(gap * r.mask_bn).sum() / r.num_tokens, r.verified_b.mean()))
    return np.mean(history[:3], axis=0), np.mean(history[-5:], axis=0)


def test_a_policy_moves_towards_its_teacher(models, monkeypatch, tmp_path):
    """KL(policy || teacher) on the policy's own samples falls: 3.1 nats, then 1.0."""
    before, after = train("teacher", models, monkeypatch, tmp_path, 40)
    assert after[0] < 0.5 * before[0]


@pytest.mark.slow
def test_a_model_learns_from_how_its_group_did(models, monkeypatch, tmp_path):
    """Right answers from .25 to .54, though no reward reaches the loss.

    Only what the model says when it is shown a right sibling does.
    `pytest -n 0 -m slow tests/credit/test_distillation.py`.
    """
    before, after = train("self_teacher", models, monkeypatch, tmp_path, 60)
    assert after[1] > before[1] + 0.15
