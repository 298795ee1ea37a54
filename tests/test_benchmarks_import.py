"""Benchmarks run by hand only, so here it is seen that what they import is still there."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_importable(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__
