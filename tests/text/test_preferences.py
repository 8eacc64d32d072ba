"""Preferences come with ids of their questions, so that one question is on one side of the split."""

import json
from collections import Counter

from ramp.text.preferences import read_preferences


def test_pairs_of_one_question_have_one_id(tmp_path):
    rows = [
        {"prompt": f"q {i % 5}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = [name for name, _ in read_preferences([str(tmp_path / "a.jsonl")], Counter())]
    assert len(before) == 20
    assert len(set(before)) == 5
    assert before[0] == before[5]
    # A line that is put first moves no other.
    first = json.dumps({"prompt": "new", "chosen": "a", "rejected": "b"})
    (tmp_path / "a.jsonl").write_text(first + "\n" + (tmp_path / "a.jsonl").read_text())
    after = [name for name, _ in read_preferences([str(tmp_path / "a.jsonl")], Counter())]
    assert after[1:] == before
