"""Sparse .tflite files from Keras models: written by us, verified in the runtime, benchmarked."""

from keras_prune.former_names import keep as _keep
from tflite_export.bench.device_page import serve
from tflite_export.bench.report import BenchmarkReport
from tflite_export.bench.timing import benchmark
from tflite_export.compress import compress
from tflite_export.compression.candidate import Candidate
from tflite_export.compression.report import CompressReport
from tflite_export.errors import ExportError, FlatbufferError
from tflite_export.export import export
from tflite_export.file.c_array import write_c_array
from tflite_export.file.encoding import Encoding
from tflite_export.former_names import NAMES as _NAMES
from tflite_export.inspection import Inspection, inspect
from tflite_export.latency import NpuCost
from tflite_export.measures.measure import Cost, Measure
from tflite_export.measures.phone import Phone
from tflite_export.plan.plan import PlanLine
from tflite_export.report import ExportReport
from tflite_export.runtimes.limits import Limits
from tflite_export.targets import Target
from tflite_export.tflm.mcu import MicroReport, check_micro
from tflite_export.tflm.verifying import verify
from tflite_export.vela.report import NpuReport
from tflite_export.verification.golden import Golden, check_golden, read_golden, write_golden_c
from tflite_export.verification.verify import Verification

_keep(_NAMES)

__all__ = [
    "BenchmarkReport",
    "Candidate",
    "CompressReport",
    "Cost",
    "Encoding",
    "ExportError",
    "ExportReport",
    "FlatbufferError",
    "Golden",
    "Inspection",
    "Limits",
    "Measure",
    "MicroReport",
    "NpuCost",
    "NpuReport",
    "Phone",
    "PlanLine",
    "Target",
    "Verification",
    "benchmark",
    "check_golden",
    "check_micro",
    "compress",
    "export",
    "inspect",
    "read_golden",
    "serve",
    "verify",
    "write_c_array",
    "write_golden_c",
]
