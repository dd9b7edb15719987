"""A headless Chromium for tests of pages, driven over a pipe by the DevTools protocol; needs no package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")
PATIENCE_S = 60  # seconds: other work may share the cores
KEY_TEXT = {"ArrowLeft": "", "ArrowRight": ""}  # keys that write nothing


class Browser:
    """One tab. Its profile, in which pages keep what they store, is a folder; so is the place of its downloads."""

    def __init__(self, folder: Path) -> None:
        self.downloads = folder / "downloads"
        command = [PROGRAM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        (theirs, self._to), (self._from, answers) = os.pipe(), os.pipe()
        # Chromium reads commands at descriptor 3 and answers at 4.
        words = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{answers}', "bash", *command]
        self._process = subprocess.Popen(words, pass_fds=(theirs, answers), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(answers)
        self._read, self._number, self._session = b"", 0, None
        self._events: list[dict[str, Any]] = []
        behavior = {"behavior": "allow", "downloadPath": str(self.downloads)}
        self.call("Browser.setDownloadBehavior", **behavior)
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the protocol; returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._from], [], [], PATIENCE_S)[0], "the browser does not answer"
            part = os.read(self._from, 2**16)
            assert part, "the browser has ended"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        self._events.append(json.loads(message))
        return self._events[-1]

    def complaints(self) -> list[Any]:
        """Returns what the browser has reported since the last call: requests, lines of the console, exceptions."""
        self.ask("0")  # whatever the page has caused is reported before the answer
        events, self._events = self._events, []
        found = []
        for event in events:
            told, name = event.get("params", {}), event.get("method")
            if name == "Network.requestWillBeSent" and not told["request"]["url"].startswith("data:"):
                found += [told["request"]["url"]] if told.get("type") != "Document" else []
            elif name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(told)
        return found

    def picture(self, path: Path) -> None:
        """Writes a PNG of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def open(self, page: Path) -> None:
        """Loads a file."""
        self._load("Page.navigate", url=page.as_uri())

    def reload(self) -> None:
        """Loads the page again, as a person does by F5."""
        self._load("Page.reload")

    def _load(self, method: str, **parameters: Any) -> None:
        self.call(method, **parameters)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def ask(self, expression: str) -> Any:
        """Returns the value of an expression of JavaScript."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Presses keys, one after the other."""
        for key in keys:
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=KEY_TEXT.get(key, key))
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def text(self, selector: str) -> str:
        """Returns what a person reads in an element."""
        return self.ask(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """Clicks on the middle of an element."""
        element = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        box = self.ask(f"{element}.toJSON()")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def downloaded(self, name: str) -> bytes:
        """Waits for a file that the page saves."""
        path, deadline = self.downloads / name, time.monotonic() + PATIENCE_S
        while not path.is_file():
            assert time.monotonic() < deadline, "the page saves nothing"
            time.sleep(0.02)
        return path.read_bytes()

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Makes the window so large, and its owner one who likes pages dark or light."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", **sizes, mobile=width < 600)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])
