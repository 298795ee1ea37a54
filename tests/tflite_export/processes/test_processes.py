"""Frames, and the child processes that exchange them."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tflite_export.processes import frames
from tflite_export.processes.child_process import ChildEndedError, ChildProcess


@given(
    header=st.dictionaries(st.text(max_size=5), st.integers(), max_size=4),
    blobs=st.lists(st.binary(max_size=20), max_size=4),
)
def test_a_frame_comes_back_and_a_part_of_it_is_an_error(header, blobs):
    header.pop("sizes", None)
    whole = frames.pack(header, blobs)
    assert frames.unpack(whole) == ({**header, "sizes": [len(blob) for blob in blobs]}, blobs)
    stream = io.BytesIO(whole + whole)
    assert frames.read_frame(stream.read) == frames.read_frame(stream.read)
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        with pytest.raises(EOFError):
            frames.unpack(whole[:length])


def test_a_stray_print_is_no_frame():
    with pytest.raises(ValueError, match="a frame's header takes at most"):
        frames.unpack(b"INFO: Created a delegate.")


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(["<f4", "|i1", "|u1", "<i8", "|b1"]),
    seed=st.integers(0, 2**16),
)
def test_arrays_come_back_with_type_and_shape(shape, dtype, seed):
    array = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    (again,) = frames.as_arrays(*frames.as_blobs([array]))
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(again, array)


ANSWERS = """
import json, struct, sys, time
while head := sys.stdin.buffer.read(4):
    header = json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
    exec(header["do"])
    text = json.dumps({"sizes": []}).encode()
    sys.stdout.buffer.write(struct.pack("<I", len(text)) + text)
    sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("act", "how"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import os; os.close(1); time.sleep(0.3); sys.exit(3)", "exit code 3"),
        ("time.sleep(60)", r"no answer within 0\.5 s"),
        ("print('a stray print')", "SIGKILL"),
    ],
)
def test_a_child_that_does_not_answer_is_ended_and_it_is_said_how(act, how):
    with ChildProcess([sys.executable, "-c", ANSWERS], log=True) as child:
        child.ask({"do": "print('to the log', file=sys.stderr, flush=True)"}, seconds=60)
        with pytest.raises(ChildEndedError, match=f"^{how}$"):
            child.ask({"do": act}, seconds=0.5 if "sleep" in act else 60)
        assert not child.is_running
        assert child.printed() == "to the log\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds such limits")
@pytest.mark.parametrize("reserves", [False, True])
def test_memory_is_limited_in_addresses_or_in_pages_that_can_be_written(reserves):
    """Half a gigabyte that is reserved and cannot be written counts as addresses only."""
    reserve = "import mmap; kept = mmap.mmap(-1, 2**29, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)"
    with ChildProcess([sys.executable, "-c", ANSWERS], log=True) as child:
        child.ask({"do": "pass"}, seconds=60)
        child.limit_memory(2**28, reserves=reserves)
        if reserves:
            child.ask({"do": reserve}, seconds=60)
        else:
            with pytest.raises(ChildEndedError, match="exit code 1"):
                child.ask({"do": reserve}, seconds=60)
            assert "Cannot allocate memory" in child.printed()
            return
        with pytest.raises(ChildEndedError, match="exit code 1"):
            child.ask({"do": "bytearray(2**29)"}, seconds=60)
        assert "MemoryError" in child.printed()
