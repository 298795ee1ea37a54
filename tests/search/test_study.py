"""The search: trials at equal sparsity, by every sampler, that stop and go on as if they had not."""

import json

import keras
import numpy as np
import optuna
import pytest
import tensorflow as tf

import keras_prune as kp

MEMORY = optuna.storages.InMemoryStorage
X = np.random.default_rng(0).standard_normal((64, 6)).astype("float32")
SIZES = {"d10/kernel": 60, "d12/kernel": 120, "d4/kernel": 48}


@pytest.fixture(scope="module")
def net():
    """Three tensors of 60, 120 and 48 weights, and what they answer."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(units, "relu", name=f"d{units}") for units in (10, 12)]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(4, name="d4")], name="net")
    model.compile(keras.optimizers.SGD(0.05), "mse", metrics=["mae"], run_eagerly=True)
    return model, np.array(model(X))


class Nearness:
    """A validation by function: how near a model's answers are to the dense ones; Ctrl-C at one of its calls."""

    def __init__(self, answers, stop_at=None):
        self.answers, self.stop_at, self.calls = answers, stop_at, 0

    def __call__(self, model):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return -float(np.mean(np.square(np.array(model(X)) - self.answers)))


def search(net, stop_at=None, **options):
    model, answers = net
    settings = {"sparsity": 0.6, "trials": 9, "storage": MEMORY(), "verbose": 0, "seed": 3, **options}
    return kp.search.study(model, (X, answers), Nearness(answers, stop_at), **settings)


def points(result):
    return [(tried.number, dict(tried.parameters), tried.values, tried.state) for tried in result.trials]


def zeros(model):
    return sum(int((layer.kernel.numpy() == 0).sum()) for layer in model.layers)


@pytest.fixture(scope="module")
def by_tpe(net):
    return search(net)


@pytest.mark.parametrize("sampler", ["tpe", "genetic", "nsga2", "cmaes", "pso", "random"])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(net, by_tpe, sampler):
    before = [np.array(weight) for weight in net[0].get_weights()]
    space = kp.search.Space(criteria=["magnitude", kp.criteria.Random()]) if sampler != "tpe" else None
    whole = by_tpe if sampler == "tpe" else search(net, sampler=sampler, space=space)
    store = MEMORY()
    part = search(net, stop_at=8, sampler=sampler, storage=store, space=space)  # two calls come before the trials
    assert part.interrupted
    assert not whole.interrupted
    assert points(part)[:5] == points(whole)[:5]
    rest = search(net, sampler=sampler, storage=store, space=space)
    assert points(rest) == points(whole)
    assert [tried.number for tried in rest.trials] == list(range(9))
    assert len({str(tried.parameters) for tried in whole.trials}) >= 8  # a particle may stay where it is
    for tried in whole.trials:
        assert sum(tried.strategy.allocation.targets[path] * size for path, size in SIZES.items()) == pytest.approx(137)
    assert all(np.array_equal(a, b) for a, b in zip(before, net[0].get_weights(), strict=True))


def test_samplers_begin_with_known_allocations_and_then_differ(net, by_tpe):
    others = {sampler: search(net, sampler=sampler) for sampler in ("pso", "genetic", "random")}
    assert all(points(result)[:3] == points(by_tpe)[:3] for result in others.values())
    fourth = [result.trials[-1].values for result in (by_tpe, *others.values())]
    assert len(set(fourth)) == 4
    assert points(search(net, sampler="random", seed=4))[3:] != points(others["random"])[3:]


def test_the_result_says_what_was_found(net, by_tpe, tmp_path):
    model, answers = net
    best = min(by_tpe.trials, key=lambda tried: -tried.values[0])
    assert by_tpe.best_trial is best
    assert by_tpe.front == (best,)
    assert best.values[0] > by_tpe.trials[0].values[0]
    table = str(by_tpe)
    assert "Search net-" in table
    assert "InMemoryStorage" in table
    assert next(line for line in table.splitlines() if " best " in line).split()[1] == str(best.number)
    told = json.loads(json.dumps(by_tpe.to_dict()))
    assert told["best"] == best.number
    assert [row["values"]["score"] for row in told["trials"]] == [tried.values[0] for tried in by_tpe.trials]
    by_tpe.plot(tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 5000
    # As code, on a copy of the model.
    copy = kp.strip(model)
    exec(by_tpe.code, {"model": copy})
    assert Nearness(answers)(copy) == pytest.approx(best.values[0], rel=1e-6)
    assert zeros(copy) == 137


def test_several_objectives_have_a_front(net, tmp_path):
    def widest(model):
        return max(layer.units for layer in model.layers)

    aims = ("metric", "bytes", "macs", kp.search.Objective(widest, mode="max"))
    result = search(net, sparsity=None, objectives=aims, sampler="nsga2", trials=8)
    assert [name for name, _ in result.objectives] == ["score", "bytes", "macs", "widest"]
    assert result.dense["bytes"] == 4 * (60 + 120 + 48)  # biases are 0
    assert result.dense["macs"] == 228
    for tried in result.trials:
        left = 228 - round(tried.strategy.sparsity * 228)
        assert tried.values[1:] == (4 * left, left, 12)
    front = {tried.number for tried in result.front}
    for one in result.trials:
        beaten = any(
            other.values[0] >= one.values[0]
            and other.values[1] <= one.values[1]
            and (other.values[0] > one.values[0] or other.values[1] < one.values[1])
            for other in result.trials
        )
        assert (one.number in front) == (not beaten)
    assert len(front) > 1
    assert result.best_trial.values[0] == max(tried.values[0] for tried in result.trials)
    result.plot(tmp_path / "front.svg")
    assert (tmp_path / "front.svg").read_text().count("<!-- widest -->") == 1


def test_trials_that_train_stop_early_when_they_are_poor(net):
    model, answers = net
    ramps = [kp.schedules.PolynomialDecay(0.0, 0.5, begin="10%", end="70%"), kp.schedules.ConstantSparsity(0.5)]
    options = {
        "space": kp.search.Space(schedules=ramps, bounds=(0.2, 0.9), starts="uniform"),
        "sparsity": 0.5,
        "sampler": "random",
        "trials": 5,
        "epochs": 3,
        "fit": {"batch_size": 64},
        "early_stop": optuna.pruners.PercentilePruner(25.0, n_startup_trials=2),
        "storage": MEMORY(),
        "verbose": 0,
    }
    data, near = (X, answers), Nearness(answers)
    result = kp.search.study(model, data, near, **options)
    states = [tried.state for tried in result.trials]
    assert len(states) == 5
    assert {"complete", "ended early"} == set(states)
    assert result.best_trial.values[0] == max(tried.values[0] for tried in result.complete)
    assert int(model.optimizer.iterations) == 0
    # The best strategy again, by the code and by the callback.
    for again in ("code", "callback"):
        copy = kp.strip(model)
        keras.utils.set_random_seed(0)
        if again == "code":
            exec(result.code, {"model": copy, "data": data})
        else:
            copy.fit(X, answers, epochs=3, batch_size=64, verbose=0, callbacks=[result.callback()])
        assert near(copy) == pytest.approx(result.best_trial.values[0])
        assert zeros(copy) == 114


def own_space(trial):
    rows = trial.suggest_categorical("rows", [1, 2])
    share = trial.suggest_float("share", 0.3, 0.7)
    pattern = {"d10": kp.patterns.Block(rows, 1), ".*": "unstructured"}
    return kp.search.PruningStrategy(share, kp.criteria.Activation(), pattern, "uniform")


def test_a_space_and_an_objective_of_ones_own(net):
    def kept(model):
        return sum(np.count_nonzero(weight) for weight in model.get_weights())

    result = search(net, space=own_space, sparsity=None, objectives=["metric", kept], trials=6, reconstruct=True)
    assert [tried.values[1] for tried in result.trials] == [
        pytest.approx(228 - tried.strategy.sparsity * 228 + 26, abs=4)
        for tried in result.trials  # biases are solved
    ]
    copy = kp.strip(net[0])
    exec(result.code, {"model": copy, "data": (X, net[1])})
    assert Nearness(net[1])(copy) == pytest.approx(result.best_trial.values[0], rel=1e-4)
    assert "reconstruct=data" in result.code
    swarm = search(net, space=own_space, sparsity=None, sampler="pso", trials=5)
    assert {tried.parameters["rows"] for tried in swarm.trials} == {1, 2}


def test_a_space_of_callbacks(net):
    model, answers = net

    def space(trial):
        final = trial.suggest_float("final", 0.3, 0.7)
        return [kp.Pruning(kp.schedules.ConstantSparsity(final)), keras.callbacks.TerminateOnNaN()]

    batches = tf.data.Dataset.from_tensor_slices((X, answers)).batch(32)
    options = {"space": space, "objectives": ("metric", zeros), "trials": 2, "epochs": 1, "verbose": 0}
    result = kp.search.study(model, batches, batches, metric="mae", storage=MEMORY(), **options)
    assert result.objectives == (("mae", False), ("zeros", False))
    wanted = [round(tried.parameters["final"] * 228) for tried in result.trials]
    assert [tried.values[1] for tried in result.trials] == wanted
    scope = {"space": space, "model": kp.strip(model), "data": batches}
    exec(result.code, scope)
    assert zeros(scope["model"]) == wanted[result.best_trial.number]
    assert isinstance(result.callback()[0], kp.Pruning)
    assert "TerminateOnNaN" in str(result)


def test_what_cannot_be_searched_is_refused(net):
    for message, options in {
        r"one objective.*Received: sparsity=None": {"sparsity": None},
        r"sampler must be one of .*Received: 'annealing'": {"sampler": "annealing"},
        r"'pso' looks for the best of one.*Received: objectives \['score', 'bytes'\]": {
            "sampler": "pso",
            "objectives": ("metric", "bytes"),
        },
        r"Received: sparsity=0\.6 and a function": {"space": own_space},
        r"objective is one of .*Received: 'flops'": {"objectives": "flops"},
        r"needs a name of its own. Received: \['bytes'\]": {"objectives": ("bytes", "bytes")},
        r"trials must be 1 or more.*Received: trials=0": {"trials": 0},
        r"sparsities of all together from 0 to 0\.39.*Received: 0\.6": {"space": kp.search.Space(bounds=(0.0, 0.4))},
        r"from 0 to 0\.5.*Received: 0\.6": {"space": kp.search.Space(patterns=[kp.patterns.NofM(1, 2)])},
        r"early_stop must be 'median'.*Received: 'worst'": {"early_stop": "worst"},
        r"no folder '/nowhere'": {"storage": "/nowhere/study.db"},
        r"no prunable tensor|no .* matches \['d11'\]": {"space": kp.search.Space(bounds={"d11": (0.0, 0.5)})},
    }.items():
        with pytest.raises(ValueError, match=message):
            search(net, **options)
    with pytest.raises(TypeError, match=r"space must return .*Received: 7"):
        search(net, space=lambda trial: 7, sparsity=None)
    with pytest.raises(KeyboardInterrupt):
        search(net, stop_at=3)
    unnamed = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    unnamed.compile("sgd", lambda y, p: keras.ops.mean(p))
    with pytest.warns(UserWarning, match="not compiled"), pytest.raises(ValueError, match="need a compiled model"):
        kp.search.study(unnamed, X, lambda model: 0.0, sparsity=0.5, epochs=1, storage=MEMORY())


def test_a_database_that_cannot_be_opened_says_why_and_keeps_its_password(net, tmp_path):
    with pytest.raises(ImportError, match=r"'mysql\+aiomysql' lacks a module .*aiomysql"):
        search(net, storage="mysql+aiomysql://somebody@localhost/studies")
    with pytest.raises(ValueError, match=r"Received: 'postgres://me:\*\*\*@localhost/studies'.*postgres"):
        search(net, storage="postgres://me:secret@localhost/studies")
    (tmp_path / "study.db").write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(ValueError, match="file is not a database"):
        search(net, storage=tmp_path / "study.db")


def test_a_study_of_a_name_takes_only_its_own_trials(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, answers = net
    first = search(net, trials=2, storage=None, name="mine")
    assert first.storage == "sqlite:///keras-prune-search.db"
    assert (tmp_path / "keras-prune-search.db").exists()
    again = search(net, trials=3, storage=tmp_path / "keras-prune-search.db", name="mine", stop_at=3)
    assert points(again) == points(first)
    opened = optuna.storages.RDBStorage(first.storage)
    for what, options in {
        "another sparsity": {"sparsity": 0.5},
        "another space": {"space": kp.search.Space(bounds=(0.0, 0.9))},
        "another aim": {"objectives": ["metric"], "trials": 3, "metric": "nearness"},
        "another training": {"reconstruct": True},
    }.items():
        with pytest.raises(ValueError, match=f"has {what} .*Received: name='mine'"):
            search(net, storage=opened, name="mine", **options)
    with pytest.raises(ValueError, match="has another sampler or seed"):
        search(net, storage=None, name="mine", sampler="pso")
    with pytest.raises(ValueError, match=r"tell the dead from the living.*Received: RDBStorage without heartbeats"):
        search(net, storage=opened, sampler="pso")
    other = kp.strip(model)
    other.layers[0].bias.assign(np.ones(10))
    with pytest.raises(ValueError, match="has another model"):
        search((other, answers), storage=opened, name="mine")
    # Names of layers do not count: the same network, built again, goes on.
    renamed = keras.Sequential([keras.Input((6,)), *(keras.layers.Dense(n, "relu") for n in (10, 12))])
    renamed.add(keras.layers.Dense(4))
    renamed.set_weights(model.get_weights())
    assert len(search((renamed, answers), storage=opened, name="mine", trials=3).trials) == 3


@pytest.mark.parametrize("aims", [("metric",), ("metric", "bytes")])
def test_a_trial_that_has_no_number_is_no_best(net, aims):
    calls = []

    def sometimes(model):
        calls.append(0)
        return float("nan") if len(calls) == 4 else float(len(calls))

    options = {"sparsity": 0.5, "trials": 4, "storage": MEMORY(), "verbose": 0, "objectives": aims, "sampler": "nsga2"}
    result = kp.search.study(net[0], X, sometimes, **options)
    assert [tried.state for tried in result.trials] == ["complete", "ended early", "complete", "complete"]
    assert result.best_trial.number == 3
