"""A headless Chromium that a test drives."""

import fcntl
import json
import os
import signal
import subprocess
import time

from tflite_export.web.chromium import FLAGS, find_chromium


def _above(descriptor):
    """Return a descriptor moved to a number above 9."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


class Browser:
    """A headless Chromium, asked over the pipe of its DevTools protocol."""

    def __init__(self, profile, width):
        asked, self._to = os.pipe()
        self._from, answered = os.pipe()
        # The protocol's pipe is descriptors 3 and 4 of the browser: keep ours out of their way.
        asked, answered = (_above(descriptor) for descriptor in (asked, answered))
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{asked} 4>&{answered}', find_chromium(), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(asked, answered),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(asked)
        os.close(answered)
        self._pending, self._number, self._session, self.events = b"", 0, {}, []
        target = next(found for found in self.ask("Target.getTargets")["targetInfos"] if found["type"] == "page")
        attached = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        # Copying asks for a page that has the focus, as a headless one has not.
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)

    def ask(self, method, **parameters):
        """Ask, keep the events that come meanwhile, and return the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._pending:
                more = os.read(self._from, 1 << 16)
                assert more, "Chromium ended"
                self._pending += more
            line, _, self._pending = self._pending.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, expression):
        """Return the value of an expression of JavaScript."""
        answer = self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression):
        """Wait until an expression holds."""
        end = time.monotonic() + 60
        while not self.run(expression):
            assert time.monotonic() < end, self.run("document.body.innerText")
            time.sleep(0.05)

    def press(self, key, code, text=""):
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def tab_to(self, element):
        """Press the tabulator until an element has the focus, and show that the focus is seen there."""
        for _ in range(12):
            self.press("Tab", 9)
            if self.run("document.activeElement.id || document.activeElement.localName") == element:
                style = "getComputedStyle(document.activeElement)"
                assert self.run(f"{style}.outlineStyle") == "solid"
                assert float(self.run(f"{style}.outlineWidth").removesuffix("px")) >= 2
                return
        raise AssertionError(f"the tabulator does not reach {element}")

    def close(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
