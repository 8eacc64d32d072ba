"""`ramp synth ask` of ramp's own server and of a model folder gets what the model itself says."""

import json

import pytest

from ramp import cli
from ramp.errors import UserError
from ramp.synth.speakers import Sampling, open_speaker


def test_ramps_own_server_is_asked(live, tmp_path, capsys):
    kept = tmp_path / "kept.jsonl"
    words = ["synth", "ask", live.url, "Hello?", "--n", "6", "--tokens", "8"]
    words += ["--remedies", "plain,min-p", "--replies", str(kept)]
    assert cli.main(words) == 0
    assert "plain: 6 replies" in capsys.readouterr().out
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(rows) == 12 and {row["model"] for row in rows} == {"tiny"}
    with pytest.raises(UserError, match=r"answered 404: .*does not exist"):
        open_speaker(live.url, "other").reply(["a"], [0], Sampling())
    live.quiet()
