import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_prune as kp
from keras_prune.devices.gains import PAYS, Measured
from tflite_export import Encoding, ExportError
from tflite_export.plan import eligibility as rules
from tflite_export.plan.eligibility import Consumer, Weight
from tflite_export.plan.plan import make_plan, plan_weight
from tflite_export.targets import TARGETS, Clusters, Kernel, Target, resolve_target

KB = 1024
NPUS = ("ethos-u55", "ethos-u65", "ethos-u85")
NAMES = ("any", "android", "ios", "arm64", "web", "x86", "mcu", *NPUS)


def matrix(zero_share, block=1, size=512, dtype="float32", seed=0):
    """A weight [out, in] with a share of its 1 x block blocks zero."""
    rng = np.random.default_rng(seed)
    units = size * size // block
    kept = np.repeat(rng.permutation(units) >= round(zero_share * units), block).reshape(size, size)
    return (rng.integers(1, 100, (size, size)) * kept).astype(dtype)


def weight(values, rows=1, computes=None, operator="FULLY_CONNECTED", **fields):
    consumer = Consumer(operator, 1, rows=rows, computes=computes or values.dtype.name)
    return Weight("layer/kernel", values, (consumer,), ((0, 3),), **fields)


def test_the_targets_of_the_design_are_known():
    assert tuple(TARGETS) == NAMES
    assert resolve_target(None) is TARGETS["any"]
    assert resolve_target("web") is TARGETS["web"]
    assert Target is kp.Device
    own = Target("own")
    assert resolve_target(own) is own


def test_an_unknown_target_is_refused_with_those_that_are_known():
    with pytest.raises(ExportError, match=r"target: must be one of \['android', 'any', .*\]\. Received: 'toaster'"):
        resolve_target("toaster")


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_a_target_has_a_source_and_an_order(name):
    target = TARGETS[name]
    for kernel in target.kernels:
        assert kernel.source
        assert bool(kernel.table) != (kernel.pays_from is not None)
        settings = [(measured.rows, measured.weight_bytes) for measured in kernel.table]
        assert settings == sorted(set(settings))
        for measured in kernel.table:
            shares, gains = zip(*measured.gains, strict=True)
            assert list(shares) == sorted(set(shares))
            assert list(gains) == sorted(gains)
            assert 0 < min(shares) <= max(shares) < 1
            assert min(gains) > 0
    if target.clusters is not None:
        assert target.clusters.source


def test_the_time_of_a_sparse_kernel_is_interpolated_linearly():
    measured = Measured(1, KB, ((0.8, 1.0), (0.9, 2.0), (0.95, 4.0)))
    assert measured.at(0.9) == 2.0
    # Times 1, 1/2, 1/4: halfway 3/4 and 3/8; before the first point on the same line, after the last one held.
    assert measured.at(0.85) == pytest.approx(4 / 3)
    assert measured.at(0.925) == pytest.approx(8 / 3)
    assert measured.at(0.7) == pytest.approx(1 / 1.5)
    assert measured.at(1.0) == 4.0


def test_a_gain_lies_between_those_of_its_neighbours_in_rows_and_bytes():
    points = ((0.5, 1.0), (0.9, 2.0)), ((0.5, 4.0), (0.9, 8.0))
    kernel = Kernel(Encoding.BLOCK, "", (Measured(1, KB, points[0]), Measured(1, 4 * KB, points[1])))
    assert kernel.gain(1, KB, 0.9) == 2.0
    assert kernel.gain(1, 2 * KB, 0.9) == pytest.approx(4.0)  # halfway in the logarithm: the geometric mean
    assert kernel.gain(1, 1, 0.9) == 2.0
    assert kernel.gain(1, 1000 * KB, 0.9) == 8.0
    by_rows = Kernel(Encoding.BLOCK, "", (Measured(1, KB, points[1]), Measured(16, KB, points[0])))
    assert by_rows.gain(4, KB, 0.9) == pytest.approx(4.0)
    assert by_rows.gain(None, KB, 0.9) == 2.0  # unknown: the lowest


@given(st.sampled_from([k for t in TARGETS.values() for k in t.kernels]), st.sampled_from([1, 3, 50, 1000]))
def test_the_threshold_is_where_the_gain_begins_to_pay(kernel, rows):
    threshold = kernel.threshold(rows, 2000 * KB)
    if kernel.table and 0 < threshold <= 1:
        assert kernel.gain(rows, 2000 * KB, threshold) >= PAYS > kernel.gain(rows, 2000 * KB, threshold - 0.01)


def test_the_same_zeros_are_stored_as_each_target_gains_most():
    values = weight(matrix(0.85, 4))
    found = {name: plan_weight(values, target) for name, target in TARGETS.items()}
    assert {name: line.encoding for name, line in found.items()} == {
        "any": Encoding.BLOCK,
        "android": Encoding.DENSIFY,  # 0.9 x there, in instructions
        "ios": Encoding.DENSIFY,
        "arm64": Encoding.DENSIFY,
        "web": Encoding.BLOCK,
        "x86": Encoding.BLOCK,
        "mcu": Encoding.DENSE,
        **dict.fromkeys(NPUS, Encoding.DENSE),
    }
    assert found["x86"].gain == pytest.approx(1.18, abs=0.01)
    assert found["x86"].reason.endswith("the kernel is faster from 83% at 1 row, expected 1.2 x")
    assert found["any"].gain is None
    assert found["mcu"].reason == "target 'mcu' has no DENSIFY"
    assert "the kernel is faster from 8" in found["arm64"].reason
    assert found["arm64"].gain == 1.0


def test_the_size_of_the_whole_file_decides_what_zeros_gain():
    line = plan_weight(weight(matrix(0.8, 4)), TARGETS["x86"])
    assert line.encoding is Encoding.DENSIFY
    cold = plan_weight(weight(matrix(0.8, 4)), TARGETS["x86"], total_bytes=12288 * KB)
    assert cold.encoding is Encoding.BLOCK
    assert cold.gain == pytest.approx(1.67, abs=0.01)
    # Twelve of them make a file of that size.
    assert make_plan([weight(matrix(0.8, 4))] * 12, TARGETS["x86"]).lines[0].encoding is Encoding.BLOCK


def test_single_zeros_get_the_csr_kernel_where_it_was_measured_to_gain():
    assert plan_weight(weight(matrix(0.9)), TARGETS["x86"]).encoding is Encoding.DENSIFY
    line = plan_weight(weight(matrix(0.97)), TARGETS["x86"])
    assert line.encoding is Encoding.CSR
    assert line.reason.startswith("97.0% of the weights are zero; the kernel is faster from 95% at 1 row")
    assert plan_weight(weight(matrix(0.97), rows=196), TARGETS["x86"]).encoding is not Encoding.DENSE
    assert plan_weight(weight(matrix(0.95)), TARGETS["arm64"]).encoding is Encoding.DENSIFY


@pytest.mark.parametrize(
    ("share", "rows", "target", "expected"),
    [
        (0.90, 1, "x86", Encoding.DENSE),
        (0.90, 196, "x86", Encoding.DENSE),
        (0.95, 1, "x86", Encoding.DENSE),
        (0.95, 1, "arm64", Encoding.DENSE),
        (0.95, 1, "any", Encoding.DENSE),
    ],
)
def test_an_int8_weight_stays_dense_where_its_kernel_loses(share, rows, target, expected):
    line = plan_weight(weight(matrix(share, 16, dtype="int8"), rows), TARGETS[target])
    assert line.encoding is expected
    assert "1x16 blocks are zero; the kernel is faster" in line.reason
    assert plan_weight(weight(matrix(share, 16, dtype="int8"), rows), TARGETS[target], optimize="size").encoding is (
        Encoding.BLOCK16
    )


def test_an_int8_weight_of_a_large_file_gets_blocks_on_x86():
    line = plan_weight(weight(matrix(0.95, 16, dtype="int8")), TARGETS["x86"], total_bytes=4096 * KB)
    assert line.encoding is Encoding.BLOCK16
    assert line.gain == pytest.approx(1.15, abs=0.02)


def test_for_size_the_smallest_is_taken_even_where_it_is_slower():
    values = weight(matrix(0.5, 4))
    assert plan_weight(values, TARGETS["x86"]).encoding is Encoding.DENSIFY
    line = plan_weight(values, TARGETS["x86"], optimize="size")
    assert line.encoding is Encoding.BLOCK
    assert line.gain < 1
    assert ", the smallest; 50.0% of 1x4 blocks are zero; the kernel is faster from" in line.reason
    sizes = {
        plan_weight(values, Target("own", (Kernel(kind, "", pays_from=(0.0, 0.0)),))).stored_bytes
        for kind in (Encoding.BLOCK, Encoding.CSR)
    }
    assert line.stored_bytes == min(sizes)


def test_a_predicted_cluster_is_named_with_its_gain():
    conv = weight(matrix(0.9).reshape(512, 1, 1, 512), rows=49, operator="CONV_2D")
    line = plan_weight(conv, TARGETS["web"], clusters=lambda weight: "multiplied in the body")
    assert line.encoding is Encoding.DENSIFY
    assert line.reason.endswith(
        "of its dense bytes in the file, multiplied in the body, expected 3.4 x for the network"
    )
    assert line.gain == pytest.approx(3.37, abs=0.01)
    for target, clusters in (("web", None), ("web", lambda weight: None), ("x86", lambda weight: "body")):
        line = plan_weight(conv, TARGETS[target], clusters=clusters)
        assert line.reason.endswith("dense in memory")
        assert line.gain == 1.0


def test_a_cluster_gains_nothing_below_two_thirds():
    clusters = Clusters(2 / 3, ((0.7, 1.66), (0.8, 2.29)), "")
    assert clusters.gain(0.66) == 1.0
    assert clusters.gain(0.8) == 2.29


@given(
    st.sampled_from(sorted(TARGETS)),
    st.sampled_from(["float32", "int8"]),
    st.sampled_from([1, 4, 16]),
    st.floats(0, 1),
    st.sampled_from([1, 2, 196, None]),
)
def test_nothing_that_is_expected_to_be_slower_is_chosen_for_speed(name, dtype, block, share, rows):
    values = weight(matrix(share, block, 64, dtype), rows)
    line = plan_weight(values, TARGETS[name])
    assert line.gain is None or line.gain >= 1
    assert line.reason
    assert line.stored_bytes <= line.dense_bytes or line.encoding in (Encoding.BLOCK, Encoding.CSR, Encoding.BLOCK16)
    smaller = plan_weight(values, TARGETS[name], optimize="size")
    assert smaller.stored_bytes <= line.dense_bytes


def test_a_threshold_that_is_never_reached_says_so():
    kernel = TARGETS["arm64"].kernels[1]
    assert kernel.encoding is Encoding.BLOCK16
    assert math.isinf(kernel.threshold(1, KB))
    line = plan_weight(weight(matrix(0.95, 16, dtype="int8")), TARGETS["arm64"])
    assert line.reason.endswith("the kernel is faster nowhere at 1 row, expected 0.7 x")


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        (Encoding.BLOCK, "the 1x4 kernel does not read int8"),
        (Encoding.CSR, "the CSR kernel does not read int8"),
        (Encoding.BLOCK16, "the 1x16 kernel is correct with int8 inputs only"),
    ],
)
def test_the_kernels_of_dynamic_range_files_are_refused(encoding, reason):
    verdict = rules.feeds_sparse_kernel(weight(matrix(0.9, 16, 64, "int8"), computes="float32"), encoding)
    assert not verdict
    assert verdict.reason == reason
