import dataclasses

import numpy as np
import pytest

from tflite_export import Encoding
from tflite_export.plan import eligibility as rules
from tflite_export.plan.eligibility import Consumer, Weight
from tflite_export.plan.plan import make_plan, plan_weight

ONE_ROW = Consumer("FULLY_CONNECTED", 1, rows=1)


def blocks(zero_share, shape=(64, 64), seed=0):
    """A weight [out, in] with a share of its 1x4 blocks zero."""
    rng = np.random.default_rng(seed)
    count = shape[0] * shape[1] // 4
    keep = (rng.permutation(count) >= round(zero_share * count)).reshape(shape[0], -1)
    return (rng.normal(size=shape) * np.repeat(keep, 4, axis=1)).astype("float32")


def singles(zero_share, shape=(64, 64), seed=0):
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    return (
        (rng.normal(size=size) * (rng.permutation(size) >= round(zero_share * size))).reshape(shape).astype("float32")
    )


def weight(values, *consumers, **fields):
    return Weight("layer/kernel", values, consumers or (ONE_ROW,), ((0, 3),), **fields)


def test_zero_blocks_before_one_row_of_fully_connected_get_the_kernel():
    line = plan_weight(weight(blocks(0.9)))
    assert line.encoding is Encoding.BLOCK
    assert line.reason == "90.0% of 1x4 blocks are zero; the kernel is faster from 79% at 1 row"
    assert line.sparsity == pytest.approx(0.9, abs=1e-3)
    assert line.dense_bytes == 64 * 64 * 4
    # 102 blocks of 16 bytes, as many one-byte indices, 65 one-byte segments.
    assert line.stored_bytes == 102 * 16 + 102 + 65


@pytest.mark.parametrize(
    ("share", "rows", "expected"),
    [
        (0.77, 1, Encoding.DENSIFY),
        (0.80, 1, Encoding.BLOCK),
        (0.80, 8, Encoding.DENSIFY),
        (0.90, 8, Encoding.BLOCK),
        (0.85, None, Encoding.DENSIFY),
        (0.90, None, Encoding.BLOCK),
    ],
)
def test_the_kernel_is_used_where_it_keeps_up_with_the_dense_one(share, rows, expected):
    line = plan_weight(weight(blocks(share), Consumer("FULLY_CONNECTED", 1, rows=rows)))
    assert line.encoding is expected


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"activation": "TANH"}, "does not support the fused activation TANH"),
        ({"computes": "int8"}, "correct with float32 inputs only"),
        ({"default_layout": False}, "default weights layout"),
        ({"operator": "BATCH_MATMUL"}, "BATCH_MATMUL reads this one as input 1"),
        ({"slot": 0}, "FULLY_CONNECTED reads this one as input 0"),
    ],
)
def test_the_kernel_serves_only_what_it_was_written_for(changed, reason):
    verdict = rules.feeds_sparse_kernel(weight(blocks(0.9), dataclasses.replace(ONE_ROW, **changed)), Encoding.BLOCK)
    assert not verdict
    assert reason in verdict.reason


def test_one_reader_that_the_kernel_does_not_serve_decides_for_all():
    line = plan_weight(weight(blocks(0.9), ONE_ROW, Consumer("BATCH_MATMUL", 1)))
    assert line.encoding is Encoding.DENSIFY


def test_single_zeros_are_stored_behind_densify_with_the_reason():
    line = plan_weight(weight(singles(0.9)))
    assert line.encoding is Encoding.DENSIFY
    assert line.reason.endswith(
        "dense in memory; its zeros do not form 1x4 blocks: 65.6% of the blocks are zero, and 90.0% of the weights"
    )


def test_inputs_that_blocks_do_not_divide_are_stored_behind_densify():
    line = plan_weight(weight(singles(0.9, (64, 62))))
    assert line.encoding is Encoding.DENSIFY
    assert "62 inputs are not a multiple of 4" in line.reason


@pytest.mark.parametrize(
    ("values", "fields", "reason"),
    [
        (
            singles(0.9).astype("float16"),
            {},
            "float16: only float32, int8, and float16 read by a DEQUANTIZE can be stored sparse",
        ),
        (singles(0.9, (62,)), {}, "shape [62]: too small (at least rank 2 and 64 elements are needed)"),
        (singles(0.9, (6, 8)), {}, "shape [6, 8]: too small (at least rank 2 and 64 elements are needed)"),
        (singles(0.0), {}, "no zeros"),
        (np.where(singles(0.9) != 0, np.nan, 0).astype("float32"), {}, "410 values are NaN or infinite"),
        (singles(0.9), {"agree": False}, "its buffer is shared by 1 tensors of different shapes or types"),
        (singles(0.9), {"is_output": True}, "an output of its subgraph, which must stay dense"),
        (
            singles(0.2),
            {},
            "stored sparse, it would take 104% of its dense bytes; its zeros do not form 1x4 blocks: 0.2% of",
        ),
    ],
)
def test_the_rest_stays_dense_with_the_reason(values, fields, reason):
    line = plan_weight(weight(values, **fields))
    assert line.encoding is Encoding.DENSE
    assert line.reason.startswith(reason)
    assert line.stored_bytes == line.dense_bytes


@pytest.mark.parametrize("operator", ["TRANSPOSE", "DEQUANTIZE", "WHILE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "CUSTOM"])
def test_a_reader_not_known_to_take_densified_weights_keeps_the_weight_dense(operator):
    line = plan_weight(weight(singles(0.9), Consumer(operator, 0)))
    assert line.encoding is Encoding.DENSE
    assert line.reason == f"read by {operator} (input 0), not known to accept a weight from DENSIFY"


def test_a_weight_without_readers_stays_dense():
    assert plan_weight(Weight("a", singles(0.9), (), ((0, 0),))).reason == "no operator reads it"


def test_a_pointwise_convolution_is_stored_sparse():
    line = plan_weight(weight(singles(0.9, (64, 1, 1, 64)), Consumer("CONV_2D", 1, rows=49)))
    assert line.encoding is Encoding.DENSIFY


def test_lines_not_kept_become_dense_for_the_reason_given():
    plan = make_plan([weight(blocks(0.9)), weight(singles(0.9, seed=1)), weight(singles(0.0))])
    kept = plan.only([plan.lines[1]], "it was wrong")
    assert [line.encoding for line in kept.lines] == [Encoding.DENSE, Encoding.DENSIFY, Encoding.DENSE]
    assert [line.reason for line in kept.lines][::2] == ["it was wrong", "no zeros"]
    assert kept.lines[0].stored_bytes == kept.lines[0].dense_bytes
    assert len(plan.sparse) == 2
