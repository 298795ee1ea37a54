"""Why something of a file does not run in sparse inference: names that stay, beside texts that a person reads."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Reason"]


class Reason(StrEnum):
    """The reason for what `tflite_export.inspect` says of an operator, a cluster or a danger.

    A reason compares equal to its text, is JSON, and keeps its name; the sentences beside it may change.

    Example:
        >>> Reason.NO_BIAS == "no_bias"
        True
    """

    # An operator by itself.
    NO_SPARSE_FORM = "no_sparse_form"
    NUMBER_TYPE = "number_type"
    FUSED_ACTIVATION = "fused_activation"
    RANK = "rank"
    COMPUTED_WEIGHTS = "computed_weights"
    SPARSE_WITHOUT_DENSIFY = "sparse_without_densify"
    QUANTIZED_WEIGHTS = "quantized_weights"
    NO_BIAS = "no_bias"
    GROUPED = "grouped"
    DILATED = "dilated"
    POINTWISE_STRIDE = "pointwise_stride"
    POINTWISE_PADDING = "pointwise_padding"
    KERNEL_SIZE = "kernel_size"
    CHANNELS = "channels"
    STRIDE = "stride"
    DEPTH_MULTIPLIER = "depth_multiplier"
    PADDING = "padding"
    DENSE_ON_VECTORS = "dense_on_vectors"
    SPARSE_FULLY_CONNECTED = "sparse_fully_connected"
    COMPUTED_AXES = "computed_axes"
    CONSTANT_OPERAND = "constant_operand"
    SMALL_MAP = "small_map"
    # An operator among others.
    UNPACKS_A_CONSTANT = "unpacks_a_constant"
    TAKEN_IN = "taken_in"
    NO_END = "no_end"
    READS_GRAPH_INPUT = "reads_graph_input"
    READS_OUTSIDE = "reads_outside"
    READ_OUTSIDE = "read_outside"
    READ_AND_OUTPUT = "read_and_output"
    NO_POINTWISE = "no_pointwise"
    # A cluster.
    TOO_FEW_ZEROS = "too_few_zeros"
    NOT_STORED_SPARSE = "not_stored_sparse"
    SPARSE_INFERENCE = "sparse_inference"
    # A weight.
    READ_DENSE_IN_CLUSTER = "read_dense_in_cluster"
    DENSE_KERNELS = "dense_kernels"
    # A danger.
    KEPT_MEAN_AS_OUTPUT = "kept_mean_as_output"
    MEAN_OVER_OTHER_AXES = "mean_over_other_axes"
    LEAVES_WITHOUT_END = "leaves_without_end"
    READS_SPARSE_CONSTANT = "reads_sparse_constant"
    LOOK_UP_TABLE_AXIS = "look_up_table_axis"
