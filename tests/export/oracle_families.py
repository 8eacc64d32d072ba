"""Run by an interpreter that has torch and transformers: random models of named kinds, and their logits.

    python oracle_families.py ASKED.json OUT.npz

ASKED: {"models": [{"folder", and for one that is to be made "class" and "config"}], "ids": [B, T]}.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

asked = json.loads(Path(sys.argv[1]).read_text())
found = {}
for i, spec in enumerate(asked["models"]):
    if "class" in spec:
        torch.manual_seed(i)
        config = getattr(transformers, spec["class"])(**spec["config"])
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for (
            weight
        ) in model.parameters():  # norms and biases begin at 1 and 0, which would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
        model.save_pretrained(spec["folder"])
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["folder"], dtype=torch.float32)
    with torch.no_grad():
        found[f"logits{i}"] = model.eval()(torch.tensor(asked["ids"])).logits.numpy()
np.savez(sys.argv[2], **found)
