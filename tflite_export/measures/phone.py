"""A phone in the loop: any browser that opens a link times the files of a search, by LiteRT.js."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from keras_prune.devices import Device
from tflite_export.bench.served_files import ServedFile, served_files
from tflite_export.errors import ExportError
from tflite_export.measures.choosing import measure_for
from tflite_export.measures.desk import SILENT, Lost
from tflite_export.measures.latency import costs_of
from tflite_export.measures.measure import Cost, Measure
from tflite_export.measures.phone_page import PhonePage, import_segno, qr_code
from tflite_export.measures.phone_words import Figures, browser_name
from tflite_export.measures.refusals import Refusals
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litertjs import VERSION, find_web_runtime
from tflite_export.runtimes.sessions import Measurement
from tflite_export.web.limitations import web_refusal
from tflite_export.web.server import LOOPBACK

__all__ = ["ROUNDS", "TRIES", "WAIT", "Phone"]

ROUNDS = 50
WAIT = 600.0
"""Seconds that a search waits for a phone."""
TRIES = 2
"""Times that a page may end in the same file before the file is refused."""
_GLANCE = 0.5


class Phone(Measure):
    """The time of a run in the browser of a phone, which opens a link: no app, no cable.

    The link is printed, with a QR code where a phone can reach it, when the first files are measured. The page asks for
    work as long as it is open. It loads each file, compares its outputs with those that LiteRT gives on this machine,
    and times all of them in turn, on one thread. While no phone is there the search waits, and goes on when one comes
    back; a page that was closed in the middle of a job gets it again. A file in which the page ends twice is left out,
    with that reason. A second phone is told that another one measures, and takes over when that one is closed or
    silent.

    For a target whose files do not run in browsers, such as "android", the costs are marked as estimates: the processor
    is that of the phone, and the kernels are those of WebAssembly.

    Where no phone comes within `wait` seconds, a warning says so, and what the target is measured by without a phone
    takes its place; its costs are marked as estimates, and a phone that comes later measures what follows. Compare
    such costs by their ratio: they may be of another unit.

    Only files that are being measured can be loaded, and nothing else from the disk. On loopback, the default, only
    this machine can open the page; any other address puts a random token into the link.

    Args:
        host: the address to listen on: "0.0.0.0" lets phones of the network in.
        port: 0 takes a free one.
        wait: seconds to wait for a phone, each time that none is there.
        fallback: what measures where no phone comes; None: the default of the target (`measure_for`).
        data: inputs, as `tflite_export.benchmark` takes them; None draws them.
        rounds: timed runs of each file.
        silent: seconds after which a phone that says nothing counts as gone.
        limits: what a file may take here, where its outputs are computed, and the seconds of a step on the phone.
        say: called with a line of text.

    Raises:
        ImportError: segno, which draws the QR code, is not installed.
        ExportError: LiteRT.js is not installed, or a number is not positive.

    Example:
        On the command line `--phone` stands for `Phone(host="0.0.0.0")`, and `--host` and `--port` for its own.

        >>> Phone(wait=0)
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: Phone: wait, rounds and silent must be positive. Received: wait=0, ...
    """

    objective = "latency"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        wait: float = WAIT,
        fallback: Measure | None = None,
        data: Any = None,
        rounds: int = ROUNDS,
        silent: float = SILENT,
        limits: Limits | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        if not (wait > 0 and silent > 0) or rounds < 1:
            received = f"wait={wait}, rounds={rounds}, silent={silent}"
            raise ExportError("Phone", "wait, rounds and silent must be positive", received, "Raise them.")
        if fallback is not None and fallback.objective != self.objective:
            raise ExportError(
                "Phone: fallback", "must measure latency", fallback.objective, "Leave it out, or pass another."
            )
        import_segno()
        self.runtime = find_web_runtime()
        self.host, self.port = host, port
        self.wait, self.rounds = wait, rounds
        self.fallback = fallback
        self.data = data
        self.limits = limits or Limits()
        self.silent = silent
        self._say = say
        self._device: Device | None = None
        self._page: PhonePage | None = None
        self._refused = Refusals(self.limits, web=True)
        self._gave_up = False
        self._greeted = ""

    # -- what a search asks -------------------------------------------------------------------------------------------

    def for_device(self, device: Device | None) -> Phone:
        """Return this phone; where none comes, files are measured as those of the device are."""
        self._device = device
        return self

    def refusal(self, file: bytes) -> str | None:
        """Return why LiteRT.js cannot take a file, or why it was left out on the phone."""
        return self._refused.reason(file)

    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the median of each file's runs on the phone, and the median of the pairwise ratios.

        Raises:
            ExportError: the reference does not run there, or no phone came and what takes its place is not installed.
        """
        self.open()
        served = self._serve(files, reference)
        try:
            costs = self._measure([reference, *(name for name in served if name != reference)], served, files)
        except _NoPhoneError:
            return self._without_phone({name: files[name] for name in served}, reference)
        finally:
            if self._page is not None:
                self._page.withdraw()
        return {name: costs[name] for name in files if name in costs}

    def open(self) -> None:
        """Serve the page, and say where; nothing where it is served already."""
        if self._page is not None:
            return
        self._page = PhonePage(self.runtime, self.host, self.port, self.silent)
        self._say(f"Open {self._page.url} on the phone that is to measure.")
        if self.host in LOOPBACK:
            self._say('Only this machine can open it; host="0.0.0.0" (--host 0.0.0.0) lets phones of the network in.')
        else:
            self._say(qr_code(self._page.url))

    @property
    def url(self) -> str:
        """The link that phones open; empty while nothing is served."""
        return "" if self._page is None else self._page.url

    def close(self) -> None:
        """Tell the page that the search is over, and serve no more."""
        page, self._page = self._page, None
        if page is not None:
            page.close()
        if self.fallback is not None:
            self.fallback.close()

    @property
    def _opened(self) -> PhonePage:
        assert self._page is not None
        return self._page

    # -- files and jobs -----------------------------------------------------------------------------------------------

    def _serve(self, files: Mapping[str, bytes], reference: str) -> dict[str, ServedFile]:
        """Return the files as the page gets them; note why others are refused.

        Raises:
            ExportError: the reference is.
        """
        found = {}
        for name, content in files.items():
            pair = [reference] if name == reference else [reference, name]
            if name != reference and content in self._refused:
                continue
            try:
                refusal = web_refusal(content, name)
                if refusal is not None:
                    raise ExportError(f"'{name}'", "must run in LiteRT.js", refusal, "Leave it out.")
                contents = [files[each] for each in pair]
                allowed = self.limits.for_files(*contents)
                found[name] = served_files(pair, contents, self.data, None, allowed)[-1]
            except ExportError as error:
                if name == reference:
                    raise
                self._refused.note(content, str(error))
        return found

    def _measure(
        self, names: list[str], served: Mapping[str, ServedFile], files: Mapping[str, bytes]
    ) -> dict[str, Cost]:
        """Return the costs of files, the reference first; note which the phone refuses."""
        ends: Counter[str | None] = Counter()
        while True:
            outcome = self._on_phone(names, served)
            if isinstance(outcome, Lost):
                name = None if outcome.place is None else names[outcome.place]
                ends[name] += 1
                if ends[name] < TRIES:
                    continue
                if name is None and len(names) > 2:
                    # Together they may need more memory than the page has: each beside the reference alone.
                    pairs = [self._measure([names[0], other], served, files) for other in names[1:]]
                    return {name: cost for pair in reversed(pairs) for name, cost in pair.items()}
                reasons = {name or names[-1]: f"{TRIES} times {outcome.reason}"}
            else:
                reasons = {
                    name: row.reason
                    for name, row in zip(names, outcome.rows, strict=False)
                    if not row.timed and row.reason
                }
                if not outcome.rows[-1].failed:
                    self._refuse(reasons, names[0], files)
                    return self._costs(outcome, [name for name in names if name not in reasons])
            self._refuse(reasons, names[0], files)
            names = [name for name in names if name not in reasons]

    def _refuse(self, reasons: Mapping[str, str], reference: str, files: Mapping[str, bytes]) -> None:
        """Note why files are left out.

        Raises:
            ExportError: the reference is one of them.
        """
        browser = browser_name(self._opened.desk.browser)
        for name, reason in reasons.items():
            if name == reference:
                raise ExportError(
                    f"the reference '{name}' on the phone ({browser})",
                    "must run and answer as LiteRT does here",
                    reason,
                    "Open the link with another browser, or measure without a phone.",
                )
            self._refused.note(files[name], f"on the phone ({browser}): {reason}")

    def _costs(self, figures: Figures, names: list[str]) -> dict[str, Cost]:
        hidden = ", its page hidden meanwhile" if figures.hidden else ""
        on = f"LiteRT.js {VERSION} in {browser_name(self._opened.desk.browser)}{hidden}"
        measured = Measurement(on, "ms", [], figures.samples, [])
        return costs_of(measured, dict.fromkeys(names, b""), names[0], self._estimate)

    @property
    def _estimate(self) -> str:
        """Why times in a browser are only an estimate for the device; empty where its files run in browsers."""
        device = self._device
        if device is None or device.stands_in[:1] == ("web",):
            return ""
        return f"timed in the phone's browser, in WebAssembly; the runtime of '{device.name}' has other kernels"

    def _on_phone(self, names: list[str], served: Mapping[str, ServedFile]) -> Figures | Lost:
        """Return what comes of a job.

        Raises:
            _NoPhoneError: no phone came in time.
        """
        page = self._opened
        page.post({name: served[name] for name in names}, self.rounds, self.limits.seconds)
        since: float | None = None
        while True:
            outcome = page.desk.wait(_GLANCE)
            is_manned = page.desk.is_manned
            if is_manned:
                since, self._gave_up = None, False
                self._greet(browser_name(page.desk.browser))
            if outcome is not None:
                return outcome
            if self._page is not page:
                raise ExportError("Phone", "must be open while it measures", "it was closed", "Measure again.")
            if is_manned:
                continue
            if since is None:
                since = time.monotonic()
                self._greeted = ""
                if not self._gave_up:
                    self._say(f"Waiting for a phone to open {page.url} (for {self.wait:g} s at most).")
            if self._gave_up or time.monotonic() - since > self.wait:
                raise _NoPhoneError

    def _greet(self, browser: str) -> None:
        """Say which browser measures, once."""
        if browser != self._greeted:
            self._say(f"Measuring in {browser}.")
        self._greeted = browser

    def _without_phone(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Return the costs by what takes the phone's place, marked as estimates."""
        if self.fallback is None:
            self.fallback = measure_for(self._device, self.objective, data=self.data, limits=self.limits)
        costs = self.fallback.measure(files, reference)
        on = costs[reference].on
        for name in files.keys() - costs.keys():
            self._refused.note(files[name], self.fallback.refusal(files[name]) or f"left out by {on}")
        if not self._gave_up:
            warnings.warn(
                f"no phone opened {self.url} within {self.wait:g} s: files are measured by {on} instead, an estimate, "
                "until one does",
                UserWarning,
                stacklevel=3,
            )
        self._gave_up = True
        return {
            name: Cost(cost.value, cost.unit, cost.ratio, cost.spread, cost.on, f"no phone came: {cost.estimate or on}")
            for name, cost in costs.items()
        }


class _NoPhoneError(Exception):
    """No phone came in time."""
