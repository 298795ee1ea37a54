"""The page that a phone opens to measure for a search: what it is served, and what it may post."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from keras_prune.extras import import_extra
from tflite_export.bench.served_files import ServedFile
from tflite_export.measures.desk import SILENT, Desk, Job, Lost
from tflite_export.measures.phone_words import LARGEST_WORDS, Figures, WordsError, read_figures, read_words, text
from tflite_export.processes.frames import pack
from tflite_export.runtimes.litertjs import ASSETS
from tflite_export.web.binding import bind, link
from tflite_export.web.page_files import web_files
from tflite_export.web.server import Resource

__all__ = ["PAGES", "PhonePage", "import_segno", "qr_code"]

PAGES = ("serve.css", "phone.mjs", "pulse.js", "measuring.mjs", "icon.svg")


class PhonePage:
    """The page and its server, until it is closed.

    Only the page, the runtime and the files of the current job can be loaded. What the page posts is text of a device
    that nobody has checked: see `phone_words`.

    Args:
        runtime: folder of LiteRT.js.
        host: the address to listen on.
        port: 0 takes a free one.
        silent: see `Desk`.

    Raises:
        ExportError: the address cannot be bound, or LiteRT.js is not whole.
    """

    def __init__(self, runtime: Path, host: str, port: int, silent: float = SILENT) -> None:
        self.desk = Desk(silent)
        resources = {
            "": Resource((ASSETS / "phone.html").read_bytes(), "html"),
            **{name: Resource((ASSETS / name).read_bytes(), name.rpartition(".")[2]) for name in PAGES},
            **web_files(runtime),
        }
        handlers = {
            "work": self._work,
            "beat": self._beat,
            "step": self._step,
            "result": self._result,
            "bye": self._bye,
        }
        self._server = bind(resources, handlers, host=host, port=port, largest_request=LARGEST_WORDS)
        self._number = 0
        self.url = link(self._server)
        """What phones open."""
        self._server.start()

    def post(self, files: Mapping[str, ServedFile], rounds: int, seconds: float) -> None:
        """Lay out a job for the phone, in place of the one before.

        Args:
            files: by name.
            rounds: timed runs of each.
            seconds: that a step may take.
        """
        self.withdraw()
        self._number += 1
        blobs: list[bytes] = []
        described = []
        for place, (name, file) in enumerate(files.items()):
            path = f"models/{self._number}-{place}"
            described.append({"name": name, "path": path, **file.described(blobs)})
            self._server.resources[path] = Resource(file.content, "bin")
        header = {"do": "measure", "job": self._number, "rounds": rounds, "files": described}
        self.desk.post(Job(self._number, pack(header, blobs), len(files), rounds, seconds))

    def withdraw(self) -> None:
        """Take back the job and its files."""
        self.desk.withdraw()
        resources = self._server.resources
        for path in [path for path in resources if path.startswith("models/")]:
            del resources[path]

    def close(self) -> None:
        """Tell the page that the search is over, and serve no more."""
        self.desk.end()
        self._server.stop()

    # -- what the page posts ------------------------------------------------------------------------------------------

    def _work(self, body: bytes) -> bytes | None:
        try:
            words = read_words(body)
            browser = text(words.get("browser"))
        except WordsError as error:
            return pack({"do": "wait", "why": str(error)})
        found = self.desk.ask(words["page"], browser)
        if isinstance(found, Job):
            return found.frame
        if found is None:
            return None
        return pack({"do": "wait", "why": found} if found else {"do": "end"})

    def _beat(self, body: bytes) -> bytes | None:
        return _noted(lambda: self.desk.hear(read_words(body)["page"]))

    def _step(self, body: bytes) -> bytes | None:
        def note() -> None:
            words = read_words(body)
            place = words.get("place")
            # A bool is an int to Python, and equal to a place.
            self.desk.step(words["page"], words.get("job"), place if type(place) is int else None)

        return _noted(note)

    def _bye(self, body: bytes) -> bytes | None:
        return _noted(lambda: self.desk.leave(read_words(body)["page"]))

    def _result(self, body: bytes) -> bytes:
        def read(job: Job) -> Figures | Lost:
            if "broken" in words:
                return Lost(None, f"it broke: {text(words['broken'])}")
            return read_figures(words, job.files, job.rounds)

        try:
            words = read_words(body)
        except WordsError as error:
            return pack({"refused": str(error)})
        return pack({"refused": self.desk.bring(words["page"], words.get("job"), read)})


def _noted(note: Callable[[], None]) -> bytes | None:
    """Take note of what a page says; nothing where it is not what a page of ours would say."""
    try:
        note()
    except WordsError:
        return None
    return b""


def import_segno() -> Any:
    """Return segno, which draws QR codes.

    Raises:
        ImportError: it is not installed; the message has the command.
    """
    return import_extra("segno", "phone", "the QR code that leads a phone to its page")


def qr_code(link: str) -> str:
    """Return a QR code as text, two rows of it in a line.

    Raises:
        ImportError: segno is not installed.
    """
    drawn = StringIO()
    import_segno().make(link, error="l", micro=False).terminal(drawn, compact=True)
    return drawn.getvalue()
