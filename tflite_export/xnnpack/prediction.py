"""What `tflite_export.xnnpack.clusters.analyse` says of a file: operators, clusters, weights, where it is wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OperatorVerdict:
    """What becomes of one operator.

    Args:
        subgraph: Number of its subgraph.
        index: Its position there.
        operator: Its kind: ``CONV_2D``.
        name: Of its first output.
        shape: Of its first output; None where unknown.
        eligible: It can run in sparse inference, given enough zeros.
        rule: Why not, or what it does; empty where there is nothing to say.
        cure: What would change that; empty where nothing does or need be.
        cluster: Index in :attr:`Analysis.clusters`, None outside.
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


@dataclass(frozen=True)
class Cluster:
    """Operators that XNNPACK would switch to sparse inference together.

    Args:
        subgraph: Number of their subgraph.
        nodes: Their positions there.
        zeros: Zeros of its 1x1 weights.
        weights: Number of its 1x1 weights.
        on: It is switched on, on a processor that has the kernels.
        reason: Why, or why not.
        whole: It begins and ends where it may, and nothing outside reads its values.
    """

    subgraph: int
    nodes: tuple[int, ...]
    zeros: int
    weights: int
    on: bool
    reason: str
    whole: bool


@dataclass(frozen=True)
class WeightUse:
    """What reads a constant.

    Args:
        subgraph: Number of its subgraph.
        tensor: Its index there.
        spmm: A sparse matrix kernel reads it.
        reason: Which, or why none.
    """

    subgraph: int
    tensor: int
    spmm: bool
    reason: str


@dataclass(frozen=True)
class Danger:
    """A place where the file answers wrongly on a processor with the sparse kernels.

    Args:
        subgraph: Number of the subgraph.
        index: Position of the operator.
        subject: The operator and its output.
        rule: What is wrong.
        cure: What to do about it.
    """

    subgraph: int
    index: int
    subject: str
    rule: str
    cure: str


@dataclass(frozen=True)
class Analysis:
    """The prediction for a file.

    Args:
        operators: One for each operator, in the file's order.
        clusters: Those with a 1x1 convolution, switched on or not.
        weights: One for each constant that an operator reads: second inputs, and others of rank 2 and more.
        dangers: Where an answer would be wrong.
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
