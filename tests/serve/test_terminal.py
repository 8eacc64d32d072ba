"""`ramp chat` runs the calculator as the server does, and says earlier turns as training knew them."""

from dataclasses import replace

import tiny

from ramp.config import Config, Sample
from ramp.serve import terminal
from ramp.tasks import tool
from ramp.text.chat import render, render_prompt
from ramp.text.tokenizer import Tokenizer

T = Tokenizer.bytes_only()
MARK = T.special("tool")


def test_calls_of_the_calculator_get_their_results(monkeypatch, capsys):
    streamer = object.__new__(terminal.TextStreamer)
    streamer.c = replace(Config(), model=tiny.model(), sample=Sample(max_new_tokens=40))
    streamer.tokenizer, streamer.params, streamer.seed = T, None, 3
    seen = []
    # What the model draws behind each prompt; after a call it goes on without knowing the result.
    drawn = iter([[*b"it is ", MARK, *b"12*7", MARK, *b"99"], [*b" in all"]])
    monkeypatch.setattr(
        terminal.sample, "prefill_prompts", lambda m, p, rows, seeds: seen.append(rows[0])
    )
    monkeypatch.setattr(streamer, "_draw", lambda state, stop, limit: iter(next(drawn)))
    answer = streamer.print_stream([T.bos], T.stop_ids)
    assert capsys.readouterr().out == "it is 12*7=84 in all\n"
    assert answer == [*b"it is ", MARK, *b"12*7", MARK, *b"84", MARK, *b" in all"]
    assert seen == [[T.bos], [T.bos, *answer[:-7]]] and streamer.seed == 5


def test_an_answer_goes_back_as_training_knew_it():
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a <<12*7=84>>b"}]
    ids, _, _ = render(T, talk, 500, tool.encode_with_calls)
    said = ids[ids.index(T.special("assistant")) + 1 : -1]
    assert tool.write_calls(T, said) == talk[1]["content"]
    assert render_prompt(T, talk, tool.encode_with_calls) == [*ids, T.special("assistant")]
