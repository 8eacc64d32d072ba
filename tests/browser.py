"""A headless Chromium driven over a pipe with its own DevTools protocol: no driver, no package, no port."""

import base64
import copy
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = (
    os.environ.get("RAMP_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
]
FLAGS += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]


class Browser:
    """One page. `do` calls the protocol, `js` evaluates an expression in the page and returns its value."""

    def __init__(self, profile: Path):
        down, up = os.pipe(), os.pipe()
        words = [
            "sh",
            "-c",
            'exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null',
            "sh",
        ]  # it speaks on 3 and 4
        words += [
            CHROMIUM,
            *FLAGS,
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            words, stdin=down[0], stdout=up[1], stderr=subprocess.DEVNULL
        )
        os.close(down[0])
        os.close(up[1])
        self._in, self._out = os.fdopen(down[1], "wb", 0), os.fdopen(up[0], "rb")
        self._count, self._session = 0, None
        self.events: list[dict] = []
        self._attach()

    def tab(self) -> "Browser":
        """Another page of the same browser, with the same storage."""
        other = copy.copy(self)
        other._session, other.events = None, []
        other._attach()
        return other

    def _attach(self) -> None:
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        self._in.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict:
        raw = bytearray()
        while (byte := self._out.read(1)) != b"\0":
            assert byte, "Chromium has gone"
            raw += byte
        return json.loads(raw)

    def js(self, expression: str) -> Any:
        found = self.do(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> Any:
        until = time.monotonic() + seconds
        while not (value := self._ask(expression)):
            assert time.monotonic() < until, f"never came true: {expression}"
            time.sleep(0.05)
        return value

    def _ask(self, expression: str) -> Any:
        try:
            return self.js(expression)
        except AssertionError as error:
            # A page that is being left answers nothing; the next one will.
            if "navigated" not in str(error):
                raise
            return None

    def open(
        self,
        url: str,
        width: int = 1200,
        height: int = 800,
        dark: bool = False,
        ready: str = "document.title !== 'ramp'",
    ) -> None:
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 700,
        )
        # What lies behind another page is not drawn.
        self.do("Page.bringToFront")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.do("Emulation.setEmulatedMedia", features=scheme)
        self.do("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && {ready}")

    def key(self, name: str, shift: bool = False) -> None:
        code = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "Tab": 9, "Space": 32}[name]
        text = {"Enter": {"text": "\r"}, "Space": {"text": " "}}.get(name, {})
        for kind in ("keyDown", "keyUp"):
            self.do(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=code,
                modifiers=8 * shift,
                **text,
            )
            text = {}

    def type(self, text: str) -> None:
        self.do("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))

    def complaints(self) -> list[str]:
        """Errors the page or the browser reported so far."""
        self.js("1")
        wrong = [e["params"] for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        wrong += [e["params"]["entry"] for e in self.events if e.get("method") == "Log.entryAdded"]
        return [json.dumps(w) for w in wrong]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)
        self._in.close()
        self._out.close()
