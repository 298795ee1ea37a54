"""Sparse .tflite files from Keras models: written by us, verified in the runtime, benchmarked."""

from tflite_export.carray import write_c_array
from tflite_export.convert import export
from tflite_export.encoding import Encoding
from tflite_export.errors import ExportError, FlatbufferError
from tflite_export.golden import Golden, check_golden, read_golden, write_golden_c
from tflite_export.inspection import Inspection, inspect
from tflite_export.limits import Limits
from tflite_export.plan import PlanLine
from tflite_export.report import ExportReport
from tflite_export.serve import serve
from tflite_export.targets import Target
from tflite_export.tflm.mcu import MicroReport, check_micro
from tflite_export.timing import BenchmarkReport, benchmark
from tflite_export.verify import Verification, verify

__all__ = [
    "BenchmarkReport",
    "Encoding",
    "ExportError",
    "ExportReport",
    "FlatbufferError",
    "Golden",
    "Inspection",
    "Limits",
    "MicroReport",
    "PlanLine",
    "Target",
    "Verification",
    "benchmark",
    "check_golden",
    "check_micro",
    "export",
    "inspect",
    "read_golden",
    "serve",
    "verify",
    "write_c_array",
    "write_golden_c",
]
