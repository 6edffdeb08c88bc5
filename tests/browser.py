"""A headless Chromium, driven through its own protocol over two pipes: no driver, no package, no open port."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


def find_browser() -> str | None:
    """The program, where there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own.

    Args:
        program: Chromium or Chrome.
        profile: an empty folder.
    """

    def __init__(self, program: str, profile: Path) -> None:
        # The browser reads commands from its descriptor 3 and writes answers to 4. Ours are high ones first, so that
        # neither is overwritten before it is moved there.
        read, self.commands = os.pipe()
        self.answers, write = os.pipe()
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 20) for descriptor in (read, write)]
        wiring = f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}'
        command = ["bash", "-c", wiring, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=high, stderr=subprocess.DEVNULL)
        for descriptor in (read, write, *high):
            os.close(descriptor)
        self.rest = b""
        self.number, self.session = 0, None
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=60)
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer; events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self.answers, 1 << 20)
            assert read, "the browser has ended"
            self.rest += read
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next(60)
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screen(self, width: int, height: int, phone: bool = False, dark: bool = False) -> None:
        """Size, and light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled into view."""
        script = f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center", inline: "center"}}); const r = e.getBoundingClientRect();
            return [r.left, r.top, r.width, r.height] }})()"""
        left, top, width, height = self.value(script)
        return left, top, width, height

    def mouse(self, kind: str, x: float, y: float, clicks: int = 1) -> None:
        """One event of the mouse: mousePressed, mouseMoved or mouseReleased."""
        held = kind != "mouseMoved"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if held else "none", buttons=int(held),
                  clickCount=clicks if held else 0)  # fmt: skip

    def click(self, selector: str) -> None:
        """Press and release in the middle of an element."""
        left, top, width, height = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, left + width / 2, top + height / 2)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press, move in a few steps and release."""
        self.mouse("mousePressed", *start)
        for share in (0.3, 0.7, 1.0):
            x, y = (a + (b - a) * share for a, b in zip(start, end, strict=True))
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
        self.mouse("mouseReleased", *end)

    def double_click(self, x: float, y: float) -> None:
        """Two clicks at one place."""
        for clicks in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                self.mouse(kind, x, y, clicks)

    def type(self, selector: str, text: str) -> None:
        """Put a text into a field in place of what it holds."""
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, whole: bool = False) -> Path:
        """What the page looks like, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def complaints(self) -> list[str]:
        """Exceptions, errors of the console and of the policy, and requests for anything but the page itself."""
        self.value("1")
        found = []
        for event in self.events:
            method, content = event["method"], event["params"]
            url = content["request"]["url"] if method == "Network.requestWillBeSent" else ""
            wrong = (
                method in ("Runtime.exceptionThrown", "Network.loadingFailed")
                or (method == "Log.entryAdded" and content["entry"]["level"] == "error")
                or (method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"))
                or (url and content.get("type") != "Document" and not url.startswith("data:"))
            )
            if wrong:
                found.append(f"{method}: {json.dumps(content)[:600]}")
        return found
