"""Every way out of the stage that encodes and verifies, with a fault injected where the file is compared."""

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_prune.devices import DEVICES
from tests.tflite_export.graphs import Net
from tflite_export import Encoding, ExportError
from tflite_export.convert.number_types import FLOAT32, INT8
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.model.inputs import Inputs
from tflite_export.model.reference import Reference
from tflite_export.plan.plan import Plan, make_plan
from tflite_export.plan.weights import Names, collect
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.verification import verified_encoding as stage
from tflite_export.verification.verified_encoding import VerifiedEncoder

NAMES = ("first", "second", "third")
ALL = frozenset(NAMES)


class Faults:
    """Stands for the comparison: it fails where the sparse weights of a file are among the faults."""

    def __init__(self, *faults):
        self.faults = [frozenset(fault) for fault in faults]
        self.tried = []
        self.beside = {}

    def __call__(self, file, reference, subject, kind, tolerance, dense):
        sparse = frozenset(
            tensor.name.decode() for tensor in file.model.subgraphs[0].tensors if tensor.sparsity is not None
        )
        self.tried.append(sparse)
        self.subject = subject
        self.beside[sparse] = dense
        if sparse in self.faults:
            raise ExportError(subject, "must be right", f"{len(sparse)} sparse", "Mend it.")
        return f"verified with {sorted(sparse)}"


@pytest.fixture(scope="module")
def dense():
    """Three matrices of 1x4 blocks, 90 % of them zero, one after the other."""
    net = Net(1, 64)
    x = net.x
    for name in NAMES:
        values = np.ones((64, 16, 4), np.float32)
        values[np.random.default_rng(0).random((64, 16)) < 0.9] = 0
        weights = net.constant(values.reshape(64, 64))
        net.graph.tensors[weights].name = name.encode()
        x = net.op("FULLY_CONNECTED", [x, weights, -1], (1, 64), schema.FullyConnectedOptionsT())
    return TFLiteFile(net.content(x))


@pytest.fixture
def encode(dense, monkeypatch):
    """A function that encodes with faults, and returns what came of it, and what was tried."""
    session = LiteRTSession(dense)
    x = np.random.default_rng(1).normal(size=(1, 64)).astype("float32")
    names, outputs = tuple(session.inputs), tuple(session.outputs)
    reference = Reference(Inputs((x,), False), tuple(session.run([x], names, outputs)), names, outputs)
    weights = collect(dense.model, names=Names.of([]), rows={(0, i): 1 for i in range(20)})

    def run(
        *faults,
        strict=False,
        kind=FLOAT32,
        device=DEVICES["any"],
        runs_sparse=False,
        where_sparse=None,
        sparse=True,
        encoding=Encoding.BLOCK,
    ):
        comparison = Faults(*faults)
        monkeypatch.setattr(stage, "compare_runs", comparison)
        if where_sparse is not None:
            monkeypatch.setattr(stage, "why_not_executed", lambda *_: None)
            monkeypatch.setattr(stage, "sparse_runtime", lambda _: "web")
            monkeypatch.setattr(stage, "verify_where_sparse", where_sparse)
        encoder = VerifiedEncoder(dense, weights, reference, device, kind, None, strict, runs_sparse)
        lines = (replace(line, encoding=encoding) for line in make_plan(weights).sparse)
        plan = Plan(tuple(lines))
        assert {line.name for line in plan.lines} == ALL
        plan = plan if sparse else plan.only([], "")
        try:
            return encoder.encode(plan), comparison
        except ExportError as error:
            return error, comparison

    return run


def stored(made):
    """Which weights are sparse in the plan, once it was seen that the file says the same."""
    lines = {line.name for line in made.plan.sparse}
    assert lines == {t.name.decode() for t in made.file.model.subgraphs[0].tensors if t.sparsity is not None}
    assert made.verification == f"verified with {sorted(lines)}"
    return lines


def reasons(made):
    return {line.name: line.reason for line in made.plan.lines if line.encoding is Encoding.DENSE}


def test_a_file_that_is_right_is_compared_once(encode):
    made, comparison = encode()
    assert stored(made) == ALL
    assert comparison.tried == [ALL]


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_makes_the_file_wrong_is_left_dense_and_no_other(encode, name):
    made, comparison = encode(*({name, *others} for others in subsets(ALL - {name})))
    assert stored(made) == ALL - {name}
    assert reasons(made) == {name: "stored sparse, the file was wrong: must be right, received 3 sparse"}
    assert comparison.tried == [ALL, frozenset(), *(frozenset({each}) for each in NAMES), ALL - {name}]


def test_where_every_weight_makes_it_wrong_all_are_dense(encode):
    made, comparison = encode(*(subset for subset in subsets(ALL) if subset))
    assert stored(made) == set()
    assert set(reasons(made)) == ALL
    assert comparison.tried[-1] == frozenset()
    assert len(comparison.tried) == 6


def test_weights_that_are_wrong_only_together_are_all_dense(encode):
    made, comparison = encode(ALL)
    assert stored(made) == set()
    assert set(reasons(made).values()) == {"stored sparse, the file was wrong: must be right, received 3 sparse"}
    assert comparison.subject == "the dense file"


def test_weights_that_are_wrong_together_without_the_one_that_is_wrong_alone(encode):
    made, comparison = encode(ALL, {"first"}, {"second", "third"})
    assert stored(made) == set()
    assert reasons(made) == {
        "first": "stored sparse, the file was wrong: must be right, received 3 sparse",
        "second": "stored sparse, the file was wrong: must be right, received 2 sparse",
        "third": "stored sparse, the file was wrong: must be right, received 2 sparse",
    }
    assert comparison.tried[-2:] == [frozenset({"second", "third"}), frozenset()]


@pytest.mark.parametrize("strict", [False, True])
def test_a_dense_file_that_is_wrong_is_no_weights_fault(encode, strict):
    error, comparison = encode(*subsets(ALL), strict=strict)
    assert str(error).startswith("the dense file, before any weight was stored sparse: must be right. Received: 0")
    assert comparison.tried == [ALL, frozenset()]


def test_a_plan_without_sparse_weights_is_compared_once(encode):
    made, comparison = encode(sparse=False)
    assert stored(made) == set()
    error, comparison = encode(frozenset(), sparse=False)
    assert str(error).startswith("the dense file: must be right")
    assert comparison.tried == [frozenset()]


def test_a_quantized_file_is_held_against_the_dense_one_which_runs_once(encode, monkeypatch):
    runs = []
    monkeypatch.setattr(stage, "answers", lambda *arguments: runs.append(arguments) or "answers")
    made, comparison = encode(*({"first", *others} for others in subsets(ALL - {"first"})), kind=INT8)
    assert stored(made) == ALL - {"first"}
    assert comparison.beside == {subset: "answers" if subset else None for subset in comparison.tried}
    assert len(runs) == 1
    _, comparison = encode(kind=FLOAT32)
    assert (len(runs), comparison.beside) == (1, {ALL: None})
    encode(kind=INT8, sparse=False)
    assert len(runs) == 1


def test_a_weight_that_is_wrong_only_where_sparse_kernels_are_on_is_left_dense(encode):
    seen = []

    def where_sparse(file, *_, subject, tolerance, runtime):
        sparse = {t.name.decode() for t in file.model.subgraphs[0].tensors if t.sparsity is not None}
        seen.append((runtime, subject, tolerance))
        if "second" in sparse:
            raise ExportError(f"{subject} (a runtime)", "must answer as the model", "garbage", "Mend it.")
        return f"ran with {sorted(sparse)}"

    made, _ = encode(device=DEVICES["android"], runs_sparse=True, where_sparse=where_sparse, encoding=Encoding.DENSIFY)
    assert stored(made) == {"first", "third"}
    assert made.sparse_run == "ran with ['first', 'third']"
    assert reasons(made) == {"second": "stored sparse, the file was wrong: must answer as the model, received garbage"}
    assert set(seen) == {("web", "the sparse file", FLOAT32.tolerance)}
    # In blocks, no sparse kernel of XNNPACK reads a weight, and with sparse inference off none either.
    seen.clear()
    assert encode(device=DEVICES["android"], runs_sparse=True, where_sparse=where_sparse)[0].sparse_run is None
    made, _ = encode(device=DEVICES["android"], where_sparse=where_sparse, encoding=Encoding.DENSIFY)
    assert (stored(made), made.sparse_run, seen) == (ALL, None, [])


def test_strict_names_the_weight_or_says_that_it_is_several(encode):
    error, _ = encode(ALL, {"second"}, strict=True)
    assert str(error).startswith("weight 'second': stored sparse must leave the outputs as they are")
    assert error.__cause__ is error.received
    error, _ = encode(ALL, strict=True)
    assert str(error).startswith("weight 'several weights together': stored sparse must leave the outputs")


def subsets(names):
    """All sets of some of the names, the empty one too."""
    found = [frozenset()]
    for name in sorted(names):
        found += [subset | {name} for subset in found]
    return found
