"""Run by an interpreter that has transformers (RAMP_TORCH_PYTHON): what its tokenizer makes of conversations.

    python oracle_chat.py FOLDER ASKED.json OUT.json

ASKED: a list of {"messages", "tools" and other options}. OUT: their ids; null where the template refuses one.
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
rows = []
for asked in json.loads(Path(sys.argv[2]).read_text()):
    try:
        shown = tokenizer.apply_chat_template(
            asked.pop("messages"),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **asked,
        )
        rows.append(list(shown))
    except Exception:
        rows.append(None)
Path(sys.argv[3]).write_text(json.dumps(rows))
