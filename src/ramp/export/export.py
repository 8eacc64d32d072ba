"""A trained model as a Hugging Face folder: what transformers, vLLM, llama.cpp's converter and MLX open.

ramp's default model is Qwen3 (with QK-norm) or Llama (without). A switch that neither has is refused by name, since a
folder that loads and then computes something else is worse than none. The folder is written beside its final place,
read back by the importer and compared, weights bit for bit, and only then renamed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ramp.config import Config, Model
from ramp.errors import UserError
from ramp.export import load
from ramp.text.tokenizer import SPECIALS, Tokenizer
from ramp.train.restore import model_identity

# The keys of a model that config.json has words for, and those that finished weights no longer depend on.
SAID = {
    "depth",
    "width",
    "head_dim",
    "num_heads",
    "num_kv_heads",
    "mlp_dim",
    "vocab_size",
    "context_len",
}
SAID |= {"qk_norm", "tie_embeddings", "rope_theta", "norm_eps"}
SPENT = {"short_window", "embed_std", "head_std"}


def export_obstacles(m: Model) -> list[str]:
    """The switches that no Qwen3 or Llama loader knows: whatever config.json cannot say and is not at its default."""
    odd = {
        k: v
        for k, v in model_identity(m).items()
        if k not in SAID | SPENT and v != getattr(Model(), k)
    }
    return [f"model.{k} = {v!r}" for k, v in (odd | ({} if m.depth else {"depth": 0})).items()]


def weights(m: Model, lm: dict, tokens: int) -> dict[str, np.ndarray]:
    """Hugging Face's name: array. Only the first `tokens` rows of the table: the rest is padding for the mesh.

    Each array is made contiguous: safetensors writes the memory of a transposed view under its new shape, and is silent.
    """
    found = {
        load.TABLE[0]: np.asarray(lm["embed"]["table"])[:tokens],
        load.NORM[0]: np.asarray(lm["head"]["norm"]),
    }
    if not m.tie_embeddings:
        found[load.HEAD[0]] = np.asarray(lm["head"]["weight"])[:, :tokens].T
    for ours, stacked in lm["blocks"].items():
        for i, w in enumerate(np.asarray(stacked)):
            found[f"model.layers.{i}.{load.BLOCK[ours][0]}"] = w.T
    return {f"{name}.weight": np.ascontiguousarray(w, np.float32) for name, w in found.items()}


def model_config(m: Model, t: Tokenizer) -> dict[str, Any]:
    kind, more = (
        ("Qwen3", {"use_sliding_window": False}) if m.qk_norm else ("Llama", {"mlp_bias": False})
    )
    shape = {keys[0]: getattr(m, ours) for ours, keys in load.SHAPE.items()}
    return (
        more
        | shape
        | {
            "architectures": [f"{kind}ForCausalLM"],
            "model_type": kind.lower(),
            "vocab_size": t.vocab_size,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": m.rope_theta,
            },  # where transformers 5 looks
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": m.tie_embeddings,
            "bos_token_id": t.bos,
            "eos_token_id": t.end,
            "pad_token_id": t.pad,
            "dtype": "float32",
            "torch_dtype": "float32",
        }
    )


def chat_template(t: Tokenizer) -> str:
    """`chat.render_prompt` in Jinja. Other tools read special tokens in a user's text as special; ramp does not."""
    named, closed = ("message['role'] + '\\n' + ", "<|end|>\\n") if t.chatml else ("", "<|end|>")
    turn = f"'<|' + message['role'] + '|>' + {named}message['content'] + '{closed}'"
    first = "" if t.chatml else "{{ '<|bos|>' }}"
    if t.system:
        told = f"<|system|>system\n{t.system}<|end|>\n"
        first = f"{{% if not messages or messages[0]['role'] != 'system' %}}{{{{ {json.dumps(told)} }}}}{{% endif %}}"
    last = "'<|assistant|>assistant\\n'" if t.chatml else "'<|assistant|>'"
    turns = f"{{% for message in messages %}}{{{{ {turn} }}}}{{% endfor %}}"
    return f"{first}{turns}{{% if add_generation_prompt %}}{{{{ {last} }}}}{{% endif %}}"


def tokenizer_files(t: Tokenizer) -> dict[str, str]:
    from tokenizers import AddedToken, decoders, processors

    fast = t.to_library()
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    fast.decoder = decoders.ByteLevel()
    if not t.chatml:
        fast.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", t.bos)]
        )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": 1 << 30,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(t),
    }
    return {"tokenizer.json": fast.to_str(pretty=False), "tokenizer_config.json": _json(config)}


def card(c: Config, report: dict[str, Any], stage: str) -> str:
    """The model's README: what it is, what it was made of, what it measured."""
    m, lines = c.model, []
    for name, part in report.items():
        figures = {k: v for k, v in part.items() if isinstance(v, float) and k != "seconds"}
        lines += [f"| {name} | {k} | {v:.4g} |" for k, v in figures.items()]
    sources = ", ".join((*c.text.sources, *(c.chat.sources if stage != "pretrain" else ())))
    figures = (
        ["| stage | figure | value |", "|---|---|---|", *lines]
        if lines
        else ["The run reported no figures."]
    )
    head = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n# A model trained with ramp\n"
    shape = f"{m.depth} layers, width {m.width}, {m.num_heads} heads ({m.num_kv_heads} for keys), {m.vocab_size} tokens, context {m.context_len}"
    return "\n".join(
        [head, f"Stage `{stage}`: {shape}.", f"Trained on: {sources}.", "", *figures, ""]
    )


def export(
    c: Config, lm: dict, t: Tokenizer, report: dict[str, Any], stage: str, out: Path
) -> None:
    """Write the folder `out`, which must not exist or be empty."""
    from safetensors.numpy import save_file

    if found := export_obstacles(c.model):
        raise UserError(
            f"{', '.join(found)}: no Qwen3 or Llama loader knows this, so the model cannot be exported"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory; name another with --out")
    s = c.sample
    drawn = {
        "do_sample": s.temperature > 0,
        "temperature": s.temperature or 1.0,
        "top_k": s.top_k,
        "top_p": s.top_p,
    }
    ends = {"bos_token_id": t.bos, "eos_token_id": [t.end, t.bos], "pad_token_id": t.pad}
    texts = tokenizer_files(t) | {
        "config.json": _json(model_config(c.model, t)),
        "generation_config.json": _json(drawn | ends),
        "README.md": card(c, report, stage),
    }
    made = weights(c.model, lm, t.vocab_size)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        save_file(made, part / "model.safetensors", metadata={"format": "pt"})
        (part / "model.safetensors").chmod(0o644)
        compare(part, c.model, lm, made, t)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def compare(folder: Path, m: Model, lm: dict, made: dict[str, np.ndarray], t: Tokenizer) -> None:
    """Read the folder back as a stranger's and find the same tokenizer, shape and, bit for bit, weights."""
    f, again = load.open_foreign(folder)
    if again != t:
        raise RuntimeError(f"the tokenizer in {folder} reads back as another one")
    shape = load.make_config(f, again, m.context_len).model
    back = weights(m, load.load_foreign_params(f, lm, again), t.vocab_size)
    wrong = [
        key for key in SAID - {"vocab_size"} if getattr(shape, key) != getattr(m, key)
    ]  # ours is padded for a mesh
    wrong += [name for name, w in made.items() if not np.array_equal(w, back[name])]
    if wrong:
        raise RuntimeError(f"{folder} reads back with other values: {wrong[:3]}")


def _json(data: dict) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
