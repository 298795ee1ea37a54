"""Arrays are packed in few bytes and come back bit for bit; payloads that lie are refused."""

import dataclasses
import importlib.util
import pathlib
import struct
import tracemalloc

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_prune.container.errors import Fault
from keras_prune.container.huffman import LONGEST, Code, Decoder, code_for
from keras_prune.container.tensors import DTYPES, pack, parse_header, unpack

spec = importlib.util.spec_from_file_location("kpz_reader", pathlib.Path(__file__).with_name("reader.py"))
reader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reader)


def round_trip(array):
    """Packs, reads the header and unpacks; an independent reader finds the same bits."""
    packed = pack("a/b", array)
    header = packed.tensor.header()
    assert parse_header(header) == packed.tensor
    back = unpack(packed.tensor, packed.payload)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    name, _, shape, words, _ = reader.tensor(header, packed.payload)
    assert (name, shape, b"".join(words)) == ("a/b", array.shape, array.tobytes())
    assert packed.indices + packed.codebook + packed.values == len(packed.payload) <= array.nbytes
    return packed


ANY_DTYPE = st.sampled_from([dtype for dtype in DTYPES.values() if dtype != ml_dtypes.bfloat16])


@settings(max_examples=60)
@given(ANY_DTYPE.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=9))))
def test_any_array_comes_back_bit_for_bit(array):
    round_trip(array)


@settings(max_examples=30)
@given(
    st.sampled_from(list(DTYPES.values())),
    st.lists(st.tuples(st.integers(0, 700), st.integers(-3, 3)), max_size=40),
    st.integers(0, 700),
)
def test_zeros_between_few_values_come_back_bit_for_bit(dtype, runs, tail):
    numbers = [number for zeros, value in runs for number in (*[0] * zeros, value)] + [0] * tail
    round_trip(np.array(numbers, np.int8).astype(dtype))


def test_bits_are_kept_not_values():
    array = np.float32([-0.0, 0.0, np.nan, -np.nan, np.inf, 1e-45] * 40)
    array.view(np.uint32)[2] += 1  # another NaN
    assert round_trip(array).distinct == 7


def test_the_bytes_of_codes():
    packed = round_trip(np.float32([0, 0, 1, 0, 1, 1]))
    # 2 values, 0.0 and 1.0; codes of up to 1 bit, 2 of them; 0 0 1 0 1 1 and two bits that fill up.
    assert packed.payload.hex(" ") == "02 00 00 00 00 00 00 00 00 00 80 3f 01 02 00 2c"
    assert (packed.indices, packed.codebook, packed.values, packed.distinct) == (0, 15, 1, 2)


def test_the_bytes_of_gaps():
    packed = round_trip(np.tile(np.float32([0, 0, 0, 1.5]), 10))
    # A single gap, 3, and a single value need no codes: no lengths, then the symbol.
    assert packed.payload.hex(" ") == "00 03 01 00 00 00 00 00 c0 3f 00"
    assert (packed.indices, packed.codebook, packed.values, packed.tensor.stored) == (2, 9, 0, 10)


def test_the_bytes_of_long_gaps():
    array = np.zeros(4000, np.float32)
    array[255 + 255 + 7] = np.pi
    # Twice 255 zeros and no value, then 7 zeros and a value: 255 and 7 have 1 bit each, in this order.
    assert round_trip(array).payload.hex(" ") == "01 02 00 07 ff c0 db 0f 49 40"


def test_the_smallest_of_four_forms_is_taken():
    rng = np.random.default_rng(0)
    values = rng.normal(size=80_000).astype(np.float32)
    rare = values * (rng.random(80_000) < 0.1)
    few, rarely_few = np.sign(values), np.sign(rare)
    forms = [(p.tensor.sparse, p.tensor.coded) for p in map(round_trip, (values, rare, few, rarely_few))]
    assert forms == [(False, False), (True, False), (False, True), (True, True)]


def test_codes_are_as_short_as_huffmans_and_never_longer_than_allowed():
    assert code_for({5: 30, 6: 10, 7: 60}) == Code((1, 2), (7, 5, 6))
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(sum(fibonacci[-2:]))
    code = code_for(dict(enumerate(fibonacci)))
    assert len(code.counts) <= LONGEST
    symbols = np.random.default_rng(0).integers(0, 40, 500)
    decoder = Decoder(code, memoryview(code.encode(symbols)))
    assert [*decoder.take(200), *decoder.take(300)] == symbols.tolist()
    decoder.finish()


def test_what_holds_no_numbers_is_refused():
    with pytest.raises(ValueError, match=r"holds numbers: bool, .* Received: <U1"):
        pack("words", np.array(["a"]))


# -- payloads that lie ------------------------------------------------------------------------------------------------

CODED = pack("coded", np.float32([0, 0, 1, 0, 1, 1]))
SPARSE = pack("sparse", np.tile(np.float32([0, 0, 0, 1.5]), 10))
LONG = pack("long", np.float32([0] * 517 + [np.pi] + [0] * 400))


def spliced(payload, at, new):
    return payload[:at] + new + payload[at + len(new) :]


@pytest.mark.parametrize(
    ("packed", "changes", "payload", "message"),
    [
        (CODED, {}, CODED.payload[:-1], "codes end too early"),
        (CODED, {}, CODED.payload + b"\0", "6 bits of codes, where 2 bytes are"),
        (CODED, {}, spliced(CODED.payload, 15, b"\x2d"), "fill up the last byte of the codes are not zero"),
        (CODED, {}, spliced(CODED.payload, 13, b"\x01"), "no complete code"),
        (CODED, {}, spliced(CODED.payload, 13, b"\x03"), "no complete code"),
        (CODED, {}, spliced(CODED.payload, 12, b"\x00"), "table of 1 symbols, where the codebook has 2"),
        (CODED, {}, spliced(CODED.payload, 12, b"\xff"), "codes of 255 bits, where 24"),
        (CODED, {}, spliced(CODED.payload, 12, b"\x02"), "table is cut off"),
        (CODED, {}, spliced(CODED.payload, 12, b"\x01\xff\xff"), "65535 symbols, where 4096"),
        (CODED, {}, spliced(CODED.payload, 0, b"\xff"), "a codebook of 255 values, where 12 bytes are"),
        (CODED, {}, spliced(CODED.payload, 0, b"\x00"), "a codebook of 0 values"),
        (CODED, {}, CODED.payload[:3], "codebook is cut off"),
        (CODED, {}, CODED.payload + bytes(9), "25 bytes, 0 of them gaps, where the plain values take 24"),
        (CODED, {"coded": False}, CODED.payload, "16 bytes of values, where 6 values take 24"),
        (SPARSE, {}, spliced(SPARSE.payload, 1, b"\x04"), "lead to value 50 of 40"),
        (SPARSE, {}, spliced(SPARSE.payload, 0, b"\x01"), "gaps is cut off|no complete code|table is cut off"),
        (SPARSE, {"stored": 9}, SPARSE.payload, "the 10th of 9 stored"),
        (SPARSE, {"stored": 0, "gaps": 0}, SPARSE.payload, "2 bytes of gaps, where there are none"),
        (SPARSE, {"gap_bytes": 12}, SPARSE.payload, "12 of them gaps"),
        (LONG, {"gap_bytes": 4}, LONG.payload[:8], "table of gaps is cut off"),
        (LONG, {"gaps": 2}, LONG.payload, "lead to 0 values, where 1 are stored"),
        (LONG, {}, spliced(LONG.payload, 3, b"\x07\x07"), "a symbol twice"),
        (LONG, {}, spliced(LONG.payload, 5, b"\x00"), "the 3th of 1 stored"),
    ],
)
def test_a_payload_that_lies_is_refused(packed, changes, payload, message):
    with pytest.raises(Fault, match=message):
        unpack(dataclasses.replace(packed.tensor, **changes), payload)


def header(**changes):
    fields = {"dtype": 12, "rank": 1, "sparse": 0, "coded": 0, "name": 1, "stored": 3, "gaps": 0, "gap_bytes": 0}
    return struct.pack("<BBBBIQQQ", *{**fields, **changes}.values()) + struct.pack("<I", 3) + b"a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header()[:20], "header is cut off"),
        (header(dtype=0), "type 0, which is not known"),
        (header(dtype=99), "type 99"),
        (header(rank=33), "rank 33"),
        (header(sparse=2), "forms 2 and 0"),
        (header(name=2), "37 bytes, where its rank and name take 38"),
        (header(rank=2), "take 41"),
        (header(name=1 << 30), "a name of"),
        (header(stored=2), "2 values and 0 gaps are stored, where the shape"),
        (header(stored=4, sparse=1, gaps=4), "4 values"),
        (header(stored=3, sparse=1, gaps=4), "4 gaps, where 3 of 3"),
        (header(stored=3, gaps=1), "1 gaps are stored"),
        (header()[:-1] + b"\xff", "no UTF-8"),
    ],
)
def test_a_header_that_lies_is_refused(content, message):
    assert parse_header(header()).shape == (3,)
    with pytest.raises(Fault, match=message):
        parse_header(content)


def test_unpacking_takes_little_more_than_the_array():
    array = np.zeros(2_000_000, np.uint8)
    array[::2] = 1
    packed = pack("a", array)
    for form in (packed, pack("b", np.tile(np.uint8([0, 0, 1, 0, 3, 2, 2]), 250_000))):
        tracemalloc.start()
        unpack(form.tensor, form.payload)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < form.tensor.nbytes + len(form.payload) + 6 * 2**20
