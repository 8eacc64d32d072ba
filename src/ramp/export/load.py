"""Models that others trained, as ramp runs: Llama, Qwen and SmolLM shapes, from GGUF or a folder.

The tokenizer and the weights are re-ordered to ramp's own layout, so every stage takes an imported
model as it takes one of its own: a byte-level BPE becomes ramp's (bytes, merges, eight specials),
and the rows of the embedding follow it. Its special tokens keep their names: the one between
documents plays the part of `<|bos|>`, the one that ends a turn that of `<|end|>`. What the model
never had gets the mean row, whose logit is never near the top. Its chat template comes along.

What ramp's model does not have (experts, sliding windows, ...) is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ramp.config import Config, Model, Text, check_config, resolve
from ramp.errors import UserError
from ramp.export.gguf import read_gguf
from ramp.model import transformer
from ramp.text.huggingface import (
    PATTERNS,
    ForeignBpe,
    number_merges,
    parse_merges,
    read_bpe,
    read_object,
)
from ramp.text.template import OWN_TEMPLATE, compile_template
from ramp.text.tokenizer import SPECIALS, Tokenizer

# Weights of a block, ours: (Hugging Face's name, GGUF's). Matrices are transposed there.
# Which of them a model has follows from its switches: see `list_weights`.
BLOCK = {
    "attn_norm": ("input_layernorm", "attn_norm"),
    "wq": ("self_attn.q_proj", "attn_q"),
    "wk": ("self_attn.k_proj", "attn_k"),
    "wv": ("self_attn.v_proj", "attn_v"),
    "q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "bq": ("self_attn.q_proj", "attn_q"),
    "bk": ("self_attn.k_proj", "attn_k"),
    "bv": ("self_attn.v_proj", "attn_v"),
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
BIASES = ("bq", "bk", "bv")
KINDS = ("llama", "qwen2", "qwen3", "smollm3")  # in both kinds of file
PAIRED = ("llama", "smollm3")  # in GGUF, RoPE turns neighbours
# What the numbers in GGUF's rope_freqs may stand for: Llama 3.1 and 3.2.
LLAMA3 = [(factor, 8192) for factor in (8.0, 32.0)]
REQUIRED = ("depth", "width", "num_heads", "mlp_dim", "context_len", "norm_eps")
TABLE = ("model.embed_tokens", "token_embd")
NORM = ("model.norm", "output_norm")
HEAD = ("lm_head", "output")
MAX_LAYERS = 256
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF's kinds: pieces, special tokens, text that is one
MARKS = ("bos", "eos", "eot", "eom")  # GGUF's names of the tokens around a conversation

# What plays the part of <|bos|> and of <|end|>, the first that a model has.
BEGINNINGS = ("<|bos|>", "<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>")
TURN_ENDS = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>")
# Cut by both tokenizers and compared: a file may say what ramp does not look for.
PROBE = (
    "Don't  split 1234567 as\tit's: naïve é́ 你好、世界! (x+1)\r\n\n  <b>ok</b> 👍🏽 ١٢ e\u0301\n"
)


@dataclass(frozen=True)
class Marks:
    """What a model says about conversations and the tokens around them; tokens by name."""

    template: str  # in Jinja; empty: none
    bos: str
    eos: str
    stops: tuple[str, ...]  # every token that ends an answer
    add_bos: bool


@dataclass(frozen=True)
class ForeignModel:
    """A model that was opened. Weights are read when they are asked for, as float32."""

    path: Path
    shape: Model  # with the file's own context; the rest is at its default
    bpe: ForeignBpe
    marks: Marks
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
        # The regular expression and the template come from the file.
        tokenizer.encode("a pattern that does not compile fails here")
        compile_template(tokenizer.template)
    except UserError:
        raise
    except Exception as error:  # fields of other types than the formats say
        raise UserError(
            f"{path} is not laid out as such a model is: {type(error).__name__}: {error}"
        ) from None
    return foreign, tokenizer


# From GGUF


def open_gguf(path: Path) -> ForeignModel:
    """A llama.cpp file of one of `KINDS`."""
    file = read_gguf(path)
    meta = file.meta
    arch = meta.get("general.architecture")
    _require_kind(path, arch)
    # Keys of the shape begin with the architecture.
    fields = {key.removeprefix(f"{arch}."): value for key, value in meta.items()}
    scaling = fields.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn") or fields.get("attention.sliding_window"):
        raise UserError(
            f"{path} scales its RoPE ({scaling}) or slides its attention window, "
            "which ramp's model does not"
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
    switches = {
        "qk_norm": "blk.0.attn_q_norm.weight" in file.places,
        "qkv_bias": "blk.0.attn_q.bias" in file.places,
        "tie_embeddings": "output.weight" not in file.places,
        "window_pattern": "LLLN" if arch == "smollm3" else "L",
        "rope_scaling": scaling,
        "rope_factor": fields.get("rope.scaling.factor", 1.0),
        "rope_original_len": fields.get("rope.scaling.original_context_length", 0),
    }
    shape = _read_shape(path, 1, fields, switches)
    # Llama 3's scaling is in no field: only the divisors that follow from it are there.
    if "rope_freqs.weight" in file.places:
        shape = _read_scaling(path, shape, file.read_tensor("rope_freqs.weight"))
    # Stored in 32 bits: 9.99999997e-06 for 1e-05.
    shape = replace(shape, norm_eps=float(f"{shape.norm_eps:.6g}"))
    if fields.get("rope.dimension_count", shape.head_dim) != shape.head_dim:
        raise UserError(
            f"{path} turns only a part of each head by RoPE, which ramp's model does not"
        )
    names = list_weights(shape)
    _require_weights(path, set(file.places) - {"rope_freqs.weight"}, set(names.values()))
    # RoPE turns pairs of numbers: neighbours in llama.cpp's llama, the two halves of a head here.
    paired = {}
    if arch in PAIRED:
        paired = {"attn_q": shape.num_heads, "attn_k": shape.num_kv_heads}

    def weight(name):
        w = file.read_tensor(names[name])
        num_heads = paired.get(names[name].split(".")[-2])
        fits = num_heads and w.shape[0] == num_heads * shape.head_dim
        return join_halves(w, num_heads) if fits else w

    tokens = meta.get("tokenizer.ggml.tokens", [])
    kinds = zip(tokens, meta.get("tokenizer.ggml.token_type", []), strict=False)
    bpe = ForeignBpe(
        {token: i for i, token in enumerate(tokens)},
        parse_merges(path, meta.get("tokenizer.ggml.merges", [])),
        # A file that ramp wrote says exactly how it splits.
        meta.get("ramp.pattern", PATTERNS[pattern]),
        {token: kind == CONTROL for token, kind in kinds if kind in (CONTROL, USER_DEFINED)},
        # llama.cpp knows this by the name of the pattern, too.
        ignore_merges=pattern == "llama-bpe",
        normalizer=meta.get("ramp.normalizer", ""),
    )
    # By number in the file, by name here.
    numbers = {name: meta.get(f"tokenizer.ggml.{name}_token_id") for name in MARKS}
    marks = {name: tokens[i] for name, i in numbers.items() if i is not None}
    return ForeignModel(
        path,
        shape,
        bpe=bpe,
        marks=Marks(
            template=meta.get("tokenizer.chat_template", ""),
            bos=marks.get("bos", ""),
            eos=marks.get("eos", ""),
            stops=tuple(marks[name] for name in ("eos", "eot", "eom") if name in marks),
            add_bos=bool(meta.get("tokenizer.ggml.add_bos_token", pattern == "llama-bpe")),
        ),
        weight=weight,
        card={k: meta.get(f"general.{k}", "") for k in ("name", "license", "organization")},
    )


def join_halves(w: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of queries or keys that lie in pairs, as two halves of each head."""
    pairs = w.reshape(num_heads, -1, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def split_pairs(w: np.ndarray, num_heads: int) -> np.ndarray:
    """The inverse of `join_halves`."""
    halves = w.reshape(num_heads, 2, -1, *w.shape[1:])
    return halves.swapaxes(1, 2).reshape(w.shape)


def _read_scaling(path, shape, factors):
    """The scaling of RoPE that has these divisors of its frequencies."""
    for factor, original_len in LLAMA3:
        scaled = replace(
            shape, rope_scaling="llama3", rope_factor=factor, rope_original_len=original_len
        )
        if np.allclose(rope_divisors(scaled), factors, rtol=1e-4):
            return scaled
    raise UserError(f"{path} scales its RoPE by numbers that are not those of Llama 3")


def rope_divisors(m: Model) -> np.ndarray:
    """What llama.cpp divides RoPE's frequencies by, [h/2]."""
    freq = m.rope_theta ** -(np.arange(0, m.head_dim, 2) / m.head_dim)
    return (freq / transformer.scale_frequencies(m)[0]).astype(np.float32)


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
    marks, lost = _read_marks(path, bpe)
    bpe = replace(bpe, lost=(*bpe.lost, *lost))
    return ForeignModel(path, shape, bpe, marks, weight, {"name": path.name})


def _parse_config(path, config):
    """The shape in config.json; UserError for what ramp's model cannot compute."""
    kind = config.get("model_type")
    _require_kind(path, kind)
    # transformers 5 has the first key, older ones the second.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    is_refused = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        # Qwen2 has some without saying so.
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "use_sliding_window": config.get("use_sliding_window"),
        "layer_types": set(config.get("layer_types") or ()) - {"full_attention"},
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1) != 1,
        "rope_type": scaling not in ("default", "linear", "llama3", "yarn"),
        # What every published model has, and ramp takes for granted.
        "low_freq_factor": rope.get("low_freq_factor", 1) != 1,
        "high_freq_factor": rope.get("high_freq_factor", 4) != 4,
        "beta_fast": rope.get("beta_fast", 32) != 32,
        "beta_slow": rope.get("beta_slow", 1) != 1,
        "attention_factor": rope.get("attention_factor") or rope.get("mscale"),
        "truncate": not rope.get("truncate", True),
    }
    refused = ", ".join(name for name, value in is_refused.items() if value)
    if refused:
        raise UserError(f"{path}/config.json uses {refused}, which ramp's model does not have")
    fields = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6} | config
    fields["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta")
    switches = {
        "qk_norm": kind == "qwen3",
        "qkv_bias": kind == "qwen2",
        "tie_embeddings": bool(config.get("tie_word_embeddings", kind == "smollm3")),
        "window_pattern": _read_pattern(path, config) if kind == "smollm3" else "L",
    }
    if scaling != "default":
        first = rope.get("original_max_position_embeddings") or fields["max_position_embeddings"]
        switches |= {
            "rope_scaling": scaling,
            "rope_factor": float(rope["factor"]),
            "rope_original_len": first,
        }
    return _read_shape(path / "config.json", 0, fields, switches)


def _require_kind(path, kind):
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"{path} is a model of the kind {kind!r}; ramp imports {known}")


def _read_pattern(path, config):
    """SmolLM3's layers without RoPE, as letters of a pattern that repeats."""
    depth = config["num_hidden_layers"]
    every = config.get("no_rope_layer_interval", 4)
    # In these lists 1 is a layer that turns by RoPE.
    layers = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(depth)]
    letters = "".join("L" if turns else "N" for turns in layers)
    return next(
        letters[:n] for n in range(1, depth + 1) if (letters[:n] * depth)[:depth] == letters
    )


def _read_shape(where, column, fields, switches):
    """The shape, from fields that have the names in that column of SHAPE, and its switches."""
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
    return Model(**shape, **switches)


def _read_marks(path, bpe):
    """What tokenizer_config.json and its companions say, and what of it is left out."""
    configs = {}
    for name in ("tokenizer_config", "generation_config", "config"):
        file = path / f"{name}.json"
        configs[name] = read_object(file) if file.exists() else {}
    config = configs["tokenizer_config"]
    # A list: one for each use, `default` among them.
    template = config.get("chat_template") or ""
    if not isinstance(template, str):
        template = {entry["name"]: entry["template"] for entry in template}
    file = path / "chat_template.jinja"
    if file.exists():
        template = file.read_text(encoding="utf-8")
    lost = []
    if isinstance(template, dict):
        lost = [f"the chat template {name!r}" for name in template if name != "default"]
        template = template.get("default", "")
    # The newer place of what such a list holds.
    more = sorted((path / "additional_chat_templates").glob("*.jinja"))
    lost += [f"the chat template {file.stem!r}" for file in more]
    names = {i: name for name, i in bpe.ids.items()}
    numbers = configs["generation_config"].get(
        "eos_token_id", configs["config"].get("eos_token_id")
    )
    numbers = numbers if isinstance(numbers, list) else [numbers]
    marks = Marks(
        template,
        bos=_read_token(config, "bos_token"),
        eos=_read_token(config, "eos_token"),
        stops=tuple(names[i] for i in numbers if i in names),
        add_bos=_compare_cuts(path, bpe),
    )
    return marks, lost


def _read_token(config, name):
    """A token's name: a string, or an object that says more about it."""
    token = config.get(name) or ""
    return token if isinstance(token, str) else token["content"]


def _compare_cuts(path, bpe):
    """Whether the library puts a token before a text; UserError where it cuts texts otherwise."""
    library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    merges = number_merges(path, bpe.merges)
    visible = tuple(name for name, is_special in bpe.added.items() if not is_special)
    names = SPECIALS + tuple(name for name in visible if name not in SPECIALS)
    ours = Tokenizer(merges, bpe.pattern, bpe.ignore_merges, bpe.normalizer, names, visible)
    cut = [bpe.ids.get(ours.vocabulary[i]) for i in ours.encode(PROBE)]
    if cut != library.encode(PROBE, add_special_tokens=False).ids:
        raise UserError(
            f"{path}/tokenizer.json cuts a text into other tokens than ramp would; "
            "it has a step that ramp's tokenizer lacks"
        )
    return len(library.encode("a").ids) > len(library.encode("a", add_special_tokens=False).ids)


# Into ramp's layout


def list_weights(shape: Model) -> dict[str, str]:
    """Every weight of a model of this shape: Hugging Face's name to GGUF's."""
    if not 1 <= shape.depth <= MAX_LAYERS:
        raise UserError(f"a model of {shape.depth} layers cannot be imported")
    # What a switch brings, and this model has not.
    absent = set()
    absent |= set() if shape.qk_norm else {"q_norm", "k_norm"}
    absent |= set() if shape.qkv_bias else set(BIASES)
    pairs = [TABLE, NORM] if shape.tie_embeddings else [TABLE, NORM, HEAD]
    weights = {f"{name}.weight": f"{gguf_name}.weight" for name, gguf_name in pairs}
    for layer in range(shape.depth):
        for ours in BLOCK.keys() - absent:
            weights[name_weight(ours, layer)] = name_weight(ours, layer, gguf=True)
    return weights


def name_weight(ours: str, layer: int, gguf: bool = False) -> str:
    """The name of a block's weight in a file."""
    kind = "bias" if ours in BIASES else "weight"
    prefix = "blk" if gguf else "model.layers"
    return f"{prefix}.{layer}.{BLOCK[ours][gguf]}.{kind}"


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
    """Its tokenizer in our numbering, with its own special tokens and its chat template."""
    bpe, marks = foreign.bpe, foreign.marks
    merges = number_merges(foreign.path, bpe.merges)
    bos_first = [marks.bos] if "bos_token" in marks.template else []
    bos = _choose(bpe.ids, [*bos_first, *BEGINNINGS, marks.bos], "<|bos|>")
    # A template names the token that ends a turn, or takes it from the configuration.
    eos_first = [name for name in TURN_ENDS if name in marks.template]
    if "eos_token" in marks.template:
        eos_first = [marks.eos]
    # A model without conversations may have one token for both: then `end` is a new one.
    ends = [name for name in [*eos_first, marks.eos, *TURN_ENDS] if name != bos]
    end = _choose(bpe.ids, ends, "<|end|>")
    parts = {"<|bos|>": bos, "<|end|>": end}
    names = tuple(dict.fromkeys([*(parts.get(name, name) for name in SPECIALS), *bpe.added]))
    return Tokenizer(
        merges,
        bpe.pattern,
        bpe.ignore_merges,
        bpe.normalizer,
        names,
        visible=tuple(n for n in names[len(SPECIALS) :] if not bpe.added[n]),
        stops=tuple(n for n in marks.stops if n in names and n not in (bos, end)),
        add_bos=marks.add_bos,
        template="" if marks.template == OWN_TEMPLATE else marks.template,
    )


def _choose(ids, candidates, default):
    """The first candidate that the model has."""
    return next((name for name in candidates if name in ids), default)


def describe_losses(foreign: ForeignModel, tokenizer: Tokenizer) -> list[str]:
    """What of the file a run does not keep, each in a few words."""
    kept = {*tokenizer.vocabulary, *tokenizer.names}
    unreachable = [name for name in foreign.bpe.ids if name not in kept]
    losses = list(foreign.bpe.lost)
    if unreachable:
        losses.append(f"{len(unreachable)} tokens that no text becomes, {unreachable[0]!r} first")
    return losses


def find_rows(foreign: ForeignModel, tokenizer: Tokenizer) -> np.ndarray:
    """For each of our ids its row in the foreign table; -1 where it has none."""
    tokens = [*tokenizer.vocabulary, *tokenizer.names]
    return np.array([foreign.bpe.ids.get(token, -1) for token in tokens])


def load_foreign_params(foreign: ForeignModel, like: dict, tokenizer: Tokenizer) -> dict:
    """The parameters {"embed", "blocks", "head"} as numpy arrays, in the shapes of `like`."""
    V, D = like["embed"]["table"].shape
    rows = find_rows(foreign, tokenizer)

    def read_finite(name):
        w = foreign.weight(name)
        # A sum is not finite where a number is not, and takes no memory.
        if not np.isfinite(w.sum(dtype=np.float64)):
            raise UserError(f"{foreign.path}: {name} holds numbers that are not finite")
        return w

    def read(name, *shape):
        w = read_finite(name)
        # Matrices are [outputs, inputs] there and [inputs, outputs] here.
        if w.T.shape != shape:
            raise UserError(f"{foreign.path}: {name} is {list(w.shape)}, not {list(shape[::-1])}")
        return w.T

    def read_table(name):
        w_vd = read_finite(f"{name}.weight")
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
        weights = [read(name_weight(ours, layer), *shape) for layer in range(depth)]
        blocks[ours] = np.stack(weights)
    head = {"norm": read(f"{NORM[0]}.weight", D)}
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
