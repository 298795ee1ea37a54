"""The result of `tflite_export.xnnpack.clusters.analyse`: operators, clusters, weights, and where a file is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from tflite_export.xnnpack.reasons import Reason

__all__ = ["SPARSE_KERNELS", "Analysis", "Cluster", "Danger", "OperatorVerdict", "WeightUse"]

SPARSE_KERNELS = "where sparse kernels exist"


@dataclass(frozen=True)
class OperatorVerdict:
    """What becomes of one operator.

    Args:
        subgraph: number of its subgraph.
        index: its position there.
        operator: its kind: `CONV_2D`.
        name: of its first output.
        shape: of its first output; None where unknown.
        eligible: it can run in sparse inference, given enough zeros.
        rule: why it cannot, or what becomes of it; empty for an operator that runs as usual.
        cure: what would change that; empty if nothing would, or nothing needs to change.
        cluster: index in `Analysis.clusters`, None outside.
        code: the name of the rule; None if it is empty.
    """

    subgraph: int
    index: int
    operator: str
    name: str
    shape: tuple[int, ...] | None
    eligible: bool
    rule: str
    cure: str
    cluster: int | None
    code: Reason | None = None


@dataclass(frozen=True)
class Cluster:
    """Operators that XNNPACK would switch to sparse inference together.

    Args:
        subgraph: number of their subgraph.
        nodes: their positions there.
        zeros: zeros of its 1x1 weights.
        weights: number of its 1x1 weights.
        on: it is switched on, on a processor that has the kernels.
        reason: why, or why not.
        whole: it begins and ends where it may, and nothing outside reads its values.
        code: the reason's name.
    """

    subgraph: int
    nodes: tuple[int, ...]
    zeros: int
    weights: int
    on: bool
    reason: str
    whole: bool
    code: Reason


@dataclass(frozen=True)
class WeightUse:
    """What reads a constant.

    Args:
        subgraph: number of its subgraph.
        tensor: its index there.
        spmm: a sparse matrix kernel reads it.
        reason: which, or why none.
        code: the reason's name.
    """

    subgraph: int
    tensor: int
    spmm: bool
    reason: str
    code: Reason


@dataclass(frozen=True)
class Danger:
    """A place where the file gives wrong results.

    Args:
        subgraph: number of the subgraph.
        index: position of the operator.
        subject: the operator and its output.
        rule: what is wrong.
        cure: what to do about it.
        code: the rule's name.
        where: the results are wrong: on processors that have the sparse kernels, or in TensorFlow Lite Micro.
    """

    subgraph: int
    index: int
    subject: str
    rule: str
    cure: str
    code: Reason
    where: str = SPARSE_KERNELS


@dataclass(frozen=True)
class Analysis:
    """The prediction for a file.

    Args:
        operators: one for each operator, in the file's order.
        clusters: those with a 1x1 convolution, switched on or not.
        weights: one for each constant that an operator reads: second inputs, and others of rank 2 and more.
        dangers: where results would be wrong.
    """

    operators: tuple[OperatorVerdict, ...]
    clusters: tuple[Cluster, ...]
    weights: tuple[WeightUse, ...]
    dangers: tuple[Danger, ...]

    @property
    def on(self) -> bool:
        """Whether sparse inference is switched on anywhere."""
        return any(cluster.on for cluster in self.clusters)

    def use(self, subgraph: int, tensor: int) -> WeightUse | None:
        """Return what reads a constant, None where it is no weight."""
        return next((use for use in self.weights if (use.subgraph, use.tensor) == (subgraph, tensor)), None)
