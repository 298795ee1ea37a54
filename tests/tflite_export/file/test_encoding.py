import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tflite_export.file import encoding
from tflite_export.file.encoding import CsrLevel, DenseLevel, decode, encode_blocks, encode_csr


def level(sparse, position):
    csr = sparse.levels[position]
    assert isinstance(csr, CsrLevel)
    return csr.segments.tolist(), csr.indices.tolist()


def test_blocks_of_a_hand_computed_matrix():
    dense = np.array(
        [
            [0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 3, 0, 0, 0, 0, 0, 0, 4, 5, 6, 7],
        ],
        dtype=np.float32,
    )
    sparse = encode_blocks(dense)
    assert sparse.shape == (3, 12)
    assert sparse.traversal_order == (0, 1, 2)
    assert sparse.block_map == (1,)
    assert sparse.levels[0] == DenseLevel(3)
    assert sparse.levels[2] == DenseLevel(4)
    assert level(sparse, 1) == ([0, 1, 1, 3], [1, 0, 2])
    assert sparse.values.tolist() == [1, 0, 0, 2, 0, 3, 0, 0, 4, 5, 6, 7]
    assert sparse.values.dtype == np.float32
    assert sparse.nbytes == 12 * 4 + 4 + 3


def test_csr_of_a_hand_computed_matrix():
    sparse = encode_csr(np.array([[0, 5, 0, 0], [0, 0, 0, 0], [6, 0, 0, 7]], dtype=np.float32))
    assert sparse.traversal_order == (0, 1)
    assert sparse.block_map == ()
    assert sparse.levels[0] == DenseLevel(3)
    assert level(sparse, 1) == ([0, 1, 1, 3], [1, 0, 3])
    assert sparse.values.tolist() == [5, 6, 7]


def test_csr_of_a_hand_computed_convolution():
    dense = np.zeros((2, 1, 2, 3), dtype=np.float32)
    dense[0, 0, 1, 2] = 8
    dense[1, 0, 0, 0] = 9
    sparse = encode_csr(dense)
    assert sparse.traversal_order == (0, 1, 2, 3)
    assert sparse.levels[:3] == (DenseLevel(2), DenseLevel(1), DenseLevel(2))
    assert level(sparse, 3) == ([0, 0, 1, 2, 2], [2, 0])
    assert sparse.values.tolist() == [8, 9]


def test_csr_of_a_vector_has_one_row():
    assert level(encode_csr(np.array([0.0, 0.0, 4.0])), 0) == ([0, 1], [2])


@pytest.mark.parametrize("encode", [encode_csr, encode_blocks])
def test_all_zeros_store_one_zero_so_that_the_tensor_stays_a_constant(encode):
    sparse = encode(np.zeros((3, 8), dtype=np.float32))
    assert level(sparse, 1) == ([0, 1, 1, 1], [0])
    assert not sparse.values.any()
    assert sparse.values.size > 0
    assert not decode(sparse).any()


def test_negative_zero_is_zero_and_nan_is_not():
    assert encode_csr(np.array([-0.0, np.nan, 1.0])).values.size == 2


@pytest.mark.parametrize(
    ("columns", "indices", "segments"),
    [
        (256, np.uint8, np.uint16),
        (257, np.uint16, np.uint16),
        (65536, np.uint16, np.int32),
        (65537, np.int32, np.int32),
    ],
)
def test_the_narrowest_index_type_is_chosen(columns, indices, segments):
    sparse = encode_csr(np.ones((1, columns), dtype=np.float32))
    assert sparse.levels[1].indices.dtype == indices
    assert sparse.levels[1].segments.dtype == segments


def test_an_index_above_int32_is_refused():
    with pytest.raises(ValueError, match=r"must fit int32\. Received: 2147483648"):
        encoding.smallest_index_dtype(2**31)


def test_a_block_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"blocks of 4 .* Received: \(2, 6\)\. Use encode_csr"):
        encode_blocks(np.ones((2, 6)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_an_empty_array_is_refused(shape):
    with pytest.raises(ValueError, match=r"Received: shape \("):
        encode_csr(np.ones(shape))


floats = st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5, 1e-30])
dtypes = st.sampled_from(["float32", "float16"])


@given(npst.arrays(dtypes, npst.array_shapes(min_dims=1, max_dims=5, max_side=6), elements=st.just(0.0), fill=floats))
def test_csr_round_trip(dense):
    assert np.array_equal(decode(encode_csr(dense)), dense)


@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_blocks_round_trip(data, rows, blocks, block):
    dense = data.draw(npst.arrays("float32", (rows, blocks * block), elements=floats))
    sparse = encode_blocks(dense, block)
    assert np.array_equal(decode(sparse), dense)
    assert sparse.levels[1].indices.size == max(1, np.count_nonzero(dense.reshape(rows, blocks, block).any(axis=2)))
