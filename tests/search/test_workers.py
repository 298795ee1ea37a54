"""One study from several processes, on SQLite and on PostgreSQL."""

import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import keras
import numpy as np
import optuna
import pytest

import keras_prune as kp

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no os.fork on this system")
def test_a_worker_that_is_killed_leaves_its_trial_to_another(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    command = [sys.executable, "-m", "tests.search.workers", url, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "done-100").read_text())
    assert [row["number"] for row in told["trials"]] == list(range(12))
    assert {row["state"] for row in told["trials"]} == {"complete"}
    trials = optuna.load_study(study_name="shared", storage=url).trials
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    assert len(failed) == 1
    again = [trial for trial in trials if "again" in trial.user_attrs]
    assert [trial.params for trial in again] == [failed[0].params]
    assert again[0].state.name == "COMPLETE"
    assert len(trials) == 13


def program(name):
    """A program of PostgreSQL, which Debian keeps off the path."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or (str(found[0]) if found else None)


@pytest.fixture
def postgresql():
    """The URL of a server that lives as long as the test, on a socket in a folder of its own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    initdb, server = program("initdb"), program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL's programs are not here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        prefix = []
        if os.getuid() == 0:  # as whom the server refuses to run
            user = next((one for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody")), None)
            if user is None or shutil.which("setpriv") is None:
                pytest.skip("PostgreSQL does not run as root, and there is no other user, or no setpriv")
            os.chown(folder, user.pw_uid, user.pw_gid)
            prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        data = f"{folder}/data"
        make = [*prefix, initdb, "-D", data, "-U", "prune", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run(make, capture_output=True, check=True, cwd=folder)
        settings = [f"unix_socket_directories={folder}", "listen_addresses=", "fsync=off", "shared_buffers=4MB"]
        options = [part for setting in settings for part in ("-c", setting)]
        with subprocess.Popen([*prefix, server, "-D", data, *options], stderr=subprocess.PIPE, cwd=folder) as process:
            try:
                for line in process.stderr:
                    if b"ready to accept" in line:
                        break
                yield f"postgresql+psycopg://prune@/postgres?host={folder}"
            finally:
                process.send_signal(signal.SIGINT)  # a fast shutdown: it does not wait for clients
                process.stderr.read()


def test_a_study_in_postgresql_takes_over_a_trial_whose_process_is_gone(postgresql):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(2)])
    x = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
    dense = np.array(model(x))

    def nearness(pruned):
        return -float(np.mean(np.square(np.array(pruned(x)) - dense)))

    def search(storage, trials):
        return kp.search.study(
            model, x, nearness, sparsity=0.5, sampler="tpe", trials=trials, storage=storage, name="s", verbose=0
        )

    first = search(postgresql, 4)
    assert first.storage == postgresql
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.RDBStorage(postgresql, heartbeat_interval=1, grace_period=1)
        dead = optuna.load_study(study_name="s", storage=storage).ask()
    dead.suggest_float("sparsity_0", 0.0, 0.99)
    storage.record_heartbeat(dead.number + 1)  # trials are counted from 1 in the first study of a database
    time.sleep(2)
    result = search(storage, 6)
    assert [tried.number for tried in result.trials] == list(range(6))
    assert [tried.values for tried in result.trials[:4]] == [tried.values for tried in first.trials]
    again = next(trial for trial in optuna.load_study(study_name="s", storage=storage).trials if trial.number == 5)
    assert again.user_attrs["place"] == 4
    assert again.params["sparsity_0"] == dead.params["sparsity_0"]
    storage.remove_session()
    storage.engine.dispose()
