"""The page as people use it, and as others abuse it, before a server that says what the script says."""

import json
import threading
import time

import pytest
from browser import CHROMIUM, Browser
from stub import CUT, END, Stub, say
from test_page import EVIL, IDLE, LAST, press, shot

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium here; install one or name it in RAMP_CHROMIUM"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def stub():
    made = Stub()
    yield made
    made.close()


@pytest.fixture
def other(page, stub):
    """A second tab of the same browser."""
    made = page.tab()
    made.open(stub.url + "/")
    yield made
    made.do("Page.close")


@pytest.fixture
def page(chromium, stub):
    """A fresh page; every stub has an origin, and so a storage, of its own."""
    chromium.events.clear()
    chromium.open(stub.url + "/")
    yield chromium
    thrown = [e for e in chromium.events if e.get("method") == "Runtime.exceptionThrown"]
    assert thrown == []


NUM_ARTICLES = "document.querySelectorAll('article').length"
HINT = "document.getElementById('hint').textContent"
BOX = "document.getElementById('text')"


def ask(page: Browser, text: str) -> str:
    """Send a message and wait until it has its answer or its error, which comes back."""
    page.js(f"{BOX}.focus()")
    page.type(text)
    page.key("Enter")
    last = "[...document.querySelectorAll('article.user .said')].at(-1)?.textContent"
    page.wait(f"{last} === {json.dumps(text)} && {IDLE} && !{LAST}.matches('.user')")
    return page.js(f"{LAST}.querySelector('.said').innerText")


def texts(page: Browser) -> list[str]:
    return page.js("[...document.querySelectorAll('article .said')].map((e) => e.innerText)")


def titles(page: Browser) -> list[str]:
    return page.js("[...document.querySelectorAll('nav .title > span')].map((e) => e.textContent)")


def reload(page: Browser, stub: Stub) -> None:
    page.open(stub.url + "/?again")
    page.wait("document.title === 'stub'")


def store(page: Browser, key: str, value: str) -> None:
    page.js(f"localStorage.setItem({key!r}, {json.dumps(value)})")


# What is kept


def test_two_tabs_keep_both_conversations(page, other, stub):
    for turn in range(2):
        ask(page, f"here {turn}")
        ask(other, f"there {turn}")
    page.wait("document.querySelectorAll('nav .title').length === 2")  # told by the other tab
    reload(page, stub)
    assert sorted(titles(page)) == ["here 0", "there 0"]
    held = page.js("Object.values(localStorage).filter((v) => v.includes('turns')).join()")
    assert all(f"{who} {turn}" in held for who in ("here", "there") for turn in range(2))


def test_two_tabs_in_one_conversation_lose_no_turn(page, other, stub):
    ask(page, "first")
    other.open(page.js("location.href"))
    other.wait(f"{NUM_ARTICLES} === 2")
    assert texts(other) == ["first", "first"]
    wait = threading.Event()  # both are being answered when both write
    stub.replies = [[wait, *say("A"), *END], [wait, *say("B"), *END]]
    for tab, text in ((page, "mine"), (other, "yours")):
        tab.js(f"{BOX}.focus()")
        tab.type(text)
        tab.key("Enter")
        tab.wait("!document.getElementById('stop').hidden")
    wait.set()
    for tab in (page, other):
        tab.wait(
            f"{IDLE} && {LAST}.textContent.includes('2 of 2') || {NUM_ARTICLES} === 4 && {IDLE}"
        )
    stored = "JSON.parse(Object.entries(localStorage).find(([k]) => k.startsWith('ramp.chat.'))[1])"
    written = page.wait(f"{stored}.turns.length === 6 && {stored}.turns.map((t) => t.content)")
    assert sorted(written[2:]) == ["A", "B", "mine", "yours"]
    # What goes on in one tab is seen in the other, and a deletion too.
    reload(page, stub)
    page.js("document.querySelector('nav .title').click()")
    other.js("document.querySelector('nav .drop').click()")
    page.wait(f"{HINT}.includes('deleted in another tab')")
    assert page.js(NUM_ARTICLES) == 0


FOREIGN = [
    "not json",
    "null",
    "[]",
    '{"title":"old"}',
    '{"id":"x1","title":5,"updated":1,"turns":[]}',
    '{"id":"x1","title":"a","updated":1,"turns":[{"id":"1","parent":"1","role":"user","content":""}]}',
    '{"id":"x1","title":"a","updated":1,"turns":[{"id":"1","role":"user"}]}',
    '{"id":"x1","title":"a","updated":1,"turns":[{"id":"1","role":"user","content":"","tokens":[1]}]}',
    '{"id":"x1","title":"a","updated":1,"turns":[{"id":"1","role":"system","content":""}]}',
    '{"id":"other","title":"a","updated":1,"turns":[]}',
    '{"id":"x1","title":"a","updated":1,"turns":[],"__proto__":{"x":1},"more":1}',
]


def test_foreign_records_are_left_alone(page, stub):
    for i, raw in enumerate(FOREIGN):
        store(page, f"ramp.chat.x{i}", raw.replace("x1", f"x{i}"))
    store(page, "ramp.settings", '{"temperature":"hot","tokens":null,"system":7,"top_k":3}')
    store(page, "ramp.appearance", '{"a":1}')
    store(page, "ramp.chats", '[{"title":"old"}]')
    reload(page, stub)
    assert "cannot be read" in page.js(HINT)
    assert ask(page, "still alive") == "still alive"
    asked = stub.asked[-1]
    assert asked["temperature"] == 0.8 and asked["top_k"] == 3 and len(asked["messages"]) == 1
    assert page.js("localStorage.getItem('ramp.chat.x0')") == "not json"
    reload(page, stub)
    press(page, "Remove them")
    reload(page, stub)
    assert page.js(HINT) == "" and titles(page) == ["still alive"]


def test_conversations_of_the_older_page_come_along(page, stub):
    turns = [
        {"role": "user", "content": "old question"},
        {"role": "assistant", "content": "busy", "error": True},
        {"role": "assistant", "content": "old answer", "tokens": [], "foot": "3 tokens"},
    ]
    store(page, "ramp.chats", json.dumps([{"id": "a", "title": "old", "turns": turns}]))
    reload(page, stub)
    page.js("document.querySelector('nav .title').click()")
    assert texts(page) == ["old question", "old answer"]
    assert page.js("localStorage.getItem('ramp.chats')") is None


def test_no_room_left_is_said(page, stub):
    big = say("long " * 2000)
    token = {"token": "a", "bytes": [97], "logprob": -1.0, "entropy": 1.0, "top_logprobs": []}
    figures = {"index": 0, "delta": {}, "logprobs": {"content": [token] * 2000}}
    stub.replies = [[*big, f"data: {json.dumps({'choices': [figures]})}\n\n", *END]]
    ask(page, "first")
    fill = "for (let n = 1 << 22; n; n >>= 1) for (const key of ['a', 'b']) "
    fill += "try { localStorage[`fill ${key} ${n} ${Math.random()}`] = 'x'.repeat(n) } catch {}"
    page.js(fill)
    ask(page, "second")
    assert "probabilities of old answers are dropped" in page.js(HINT)
    page.js(fill)
    assert ask(page, "third " + "x" * 300) == "third " + "x" * 300  # the talk goes on
    assert "not kept: export it" in page.js(HINT)
    page.js(
        "Object.keys(localStorage).filter((k) => k.startsWith('fill')).forEach((k) => localStorage.removeItem(k))"
    )
    ask(page, "fourth")  # the remedy works: there is room, and all is kept
    page.open(page.js("location.href"))
    # By the browser: a script that reloads its own page may be cut off before it answers.
    page.do("Page.reload")
    page.wait(f"{NUM_ARTICLES} === 8")


def test_a_browser_that_keeps_nothing(page, stub):
    deny = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('denied') }})"
    made = page.do("Page.addScriptToEvaluateOnNewDocument", source=deny)
    reload(page, stub)
    assert ask(page, "hello") == "hello"
    assert "keeps nothing" in page.js(HINT)
    page.do("Page.removeScriptToEvaluateOnNewDocument", **made)


def test_a_page_that_is_left_keeps_what_was_written(page, stub):
    stub.replies = [[*say("a beginning"), wait := threading.Event()]]
    page.js(f"{BOX}.focus()")
    page.type("go")
    page.key("Enter")
    page.wait(f"{LAST}?.textContent.includes('a beginning')")
    page.open(stub.url + "/?left")
    wait.set()
    page.js("document.querySelector('nav .title').click()")
    assert texts(page) == ["go", "a beginning"] and "stopped" in page.js(f"{LAST}.textContent")


def test_strange_figures_do_not_cost_the_conversation(page, stub):
    piece = {"index": 0, "delta": {"content": "words"}, "finish_reason": "length"}
    token = {"token": "words", "bytes": [119] * 2000, "logprob": None, "top_logprobs": []}
    piece["logprobs"] = {"content": [token]}
    stub.replies = [[f"data: {json.dumps({'choices': [piece]})}\n\n", *END]]
    ask(page, "hello")
    assert "limit of its length" in page.js(f"{LAST}.textContent")
    page.open(stub.url + "/?strange")
    assert titles(page) == ["hello"] and page.js(HINT) == ""


# What the server says on its worst days


def test_errors_are_sentences_with_a_way_on(page, stub):
    stub.replies = [(429, "all slots are taken")]
    assert ask(page, "busy?") == "The server is busy: all slots are taken."
    press(page, "Try again", LAST)
    page.wait(f"{LAST}.textContent.includes('busy?') && {LAST}.matches('.model') && {IDLE}")
    assert texts(page) == ["busy?", "busy?"] and len(stub.asked) == 2

    stub.replies = [(400, "the model's context is 512 tokens"), (502, {"no": "sentence"})]
    assert "did not take this: the model's context" in ask(page, "long")
    assert page.js(f"[...{LAST}.querySelectorAll('button')].map((b) => b.textContent)") == [
        "Settings",
        "New conversation",
        "Try again",
    ]
    assert "it answered 502" in ask(page, "through a proxy")
    # A question that got no answer gives way to the next one.
    assert ask(page, "well?") == "well?"
    assert [m["content"] for m in stub.asked[-1]["messages"]] == ["busy?", "busy?", "well?"]


def test_an_answer_that_breaks_off_is_kept(page, stub):
    error = f"data: {json.dumps({'error': {'message': 'the engine has stopped'}})}\n\n"
    for i, (reply, told) in enumerate(
        (
            ([*say("half of"), CUT], "The connection broke"),
            ([*say("half of"), "data: {oops\n\n"], "cannot be read"),
            ([*say("half of"), "data: null\n\n"], "cannot be read"),
            ([*say("half of"), 'data: {"choices": [5, null]}\n\n'], "cannot be read"),
            ([*say("half of"), error], "broke off: the engine has stopped"),
        )
    ):
        stub.replies = [reply]
        assert told in ask(page, f"go on {i}")
        assert "half of" in texts(page)[-2]
        assert "cut off" in page.js("[...document.querySelectorAll('article')].at(-2).textContent")
    press(page, "Try again", LAST)
    page.wait(f"{IDLE} && {LAST}.textContent.includes('2 of 2')")
    assert texts(page)[-1] == "go on 4"


def test_the_network_goes_and_comes_back(page, stub):
    port = stub.server.server_port
    page.do("Network.enable")
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.do("Network.emulateNetworkConditions", offline=True, **offline)
    assert "does not answer" in ask(page, "anybody?")
    page.do("Network.emulateNetworkConditions", offline=False, **offline)
    stub.info = stub.info | {"model": "another"}  # it was started anew
    press(page, "Try again", LAST)
    page.wait(f"{IDLE} && {LAST}.textContent.includes('another')")
    assert stub.asked[-1]["model"] == "another" and stub.server.server_port == port
    page.do("Network.disable")


def test_a_key_is_asked_for_and_kept_for_the_session_only(page, stub):
    stub.key = "sesame-open-0123456789"
    page.open(stub.url + "/?key", ready="document.getElementById('hint').textContent")
    assert "asks for a key" in page.js(HINT)
    press(page, "Enter the key")
    assert page.js("document.activeElement.name") == "key"
    page.type(stub.key)
    page.key("Enter")
    page.wait("document.title === 'stub'")
    assert ask(page, "open") == "open"
    assert stub.key not in page.js("JSON.stringify(localStorage)")
    assert stub.key in page.js("JSON.stringify(sessionStorage)")
    stub.key = "another-key-0123456789"  # it was taken back meanwhile
    assert "asks for a key" in ask(page, "open?")
    press(page, "Enter the key", LAST)
    page.js("document.querySelector('[name=key]').value = 'kéy “with” quotes'")
    press(page, "Done")
    press(page, "Try again", LAST)
    page.wait(f"{LAST}.textContent.includes('characters that no key has')")


# Keys and hands


def test_keys(page, stub):
    page.js(f"{BOX}.focus()")
    page.type("one")
    page.key("Enter", shift=True)
    page.type("two")
    # Choosing a character with Enter or Escape is not for the page.
    compose = "(key, more) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown',"
    compose += "{key, bubbles: true, cancelable: true, ...more}))"
    page.js(f"({compose})('Enter', {{isComposing: true}}), ({compose})('Enter', {{keyCode: 229}})")
    assert stub.asked == []
    wait = threading.Event()
    stub.replies = [[*say("begun"), wait, *END]]
    page.key("Enter")
    page.wait(f"{LAST}?.textContent.includes('begun')")
    assert stub.asked[0]["messages"][0]["content"] == "one\ntwo"
    page.js(f"({compose})('Escape', {{isComposing: true}})")
    # Escape closes what is on top, and only that.
    page.js("document.getElementById('open-settings').click()")
    page.key("Escape")
    assert not page.js("document.getElementById('settings').open") and not page.js(IDLE)
    page.js("document.getElementById('find').focus()")
    page.type("nothing of that kind")
    assert not page.js("document.getElementById('none').hidden")
    page.key("Escape")
    assert page.js("document.getElementById('find').value") == "" and not page.js(IDLE)
    page.js(f"{BOX}.focus()")
    page.key("Escape")
    page.wait(IDLE)
    wait.set()
    assert "stopped" in page.js(f"{LAST}.textContent") and texts(page)[-1] == "begun"


def test_the_order_of_the_focus(page, stub):
    ask(page, "hello")
    page.js("document.querySelector('.skip').focus()")
    names = []
    for _ in range(30):
        page.key("Tab")
        name = page.js(
            "(e => e === document.body ? '' : e.ariaLabel || e.id || e.textContent)(document.activeElement)"
        )
        if not name:
            break
        names.append(name)
        # Where the focus is can be seen.
        assert page.js(
            "document.activeElement.id === 'text' || getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        ), name
    assert names[:4] == ["Light or dark", "open-settings", "new", "Search the conversations"]
    order = ["hello", "Delete hello", "export", "import", "Copy your message", "Edit your message"]
    order += ["Copy the answer", "Regenerate", "text", "task", "Ten samples", "send"]
    at = [names.index(name) for name in order]
    assert at == sorted(at)


def test_settings_are_left_without_a_trace(page, stub):
    page.js("document.getElementById('open-settings').click()")
    page.js("document.querySelector('[name=temperature]').value = ''")
    page.js("document.querySelector('[name=temperature]').focus()")
    page.type("0.3")
    page.key("Escape")
    page.wait("!document.getElementById('settings').open")
    ask(page, "a")
    assert stub.asked[-1]["temperature"] == 0.8
    page.js("document.getElementById('open-settings').click()")
    page.js("document.querySelector('[name=temperature]').value = 0.72")
    page.js("document.querySelector('[name=system]').value = 'Be brief.'")
    press(page, "Done")
    ask(page, "b")
    assert stub.asked[-1]["temperature"] == 0.72
    assert stub.asked[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    page.js("document.getElementById('open-settings').click()")
    press(page, "Defaults")
    press(page, "Cancel")
    ask(page, "c")
    assert stub.asked[-1]["temperature"] == 0.72


def test_an_edit_opens_a_branch_and_the_way_back(page, stub):
    ask(page, "one")
    ask(page, "two")
    press(page, "Edit", "document.querySelector('article.user')")
    page.key("Escape")
    assert page.js("document.activeElement.textContent") == "Edit"  # the focus is where it was
    press(page, "Edit", "document.querySelector('article.user')")
    page.js("document.querySelector('textarea.edit').select()")
    page.type("uno")
    page.key("Enter")
    page.wait(f"{NUM_ARTICLES} === 2 && {IDLE}")
    assert texts(page) == ["uno", "uno"]
    assert [m["content"] for m in stub.asked[-1]["messages"]] == ["uno"]
    page.js("document.querySelector('[aria-label=\"Earlier version\"]').focus()")
    page.key("Enter")
    assert texts(page) == ["one", "one", "two", "two"]
    page.open(page.js("location.href") + "&")
    page.js("document.querySelector('nav .title').click()")
    assert texts(page) == ["one", "one", "two", "two"]
    press(page, "Regenerate", "[...document.querySelectorAll('article.model')][0]")
    page.wait(f"{NUM_ARTICLES} === 2 && {IDLE}")
    assert [m["content"] for m in stub.asked[-1]["messages"]] == ["one"]


def test_a_deletion_can_be_undone(page, stub):
    ask(page, "precious")
    page.js("document.querySelector('nav .drop').click()")
    assert titles(page) == [] and page.js(NUM_ARTICLES) == 0
    assert page.js("document.activeElement.id") == "new"
    press(page, "Undo")
    assert texts(page) == ["precious", "precious"]
    reload(page, stub)
    assert titles(page) == ["precious"]


def test_an_answer_goes_on_while_another_conversation_is_read(page, stub):
    ask(page, "short")
    press(page, "New conversation")
    wait = threading.Event()
    stub.replies = [[*say("begun, "), wait, *say("ended"), *END]]
    page.js(f"{BOX}.focus()")
    page.type("long")
    page.key("Enter")
    page.wait(f"{LAST}?.textContent.includes('begun')")
    page.js(
        "[...document.querySelectorAll('nav .title')].find((b) => b.textContent === 'short').click()"
    )
    assert ask(page, "between") == "between"
    wait.set()
    page.wait("Object.values(localStorage).some((v) => v.includes('begun, ended'))")
    page.js(
        "[...document.querySelectorAll('nav .title')].find((b) => b.textContent === 'long').click()"
    )
    assert texts(page) == ["long", "begun, ended"]


def test_search_export_and_import(page, stub, tmp_path):
    stub.replies = [[*say("Apples are ", "red."), *END]]
    ask(page, "fruit?")
    press(page, "New conversation")
    ask(page, "something else")
    page.js("document.getElementById('find').focus()")
    page.type("apples ARE")
    assert titles(page) == ["fruit?"]
    assert "Apples are red." in page.js("document.querySelector('nav small').textContent")
    page.key("Enter")
    assert texts(page) == ["fruit?", "Apples are red."]
    page.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    files = []
    for label in ("Export these 1", "Export all"):
        press(page, label)
        while not (found := [*tmp_path.glob("*.json")]):
            time.sleep(0.02)
        files.append(found[0].read_text())
        found[0].unlink()
        page.key("Escape")
    assert [len(json.loads(file)["conversations"]) for file in files] == [1, 2]

    page.js("localStorage.clear()")
    reload(page, stub)
    assert titles(page) == []
    for _ in range(2):  # the second time nothing is doubled
        give(page, files[1])
        page.wait(f"{HINT}.startsWith('Imported 2 conversations.')")
        assert sorted(titles(page)) == ["fruit?", "something else"]
    # The conversation that is already here is not changed by a file that has its name.
    evil = json.loads(files[1])
    for chat in evil["conversations"]:
        for turn in chat["turns"]:
            turn["content"] = "changed"
    give(page, json.dumps(evil))
    page.wait(f"{HINT}.startsWith('Imported 2')")
    assert "changed" not in page.js("JSON.stringify(localStorage)")


def give(page: Browser, text: str, name: str = "a.json", expression: str = "") -> None:
    page.js("document.getElementById('hint').textContent = ''")
    parts = expression or json.dumps([text])
    file = f"new File({parts}, {json.dumps(name)})"
    page.js(
        f"(() => {{ const d = new DataTransfer(), f = document.getElementById('file'); d.items.add({file});"
        "f.files = d.files; f.dispatchEvent(new Event('change')); })()"
    )


GOOD = {"id": "c1", "title": "t", "updated": 1, "leaf": "1", "turns": []}
TURN = {"id": "1", "role": "user", "content": "x"}


def make_file(**changes) -> str:
    return json.dumps(
        {"format": "ramp conversations", "version": 1, "conversations": [GOOD | changes]}
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is no JSON"),
        ("[]", "it is no export of this page"),
        (make_file().replace('"version": 1', '"version": 2'), "newer version"),
        (make_file(), "conversations[0].leaf must be a turn"),
        (make_file(turns=[TURN | {"content": 5}]), "turns[0].content must be text"),
        (make_file(turns=[TURN | {"onclick": "x"}]), "turns[0].onclick must be left out"),
        (make_file(turns=[TURN, TURN]), "turns[1].id must be its own"),
        (make_file(turns=[TURN | {"parent": "2"}]), "turns[0].parent must be an earlier turn"),
        (make_file(id="../x", turns=[TURN]), "[0].id must be a name"),
        (
            make_file(turns=[TURN | {"samples": [{"content": "a"}] * 17}]),
            "must be a list of at most 16",
        ),
    ],
)
def test_a_file_that_will_not_do_is_refused(page, text, told):
    """All of it, with a sentence."""
    give(page, text, f"{EVIL[:20]}.json")
    assert told in page.wait(HINT) and "was not imported" in page.js(HINT)
    assert titles(page) == [] and page.js("Object.keys(localStorage)") == []


def test_a_file_that_is_too_large_is_not_read(page):
    give(page, "x", expression="new Array(21).fill(new Uint8Array(1 << 20))")
    assert "larger than 20 MB" in page.wait(HINT)


# What models and others write


MARKDOWN = [
    ("a *b* **c** ***d*** ~~e~~ `f<b>`", "<p>a <em>b</em> <strong>c</strong> <strong class=\"slanted\">d</strong> <del>e</del> <code>f&lt;b&gt;</code></p>"),
    ("2*3*4 = 24, snake_case_name, 5 * 6 * 7, a ** b", "<p>2*3*4 = 24, snake_case_name, 5 * 6 * 7, a ** b</p>"),
    ("**not closed and *neither", "<p>**not closed and *neither</p>"),
    ("*a **b* c**", "<p><em>a **b</em> c**</p>"),
    ("\\*plain\\* ``a ` b`` `open", "<p>*plain* <code>a ` b</code> `open</p>"),
    ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
    ("# A\n### B `c`\n#no", "<h3>A</h3><h5>B <code>c</code></h5><p>#no</p>"),
    ("- a\n- b\n  - c\n\n    d\n- e", '<ul><li><p class="tight">a</p></li><li><p class="tight">b</p><ul><li><p class="tight">c</p><p>d</p></li></ul></li><li><p class="tight">e</p></li></ul>'),
    ("Steps:\n1. a\n2. b", '<p>Steps:</p><ol start="1"><li><p class="tight">a</p></li><li><p class="tight">b</p></li></ol>'),
    ("I was born in\n1986. A good year.", "<p>I was born in\n1986. A good year.</p>"),
    ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
    ("---", "<hr>"),
    ("[a](https://x.org/b_(c)) <https://y.org/?q=1>.", '<p><a href="https://x.org/b_(c)" title="https://x.org/b_(c)" target="_blank" rel="noopener noreferrer nofollow">a</a> &lt;<a href="https://y.org/?q=1" title="https://y.org/?q=1" target="_blank" rel="noopener noreferrer nofollow">https://y.org/?q=1</a>&gt;.</p>'),
    ("[a](javascript:alert(1)) ![b](data:text/html,x)", "<p><span>a (javascript:alert(1))</span> <span>b (data:text/html,x)</span></p>"),
    ("[a]( https://x.org) [b] (c)", '<p>[a]( <a href="https://x.org" title="https://x.org" target="_blank" rel="noopener noreferrer nofollow">https://x.org</a>) [b] (c)</p>'),
]  # fmt: skip


def render(page: Browser, text: str) -> str:
    return page.js(
        "import('/page/markdown.js').then((m) => { const e = document.createElement('div');"
        f" m.render(e, {json.dumps(text)}); return e.innerHTML; }})"
    )


def test_markdown(page):
    for text, html in MARKDOWN:
        assert render(page, text) == html, text
    code = render(page, "```js evil\n<b>\n  *x*\n```\nafter")
    assert (
        "<code>&lt;b&gt;\n  *x*</code>" in code
        and "<span>js</span>" in code
        and "<p>after</p>" in code
    )
    assert "<code>open\n\n# still code</code>" in render(page, "```\nopen\n\n# still code")
    table = render(page, "| a | b |\n|:--|--:|\n| 1 | *2* |\n| 3 |\nafter")
    assert (
        table.count("<tr>") == 3
        and '<td class="right"><em>2</em></td>' in table
        and "<p>after</p>" in table
    )


def test_markdown_grows_and_what_was_there_stays(page):
    kept = page.js(
        "import('/page/markdown.js').then((m) => { const e = document.createElement('div');"
        "m.render(e, 'one\\n\\ntwo'); const first = e.firstChild;"
        "m.render(e, 'one\\n\\ntwo more\\n\\nthree'); return e.firstChild === first && e.children.length === 3; })"
    )
    assert kept


def test_hostile_markdown_takes_no_time_and_no_depth(page):
    """Twenty thousand characters of each, in a second at most; most take a few milliseconds."""
    units = [
        "*a ",
        "**a",
        "_a ",
        "[",
        "](",
        "![a](",
        "`",
        "`a``",
        "> ",
        "- ",
        "  - ",
        "1. a\n",
        "|",
        "|-",
    ]
    units += [
        "#",
        "~~a",
        "https://",
        "(",
        "\\",
        "a\n\n",
        "> a\n\n",
        "- a\n\nb\n\n",
        "```\n",
        "~~~\n```\n",
        "<think>",
    ]
    run = """import('/page/markdown.js').then((m) => units.map((unit) => {
      const text = unit.repeat(20000 / unit.length), e = document.createElement('div'), began = performance.now();
      m.render(e, text);
      const took = performance.now() - began, walker = document.createTreeWalker(e);
      let depth = 0;
      for (let n = walker.nextNode(); n; n = walker.nextNode()) {
        let d = 0;
        for (let p = n; p !== e; p = p.parentNode) d += 1;
        depth = Math.max(depth, d);
      }
      return [unit, took, depth];
    }))"""
    for unit, milliseconds, depth in page.js(run.replace("units", json.dumps(units))):
        # Far above what it takes, since other work may share the machine.
        assert milliseconds < 5000 and depth < 40, (unit, milliseconds, depth)


def test_thinking_is_folded(page, stub):
    wait = threading.Event()
    stub.replies = [[*say("<think>", "Let me see."), wait, *say("</think>\n\n", "Yes."), *END]]
    page.js(f"{BOX}.focus()")
    page.type("Is it?")
    page.key("Enter")
    page.wait(f"{LAST}?.querySelector('summary')?.textContent === 'Thinking …'")
    page.js("document.querySelector('details').open = true")
    wait.set()
    page.wait(IDLE)
    assert page.js("document.querySelector('details').open")  # as it was left
    assert page.js("document.querySelector('details .text').textContent") == "Let me see."
    assert page.js("document.querySelector('.said > .text').textContent") == "Yes."
    # The other ways to write it, and an end that never comes.
    stub.replies = [[*say("hidden", field="reasoning_content"), *say("shown"), *END]]
    assert ask(page, "b").split() == ["Thought", "first", "shown"]
    stub.replies = [say("begun by the prompt</think>shown") + END]
    assert ask(page, "c").split() == ["Thought", "first", "shown"]
    stub.replies = [say("<think>for ever") + END]
    assert "ended within the thinking" in ask(page, "d")
    stub.replies = [END]
    assert ask(page, "e") == "The model said nothing."


def test_nothing_that_others_write_runs(page, stub):
    """From a model, its name, its errors and its thinking, from titles, searches, files and the store."""
    evil = (
        EVIL
        + ' [x](javascript:window.hacked=1) ![y](https://evil.example/pixel) `"><img src=x onerror=hacked=1>`'
    )
    stub.info = stub.info | {"model": EVIL, "stage": EVIL, "tasks": {EVIL: 2}}
    reload_name = "document.getElementById('name').textContent.includes('<img')"
    page.open(stub.url + "/?evil")
    page.wait(reload_name)
    piece = {"index": 0, "delta": {"content": evil, "role": EVIL}, "finish_reason": EVIL}
    piece["logprobs"] = {
        "content": [
            {
                "token": evil,
                "bytes": list(evil.encode()),
                "logprob": -1,
                "top_logprobs": [{"token": EVIL, "logprob": -2}],
            }
        ]
    }
    thinking = say(f"<think>{evil}</think>```{EVIL}\n{evil}\n```\n| {evil} |\n|-|\n| {evil} |\n")
    stub.replies = [
        [*thinking, *END],
        [f"data: {json.dumps({'choices': [piece]})}\n\n", *END],
        (400, evil),
    ]
    for _ in range(3):
        ask(page, EVIL)
    press(page, "Probabilities", "document.querySelectorAll('article.model')[1]")
    page.key("ArrowRight")
    assert "<img" in page.js("document.getElementById('tip').textContent")
    turn = TURN | {"role": "assistant", "content": evil, "model": EVIL, "foot": EVIL}
    turn["verdict"] = {
        "lines": [{"text": EVIL, "right": False, "why": EVIL}],
        "right": False,
        "verified": False,
        "lucky": False,
        "answer": EVIL,
        "solution": [EVIL],
    }
    give(page, make_file(turns=[turn], title=EVIL))
    page.wait(f"{HINT}.startsWith('Imported')")
    page.js("document.getElementById('find').focus()")
    page.type("<img")
    page.js("[...document.querySelectorAll('nav .title')].at(-1).click()")
    page.wait(f"!!{LAST}.querySelector('.verdict')")
    page.open(stub.url + "/?evil again")
    page.wait(reload_name)
    strange = "script, img, svg, iframe, object, embed, [onerror], [onload], [style*=url], a[href^=javascript]"
    assert page.js(f"document.querySelectorAll('body :is({strange})').length") == 0
    assert page.js("typeof window.hacked") == "undefined"
    asked = page.js("performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(name.startswith((stub.url, "data:")) for name in asked)


# How it looks


SAMPLE = """# Heading
Text with `code`, a [link](https://example.org) and **bold**.
> quoted

| a | b |
|---|---|
| 1 | WORDS |

```python
LINE
```
""".replace("WORDS", "word " * 40).replace("LINE", "long_line = " + "x" * 400)

# Every text that can be seen, with the contrast to what it stands on (WCAG 2.2, 1.4.3).
CONTRASTS = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const read = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((x) => x / 255); };
  const over = (top, below) => below.map((x, i) => i < 3 ? top[i] * top[3] + x * (1 - top[3]) : 1);
  const light = (c) => c.slice(0, 3).map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { const chain = []; for (; e; e = e.parentElement) chain.unshift(read(getComputedStyle(e).backgroundColor));
    return chain.reduce((below, top) => over(top, below), [1, 1, 1, 1]); };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const holder = e.placeholder ? getComputedStyle(e, '::placeholder') : null;
    if (!(own || holder) || !e.checkVisibility({opacityProperty: true, visibilityProperty: true}) || e.disabled) continue;
    const below = ground(e), a = light(over(read((holder ?? getComputedStyle(e)).color), below)), b = light(below);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + '.' + e.className + ' ' + (e.placeholder ?? e.textContent).slice(0, 30)]);
  }
  return found;
})()"""


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (390, 844)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_in_the_light_and_the_dark_and_fits(page, stub, width, height, dark):
    stub.info = stub.info | {"model": "a-name-" + "of-some-length-" * 4}
    page.open(stub.url + "/?look", width, height, dark)
    name = f"{'phone' if width < 700 else 'wide'}-{'dark' if dark else 'light'}"
    shot(page, f"{name}-welcome")
    token = {
        "token": "sure",
        "bytes": list(b"sure"),
        "logprob": -9.0,
        "entropy": 1.0,
        "top_logprobs": [{"token": "t", "logprob": -2}],
    }
    piece = {"index": 0, "delta": {"content": "sure"}, "logprobs": {"content": [token]}}
    stub.replies = [
        [*say("<think>Hm.</think>", SAMPLE), *END],
        [f"data: {json.dumps({'choices': [piece]})}\n\n", *END],
        (400, "no"),
    ]
    seen = page.js(CONTRASTS)
    for text in ("Show me", "w" * 300, "Fail"):
        ask(page, text)
    page.js("document.querySelector('details').open = true")
    press(page, "Probabilities", "document.querySelectorAll('article.model')[1]")
    page.js("document.querySelector('.tokens').focus()")
    page.key("ArrowRight")
    seen += page.js(CONTRASTS)
    shot(page, f"{name}-talk")
    scrolls = "[document.documentElement, document.getElementById('talk')].every((e) => e.scrollWidth <= e.clientWidth)"
    assert page.js(scrolls)
    edges = "[...document.querySelectorAll('button, textarea, article, select')].filter((e) => e.checkVisibility({visibilityProperty: true}))"
    outside = (
        edges
        + ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)"
    )
    assert page.js(outside) == []
    page.js("document.getElementById('open-settings').click()")
    seen += page.js(CONTRASTS)
    shot(page, f"{name}-settings")
    page.key("Escape")
    if width < 700:
        page.js("document.getElementById('menu').click()")
        assert page.js("document.activeElement.id") == "new" and page.js(
            "document.querySelector('main').inert"
        )
        page.wait("document.querySelector('nav').getBoundingClientRect().left === 0")
        shot(page, f"{name}-menu")
        seen += page.js(CONTRASTS)
        page.key("Escape")
        assert page.js("document.activeElement.id") == "menu"
    low = [(round(ratio, 2), what) for ratio, what in seen if ratio < 4.5]
    assert not low and len(seen) > 60
    unnamed = "[...document.querySelectorAll('button, input, textarea, select')].filter((e) => !(e.textContent.trim()"
    assert page.js(unnamed + " || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)") == []
    small = (
        edges.replace("textarea, article, ", "")
        + ".map((e) => e.getBoundingClientRect()).filter((b) => b.height < 24).length"
    )
    assert page.js(small) == 0  # WCAG 2.2, 2.5.8


def test_light_and_dark_follow_the_system(page, stub):
    def shown():
        return page.js("getComputedStyle(document.body).backgroundColor")

    def system(dark):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.do("Emulation.setEmulatedMedia", features=scheme)

    light = shown()
    system(dark=True)
    dark = shown()
    assert light != dark  # at once
    page.js("document.getElementById('theme').click()")
    assert shown() == light
    reload(page, stub)
    system(dark=True)
    assert shown() == light  # chosen, so it stays
    page.js("document.getElementById('theme').click()")
    assert shown() == dark
    system(dark=False)
    assert shown() == light  # back at the system's, it follows again


def test_a_printed_page_holds_the_whole_talk(page, stub):
    stub.replies = [say("\n\n".join(f"line {i}" for i in range(200))) + END]
    ask(page, "much")
    page.do("Emulation.setEmulatedMedia", media="print")
    hidden = "['nav', 'form#ask', '#theme', '.acts button'].filter((s) => document.querySelector(s).checkVisibility())"
    assert page.js(hidden) == []
    assert page.js("document.documentElement.scrollHeight > 200 * 20")
    page.do("Emulation.setEmulatedMedia", media="")
