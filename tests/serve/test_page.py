"""The page in a real browser, from the first key to the last token."""

import os
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium here; install one or name it in RAMP_CHROMIUM"
)
PICTURES = os.environ.get("RAMP_PICTURES")  # a folder for screenshots


@pytest.fixture(scope="module")
def page(live, tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    made.open(live.url + "/")
    made.js("localStorage.clear()")
    made.js("localStorage.setItem('ramp.settings', JSON.stringify({tokens: 40, seed: 3}))")
    made.open(live.url + "/?again")
    yield made
    made.close()


def shot(page: Browser, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


IDLE = "document.getElementById('stop').hidden"
LAST = "[...document.querySelectorAll('article')].at(-1)"


def ask(page: Browser, text: str) -> str:
    page.js("document.getElementById('text').focus()")
    page.type(text)
    before = page.js("document.querySelectorAll('article').length")
    page.key("Enter")
    page.wait(
        f"document.querySelectorAll('article').length >= {before} + 2 && {IDLE} && !!{LAST}.querySelector('.foot')"
    )
    return page.js(f"{LAST}.querySelector('.said').textContent")


def press(page: Browser, label: str, where: str = "document") -> None:
    found = (
        f"[...({where}).querySelectorAll('button')].find((b) => b.textContent.trim() === {label!r})"
    )
    page.js(f"{found}.click()")


def test_a_conversation(page, live):
    first = ask(page, "Hello")
    assert first
    shot(page, "chat")
    assert page.js("document.querySelectorAll('nav li').length") == 1
    press(page, "Regenerate", LAST)
    page.wait(f"{IDLE} && !!{LAST}.querySelector('.foot')")
    assert page.js(f"{LAST}.querySelector('.said').textContent") == first  # the seed is set
    page.open(live.url + "/")  # it is still there after a reload
    assert page.js("document.querySelectorAll('article').length") == 0  # a fresh one is on show
    page.js("document.querySelector('nav .title').click()")
    assert page.js(f"{LAST}.querySelector('.said').textContent") == first
    assert "2 of 2" in page.js(f"{LAST}.textContent")
    press(page, "Edit", "document.querySelector('article.user')")
    page.js("document.querySelector('textarea.edit').select()")
    page.type("Other words")
    page.key("Enter")
    page.wait(f"{IDLE} && !!{LAST}.querySelector('.foot')")
    assert page.js("document.querySelector('article.user .said').textContent") == "Other words"
    assert page.js("document.querySelectorAll('article').length") == 2
    assert page.complaints() == []


def test_probabilities_by_keyboard(page):
    press(page, "Probabilities", LAST)
    assert page.js(f"{LAST}.querySelectorAll('.t').length > 3")
    page.key("ArrowRight")
    page.key("ArrowRight")
    tip = page.js(
        "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
    )
    assert "%" in tip and "bits" in tip
    assert page.js("document.getElementById('status').textContent.includes('%')")
    shot(page, "probabilities")


def test_stop(page, live):
    page.js("localStorage.setItem('ramp.settings', JSON.stringify({tokens: 230}))")
    page.open(live.url + "/?stop")
    page.js("document.getElementById('text').focus()")
    page.type("Go on")
    page.key("Enter")
    page.wait(
        f"{LAST}?.classList.contains('model') && {LAST}.querySelector('.said').textContent.length > 4"
    )
    page.key("Escape")
    page.wait(f"{IDLE} && !!{LAST}.querySelector('.foot')")
    assert "stopped" in page.js(f"{LAST}.querySelector('.foot').textContent")
    live.quiet()


def test_ten_samples(page):
    page.js("localStorage.setItem('ramp.settings', JSON.stringify({tokens: 30}))")
    page.open(page.js("location.origin") + "/?ten")
    page.js("document.getElementById('text').focus()")
    page.type("Tell me a joke.")
    page.js("document.getElementById('ten').click()")
    page.wait(f"{IDLE} && document.querySelectorAll('.samples > li .acts').length === 10")
    figures = page.js("[...document.querySelectorAll('dl.figures div')].map((d) => d.textContent)")
    assert len(figures) == 4 and "of 10" in figures[0] and "bits" in figures[3]
    shot(page, "samples")
    press(page, "Keep this one", "document.querySelectorAll('.samples > li')[3]")
    assert "sample 4 of 10" in page.js(f"{LAST}.textContent")


def test_a_task_is_judged_step_by_step(page):
    page.js("document.getElementById('new').click()")
    page.js(
        "const t = document.getElementById('task'); t.value = 'chain'; t.dispatchEvent(new Event('change'))"
    )
    page.wait("document.getElementById('text').value.length > 3")
    page.js("document.getElementById('send').click()")
    page.wait(f"{IDLE} && document.querySelectorAll('.verdict li').length > 0")
    assert page.js(
        "[...document.querySelectorAll('.verdict li')].every((l) => l.matches('.right, .wrong'))"
    )
    shot(page, "verdict")


EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
EVIL += "javascript:alert(1) </textarea><svg onload=hacked=1>"


def test_no_text_becomes_markup(page, live, monkeypatch):
    """From the user, from the model, from an error, from the store, from the name of a conversation."""
    from ramp.serve import text_stream

    pieces = [EVIL[i : i + 7] for i in range(0, len(EVIL), 7)]
    monkeypatch.setattr(
        text_stream.TextStream, "_decode", lambda self, id: pieces[len(self._held) % len(pieces)]
    )
    page.js("document.getElementById('new').click()")
    said = ask(page, EVIL)
    assert "<img src=x onerror" in said
    page.open(live.url + "/?evil")
    page.js("document.querySelector('nav .title').click()")
    assert (
        page.js(
            "document.querySelectorAll('article img, article script, article svg, nav img').length"
        )
        == 0
    )
    assert page.js("typeof window.hacked") == "undefined"
    # The policy would stop what slipped through.
    for slip in (
        "document.body.innerHTML = '<img>'",
        "document.createElement('script').text = '1'",
    ):
        assert "TypeError" in page.js(
            f"(() => {{ try {{ {slip} }} catch (e) {{ return `${{e}}` }} }})()"
        )
