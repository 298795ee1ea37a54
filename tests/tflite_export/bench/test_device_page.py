"""The device page: what its server hands out and refuses, and the page in a real browser at two widths."""

import base64
import contextlib
import http.client
import json
import socket
import time

import keras
import numpy as np
import pytest
from keras import layers

from tests.tflite_export.browser import Browser
from tests.tflite_export.installed import missing
from tflite_export import ExportError, export
from tflite_export.bench.device_page import make_server, serve
from tflite_export.processes import frames
from tflite_export.runtimes import litertjs
from tflite_export.verification.golden import Golden, write_golden
from tflite_export.web.chromium import find_chromium
from tflite_export.web.server import GuardedServer, Resource

WITHOUT_RUNTIME = missing(litertjs.find_web_runtime)
WITHOUT_CHROMIUM = missing(litertjs.find_web_runtime, find_chromium)
runtime = pytest.mark.skipif(bool(WITHOUT_RUNTIME), reason=WITHOUT_RUNTIME)
chromium = pytest.mark.skipif(bool(WITHOUT_CHROMIUM), reason=WITHOUT_CHROMIUM)


@contextlib.contextmanager
def running(server):
    server.start()
    try:
        yield server
    finally:
        server.stop()


def ask(server, target, method="GET", body=None, host=None, headers=()):
    """Return status, headers and body of a request, its target sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.putrequest(method, target, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
        for name, value in headers:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded():
    resources = {
        "": Resource(b"<p>page</p>", "html"),
        "a.mjs": Resource(b"1", "mjs"),
        "models/0": Resource(b"TFL3", "bin"),
        "x.wasm": Resource(b"\0asm", "wasm"),
    }
    with running(GuardedServer(resources, {"echo": lambda body: body, "later": lambda _: None})) as server:
        yield server


@pytest.fixture(scope="module")
def open_to_all():
    with running(GuardedServer({"": Resource(b"page", "html")}, host="0.0.0.0", token="s3cret")) as server:
        yield server


def test_resources_come_with_their_type_and_the_policy(guarded):
    for target, kind in (("/", "text/html; charset=utf-8"), ("/a.mjs", "text/javascript; charset=utf-8")):
        status, headers, _ = ask(guarded, target)
        assert (status, headers["Content-Type"]) == (200, kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe-inline" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Server"] == "tflite-export"
    assert ask(guarded, "/x.wasm")[1]["Content-Type"] == "application/wasm"
    assert ask(guarded, "/?a=b")[2] == b"<p>page</p>"
    status, headers, body = ask(guarded, "/models/0", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "4", b"")


@pytest.mark.parametrize(
    "target",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/models/../../setup.cfg",
        "//etc/passwd",
        "/etc/passwd",
        "/file:///etc/passwd",
        "/models/",
        "/models",
        "/models/1",
        "/models/0/",
        "/a.mjs%00.html",
        "/\\..\\..\\setup.cfg",
        "/serve.py",
    ],
)
def test_nothing_else_on_the_disk_can_be_had(guarded, target):
    status, _, body = ask(guarded, target)
    assert (status, body) == (404, b"nothing here\n")


@pytest.mark.parametrize("target", ["etc/passwd", "*", "http://other/", "../"])
def test_a_target_that_is_no_path_is_refused(guarded, target):
    status, _, body = ask(guarded, target)
    assert status in (403, 200)
    assert body in (b"the address lacks its token\n", b"<p>page</p>")  # http://other/ names the root


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST"])
def test_other_methods_are_refused(guarded, method):
    status, headers, _ = ask(guarded, "/models/0", method, b"x")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert ask(guarded, "/nothing", method, b"x")[0] == 404


def test_handlers_answer_posts_only(guarded):
    assert ask(guarded, "/echo", "POST", b"\0\1\2")[::2] == (200, b"\0\1\2")
    assert ask(guarded, "/later", "POST", b"")[::2] == (204, b"")
    status, headers, _ = ask(guarded, "/echo")
    assert (status, headers["Allow"]) == (405, "POST")
    for length in ("-1", "x", str(2**40)):
        assert ask(guarded, "/echo", "POST", headers=[("Content-Length", length)])[0] == 411


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", ""])
def test_another_name_is_refused_on_loopback(guarded, host):
    status, _, body = ask(guarded, "/", host=host)
    assert (status, body) == (403, b"this name is not served\n")


def test_the_names_of_loopback_are_served(guarded):
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert ask(guarded, "/", host=f"{name}:{guarded.server_port}")[0] == 200


def test_without_the_token_nothing_is_served(open_to_all):
    assert open_to_all.url("10.0.0.7") == f"http://10.0.0.7:{open_to_all.server_port}/s3cret/"
    assert ask(open_to_all, "/s3cret/", host="phone.local:1")[::2] == (200, b"page")
    for target in ("/", "/s3cre/", "/s3cretx/", "/S3CRET/", "/x/../s3cret/", "/?s3cret", "/s%33cret/"):
        for method in ("GET", "HEAD", "POST", "PUT"):
            status, _, body = ask(open_to_all, target, method, b"" if method == "POST" else None)
            assert status == 403
            assert body == (b"" if method == "HEAD" else b"the address lacks its token\n")
    assert ask(open_to_all, "/s3cret")[0] == 200  # the page; what it loads would lack the token
    assert ask(open_to_all, "/s3cret/none")[0] == 404


def raw(server, request):
    """Return what the server sends for these bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"\r\n", 400),
        (b" \r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03\r\n", 400),
        (b"GET / HTTP/x.y\r\n\r\n", 400),
        (b"GET / HTTP/1.1 and more\r\n\r\n", 400),
        (b"POST /\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"\x1b[2J / HTTP/1.1\r\n\r\n", 501),
        (b"GET / HTTP/0.9\r\n\r\n", 403),  # a host is asked for
    ],
)
def test_a_request_that_is_none_gets_an_answer(guarded, request_line, status):
    answer = raw(guarded, request_line)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Security-Policy: " in head
    assert b"<" not in body
    assert b"\x1b" not in answer


def test_a_length_of_five_thousand_digits_is_refused(guarded):
    assert ask(guarded, "/echo", "POST", headers=[("Content-Length", "9" * 5000)])[0] == 411


def test_two_hundred_clients_are_answered_at_once_and_slow_ones_keep_nobody_waiting(guarded):
    address = ("127.0.0.1", guarded.server_port)
    get = f"GET /models/0 HTTP/1.1\r\nHost: 127.0.0.1:{guarded.server_port}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(50)]
        for client in slow:
            client.sendall(get[:30])
        clients = [stack.enter_context(socket.socket()) for _ in range(200)]
        for client in clients:
            client.settimeout(10)
            client.connect(address)
        for client in clients:
            client.sendall(get)
        for client in [*clients, *slow]:
            if client in slow:
                client.sendall(get[30:])
            answer = b""
            while not answer.endswith(b"TFL3"):
                answer += client.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200 ")


def test_an_answer_over_a_kept_connection_takes_no_acknowledgement(guarded):
    """Head and body in two packets cost 40 ms each time: the other side's delayed acknowledgement."""
    connection = http.client.HTTPConnection("127.0.0.1", guarded.server_port, timeout=10)
    took = []
    for _ in range(21):
        start = time.perf_counter()
        connection.request("GET", "/models/0", headers={"Host": f"127.0.0.1:{guarded.server_port}"})
        assert connection.getresponse().read() == b"TFL3"
        took.append(time.perf_counter() - start)
    connection.close()
    assert sorted(took)[10] < 0.02


def test_the_network_needs_a_token():
    with pytest.raises(ValueError, match=r"needs a token\. Received: host '0\.0\.0\.0', no token"):
        GuardedServer({}, host="0.0.0.0")


# -- what is served ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory, zero_out):
    """Two right files, and one that answers otherwise: other weights."""
    folder = tmp_path_factory.mktemp("served")
    data = np.random.default_rng(0).normal(size=(2, 16)).astype("float32")
    for name, seed in (("first.tflite", 1), ("second.tflite", 1), ("other.tflite", 2)):
        keras.utils.set_random_seed(seed)
        model = zero_out(keras.Sequential([keras.Input((16,), name="x"), layers.Dense(64), layers.Dense(8)]), seed=seed)
        export(model, folder / name, data=data)
        if name == "first.tflite":
            outputs = {"output_0": np.asarray(model(data))}
            write_golden(folder / "golden.safetensors", Golden({"x": data}, outputs, {"output_0": 1e-3}))
    return folder


@runtime
def test_the_page_gets_the_named_files_and_what_they_must_answer(files):
    with running(make_server([files / "first.tflite", files / "other.tflite", files / "first.tflite"])) as server:
        assert server.url() == f"http://127.0.0.1:{server.server_port}/"
        for target in ("", "serve.css", "serve.mjs", "engine.mjs", "icon.svg", "litertjs/core.mjs"):
            assert ask(server, f"/{target}")[0] == 200
        for target in ("first.tflite", "golden.safetensors", "package.json", "node_host.mjs", "models/3"):
            assert ask(server, f"/{target}")[0] == 404
        job, blobs = frames.unpack(ask(server, "/job.bin")[2])
        assert [file["name"] for file in job["files"]] == ["first.tflite", "other.tflite", "first.tflite (2)"]
        assert str(files) not in json.dumps(job)
        assert job["golden"].startswith("LiteRT ")
        for place, file in enumerate(job["files"]):
            content = ask(server, f"/models/{place}")[2]
            assert len(content) == file["bytes"]
            (output,) = file["outputs"]
            (sample,) = file["samples"]
            values = np.frombuffer(blobs[sample["outputs"][0]], dtype="float32")
            assert output["scale"] == pytest.approx(np.abs(values).max())
            assert output["bound"] == pytest.approx(0.02 * output["scale"])


@runtime
def test_a_golden_file_is_what_all_must_answer(files):
    server = make_server([files / "first.tflite"], golden=files / "golden.safetensors")
    try:
        job, blobs = frames.unpack(server.resources["job.bin"].content)
    finally:
        server.server_close()
    assert job["golden"] == "the golden file"
    assert job["files"][0]["outputs"][0]["bound"] == 1e-3
    assert len(job["files"][0]["samples"]) == 2
    feeds = [np.frombuffer(blobs[sample["feeds"][0]], dtype="float32") for sample in job["files"][0]["samples"]]
    assert np.array_equal(np.stack(feeds), np.random.default_rng(0).normal(size=(2, 16)).astype("float32"))
    with pytest.raises(ExportError, match=r"must have the names of the golden file, \['y', 'z'\].* Received: \['x'"):
        make_server([files / "first.tflite"], golden=Golden({"y": feeds[0]}, {"z": feeds[0]}, {"z": 0.0}))


@runtime
def test_a_host_of_the_network_gets_a_token_of_its_own(files):
    servers = [make_server([files / "first.tflite"], host="0.0.0.0") for _ in range(2)]
    try:
        assert len(servers[0].token) >= 20
        assert servers[0].token != servers[1].token
        with pytest.raises(ExportError, match=r"address 0\.0\.0\.0:\d+: must be free"):
            make_server([files / "first.tflite"], host="0.0.0.0", port=servers[0].server_port)
    finally:
        for server in servers:
            server.server_close()


def test_what_cannot_be_served_is_refused(files, tmp_path, monkeypatch):
    if not WITHOUT_RUNTIME:
        with pytest.raises(ExportError, match="serve: needs a file"):
            serve([])
        with pytest.raises(ExportError, match="must be a readable file"):
            serve([tmp_path / "none.tflite"])
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path))
    with pytest.raises(ExportError, match=r"Run: tflite-export install web"):
        serve([files / "first.tflite"])


# -- the page, in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(params=[360, 1280])
def browser(request, tmp_path):
    opened = Browser(tmp_path / "profile", request.param)
    opened.width = request.param
    yield opened
    opened.close()


READY = "document.readyState === 'complete' && !document.getElementById('measure')?.disabled"
DONE = "/^(Done|Not)/.test(document.getElementById('status').textContent)"


@chromium
def test_the_page_measures_by_keyboard_and_fits(browser, files):
    with running(make_server([files / "first.tflite", files / "second.tflite"])) as server:
        browser.ask("Page.navigate", url=server.url())
        browser.wait(READY)
        browser.run("document.getElementById('rounds').value = '20'")
        browser.tab_to("rounds")
        browser.tab_to("measure")
        browser.press("Enter", 13, "\r")
        browser.wait(DONE)
        assert browser.run("document.getElementById('status').textContent") == "Done; all outputs agree."
        assert browser.run("document.activeElement.id") == "measure"  # the focus is where it was

        result = json.loads(browser.run("document.getElementById('json').value"))
        assert [file["name"] for file in result["files"]] == ["first.tflite", "second.tflite"]
        assert result["files"][0]["ratio"] == 1.0
        assert all(file["agrees"] and file["median_ms"] > 0 for file in result["files"])
        assert (result["rounds"], result["threads"], result["runtime"]) == (20, 1, "LiteRT.js 2.5.3")
        assert "Chrome" in result["device"]["user_agent"]
        assert result["device"]["simd"] in ("relaxed", "plain")

        browser.tab_to("copy")
        browser.press("Enter", 13, "\r")
        browser.wait("document.getElementById('copied').textContent === 'Copied.'")

        assert browser.run("document.documentElement.scrollWidth") <= browser.width
        assert browser.run("[...document.querySelectorAll('button, select')].every(e => e.offsetHeight >= 44)")
        unlabelled = (
            "[...document.querySelectorAll('button, select, textarea, progress')].filter(e => !e.textContent.trim()"
        )
        assert browser.run(f"{unlabelled} && !e.labels?.length).length") == 0
        assert browser.run("document.querySelectorAll('[aria-live=polite]').length") == 2

        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert len(asked) > 8
        assert all(url.startswith(server.url()) for url in asked if not url.startswith("data:"))
        refused = [e for e in browser.events if "Content Security Policy" in json.dumps(e)]
        assert not refused
        assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


@chromium
def test_the_page_works_over_a_token_and_says_what_answers_wrongly(browser, files):
    paths = [files / "first.tflite", files / "other.tflite"]
    with running(make_server(paths, host="0.0.0.0", golden=files / "golden.safetensors")) as server:
        browser.ask("Page.navigate", url=server.url("127.0.0.1"))
        browser.wait(READY)
        browser.run("document.getElementById('rounds').value = '20'; document.getElementById('measure').click()")
        browser.wait(DONE)
        assert browser.run("document.getElementById('status').textContent").startswith("Done; 1 of 2 files answered")
        result = json.loads(browser.run("document.getElementById('json').value"))
        right, wrong = result["files"]
        assert (right["agrees"], wrong["agrees"]) == (True, False)
        assert "median_ms" not in wrong
        assert wrong["max_difference"] > 0.02
        assert "outputs differ by" in browser.run("document.querySelector('[data-file=\"other.tflite\"]').innerText")
        # Over http from another machine a page has no clipboard, and copies by selection.
        browser.run("void Object.defineProperty(window, 'isSecureContext', {value: false})")
        browser.run("document.getElementById('copy').click()")
        browser.wait("document.getElementById('copied').textContent === 'Copied.'")
        assert browser.run("document.getElementById('json').closest('details').open")
        picture = base64.b64decode(browser.ask("Page.captureScreenshot")["data"])
        assert picture.startswith(b"\x89PNG")
