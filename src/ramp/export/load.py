"""Models that others trained, as ramp runs: Llama and Qwen3 shapes, from GGUF or from a folder.

The tokenizer and the weights are re-ordered to ramp's own layout, so every stage takes an imported
model as it takes one of its own: a byte-level BPE becomes ramp's (bytes, merges, eight specials),
and the rows of the embedding follow it. `<|bos|>` gets the row of the token between documents,
`<|end|>` that of the one that ends a turn, the roles copies of ChatML's `<|im_start|>`. What the
model never had gets the mean row, whose logit is never near the top.

What neither shape has (biases, scaled RoPE, experts, ...) is refused by name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ramp.config import Config, Model, Text, check_config, resolve
from ramp.errors import UserError
from ramp.export.gguf import read_gguf
from ramp.text.huggingface import PATTERNS, number_merges, parse_merges, read_bpe, read_object
from ramp.text.tokenizer import SPECIALS, Tokenizer

# Weights of a block, ours: (Hugging Face's name, GGUF's). Matrices are transposed there.
BLOCK = {
    "attn_norm": ("input_layernorm", "attn_norm"),
    "wq": ("self_attn.q_proj", "attn_q"),
    "wk": ("self_attn.k_proj", "attn_k"),
    "wv": ("self_attn.v_proj", "attn_v"),
    "q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "wo": ("self_attn.o_proj", "attn_output"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    "w_gate": ("mlp.gate_proj", "ffn_gate"),
    "w_up": ("mlp.up_proj", "ffn_up"),
    "w_down": ("mlp.down_proj", "ffn_down"),
}
# Keys of a model's shape, ours: (that of config.json, GGUF's).
SHAPE = {
    "depth": ("num_hidden_layers", "block_count"),
    "width": ("hidden_size", "embedding_length"),
    "num_heads": ("num_attention_heads", "attention.head_count"),
    "num_kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "attention.key_length"),
    "mlp_dim": ("intermediate_size", "feed_forward_length"),
    "context_len": ("max_position_embeddings", "context_length"),
    "rope_theta": ("rope_theta", "rope.freq_base"),
    "norm_eps": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
}
REQUIRED = ("depth", "width", "num_heads", "mlp_dim", "context_len", "norm_eps")
TABLE = ("model.embed_tokens", "token_embd")
NORM = ("model.norm", "output_norm")
HEAD = ("lm_head", "output")
MAX_LAYERS = 256

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
# Whose row a special token of ours takes where the model has none of that name.
STAND_INS = {
    "<|bos|>": ("<|endoftext|>", "<|begin_of_text|>", "<s>"),
    "<|end|>": ("<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"),
} | dict.fromkeys(ROLE_TOKENS, ("<|im_start|>",))


@dataclass(frozen=True)
class ForeignModel:
    """A model that was opened. Weights are read when they are asked for, as float32."""

    path: Path
    shape: Model  # with the file's own context; the rest is at its default
    ids: dict[str, int]  # token, in GPT-2's letters: its row
    merges: list[tuple[str, str]]
    pattern: str
    template: str  # the chat template, in Jinja
    weight: Callable[[str], np.ndarray]  # by Hugging Face's name; a matrix is [outputs, inputs]
    card: dict[str, Any]  # what it says about itself


def open_foreign(path: Path) -> tuple[ForeignModel, Tokenizer]:
    """A GGUF file, or a folder (or a safetensors file in one), and its tokenizer as ours.

    Whatever is wrong with it is one UserError.
    """
    folder = path.parent if path.suffix == ".safetensors" else path
    try:
        # Everything but the weights themselves is read here.
        foreign = open_folder(folder) if folder.is_dir() else open_gguf(path)
        tokenizer = make_tokenizer(foreign)
        # The regular expression comes from the file.
        tokenizer.encode("a pattern that does not compile fails here")
    except UserError:
        raise
    except Exception as error:  # fields of other types than the formats say
        raise UserError(
            f"{path} is not laid out as such a model is: {type(error).__name__}: {error}"
        ) from None
    return foreign, tokenizer


# From GGUF


def open_gguf(path: Path) -> ForeignModel:
    """A llama.cpp file of the architecture llama or qwen3."""
    file = read_gguf(path)
    meta = file.meta
    arch = meta.get("general.architecture")
    if arch not in ("llama", "qwen3"):
        raise UserError(f"{path} is a model of the kind {arch!r}; ramp imports llama and qwen3")
    # Keys of the shape begin with the architecture.
    fields = {key.removeprefix(f"{arch}."): value for key, value in meta.items()}
    is_scaled = fields.get("rope.scaling.type", "none") != "none"
    if is_scaled or fields.get("attention.sliding_window"):
        raise UserError(
            f"{path} scales its RoPE or slides its attention window, which ramp's model does not"
        )
    kind = meta.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r}; ramp imports byte-level BPE ('gpt2')"
        )
    pattern = meta.get("tokenizer.ggml.pre", "gpt-2")
    if pattern not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise UserError(f"{path} splits its text by the pattern {pattern!r}; ramp knows {known}")
    has_qk_norm = "blk.0.attn_q_norm.weight" in file.places
    is_tied = "output.weight" not in file.places
    shape = _read_shape(path, 1, fields, has_qk_norm, is_tied)
    # Stored in 32 bits: 9.99999997e-06 for 1e-05.
    shape = replace(shape, norm_eps=float(f"{shape.norm_eps:.6g}"))
    if fields.get("rope.dimension_count", shape.head_dim) != shape.head_dim:
        raise UserError(
            f"{path} turns only a part of each head by RoPE, which ramp's model does not"
        )
    names = list_weights(shape)
    _require_weights(path, set(file.places), set(names.values()))
    # RoPE turns pairs of numbers: neighbours in llama.cpp's llama, the two halves of a head here.
    paired = {}
    if arch == "llama":
        paired = {"attn_q": shape.num_heads, "attn_k": shape.num_kv_heads}

    def weight(name):
        w = file.read_tensor(names[name])
        num_heads = paired.get(names[name].split(".")[-2])
        if num_heads and w.shape == (num_heads * shape.head_dim, shape.width):
            # [heads, pairs, 2, width]: swapping makes pairs into halves.
            w_hp2d = w.reshape(num_heads, -1, 2, shape.width)
            w = w_hp2d.swapaxes(1, 2).reshape(w.shape)
        return w

    return ForeignModel(
        path,
        shape,
        ids={token: i for i, token in enumerate(meta.get("tokenizer.ggml.tokens", []))},
        merges=parse_merges(path, meta.get("tokenizer.ggml.merges", [])),
        pattern=PATTERNS[pattern],
        template=meta.get("tokenizer.chat_template", ""),
        weight=weight,
        card={k: meta.get(f"general.{k}", "") for k in ("name", "license", "organization")},
    )


# From a folder


def open_folder(path: Path) -> ForeignModel:
    """config.json, tokenizer.json, *.safetensors, and a chat template where there is one."""
    from safetensors import SafetensorError, safe_open

    shape = _parse_config(path, read_object(path / "config.json"))
    files = {}
    try:
        for file in sorted(path.glob("*.safetensors")):
            opened = safe_open(file, "np")
            # Large models are split over several files; a name is in one of them.
            files |= dict.fromkeys(opened.keys(), opened)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    if not files:
        raise UserError(f"{path} holds no *.safetensors; ramp reads no other kind of weights")
    if "lm_head.weight" not in files:
        shape = replace(shape, tie_embeddings=True)
    # Some files hold a tied head once more, or RoPE's frequencies.
    ignored = {"lm_head.weight"} | {n for n in files if n.endswith("rotary_emb.inv_freq")}
    _require_weights(path, set(files) - ignored, set(list_weights(shape)) - ignored)

    def weight(name):
        try:
            return files[name].get_tensor(name).astype(np.float32)
        except (SafetensorError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {name} cannot be read: {error}") from None

    bpe = read_bpe(path / "tokenizer.json")
    template, card = _read_template(path), {"name": path.name}
    return ForeignModel(path, shape, bpe.ids, bpe.merges, bpe.pattern, template, weight, card)


def _parse_config(path, config):
    """The shape in config.json; UserError for what ramp's model cannot compute."""
    kind = config.get("model_type")
    if kind not in ("llama", "qwen3"):
        raise UserError(f"{path} is a model of the kind {kind!r}; ramp imports llama and qwen3")
    # transformers 5 has the first key, older ones the second.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    is_refused = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "use_sliding_window": config.get("use_sliding_window"),
        "layer_types": set(config.get("layer_types") or ()) - {"full_attention"},
        "rope_type": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    refused = ", ".join(name for name, value in is_refused.items() if value)
    if refused:
        raise UserError(f"{path}/config.json uses {refused}, which ramp's model does not have")
    fields = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6} | config
    fields["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta")
    is_tied = bool(config.get("tie_word_embeddings", False))
    return _read_shape(path / "config.json", 0, fields, kind == "qwen3", is_tied)


def _read_shape(where, column, fields, qk_norm, tie_embeddings):
    """The shape, from fields that have the names in that column of SHAPE."""
    shape = {ours: fields.get(names[column]) for ours, names in SHAPE.items()}
    for name in REQUIRED:
        if shape[name] is None:
            raise UserError(f"{where} lacks {SHAPE[name][column]}")
    if not shape["num_heads"]:
        raise UserError(f"{where} says that the model has no attention heads")
    # Files leave out what has its usual value.
    shape["num_kv_heads"] = shape["num_kv_heads"] or shape["num_heads"]
    shape["head_dim"] = shape["head_dim"] or shape["width"] // shape["num_heads"]
    shape["rope_theta"] = float(shape["rope_theta"] or 10_000.0)
    shape["norm_eps"] = float(shape["norm_eps"])
    return Model(**shape, qk_norm=qk_norm, tie_embeddings=tie_embeddings)


def _read_template(path):
    """The chat template; empty where there is none."""
    file = path / "chat_template.jinja"
    config = path / "tokenizer_config.json"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = read_object(config).get("chat_template") if config.exists() else None
    return template if isinstance(template, str) else ""


# Into ramp's layout


def list_weights(shape: Model) -> dict[str, str]:
    """Every weight of a model of this shape: Hugging Face's name to GGUF's."""
    if not 1 <= shape.depth <= MAX_LAYERS:
        raise UserError(f"a model of {shape.depth} layers cannot be imported")
    pairs = [TABLE, NORM] if shape.tie_embeddings else [TABLE, NORM, HEAD]
    for layer in range(shape.depth):
        for ours, (name, gguf_name) in BLOCK.items():
            if shape.qk_norm or ours not in ("q_norm", "k_norm"):
                pairs.append((f"model.layers.{layer}.{name}", f"blk.{layer}.{gguf_name}"))
    return {f"{name}.weight": f"{gguf_name}.weight" for name, gguf_name in pairs}


def _require_weights(path, have, want):
    """No weight is missing, and none is there that would be ignored."""
    if missing := sorted(want - have):
        raise UserError(f"{path} lacks the weight {missing[0]}")
    if extra := sorted(have - want):
        raise UserError(
            f"{path} has {extra[0]} and {len(extra) - 1} more weights "
            "that ramp's model has no place for"
        )


def make_tokenizer(foreign: ForeignModel) -> Tokenizer:
    """Its merges in our numbering, and the form of its conversations."""
    merges = number_merges(foreign.path, foreign.merges)
    # Some files spell the line end as an escape.
    template = foreign.template.replace("\\n", "\n")
    # ChatML writes the role and a line end: `message['role'] + '\n'`.
    is_chatml = bool(re.search(r"role(\"|')?\]? ?\+ ?('|\")\n", template))
    # Templates name a system prompt for conversations without one.
    system = re.search(r"\|>system\n([^{}<]+)<\|(?:im_end|end)\|>", template)
    default_system = system[1] if is_chatml and system else ""
    return Tokenizer(merges, foreign.pattern, is_chatml, default_system)


def find_rows(foreign: ForeignModel, tokenizer: Tokenizer) -> np.ndarray:
    """For each of our ids its row in the foreign table; -1 where it has none."""
    rows = [foreign.ids.get(token, -1) for token in tokenizer.vocabulary]
    for name in SPECIALS:
        candidates = (name, *STAND_INS.get(name, ()))
        # The first candidate that the model has.
        known = [foreign.ids[token] for token in candidates if token in foreign.ids]
        rows.append((*known, -1)[0])
    return np.array(rows)


def load_foreign_params(foreign: ForeignModel, like: dict, tokenizer: Tokenizer) -> dict:
    """The parameters {"embed", "blocks", "head"} as numpy arrays, in the shapes of `like`."""
    V, D = like["embed"]["table"].shape
    rows = find_rows(foreign, tokenizer)

    def read(name, *shape):
        w = foreign.weight(f"{name}.weight")
        # Matrices are [outputs, inputs] there and [inputs, outputs] here.
        if w.T.shape != shape:
            raise UserError(f"{foreign.path}: {name} is {list(w.shape)}, not {list(shape[::-1])}")
        return w.T

    def read_table(name):
        w_vd = foreign.weight(f"{name}.weight")
        if w_vd.ndim != 2 or w_vd.shape[1] != D or rows.max() >= len(w_vd):
            raise UserError(
                f"{foreign.path}: a table {list(w_vd.shape)} does not fit width {D} "
                f"and {rows.max() + 1} tokens"
            )
        # Tokens that the model never had get the mean row.
        table_vd = np.tile(w_vd.mean(0), (V, 1))
        known = np.flatnonzero(rows >= 0)
        table_vd[known] = w_vd[rows[known]]
        return table_vd

    blocks = {}
    for ours, stacked in like["blocks"].items():
        depth, *shape = stacked.shape
        names = [f"model.layers.{layer}.{BLOCK[ours][0]}" for layer in range(depth)]
        blocks[ours] = np.stack([read(name, *shape) for name in names])
    head = {"norm": read(NORM[0], D)}
    if "weight" in like["head"]:
        head["weight"] = read_table(HEAD[0]).T
    return {"embed": {"table": read_table(TABLE[0])}, "blocks": blocks, "head": head}


def make_config(foreign: ForeignModel, tokenizer: Tokenizer, context_len: int) -> Config:
    """The configuration of a run that starts from it, with at most `context_len` tokens of context.

    RoPE does not depend on the length of the context, so a shorter one is exact.
    """
    name = str(foreign.path)
    # It comes without text; where the user gives some, the tokenizer stays the model's.
    text = Text(sources=(), tokenizer="run", vocab_size=tokenizer.vocab_size)
    try:
        context_len = min(context_len, foreign.shape.context_len)
        model = replace(foreign.shape, context_len=context_len)
        c = Config(stages=("finetune", "sample"), text=text, model=model)
        return resolve(check_config(c, name), name)
    except TypeError as error:
        raise UserError(f"{name} gives its shape in the wrong types: {error}") from None
