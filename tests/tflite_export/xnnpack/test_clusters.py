"""The prediction of XNNPACK's sparse inference: each rule by itself, and whole graphs as they were measured."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.tflite_export.graphs import Net
from tflite_export.file import flatbuffer
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.xnnpack.clusters import analyse


def net(zeros=0.9, sparse=True, channels=8):
    made = Net(1, 16, 16, 3)
    return made, made.block(made.stem(channels), zeros, sparse)


def verdict(analysis, operator, nth=-1):
    return [v for v in analysis.operators if v.operator == operator][nth]


def test_a_whole_cluster_is_told_operator_by_operator():
    made, x = net()
    analysis = analyse(made.build(made.dense(made.mean(x), 4)))
    (cluster,) = analysis.clusters
    kinds = [v.operator for v in analysis.operators]
    assert [kinds[i] for i in cluster.nodes] == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "MEAN"]
    assert (cluster.zeros, cluster.weights, cluster.on, cluster.whole) == (58, 64, True, True)
    assert not analysis.dangers
    assert [(v.operator, v.eligible, v.rule) for v in analysis.operators] == [
        ("PAD", True, "taken in by #1 CONV_2D"),
        ("CONV_2D", True, ""),
        ("DEPTHWISE_CONV_2D", True, ""),
        ("DENSIFY", False, "unpacks a constant when the file is loaded"),
        ("CONV_2D", True, ""),
        ("MEAN", True, ""),
        ("FULLY_CONNECTED", False, "a Dense layer on vectors has no sparse inference; it can be sparse in 1x4 blocks"),
    ]
    used = {use.tensor: use for use in analysis.weights}
    spmm = [use for use in used.values() if use.spmm]
    assert len(spmm) == 1
    assert made.shape(spmm[0].tensor) == (8, 1, 1, 8)
    assert spmm[0].reason == "multiplied as a sparse matrix by #4 CONV_2D"


@pytest.mark.parametrize(("kept", "on"), [(22, False), (21, False), (20, True)])
def test_more_than_two_thirds_must_be_zero(kept, on):
    """Of 63 weights, 42 zeros are two thirds: not enough."""
    made = Net(1, 16, 16, 3)
    x = made.conv(made.depthwise(made.stem(9)), 7, zeros=(63 - kept) / 63)
    (cluster,) = analyse(made.build(made.mean(x))).clusters
    assert (cluster.zeros, cluster.weights, cluster.on) == (63 - kept, 63, on)
    assert cluster.code == ("sparse_inference" if on else "too_few_zeros")
    if not on:
        assert cluster.reason == f"{100 * (63 - kept) / 63:.0f} % zeros in its 1x1 weights; more than 2/3 must be zero"


def test_zeros_are_counted_over_the_cluster_stored_sparse_or_not():
    made = Net(1, 16, 16, 3)
    x = made.block(made.block(made.stem(10), zeros=1.0, sparse=False), zeros=0.4, sparse=True)
    (cluster,) = analyse(made.build(made.mean(x))).clusters
    assert (cluster.zeros, cluster.weights, cluster.on) == (140, 200, True)


def test_a_plan_can_ask_what_if():
    made, x = net(sparse=False)
    model = made.build(made.dense(made.mean(x), 4, zeros=0.9))
    before = analyse(model)
    assert not before.on
    assert before.clusters[0].reason == "91 % zeros, but no weight is stored sparse behind a DENSIFY"
    assert before.clusters[0].code == "not_stored_sparse"
    pointwise = next(use for use in before.weights if made.shape(use.tensor) == (8, 1, 1, 8))
    after = analyse(model, assume_sparse={(0, pointwise.tensor)})
    assert after.on
    assert after.use(0, pointwise.tensor).spmm
    # Any weight that XNNPACK reads switches the graph over, a Dense head too.
    head = next(use for use in before.weights if made.shape(use.tensor) == (4, 8))
    other = analyse(model, assume_sparse={(0, head.tensor)})
    assert other.on
    assert not other.use(0, head.tensor).spmm
    assert analyse(model, assume_sparse={(1, head.tensor)}) == before


def one(build):
    """Return the verdict of the operator that ``build`` adds inside a cluster, and the analysis."""
    made, x = net()
    position = len(made.graph.operators)
    x = build(made, x)
    position = next(
        i
        for i, op in enumerate(made.graph.operators)
        if i >= position and flatbuffer.operator_name(made.model, op) not in ("DENSIFY", "PAD")
    )
    analysis = analyse(made.build(made.mean(made.block(x))))
    return analysis.operators[position], analysis


PAD = "padding {}; it must be {} on each side"
REFUSED = {
    "3x3": (lambda n, x: n.conv(x, 8, kernel=3, padding="SAME"), "3x3 convolution of 8 channels", "a depthwise"),
    "7x7": (lambda n, x: n.conv(x, 8, kernel=7, padding="SAME"), "7x7 convolution", "a depthwise and a 1x1"),
    "1x1 stride": (lambda n, x: n.conv(x, 8, stride=2), "1x1 convolution of stride 2", "move the stride"),
    "1x1 padded": (lambda n, x: n.conv(n.pad(x, 1, 1, 1, 1), 8), "1x1 convolution with padding", "no padding"),
    "groups": (lambda n, x: n.conv(x, 8, groups=2), "grouped", "groups=1"),
    "dilated": (lambda n, x: n.depthwise(x, dilation=2), "dilated", "dilation_rate=1"),
    "dw same": (lambda n, x: n.depthwise(x, stride=2), "padding 'same' at stride 2", "the mirror rewrite"),
    "dw valid": (lambda n, x: n.depthwise(x, padding="VALID"), "no padding; it must be 1", "ZeroPadding2D(1)"),
    "dw corner": (
        lambda n, x: n.depthwise(n.pad(x, 0, 1, 0, 1), stride=2, padding="VALID"),
        PAD.format("((0,1),(0,1))", 1),
        "the mirror rewrite",
    ),
    "dw 5x5 corner": (
        lambda n, x: n.depthwise(n.pad(x, 1, 2, 1, 2), kernel=5, stride=2, padding="VALID"),
        PAD.format("((1,2),(1,2))", 2),
        "the mirror rewrite",
    ),
    "dw odd pad": (
        lambda n, x: n.depthwise(n.pad(x, 2, 1, 1, 1), padding="VALID"),
        "((2,1),(1,1))",
        "ZeroPadding2D(1)",
    ),
    "dw 7x7": (lambda n, x: n.depthwise(x, kernel=7), "7x7 depthwise kernel; it must be 3x3 or 5x5", "kernel_size"),
    "dw stride 3": (lambda n, x: n.depthwise(x, stride=3), "stride 3x3; it must be 1 or 2", "strides"),
    "dw multiplier": (
        lambda n, x: n.depthwise(x, multiplier=2),
        "depth multiplier 2; it must be 1",
        "depth_multiplier=1",
    ),
    "max pool": (lambda n, x: n.pool(x), "MAX_POOL_2D has no sparse form", "depthwise convolution of stride 2"),
    "sub": (lambda n, x: n.binary(x, x, "SUB"), "SUB has no sparse form", "add the negative"),
    "scalar": (
        lambda n, x: n.binary(x, n.constant(np.float32(2)), "MUL"),
        "the constant of MUL has rank 0; it must be 4",
        "[1, 1, 1, channels]",
    ),
    "map by constant": (
        lambda n, x: n.binary(x, n.constant(np.ones((1, 1, 1, 8), np.float32)), "MUL"),
        "MUL of a map by a constant",
        "fold it",
    ),
    "softmax": (lambda n, x: n.op("SOFTMAX", [x], n.shape(x)), "SOFTMAX has no sparse form", ""),
}


REASONS = {
    "3x3": "channels",
    "7x7": "kernel_size",
    "1x1 stride": "pointwise_stride",
    "1x1 padded": "pointwise_padding",
    "groups": "grouped",
    "dilated": "dilated",
    "dw same": "padding",
    "dw valid": "padding",
    "dw corner": "padding",
    "dw 5x5 corner": "padding",
    "dw odd pad": "padding",
    "dw 7x7": "kernel_size",
    "dw stride 3": "stride",
    "dw multiplier": "depth_multiplier",
    "max pool": "no_sparse_form",
    "sub": "no_sparse_form",
    "scalar": "rank",
    "map by constant": "constant_operand",
    "softmax": "no_sparse_form",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_that_fails_is_told_with_its_cure(case):
    build, rule, cure = REFUSED[case]
    found, analysis = one(build)
    assert not found.eligible
    assert found.code == REASONS[case]
    assert [each.code for each in analysis.dangers] == ["leaves_without_end"]
    assert all((each.code is None) == (each.rule == "") for each in analysis.operators)
    assert rule in found.rule
    assert cure in found.cure
    # What stands before it is switched on all the same, and hands it garbage: each was measured.
    assert analysis.on
    assert [danger.rule.split(" without")[0] for danger in analysis.dangers] == ["its output leaves sparse inference"]


ALLOWED = {
    "dw 3x3": lambda n, x: n.depthwise(x),
    "dw 5x5": lambda n, x: n.depthwise(x, kernel=5),
    "dw 3x3 stride 2": lambda n, x: n.depthwise(n.pad(x, 1, 1, 1, 1), stride=2, padding="VALID"),
    "dw 5x5 stride 2": lambda n, x: n.depthwise(n.pad(x, 2, 2, 2, 2), kernel=5, stride=2, padding="VALID"),
    # XNNPACK adds a PAD to what 'same' pads at stride 1: 5x5 of half its padding.
    "dw pad and valid": lambda n, x: n.depthwise(n.pad(x, 1, 1, 1, 1), padding="VALID"),
    "1x1": lambda n, x: n.conv(x, 16),
    "1x1 same": lambda n, x: n.conv(x, 16, padding="SAME"),
    "add": lambda n, x: n.binary(x, n.unary(x, "LOGISTIC")),
    "mul": lambda n, x: n.binary(x, n.unary(x, "TANH"), "MUL"),
    "hard swish": lambda n, x: n.unary(x, "HARD_SWISH"),
    "dense on a map": lambda n, x: n.dense(x, 8, keep=True, zeros=1.0),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_xnnpack_takes_is_eligible(case):
    found, analysis = one(ALLOWED[case])
    assert not analysis.dangers
    assert (found.eligible, found.rule, found.code) == (True, "", None)
    assert found.cluster == 0


@pytest.mark.parametrize(
    ("make", "rule", "cure"),
    [
        (
            lambda n: n.conv(n.x, 8, kernel=3, stride=2, padding="SAME"),
            "padding 'same' at stride 2",
            "the mirror rewrite",
        ),
        (
            lambda n: n.conv(n.pad(n.x, 0, 1, 0, 1), 8, kernel=3, stride=2),
            "((0,1),(0,1))",
            "the mirror rewrite",
        ),
        (lambda n: n.conv(n.x, 8, kernel=3, stride=2), "no padding", "ZeroPadding2D(1)"),
        (lambda n: n.conv(n.pad(n.x, 1, 1, 1, 1), 8, kernel=3), "the first convolution has stride 1", "strides=2"),
    ],
)
def test_the_first_convolution(make, rule, cure):
    made = Net(1, 16, 16, 3)
    analysis = analyse(made.build(made.mean(made.block(make(made)))))
    assert not analysis.on
    stem = verdict(analysis, "CONV_2D", 0)
    assert not stem.eligible
    assert rule in stem.rule
    assert cure in stem.cure
    assert "cannot run in sparse inference" in verdict(analysis, "MEAN").rule


def test_same_padding_on_an_odd_size_is_a_flag_all_the_same():
    """It is symmetric there, but XNNPACK looks at explicit padding only; measured: off."""
    made = Net(1, 17, 17, 3)
    x = made.conv(made.x, 8, kernel=3, stride=2, padding="SAME")
    stem = verdict(analyse(made.build(made.mean(made.block(x)))), "CONV_2D", 0)
    assert (stem.rule, stem.cure) == (
        "padding 'same' at stride 2",
        "ZeroPadding2D(1) before it and padding='valid'",
    )


def test_a_pad_that_two_read_is_not_taken_in():
    made, x = net()
    padded = made.pad(x, 1, 1, 1, 1)
    a, b = (made.depthwise(padded, padding="VALID") for _ in range(2))
    analysis = analyse(made.build(made.mean(made.binary(a, b))))
    assert verdict(analysis, "PAD").rule == "PAD has no sparse form"
    assert analysis.dangers


def excite(made, x, keep=True):
    """Squeeze and excitation."""
    squeezed = made.mean(x, keep=keep)
    if not keep:
        shape = np.array([1, 1, 1, made.shape(x)[-1]], dtype=np.int32)
        options = schema.ReshapeOptionsT(newShape=shape)
        squeezed = made.op("RESHAPE", [squeezed, made.constant(shape)], shape.tolist(), options)
    return made.binary(x, made.unary(made.conv(squeezed, made.shape(x)[-1]), "LOGISTIC"), "MUL")


# As measured, but for the one that is wrong by its shape only: docs/design/inspection.md. (faster, wrong).
MEASURED = {
    "mean": (lambda n, x: [n.mean(x)], True, False),
    "mean, dense": (lambda n, x: [n.dense(n.mean(x), 1000)], True, False),
    "mean, two dense": (lambda n, x: [n.dense(n.dense(n.mean(x), 1000), 10)], True, False),
    "kept mean, dense": (lambda n, x: [n.dense(n.mean(x, keep=True), 1000)], True, False),
    "kept mean, dense on a map": (lambda n, x: [n.dense(n.mean(x, keep=True), 1000, keep=True)], False, False),
    "kept mean as output": (lambda n, x: [n.mean(x, keep=True)], True, True),
    "sum": (lambda n, x: [n.mean(x, name="SUM")], True, False),
    "mean over channels": (lambda n, x: [n.mean(x, axes=(3,))], True, False),
    "kept mean over channels inside": (
        lambda n, x: [n.mean(n.block(n.binary(x, n.unary(n.mean(x, True, (3,)), "LOGISTIC"), "MUL")))],
        True,
        True,
    ),
    "squeeze and excitation": (lambda n, x: [n.mean(n.block(excite(n, x)))], True, False),
    "squeeze, reshape": (lambda n, x: [n.mean(n.block(excite(n, x, keep=False)))], False, False),
    "1x1 head": (lambda n, x: [n.conv(n.mean(x, keep=True), 16)], True, True),
    "1x1 leaves": (lambda n, x: [n.mean(x), n.conv(x, 8)], True, True),
    "tanh leaves": (lambda n, x: [n.mean(x), n.unary(x, "TANH")], True, True),
    "max pool inside": (lambda n, x: [n.mean(n.conv(n.pool(x), 8))], True, True),
    "average pool at the end": (lambda n, x: [n.pool(n.conv(x, 8), "AVERAGE_POOL_2D", 8)], False, False),
    "no mean": (lambda n, x: [n.conv(x, 8)], False, False),
    "sub beside": (lambda n, x: [n.mean(n.conv(n.binary(x, n.unary(x, "TANH"), "SUB"), 8))], False, False),
}


@pytest.mark.parametrize("case", MEASURED)
def test_whole_graphs_are_predicted_as_they_were_measured(case):
    build, on, wrong = MEASURED[case]
    made, x = net()
    analysis = analyse(made.build(*build(made, x)))
    assert (analysis.on, bool(analysis.dangers)) == (on, wrong)


def test_what_is_read_outside_breaks_a_cluster():
    made, x = net()
    analysis = analyse(made.build(made.mean(made.block(made.binary(x, made.unary(x, "TANH"), "SUB")))))
    assert analysis.clusters[0].reason.endswith("is also read by #6 SUB, which cannot run in sparse inference")
    assert verdict(analysis, "TANH").rule == analysis.clusters[0].reason
    assert verdict(analysis, "CONV_2D").rule == "comes after #6 SUB, which cannot run in sparse inference"


def test_a_head_on_a_1x1_map_is_told_to_be_a_dense_layer():
    made, x = net()
    (danger,) = analyse(made.build(made.conv(made.mean(x, keep=True), 4))).dangers
    assert danger.cure == "write the 1x1 convolution on a 1x1 map as Dense"
    assert "CONV_2D" in danger.subject


def test_half_precision_weights_are_followed_through_dequantize():
    made = Net(1, 16, 16, 3)
    x = made.depthwise(made.stem())
    half = made.weights((8, 1, 1, 8), 0.9, True, np.float16)
    weights = made.op("DEQUANTIZE", [half], (8, 1, 1, 8))
    options = schema.Conv2DOptionsT(padding=schema.Padding.VALID, strideH=1, strideW=1)
    x = made.op("CONV_2D", [x, weights, made.bias(8)], (1, 8, 8, 8), options)
    analysis = analyse(made.build(made.mean(x)))
    assert analysis.on
    assert [v.rule for v in analysis.operators if v.operator in ("DENSIFY", "DEQUANTIZE")] == [
        "unpacks a constant when the file is loaded"
    ] * 2
    assert sum(use.spmm for use in analysis.weights) == 1


def test_integers_have_no_sparse_kernels():
    made = Net(1, 16, 16, 3, kind=schema.TensorType.INT8)
    weights = made.weights((8, 1, 1, 3), 0.9, False, np.int8)
    options = schema.Conv2DOptionsT(padding=schema.Padding.VALID, strideH=1, strideW=1)
    y = made.op("CONV_2D", [made.x, weights, made.bias(8)], (1, 16, 16, 8), options, kind=schema.TensorType.INT8)
    (found,) = analyse(made.build(y)).operators
    assert found.rule == "does not compute in float32"


def test_a_sparse_constant_read_as_if_dense_is_told():
    made, x = net()
    last = made.graph.operators[-1]
    densify = made.graph.operators[-2]
    last.inputs = np.array([last.inputs[0], densify.inputs[0], last.inputs[2]], dtype=np.int32)
    analysis = analyse(made.build(made.mean(x)))
    assert "only DENSIFY and FULLY_CONNECTED can" in analysis.dangers[0].rule
    assert verdict(analysis, "CONV_2D").rule == "its weights are sparse without a DENSIFY"


def test_the_graphs_of_these_tests_run():
    """LiteRT takes them: they are files, not only tables."""
    made, x = net()
    session = LiteRTSession(made.content(made.dense(made.mean(made.block(excite(made, x))), 4)))
    (y,) = session.run([np.ones((1, 16, 16, 3), np.float32)], list(session.inputs), list(session.outputs))
    assert y.shape == (1, 4)
    assert np.isfinite(y).all()


def test_clusters_are_numbered_over_subgraphs():
    made, x = net()
    model = made.build(made.mean(x))
    model.subgraphs.append(model.subgraphs[0])
    analysis = analyse(model)
    assert [cluster.subgraph for cluster in analysis.clusters] == [0, 1]
    assert {v.cluster for v in analysis.operators if v.subgraph == 1 and v.operator == "MEAN"} == {1}


def test_a_long_chain_takes_time_in_proportion():
    made, x = net()
    for _ in range(3000):
        x = made.unary(x, "NEG")
    analysis = analyse(made.build(made.mean(x)))
    assert len(analysis.clusters[0].nodes) == 3004
