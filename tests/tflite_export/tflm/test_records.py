"""DECODE records as bytes: what they say, and that they come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tflite_export.tflm import huffman
from tflite_export.tflm.records import HEADER, Form, Record, RecordError, bitmask, decode, huffman_code, lookup_table

INT8 = np.dtype(np.int8)
ROWS = np.array([[0, 5, 0, 0, -1], [0, 0, 0, 7, 0]], dtype=np.int8)


def test_a_bitmask_is_one_bit_for_each_weight_and_the_values():
    record = bitmask(ROWS)
    assert [f"{byte:08b}" for byte in record.encoded] == ["01001000", "10000000"]
    assert record.ancillary.tolist() == [2, 1, 0, 0, 1] + [0] * 11 + [5, 255, 7]
    assert (record.form, record.size) == (Form.BITMASK, 2 + HEADER + 3)


def test_a_look_up_table_has_a_table_for_each_channel_of_the_scales():
    record = lookup_table(ROWS, axis=0)
    # Rows [-1, 0, 5] and [0, 7]: two bits for a code, tables of three.
    assert [f"{byte:08b}" for byte in record.encoded] == ["01100101", "00000000", "01000000"]
    assert record.ancillary[:HEADER].tolist() == [0, 1, 0, 0, 1, 0 << 4 | 2, 3] + [0] * 9
    assert record.ancillary[HEADER:].view(np.int8).tolist() == [-1, 0, 5, 0, 7, 0]
    assert lookup_table(ROWS).ancillary[5] == 15 << 4 | 2
    assert lookup_table(ROWS, axis=1).ancillary[5] == 1 << 4 | 1


def test_a_look_up_table_has_at_most_128_values():
    values = np.arange(-64, 65, dtype=np.int8)
    assert lookup_table(values[None]) is None
    assert lookup_table(values[None, :-1]).ancillary[5:7].tolist() == [15 << 4 | 7, 128]
    # Each channel may have its own.
    assert lookup_table(values[:, None], axis=0).ancillary[6] == 1


def test_tflite_micros_own_example_of_a_huffman_code_is_read():
    """Bytes of `decode_state_huffman_test.cc`: 24 entries of 16 bits, 64 letters."""
    entries = (
        "986D 9861 986A 0005 0806 0809 000E 000F 886F 8868 8864 8864 9069 9066 8863 8863 0002 906B 8867 886C 8865 8862 "
        "8870 886E"
    )
    bits = "F00D79FC9C1A6E4C32AF29B35DF6360250158CA795DB29683FBAB7EDB119E2E0"
    head = bytes([1, 1, 0, 0, 1, 2 << 4]) + bytes(10)
    tables = np.array([int(entry, 16) for entry in entries.split()], dtype="<u2").tobytes()
    record = Record(np.frombuffer(bytes.fromhex(bits), np.uint8), np.frombuffer(head + tables, np.uint8))
    found = decode(record, (64,), INT8).tobytes().decode()
    assert found == "nmmacnanefdacopjomeckifookhbdbdmjjdmjgojfecpbiibmanbbjbnlgjafejp"


def test_a_huffman_code_is_canonical_and_its_tables_are_the_shortest():
    coded = huffman.encode(np.array([0, 0, 0, 0, 5, 5, 7, 9], dtype=np.int8))
    # 0, 10, 110, 111: one bit, then two: 2 + 4 entries, as many as 2 + 2 + 2 and fewer than 8.
    assert "".join(f"{byte:08b}" for byte in coded.bits).startswith("0000" + "1010" + "110111")
    assert coded.tables.size == 6
    assert coded.bits.size % 4 == 0
    lengths = huffman.code_lengths({value: 2**value for value in range(40)})
    assert max(lengths.values()) == huffman.LONGEST
    assert sum(2.0**-length for length in lengths.values()) <= 1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (7, 3), (4, 3, 3, 2), (1, 3, 3, 5), (16, 33)]),
    few=st.integers(1, 256),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_what_is_stored_comes_back(shape, few, zeros, seed):
    rng = np.random.default_rng(seed)
    values = rng.choice(rng.permutation(np.arange(-128, 128))[:few], shape).astype(np.int8)
    values[rng.random(shape) < zeros] = 0
    np.testing.assert_array_equal(decode(bitmask(values), shape, INT8), values)
    np.testing.assert_array_equal(decode(huffman_code(values), shape, INT8), values)
    for axis in (None, 0, len(shape) - 1):
        record = lookup_table(values, axis)
        if record is not None:
            np.testing.assert_array_equal(decode(record, shape, INT8, axis), values)
            np.testing.assert_array_equal(decode(record, shape, INT8, axis, stated=True), values)


@pytest.mark.parametrize("dtype", ["bool", "float32", "int16", "int32", "int64"])
def test_records_of_other_types_are_read(dtype):
    values = np.array([[0, 1, 0], [1, 1, 0]], dtype=dtype)
    for record in (bitmask(values), lookup_table(values)):
        np.testing.assert_array_equal(decode(record, values.shape, values.dtype), values)


def cut(record, encoded=0, ancillary=0):
    return Record(
        record.encoded[: record.encoded.size - encoded], record.ancillary[: record.ancillary.size - ancillary]
    )


def with_byte(record, place, value):
    changed = record.ancillary.copy()
    changed[place] = value
    return Record(record.encoded, changed)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (cut(bitmask(ROWS), encoded=1), "10 codes of 1 bits take 2 bytes, and it holds 1"),
        (cut(bitmask(ROWS), ancillary=1), "its bits ask for 3 values, and it holds 2"),
        (cut(bitmask(ROWS), ancillary=4), "a header has 16 bytes, not 15"),
        (cut(lookup_table(ROWS), encoded=2), "10 codes of 2 bits take 3 bytes, and it holds 1"),
        (cut(lookup_table(ROWS), ancillary=1), "its codes lead to value 3, and its tables hold 3"),
        (cut(huffman_code(ROWS), encoded=4), "its bits end after 0 of 10 values"),
        (cut(huffman_code(ROWS), ancillary=4), "its bits lead to entry"),
        (with_byte(bitmask(ROWS), 0, 3), "the form must be one of"),
        (with_byte(bitmask(ROWS), 1, 2), "versions of header and form must be 1, not 2 and 1"),
        (with_byte(lookup_table(ROWS), 5, 0xF0), "a code has 1 to 7 bits, not 0"),
        (with_byte(huffman_code(ROWS), 5, 1), "tables of 32 bits are not read"),
    ],
)
def test_a_record_that_does_not_hold_its_weight_is_refused(record, message):
    with pytest.raises(RecordError, match=message):
        decode(record, ROWS.shape, INT8)


def test_where_tables_were_written_along_is_told_by_their_number_too():
    values = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.int8)
    own = lookup_table(values, axis=0)
    assert own.table_axis((3, 2), INT8, 0) == 0
    assert lookup_table(values).table_axis((3, 2), INT8, 0) is None
    # Google's compressor of August 2026 wrote no axis: zeros there.
    assert with_byte(lookup_table(values), 5, 3).table_axis((3, 2), INT8, None) is None
    assert with_byte(lookup_table(values, axis=1), 5, 2).table_axis((3, 2), INT8, 1) == 1
