"""A phone in the loop: a client of a few lines plays the phone, and a real Chromium that is killed and opened again."""

import contextlib
import dataclasses
import http.client
import json
import socket
import sys
import time
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import segno

import tflite_export as tx
from keras_prune.devices import DEVICES
from tests.tflite_export.browser import Browser
from tests.tflite_export.installed import missing
from tests.tflite_export.measures.nets import image_net, perceptron
from tflite_export import ExportError
from tflite_export.measures.choosing import measure_for
from tflite_export.measures.desk import MOST_RETURNS, Desk, Job, Lost
from tflite_export.measures.phone_page import qr_code
from tflite_export.measures.phone_words import (
    LARGEST_WORDS,
    Figures,
    WordsError,
    browser_name,
    read_figures,
    read_words,
)
from tflite_export.processes import frames
from tflite_export.runtimes import litertjs
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.web.chromium import find_chromium

WITHOUT_RUNTIME = missing(litertjs.find_web_runtime)
WITHOUT_CHROMIUM = missing(litertjs.find_web_runtime, find_chromium)
runtime = pytest.mark.skipif(bool(WITHOUT_RUNTIME), reason=WITHOUT_RUNTIME)
chromium = pytest.mark.skipif(bool(WITHOUT_CHROMIUM), reason=WITHOUT_CHROMIUM)

AGENT = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
RIGHT = {"agrees": True, "max_difference": 0.0, "said": [], "failed": False, "timed": True}
AGREES = {**RIGHT, "timed": False}
WRONG = {"agrees": False, "max_difference": 0.5, "said": ["ERROR: no memory\x1b[2J"], "failed": False, "timed": False}
FAILED = {"agrees": False, "max_difference": None, "said": ["out of memory"], "failed": True, "timed": False}


@pytest.fixture(scope="module")
def files():
    return {
        "wide": perceptron(64),
        "narrow": perceptron(8),
        "narrower": perceptron(4),
        "other": perceptron(8, features=32),
    }


class Client:
    """A page, as far as the server can tell."""

    def __init__(self, url, page="aa"):
        self.url, self.page, self.job, self.blobs = url, page, None, []

    def post(self, path, **words):
        body = json.dumps({"page": self.page, **words}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body), timeout=30) as answer:
            content = answer.read()
        return frames.unpack(content) if content else None

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def ask(self):
        """Ask for work; return the answer's header."""
        self.job, self.blobs = self.post("work", browser=AGENT, simd="relaxed")
        return self.job

    def bring(self, rows, times, **more):
        """Bring a result; return why it is refused."""
        return self.post("result", job=self.job["job"], rows=rows, times=times, hidden=False, **more)[0]["refused"]


def until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def searching(files, reference, **options):
    """A search that measures files in a thread, with a phone of its own; yields the phone, its url and the costs."""
    said = []
    with ThreadPoolExecutor(1) as pool, tx.Phone(say=said.append, rounds=4, **options) as phone:
        phone.said = said
        phone.open()
        yield phone, phone.url, pool.submit(phone.measure, files, reference)


# -- a phone that measures ---------------------------------------------------------------------------------------------


@runtime
def test_a_phone_measures_what_the_search_lays_out(files):
    given = {name: files[name] for name in ("narrow", "other", "wide")}
    with searching(given, "wide") as (phone, url, costs):
        client = Client(url)
        assert client.ask()["do"] == "measure"
        assert [file["name"] for file in client.job["files"]] == ["wide", "narrow"]
        for file in client.job["files"]:  # each comes with what is needed to check it
            content = client.get(file["path"])
            assert content == files[file["name"]]
            (sample,) = file["samples"]
            feeds = np.frombuffer(client.blobs[sample["feeds"][0]], "float32").reshape(1, 64)
            (got,) = LiteRTSession(content).run([feeds], file["inputs"], [each["name"] for each in file["outputs"]])
            wanted = np.frombuffer(client.blobs[sample["outputs"][0]], "float32")
            assert np.abs(got.ravel() - wanted).max() <= file["outputs"][0]["bound"]
        client.post("step", job=client.job["job"], place=1)
        second = Client(url, "bb").ask()
        assert second["do"] == "wait"
        assert second["why"] == (
            "Another phone is measuring, or another page of this one. This page takes over when that one is closed, or "
            "silent for 10 seconds."
        )
        assert client.bring([RIGHT, RIGHT], [[4.0, 2.0], [8.0, 2.0], [4.0, 2.0], [4.0, 2.0]]) == ""
        found = costs.result(timeout=10)
        assert list(found) == ["narrow", "wide"]  # "other" takes another input
        on = "LiteRT.js 2.5.3 in Chrome 140.0.0.0 (Linux; Android 10; K), one thread"
        assert found["wide"] == tx.Cost(4.0, "ms", 1.0, 0.0, on)
        # The ratios are 2, 4, 2, 2: median 2, quartiles 2 and 2.5.
        assert found["narrow"] == tx.Cost(2.0, "ms", 2.0, 0.125, on)
        assert "must take what the first file's 't0' takes" in phone.refusal(files["other"])
        assert phone.refusal(files["narrow"]) is None
        with pytest.raises(urllib.error.HTTPError, match="404"):
            client.get(file["path"])  # served no longer than it is measured
        assert client.bring([RIGHT, RIGHT], [[1.0, 1.0]] * 4) == "nobody waits for it any more"
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.ask)
            until(lambda: phone._page.desk._asking)
            phone.close()
            assert asked.result(timeout=10)["do"] == "end"
    with pytest.raises(urllib.error.URLError, match="refused"):
        client.ask()
    assert phone.said[0] == f"Open {url} on the phone that is to measure."
    assert "Measuring in Chrome 140.0.0.0 (Linux; Android 10; K)." in phone.said


@runtime
def test_what_answers_wrongly_or_fails_is_left_out_with_the_reason(files):
    given = {name: files[name] for name in ("wide", "narrow", "narrower")}
    with searching(given, "wide") as (phone, url, costs):
        client = Client(url)
        client.ask()
        assert client.bring([AGREES, WRONG, FAILED], []) == ""  # a file that fails ends the job
        assert [file["name"] for file in client.ask()["files"]] == ["wide"]
        assert client.bring([RIGHT], [[1.0]] * 4) == ""
        assert list(costs.result(timeout=10)) == ["wide"]
        where = "on the phone (Chrome 140.0.0.0 (Linux; Android 10; K)): "
        assert phone.refusal(files["narrow"]) == (
            where + "its outputs differ by 0.5 of their scale; ERROR: no memory\\x1b[2J"
        )
        assert phone.refusal(files["narrower"]) == where + "it does not run there: out of memory"
        # What is known to be refused is not tried again, and a reference that fails is an error.
        with ThreadPoolExecutor(1) as pool:
            again = pool.submit(phone.measure, given, "wide")
            assert [file["name"] for file in client.ask()["files"]] == ["wide"]
            client.bring([FAILED], [])
            with pytest.raises(ExportError, match=r"the reference 'wide' on the phone \(Chrome.*must run and answer"):
                again.result(timeout=10)


@runtime
def test_a_page_that_is_closed_gets_its_job_again_and_one_that_ends_twice_in_a_file_costs_the_file(files):
    given = {name: files[name] for name in ("wide", "narrow", "narrower")}
    with searching(given, "wide", silent=0.3) as (phone, url, costs):
        closed = Client(url, "01")
        first = closed.ask()["job"]
        closed.post("step", job=first, place=1)
        closed.post("bye")
        # The same job, at once; a page that ends in it falls silent, and the next one takes over.
        for number, page in enumerate(("02", "03")):
            client = Client(url, page)
            while client.ask()["do"] == "wait":
                time.sleep(0.05)
            assert [file["name"] for file in client.job["files"]] == list(given)
            assert (client.job["job"] == first) == (number == 0)
            client.post("step", job=client.job["job"], place=2)
        late, client = client, Client(url, "04")
        while client.ask()["do"] == "wait":
            time.sleep(0.05)
        assert [file["name"] for file in client.job["files"]] == ["wide", "narrow"]
        assert late.bring([RIGHT] * 3, [[1.0] * 3] * 4) == "nobody waits for it any more"
        client.bring([RIGHT, RIGHT], [[1.0, 1.0]] * 4)
        assert list(costs.result(timeout=10)) == ["wide", "narrow"]
        assert phone.refusal(files["narrower"]).endswith("2 times the page ended in it")


@runtime
def test_files_that_cannot_be_timed_together_are_timed_in_pairs(files):
    given = {name: files[name] for name in ("wide", "narrow", "narrower")}
    with searching(given, "wide") as (phone, url, costs):
        client = Client(url)
        for _ in range(2):
            client.ask()
            assert client.post("result", job=client.job["job"], broken="memory")[0] == {"refused": "", "sizes": []}
        assert [file["name"] for file in client.ask()["files"]] == ["wide", "narrow"]
        assert client.bring([RIGHT, RIGHT], [[3.0, 1.0]] * 4) == ""
        for _ in range(2):  # what is no result counts as a page that ended
            assert [file["name"] for file in client.ask()["files"]] == ["wide", "narrower"]
            assert client.bring([RIGHT, RIGHT], [[3.0, -1.0]] * 4).startswith("a time must be a positive, finite")
        client.ask()
        client.bring([RIGHT], [[2.0]] * 4)
        found = costs.result(timeout=10)
        assert {name: (cost.value, cost.ratio) for name, cost in found.items()} == {
            "wide": (3.0, 1.0),
            "narrow": (1.0, 3.0),
        }
        assert "2 times the page sent a wrong result: a time must be" in phone.refusal(files["narrower"])


class Elsewhere(tx.Measure):
    objective = "latency"
    closed = False

    def refusal(self, file):
        return "too odd"

    def measure(self, files, reference):
        return {name: tx.Cost(7.0, "instructions", 1.5, 0.0, "an emulator") for name in files if name != "narrower"}

    def close(self):
        self.closed = True


@runtime
def test_where_no_phone_comes_the_target_is_measured_as_without_one_and_the_costs_say_so(files):
    given = {name: files[name] for name in ("wide", "narrow", "narrower")}
    elsewhere, said = Elsewhere(), []
    with tx.Phone(wait=0.2, fallback=elsewhere, rounds=4, say=said.append) as phone:
        with pytest.warns(UserWarning, match=r"no phone opened http://127.* within 0\.2 s: .* by an emulator instead"):
            costs = phone.measure(given, "wide")
        assert list(costs) == ["wide", "narrow"]
        estimate = tx.Cost(7.0, "instructions", 1.5, 0.0, "an emulator", "no phone came: an emulator")
        assert costs["narrow"] == estimate
        assert phone.refusal(files["narrower"]) == "too odd"
        with warnings.catch_warnings():  # once, and without waiting again
            warnings.simplefilter("error")
            phone.wait = 100
            assert phone.measure(given, "wide")["wide"].estimate
        with ThreadPoolExecutor(2) as pool:  # a phone that comes later is used
            client = Client(phone.url)
            asked = pool.submit(client.ask)
            until(lambda: phone._page.desk.is_manned)
            costs = pool.submit(phone.measure, {"wide": files["wide"]}, "wide")
            asked.result(timeout=10)
            client.bring([RIGHT], [[1.0]] * 4)
            assert costs.result(timeout=10)["wide"].estimate == ""
    assert elsewhere.closed
    assert [line for line in said if line.startswith("Waiting for a phone to open")] == said[2:3]


@runtime
def test_a_search_that_is_interrupted_serves_no_longer(files, monkeypatch):
    def interrupt(self, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(Desk, "wait", interrupt)
    with tx.Phone(say=lambda _: None) as phone:
        phone.open()
        port = int(phone.url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(KeyboardInterrupt):
            phone.measure({"wide": files["wide"]}, "wide")
        assert not [path for path in phone._opened._server.resources if path.startswith("models/")]
    assert phone.url == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@runtime
def test_for_an_app_the_times_of_a_browser_are_an_estimate(files):
    own = dataclasses.replace(DEVICES["android"], name="mine")
    with searching({"wide": files["wide"]}, "wide") as (phone, url, costs):
        measure_for(own, "latency", phone)
        client = Client(url)
        client.ask()
        client.bring([RIGHT], [[1.0]] * 4)
        estimate = costs.result(timeout=10)["wide"].estimate
    assert estimate.startswith("timed in the phone's browser, in WebAssembly; the runtime of 'mine'")


@runtime
def test_closing_ends_what_is_being_measured(files):
    with searching({"wide": files["wide"]}, "wide") as (phone, url, costs):
        Client(url).ask()
        phone.close()
        with pytest.raises(ExportError, match=r"must be open while it measures\. Received: it was closed"):
            costs.result(timeout=10)


@runtime
def test_phones_of_the_network_need_the_token_and_get_a_qr_code():
    said = []
    with tx.Phone("0.0.0.0", say=said.append) as phone:
        assert measure_for(DEVICES["android"], "latency", phone) is phone
        with pytest.raises(ExportError, match=r"must measure what is minimised, 'size'\. Received: 'latency' of Phone"):
            measure_for(None, "size", phone)
        phone.open()
        token = phone.url.rstrip("/").rpartition("/")[2]
        assert len(token) > 20
        local = f"http://127.0.0.1:{phone.url.split(':')[2].split('/')[0]}/"
        assert b"phone.mjs" in Client(local + token + "/").get("")
        for act in (lambda: Client(local).get(""), Client(local).ask, lambda: Client(local + "x/").post("bye")):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                act()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            Client(local + token + "/").get("serve.mjs")
        connection = http.client.HTTPConnection(local.split("/")[2], timeout=10)
        connection.putrequest("POST", f"/{token}/result")
        connection.putheader("Content-Length", str(LARGEST_WORDS + 1))
        connection.endheaders()
        assert connection.getresponse().status == 411
        connection.close()
        assert said == [f"Open {phone.url} on the phone that is to measure.", qr_code(phone.url)]
        with pytest.raises(ExportError, match=r"address 127\.0\.0\.1:\d+: must be free"):
            tx.Phone(port=int(local.split(":")[2].strip("/"))).open()


def test_a_qr_code_is_drawn_two_rows_in_a_line():
    link = "http://192.168.1.20:8000/abcdefghijklmnopqrstuv/"
    lines = qr_code(link).strip("\n").split("\n")
    light = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}  # of a terminal's light letters on dark
    rows = [[light[sign][half] for sign in line] for line in lines for half in (0, 1)]
    matrix = [list(row) for row in segno.make(link, error="l", micro=False).matrix]
    border = 4
    drawn = [row[border:-border] for row in rows[border : border + len(matrix)]]
    assert [[1 - module for module in row] for row in drawn] == matrix


def test_what_is_missing_or_wrong_is_said_at_once(monkeypatch, tmp_path):
    with pytest.raises(ExportError, match=r"wait, rounds and silent must be positive\. Received: wait=10, rounds=0"):
        tx.Phone(wait=10, rounds=0)
    with pytest.raises(ExportError, match=r"Phone: fallback: must measure latency\. Received: size"):
        tx.Phone(fallback=measure_for(None, "size"))
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path))
    with pytest.raises(ExportError, match=r"Run: tflite-export install web"):
        tx.Phone()
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(ImportError, match=r"pip install \"keras-prune\[phone\]\""):
        tx.Phone()


# -- what a page may say -----------------------------------------------------------------------------------------------


def result(**changes):
    return {"rows": [RIGHT, RIGHT], "times": [[1.0, 2.0], [3, 4.5]], "hidden": True, **changes}


def test_a_right_result_is_read():
    figures = read_figures(result(), files=2, rounds=2)
    assert figures.samples.tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert figures.hidden
    assert [row.reason for row in figures.rows] == ["", ""]
    none = read_figures(result(rows=[WRONG, WRONG], times=[]), files=2, rounds=2)
    assert none.samples.shape == (0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": None},
        {"rows": []},
        {"rows": [RIGHT]},
        {"rows": [RIGHT] * 3},
        {"rows": {"0": RIGHT}},
        {"rows": [RIGHT, "right"]},
        {"rows": [FAILED, RIGHT]},
        {"rows": [RIGHT, FAILED]},  # timed beside one that failed
        {"rows": [RIGHT, {**RIGHT, "agrees": 1}]},
        {"rows": [RIGHT, {**RIGHT, "agrees": False}]},
        {"rows": [RIGHT, {**WRONG, "agrees": True}]},
        {"rows": [RIGHT, {**RIGHT, "max_difference": "0"}]},
        {"rows": [RIGHT, {**RIGHT, "said": "nothing"}]},
        {"rows": [RIGHT, {**RIGHT, "said": [7]}]},
        {"rows": [RIGHT, {**RIGHT, "said": ["x"] * 6}]},
        {"times": None},
        {"times": []},
        {"times": [[1.0, 2.0]]},
        {"times": [[1.0, 2.0]] * 3},
        {"times": [[1.0, 2.0], [1.0]]},
        {"times": [[1.0, 2.0], [1.0, 2.0, 3.0]]},
        {"times": [[1.0, 2.0], 3.0]},
        *({"times": [[1.0, 2.0], [1.0, bad]]} for bad in (0, -1.0, float("nan"), float("inf"), 1e300, True, "2", None)),
    ],
)
def test_a_result_that_cannot_be_one_is_refused(changes):
    with pytest.raises(WordsError):
        read_figures(result(**changes), files=2, rounds=2)


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"null", b'"aa"', b"{}", b'{"page": 7.5}', b'{"page": "../x"}', b"[" * 100_000]
)
def test_a_request_that_no_page_of_ours_sends_is_refused(body):
    with pytest.raises(WordsError):
        read_words(body)


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (AGENT, "Chrome 140.0.0.0 (Linux; Android 10; K)"),
        ("Mozilla/5.0 (Android 14; Mobile; rv:130.0) Gecko/130.0 Firefox/130.0", None),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605 Version/17.5 Safari/604.1", None),
        ("Mozilla/5.0 (Linux; Android 14) AppleWebKit/537 Chrome/120.0 Mobile Safari/537 EdgA/120.1", None),
        ("curl/8", "curl/8"),
        ("", "an unnamed browser"),
    ],
)
def test_a_browser_is_named(agent, name):
    wanted = {"rv": "Firefox 130.0", "iP": "Safari 17.5", "Ed": "Edge 120.1"}
    found = browser_name(agent)
    assert found == name if name else any(found.startswith(start) for key, start in wanted.items() if key in agent)


# -- the desk ----------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def desk():
    clock = Clock()
    made = Desk(silent=10, poll=0, clock=clock)
    made.clock = clock
    return made


def lay_out(desk, number=1, seconds=100.0):
    desk.post(Job(number, b"frame", files=3, rounds=2, seconds=seconds))


def test_a_page_that_slept_keeps_its_job_unless_another_has_come(desk):
    lay_out(desk)
    assert desk.ask("a", "x").frame == b"frame"
    desk.step("a", 1, 2)
    desk.clock.now = 500.0  # no beat: the phone was locked
    assert not desk.is_manned
    assert desk.wait(0) is None
    desk.hear("a")
    assert desk.wait(0) is None
    assert desk.bring("a", 1, lambda job: Figures((), np.empty((0, 0)), False)) == ""
    assert isinstance(desk.wait(0), Figures)


def test_a_page_that_is_caught_in_a_file_loses_it(desk):
    lay_out(desk)
    desk.ask("a", "x")
    desk.step("a", 1, 1)
    desk.step("b", 1, 0)  # of another page
    desk.step("a", 7, 0)  # of another job
    for now in range(0, 100, 9):
        desk.clock.now = float(now)
        desk.hear("a")
        assert desk.wait(0) is None
    desk.clock.now = 101.0
    desk.hear("a")
    assert desk.wait(0) == Lost(1, "no step further within 100 s")
    assert desk.bring("a", 1, lambda job: None) == "nobody waits for it any more"


def test_a_place_that_does_not_exist_is_none(desk):
    lay_out(desk)
    desk.ask("a", "x")
    desk.step("a", 1, 3)
    desk.clock.now = 20.0
    assert desk.ask("b", "x") is None
    assert desk.wait(0) == Lost(None, "the page ended in it")


def test_a_page_whose_network_fails_gets_its_job_again_but_not_for_ever(desk):
    lay_out(desk)
    desk.ask("a", "x")
    for _ in range(MOST_RETURNS):
        assert desk.ask("a", "x").number == 1
        assert desk.wait(0) is None
    assert desk.ask("a", "x") is None
    assert desk.wait(0).reason.startswith("the page brought no result")


def test_one_page_measures_and_the_next_waits(desk):
    assert desk.ask("a", "x") is None
    assert desk.ask("b", "x").startswith("Another phone is measuring")
    desk.leave("b")
    assert desk.is_manned
    desk.leave("a")
    assert not desk.is_manned
    lay_out(desk)
    assert desk.ask("b", "y").page == "b"
    assert desk.browser == "y"
    desk.end(0)
    assert (desk.ask("a", "x"), desk.ask("b", "x")) == ("", "")


# -- a real browser ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def browsing(link, profile, width=360):
    """A Chromium that has opened a link, killed at the end."""
    browser = Browser(profile, width)
    try:
        browser.ask("Page.navigate", url=link)
        yield browser
    finally:
        browser.close()


@chromium
def test_a_browser_that_is_killed_in_the_middle_and_opened_again_measures_all(tmp_path):
    given = {"wide": image_net(256), "broken": image_net(16, broken=True), "narrow": image_net(16)}
    with searching(given, "wide", silent=3.0) as (phone, url, costs):
        phone.rounds = 20_000
        desk, places = phone._opened.desk, []
        step = desk.step
        desk.step = lambda page, number, place: (places.append(place), step(page, number, place))
        with browsing(url, tmp_path / "killed"):
            until(lambda: 2 in places and places[-1] is None)  # all are checked, and are being timed
        assert not costs.done()
        phone.rounds = 20
        with browsing(url, tmp_path / "again") as browser:
            found = costs.result(timeout=60)
            phone.close()
            browser.wait("document.getElementById('status').textContent.startsWith('The search is over.')")
            assert browser.run("document.getElementById('count').textContent") == "3 files."
            assert browser.run("document.documentElement.scrollWidth") <= 360
            assert browser.run("document.querySelectorAll('[aria-live=polite]').length") == 1
            asked = [
                e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
            ]
            assert all(address.startswith(url) for address in asked if not address.startswith("data:"))
            assert not [e for e in browser.events if "Content Security Policy" in json.dumps(e)]
            assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
        assert list(found) == ["wide", "narrow"]
        assert found["narrow"].ratio > 2
        assert found["narrow"].on.startswith("LiteRT.js 2.5.3 in Chrome ")
        assert "its outputs differ by" in phone.refusal(given["broken"])
        assert "Failed to allocate tensors" in phone.refusal(given["broken"])
    assert any(line.startswith("Measuring in Chrome ") for line in phone.said)
