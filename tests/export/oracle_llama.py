"""Run by an interpreter that has llama-cpp-python (RAMP_LLAMA_PYTHON): what llama.cpp makes of a GGUF file.

    python oracle_llama.py FILE.gguf QUESTIONS.json OUT.npz

QUESTIONS: {"texts": [...], "tokens": n}.
"""

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

asked = json.loads(Path(sys.argv[2]).read_text())
llama = Llama(sys.argv[1], n_ctx=512, n_threads=1, logits_all=True, verbose=False)
found = {"template": llama.metadata.get("tokenizer.chat_template", "")}
for i, text in enumerate(asked["texts"]):
    # `special` as in prompts of conversations: names of special tokens are these tokens.
    special = bool(asked.get("special"))
    ids = llama.tokenize(text.encode(), add_bos=not special, special=special)
    llama.reset()
    llama.eval(ids)
    found[f"ids{i}"] = np.array(ids)
    found[f"logits{i}"] = np.array(llama.scores[: len(ids)])
    new = []
    for _ in range(asked["tokens"]):
        new.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        llama.eval(new[-1:])
    found[f"new{i}"] = np.array(new)
np.savez(sys.argv[3], **found)
