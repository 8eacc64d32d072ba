"""Tasks from files of questions, GSM8K's among them, from a file of one's own and from reasoning-gym."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from ramp import config
from ramp.config import Reinforce
from ramp.errors import UserError
from ramp.tasks import gym as gym_tasks
from ramp.tasks import open_task, questions
from ramp.tasks.split import choose_part, held_out_problems, make_problems


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def opened(path, **keys):
    return open_task(Reinforce(prompts=path, **keys))


def test_a_task_and_prompts_are_one_too_many(tmp_path):
    """Neither wins silently; what a file of settings says can be taken back."""
    path = write(
        tmp_path / "q.jsonl", *({"question": f"{i}?", "answer": str(i)} for i in range(60))
    )
    with pytest.raises(UserError, match="both say what is asked; leave one out"):
        opened(path, task="chain")
    (tmp_path / "c.toml").write_text(f'[reinforce]\ntask = "chain"\nprompts = "{path}"\n')
    for flag, name in (("task", "q.jsonl"), ("prompts", "chain")):
        c = config.load(tmp_path / "c.toml", [f"--reinforce.{flag}="])
        assert open_task(c.reinforce).name.endswith(name)
    assert open_task(Reinforce()).name == "words"


def test_what_a_flag_asks_takes_the_place_of_what_a_file_does(tmp_path):
    rows = ({"question": f"{i}?", "answer": str(i)} for i in range(60))
    path = write(tmp_path / "q.jsonl", *rows)
    (tmp_path / "c.toml").write_text('[reinforce]\ntask = "chain"\n')
    t = config.load(tmp_path / "c.toml", ["--reinforce.prompts", path]).reinforce
    assert open_task(t).name == "q.jsonl"
    (tmp_path / "c.toml").write_text(f'[reinforce]\nprompts = "{path}"\n')
    t = config.load(tmp_path / "c.toml", ["--reinforce.task", "chain"]).reinforce
    assert open_task(t).name == "chain"
    # GSM8K reads its prompts.
    t = config.load(tmp_path / "c.toml", ["--reinforce.task", "gsm8k"]).reinforce
    assert (t.task, t.prompts) == ("gsm8k", str(path))


def all_problems(task):
    return [*task.sets.train, *task.sets.selection, *task.sets.test]


@pytest.mark.parametrize(
    ("record", "gold", "text", "right"),
    [
        ({"question": "?", "answer": "72"}, "72", "It is 72 cats. So 72.", True),
        ({"question": "?", "answer": "1,234"}, "1234", "so $1,234.00", True),
        ({"prompt": "?", "solution": "a\nb\n#### -5"}, "-5", "3-5 is -5", True),
        ({"problem": "?", "target": 0.5}, "0.5", "is -.5", False),
        ({"input": "?", "output": "Paris"}, "Paris", "I think.\nThe answer is paris.", True),
        ({"instruction": "?", "label": "yes"}, "yes", "yes\nno", False),
        ({"prompt": [{"role": "user", "content": "?"}], "ground_truth": "4"}, "4", "5 4", True),
        ({"query": "?", "answer": "72"}, "72", "no number", False),
        ({"query": "?", "answer": "72"}, "72", "so 7,2", False),
        ({"query": "?", "answer": "1,2"}, "1,2", "12", False),
        ({"query": "?", "answer": "-5"}, "-5", "is \u22125", True),
        ({"query": "?", "answer": "-5"}, "-5", "is 5", False),
        ({"query": "?", "answer": "5"}, "5", "is \u22125", False),
        ({"query": "?", "answer": "\u22125"}, "-5", "is -5", True),
        ({"query": "?", "answer": "72"}, "72", "\uff17\uff12", False),  # full-width digits
    ],
)
def test_fields_and_answers_are_found(tmp_path, record, gold, text, right):
    task = opened(write(tmp_path / "q.jsonl", record))
    (problem,) = all_problems(task)
    assert (problem.question, problem.answer) == ("?", gold)
    verdict = task.judge(problem, ("a",), task.find_answer(text))
    assert verdict.final_right is right and verdict.steps[0].right is None
    assert not verdict.verified  # nobody looked at the step
    assert repr(next(iter(record))) in task.about


def test_fields_are_named_and_answers_may_be_absent(tmp_path):
    path = write(tmp_path / "q.jsonl", {"ask": "1?", "say": "A=1"}, {"ask": "2?"})
    with pytest.raises(UserError, match=r"--reinforce[.]prompt_field; it has: ask, say"):
        opened(path)
    # A misspelled name would leave a reward without right answers.
    for key in ("prompt_field", "answer_field"):
        names = {"prompt_field": "ask"} | {key: "gold"}
        with pytest.raises(UserError, match=f"'gold' of --reinforce.{key}; they have: ask, say"):
            opened(path, **names)
    with pytest.raises(UserError, match="is no regular expression") as raised:
        opened(path, prompt_field="ask", answer_field="say", answer="(open")
    pattern = str(raised.value).split("--reinforce.answer '")[1].removesuffix("'")
    opened(path, prompt_field="ask", answer_field="say", answer=pattern)  # the remedy
    task = opened(path, prompt_field="ask")
    assert "no field of right answers" in task.about
    assert task.judge(all_problems(task)[0], (), "x").final_right is None
    task = opened(path, prompt_field="ask", answer_field="say", answer="[A-Z]=([0-9])")
    assert "1 of 2 have no answer" in task.about
    # An answer is missing where the question is kept.
    write(tmp_path / "q.jsonl", *[{"question": "1?"}] * 3, {"question": "2?", "answer": "2"})
    about = opened(str(tmp_path / "q.jsonl")).about
    assert about.endswith("; 2 of 4 ask it again and are left out; 1 of 2 have no answer")
    assert sorted(p.answer for p in all_problems(task)) == ["", "1"]
    assert task.find_answer("A=3, B=4 and C") == "4" and task.find_answer("none") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"question": "1?"}\n{"question": " "}\n',
            "q.jsonl:2 has no text in the field 'question'",
        ),
        ('{"question": "1?"}\n{"quest\n', "q.jsonl:2 is no JSON object"),
        ('{"question": {"a": 1}}\n', "'question' is no text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, words):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        opened(str(path))


def test_what_is_not_there(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty.jsonl is empty; give a JSONL file with a question"):
        opened(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="neither a file nor a folder"):
        opened(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"set reinforce[.]prompts to"):
        open_task(Reinforce(task="gsm8k"))


def test_gsm8k_from_its_folder(tmp_path):
    row = {"question": "Half of 48?", "answer": "Half is 48/2=<<48/2=24>>24.\n#### 24"}
    write(tmp_path / "gsm8k_train.jsonl", *(row | {"question": f"{i}?"} for i in range(40)))
    write(tmp_path / "gsm8k_test.jsonl", row)
    write(tmp_path / "others.jsonl", {"text": "in the same folder"})
    task = opened(str(tmp_path), task="gsm8k")
    (problem,) = held_out_problems(task, 1, 9)
    assert task.solution(problem) == ["Half is 48/2=<<48/2=24>>24."] and problem.answer == "24"
    assert task.judge(problem, ("a",), task.find_answer("so 24")).final_right
    assert not task.judge(problem, ("a",), task.find_answer("so 2,4")).final_right
    assert task.find_answer("so\n#### 24") == "24" and len(make_problems(task, 1, 0, 99)) == 99


def test_a_task_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ramp.tasks.chain import TASK\nfrom dataclasses import replace\n"
        "MINE = replace(TASK, name='mine', steps='newline')\nOTHER = 3\n"
    )
    task = open_task(Reinforce(task=f"{path}:MINE"))
    assert (task.name, task.steps) == ("mine", "newline")
    assert open_task(Reinforce(task=f"{path}:MINE", steps="token")).steps == "token"
    with pytest.raises(
        UserError, match=r"is a int without name, sample, .*pydoc ramp.tasks.protocol"
    ):
        open_task(Reinforce(task=f"{path}:OTHER"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", r"judge of the task \S+mine.py:TASK fails: \S+mine.py, line 4: ZeroDiv"),
        ("return True", "judge of the task .* returned a bool; it must return a Verdict"),
        ("return chain.judge(p, [], a)", "returned 0 verdicts on 2 steps; return one for each"),
        ("return chain.judge(p, ['?', *steps[1:]], a)", "with its own solution of .*: malformed"),
        ("return chain.judge(p, steps, '?')", "its own solution of '.*': a wrong answer; mend"),
    ],
)
def test_a_task_of_ones_own_that_fails_is_a_sentence(tmp_path, body, words):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\nfrom ramp.tasks import chain\n"
        f"def judge(p, steps, a):\n    {body}\nTASK = replace(chain.TASK, judge=judge)\n"
    )
    with pytest.raises(UserError, match=words) as raised:
        open_task(Reinforce(task=f"{path}:TASK", level=2))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("TASK = Task()", "missing 4 .*'sample'.*; mend it; .*prints an example"),
        (
            "TASK = Task('a', None, None, None)",
            "sample of the .* is a NoneType; .* prints an example",
        ),
        ("class A:\n    def sample(): 0\nTASK = A()", "is a A without name, solution, judge; make"),
        ("class A(Task): 0\nTASK = A()", "missing 4 .*; mend it; .*prints an example"),
        ("", "has no Task to name; write one there; .*prints an example"),
        (
            "TASK = replace(chain.TASK, sample=lambda seed, level: [][level])",
            "fails: .*IndexError.*; mend it, or choose another --reinforce.level than 2$",
        ),
        (
            "TASK = replace(chain.TASK, sample=lambda seed, level: Problem('a'))",
            "missing 5 .*'question'.*--reinforce.level than 2; .*prints an example",
        ),
    ],
)
def test_a_task_that_is_built_wrongly_says_what_is_missing(source, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\nfrom ramp.tasks import chain\n"
        f"from ramp.tasks.protocol import Problem, Task\n{source}\n"
    )
    with pytest.raises(UserError, match=said):
        open_task(Reinforce(task=f"{path}:TASK", level=2))


def test_a_file_without_a_name_and_a_folder_say_what_to_add(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from ramp.tasks.chain import TASK\n")
    with pytest.raises(UserError, match="is a file, with TASK; add the name, as") as raised:
        open_task(Reinforce(task=str(path)))
    assert open_task(Reinforce(task=str(raised.value).rpartition("as ")[2])).name == "chain"
    with pytest.raises(UserError, match=r"is a folder; write FILE.py:NAME of a file in it"):
        open_task(Reinforce(task=str(tmp_path)))


def test_a_task_that_makes_another_problem_at_each_call_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    text = (
        "import itertools\nfrom dataclasses import replace\nfrom ramp.tasks import chain\n"
        "from ramp.tasks.protocol import make_rng\ncount = itertools.count()\n"
        "def sample(seed, level): return chain.sample({}, level)\n"
        "TASK = replace(chain.TASK, sample=sample)\n"
    )
    path.write_text(text.format("next(count)"))
    with pytest.raises(UserError, match=r"sample\(0, 4\) of .* another problem at each .*make_rng"):
        open_task(Reinforce(task=f"{path}:TASK", level=4))
    # What it says to do works, and problems that nobody has an answer to are let through.
    path.write_text(text.format("make_rng('mine', seed, level).randint(0, 99)"))
    open_task(Reinforce(task=f"{path}:TASK", level=4))
    path = tmp_path / "unknown.py"
    unknown = "TASK = replace(TASK, sample=lambda s, l: replace(sample(s, l), answer=''))"
    path.write_text(text.format("seed") + unknown)
    open_task(Reinforce(task=f"{path}:TASK", level=4))


def test_reasoning_gym_is_an_extra():
    if importlib.util.find_spec("reasoning_gym"):
        pytest.skip("it is installed")
    with pytest.raises(UserError, match=r"pip install 'ramp-lm\[gym\]'"):
        open_task(Reinforce(task="reasoning_gym:chain_sum"))


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    task = open_task(Reinforce(task="reasoning_gym:chain_sum"))
    problem = task.sample(3, 2)
    assert problem == task.sample(3, 2) and problem.question != task.sample(4, 2).question
    assert task.judge(problem, ("x",), problem.answer).final_right
    assert not task.judge(problem, ("x",), "-1").final_right
    with pytest.raises(UserError, match="has no such"):
        open_task(Reinforce(task="reasoning_gym:such"))


def test_reasoning_gym_has_problems_for_training(monkeypatch):
    """Its seeds have 32 bits; a stand-in for the package refuses others, as numpy does."""

    def create_dataset(name, seed, size):
        assert 0 <= seed < 2**32 and size == 1
        return [{"question": f"What is {seed} + 1?", "answer": seed + 1}]

    gym = SimpleNamespace(
        factory=SimpleNamespace(DATASETS={"sum": None}), create_dataset=create_dataset
    )
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    task = gym_tasks.load_gym("reasoning_gym:sum")
    questions_asked = {p.question for p in make_problems(task, 2, 0, 200)}
    assert len(questions_asked) == 200
    assert {choose_part(question) for question in questions_asked} == {"train"}
    assert len(held_out_problems(task, 2, 20)) == 20


def test_numbers_in_words():
    for text, number in (
        *(("-3", "-3"), ("5-3", "3"), ("(5)-3", "3"), ("x2", None), ("$.50", ".50")),
        # A comma parts thousands, and else two numbers.
        *(("1,234", "1234"), ("$1,234,567.50", "1234567.50"), ("7,2", "2"), ("1,2345", "2345")),
        *(("\u22125", "-5"), ("is \u20135", "-5"), ("3\u20135", "5")),
    ):
        assert questions.find_number(text) == number
