"""ramp's worker: `python -m experiments.speed.jax_worker CONFIG.toml`. See `worker.serve`.

It runs the functions that `ramp run` and `ramp sample` run: `make_step`, `sample.prefill_prompts`,
`sample.decode`.
"""

import functools
import sys
import time
from pathlib import Path

import jax
import numpy as np

from experiments.speed.worker import peak_bytes, serve, timed
from ramp import config, host
from ramp.config import Config
from ramp.decode import sample
from ramp.model import transformer
from ramp.model.loss import next_token_loss
from ramp.train import mesh, optim
from ramp.train.state import init_state
from ramp.train.step import make_step
from ramp.train.trainer import run_steps


class JaxWorker:
    """ramp, ready to train and to generate."""

    def __init__(self, c: Config) -> None:
        self.c = c
        self.generator = None

    def device(self) -> dict:
        """The device that jax found."""
        d = jax.devices()[0]
        return {
            "platform": d.platform,
            "kind": d.device_kind,
            "count": jax.device_count(),
            "jax": jax.__version__,
        }

    def compile(self) -> dict:
        """Everything before the first step: initialise, trace, compile. Seconds of each."""
        c, t = self.c, self.c.pretrain
        clock = [time.perf_counter()]
        tx = optim.make_optimizer(t, c.model.dtype)
        key = jax.random.PRNGKey(c.seed)
        state = jax.jit(
            lambda: init_state(
                {"lm": transformer.init_params(c.model, key)}, tx, c.seed, t.ema_decay > 0
            )
        )()
        jax.block_until_ready(state)
        clock.append(time.perf_counter())
        batch = mesh.shard_batch(
            jax.sharding.get_mesh(),
            functools.partial(rows, t.seq_len, c.model.vocab_size),
            t.batch_size,
        )
        options = mesh.compiler_options(c.mesh)
        lowered = make_step(
            next_token_loss(c.model, t.z_loss), tx, t, optim.make_schedule(t), options
        ).lower(state, batch)
        clock.append(time.perf_counter())
        self.step = lowered.compile()
        clock.append(time.perf_counter())
        self.state, self.batch = state, batch
        init, trace, build = np.diff(clock)
        plan = self.step.memory_analysis()
        planned = plan.argument_size_in_bytes + plan.temp_size_in_bytes if plan else 0
        return {"init": init, "trace": trace, "compile": build, "planned_bytes": planned}

    def train(self, steps: int) -> dict:
        """Seconds of `steps` steps, of the clock and of the CPU."""
        with timed() as seconds:
            self.state, history = run_steps(self.step, self.state, [self.batch] * steps)
            jax.block_until_ready((self.state, history))
        return seconds | {"loss": float(history[-1]["train/loss"])}

    def generate(self, batch: int, prompt: int, new: int) -> dict:
        """Seconds of prefill and decode of `new` tokens for each of `batch` prompts."""
        c = config.replace(self.c.model, context_len=max(self.c.model.context_len, prompt + new))
        if self.generator is None:
            params = jax.jit(lambda: transformer.init_params(c, jax.random.PRNGKey(self.c.seed)))()
            self.generator = params, sample.prepare_decode_params(c, params)
        params, weights = self.generator
        prompts = np.random.default_rng(0).integers(0, c.vocab_size - 8, (batch, prompt)).tolist()
        with timed() as seconds:
            stream = sample.prefill_prompts(c, params, prompts, range(len(prompts)))
            stream = sample.decode(c, weights, stream, sample.SamplingParams(top_k=50), new)
            tokens_bn = np.asarray(stream.tokens_bn)
        assert tokens_bn.shape == (batch, new) and (tokens_bn >= 0).all(), "a row ended early"
        return seconds

    def loss(self, weights: str, tokens: str) -> dict:
        """Mean loss of random weights on random rows; both are written to the named files."""
        c, t = self.c.model, self.c.pretrain
        rng = np.random.default_rng(0)
        params = jax.jit(lambda: transformer.init_params(c, jax.random.PRNGKey(0)))()
        params = jax.tree.map(
            lambda w: np.asarray(w) + rng.normal(0, 0.05, w.shape).astype(np.float32), params
        )
        np.savez(weights, **to_qwen3(params))
        batch = rows(t.seq_len, c.vocab_size, 0, 2)
        np.savez(tokens, tokens=batch["tokens"], targets=batch["targets"])
        total, _ = jax.jit(next_token_loss(c, 0.0))({"lm": params}, batch, jax.random.PRNGKey(0))
        return {"loss": float(total) / batch["weights"].size}

    def memory(self) -> dict:
        """Peak bytes: of the device where it keeps count, otherwise of this process."""
        stats = jax.devices()[0].memory_stats() or {}
        return {"device": stats.get("peak_bytes_in_use"), "process": peak_bytes()}


def rows(seq: int, vocab: int, lo: int, hi: int) -> dict[str, np.ndarray]:
    """Random tokens in the shape of a batch; row i is a function of i."""
    full = np.stack(
        [
            np.random.default_rng(i).integers(0, vocab, seq + 1, dtype=np.int32)
            for i in range(lo, hi)
        ]
    )
    return {
        "tokens": full[:, :-1],
        "targets": full[:, 1:],
        "weights": np.ones((hi - lo, seq), np.float32),
    }


def to_qwen3(params: dict) -> dict[str, np.ndarray]:
    """The weights under the names of Qwen3ForCausalLM, whose matrices are stored [out, in]."""
    names = {
        "attn_norm": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "wo": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "w_gate": "mlp.gate_proj",
        "w_up": "mlp.up_proj",
        "w_down": "mlp.down_proj",
    }
    out = {
        "model.embed_tokens.weight": params["embed"]["table"],
        "model.norm.weight": params["head"]["norm"],
    }
    if "weight" in params["head"]:
        out["lm_head.weight"] = params["head"]["weight"].T
    for ours, theirs in names.items():
        for i, w in enumerate(params["blocks"][ours]):
            out[f"model.layers.{i}.{theirs}.weight"] = w.T
    return out


if __name__ == "__main__":
    host.use_huge_pages()
    serve(JaxWorker(host.setup_devices(config.load(Path(sys.argv[1])))))
