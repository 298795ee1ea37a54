"""The desk between a search and the phone that measures for it: one job at a time, handed out to one page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tflite_export.measures.phone_words import Figures

__all__ = ["MOST_RETURNS", "POLL", "SILENT", "Desk", "Job", "Lost"]

SILENT = 10.0
"""Seconds after which a page that says nothing counts as gone; an open one says something every 2 seconds."""
POLL = 20.0
"""Seconds that a page's request for work is kept waiting for a job."""
MOST_RETURNS = 5
"""Times that an open page may ask for work instead of bringing the result, as it does where the network fails."""


@dataclass(frozen=True)
class Lost:
    """A job that came back without a result.

    Args:
        place: the file that was being loaded or checked; None: none alone, as when they are timed.
        reason: what happened.
    """

    place: int | None
    reason: str


@dataclass(eq=False)
class Job:
    """Files that a page is to measure.

    Args:
        number: what the page calls it.
        frame: what the page gets.
        files: how many.
        rounds: timed runs of each.
        seconds: that one step of it may take: a file, or a round.
    """

    number: int
    frame: bytes
    files: int
    rounds: int
    seconds: float
    page: str | None = None
    """The page that has it in hand."""
    place: int | None = None
    """The file that the page is at."""
    outcome: Figures | Lost | None = None
    moved: float = 0.0
    """When it last got a step further."""
    returned: int = 0
    """How often a page asked for work with this job in hand."""


class Desk:
    """What is known of the pages, and the job that waits or is in hand.

    One page measures at a time: the first that asks. Another one is told so, and takes over when the first has said
    goodbye, or nothing for `silent` seconds. A job that was in the hands of a page that fell silent is lost then, and
    whoever posted it decides; a page that said goodbye has only given it back.

    Args:
        silent: seconds.
        poll: seconds that a request for work waits.
        clock: seconds.
    """

    def __init__(self, silent: float = SILENT, poll: float = POLL, clock: Callable[[], float] = time.monotonic) -> None:
        self.silent = silent
        self.poll = poll
        self.browser = ""
        """What the page that measures calls its browser."""
        self._clock = clock
        self._changed = threading.Condition()
        self._page: str | None = None
        self._heard = 0.0
        self._job: Job | None = None
        self._over = False
        self._asking = 0

    # -- for the search -----------------------------------------------------------------------------------------------

    @property
    def is_manned(self) -> bool:
        """Whether a page is there."""
        with self._changed:
            return self._is_manned()

    def post(self, job: Job) -> None:
        """Lay out a job for the page that asks next."""
        with self._changed:
            self._job = job
            self._changed.notify_all()

    def withdraw(self) -> None:
        """Take the job back; what a page says of it from now on is refused."""
        with self._changed:
            self._job = None

    def wait(self, seconds: float) -> Figures | Lost | None:
        """Return what came of the job; None where nothing has within so many seconds."""
        with self._changed:
            job = self._job
            if job is None:
                return None
            if job.outcome is None:
                self._changed.wait(seconds)
            stuck = job.page is not None and self._is_manned() and self._clock() - job.moved > job.seconds
            if job.outcome is None and stuck:
                # The page's own thread is caught in a file: nothing that it is told reaches it.
                self._lose(f"no step further within {job.seconds:g} s")
                self._page = None
            return job.outcome

    def end(self, seconds: float = 1.0) -> None:
        """Tell pages that the search is over; wait for those that are asking just now, so long at most."""
        with self._changed:
            self._over, self._job = True, None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._asking == 0, seconds)

    # -- for pages ----------------------------------------------------------------------------------------------------

    def ask(self, page: str, browser: str) -> Job | str | None:
        """Return the job for a page that asks for work.

        Returns:
            The job; None: none yet; or why there is none for this page, as a text; an empty one: the search is over.
        """
        with self._changed:
            if page != self._page:
                if self._is_manned() and not self._over:
                    return (
                        "Another phone is measuring, or another page of this one. This page takes over when that one "
                        f"is closed, or silent for {self.silent:g} seconds."
                    )
                self._take_over(page)
            elif self._job is not None and self._job.page == page:
                self._give_back(self._job)
            self._heard, self.browser = self._clock(), browser
            self._changed.notify_all()
            self._asking += 1
            try:
                self._changed.wait_for(lambda: self._over or self._page != page or self._waits(), self.poll)
            finally:
                self._asking -= 1
                self._changed.notify_all()
            if self._over:
                return ""
            if self._page != page or not self._waits():
                return None
            self._heard = self._clock()
            job = self._job
            assert job is not None
            job.page, job.place, job.moved = page, None, self._clock()
            return job

    def hear(self, page: str) -> None:
        """Note that a page is open."""
        with self._changed:
            if page == self._page:
                if not self._is_manned() and self._job is not None:
                    self._job.moved = self._clock()  # it slept, and is not caught in a file
                self._heard = self._clock()
                self._changed.notify_all()

    def step(self, page: str, number: object, place: int | None) -> None:
        """Note which file a page is at."""
        with self._changed:
            job = self._in_hand(page, number)
            if job is not None:
                self._heard = job.moved = self._clock()
                job.place = place if place is not None and 0 <= place < job.files else None

    def leave(self, page: str) -> None:
        """Note that a page is being closed: its job waits for the next one that asks."""
        with self._changed:
            if page == self._page:
                self._page = None
                if self._job is not None:
                    self._job.page = None
                self._changed.notify_all()

    def bring(self, page: str, number: object, read: Callable[[Job], Figures | Lost]) -> str:
        """Take the result of a job; return why it is refused, or an empty text.

        Args:
            page: that brings it.
            number: of the job.
            read: returns what the page says of the job; raises a ValueError where it cannot be that.
        """
        with self._changed:
            job = self._in_hand(page, number)
            if job is None:
                return "nobody waits for it any more"
            self._heard = self._clock()
            try:
                job.outcome = read(job)
            except ValueError as error:
                self._lose(f"the page sent a wrong result: {error}")
                return str(error)
            finally:
                self._changed.notify_all()
            return ""

    # -- both hold the lock -------------------------------------------------------------------------------------------

    def _is_manned(self) -> bool:
        return self._page is not None and self._clock() - self._heard < self.silent

    def _waits(self) -> bool:
        return self._job is not None and self._job.page is None and self._job.outcome is None

    def _in_hand(self, page: str, number: object) -> Job | None:
        job = self._job
        return job if job is not None and (job.page, job.number, job.outcome) == (page, number, None) else None

    def _take_over(self, page: str) -> None:
        if self._job is not None and self._job.page is not None and self._job.outcome is None:
            self._lose("the page ended in it")
        self._page = page

    def _give_back(self, job: Job) -> None:
        """Lay out a job again: its page did not get our answer, or could not send its own."""
        job.returned += 1
        if job.returned > MOST_RETURNS:
            self._lose(f"the page brought no result, {job.returned} times")
        job.page = None

    def _lose(self, reason: str) -> None:
        if self._job is not None:
            self._job.outcome = Lost(self._job.place, reason)
            self._changed.notify_all()
