# SPDX-License-Identifier: Apache-2.0
"""The first tutorial in JupyterLab and in a real browser: a slider is moved, and the picture changes."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 200  # seconds, for a machine that does other things too

pytest.importorskip("jupyterlab", reason="there is no JupyterLab here")
websocket = pytest.importorskip("websocket", reason="there is no websocket-client here")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here")]


@contextlib.contextmanager
def running(command, found, log, environment):
    """A program, and what the pattern `found` matches in what it says."""
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=log.parent)
    try:
        yield until(lambda: re.search(found, log.read_text()) or process.poll() and pytest.fail(log.read_text()))[1]
    finally:
        process.terminate()
        process.wait(60)


def until(ask):
    """The first answer that is something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.5)
    pytest.fail(f"no answer within {PATIENCE} s")


class Page:
    """A page of a browser, by Chrome's DevTools protocol."""

    def __init__(self, browser):
        self.socket, self.number, self.session = websocket.create_connection(browser, timeout=PATIENCE), 0, None
        target = self.ask("Target.createTarget", url="about:blank", newWindow=True, width=1400, height=1600)["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def ask(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, script):
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def picture(self):
        """The bytes of the widget's picture, as text."""
        return self.run(
            """(async () => { const image = document.querySelector('img.widget-image');
            if (!image) return null;
            const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
            return btoa(Array.from(bytes, b => String.fromCharCode(b)).join('')); })()"""
        )


def test_a_slider_moves_and_the_picture_changes(tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks/explore/0_overview.ipynb", tmp_path / "notebooks")
    # settings, caches and lists of kernels all follow HOME
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "IPYTHON", "XDG_"))
    }
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    lab = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--allow-root", "--expose-app-in-browser",
        "--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={tmp_path / 'notebooks'}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    chrome = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--remote-allow-origins=*", f"--user-data-dir={tmp_path / 'chrome'}", "about:blank",
    ]  # fmt: skip
    with (
        running(lab, r"(http://(?:localhost|127\.0\.0\.1):\d+)/lab", tmp_path / "lab.log", environment) as server,
        running(chrome, r"DevTools listening on (ws://\S+)", tmp_path / "chrome.log", environment) as browser,
    ):
        page = Page(browser)
        page.ask("Page.navigate", url=f"{server}/lab/tree/0_overview.ipynb?reset")
        # before the kernel has answered, "run all" would open a dialogue that asks for one
        until(
            lambda: (
                page.run("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status") == "idle"
            )
        )
        page.run("void jupyterapp.commands.execute('notebook:run-all-cells')")
        before = until(page.picture)
        handle = "document.querySelectorAll('.widget-slider')[1].querySelector('.noUi-handle')"  # the level's
        page.run(f"{handle}.scrollIntoView({{block: 'center'}}); {handle}.focus()")
        for kind in ("keyDown", "keyUp"):
            page.ask("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
        after = until(lambda: (now := page.picture()) != before and now)
        shot = page.ask("Page.captureScreenshot", format="png")["data"]
        (tmp_path / "screenshot.png").write_bytes(base64.b64decode(shot))
    assert base64.b64decode(before)[:2] == base64.b64decode(after)[:2] == b"\xff\xd8"  # JPEG
