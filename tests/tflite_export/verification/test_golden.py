import json
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tflite_export import ExportError
from tflite_export.model.inputs import Inputs
from tflite_export.model.reference import Reference
from tflite_export.verification import golden
from tflite_export.verification.golden import Golden, check_golden, golden_of, read_golden, write_golden, write_golden_c

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
IDS = np.array([[1], [2], [3]], dtype=np.int32)
Y = X @ np.array([[2.0, 0], [0, 0], [0, 1], [1, 1]], dtype=np.float32)
PLACE = np.arange(6).reshape(3, 2)
LABEL = np.array([0, 1, 1], dtype=np.int64)


@pytest.fixture
def two():
    reference = Reference(Inputs((X, IDS), drawn=False), (Y, LABEL), ("x", "ids"), ("scores", "label"))
    return golden_of(reference, tolerance=1e-3)


def same(first, second):
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert values.dtype == second[name].dtype
        np.testing.assert_array_equal(values, second[name])


def test_a_golden_file_reads_back_equal(tmp_path, two):
    write_golden(tmp_path / "g.safetensors", two)
    found = read_golden(tmp_path / "g.safetensors")
    same(found.inputs, {"x": X, "ids": IDS})
    same(found.outputs, {"scores": Y, "label": LABEL})
    assert found.bounds == {"scores": pytest.approx(1e-3 * np.abs(Y).max(), rel=1e-12), "label": 0.0}
    assert len(found) == 3
    first = (tmp_path / "g.safetensors").read_bytes()
    write_golden(tmp_path / "g.safetensors", two)
    assert (tmp_path / "g.safetensors").read_bytes() == first


def test_the_file_is_literally_this(tmp_path):
    x = np.array([[1.0]], dtype=np.float32)
    write_golden(tmp_path / "g", Golden({"x": x}, {"y": np.array([[-2]], dtype=np.int8)}, {"y": 0.0}))
    header = (
        b'{"__metadata__":{"format":"keras-prune golden 1","samples":"1","bound:y":"0.0"},'
        b'"input:x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"output:y":{"dtype":"I8","shape":[1,1],"data_offsets":[4,5]}}'
    )
    padded = header + b" " * (-len(header) % 8)
    expected = len(padded).to_bytes(8, "little") + padded + b"\x00\x00\x80\x3f" + b"\xfe"
    assert (tmp_path / "g").read_bytes() == expected


@given(st.lists(st.sampled_from(sorted(golden._CODES)), min_size=1, max_size=5), st.integers(1, 4))
def test_every_array_starts_at_a_multiple_of_its_element(tmp_path_factory, types, samples):
    path = tmp_path_factory.mktemp("golden") / "g"
    rng = np.random.default_rng(samples)
    arrays = {f"n{i}": rng.integers(0, 2, (samples, i + 1)).astype(name) for i, name in enumerate(types)}
    write_golden(path, Golden(arrays, arrays, dict.fromkeys(arrays, 0.5)))
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name, entry in header.items():
        if name != "__metadata__":
            offset = start + entry["data_offsets"][0]
            values = arrays[name.split(":")[1]]
            assert offset % values.dtype.itemsize == 0
            np.testing.assert_array_equal(np.frombuffer(content, values.dtype, values.size, offset), values.ravel())
    same(read_golden(path).inputs, arrays)


def test_answers_within_the_bound_pass_and_the_figures_are_returned(two):
    errors = check_golden(two, {"scores": Y + 0.0005, "label": LABEL})
    assert [error.name for error in errors] == ["scores", "label"]
    assert errors[0].max_absolute == pytest.approx(0.0005, rel=1e-3)
    assert errors[0].max_relative == pytest.approx(0.0005 / np.abs(Y).max(), rel=1e-3)
    assert errors[1].max_absolute == 0
    check_golden(two, {"scores": Y[:1], "label": LABEL[:1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.where(PLACE == 5, Y + 0.1, Y)}, r"within 0\.00245 of the model's\. Received: 0\.1 at \(2, 1\)"),
        ({"scores": np.where(PLACE == 2, np.nan, Y)}, r"output 'scores' of the phone: .* Received: inf at \(1, 0\)"),
        ({"label": LABEL[::-1]}, r"output 'label' of the phone: must be within 0 of the model's\. Received: 1 at"),
        ({"scores": Y.T}, r"must have the shape \(3, 2\), or fewer samples\. Received: \(2, 3\)"),
        ({"scores": Y[:0]}, r"Received: \(0, 2\)"),
    ],
)
def test_answers_that_are_off_are_refused(two, change, message):
    with pytest.raises(ExportError, match=message):
        check_golden(two, {"scores": Y, "label": LABEL} | change, "the phone")


def test_a_missing_output_is_refused(two):
    message = r"output 'label' of the device: must be among the outputs given\. Received: \['scores'\]"
    with pytest.raises(ExportError, match=message):
        check_golden(two, {"scores": Y})


def test_an_infinite_answer_is_right_where_the_model_is_infinite():
    wanted = np.array([[np.inf, 1.0]], dtype=np.float32)
    found = golden_of(Reference(Inputs((wanted,), False), (wanted,), ("x",), ("y",)), 0.1)
    assert found.bounds["y"] == pytest.approx(0.1)
    assert check_golden(found, {"y": wanted})[0].max_absolute == 0
    with pytest.raises(ExportError, match="Received: inf"):
        check_golden(found, {"y": -wanted})


def test_damage_is_an_error_and_nothing_else(tmp_path, two):
    path = tmp_path / "g"
    write_golden(path, two)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    start = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for round_number in range(400):
        mutated = bytearray(content if round_number % 2 else content[: rng.integers(0, len(content))])
        for place in rng.integers(0, max(1, min(start, len(mutated))), 3):
            if mutated:
                mutated[place] = rng.integers(0, 256)
        path.write_bytes(mutated)
        try:
            read_golden(path)
        except ExportError:
            refused += 1
    assert refused > 300
    with pytest.raises(ExportError, match="must be a readable file"):
        read_golden(tmp_path / "none")


def test_the_path_keeps_what_it_held_where_the_type_has_no_name(tmp_path):
    (tmp_path / "g").write_text("before")
    with pytest.raises(ExportError, match=r"array 'input:x': must be one of .*\. Received: complex64"):
        write_golden(tmp_path / "g", Golden({"x": X.astype("complex64")}, {"y": Y}, {"y": 0.1}))
    assert (tmp_path / "g").read_text() == "before"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_first_sample_compiles_for_a_device_without_files(tmp_path, two):
    source, _ = write_golden_c(tmp_path / "golden.h", two)
    main = (
        '#include <cstdio>\n#include "golden.h"\nint main() {\n'
        '  for (unsigned i = 0; i < input_x_len; ++i) std::printf("%a ", input_x[i]);\n'
        '  std::printf("%u %d %g", output_scores_len, (int)output_label[0], bound_scores[0]);\n}\n'
    )
    (tmp_path / "main.cc").write_text(main)
    subprocess.run(["g++", "main.cc", source.name, "-o", "program"], cwd=tmp_path, check=True)
    *x, count, label, bound = subprocess.run(
        [tmp_path / "program"], capture_output=True, check=True, text=True
    ).stdout.split()
    assert [float.fromhex(value) for value in x] == X[0].tolist()
    assert (count, label, float(bound)) == ("2", "0", pytest.approx(two.bounds["scores"], rel=1e-5))
