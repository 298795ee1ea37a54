import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tflite_export import ExportError
from tflite_export.file.c_array import C_TYPES, identifier, write_c_array, write_c_arrays

COMPILER = shutil.which("g++") or shutil.which("clang++")


def test_the_pair_is_literally_this(tmp_path):
    source, header = write_c_array(bytes(range(250, 256)) * 3, tmp_path / "my-model.cc")
    assert header.read_text() == (
        "#ifndef MY_MODEL_H_\n#define MY_MODEL_H_\n\n#include <stdbool.h>\n#include <stdint.h>\n\n"
        '#ifdef __cplusplus\nextern "C" {\n#endif\n\n/* 18 bytes, shape 18 */\n'
        "extern const unsigned char my_model[];\nextern const unsigned int my_model_len;\n\n"
        "#ifdef __cplusplus\n}\n#endif\n\n#endif /* MY_MODEL_H_ */\n"
    )
    assert source.read_text() == (
        '#include "my-model.h"\n\nalignas(16) const unsigned char my_model[] = {\n'
        "    0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,\n"
        "    0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,\n};\nconst unsigned int my_model_len = 18;\n"
    )


@given(st.text(max_size=12))
def test_every_name_becomes_an_identifier(name):
    found = identifier(name)
    assert found.isascii()
    assert found.isidentifier()
    assert not found.startswith("_")
    assert "__" not in found
    assert identifier(found) == found


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_compiler_reads_the_same_bytes_back(tmp_path):
    rng = np.random.default_rng(0)
    float_bits = np.array([0.1, -0.0, 1e-45, 3.4028235e38, 1 / 3], dtype=np.float32)
    arrays = {
        "class": rng.integers(0, 256, 1000, dtype=np.uint8),
        "int8": np.array([-128, 0, 127], dtype=np.int8),
        "flags": np.array([True, False]),
        "i16": np.array([-32768, 32767], dtype=np.int16),
        "i32": np.array([[-(2**31), 2**31 - 1]], dtype=np.int32),
        "i64": np.array([-(2**63), 2**63 - 1], dtype=np.int64),
        "f32": np.concatenate([float_bits, rng.standard_normal(500).astype(np.float32)]),
        "f64": np.array([0.1, 5e-324, 1 / 3]),
    }
    assert {values.dtype.name for values in arrays.values()} == set(C_TYPES)
    source, header = write_c_arrays(arrays, tmp_path / "data")
    out = "\n".join(f"  std::fwrite({n}, sizeof({n}[0]), {n}_len, stdout);" for n in map(identifier, arrays))
    aligned = "\n".join(f"  if (reinterpret_cast<std::uintptr_t>({n}) % 16) return 1;" for n in map(identifier, arrays))
    main = f'#include <cstdint>\n#include <cstdio>\n#include "{header.name}"\nint main() {{\n{aligned}\n{out}\n}}\n'
    (tmp_path / "main.cc").write_text(main)
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "main.cc", source.name, "-o", "program"]
    subprocess.run(command, cwd=tmp_path, check=True)
    got = subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout
    assert got == b"".join(values.tobytes() for values in arrays.values())


@pytest.mark.skipif(COMPILER is None or shutil.which("cc") is None, reason="needs compilers of C and C++")
def test_a_program_in_c_reads_them_too(tmp_path):
    source, _ = write_c_array(b"TFL3", tmp_path / "model")
    main = "int main(void) { return (int)fwrite(model, 1, model_len, stdout) - 4; }"
    (tmp_path / "main.c").write_text(f'#include <stdio.h>\n#include "model.h"\n{main}\n')
    subprocess.run(["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-c", "main.c"], cwd=tmp_path, check=True)
    subprocess.run([COMPILER, "main.o", source.name, "-o", "program"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "program"], capture_output=True, check=True).stdout == b"TFL3"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(0, np.uint8)}, r"array 'x': must hold at least one element for C\+\+\. Received: none"),
        ({"x": np.zeros(2, np.complex64)}, r"must be of one of the types .*\. Received: complex64"),
        ({"x": np.array([1, np.nan])}, r"must be finite to be written as numbers"),
        ({"a b": np.ones(1), "a-b": np.ones(1)}, r"array 'a-b': needs a C\+\+ name of its own\. Received: a_b"),
        ({"x": np.ones(1), "x_len": np.ones(1)}, r"array 'x_len': needs a C\+\+ name of its own"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, arrays, message):
    with pytest.raises(ExportError, match=message):
        write_c_arrays(arrays, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(ExportError, match="at least one element"):
        write_c_array(b"", tmp_path / "model")
    with pytest.raises(ExportError, match="its folder must exist"):
        write_c_array(b"x", tmp_path / "none" / "model")
