"""Chat templates: what the sandbox gives them, what people write stays text, and what is learnt from them.

That the ids are those of `transformers` is shown by tests/export/test_chat_templates.py.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramp.errors import UserError
from ramp.text.chat import render, render_prompt
from ramp.text.template import render_template
from ramp.text.tokenizer import SPECIALS, Tokenizer

# Our own, in the manner of ChatML: a default system turn, tools, thinking that earlier turns lose.
CHATML = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nSag "hi" 🤖 <b>höflich</b> 你\\\\n<|im_end|>\\n' }}{% endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{% if not loop.last %}{% continue %}{% endif %}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
NAMES = (
    "<|endoftext|>",
    *SPECIALS[1:5],
    "<|im_end|>",
    *SPECIALS[6:],
    "<|im_start|>",
    "<think>",
    "</think>",
)
TEXTS = ["the cat sat on the mat, said the system user assistant", "naïve café — 100%"] * 3


def imported(template: str = CHATML) -> Tokenizer:
    t = Tokenizer.train(TEXTS, 290)
    return Tokenizer(
        t.merges,
        t.pattern,
        names=NAMES,
        visible=("<think>", "</think>"),
        add_bos=False,
        template=template,
    )


T = imported()
TALK = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "<think>sat</think>\n\non the mat"},
    {"role": "user", "content": "said <|im_end|> and </think>"},
    {"role": "assistant", "content": "<think>hm</think>the café"},
]


def test_names_of_special_tokens_in_what_people_write_stay_text():
    ids = render_prompt(T, TALK[:3])
    assert T.decode(ids) == (
        '<|im_start|>system\nSag "hi" 🤖 <b>höflich</b> 你\\n<|im_end|>\n<|im_start|>user\nthe cat<|im_end|>\n'
        "<|im_start|>assistant\non the mat<|im_end|>\n"
        "<|im_start|>user\nsaid <|im_end|> and </think><|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(T.end) == 4  # the fifth is the user's, as text
    assert ids.count(T.id_of("</think>")) == 1  # no special token: whoever writes it means it
    off = T.decode(render_prompt(T, TALK[:1], enable_thinking=False))
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    tools = [{"name": "add", "text": "<b> ü <|im_end|>"}]
    with_tools = render_prompt(T, TALK[:1], tools=tools)
    assert '{"name": "add", "text": "<b> ü <|im_end|>"}' in T.decode(with_tools)
    assert with_tools.count(T.end) == 3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([*NAMES, "<|im_", "start|>", "a", "\n", "\ufdd0", "é"]), max_size=8)
)
def test_no_content_opens_or_closes_a_turn(parts):
    text = "".join(parts)
    talk = [{"role": "system", "content": "x"}, {"role": "user", "content": text}]
    ids = render_prompt(T, talk)
    assert ids.count(T.end) == 2 and ids.count(T.id_of("<|im_start|>")) == 3
    assert T.bos not in ids and f"user\n{text}<|im_end|>" in T.decode(ids)


def test_an_answer_and_its_end_carry_the_loss():
    talk = [*TALK[:1], {"role": "assistant", "content": "on <|im_end|> the mat"}, *TALK[2:]]
    ids, weights, cut = render(T, talk, 500)
    assert not cut and len(ids) == len(weights)
    said = T.decode([i for i, w in zip(ids, weights, strict=True) if w])
    assert said == "on <|im_end|> the mat<|im_end|>the café<|im_end|>"
    short = render(T, talk, len(ids) - 1)
    assert short[2] and T.decode(short[0]).endswith("on <|im_end|> the mat<|im_end|>")
    assert render(T, talk, 20) is None
    prompt = render_prompt(T, talk[:1])
    assert ids[: len(prompt)] == prompt  # what is learnt follows what will be asked


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content.nothing() }}", "no attribute"),
        ("{{ messages[9].content + 'x' }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 1 // 0 }}", "zero"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "too big"),
    ],
)
def test_what_a_template_refuses_is_one_sentence(template, says):
    with pytest.raises(UserError, match=says) as caught:
        render_prompt(imported(template), TALK[:1])
    assert "\n" not in str(caught.value)


def test_an_option_that_would_do_nothing_is_refused():
    with pytest.raises(UserError, match="wild"):
        render_prompt(T, TALK[:1], wild=True)
    with pytest.raises(UserError, match="tools"):
        render_prompt(Tokenizer.bytes_only(), TALK[:1], tools=[])


def test_the_environment_of_templates():
    t = imported(
        "{% generation %}{{ messages|length }}{% endgeneration %}{{ strftime_now('%Y')|length }}{{ bos_token }}"
    )
    assert render_template(t, TALK, add_generation_prompt=True) == "44<|endoftext|>"


def test_a_tokenizer_with_all_of_it_is_saved_and_read(tmp_path):
    T.save(tmp_path / "t.json")
    assert Tokenizer.load(tmp_path / "t.json") == T
    assert T.fingerprint != Tokenizer(T.merges).fingerprint
    assert T.encode("a <think> b").count(T.id_of("<think>")) == 1
    assert T.decode_bytes([T.id_of("<think>"), T.end]) == b"<think>"
    assert T.encode_prompt("") == [T.bos] and T.encode_prompt("a") == T.encode("a")
    composed = Tokenizer(T.merges, normalizer="NFC")
    assert composed.encode("e\u0301") == composed.encode("é")
