"""Models that others trained, as ramp runs: Llama and Qwen3 shapes, from GGUF or from a Hugging Face folder.

The weights are re-ordered, not the house: a byte-level BPE becomes ramp's own tokenizer (bytes, merges, eight specials)
and the rows of the embedding follow it, so that every stage takes an imported model as it takes one of its own.
`<|bos|>` gets the row of the token between documents, `<|end|>` the one that ends a turn, the roles copies of ChatML's
`<|im_start|>`; what the model never had gets the mean row, whose logit is never near the top.

What neither shape knows (biases, scaled RoPE, experts, ...) is refused by name.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ramp.config import Config, Model, Text, check_config, resolve
from ramp.errors import UserError
from ramp.export import gguf
from ramp.text.tokenizer import SPECIALS, Tokenizer, number_tokens

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
TABLE, NORM, HEAD = (
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = {  # GGUF names its split pattern and does not spell it
    "gpt-2": GPT2,
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",  # digits stand alone
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
STANDS_FOR = {  # whose row a special of ours takes where the model has none of that name
    "<|bos|>": ("<|endoftext|>", "<|begin_of_text|>", "<s>"),
    "<|end|>": ("<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"),
    **dict.fromkeys(("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"), ("<|im_start|>",)),
}


@dataclass(frozen=True)
class ForeignModel:
    """A model of somebody else, opened. Weights are read when they are asked for, as float32."""

    where: Path
    shape: dict[str, Any]  # keys of config.Model
    ids: dict[str, int]  # token, in GPT-2's letters: its row
    merges: list[tuple[str, str]]
    pattern: str
    template: str
    weight: Callable[[str], np.ndarray]  # by Hugging Face's name; a matrix is [outputs, inputs]
    card: dict[str, Any]  # what it says about itself


# ---------------------------------------------------------------------------------------------------- from GGUF
def from_gguf(path: Path) -> ForeignModel:
    file = gguf.read(path)
    arch = file.meta.get("general.architecture")
    if arch not in ("llama", "qwen3"):
        raise UserError(f"{path} is a model of the kind {arch!r}; ramp imports llama and qwen3")

    given = {key.removeprefix(f"{arch}."): value for key, value in file.meta.items()}
    if given.get("rope.scaling.type", "none") != "none" or given.get("attention.sliding_window"):
        raise UserError(
            f"{path} scales its RoPE or slides its attention window, which ramp's model does not"
        )
    if file.meta.get("tokenizer.ggml.model") != "gpt2":
        kind = file.meta.get("tokenizer.ggml.model")
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r}; ramp imports byte-level BPE ('gpt2')"
        )
    cut = file.meta.get("tokenizer.ggml.pre", "gpt-2")
    if cut not in PATTERNS:
        raise UserError(
            f"{path} cuts its text by the rule {cut!r}; ramp knows {', '.join(PATTERNS)}"
        )
    shape = _shape(path, 1, given) | {
        "qk_norm": "blk.0.attn_q_norm.weight" in file.places,
        "tie_embeddings": "output.weight" not in file.places,
    }
    shape["norm_eps"] = float(f"{shape['norm_eps']:.6g}")  # stored in 32 bits
    if given.get("rope.dimension_count", shape["head_dim"]) != shape["head_dim"]:
        raise UserError(
            f"{path} turns only a part of each head by RoPE, which ramp's model does not"
        )
    names = tensor_names(shape)
    _require_all(path, set(file.places), set(names.values()))
    turned = (
        {"attn_q": shape["num_heads"], "attn_k": shape["num_kv_heads"]} if arch == "llama" else {}
    )

    def weight(name: str) -> np.ndarray:
        w = file.tensor(names[name])
        n = turned.get(names[name].split(".")[-2])
        if n and w.shape == (
            n * shape["head_dim"],
            shape["width"],
        ):  # llama.cpp turns neighbours, we turn halves
            w = w.reshape(n, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        return w

    tokens, merges = (
        file.meta.get("tokenizer.ggml.tokens", []),
        file.meta.get("tokenizer.ggml.merges", []),
    )
    ids = {token: i for i, token in enumerate(tokens)}
    card = {k: file.meta.get(f"general.{k}", "") for k in ("name", "license", "organization")}
    template = file.meta.get("tokenizer.chat_template", "")
    return ForeignModel(
        path, shape, ids, _pairs(path, merges), PATTERNS[cut], template, weight, card
    )


# ---------------------------------------------------------------------------------------------------- from a folder
def from_folder(path: Path) -> ForeignModel:
    """config.json, *.safetensors, tokenizer.json and, where there is one, tokenizer_config.json or chat_template.jinja."""
    from safetensors import SafetensorError, safe_open

    config = _json(path / "config.json")
    shape = _shape_of_config(path, config)
    files: dict[str, Any] = {}
    try:
        for file in sorted(path.glob("*.safetensors")):
            opened = safe_open(file, "np")
            files |= dict.fromkeys(opened.keys(), opened)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    if not files:
        raise UserError(f"{path} holds no *.safetensors; ramp reads no other kind of weights")
    shape["tie_embeddings"] = shape["tie_embeddings"] or "lm_head.weight" not in files
    have = {name for name in files if not name.endswith("rotary_emb.inv_freq")}
    _require_all(path, have - {"lm_head.weight"}, set(tensor_names(shape)) - {"lm_head.weight"})

    def weight(name: str) -> np.ndarray:
        try:
            return files[name].get_tensor(name).astype(np.float32)
        except (SafetensorError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {name} cannot be read: {error}") from None

    ids, merges, pattern = _bpe_of(path / "tokenizer.json")
    return ForeignModel(
        path, shape, ids, merges, pattern, _template(path), weight, {"name": path.name}
    )


def _shape_of_config(path: Path, config: dict) -> dict[str, Any]:
    kind = config.get("model_type")
    if kind not in ("llama", "qwen3"):
        raise UserError(f"{path} is a model of the kind {kind!r}; ramp imports llama and qwen3")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    odd = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "use_sliding_window": config.get("use_sliding_window"),
        "layer_types": set(config.get("layer_types") or ()) - {"full_attention"},
        "rope_type": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    if refused := [name for name, found in odd.items() if found]:
        raise UserError(
            f"{path}/config.json uses {', '.join(refused)}, which ramp's model does not have"
        )
    base = rope.get("rope_theta") or config.get("rope_theta")
    assumed = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
    shape = _shape(path / "config.json", 0, assumed | config | {"rope_theta": base})
    return shape | {
        "qk_norm": kind == "qwen3",
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _shape(where: Path, kind: int, given: dict[str, Any]) -> dict[str, Any]:
    """What is `given` under the keys that SHAPE has for this kind of file, under ours."""
    shape = {ours: given.get(keys[kind]) for ours, keys in SHAPE.items()}
    for ours in ("depth", "width", "num_heads", "mlp_dim", "context_len", "norm_eps"):
        if shape[ours] is None:
            raise UserError(f"{where} lacks {SHAPE[ours][kind]}")
    if not shape["num_heads"]:
        raise UserError(f"{where} says that the model has no attention heads")
    shape["num_kv_heads"] = shape["num_kv_heads"] or shape["num_heads"]
    shape["head_dim"] = shape["head_dim"] or shape["width"] // shape["num_heads"]
    shape["rope_theta"] = shape["rope_theta"] or 10_000.0
    return shape | {key: float(shape[key]) for key in ("rope_theta", "norm_eps")}


def _bpe_of(path: Path) -> tuple[dict[str, int], list[tuple[str, str]], str]:
    """(ids, merges, split pattern) of a `tokenizers` file that is byte-level BPE and nothing else."""
    data = _json(path)
    model = data.get("model") or {}
    parts = data.get("pre_tokenizer") or {}
    parts = parts.get("pretokenizers", [parts])
    kinds = [part.get("type") for part in parts]
    plain = model.get("type") == "BPE" and not (
        model.get("byte_fallback") or model.get("ignore_merges")
    )
    norm = (data.get("normalizer") or {}).get("type")
    if (
        not plain
        or kinds[-1:] != ["ByteLevel"]
        or parts[-1].get("add_prefix_space")
        or norm not in (None, "NFC")
    ):
        kind = f"{model.get('type')}, {norm}, {kinds}"
        raise UserError(f"{path} is not plain byte-level BPE ({kind}); ramp imports no other")
    words = parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and words:
        pattern = PATTERNS["gpt-2"]
    elif kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and words:
        pattern = PATTERNS["smollm"]
    elif (
        kinds == ["Split", "ByteLevel"]
        and "Regex" in parts[0]["pattern"]
        and parts[0]["behavior"] == "Isolated"
    ):
        pattern = parts[0]["pattern"]["Regex"]
    else:
        raise UserError(f"{path} cuts its text by {kinds} in a way that ramp's tokenizer does not")
    ids = dict(model.get("vocab_size") or {}) | {
        t["content"]: t["id"] for t in data.get("added_tokens") or []
    }
    return ids, _pairs(path, model.get("merges") or []), pattern


def _pairs(path: Path, merges: list) -> list[tuple[str, str]]:
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    if not all(len(pair) == 2 for pair in pairs):
        raise UserError(f"{path}: a merge is not a pair of tokens")
    return pairs


def _template(path: Path) -> str:
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    config = (
        _json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
    )
    template = config.get("chat_template")
    return template if isinstance(template, str) else ""


def _json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        says = f"{path} cannot be read as JSON ({error}); a model's folder has config.json, tokenizer.json, *.safetensors"
        raise UserError(says) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is JSON, but not an object")
    return data


# ---------------------------------------------------------------------------------------------------- what is in it
def tensor_names(shape: dict) -> dict[str, str]:
    """Every weight of such a model, by Hugging Face's name: GGUF's."""
    if not 1 <= shape["depth"] <= 256:
        raise UserError(f"a model of {shape['depth']} layers cannot be imported")
    block = [
        names
        for ours, names in BLOCK.items()
        if shape["qk_norm"] or ours not in ("q_norm", "k_norm")
    ]
    pairs = [
        (f"model.layers.{i}.{hf}", f"blk.{i}.{g}") for i in range(shape["depth"]) for hf, g in block
    ]
    pairs += [TABLE, NORM, *([] if shape["tie_embeddings"] else [HEAD])]
    return {f"{hf}.weight": f"{g}.weight" for hf, g in pairs}


def _require_all(path: Path, have: set[str], want: set[str]) -> None:
    """No weight is missing, and none is there that would be passed over."""
    if lacking := sorted(want - have):
        raise UserError(f"{path} lacks the weight {lacking[0]}")
    if rest := sorted(have - want):
        raise UserError(
            f"{path} has {rest[0]} and {len(rest) - 1} more weights that ramp's model has no place for"
        )


def make_foreign_tokenizer(f: ForeignModel) -> Tokenizer:
    """Its merges in our numbering, and the form of its conversations."""
    try:
        merges = number_tokens(f.merges)
    except KeyError as error:
        raise UserError(
            f"{f.where} merges {error} before it is made; this is not byte-level BPE"
        ) from None
    form = f.template.replace("\\n", "\n")
    chatml = bool(re.search(r"role(\"|')?\]? ?\+ ?('|\")\n", form))
    said = re.search(r"\|>system\n([^{}<]+)<\|(?:im_end|end)\|>", form)
    return Tokenizer(merges, f.pattern, chatml, said[1] if chatml and said else "")


def table_rows(f: ForeignModel, tokenizer: Tokenizer) -> np.ndarray:
    """For each of our ids its row in the foreign table; -1 where it has none."""
    rows = [f.ids.get(token, -1) for token in tokenizer.vocabulary]
    for name in SPECIALS:
        rows.append(next((f.ids[n] for n in (name, *STANDS_FOR.get(name, ())) if n in f.ids), -1))
    return np.array(rows, np.int64)


def load_foreign_params(f: ForeignModel, like: dict, tokenizer: Tokenizer) -> dict:
    """The parameters {"embed", "blocks", "head"} as numpy arrays, in the shapes of `like`."""

    def get(name: str, want: tuple[int, ...]) -> np.ndarray:
        w = f.weight(f"{name}.weight")
        if w.shape != want[::-1]:
            raise UserError(f"{f.where}: {name} is {list(w.shape)}, not {list(want[::-1])}")
        return w.T

    def reordered(names: tuple[str, str]) -> np.ndarray:
        w_vd = f.weight(f"{names[0]}.weight")
        if w_vd.ndim != 2 or w_vd.shape[1] != D or rows.max() >= len(w_vd):
            raise UserError(
                f"{f.where}: a table {list(w_vd.shape)} does not fit width {D} and {rows.max() + 1} tokens"
            )
        new = np.tile(w_vd.mean(0), (V, 1))
        new[: len(rows)][rows >= 0] = w_vd[rows[rows >= 0]]
        return new

    (V, D), rows = like["embed"]["table"].shape, table_rows(f, tokenizer)
    blocks = {
        ours: np.stack(
            [get(f"model.layers.{i}.{BLOCK[ours][0]}", w.shape[1:]) for i in range(w.shape[0])]
        )
        for ours, w in like["blocks"].items()
    }
    head = {"norm": get(NORM[0], (D,))}
    if "weight" in like["head"]:
        head["weight"] = reordered(HEAD).T
    return {"embed": {"table": reordered(TABLE)}, "blocks": blocks, "head": head}


def open_foreign(path: Path) -> tuple[ForeignModel, Tokenizer]:
    """A GGUF file, or a folder (or a safetensors file in one). Whatever is wrong with it is one sentence."""
    folder = path.parent if path.suffix == ".safetensors" else path
    try:
        f = from_folder(folder) if folder.is_dir() else from_gguf(path)
        tokenizer = make_foreign_tokenizer(f)
        tokenizer.encode("a pattern that does not compile fails here")
    except UserError:
        raise
    except Exception as error:  # fields of other types than the formats say
        raise UserError(
            f"{path} is not laid out as such a model is: {type(error).__name__}: {error}"
        ) from None
    return f, tokenizer


def make_config(f: ForeignModel, tokenizer: Tokenizer, context: int) -> Config:
    """The configuration of a run that starts from it. RoPE does not depend on the context: a shorter one is exact."""
    text = Text(sources=(f"file:{f.where.name}",), vocab_size=tokenizer.vocab_size)
    try:
        model = Model(**f.shape | {"context_len": min(context, f.shape["context_len"])})
        c = replace(Config(), stages=("finetune", "sample"), text=text, model=model)
        return resolve(check_config(c, str(f.where)), str(f.where))
    except TypeError as error:
        raise UserError(f"{f.where} gives its shape in the wrong types: {error}") from None
