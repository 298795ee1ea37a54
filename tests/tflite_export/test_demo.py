"""The demonstration, on a small network: what it promises in its table is in its files."""

import json

import pytest

from tflite_export import demo


def test_the_demo_keeps_its_promises(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    for name, value in {
        "WIDTH": 128,
        "LAYERS": 2,
        "DENSE_EPOCHS": 8,
        "PRUNING_EPOCHS": 8,
        "RECOVERY_EPOCHS": 8,
    }.items():
        monkeypatch.setattr(demo, name, value)
    result = demo.run(tmp_path, verbose=0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"dense.tflite", "sparse.tflite", "sparsity.png", "history.png", "result.json"}
    assert result.error <= 1e-5
    assert result.sparse.accuracy > 0.8
    kernels = 64 * 128 + 128 * 128 + 128 * 10
    biases = result.sparse.weights - kernels
    assert result.sparse.nonzero <= round(0.1 * kernels) + biases + 4
    assert result.sparse.report.written.raw < 0.5 * result.dense.report.written.raw
    for row in (result.dense, result.sparse):
        assert (
            tmp_path / f"{'dense' if row is result.dense else 'sparse'}.tflite"
        ).stat().st_size == row.report.written.raw
    told = json.loads((tmp_path / "result.json").read_text())
    assert [file["bytes"] for file in told["files"]] == [
        result.dense.report.written.raw,
        result.sparse.report.written.raw,
    ]
    assert f"{result.sparse.accuracy:.2%}" in str(result)
