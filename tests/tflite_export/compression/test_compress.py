"""One call: what it writes and reports, in real runtimes at tiny size, and on figures where these do not matter."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_prune as kp
import tflite_export as tx
from keras_prune.devices import DEVICES
from tests.tflite_export.installed import missing
from tflite_export import ExportError
from tflite_export.compression import workshop
from tflite_export.compression.candidate import Candidate, Route
from tflite_export.compression.given import TrainingData
from tflite_export.compression.journal import Journal
from tflite_export.compression.judging import Judge
from tflite_export.compression.space import space_for
from tflite_export.compression.steps import Training, steps_for
from tflite_export.compression.workshop import Workshop
from tflite_export.measures.measure import Cost, Measure
from tflite_export.runtimes.litertjs import find_web_runtime
from tflite_export.tflm.micro import require_micro
from tflite_export.web.node import find_node

NO_WEB = missing(find_web_runtime, find_node)


def micro_missing():
    try:
        require_micro()
    except ImportError as error:
        return str(error)
    return ""


class Bytes(Measure):
    """Bytes of the file, called latency: as good as a clock, and the same each time."""

    objective = "latency"

    def measure(self, files, reference):
        whole = len(files[reference])
        return {
            name: Cost(float(len(content)), "ms", whole / len(content), 0.0, "figures")
            for name, content in files.items()
        }


def pictures(samples=256, seed=0):
    """Noise with one bright quarter: which one is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, samples)
    x = rng.normal(0, 0.3, (samples, 16, 16, 3)).astype("float32")
    for place, quarter in enumerate(y):
        row, column = divmod(int(quarter), 2)
        x[place, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 0.5
    return x, y.astype("int32")


@pytest.fixture(scope="module")
def data():
    return pictures(), pictures(64, seed=1)


@pytest.fixture(scope="module")
def net(data):
    """What XNNPACK's sparse inference takes: a stem, a depthwise layer, two 1x1 convolutions, a mean."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = kl.Conv2D(16, 3, 2, "same", use_bias=False)(image)
    x = kl.ReLU()(kl.BatchNormalization(momentum=0.8)(x))
    for _ in range(2):
        x = kl.DepthwiseConv2D(3, padding="same")(x)
        x = kl.Conv2D(32, 1, activation="relu")(x)
    x = kl.AveragePooling2D(4)(x)
    model = keras.Model(image, kl.Dense(4)(kl.Flatten()(x)), name="net")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Eagerly: a few steps take less than the trace of a function.
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], run_eagerly=True)
    model.fit(*data[0], epochs=4, batch_size=32, verbose=0)
    return model


@pytest.fixture(scope="module")
def rows():
    """Eight numbers; their class is the largest of the first four."""
    x = np.random.default_rng(2).normal(size=(192, 8)).astype("float32")
    y = x[:, :4].argmax(1).astype("int32")
    return (x[:128], y[:128]), (x[128:], y[128:])


@pytest.fixture(scope="module")
def small(rows):
    """Two Dense layers, for what does not depend on the model."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8,), name="numbers"), kl.Dense(48, "relu"), kl.Dense(48, "relu"), kl.Dense(4)]
    model = keras.Sequential(stack, name="small")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], run_eagerly=True)
    model.fit(*rows[0], epochs=8, verbose=0)
    return model


@pytest.fixture
def stub(monkeypatch):
    """In place of an export: the weights that are not zero, in so many bytes each. What is tested is around it."""

    def write(model, path, *, quantize=None, **options):
        weights = [np.asarray(value)[np.asarray(value) != 0] for value in model.get_weights()]
        kinds = {None: lambda value: value, "int8": lambda value: (100 * value).astype("int8")}
        Path(path).write_bytes(b"".join(kinds[quantize](value).tobytes() for value in weights))

    monkeypatch.setattr(workshop, "export", write)
    monkeypatch.setattr(workshop, "read_golden", lambda path: None)
    return write


def answers(x, y):
    """A function of the model: the share of right answers."""
    return lambda model: float((np.asarray(model(x)).argmax(1) == y).mean())


def call(net, data, path, **options):
    train, validation = data
    settings = {"trials": 2, "epochs": 1, "max_drop": 0.05, "verbose": 0, "batch_size": 64}
    return tx.compress(net, path, data=train, validation=validation, **{**settings, **options})


def without_time(report):
    """What a report says, but for seconds and places."""
    found = report.to_dict()
    for row in (*found["rows"], found["chosen"]):
        row.pop("seconds")
    return {key: value for key, value in found.items() if key not in ("seconds", "path", "folder", "recipe")}


# -- the whole of it, in LiteRT ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smallest(net, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smallest")
    before = [value.copy() for value in net.get_weights()]
    report = call(net, data, folder / "model.tflite", minimize="size", target="x86")
    assert all(np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True))
    return report


def test_the_file_is_the_chosen_row_and_the_model_is_behind_it(smallest, data):
    report, (x, y) = smallest, data[1]
    content = Path(report.path).read_bytes()
    assert len(content) == report.chosen.bytes == report.chosen.cost.value
    plain = next(row for row in report.rows if row.candidate == Candidate())
    assert report.ratio == plain.bytes / report.chosen.bytes > 2
    assert plain.metric == report.baseline == pytest.approx(report.model.evaluate(x, y, verbose=0)[1], abs=0.06)
    assert report.chosen.drop == report.baseline - report.chosen.metric <= 0.05
    assert tx.verify(report.path, report.model, x[:8], tolerance=0.3).samples == 8
    assert kp.report(report.model).whole.weights <= plain.bytes


def test_the_table_has_the_single_means_and_marks_the_chosen_row(smallest):
    text = str(smallest)
    for name in ("plain float32", "plain int8", "plain float16", "about half the width alone", "zeros alone"):
        assert text.count(name) >= 1, name
    assert [line for line in text.splitlines() if line.startswith("│ ->")]
    assert smallest.folder in text
    assert json.loads(json.dumps(smallest.to_dict()))["rows"][0]["candidate"] == {
        "keep": 1.0,
        "sparsity": 0.0,
        "quantize": None,
        "values": None,
    }
    assert sum(row["chosen"] for row in smallest.to_dict()["rows"]) == 1


def test_the_recipe_makes_the_same_file_again(smallest, net, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = smallest.recipe.replace(repr(smallest.path), "'again.tflite'")
    exec(compile(code, "recipe", "exec"), {"model": net, "data": data[0]})
    assert (tmp_path / "again.tflite").read_bytes() == Path(smallest.path).read_bytes()
    assert "file: " in capsys.readouterr().out


def test_the_same_call_again_does_nothing_anew(smallest, net, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Workshop, "_make", None)
    options = {"minimize": "size", "target": "x86", "folder": smallest.folder}
    again = call(net, data, tmp_path / "again.tflite", **options)
    assert without_time(again) == without_time(smallest)
    assert (tmp_path / "again.tflite").read_bytes() == Path(smallest.path).read_bytes()
    # What was tried counts for another tolerance, too; other arguments are another search.
    assert call(net, data, tmp_path / "more.tflite", **options, max_drop=0.0501).chosen.bytes == again.chosen.bytes
    with pytest.raises(ExportError, match=r"seed: 0 there, 3 now"):
        call(net, data, tmp_path / "other.tflite", **options, seed=3)
    with pytest.raises(ExportError, match=r"data: "):
        call(net, (pictures(seed=5), data[1]), tmp_path / "other.tflite", **options)


# -- other targets ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(NO_WEB), reason=NO_WEB)
def test_on_the_web_files_are_timed_in_litertjs(net, data, tmp_path):
    report = call(net, data, tmp_path / "m.tflite", target="web", trials=0, epochs=0, max_drop=1.0)
    measured = [row for row in report.rows if row.cost is not None]
    assert {row.cost.unit for row in measured} == {"ms"}
    assert all("LiteRT.js" in row.cost.on for row in measured)
    assert {row.candidate.sparsity for row in report.rows} == {0.0, 0.8}
    assert report.chosen.cost.ratio == max(row.cost.ratio for row in measured)


@pytest.mark.skipif(bool(micro_missing()), reason=micro_missing())
def test_for_a_microcontroller_flash_counts_and_files_are_int8(net, data, tmp_path):
    report = call(net, data, tmp_path / "m.tflite", target="mcu", minimize="flash", trials=1, epochs=0, max_drop=1.0)
    assert {row.candidate.quantize for row in report.rows if row.cost is not None} == {"int8"}
    plain, reference = report.rows[:2]
    assert (plain.candidate, plain.cost) == (Candidate(), None)
    assert "takes int8 only" in plain.reason
    assert reference.ratio == 1.0
    assert report.chosen.bytes < reference.bytes
    assert report.chosen.metric is not None
    assert {row.candidate.sparsity for row in report.rows} >= {0.8}, "zeros save flash there: DECODE reads them"
    (shared,) = [row for row in report.rows if row.candidate == Candidate(quantize="int8", values=16)]
    assert shared.bytes < reference.bytes, "and so do values that weights share"
    (line,) = [line for line in str(report).splitlines() if "shared values alone" in line]
    assert [cell.strip() for cell in line.split("│")][2:6] == ["all", "", "16", "int8"]


def test_shared_values_are_learned_on_and_the_code_does_the_same(small, rows):
    data = TrainingData.of(rows[0], small, 64)
    space = space_for(DEVICES["mcu"], "flash", small)
    assert {line.values for line in space.lines} == {None, 16}
    assert {line.values for line in space_for(DEVICES["x86"], "size", small).lines} == {None}, "a byte is a byte there"
    made = steps_for(Candidate(1.0, 0.6, "int8", 8), space, small)
    steps = [*made, Training(1, 0, 0.01, values=8)]
    model, kernels = kp.strip(small), []
    for step in steps:
        model = step.do(model, data)
        kernels.append([w.numpy() for w in model.trainable_weights if len(w.shape) > 1])
    for shared, trained in zip(kernels[-2], kernels[-1], strict=True):
        assert len(np.unique(shared)) <= 8
        assert all(len(np.unique(trained[shared == value])) == 1 for value in np.unique(shared))
        assert (trained[shared == 0] == 0).all()
        assert (trained != shared).any()
    assert (kernels[-1][1] == 0).mean() > 0.5
    code = "\n".join(step.code(data) for step in steps)
    assert "kp.share(model, 8)" in code
    assert "callbacks=[falling, kp.WeightSharing(8)])" in code
    x, y = rows[0]
    known = {"kp": kp, "keras": keras, "model": kp.strip(small), "x": x, "y": y, "inputs": data.inputs}
    exec(compile(code, "steps", "exec"), known)
    for one, other in zip(known["model"].get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("candidate", "goal"),
    [(Candidate(0.25), "params=0.5"), (Candidate(0.5, 0.6), ""), (Candidate(0.35, 0.6), "params=0.7")],
)
def test_a_candidate_made_of_a_trained_one_takes_the_rest_out_of_it(candidate, goal, small, rows, tmp_path, stub):
    data = TrainingData.of(rows[0], small, 64)
    space = space_for(DEVICES["x86"], "size", small)
    judge = Judge(small, answers(*rows[1]), None, "auto")
    begun = Route(Candidate(0.5), (1, 1))
    route = Route(candidate, (1,), begun)
    with Journal(tmp_path / "search", {}) as journal:
        lab = Workshop(kp.strip(small), space, data, judge, Bytes(), journal, seed=3)
        lab.try_plain(Candidate())
        half = lab.try_candidate(begun)
        spent = lab.spent
        tried = lab.try_candidate(route)
        assert tried.epochs == 3
        assert lab.spent > spent
        assert 0 < lab.epoch_seconds(Candidate(0.06)) <= lab.epoch_seconds(Candidate(0.5)) <= lab.spent
        one, other = lab.model_of(half), lab.model_of(tried)
        recipe = lab.recipe(tried, route, "m.tflite")
    if goal:
        assert other.count_params() <= float(goal[7:]) * one.count_params()
        assert f"kp.structured.prune(model, {goal}" in recipe
    else:
        assert other.count_params() == one.count_params()
    kernels = np.concatenate([value.ravel() for value in other.get_weights() if value.ndim > 1])
    assert (kernels == 0).mean() == pytest.approx(candidate.sparsity, abs=0.02)
    assert (recipe.count("kp.structured.prune"), recipe.count("model.fit(")) == (1 + bool(goal), 3)
    known = {"model": small, "data": rows[0]}
    exec(compile(recipe.rsplit("print(tx.export", 1)[0], "recipe", "exec"), known)
    for mine, again in zip(other.get_weights(), kp.strip(known["model"]).get_weights(), strict=True):
        np.testing.assert_array_equal(mine, again)


# -- kills ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_killed_at_every_write_it_ends_as_one_that_was_not(small, rows, tmp_path, monkeypatch, stub):
    options = {"measure": Bytes(), "target": "x86", "trials": 1}
    rows = rows[0], answers(*rows[1])
    whole = call(small, rows, tmp_path / "whole.tflite", **options)
    write, kills = Journal._write, 0

    def once(journal, line):
        nonlocal allowed
        if not allowed:
            raise Killed
        allowed -= 1
        write(journal, line)

    monkeypatch.setattr(Journal, "_write", once)
    path = tmp_path / "killed.tflite"
    while True:
        allowed = 1
        try:
            report = call(small, rows, path, **options)
        except Killed:
            kills += 1
            assert not path.exists()
        else:
            break
    lines = (tmp_path / "whole-search" / "journal.jsonl").read_text().splitlines()
    assert kills == len(lines) - 1
    assert without_time(report) == without_time(whole)
    assert path.read_bytes() == (tmp_path / "whole.tflite").read_bytes()


def test_ctrl_c_ends_with_the_best_so_far(small, rows, tmp_path, monkeypatch, stub):
    options = {"measure": Bytes(), "target": "x86", "trials": 0}
    rows = rows[0], answers(*rows[1])
    write, path = Journal._write, tmp_path / "m.tflite"

    def until(journal, line, best=False):
        write(journal, line)
        if line.get("key", "").startswith(stop):
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "_write", until)
    stop = "keep1-zeros0-float32"  # the plain file: nothing is better than itself
    with pytest.raises(KeyboardInterrupt):
        call(small, rows, path, **options)
    assert not path.exists()
    stop = "keep0.25"  # the plain int8 file is there
    report = call(small, rows, path, **options)
    assert report.chosen.candidate == Candidate(quantize="int8")
    assert len(path.read_bytes()) == report.chosen.bytes
    assert "interrupted" in " ".join(report.notes)
    stop = "never"
    assert "interrupted" not in " ".join(call(small, rows, path, **options).notes)


@pytest.fixture
def taught(monkeypatch):
    """What each distillation is given: temperature, weights of teacher and student, epochs."""
    found = []
    fit = kp.structured.Distillation.fit

    def watched(self, student, **options):
        found.append((self.temperature, self.teacher.count_params(), student.count_params(), options["epochs"]))
        return fit(self, student, **options)

    monkeypatch.setattr(kp.structured.Distillation, "fit", watched)
    return found


TEACHING = {"measure": Bytes(), "target": "x86", "trials": 1, "max_drop": 1.0}


def test_candidates_learn_from_the_plain_model_and_the_code_does_the_same(small, rows, tmp_path, stub, taught):
    report = call(small, (rows[0], answers(*rows[1])), tmp_path / "m.tflite", **TEACHING)
    assert {(each[0], each[1], each[3]) for each in taught} == {(3.0, small.count_params(), 1)}
    assert all(student < small.count_params() / 2 for _, _, student, _ in taught)
    assert "labels alone" not in " ".join(report.notes)
    known = {"model": small, "data": rows[0]}
    code = report.recipe.rsplit("print(tx.export", 1)[0]
    assert "distill = kp.structured.Distillation(model, temperature=3.0, alpha=0.5)" in code
    exec(compile(code, "recipe", "exec"), known)
    for one, other in zip(known["model"].get_weights(), report.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_how_candidates_learn_can_be_said(small, rows, tmp_path, stub, taught):
    judged = rows[0], answers(*rows[1])
    distill = kp.structured.Distillation(temperature=2.0, outputs="logits")
    report = call(small, judged, tmp_path / "own.tflite", distill=distill, **TEACHING)
    assert {each[0] for each in taught} == {2.0}
    assert "kp.structured.Distillation(model, temperature=2.0, alpha=0.5, outputs='logits')" in report.recipe
    taught.clear()
    report = call(small, judged, tmp_path / "labels.tflite", distill=False, **TEACHING)
    assert not taught
    assert "model.fit(" in report.recipe
    other = kp.structured.Distillation(keras.models.clone_model(small))
    report = call(small, judged, tmp_path / "other.tflite", distill=other, **TEACHING)
    assert "# distill: the Distillation that the search was given" in report.recipe
    with pytest.raises(ExportError, match=r"distill: must be True, False or a keras_prune.structured.Distillation"):
        call(small, judged, tmp_path / "m.tflite", distill="yes", **TEACHING)


@pytest.mark.parametrize("kind", ["values", "weights", "weights in a data set", "its own train_step"])
def test_where_the_plain_model_cannot_teach_labels_do_and_it_is_said(kind, small, rows, tmp_path, stub, taught):
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    x, y = rows[0]
    train, loss, build = (x, y), small.loss, keras.Model
    weights = np.ones(len(x), "float32")
    if kind == "values":
        train, loss = (x, np.eye(4, dtype="float32")[y]), "mse"
    elif kind == "weights":
        train = (x, y, weights)
    elif kind == "weights in a data set":
        train = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(64)
    else:
        build = Own
    model = build(small.inputs, small.outputs)
    model.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)
    options = {**TEACHING, "batch_size": None if kind.endswith("set") else 64}
    report = call(model, (train, answers(*rows[1])), tmp_path / "m.tflite", **options)
    words = {
        "values": "are values and not classes",
        "weights": "samples have weights",
        "weights in a data set": "samples have weights",
        "its own train_step": "its own train_step",
    }
    (note,) = [note for note in report.notes if "labels alone" in note]
    assert words[kind] in note
    assert not taught
    if kind != "values":
        with pytest.raises(ExportError, match=r"distill: must be able to train the model.*Pass distill=False"):
            call(
                model,
                (train, answers(*rows[1])),
                tmp_path / "n.tflite",
                distill=kp.structured.Distillation(),
                **options,
            )


class Flash(Bytes):
    objective = "flash"


def test_for_an_npu_units_stay_in_its_multiples(small, rows, tmp_path, stub):
    data = rows[0], answers(*rows[1])
    options = {"target": "ethos-u55", "minimize": "flash", "measure": Flash(), "trials": 1, "max_drop": 1.0}
    report = call(small, data, tmp_path / "m.tflite", **options)
    assert report.chosen.candidate.keep < 1
    widths = [layer.units for layer in report.model.layers[:-1]]
    assert all(width % 8 == 0 and width < 48 for width in widths)
    assert f"params={report.chosen.candidate.keep:g}, target='ethos-u55', reconstruct=inputs)" in report.recipe


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "acuracy"}, r"must be one of the logs \['accuracy', 'loss'\]. Received: 'acuracy'"),
        ({"minimize": "time"}, r"must be one of \('latency', 'size', 'flash'\)"),
        ({"target": "toaster"}, "target: must be one of"),
        ({"budget": "soon", "trials": None}, "'20 min', '1 h'"),
        ({"budget": 60, "trials": 3}, "Give one of them"),
        ({"trials": -1}, "trials: must be a whole number"),
        ({"max_drop": -0.1}, "max_drop: must be 0 or more"),
        ({"mode": "up"}, "mode must be one of"),
        ({"measure": Bytes(), "minimize": "size"}, "must measure what is minimised"),
        ({"folder": "file"}, "must be a folder that can be written"),
    ],
)
def test_a_wrong_argument_is_named(small, rows, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "m.tflite").write_text("before")
    with pytest.raises(ValueError, match=words):
        call(small, rows, tmp_path / "m.tflite", **options)
    assert (tmp_path / "m.tflite").read_text() == "before"


def test_a_model_or_data_that_will_not_do_is_refused(small, rows, tmp_path):
    plain = keras.Model(small.inputs, small.outputs)
    path = tmp_path / "m.tflite"
    with pytest.raises(ExportError, match=r"must be compiled.*Call compile"):
        call(plain, rows, path)
    with pytest.raises(ExportError, match="validation: must be there"):
        call(small, (rows[0], None), path)
    with pytest.raises(ExportError, match=r"must have labels to train on.*Pass \(x, y\)"):
        call(small, (rows[0][0], rows[1]), path)
    with pytest.raises(ExportError, match="readable any number of times"):
        call(small, (iter([rows[0]]), rows[1]), path)
    with pytest.raises(ExportError, match="must be a Keras model"):
        call("model.keras", rows, path)


def test_what_cannot_be_met_says_the_nearest_that_can(small, rows, tmp_path, stub):
    path = tmp_path / "m.tflite"
    path.write_text("before")
    losses = iter(range(100))

    def worse(model):
        return -0.0123 * next(losses)  # each one tried is worse than the one before

    with pytest.raises(
        ExportError, match=r"0\.0123 worse; nothing was written.*max_drop=0\.013 would give [34](\.\d)?x"
    ):
        call(small, (rows[0], worse), path, target="x86", measure=Bytes(), trials=0, epochs=0, max_drop=0.001)
    assert path.read_text() == "before"


def test_a_candidate_that_cannot_be_exported_is_a_row(small, rows, tmp_path, monkeypatch, stub):
    def refused(model, path, **options):
        if options["quantize"] == "int8":
            raise ExportError("the model", "has no int8", "a loop", "Unroll it.")
        stub(model, path, **options)

    monkeypatch.setattr(workshop, "export", refused)
    rows = rows[0], answers(*rows[1])
    report = call(small, rows, tmp_path / "m.tflite", target="x86", measure=Bytes(), trials=0, max_drop=1.0, epochs=0)
    row = next(row for row in report.rows if row.candidate == Candidate(quantize="int8"))
    assert (row.metric, row.cost, row.file) == (None, None, "")
    assert "no file of as it is, int8: the model: has no int8" in str(report)
    assert "the function's value of the Keras model" in str(report)


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_any_metric_and_loss_of_several_inputs_and_outputs(tmp_path):
    keras.utils.set_random_seed(1)
    a, b = keras.Input((8,), name="a"), keras.Input((4,), name="b")
    hidden = kl.Dense(64, "relu")(kl.Concatenate()([a, b]))
    outputs = {"sum": kl.Dense(1, name="sum")(hidden), "side": kl.Dense(1, "sigmoid", name="side")(hidden)}
    model = keras.Model({"a": a, "b": b}, outputs)
    losses = {"sum": "mse", "side": "binary_crossentropy"}
    model.compile("adam", losses, metrics={"sum": ["mae"], "side": ["accuracy"]}, run_eagerly=True)
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(128, 8)).astype("float32"), "b": rng.normal(size=(128, 4)).astype("float32")}
    total = x["a"].sum(1) + x["b"].sum(1)
    y = {"sum": total[:, None], "side": (total > 0).astype("float32")[:, None]}
    weights = {"sum": rng.random(128).astype("float32"), "side": np.ones(128, "float32")}
    model.fit(x, y, epochs=5, verbose=0)
    path, golden = tmp_path / "m.tflite", tmp_path / "golden"
    tx.export(model, path, target="x86", data=x, golden=golden)
    judges = {
        name: Judge(model, (x, y, weights) if name == "loss" else (x, y), name, "auto")
        for name in ("sum_mae", "side_accuracy", "loss")
    }
    values = [judge(model, path.read_bytes(), tx.read_golden(golden)) for judge in judges.values()]
    assert [judge.metric.rises for judge in judges.values()] == [False, True, False]
    wanted = model.evaluate(x, y, verbose=0, return_dict=True)
    weighted = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert values == pytest.approx([wanted["sum_mae"], wanted["side_accuracy"], weighted["loss"]], rel=1e-5)


def test_a_class_with_its_own_metrics_is_judged_as_a_keras_model(small, rows, tmp_path, stub):
    class Own(keras.Model):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            return {"seven": 7.0}

    model = Own(small.inputs, small.outputs)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    options = {"target": "x86", "measure": Bytes(), "trials": 0, "epochs": 0}
    report = call(model, rows, tmp_path / "m.tflite", metric="seven", mode="max", **options)
    assert {row.metric for row in report.rows} == {7.0}
    assert "its own compute_metrics" in " ".join(report.notes)
