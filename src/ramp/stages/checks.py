"""What no stage could work with is said before the first one, and before anything is made.

`check_settings` needs neither devices nor a run. What only the tokenizer can tell is in the
functions `check_lengths(rundir, config, tokenizer)` of the stages' modules: they are called once
the text is prepared.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ramp.config import BUILT_IN_TOKENIZERS, Config
from ramp.errors import UserError, require_name
from ramp.rundir import open_run
from ramp.text import chat, corpus, fetch, preferences
from ramp.text.huggingface import open_tokenizer


def check_settings(c: Config, stages: Sequence[str]) -> None:
    """Raise `UserError` where the settings of one of these stages cannot work."""
    for name in stages:
        if name in CHECKS:
            CHECKS[name](c)


def check_names(c: Config, stages: Sequence[str]) -> None:
    """The part of it that needs no text, which may be on another machine: for a dry run."""
    if "finetune" in stages:
        check_tasks(c)
    check_settings(c, [name for name in stages if name in ("reinforce", "synthesize")])


def check_prepare(c: Config) -> None:
    """Refuse text that is not there, by reading the first document of each source."""
    mixed = [source for source, _ in c.text.mix]
    if not (c.text.sources or mixed):
        raise UserError("text.sources is empty; name the text, such as --text.sources my/*.txt")
    for source in _list_local((*c.text.sources, *mixed, *c.text.decontaminate)):
        # On the first document, for which the tally of a whole source is no judge.
        next(corpus.documents(source, Counter()), None)
    if c.text.tokenizer not in BUILT_IN_TOKENIZERS:
        open_tokenizer(Path(c.text.tokenizer))


def check_finetune(c: Config) -> None:
    """Refuse conversations that are not there, and what `check_tasks` does."""
    if not c.chat.sources and not c.chat.tasks:
        raise UserError(
            "chat.sources and chat.tasks are empty; name JSONL files of conversations, such as "
            "'file:chats/*.jsonl', or a task, such as addition/2"
        )
    for source in _list_local(c.chat.sources):
        next(chat.conversations(source, Counter(), c.seed), None)
    check_tasks(c)


def check_tasks(c: Config) -> None:
    """Refuse tasks that cannot be tried, and mistakes that cannot be made."""
    if c.chat.tasks or c.chat.mistakes:
        # Slow to import, and few use it.
        from ramp.stages.trials import choose_problems, require_mistakes

        for name in c.chat.tasks:
            choose_problems(c, name)
        require_mistakes(c)


def check_dpo(c: Config) -> None:
    """Refuse where there is nothing to learn from."""
    if not c.dpo.sources:
        raise UserError("dpo.sources is empty; name JSONL files, such as 'file:pairs/*.jsonl'")
    for source in _list_local(c.dpo.sources):
        next(preferences.read_preferences([source], Counter()), None)


def check_reinforce(c: Config) -> None:
    """Refuse names that there are not, and settings that contradict each other."""
    from ramp.credit.advantages import METHODS
    from ramp.credit.fit import require_fit
    from ramp.credit.rewards import uses
    from ramp.credit.teacher import WORDING_TOKENS
    from ramp.tasks import open_task
    from ramp.tasks.cutting import open_cut

    t = c.reinforce
    require_name("reinforce.method", t.method, METHODS)
    task = open_task(t)
    has_head = uses(t.reward, "head")
    if has_head and not t.label_fraction:
        raise UserError(
            "reinforce.reward 'head' learns from the checker's labels: "
            "set reinforce.label_fraction above 0"
        )
    if t.label_fraction and not has_head:
        raise UserError(
            "reinforce.label_fraction trains a process head, which only reinforce.reward 'head' "
            "reads: set that too"
        )
    if t.method == "pass_at_k" and t.group_size < t.pass_k:
        raise UserError(
            f"reinforce.pass_k is {t.pass_k}, but a group has reinforce.group_size = "
            f"{t.group_size} rollouts: lower the one or raise the other"
        )
    if t.entropy_control == "kl_cov" and t.epochs * t.minibatches == 1:
        raise UserError(
            "reinforce.entropy_control 'kl_cov' holds tokens where they were sampled, and with one "
            "update a batch they are there: set reinforce.epochs or reinforce.minibatches to 2"
        )
    if (t.method == "teacher") != bool(t.teacher):
        raise UserError(
            "reinforce.method 'teacher' and reinforce.teacher, the run directory of the teacher, "
            "belong together: set both or neither"
        )
    if t.teacher:
        open_run(Path(t.teacher))  # that it is there
    if t.method == "self_teacher":
        room = t.train.seq_len + t.max_new_tokens + WORDING_TOKENS
        if room > c.model.context_len:
            raise UserError(
                f"reinforce.method 'self_teacher' reads up to {room} tokens, more than "
                f"model.context_len {c.model.context_len}: lower reinforce.max_new_tokens or "
                "reinforce.train.seq_len"
            )
    if t.entropy_target and not t.entropy_coef:
        raise UserError(
            "reinforce.entropy_target adapts reinforce.entropy_coef, which is 0: set it above 0"
        )
    acts = t.keep_all_groups and (t.entropy_coef or t.kl_coef)
    if t.reward == "none" and not acts:
        raise UserError(
            "reinforce.reward none teaches nothing by itself: set reinforce.keep_all_groups true, "
            "and reinforce.entropy_coef to what acts in its place, such as -0.1"
        )
    if t.num_prompts % t.minibatches:
        raise UserError(
            f"reinforce.minibatches {t.minibatches} does not divide reinforce.num_prompts "
            f"{t.num_prompts}; change one of them"
        )
    open_cut(task.steps)
    # The task itself refuses a level that it does not have.
    task.sample(0, t.level)
    if t.sft_steps and not task.sample(0, t.level).answer:
        raise UserError(
            f"reinforce.sft_steps shows solved problems, and {task.name} has no right answers; "
            "set it to 0"
        )
    require_fit(t)


def check_synthesize(c: Config) -> None:
    """Refuse settings that leave too little to measure, and verifiers that are not there."""
    from ramp.synth.prompts import MAX_PROMPT_TOKENS
    from ramp.synth.verify import load_function

    t = c.synthesize
    # Figures are measured on samples that begin a document, since prompts would change them.
    num_plain = t.num_documents * (1 - t.seeded_fraction)
    if num_plain < t.num_measured:
        raise UserError(
            f"synthesize.num_measured is {t.num_measured}, but only num_documents x "
            f"(1 - seeded_fraction) = {num_plain:g} samples begin from nothing; "
            "raise synthesize.num_documents"
        )
    if t.policy == "guarded" and len(t.verifiers) < 2:
        raise UserError(
            f"synthesize.verifiers names {len(t.verifiers)}; "
            "it takes two that differ, since each is blind somewhere"
        )
    # A file that is missing or does not import is found now and not after the first training.
    for setting, names in (
        ("verifiers", t.verifiers),
        ("auditor", (t.auditor,)),
        ("cells", (t.cells,)),
    ):
        for name in names:
            if name not in ("typical", ""):
                load_function(name, f"synthesize.{setting}")
    if t.max_new_tokens + MAX_PROMPT_TOKENS >= c.model.context_len:
        raise UserError(
            f"synthesize.max_new_tokens {t.max_new_tokens} and a prompt of {MAX_PROMPT_TOKENS} "
            f"do not fit into model.context_len {c.model.context_len}"
        )


def _list_local(sources: Sequence[str]) -> list[str]:
    """The sources that can be looked into here. Others cost a download, which is the stage's."""
    return [s for s in sources if not s.startswith("@") and not fetch.is_address(s)]


# By the name of the stage, as in `STAGES`.
CHECKS: dict[str, Callable[[Config], None]] = {
    "prepare": check_prepare,
    "finetune": check_finetune,
    "dpo": check_dpo,
    "reinforce": check_reinforce,
    "synthesize": check_synthesize,
}
