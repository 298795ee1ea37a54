"""Where XNNPACK would switch a .tflite to sparse inference, op by op, and where the results would then be wrong.

XNNPACK rewrites parts of a graph to channels first (NCHW), where 1x1 convolutions multiply by sparse matrices (SpMM):
`xnn_subgraph_rewrite_for_nchw` in XNNPACK's `src/subgraph.c`, asked for by LiteRT's delegate as soon as one of
its operators reads a weight that a DENSIFY unpacks. This module follows the same steps on the file:

1. judge each operator by itself (`tflite_export.xnnpack.nchw`);
2. join operators that read each other; one that reads anything else spoils its part of the graph;
3. refuse clusters of which a value is read from outside;
4. switch on those of which more than 2/3 of the 1x1 weights are zero.

Step 3 does not look at values that leave a cluster without being read inside: an operator there that cannot write
channels last is run on data in the wrong order, without a message. Such places are reported as a
`tflite_export.xnnpack.prediction.Danger`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from keras_prune.arrays.union_find import Elements
from tflite_export.xnnpack.nchw import is_pointwise, is_spatial, judge
from tflite_export.xnnpack.padding import Pads, fused_padding
from tflite_export.xnnpack.prediction import Analysis, Cluster, Danger, OperatorVerdict, WeightUse
from tflite_export.xnnpack.reasons import Reason
from tflite_export.xnnpack.subgraphs import Graph
from tflite_export.xnnpack.verdicts import Role, Verdict

__all__ = ["DENSE", "ZEROS_NEEDED", "analyse"]

ZEROS_NEEDED = (2, 3)
"""More than this share, as a fraction, of a cluster's 1x1 weights must be zero."""
DENSE = "store dense every weight that XNNPACK reads"


def analyse(model: Any, *, assume_sparse: Collection[tuple[int, int]] = ()) -> Analysis:
    """Predict XNNPACK's sparse inference on a file, for a processor that has it.

    Those are ARM, WebAssembly with SIMD, and x86 without AVX. A file whose graph is split between XNNPACK and
    other kernels is treated as one graph per subgraph, in which the other operators are no part of a cluster.

    Args:
        model: a sound `ModelT`: see `tflite_export.file.flatbuffer.read`.
        assume_sparse: (subgraph, tensor) of dense constants to be treated as if they were stored behind a
            DENSIFY, for a plan that considers it.

    Example:
        >>> from ai_edge_litert import schema_py_generated as schema
        >>> analyse(schema.ModelT(subgraphs=[schema.SubGraphT(tensors=[], operators=[])])).on
        False
    """
    parts: list[Analysis] = []
    for number in range(len(model.subgraphs)):
        assumed = {tensor for subgraph, tensor in assume_sparse if subgraph == number}
        first = sum(len(part.clusters) for part in parts)
        parts.append(_Part(Graph(model, number, assumed)).analysis(first))
    return Analysis(
        tuple(verdict for part in parts for verdict in part.operators),
        tuple(cluster for part in parts for cluster in part.clusters),
        tuple(use for part in parts for use in part.weights),
        tuple(danger for part in parts for danger in part.dangers),
    )


@dataclass(frozen=True)
class _Obstacle:
    """What keeps an operator, or its whole cluster, from sparse inference, though the operator itself could.

    Args:
        reason: its name.
        what: in words, behind the verb where there is one.
        cure: what would change that.
        verb: "reads", where it is the operator right after the obstacle; else "comes after".
    """

    reason: Reason
    what: str
    cure: str = ""
    verb: str = ""

    @property
    def rule(self) -> str:
        """The obstacle in words."""
        return f"{self.verb} {self.what}".strip()

    def from_further_on(self) -> _Obstacle:
        """Return the same obstacle as the operators further on meet it; they cannot cure it."""
        return _Obstacle(self.reason, self.what, verb="comes after")


class _Part:
    """The prediction for one subgraph, step by step."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.pads: dict[int, Pads] = {}
        self.fused: dict[int, int] = {}
        for position in range(len(graph.operators)):
            found = fused_padding(graph, position)
            if found is not None:
                self.fused[position] = found[0]
                self.pads[found[0]] = found[1]
        none = Verdict(Role.NONE)
        self.verdicts = [
            none if i in self.fused or i in graph.unpacking else judge(graph, i, self.pads.get(i, (0, 0, 0, 0)))
            for i in range(len(graph.operators))
        ]
        self.spoiled: dict[int, _Obstacle] = {}
        self.leader = self._join()
        self.members: dict[int, list[int]] = defaultdict(list)
        for position, verdict in enumerate(self.verdicts):
            if verdict.role:
                self.members[self.leader[position]].append(position)
        self.broken = self._broken()

    def reads(self, position: int) -> list[int]:
        """Return the computed tensors that an operator reads, through the PAD that it takes in."""
        tensors = []
        for tensor in dict.fromkeys(self.graph.inputs(position)):
            producer = self.graph.producer.get(tensor)
            if producer in self.fused:
                tensors += [source for source in [self.graph.input(producer, 0)] if source is not None]
            elif self.graph.stored(tensor) is None:
                tensors.append(tensor)
        return tensors

    def _join(self) -> list[int]:
        """Step 2: join what reads each other, and note what spoils it; return a number for each operator's cluster."""
        roles = [verdict.role for verdict in self.verdicts]
        producers = self.graph.producer
        # Nothing is rewritten where no operator could end a cluster.
        ends = [
            position
            for position, role in enumerate(roles)
            if Role.END in role
            and any(roles[producers[t]] & (Role.STEM | Role.INSIDE) for t in self.reads(position) if t in producers)
        ]
        elements = Elements()
        labels = elements.fresh(len(roles))
        if not ends:
            no_end = _Obstacle(Reason.NO_END, "no spatial mean or DEPTH_TO_SPACE comes after it")
            self.spoiled = {position: no_end for position, role in enumerate(roles) if role}
            return [int(label) for label in labels]
        for position, role in enumerate(roles):
            if not role & (Role.INSIDE | Role.END):
                continue
            for tensor in self.reads(position):
                producer = producers.get(tensor)
                if producer is None:
                    start = "a 3x3 convolution of stride 2 and 3 channels must stand before it"
                    found = _Obstacle(Reason.READS_GRAPH_INPUT, "an input of the graph", start, verb="reads")
                    self.spoiled.setdefault(position, found)
                elif producer in self.spoiled:
                    self.spoiled.setdefault(position, self.spoiled[producer].from_further_on())
                elif roles[producer] & (Role.STEM | Role.INSIDE):
                    elements.tie(labels[[producer]], labels[[position]], None)
                else:
                    outside = f"{self._label(producer)}, which cannot run in sparse inference"
                    self.spoiled.setdefault(position, _Obstacle(Reason.READS_OUTSIDE, outside, verb="reads"))
        return [int(label) for label in elements.find(labels)]

    def _broken(self) -> dict[int, _Obstacle]:
        """Steps 2 and 3: return why each cluster that is never switched on is not, by its leader."""
        broken: dict[int, _Obstacle] = {}
        for position, why in self.spoiled.items():
            broken.setdefault(self.leader[position], why)
        sound = {position for leader, nodes in self.members.items() if leader not in broken for position in nodes}
        for position in sorted(sound):
            if not self.verdicts[position].role & (Role.INSIDE | Role.END):
                continue
            for tensor in self.reads(position):
                outside = [i for i in self._readers(tensor) if i not in sound or not self._joins(i)]
                name = self.graph.name(tensor)
                if tensor in self.graph.outputs:
                    rule = f"'{name}' is read in sparse inference and is also an output of the graph"
                    broken.setdefault(self.leader[position], _Obstacle(Reason.READ_AND_OUTPUT, rule))
                elif outside:
                    rule = f"'{name}' is also read by {self._label(outside[0])}, which cannot run in sparse inference"
                    cure = self.verdicts[outside[0]].cure
                    broken.setdefault(self.leader[position], _Obstacle(Reason.READ_OUTSIDE, rule, cure))
        return broken

    def _joins(self, position: int) -> bool:
        return bool(self.verdicts[position].role & (Role.INSIDE | Role.END))

    def _readers(self, tensor: int) -> list[int]:
        """Return the operators that read a tensor, a PAD replaced by the convolution that takes it in."""
        return [self.fused.get(position, position) for position in self.graph.consumers.get(tensor, [])]

    def _label(self, position: int) -> str:
        return f"#{position} {self.graph.names[position]}"

    def analysis(self, first: int) -> Analysis:
        """Step 4: return the analysis; `first` is the number of clusters before these."""
        sparse_weights = self._has_sparse_weights()
        clusters: list[Cluster] = []
        of: dict[int, int] = {}
        for leader, nodes in sorted(self.members.items(), key=lambda item: item[1][0]):
            pointwise = [position for position in nodes if is_pointwise(self.graph, position)]
            if len(nodes) < 2 or not pointwise:
                continue
            of.update(dict.fromkeys(nodes, first + len(clusters)))
            clusters.append(self._cluster(nodes, pointwise, self.broken.get(leader), sparse_weights))
        switched_on = {i for cluster in clusters if cluster.on for i in cluster.nodes}
        verdicts = [self._verdict(i, of.get(i), clusters, first) for i in range(len(self.verdicts))]
        return Analysis(
            tuple(verdicts),
            tuple(clusters),
            tuple(self._uses(verdicts, switched_on)),
            tuple(self._dangers(switched_on)),
        )

    def _cluster(
        self, nodes: list[int], pointwise: list[int], broken: _Obstacle | None, sparse_weights: bool
    ) -> Cluster:
        kept = [stored for i in pointwise if (stored := self.graph.stored(self.graph.input(i, 1))) is not None]
        zeros, weights = sum(stored.zeros for stored in kept), sum(stored.size for stored in kept)
        share = f"{100 * zeros / max(weights, 1):.0f} % zeros"
        if broken is not None:
            code, reason = broken.reason, broken.rule
        elif zeros * ZEROS_NEEDED[1] <= weights * ZEROS_NEEDED[0]:
            code, reason = Reason.TOO_FEW_ZEROS, f"{share} in its 1x1 weights; more than 2/3 must be zero"
        elif not sparse_weights:
            code, reason = Reason.NOT_STORED_SPARSE, f"{share}, but no weight is stored sparse behind a DENSIFY"
        else:
            code, reason = Reason.SPARSE_INFERENCE, f"{share} in its 1x1 weights: sparse inference"
        on = code is Reason.SPARSE_INFERENCE
        return Cluster(self.graph.number, tuple(nodes), zeros, weights, on, reason, broken is None, code)

    def _has_sparse_weights(self) -> bool:
        """Return whether an operator that the delegate takes reads a weight that a DENSIFY unpacks."""
        graph = self.graph
        for position in range(len(graph.operators)):
            if position in graph.unpacking or not (
                self.verdicts[position].role or graph.names[position] == "FULLY_CONNECTED"
            ):
                continue
            if any(stored.densified for t in graph.inputs(position) if (stored := graph.stored(t)) is not None):
                return True
        return False

    def _verdict(self, position: int, cluster: int | None, clusters: list[Cluster], first: int) -> OperatorVerdict:
        graph, verdict = self.graph, self.verdicts[position]
        eligible, rule, cure, code = bool(verdict.role), verdict.rule, verdict.cure, verdict.reason
        if position in graph.unpacking:
            rule, code = "unpacks a constant when the file is loaded", Reason.UNPACKS_A_CONSTANT
        elif position in self.fused:
            reader = self.fused[position]
            eligible, rule = bool(self.verdicts[reader].role), f"taken in by {self._label(reader)}"
            code = Reason.TAKEN_IN
        elif eligible:
            broken = self.spoiled.get(position) or self.broken.get(self.leader[position])
            if broken is not None:
                eligible, rule, cure, code = False, broken.rule, broken.cure, broken.reason
            elif cluster is None:
                eligible, rule, code = False, "no 1x1 convolution is connected with it", Reason.NO_POINTWISE
            elif not clusters[cluster - first].on:
                rule, code = clusters[cluster - first].reason, clusters[cluster - first].code
        output = graph.output(position)
        return OperatorVerdict(
            graph.number,
            position,
            graph.names[position],
            "" if output is None else graph.name(output),
            graph.shape(output),
            eligible,
            rule,
            cure,
            cluster,
            code,
        )

    def _uses(self, verdicts: list[OperatorVerdict], switched_on: set[int]) -> list[WeightUse]:
        """Return the use of each constant that an operator reads, vectors other than second inputs left out."""
        graph = self.graph
        found: dict[int, WeightUse] = {}
        for position, operator in enumerate(graph.operators):
            slots = range(len(operator.inputs)) if operator.inputs is not None else ()
            for slot in () if position in graph.unpacking else slots:
                stored = graph.stored(graph.input(position, slot))
                if stored is None or (slot != 1 and len(graph.shape(stored.tensor) or ()) < 2):
                    continue
                spmm = slot == 1 and position in switched_on and is_pointwise(graph, position)
                if spmm:
                    code = Reason.SPARSE_INFERENCE
                    reason = f"multiplied as a sparse matrix by {self._label(position)}"
                elif position in switched_on:
                    code = Reason.READ_DENSE_IN_CLUSTER
                    reason = f"read dense by {self._label(position)}, in channels-first layout"
                else:
                    code = verdicts[position].code or Reason.DENSE_KERNELS
                    reason = f"{self._label(position)}: {verdicts[position].rule or 'dense kernels'}"
                if stored.tensor not in found or (spmm and not found[stored.tensor].spmm):
                    found[stored.tensor] = WeightUse(graph.number, stored.tensor, spmm, reason, code)
        return list(found.values())

    def _dangers(self, switched_on: set[int]) -> list[Danger]:
        """Return the operators of active clusters that hand channels-first data to others, or misread it."""
        graph = self.graph
        found = self._misread()
        for position in sorted(switched_on):
            output = graph.output(position)
            if output is None:
                continue
            inside = any(i in switched_on and self._joins(i) for i in self._readers(output))
            name, options = graph.names[position], graph.operators[position].builtinOptions
            keeps = bool(getattr(options, "keepDims", False))
            rule, cure, code = "", "", Reason.LEAVES_WITHOUT_END
            if name in ("MEAN", "SUM"):
                if keeps and not inside and output in graph.outputs:
                    rule, cure = "a mean with keepdims=True is wrong as an output of the graph", "keepdims=False"
                    code = Reason.KEPT_MEAN_AS_OUTPUT
                elif keeps and inside and not is_spatial(graph, position):
                    rule, cure = "a mean over other axes than height and width is wrong in sparse inference", DENSE
                    code = Reason.MEAN_OVER_OTHER_AXES
            elif name != "DEPTH_TO_SPACE" and not inside:
                rule = "its output leaves sparse inference without a spatial mean or DEPTH_TO_SPACE, and is garbage"
                cure = self._cure_of_exit(output)
            if rule:
                where = f"{self._label(position)} '{graph.name(output)}'"
                found.append(Danger(graph.number, position, where, rule, cure, code))
        return found

    def _misread(self) -> list[Danger]:
        """Return the operators that read a sparse constant as if it were dense."""
        graph = self.graph
        return [
            Danger(
                graph.number,
                position,
                f"{self._label(position)} '{graph.name(tensor)}'",
                "reads a sparse constant, which only DENSIFY and FULLY_CONNECTED can",
                "put a DENSIFY between",
                Reason.READS_SPARSE_CONSTANT,
            )
            for position, name in enumerate(graph.names)
            for tensor in graph.inputs(position)
            if name not in ("DENSIFY", "FULLY_CONNECTED") and graph.tensors[tensor].sparsity is not None
        ]

    def _cure_of_exit(self, output: int) -> str:
        """Return what would let the operator after an exit join: its own cure, or else dense weights."""
        shape = self.graph.shape(output)
        if shape is not None and len(shape) == 4 and shape[1:3] == (1, 1):
            return "write the 1x1 convolution on a 1x1 map as Dense"
        cures = [self.verdicts[i].cure for i in self._readers(output) if self.verdicts[i].cure]
        return cures[0] if cures else DENSE
