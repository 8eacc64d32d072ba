"""Rows come back as written; another run's, a damaged one and an unknown name are one clear sentence."""

from dataclasses import replace

import pytest

from ramp.errors import UserError
from ramp.synth import ledger
from ramp.synth.ledger import LedgerRow

ROW = LedgerRow(**{
    "id": "g2-00003", "generation": 2, "parents": ["real-7"], "generator": "abc", "prompt": [5, 6], "key": 2**31 - 1,
    "temperature": 1.0, "top_k": 0, "min_p": 0.0, "tokens": [1, 2, 3], "text": "a joke", "logp": -3.0, "logp_first": -4.0,
    "verdict": True, "cell": "stories", "weight": 1.5, "decision": "kept", "reason": "", "steps": [0, 4],
})  # fmt: skip


def test_rows_come_back(tmp_path):
    changes = {"decision": "dropped", "reason": "clean says no", "weight": 0.0, "steps": []}
    dropped = replace(ROW, id="g2-00004", **changes)
    ledger.write_ledger(tmp_path, 2, [ROW, dropped], "run-a", {"decision": "warn"})
    rows, facts = ledger.read_ledger(tmp_path, 2, "run-a")
    assert rows == [ROW, dropped] and facts["decision"] == "warn"
    told = ledger.describe_sample(tmp_path, "g2-00003")
    assert "real-7" in told and "2 steps, 0 to 4" in told and "a joke" in told and "warn" in told
    assert "dropped: clean says no" in ledger.describe_sample(tmp_path, "g2-00004")


def test_mistakes(tmp_path):
    ledger.write_ledger(tmp_path, 2, [ROW], "run-a", {})
    with pytest.raises(UserError, match="another run"):
        ledger.read_ledger(tmp_path, 2, "run-b")
    with pytest.raises(UserError, match="no ledger"):
        ledger.describe_sample(tmp_path, "g7-00001")
    with pytest.raises(UserError, match="is no name of candidates"):
        ledger.describe_sample(tmp_path, "../../etc")
    for name in ("g\u00b2-00017", "g1-\u00b2", "g\u0661-1", f"g{'9' * 5000}-1", "3-1"):
        with pytest.raises(UserError, match="named like g3-00017"):
            ledger.describe_sample(tmp_path, name)
    with pytest.raises(UserError, match="none of them"):
        ledger.describe_sample(tmp_path, "g2-00999")
    ledger.ledger_path(tmp_path, 3).write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="damaged"):
        ledger.read_ledger(tmp_path, 3)
