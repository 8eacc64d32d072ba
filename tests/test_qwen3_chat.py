"""configs/qwen3-chat.toml on loopback: the stages of SmolLM2 on a folder of another model, by a pod's file.

The model is random and tiny, of Qwen3's shape. Its folder is written here, laid out as transformers
does; where RAMP_TORCH_PYTHON names an interpreter with transformers, it reads the folder too.

Minutes: `uv run pytest -m slow -n 0 tests/test_qwen3_chat.py -s`
"""

import json
import os
import random
import shlex
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from hosts import launch
from safetensors.numpy import save_file
from test_stages_on_hosts import assert_same
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ramp import cli, config
from ramp.config import Model
from ramp.export.load import list_weights, open_foreign
from ramp.tasks import words
from ramp.text.huggingface import PATTERNS
from ramp.train.mesh import check_divisible, connect_processes

CONFIG = Path(__file__).parents[1] / "configs" / "qwen3-chat.toml"
SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# A random model solves nothing, and its samples are not as probable as text: these tell them apart.
MINE = """
def score(text):
    return sum(map(ord, text)) % 7 / 7
def reward(records):
    steps = [[score(step) for step in r.steps] for r in records]
    return {"rollouts": [score(r.text) for r in records], "steps": steps}
def verify(text):
    return score(text) > 0
"""
# Sizes alone, but for a dtype in which two meshes can be compared.
SMALL = """
--model.dtype float32 --model.context_len 192 --model.loss_chunk 64
--chat.own_answers 16 --chat.problems_per_task 24 --chat.val_fraction 0.2
--finetune.steps 4 --finetune.batch_size 4 --finetune.seq_len 192 --finetune.warmup_steps 2
--finetune.eval_every 2 --trials.items_per_task 2
--reinforce.num_prompts 4 --reinforce.group_size 2
--reinforce.num_eval_problems 4 --reinforce.train.steps 2 --reinforce.train.warmup_steps 1
--reinforce.train.seq_len 192 --reinforce.train.eval_every 1
--synthesize.num_documents 32
--synthesize.max_new_tokens 24 --synthesize.num_measured 16
--synthesize.num_guard_documents 16 --synthesize.num_null_resamples 7 --synthesize.num_audited 16
--synthesize.train.steps 2 --synthesize.train.batch_size 4 --synthesize.train.seq_len 64
--synthesize.train.warmup_steps 1 --diversity.max_new_tokens 8 --eval.batch_size 4
--eval.num_rows 8
"""


def write_texts(folder: Path) -> list[str]:
    """Texts of a few words, and conversations about them."""
    draw = random.Random(0)
    (folder / "text").mkdir(parents=True)
    (folder / "mine.py").write_text(MINE)
    texts = []
    for i in range(60):
        texts.append(" ".join(f"w{int(draw.paretovariate(1)) % 60}" for _ in range(60)))
        (folder / "text" / f"{i}.txt").write_text(texts[-1])
    with (folder / "chat.jsonl").open("w") as file:
        for i in range(60):
            turns = [{"role": "user", "content": f"what is w{i}"}]
            turns.append({"role": "assistant", "content": f"w{i} is w{i * i % 60}"})
            file.write(json.dumps({"messages": turns}) + "\n")
    return texts


def write_model(folder: Path, texts: list[str]) -> None:
    """A model folder as `save_pretrained` lays it out: shape, weights, tokenizer, chat template."""
    folder.mkdir(parents=True)
    t = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERNS["qwen2"]), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.pre_tokenizer, t.decoder = pre_tokenizers.Sequence([split, plain]), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Problems among them: cut into letters, their questions would not fit into rows.
    texts = [*texts, *(words.sample(i, 2).question for i in range(100))]
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    t.add_special_tokens([AddedToken(name, special=True) for name in names])
    t.save(str(folder / "tokenizer.json"))
    said = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    # As in Qwen3, the table has more rows than the tokenizer has tokens.
    shape = SHAPE | {"vocab_size": 448, "eos_token_id": t.token_to_id("<|im_end|>")}
    (folder / "config.json").write_text(json.dumps(shape))
    draw = np.random.default_rng(0)
    width, head_dim = SHAPE["hidden_size"], SHAPE["head_dim"]
    outputs = {"q_proj": 64, "k_proj": 32, "v_proj": 32, "o_proj": 64, "down_proj": 64}
    outputs |= {"gate_proj": 96, "up_proj": 96}
    weights = {}
    shape = Model(depth=SHAPE["num_hidden_layers"], tie_embeddings=True)
    for name in sorted(list_weights(shape)):
        kind = name.split(".")[-2]
        if "norm" in kind:
            size = (head_dim if kind in ("q_norm", "k_norm") else width,)
        elif kind == "embed_tokens":
            size = (448, width)
        else:
            size = (outputs[kind], 96 if kind == "down_proj" else width)
        weights[name] = (draw.normal(0, 0.1, size) + ("norm" in kind)).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def run_all(folder: Path, name: str, processes: int, devices: int) -> Path:
    """The configuration's own file, with flags for what is read and for sizes."""
    command = ["run", CONFIG, "--run", folder / name, "--base", folder / "model"]
    command += ["--text.sources", f"file:{folder}/text/*.txt", "--text.val_fraction", "0.3"]
    command += ["--chat.sources", f"file:{folder}/chat.jsonl", *SMALL.split()]
    command += ["--reinforce.reward", f"0.5 verified + 0.5 {folder}/mine.py:reward"]
    command += ["--synthesize.verifiers", "clean", f"{folder}/mine.py:verify"]
    life = launch(folder / f"notes-{name}", processes, devices, command, timeout=1500)
    assert set(life.codes) == {0}, life.said
    return folder / name


def test_a_base_that_is_not_there_is_said(tmp_path, capsys):
    where = tmp_path / "nowhere"
    assert cli.main(["run", str(CONFIG), "--dry-run", "--base", str(where)]) == 2
    assert f"{where}: no such file or folder" in capsys.readouterr().err


def test_a_job_that_has_met_does_not_meet_again(monkeypatch):
    """Devices are set up for the import of the base, for the stages and for every rival."""
    monkeypatch.setenv("RAMP_DISTRIBUTED", "127.0.0.1:1,2,0")
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("meets again"))
    connect_processes(config.Hosts())


def test_all_that_is_split_divides_over_eight_chips():
    """With the shape of Qwen3-1.7B, which stands in no folder here."""
    header = CONFIG.read_text().split("ramp plan qwen3-chat")[1].split("--topology")[0]
    c = config.resolve(config.load(CONFIG, shlex.split(header.replace("#", ""))))
    check_divisible(c, (1, 8, 1), c.stages)
    assert (c.model.depth, c.model.width, c.model.vocab_size) == (28, 2048, 151936)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_stages_of_a_pod_on_loopback_are_those_of_one_process(tmp_path, monkeypatch):
    """Two processes of a device, and one process: the same texts, decisions and figures."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    write_model(tmp_path / "model", write_texts(tmp_path))
    one, two = run_all(tmp_path, "one", 1, 1), run_all(tmp_path, "two", 2, 1)
    worst = assert_same(two, one, generations=1)
    for rival in ("outcome", "naive"):
        assert (two / "rivals" / rival / "report.json").exists()
    for stage in ("finetune", "reinforce", "synthesize-1"):
        out = tmp_path / "exported" / stage
        assert cli.main(["export", str(two), "--stage", stage, "--out", str(out)]) == 0
        foreign, _ = open_foreign(out)
        assert foreign.shape.depth == SHAPE["num_hidden_layers"] and foreign.shape.qk_norm
        judge_by_transformers(out)
    print(f"two processes and one: largest difference {worst:.1e}")


def judge_by_transformers(folder: Path) -> None:
    """It opens the folder, where there is one."""
    if python := os.environ.get("RAMP_TORCH_PYTHON", ""):
        told = (
            "import sys, transformers as t; m = t.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
        )
        told += "; t.AutoTokenizer.from_pretrained(sys.argv[1]); print(type(m).__name__)"
        done = subprocess.run(
            [python, "-c", told, folder], check=True, capture_output=True, text=True
        )
        assert done.stdout.split()[-1] == "Qwen3ForCausalLM"
