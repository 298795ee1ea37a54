"""Files that declare more than they hold, or more than is allowed, are refused before anything is allocated for it."""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

from tflite_export import ExportError, check_golden, read_golden
from tflite_export.file import reading
from tflite_export.file.reading import read_arrays
from tflite_export.source.loading import open_source
from tflite_export.verification.golden import Golden, write_golden


@pytest.fixture(autouse=True)
def memory():
    """Nothing here takes more than 64 MB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


def npy_of(shape, payload, dtype="<f4"):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue() + payload


def zipped(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def zeros(path, name, megabytes):
    """An archive of a file of zeros, a thousandth of its size, written without ever holding it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open(name, "w") as entry:
            for _ in range(megabytes):
                entry.write(bytes(2**20))
    return path


def test_arrays_read_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.ones((2, 2), "i4")), "c": np.zeros((0, 4))}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = read_arrays(tmp_path / "x.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    np.save(tmp_path / "x.npy", arrays["b"])
    np.testing.assert_array_equal(read_arrays(tmp_path / "x.npy"), arrays["b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_of((10**12,), b"1234"), "which takes 4000000000000 bytes, where 4 are"),
        (npy_of((10**30, 10**30), b""), "where 0 are"),
        (npy_of((-1,), b"1234"), "where 4 are"),
        (npy_of((1,), b"1234567"), "which takes 4 bytes, where 7 are"),
        (npy_of((1,), b"12345678", "|O"), "Python objects, which are not loaded"),
        (b"\x93NUMPY\x03\x00" + bytes(80), "the format's version"),
        (b"\x93NUMPY\x01\x00\xff\xff", "ValueError"),
        (b"", "ValueError"),
        (b"text", "ValueError"),
    ],
)
def test_an_array_is_as_large_as_it_says(tmp_path, content, message):
    (tmp_path / "x.npy").write_bytes(content)
    zipped(tmp_path / "x.npz", {"x.npy": content})
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ExportError, match=f"must be a .npy or .npz of numbers. Received: .*{message}"):
            read_arrays(tmp_path / name)


def test_archives_that_unpack_to_far_more_are_refused(tmp_path, monkeypatch):
    zeros(tmp_path / "x.npz", "x.npy", 80)
    with pytest.raises(ExportError, match=r"bytes unpacked of .* packed ones, more than 100 times as many"):
        read_arrays(tmp_path / "x.npz")
    os.rename(tmp_path / "x.npz", tmp_path / "m.keras")
    with pytest.raises(ExportError, match=r"m\.keras': must be a whole \.keras file.*more than 100 times as many"):
        open_source(tmp_path / "m.keras")
    monkeypatch.setattr(reading, "LARGEST_DATA", 100)
    np.savez(tmp_path / "y.npz", y=np.ones(100))
    with pytest.raises(ExportError, match="must be a file of at most 100 bytes"):
        read_arrays(tmp_path / "y.npz")
    monkeypatch.setattr(reading, "LARGEST_DATA", 1000)
    np.savez_compressed(tmp_path / "y.npz", y=np.ones(1000))
    with pytest.raises(ExportError, match="8128 bytes once it is unpacked, where 1000 are allowed"):
        read_arrays(tmp_path / "y.npz")


@pytest.mark.parametrize("kind", ["keras", "npz"])
def test_a_damaged_archive_is_one_clear_error(tmp_path, kind):
    """Bytes turned and cut anywhere: an error of ours or an answer, and nothing of zipfile's or of zlib's."""
    entries = {"config.json": b"{}", "metadata.json": b"{}", "x.npy": npy_of((64,), bytes(256))}
    path = zipped(tmp_path / f"x.{kind}", entries if kind == "keras" else {"x.npy": entries["x.npy"]})
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(150):
        damaged = bytearray(content if number % 3 else content[: rng.integers(1, len(content))])
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_arrays(path) if kind == "npz" else reading.check_keras_archive(path)
        except ExportError as error:
            refused += 1
            assert error.rule.startswith("must be a ")  # noqa: PT017
    assert refused > 50


@pytest.mark.parametrize(
    ("way", "received"),
    [
        ("external", r"'a/b' is a link \(ExternalLink\)\. Only data that the file itself contains are read"),
        ("soft", r"'a/b' is a link \(SoftLink\)\. Only"),
        ("outside", r"'a/b' refers to data outside of itself\. Only"),
        ("virtual", r"'a/b' refers to data outside of itself\. Only"),
        ("bomb", r"it declares 4000000000 bytes of data, and has a size of \d{3,4}\b"),
    ],
)
def test_an_h5_file_leads_to_no_other_file_and_declares_no_more_than_it_holds(tmp_path, way, received):
    (tmp_path / "secret").write_text("user:secret" * 10)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones(3)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        if way == "external":
            file["a/b"] = h5py.ExternalLink("other.h5", "/x")
        if way == "soft":
            file["a/b"] = h5py.SoftLink("/x")
        if way == "outside":
            file.create_dataset("a/b", (64,), "uint8", external=[(str(tmp_path / "secret"), 0, 64)])
        if way == "virtual":
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", (3,))
            file.create_virtual_dataset("a/b", layout)
        if way == "bomb":
            file.create_dataset("a/b", (10**9,), "f4", chunks=(10**6,), compression="gzip")
    with pytest.raises(ExportError, match=rf"m\.h5': must load in safe mode\. Received: .*{received}"):
        open_source(tmp_path / "m.h5")


# -- golden files ------------------------------------------------------------------------------------------------------


def golden_of(header, payload=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(shape=(1, 1), offsets=(0, 4)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("bound", ["nan", "inf", "-inf", "-1e-3", "1e999"])
def test_a_bound_that_lets_all_or_nothing_pass_is_refused(tmp_path, bound):
    metadata = {"format": "keras-prune golden 1", "samples": "1", "bound:y": bound}
    header = {"__metadata__": metadata, "input:x": entry(), "output:y": entry()}
    (tmp_path / "g").write_bytes(golden_of(header, bytes(4)))
    with pytest.raises(
        ExportError, match=r"must be a golden file .*the bound of output 'y': must be a finite number, at least 0"
    ):
        read_golden(tmp_path / "g")
    x = np.ones((1, 1), np.float32)
    with pytest.raises(ExportError, match="the bound of output 'y': must be a finite number, at least 0"):
        check_golden(Golden({"x": x}, {"y": x}, {"y": float(bound)}), {"y": x * 2})


@pytest.mark.parametrize(
    "wrong",
    [
        entry(shape=(10**12, 1)),
        entry(shape=(10**30, 1)),
        entry(offsets=(0, 10**30)),
        entry(offsets=(-8, -4)),
        entry(shape=("a",)),
        {**entry(), "dtype": "F999"},
        [],
    ],
)
def test_an_array_of_a_golden_file_lies_inside_it(tmp_path, wrong):
    metadata = {"format": "keras-prune golden 1", "samples": "1", "bound:y": "0.1"}
    header = {"__metadata__": metadata, "input:x": entry(), "output:y": wrong}
    (tmp_path / "g").write_bytes(golden_of(header, bytes(4)))
    with pytest.raises(ExportError, match="must be a golden file"):
        read_golden(tmp_path / "g")


def test_many_arrays_are_views_of_one_content(tmp_path):
    """A copy of the content for each of 100,000 arrays took a minute."""
    count, payload = 1000, bytes(2**20)
    metadata = {"format": "keras-prune golden 1", "samples": "1", **{f"bound:{i}": "0" for i in range(count)}}
    outputs = {f"output:{i}": entry((1, 2**18), (0, 2**20)) for i in range(count)}
    (tmp_path / "g").write_bytes(golden_of({"__metadata__": metadata, "input:x": entry(), **outputs}, payload))
    found = read_golden(tmp_path / "g").outputs
    assert len(found) == count
    assert all(np.shares_memory(found["0"], values) for values in found.values())


def test_a_golden_file_that_never_ends_is_refused(tmp_path):
    with pytest.raises(ExportError, match="no regular file"):
        read_golden("/dev/zero")
    write_golden(tmp_path / "g", Golden({"x": np.ones((2, 3))}, {"y": np.zeros((2, 1))}, {"y": 1e-4}))
    assert read_golden(tmp_path / "g").bounds == {"y": 1e-4}
