"""A training that is killed and resumed ends with the weights of one that was not, to the bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest


def _trainings(methods, kills, through):
    server = pathlib.Path(__file__).with_name("resume_server.py")
    done = subprocess.run(
        [sys.executable, str(server), ",".join(methods), str(kills), through],
        capture_output=True,
        text=True,
        cwd=server.parent.parent,
        env={**os.environ, "PYTHONPATH": str(server.parent.parent)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def _check(outcome, kills):
    for method, result in outcome.items():
        assert result["signals"] == [signal.SIGKILL] * kills, (method, result)
        assert result["equal"], f"{method}, killed at {result['steps']}, ended with other weights"
        assert sum(result["zeros"]) > 100, f"{method} pruned nothing"


@pytest.mark.parametrize("method", ["magnitude", "gradient", "rigl", "surgery"])
def test_ten_kills_with_backup_and_restore(method):
    _check(_trainings([method], 10, "backup"), 10)


def test_a_kill_with_other_methods():
    _check(_trainings(["movement", "set", "rewinding", "structured"], 2, "backup"), 2)


def test_going_on_from_a_keras_file():
    _check(_trainings(["magnitude", "gradient", "rigl", "surgery", "rewinding"], 1, "file"), 1)
