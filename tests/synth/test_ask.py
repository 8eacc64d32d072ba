"""`ramp synth ask`: classes of replies, what n replies can show, ways of asking, every kind of model."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from ramp import cli
from ramp.errors import UserError
from ramp.synth import answers, ask, speakers
from ramp.synth.answers import classify, measure_answers

# Chosen on: the first jokes. Judged on: the second.
CHOSEN = [
    [
        "Why don't scientists trust atoms? Because they make up everything!",
        "Why do scientists never trust atoms? They make up everything.",
        "What makes scientists distrust atoms? The fact that atoms make up everything!",
        "You know why a scientist won't trust an atom? Everything is made up by them.",
        "Scientists say you can't trust atoms, since they make up everything.",
    ],
    [
        "Why did the scarecrow win an award? Because he was outstanding in his field!",
        "What did the scarecrow get an award for? For being outstanding in his field.",
        "How come the scarecrow won a prize? He was out standing in his field!",
        "Did you hear that the scarecrow was given an award? He was outstanding in the field.",
        "The scarecrow received a medal because he was outstanding in his field.",
    ],
    [
        "Why did the chicken cross the road? To get to the other side!",
        "What made the chicken cross the road? It wanted to get to the other side.",
        "For what reason does a chicken cross a road? To reach the other side.",
        "A chicken crossed the road. Why? To get to the other side, of course!",
        "Do you know why the chicken was crossing the road? It had to get to the other side.",
    ],
    [
        "I told my wife she was drawing her eyebrows too high. She looked surprised.",
        "When I told my wife that she draws her eyebrows too high, she looked surprised.",
        "My wife looked surprised when I said her eyebrows were drawn too high.",
        "I mentioned to my wife that she drew her eyebrows too high, and she seemed surprised.",
        "So I say to my wife: you are drawing your eyebrows too high. She looks surprised!",
    ],
    [
        "What do you call a fake noodle? An impasta!",
        "What's the name for a fake noodle? An impasta.",
        "A fake noodle is called what? Impasta!",
        "How do you call a noodle that is fake? You call it an impasta.",
    ],
]
JUDGED = [
    [
        "Why did the bicycle fall over? Because it was two-tired!",
        "What made the bicycle fall over? It was two tired.",
        "How come a bicycle can't stand up by itself? It is two-tired.",
        "Do you know why the bicycle fell? It was just two tired!",
        "The bicycle fell over because it was two-tired.",
    ],
    [
        "I'm reading a book about anti-gravity. It's impossible to put down!",
        "I have been reading a book on anti-gravity and I can't put it down.",
        "This book about anti-gravity is impossible to put down.",
        "Have you read the book on anti-gravity? You simply cannot put it down!",
        "My book on anti gravity: so good that it is impossible to put it down.",
    ],
    [
        "What do you call cheese that isn't yours? Nacho cheese!",
        "How do you call a cheese that is not yours? Nacho cheese.",
        "Cheese that doesn't belong to you is called what? Nacho cheese!",
        "What is the name of cheese which isn't yours? It's nacho cheese.",
        "If it is not your cheese, what do you call it? Nacho cheese.",
    ],
    [
        "Parallel lines have so much in common. It's a shame they'll never meet.",
        "It is a shame that parallel lines will never meet: they have so much in common.",
        "Parallel lines share so much, what a shame that they never meet.",
        "Two parallel lines had a lot in common. Too bad they would never meet.",
        "How sad that parallel lines, with so much in common, will never meet!",
    ],
    [
        "Why did the golfer bring two pairs of pants? In case he got a hole in one!",
        "Why does a golfer carry an extra pair of pants? In case he gets a hole in one.",
        "The golfer wore two pairs of pants in case of a hole in one.",
        "What is the reason a golfer brings spare pants? He might get a hole in one!",
    ],
]
DIFFERENT = [
    "Why was the math book sad? It had too many problems.",
    "What do you call a bear with no teeth? A gummy bear!",
    "Why can't your nose be twelve inches long? Because then it would be a foot.",
    "How does a penguin build its house? Igloos it together.",
    "What did the ocean say to the beach? Nothing, it just waved.",
    "Why did the tomato turn red? Because it saw the salad dressing!",
    "What do you get when you cross a snowman and a vampire? Frostbite.",
    "Why don't eggs tell jokes? They'd crack each other up.",
    "What's orange and sounds like a parrot? A carrot.",
    "Did you hear about the restaurant on the moon? Great food, no atmosphere.",
    "I used to hate facial hair, but then it grew on me.",
    "What do you call a factory that makes okay products? A satisfactory.",
    "How do you organize a space party? You planet.",
    "Why couldn't the leopard play hide and seek? He was always spotted.",
]
OPENERS = [
    "Sure! Here's a joke for you:",
    "Of course. How about this one:",
    "Here you go!",
    "Okay, let me think...",
    "Ha, I have one:",
    "Certainly! Here is a funny one.",
    "Alright, here's a classic:",
    "I'd be happy to tell you a joke!",
]
ENDINGS = ["I hope that made you smile!", "Want another one?", "😄", "Get it?", "That one is old."]


def frame(rng, texts):
    return [f"{rng.choice(OPENERS)} {text} {rng.choice(ENDINGS)}" for text in texts]


@pytest.mark.parametrize("jokes", [CHOSEN, JUDGED])
def test_24_paraphrases_of_five_jokes_are_five(jokes):
    texts = [text for variants in jokes for text in variants]
    true = [i for i, variants in enumerate(jokes) for _ in variants]
    classes = classify(texts)
    assert len(texts) == 24 and 4 <= len(set(classes)) <= 6
    # None holds two jokes.
    assert len({*zip(classes.tolist(), true, strict=True)}) == len(set(classes))


@pytest.mark.parametrize("n", [32, 200])
def test_openers_and_endings_make_no_other_joke(n):
    """Five jokes behind 8 openers and 5 endings counted as 130."""
    rng = np.random.default_rng(n)
    texts = frame(rng, [JUDGED[i][0] for i in rng.integers(0, 5, n)])
    assert abs(len(set(classify(texts))) - 5) <= 1
    texts = [joke[0] for joke in CHOSEN + JUDGED] + DIFFERENT
    assert len(set(classify(texts))) >= 23
    assert len(set(classify(frame(rng, texts)))) >= 20


def test_short_answers_and_other_scripts():
    assert classify(
        ["Paris", "The capital is Paris.", "It's paris!", "The capital is Rome."]
    ).tolist() == [0, 0, 0, 1]
    assert classify(
        ["The answer is 42.", "The answer is 17.", "42", "The answer is 17!"]
    ).tolist() == [0, 1, 0, 1]
    assert classify(["东京", "京都", "东京。", "!", "!"]).tolist()[-2:] == [2, 2]
    assert classify(["no"] * 5).tolist() == [0] * 5 and classify([]).tolist() == []


def test_what_n_replies_can_show():
    """32 different ones prove 177 answers, and say nothing of how many more there are."""
    all_different = measure_answers(np.arange(32))
    assert all_different.at_least == 177
    told = answers.describe_figures(all_different)
    assert "at least 177" in told and "cannot be told" in told
    few = measure_answers(np.arange(200) % 5)
    assert (
        few.at_least == 5 and few.seen_low > 0.98 and few.distinct_k == pytest.approx(4.5, abs=0.1)
    )
    once = measure_answers(np.zeros(1, int))
    assert once.at_least == 1 and np.isnan(once.distinct_k)


def test_expected_classes_of_k_replies():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 9, 40)
    counts = np.bincount(classes)
    value, error = answers.rarefy(counts[counts > 0], 10)
    drawn = [len(set(rng.choice(classes, 10, replace=False))) for _ in range(4000)]
    assert value == pytest.approx(np.mean(drawn), abs=0.05) and 0 < error < 1


@pytest.mark.parametrize("weights", [np.ones(20), np.ones(500), 1 / np.arange(1, 200)])
def test_bounds_hold(weights):
    """At least 93% of the intervals hold the truth, of many equal answers and of a long tail."""
    rng = np.random.default_rng(1)
    p = weights / weights.sum()
    enough, inside = [], []
    for _ in range(300):
        drawn = rng.choice(len(p), 32, p=p)
        figures = measure_answers(drawn)
        seen = p[np.unique(drawn)].sum()
        enough.append(figures.at_least <= len(p))
        inside.append(figures.seen_low - 1e-9 <= seen <= figures.seen_high + 1e-9)
    assert np.mean(enough) >= 0.94 and np.mean(inside) >= 0.93


def test_a_list_of_answers_is_read_and_drawn_by_its_probabilities():
    reply, rng = "Sure:\n0.5: cats\n 0.3 : dogs\nnonsense\n.2: 3: newts", np.random.default_rng(0)
    drawn = Counter(ask.choose_answer(reply, rng) for _ in range(2000))
    assert [drawn[x] / 2000 for x in ("cats", "dogs", "3: newts")] == pytest.approx(
        [0.5, 0.3, 0.2], abs=0.04
    )
    assert ask.choose_answer("9" * 400 + ": x", rng) == ""
    assert ask.choose_answer("no numbers", rng) == ask.choose_answer("0: nothing", rng) == ""


class Stub(BaseHTTPRequestHandler):
    """A tiny server that knows two jokes, and a third when it is asked for a list."""

    asked: ClassVar[list] = []

    def do_GET(self):
        self.answer({"data": [{"id": "stub"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        text = CHOSEN[body["seed"] % 2][body["seed"] % 4]
        if "different answers" in body["messages"][0]["content"]:
            text = f"0.6: {CHOSEN[0][0]}\n0.4: {CHOSEN[2][0]}"
        self.answer({"choices": [{"message": {"role": "assistant", "content": text}}]})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Stub.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def test_a_server_is_asked_in_several_ways(stub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["synth", "ask", stub, "Tell me a joke.", "--n", "12", "--remedies", "all"]
    assert cli.main([*words, "--page", "p.html"]) == 0
    told = capsys.readouterr().out
    assert "plain: 12 replies, 2 different" in told and "verbalized" in told
    assert "how many answers?" in (tmp_path / "p.html").read_text("utf-8")
    assert len(Stub.asked) == 12 * len(ask.REMEDIES)
    assert {body.get("min_p") for body in Stub.asked} == {None, 0.1}
    kept = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert len(kept) == len(Stub.asked) and kept[0]["reply"] and kept[0]["remedy"] == "plain"
    # What is there is not asked again; more replies are asked for alone.
    assert cli.main([*words[:4], "--n", "15", "--json"]) == 0
    assert len(Stub.asked) == 12 * len(ask.REMEDIES) + 3
    figures = json.loads(capsys.readouterr().out)
    assert figures["questions"][0]["figures"]["n"] == 15


def test_a_file_of_questions(stub, tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    rows = [
        {"id": f"q{i}", "prompt": f"Joke {i}?", "prompt_paraphrases": ["A long one." * 9] * 3}
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = "Which joke is the longest? " * 200
    assert ask.read_questions(long) == [ask.Question(0, long)]
    assert [q.text for q in ask.read_questions(str(path))] == ["Joke 0?", "Joke 1?", "Joke 2?"]
    (tmp_path / "q.txt").write_text("One?\nTwo?\n")
    assert [q.text for q in ask.read_questions(str(tmp_path / "q.txt"))] == ["One?", "Two?"]
    kept = tmp_path / "kept.jsonl"
    words = ["--n", "10", "--remedies", "plain,verbalized", "--replies", str(kept)]
    assert cli.main(["synth", "ask", stub, str(path), *words]) == 0
    told = capsys.readouterr().out
    assert "3 questions" in told and "+" not in told.splitlines()[0]


def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, stub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    for words, said in (
        (["nowhere", "A joke?"], "check the path"),
        (["http://127.0.0.1:9", "A joke?"], "is the server up"),
        ([stub, "missing.jsonl"], "matches no file"),
        ([stub, "empty.jsonl"], "holds no text"),
        ([stub, "A joke?", "--n", "1"], "2 replies or more"),
        ([stub, "A joke?", "--remedies", "magic"], "there is no 'magic'"),
        ([stub, "A joke?", "--page", "no/p.html"], "a directory that exists"),
        ([str(tmp_path), "A joke?"], "config.json"),
    ):
        assert cli.main(["synth", "ask", *words]) == 2, words
        told = capsys.readouterr().err.strip()
        assert said in told and "\n" not in told, told


def test_a_server_that_speaks_otherwise(monkeypatch):
    monkeypatch.setattr(speakers, "_send", lambda url, body: {"error": "no"})
    with pytest.raises(UserError, match="choose one with --name"):
        speakers.open_speaker("http://127.0.0.1:1")
    with pytest.raises(UserError, match="no chat completion"):
        speakers.open_speaker("http://127.0.0.1:1/v1", "m").reply(["a"], [1], speakers.Sampling())


class Echo:
    """Says the seed, and remembers how many prompts came at once."""

    name, is_writer = "echo", True

    def __init__(self):
        self.calls = []

    def reply(self, prompts, seeds, how):
        self.calls.append(len(prompts))
        return [f"{prompt} {seed}" for prompt, seed in zip(prompts, seeds, strict=True)]


def test_questions_share_batches_and_none_is_asked_twice(tmp_path):
    questions = [ask.Question(0, "a"), ask.Question(1, "b"), ask.Question(2, "a")]
    kept, echo, checks = ask.Kept.read(tmp_path / "replies.jsonl"), Echo(), []

    def gather(questions):
        how = ("plain", 100, 8, 0, kept)
        return ask.gather(echo, questions, *how, lambda: checks.append(1))

    first = gather(questions)
    assert echo.calls == [128, 72]
    assert len(checks) == 2
    assert first[0] == first[2]
    # In company as alone, and kept in the file as said.
    kept = ask.Kept.read(tmp_path / "replies.jsonl")
    assert gather([questions[1]]) == [first[1]]
    assert echo.calls == [128, 72]
    kept = ask.Kept.read(tmp_path / "others.jsonl")
    assert gather([questions[1]]) == [first[1]]
