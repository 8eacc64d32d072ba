"""The ids of a conversation are those of `transformers`' `apply_chat_template`, whatever the template.

RAMP_TORCH_PYTHON names an interpreter with transformers; RAMP_CHAT_TEMPLATES a folder of real templates, `NAME.jinja`,
from the models that a user has. Without it, a small one of our own.

    RAMP_TORCH_PYTHON=... RAMP_CHAT_TEMPLATES=... uv run pytest -m slow tests/export/test_chat_templates.py -s
"""

import json
import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from ramp.errors import UserError
from ramp.export import export, load
from ramp.text.chat import render_prompt
from ramp.text.huggingface import read_bpe
from ramp.text.tokenizer import SPECIALS, Tokenizer

PYTHON = os.environ.get("RAMP_TORCH_PYTHON", "")
FOLDER = os.environ.get("RAMP_CHAT_TEMPLATES", "")
OWN = """\
{{- bos_token }}{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no ' + message.role) }}{% endif %}
    {%- if message.tool_calls %}{{ message.tool_calls | tojson(indent=2) }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') | trim + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
TEXTS = [
    "the cat sat on the mat, and the user said: a system of tools",
    'Say "höflich" \\n to <b>me</b>, 1234 + 5 = 1239',
    "naïve café, 你是助手 👍🏽 \t e\u0301\u00a0",
    "\n  blanks before and behind \n\n",
    "def f(x):\n    return {'a': [x, 1.5e-3]}  # {{ messages }} {% if %}",
    "",
]
MARK = re.compile(r"<\|[^|<>\s]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]")
VISIBLE = re.compile(r"</?(think|tool_call|tool_response|tools)>")


def draw_conversation(rng: random.Random) -> dict:
    """What a client may send: turns in order, now and then tools, thoughts, a call and its result."""
    messages = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(TEXTS)})
    for _ in range(rng.randrange(4)):
        said = rng.choice(TEXTS)
        if rng.random() < 0.3:
            said = f"<think>\n{rng.choice(TEXTS)}\n</think>\n\n{said}"
        messages += [
            {"role": "user", "content": rng.choice(TEXTS)},
            {"role": "assistant", "content": said},
        ]
    messages.append({"role": "user", "content": rng.choice(TEXTS)})
    asked: dict = {"messages": messages}
    if rng.random() < 0.3:
        schema = {"type": "object", "properties": {"x": {"type": "number", "description": "<x> ü"}}}
        function = {"name": "add", "description": rng.choice(TEXTS), "parameters": schema}
        asked["tools"] = [{"type": "function", "function": function}]
        call = {
            "type": "function",
            "function": {"name": "add", "arguments": {"x": 1.5, "s": 'é"<'}},
        }
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "name": "add", "content": '{"y": 2}'})
    if rng.random() < 0.3:
        asked["enable_thinking"] = rng.random() < 0.5
    return asked


def imported(folder: Path, template: str) -> Tokenizer:
    """The tokenizer of a folder that holds this template, through the importer's own door."""
    names = dict.fromkeys(MARK.findall(template + OWN))
    bos = next((n for n in ("<|begin_of_text|>", "<bos>", "<s>") if n in names), "<s>")
    end = next((n for n in load.TURN_ENDS if n in template), "</s>")
    taken = {"<|bos|>": bos, "<|end|>": end}
    own = tuple(dict.fromkeys([*(taken.get(n, n) for n in SPECIALS), *names]))
    visible = tuple(n for n in own if VISIBLE.fullmatch(n))
    base = Tokenizer.train(TEXTS * 3, 320)
    written = Tokenizer(base.merges, base.pattern, names=own, visible=visible, template=template)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(export.make_tokenizer(written))
    (folder / "tokenizer_config.json").write_text(export.make_tokenizer_config(written))
    bpe = read_bpe(folder / "tokenizer.json")
    marks, lost = load._read_marks(folder, bpe)
    t = load.make_tokenizer(load.ForeignModel(folder, None, bpe, marks, None, {}))
    assert lost == [] and t == written
    return t


def test_templates_beside_the_one_that_is_used_are_said_to_be_left_out(tmp_path):
    imported(tmp_path / "m", OWN)
    more = tmp_path / "m" / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("{{ messages }}")
    _, lost = load._read_marks(tmp_path / "m", read_bpe(tmp_path / "m" / "tokenizer.json"))
    assert lost == ["the chat template 'rag'"]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="RAMP_TORCH_PYTHON names no interpreter with transformers")
def test_ids_are_those_of_transformers(tmp_path):
    templates = (
        {path.stem: path.read_text("utf-8") for path in Path(FOLDER).glob("*.jinja")}
        if FOLDER
        else {}
    )
    script = Path(__file__).with_name("oracle_chat.py")
    for name, template in {"own": OWN, **templates}.items():
        tokenizer = imported(tmp_path / name, template)
        rng = random.Random(name)
        talks = [draw_conversation(rng) for _ in range(200)]
        # An option that a template does not know is an error here, and no effect there.
        for talk in talks:
            for option in set(talk) - {"messages"}:
                if option not in template:
                    del talk[option]
        (tmp_path / "asked.json").write_text(json.dumps(talks))
        command = [PYTHON, script, tmp_path / name, tmp_path / "asked.json", tmp_path / "out.json"]
        subprocess.run(command, check=True)
        equal = refused = 0
        for talk, theirs in zip(
            talks, json.loads((tmp_path / "out.json").read_text()), strict=True
        ):
            try:
                ours = render_prompt(tokenizer, **talk)
            except UserError:
                ours = None
            assert ours == theirs, (
                name,
                talk,
                ours and tokenizer.decode(ours),
                theirs and tokenizer.decode(theirs),
            )
            equal += 1
            refused += ours is None
        print(f"{name}: {equal} of {len(talks)} equal, {refused} of them refused by both")
        assert refused < 150
