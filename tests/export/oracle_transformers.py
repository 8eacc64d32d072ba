"""Run by an interpreter that has torch and transformers (RAMP_TORCH_PYTHON): what they make of a folder or a GGUF file.

    python oracle_transformers.py WHERE QUESTIONS.json OUT.npz

QUESTIONS: {"ids": [[...]] for logits, "prompts": [...] texts to continue, "talks": [[{role, content}]], "tokens": n}.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

where, asked, out = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), sys.argv[3]
named = {"gguf_file": where.name} if where.suffix == ".gguf" else {}
folder = where.parent if named else where
tokenizer = AutoTokenizer.from_pretrained(folder, **named)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **named).eval()
found = {"kind": type(model).__name__}


def greedy(ids: list[int]) -> list[int]:
    made = model.generate(
        torch.tensor([ids]), max_new_tokens=asked["tokens"], do_sample=False, use_cache=True, eos_token_id=-1,
        temperature=None, top_k=None, top_p=None, attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    )  # fmt: skip
    return made[0, len(ids) :].tolist()


with torch.no_grad():
    for i, ids in enumerate(asked["ids"]):
        found[f"logits{i}"] = model(torch.tensor([ids])).logits[0].numpy()
    texts = []
    for prompt in asked["prompts"]:
        ids = tokenizer(prompt)["input_ids"]
        new = greedy(ids)
        texts.append({"ids": ids, "new": new, "text": tokenizer.decode(new)})
    for talk in asked["talks"]:
        shown = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
        new = greedy(ids)
        texts.append({"ids": ids, "shown": shown, "new": new, "text": tokenizer.decode(new)})
found["texts"] = json.dumps(texts)
np.savez(out, **found)
