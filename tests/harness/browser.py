"""A headless Chromium, driven over its DevTools pipe with nothing but the standard library.

No driver program and no package is needed: Chromium reads commands from file descriptor 3 and
writes answers and events to 4, JSON each, a NUL byte after each
(https://chromedevtools.github.io/devtools-protocol/, `--remote-debugging-pipe`). It ends when
the pipe closes, so none is left behind by a test run that dies.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from .poll import PATIENCE, eventually

_ANSWER_SECONDS = PATIENCE
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-pipe",
    "--window-size=1280,1000",
    # Whatever else a page or the browser itself asks for does not exist.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# Puts the pipe's ends where Chromium looks for them, then becomes Chromium.
_LAUNCH = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

Message = dict[str, Any]


class Browser:
    """One browser with one page; use as a context manager.

    `errors` are the page's console errors, exceptions, refusals of its security policy and
    failed loads; `requested` the address of everything it asked for.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._commands = self._answers = -1
        self._session = ""
        self._received = b""
        self._last_id = 0
        self.errors: list[str] = []
        self.requested: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._commands, self._answers):
            if end >= 0:
                os.close(end)
        if self._process is not None:
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._profile.cleanup()

    def _start(self) -> None:
        reads, self._commands = _pipe()
        self._answers, writes = _pipe()
        home = self._profile.name
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCH, str(reads), str(writes)),
                *(self._program, *_FLAGS, f"--user-data-dir={home}/profile", "about:blank"),
            ],
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "TMPDIR": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(reads, writes),
            start_new_session=True,
        )
        os.close(reads)
        os.close(writes)
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    # --- what a person does ----------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to the address, and wait until the page that was there is gone and this one is."""
        self.evaluate("window.isTheOldPage = true")
        self.command("Page.navigate", url=url)
        loaded = "!window.isTheOldPage && document.readyState === 'complete'"
        eventually(lambda: self.evaluate(loaded), what=f"{url} is loaded")

    def see(self, selector: str, text: str = "", *, deadline: float = PATIENCE) -> str:
        """Wait for an element that holds `text`; its whole text."""
        script = f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)"

        def found() -> list[str]:
            return [shown for shown in self.evaluate(script) if text in shown]

        return eventually(found, deadline, what=f"{selector} with {text!r}")[0]

    def click(self, selector: str) -> None:
        """Wait until the first such element stands still and uncovered, and click in its middle.

        A page that moves just then makes a click go astray; it is repeated until it has hit.
        """
        named = json.dumps(selector)
        aim = f"""(async () => {{
          const found = document.querySelector({named});
          if (!found) return null;
          found.scrollIntoView({{block: "center", behavior: "instant"}});
          const middle = () => {{
            const box = found.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
          }};
          const before = middle();
          for (const _ of [1, 2, 3]) await new Promise(requestAnimationFrame);
          const now = middle();
          const top = document.elementFromPoint(...now);
          const ready = found.contains(top) && before.every((value, i) => value === now[i]);
          window.hit = false;
          const note = event => {{ window.hit ||= found.contains(event.target); }};
          document.addEventListener("click", note, {{capture: true, once: true}});
          return ready ? now : null;
        }})()"""

        def has_hit() -> bool:
            place = self.evaluate(aim)
            if place is None:
                return False
            at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.command("Input.dispatchMouseEvent", type="mousePressed", **at)
            self.command("Input.dispatchMouseEvent", type="mouseReleased", **at)
            return bool(self.evaluate("window.hit"))

        eventually(has_hit, what=f"{selector} to click on")

    def type(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.click(selector)
        self.command("Input.insertText", text=text)

    def choose(self, selector: str, option: str) -> None:
        """Pick the option of a drop-down list whose text begins so."""
        script = f"""(() => {{
          const list = document.querySelector({json.dumps(selector)});
          const named = o => o.text.startsWith({json.dumps(option)});
          const found = list && [...list.options].find(named);
          if (!found) return false;
          list.value = found.value;
          return list.dispatchEvent(new Event("change", {{bubbles: true}}));
        }})()"""
        eventually(lambda: self.evaluate(script), what=f"{selector} offers {option!r}")

    def attach(self, selector: str, file: Path) -> None:
        """Pick a file in a file field."""
        self.see(selector)
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        field = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=field, files=[str(file)])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """The page as PNG."""
        taken = self.command("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    # --- the protocol ----------------------------------------------------------------------

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def command(self, method: str, **parameters: Any) -> Message:
        """Send one command, wait for its answer, and note the events that come before it."""
        self._last_id += 1
        sent: Message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            sent["sessionId"] = self._session
        os.write(self._commands, json.dumps(sent).encode() + b"\0")
        end = time.monotonic() + _ANSWER_SECONDS
        while True:
            message = self._read(end)
            if message.get("id") == self._last_id:
                assert "error" not in message, f"{method}: {message['error']}"
                result: Message = message["result"]
                return result
            self._note(message)

    def _read(self, end: float) -> Message:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], max(0, end - time.monotonic()))
            data = os.read(self._answers, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._received += data
        first, _, self._received = self._received.partition(b"\0")
        message: Message = json.loads(first)
        return message

    def _note(self, event: Message) -> None:
        what: Message = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requested.append(what["request"]["url"])
            case "Log.entryAdded" if what["entry"]["level"] == "error":
                self.errors.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(what["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "assert"):
                self.errors.append(json.dumps(what["args"]))
            case _:
                pass


def _pipe() -> tuple[int, int]:
    """A pipe whose ends do not stand at 3 or 4, where the program wants its own."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]
