"""Sparse .tflite files from Keras models: written by us, verified in the runtime, benchmarked."""

from tflite_export.convert import export
from tflite_export.errors import ExportError, FlatbufferError
from tflite_export.plan import Encoding, PlanLine
from tflite_export.report import ExportReport
from tflite_export.timing import BenchmarkReport, benchmark
from tflite_export.verify import Verification, verify

__all__ = [
    "BenchmarkReport",
    "Encoding",
    "ExportError",
    "ExportReport",
    "FlatbufferError",
    "PlanLine",
    "Verification",
    "benchmark",
    "export",
    "verify",
]
