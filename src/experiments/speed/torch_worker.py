"""The peer's worker: `PYTHON torch_worker.py '{"vocab_size": ..., ...}'`, Qwen3 of `transformers`.

Imports torch, transformers and numpy only, so that any environment which has them will do.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

# This file is run by its path: `worker` is the file in the same folder.
from worker import peak_bytes, serve, timed


class TorchWorker:
    """Qwen3 of `transformers`, ready to train and to generate."""

    def __init__(self, shape: dict) -> None:
        torch.set_num_threads(shape["threads"])
        torch.manual_seed(0)
        self.s = shape
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, shape["dtype"])
        self.generator = None

    def make_model(self, attention: str, context: int) -> Qwen3ForCausalLM:
        """Random weights in the shape that was asked for."""
        s = self.s
        c = Qwen3Config(
            vocab_size=s["vocab_size"],
            hidden_size=s["width"],
            intermediate_size=s["mlp_dim"],
            num_hidden_layers=s["depth"],
            num_attention_heads=s["num_heads"],
            num_key_value_heads=s["num_kv_heads"],
            head_dim=s["head_dim"],
            max_position_embeddings=context,
            tie_word_embeddings=s["tie_embeddings"],
            rms_norm_eps=1e-6,
            attention_dropout=0.0,
            rope_parameters={"rope_type": "default", "rope_theta": s["rope_theta"]},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        c._attn_implementation = attention
        return Qwen3ForCausalLM(c).to(self.device)

    def compile(self, attention: str, compiled: bool) -> dict:
        """A model, an optimizer and the first step.

        Weights are float32; bfloat16 means autocast over them, as in ramp.
        """
        began = time.perf_counter()
        s = self.s
        self.net = self.make_model(attention, s["seq"]).train()
        self.adam = torch.optim.AdamW(
            self.net.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-10, fused=True
        )
        full = torch.randint(0, s["vocab_size"], (s["batch"], s["seq"] + 1), device=self.device)
        self.tokens, self.targets = full[:, :-1].contiguous(), full[:, 1:].contiguous()
        self.loss_of = torch.compile(self.cross_entropy) if compiled else self.cross_entropy
        self.train(1)
        return {"first": time.perf_counter() - began}

    def cross_entropy(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of a batch."""
        logits = self.net(input_ids=tokens, use_cache=False).logits
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))

    def train(self, steps: int) -> dict:
        """Seconds of `steps` steps, of the clock and of the CPU."""
        with timed() as seconds:
            for _ in range(steps):
                with torch.autocast(
                    self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16
                ):
                    loss = self.loss_of(self.tokens, self.targets)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                self.adam.step()
                self.adam.zero_grad(set_to_none=True)
            value = loss.item()
        return seconds | {"loss": value}

    @torch.inference_mode()
    def generate(self, batch: int, prompt: int, new: int, attention: str) -> dict:
        """Seconds of prefill and decode of `new` tokens for each of `batch` prompts."""
        if self.generator is None:
            self.generator = self.make_model(attention, 4096).to(self.dtype).eval()
        self.generator.set_attn_implementation(attention)
        prompts = torch.randint(0, self.s["vocab_size"], (batch, prompt), device=self.device)
        with timed() as seconds:
            out = self.generator.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                top_k=50,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=0,
            )
            assert out.cpu().shape == (batch, prompt + new)
        return seconds

    @torch.inference_mode()
    def loss(self, weights: str, tokens: str) -> dict:
        """Mean loss of ramp's weights on ramp's rows, float32."""
        with np.load(weights, allow_pickle=False) as arrays:
            state = {k: torch.tensor(arrays[k]) for k in arrays.files}
        net = self.make_model("eager", self.s["seq"]).eval()
        missing, unknown = net.load_state_dict(state, strict=False)
        assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
        with np.load(tokens, allow_pickle=False) as arrays:
            rows = {
                k: torch.tensor(arrays[k], dtype=torch.long, device=self.device)
                for k in arrays.files
            }
        logits = net(input_ids=rows["tokens"], use_cache=False).logits
        return {"loss": F.cross_entropy(logits.flatten(0, 1), rows["targets"].flatten()).item()}

    def memory(self) -> dict:
        """Peak bytes: of the GPU if there is one, and of this process."""
        return {
            "device": torch.cuda.max_memory_allocated() if self.device == "cuda" else None,
            "process": peak_bytes(),
        }


if __name__ == "__main__":
    serve(TorchWorker(json.loads(sys.argv[1])))
