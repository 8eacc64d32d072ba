"""A trained model as a Hugging Face folder for transformers, or as a GGUF file for llama.cpp.

ramp's default model is Qwen3 (with QK-norm) or Llama (without). A switch that none of `KINDS` has
is refused by name: a folder that loads and then computes something else is worse than none.
It is written next to its final place, read back by the importer and compared, weights bit
for bit, and only then renamed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ramp.config import Config, Model
from ramp.errors import UserError
from ramp.export import load
from ramp.model import transformer
from ramp.text.huggingface import PATTERNS
from ramp.text.template import OWN_TEMPLATE
from ramp.text.tokenizer import PATTERN, Tokenizer
from ramp.train.restore import model_identity

# Keys of a model that config.json has words for.
EXPORTED = {*load.SHAPE, "vocab_size", "tie_embeddings", "qk_norm", "qkv_bias"}
EXPORTED |= {"window_pattern", "rope_scaling", "rope_factor", "rope_original_len"}
# As classes of transformers begin.
KINDS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3"}
# Names by which llama.cpp knows how text is split. It knows ramp's own way but for one case: marks
# that combine with punctuation.
SPLITTERS = {pattern: name for name, pattern in PATTERNS.items()} | {PATTERN: "qwen35"}
# Keys that finished weights no longer depend on.
UNUSED = {"short_window", "embed_std", "head_std"}


def find_kind(m: Model) -> str:
    """The architecture of `load.KINDS` that computes what this model does; empty: none does."""
    return {
        # QK-norm, biases of queries, keys and values, layers without RoPE.
        (False, False, False): "llama",
        (False, True, False): "qwen2",
        (True, False, False): "qwen3",
        (False, False, True): "smollm3",
    }.get((m.qk_norm, m.qkv_bias, "N" in m.window_pattern), "")


def export_obstacles(m: Model) -> list[str]:
    """The switches that no other loader knows: not at their default, and not exported."""
    # A default needs no word in config.json: it is what the loaders do.
    obstacles = [
        f"model.{name} = {value!r}"
        for name, value in model_identity(m).items()
        if name not in EXPORTED | UNUSED and value != getattr(Model(), name)
    ]
    if "S" in m.window_pattern or not find_kind(m):
        obstacles += [
            f"model.window_pattern = {m.window_pattern!r}",
            f"model.qk_norm = {m.qk_norm}",
        ]
    return obstacles if m.depth else [*obstacles, "model.depth = 0"]


def name_weights(m: Model, lm: dict, num_tokens: int) -> dict[str, np.ndarray]:
    """The weights by Hugging Face's names, float32.

    Only the first `num_tokens` rows of a table: the rest is padding for the mesh. Each array is
    made contiguous, because safetensors writes the memory of a transposed view under its new shape.
    """
    weights = {
        # The importer's names, so that the two cannot differ.
        f"{load.TABLE[0]}.weight": np.asarray(lm["embed"]["table"])[:num_tokens],
        f"{load.NORM[0]}.weight": np.asarray(lm["head"]["norm"]),
    }
    if not m.tie_embeddings:
        weights[f"{load.HEAD[0]}.weight"] = np.asarray(lm["head"]["weight"])[:, :num_tokens].T
    for ours, stacked in lm["blocks"].items():
        # The weights of all layers are one array; a file has one for each.
        for layer, w in enumerate(np.asarray(stacked)):
            weights[load.name_weight(ours, layer)] = w.T
    return {name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}


def make_model_config(m: Model, t: Tokenizer) -> str:
    """config.json"""
    kind = find_kind(m)
    config = {names[0]: getattr(m, ours) for ours, names in load.SHAPE.items()}
    # transformers 5 looks here and not at the key beside it.
    rope = {"rope_type": "default", "rope_theta": m.rope_theta}
    if m.rope_scaling != "none":
        rope |= {"rope_type": m.rope_scaling, "factor": m.rope_factor}
        rope |= {"original_max_position_embeddings": m.rope_original_len}
    if m.rope_scaling == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "smollm3":
        # 1 is a layer that turns by RoPE.
        kinds = [transformer.rope_kind(m, i) for i in range(m.depth)]
        config["no_rope_layers"] = [int(kind != "N") for kind in kinds]
    config |= {
        "architectures": [f"{KINDS[kind]}ForCausalLM"],
        "model_type": kind,
        "use_sliding_window": False,
        "mlp_bias": False,
        "vocab_size": t.vocab_size,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": m.tie_embeddings,
        "bos_token_id": t.bos,
        "eos_token_id": t.end,
        "pad_token_id": t.pad,
        # transformers 5 reads the first of these two, older ones the second.
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    return _to_json(config)


def make_generation_config(c: Config, t: Tokenizer) -> str:
    """generation_config.json: the run's own settings of sampling."""
    s = c.sample
    return _to_json(
        {
            "do_sample": s.temperature > 0,
            "temperature": s.temperature or 1.0,
            "top_k": s.top_k,
            "top_p": s.top_p,
            "bos_token_id": t.bos,
            "eos_token_id": list(t.stop_ids),
            "pad_token_id": t.pad,
        }
    )


def make_tokenizer(t: Tokenizer) -> str:
    """tokenizer.json"""
    from tokenizers import decoders, processors

    tokenizer = t.to_library(with_specials=True)
    tokenizer.decoder = decoders.ByteLevel()
    if t.add_bos:
        bos = t.names[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, t.bos)]
        )
    return tokenizer.to_str(pretty=False)


def make_tokenizer_config(t: Tokenizer) -> str:
    """tokenizer_config.json"""
    return _to_json(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": t.name_of(t.bos),
            "eos_token": t.name_of(t.end),
            "pad_token": t.name_of(t.pad),
            # The library would cut texts; the model's own limit is in config.json.
            "model_max_length": 1 << 30,
            "clean_up_tokenization_spaces": False,
            "chat_template": t.template or OWN_TEMPLATE,
        }
    )


def make_model_card(c: Config, report: dict[str, Any], stage: str) -> str:
    """The model's README: what it is, what it was trained on, what it measured."""
    m = c.model
    rows = []
    for name, part in report.items():
        for key, value in part.items():
            # Floats are what was measured; the rest is counts and names.
            if isinstance(value, float) and key != "seconds":
                rows.append(f"| {name} | {key} | {value:.4g} |")
    table = "\n".join(["| stage | figure | value |", "|---|---|---|", *rows])
    sources = list(c.text.sources)
    if stage != "pretrain":
        sources += c.chat.sources
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
---
# A model trained with ramp

Stage `{stage}`: {m.depth} layers, width {m.width}, {m.num_heads} heads \
({m.num_kv_heads} for keys), {m.vocab_size} tokens, context {m.context_len}.
Trained on: {", ".join(sources)}.

{table if rows else "The run reported no figures."}
"""


def write_gguf(m: Model, t: Tokenizer, weights: dict[str, np.ndarray], out: Path) -> None:
    """The GGUF file `out`, float32, of `weights` by Hugging Face's names."""
    from gguf import GGUFWriter

    kind = find_kind(m)
    file = GGUFWriter(out, kind)
    for ours, names in load.SHAPE.items():
        value = getattr(m, ours)
        add = file.add_float32 if isinstance(value, float) else file.add_uint32
        add(f"{kind}.{names[1]}", value)
    file.add_vocab_size(t.vocab_size)
    # Readers would otherwise take the width by the number of heads.
    file.add_value_length(m.head_dim)
    file.add_rope_dimension_count(m.head_dim)
    if m.rope_scaling in ("linear", "yarn"):
        file.add_string(f"{kind}.rope.scaling.type", m.rope_scaling)
        file.add_rope_scaling_factor(m.rope_factor)
        file.add_rope_scaling_orig_ctx_len(m.rope_original_len)
    # Byte-level BPE, by the name of the first model that had it.
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(SPLITTERS[t.pattern])
    # For ramp alone: what llama.cpp knows by name or not at all.
    file.add_string("ramp.pattern", t.pattern)
    file.add_string("ramp.normalizer", t.normalizer)
    letters = t.vocabulary
    visible = set(t.visible)
    kinds = [load.USER_DEFINED if name in visible else load.CONTROL for name in t.names]
    file.add_token_list([*letters, *t.names])
    file.add_token_types([load.NORMAL] * len(letters) + kinds)
    file.add_token_merges([f"{letters[a]} {letters[b]}" for a, b in t.merges])
    file.add_bos_token_id(t.bos)
    file.add_eos_token_id(t.end)
    file.add_pad_token_id(t.pad)
    file.add_add_bos_token(t.add_bos)
    file.add_chat_template(t.template or OWN_TEMPLATE)
    heads = {}
    # RoPE turns pairs of numbers: neighbours in these two, the halves of a head elsewhere.
    if kind in load.PAIRED:
        heads = {"q_proj": m.num_heads, "k_proj": m.num_kv_heads}
    names = load.list_weights(m)
    for name, w in weights.items():
        count = heads.get(name.split(".")[-2])
        file.add_tensor(names[name], load.split_pairs(w, count) if count else w)
    if m.rope_scaling == "llama3":
        file.add_tensor("rope_freqs.weight", load.rope_divisors(m))
    # The metadata is small: it is written at once, behind the header.
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def gguf_obstacles(m: Model, t: Tokenizer) -> list[str]:
    """What llama.cpp lacks although transformers has it."""
    obstacles = []
    if t.pattern not in SPLITTERS:
        obstacles.append("the way in which the tokenizer splits text")
    # The others are not in a file: they follow from the kind of model.
    if t.ignore_merges != (SPLITTERS.get(t.pattern) == "llama-bpe"):
        obstacles.append("a tokenizer that ignores merges")
    if find_kind(m) == "smollm3" and m.window_pattern != "LLLN":
        obstacles.append(f"model.window_pattern = {m.window_pattern!r}")
    if m.rope_scaling == "llama3" and (m.rope_factor, m.rope_original_len) not in load.LLAMA3:
        obstacles.append(f"model.rope_factor = {m.rope_factor} of llama3")
    return obstacles


def describe_differences(t: Tokenizer) -> list[str]:
    """Texts that llama.cpp will cut in another way than ramp, each in a few words."""
    differences = []
    if t.pattern == PATTERN:
        differences.append("marks that combine with punctuation")
    if t.normalizer:
        differences.append(f"characters that are not composed ({t.normalizer})")
    return differences


def write_folder(
    c: Config,
    t: Tokenizer,
    weights: dict[str, np.ndarray],
    report: dict[str, Any],
    stage: str,
    out: Path,
) -> None:
    """The Hugging Face folder `out`."""
    from safetensors.numpy import save_file

    texts = {
        "config.json": make_model_config(c.model, t),
        "generation_config.json": make_generation_config(c, t),
        "tokenizer.json": make_tokenizer(t),
        "tokenizer_config.json": make_tokenizer_config(t),
        "README.md": make_model_card(c, report, stage),
    }
    out.mkdir(parents=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read it


def export(
    c: Config,
    lm: dict,
    t: Tokenizer,
    report: dict[str, Any],
    stage: str,
    out: Path,
    to: str = "hf",
) -> None:
    """Write the folder `out`, new or empty, or with `to="gguf"` the new file `out`."""
    obstacles = export_obstacles(c.model)
    if not obstacles and to == "gguf":
        obstacles = gguf_obstacles(c.model, t)
    if obstacles:
        raise UserError(
            f"{', '.join(obstacles)}: no model of another tool has this "
            f"(known here: {', '.join(KINDS.values())}), so this one cannot be exported"
        )
    if out.exists() and (to == "gguf" or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory; name another with --out")
    weights = name_weights(c.model, lm, t.vocab_size)
    part = out.with_name(out.name + ".part")
    _remove(part)  # of an export that was killed
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if to == "gguf":
            write_gguf(c.model, t, weights, part)
        else:
            write_folder(c, t, weights, report, stage, part)
        _check(part, c.model, lm, weights, t)
        if out.exists():
            # Empty, as was checked above.
            out.rmdir()
        part.rename(out)
    finally:
        _remove(part)


def _remove(path):
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _check(folder, m, lm, weights, t):
    """Import what was written and find the same tokenizer, shape and, bit for bit, weights."""
    foreign, tokenizer = load.open_foreign(folder)
    # RuntimeErrors here: the user has made no mistake.
    if tokenizer != t:
        raise RuntimeError(f"the tokenizer in {folder} reads back as another one")
    shape = load.make_config(foreign, tokenizer, m.context_len).model
    params = load.load_foreign_params(foreign, lm, tokenizer)
    read_back = name_weights(m, params, t.vocab_size)
    keys = EXPORTED - {"vocab_size"}  # ours is padded for a mesh
    wrong = [key for key in keys if getattr(shape, key) != getattr(m, key)]
    wrong += [name for name, w in weights.items() if not np.array_equal(w, read_back[name])]
    if wrong:
        raise RuntimeError(f"{folder} reads back with other values: {wrong[:3]}")


def _to_json(data):
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
