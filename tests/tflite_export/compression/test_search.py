"""The narrowing, on figures instead of models: what it finds, and how few candidates it tries for it."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest

from keras_prune.devices import DEVICES
from tflite_export.compression.candidate import Candidate, Route
from tflite_export.compression.forecast import Trained, power_of_training
from tflite_export.compression.search import Bounds, Search
from tflite_export.compression.space import SHARES, Line, Space, space_for
from tflite_export.compression.steps import steps_for
from tflite_export.compression.tried import Tried
from tflite_export.measures.measure import Cost

LINES = (Line(0.0, None), Line(0.0, "int8"), Line(0.7, None), Line(0.8, None), Line(0.9, None))
WEB = Space(DEVICES["web"], "flops", "speed", (None, "int8"), SHARES, LINES, DEVICES["web"])


@dataclasses.dataclass
class Figures:
    """A laboratory in which cost and metric are formulas.

    Args:
        power: ratio = keep ^ -power, times the ratios below.
        int8: ratio of int8.
        zeros: ratio of float32 by sparsity.
        lost: the drop of a share after full training is lost * (1/keep - 1), and as much for zeros.
        untrained: what is added to the drop by no training, and by a short one.
        long: what training on takes from the drop.
        shared: ratio of shared values, which lose 0.001.
        kept: what a model that is made of a trained one loses less.
    """

    power: float = 0.8
    int8: float = 1.5
    zeros: dict = dataclasses.field(default_factory=lambda: {0.7: 1.6, 0.8: 2.2, 0.9: 3.2})
    lost: float = 0.001
    untrained: tuple = (0.5, 0.004)
    long: float = 0.0
    shared: float = 1.0
    kept: float = 0.0
    epoch: float = 10.0

    def __post_init__(self):
        self.tried, self.spent, self.making_seconds = {}, 0.0, 5.0
        self.trained, self.made, self.routes = [], {Route(Candidate()).name}, []

    def epoch_seconds(self, candidate):
        return self.epoch if self.trained else 0.0

    def ratio(self, candidate):
        zeros = self.zeros[candidate.sparsity] if candidate.sparsity else 1.0
        zeros *= self.shared if candidate.values else 1.0
        return candidate.keep**-self.power * zeros * (self.int8 if candidate.quantize else 1.0)

    def drop(self, candidate, stages=2):
        weights = candidate.keep * (1 - candidate.sparsity)
        lost = self.lost * (1 / weights - 1) + (0.002 if candidate.quantize else 0.0)
        lost += 0.001 if candidate.values else 0.0
        return lost + ((*self.untrained, 0.0, -self.long)[stages] if not candidate.is_plain else 0.0)

    def _note(self, route):
        candidate, epochs = route.candidate, route.epochs
        self.routes.append(route)
        if (candidate, route.stage) not in self.tried:
            self.spent += 3.0
        if route.name not in self.made:  # number types share a model
            self.made.add(route.name)
            self.spent += self.epoch * epochs[-1] if epochs else self.making_seconds
            self.trained += [(candidate, epochs)] if epochs else []
        drop = self.drop(candidate, len(epochs)) - (self.kept if route.start else 0.0)
        cost = Cost(1 / self.ratio(candidate), "ms", self.ratio(candidate), 0.01, "figures")
        stage = route.stage
        tried = Tried(candidate, stage, route.total, 0.9 - drop, drop, cost, 1, "file", "model", 3.0)
        self.tried[candidate, stage] = tried
        return tried

    def try_plain(self, candidate):
        return self._note(Route(candidate))

    def try_candidate(self, route):
        return self._note(route)

    def optimum(self, space, max_drop, stages=2):
        """The best of all candidates, each trained fully."""
        every = [line.at(keep) for line, keep in itertools.product(space.lines, space.shares)]
        return max((c for c in every if self.drop(c, stages) <= max_drop), key=self.ratio)


def searched(lab, space=WEB, **bounds):
    search = Search(space, lab, Bounds(**{"max_drop": 0.01, "epochs": 8, **bounds}))
    search.run()
    return search


LANDSCAPES = {
    "as on the web": Figures(),
    "int8 is all": Figures(int8=6.0),
    "zeros are all": Figures(power=0.2, int8=0.5, zeros={0.7: 2.0, 0.8: 4.0, 0.9: 8.0}),
    "int8 is a trap": Figures(int8=0.4),
    "zeros gain nothing": Figures(zeros={0.7: 1.0, 0.8: 1.0, 0.9: 1.0}),
    "much can go": Figures(lost=0.0004),
    "little can go": Figures(lost=0.004),
}


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_narrowing_finds_the_best_of_all_with_few_trials(name):
    lab = dataclasses.replace(LANDSCAPES[name])
    search = searched(lab)
    best, optimum = search.best(), lab.optimum(WEB, 0.01)
    assert lab.ratio(best.candidate) * 1.02 >= lab.ratio(optimum)
    assert best.holds(0.01)
    assert search.count() <= 10, "of 41 combinations"
    assert len([epochs for _, epochs in lab.trained if len(epochs) == 2]) <= 6


@pytest.mark.parametrize("gain", [0.9, 1.5])
def test_shared_values_are_a_means_like_the_others_tried_alone_first(gain):
    lines = tuple(Line(zeros, "int8", values) for values in (None, 16) for zeros in (0.0, 0.7, 0.8))
    space = Space(DEVICES["mcu"], "params", "size", ("int8",), SHARES, lines, DEVICES["mcu"])
    assert [str(one) for one in space.baselines[2:]] == ["25 % left, int8", "80 % zeros, int8", "16 values, int8"]
    search = searched(lab := Figures(int8=1.0, shared=gain), space)
    best = search.best().candidate
    assert lab.ratio(best) * 1.02 >= lab.ratio(lab.optimum(space, 0.01))
    assert (best.values == 16) == (gain > 1)
    combined = {candidate for candidate, _ in lab.tried if candidate.values} - set(space.baselines)
    assert search.count() <= 24, "of 54 combinations"
    if gain < 1:
        assert not combined, "what gains nothing alone is not combined"


def test_the_best_one_is_trained_fully_and_baselines_are_always_there():
    search = searched(lab := Figures())
    assert search.best().stage == "full"
    assert search.best().epochs == 10
    assert set(WEB.baselines) <= {candidate for candidate, _ in lab.tried}
    assert [str(candidate) for candidate in WEB.baselines] == [
        "as it is, float32",
        "as it is, int8",
        "25 % left, float32",
        "80 % zeros, float32",
    ]


@pytest.mark.parametrize("trials", [0, 1, 3])
def test_trials_bound_the_candidates_besides_the_baselines(trials):
    search = searched(lab := Figures(), trials=trials)
    assert search.count() == trials
    assert search.best() is not None
    # The clock has no say in it.
    other = searched(Figures(epoch=1e6), trials=trials)
    assert other.best().candidate == search.best().candidate
    assert [each.candidate for each in other._lab.tried.values()] == [each.candidate for each in lab.tried.values()]


@pytest.mark.parametrize("seconds", [60.0, 200.0, 400.0, 1500.0])
def test_a_budget_is_kept_and_leaves_time_for_the_last_stage(seconds):
    lab = Figures()
    search = searched(lab, seconds=seconds)
    baselines = 2 * 3.0 + 2 * (8.0 + 23.0) + 10.0  # both number types, two means made and trained a little; one epoch
    assert lab.spent <= max(seconds, baselines)
    full = [epochs for _, epochs in lab.trained if len(epochs) == 2]
    if seconds >= 200:
        assert full, "what promised most was trained fully"
        assert search.best().stage == "full" or seconds < 400
    else:
        assert not full
        assert "left no time" in " ".join(search.notes)


def test_more_budget_finds_no_worse():
    found = [searched(lab := Figures(), seconds=s).best() for s in (100.0, 300.0, 600.0, 3000.0)]
    ratios = [lab.ratio(each.candidate) for each in found]
    assert ratios == sorted(ratios)
    assert ratios[-1] > ratios[0]


def test_what_full_training_did_not_make_good_is_not_trained_again():
    """The drop after a short training is 0.012 above that after a full one: the first failures show how much it is."""
    lab = Figures(untrained=(0.5, 0.012))
    search = searched(lab)
    assert lab.ratio(search.best().candidate) * 1.02 >= lab.ratio(lab.optimum(WEB, 0.01))
    assert search.count() <= 10, "of 41 combinations"
    full = [candidate for candidate, epochs in lab.trained if len(epochs) == 2]
    failed = [candidate for candidate in full if lab.drop(candidate) > 0.01]
    assert len(failed) <= 3
    assert len(failed) == len(set(failed))


def test_where_more_training_makes_it_worse_the_short_one_counts():
    lab = Figures(untrained=(0.5, -0.004))
    best = searched(lab).best()
    assert (best.stage, best.holds(0.01)) == ("short", True)
    assert lab.ratio(best.candidate) * 1.02 >= lab.ratio(lab.optimum(WEB, 0.01, stages=1))


def test_the_cheapest_in_sight_is_trained_fully_before_more_is_tried():
    lab = Figures(int8=6.0)
    searched(lab)
    order = [(candidate, stage) for candidate, stage in lab.tried]
    first = next(place for place, (_, stage) in enumerate(order) if stage == "full")
    assert len({candidate for candidate, _ in order[:first]} - set(WEB.baselines)) <= 2


def test_without_training_candidates_are_judged_as_they_are():
    lab = Figures(untrained=(0.001, 0.0))
    search = searched(lab, epochs=0)
    assert lab.trained == []
    best = search.best()
    assert best.stage == "untrained"
    assert best.holds(0.01)
    assert lab.ratio(best.candidate) > 2.0


def test_a_drop_of_just_what_is_allowed_holds_in_single_precision():
    """1,589 and 1,573 of 1,600 samples: as float32 the metrics differ by 0.0100000501."""
    drop = float(np.float32(0.993125)) - float(np.float32(0.983125))
    assert drop > 0.01
    cost = Cost(1.0, "bytes", 2.0, 0.0, "figures")
    assert Tried(Candidate(0.5), "full", 8, 0.98, drop, cost).holds(0.01)
    assert not Tried(Candidate(0.5), "full", 8, 0.98, drop + 1 / 60_000, cost).holds(0.01)


def test_nothing_holds_where_nothing_may_be_lost():
    assert searched(Figures(lost=0.01), max_drop=0.0).best() is None


def test_what_costs_no_less_than_the_best_is_not_trained():
    lab = Figures(int8=6.0)
    searched(lab)
    untrained = {candidate for candidate, stage in lab.tried if stage == "untrained"}
    trained = {candidate for candidate, _ in lab.trained}
    held = max(lab.ratio(c) for c, stage in lab.tried if stage != "untrained" and lab.drop(c) <= 0.01)
    assert all(lab.ratio(candidate) <= 1.02 * held for candidate in untrained - trained)


def test_time_that_is_left_goes_to_the_nearest_misses():
    """Sixteen epochs more are not expected to make a quarter hold, all the time that is left is: 32."""
    lab = Figures(lost=0.01, untrained=(0.5, 0.01), long=0.022, int8=0.4, zeros=dict.fromkeys((0.7, 0.8, 0.9), 1.0))
    search = searched(lab, seconds=20_000.0)
    optimum, more = lab.optimum(WEB, 0.01), lab.optimum(WEB, 0.01, stages=3)
    assert lab.ratio(optimum) < lab.ratio(more), "training on is worth something here"
    best = search.best()
    assert (best.candidate, best.stage) == (Candidate(0.25), "long")
    assert lab.ratio(best.candidate) * 1.02 >= lab.ratio(more)
    assert search.route_to(best).epochs == (2, 8, 32)
    long = [candidate for candidate, epochs in lab.trained if len(epochs) == 3]
    assert all(lab.drop(candidate) > 0.01 for candidate in long), "what held already is not trained on"


def test_a_narrow_miss_says_little_about_what_training_brings():
    """Of two that training did not help, the one that was far off says that it does not; the other may be noise."""
    alone, clear, narrow = (
        power_of_training(known, 0.01) for known in ([], [Trained(0.04, 0.04, 5.0)], [Trained(0.012, 0.012, 5.0)])
    )
    assert clear == pytest.approx(alone * 2 / 3)
    assert narrow == pytest.approx(alone * 2 / 2.1)
    assert power_of_training([Trained(0.009, 0.02, 5.0)], 0.01) == alone, "what held is not asked"
    assert power_of_training([Trained(0.04, 0.04 * 4**-0.9, 4.0)] * 3, 0.01) == pytest.approx(0.9)
    assert power_of_training([Trained(0.04, -0.01, 4.0)] * 1000, 0.01) == pytest.approx(1.5, abs=0.01)
    assert power_of_training([Trained(0.04, 0.02, 2.0)], 0.0) == pytest.approx((2 * 0.9 + 1.0) / 3)


def test_a_miss_that_as_large_a_step_would_mend_is_trained_on_at_once():
    """A quarter is 0.0335 off after the short training, 0.0135 after the full one: as much again leads to 0.006."""
    lab = Figures(lost=0.0045, untrained=(0.5, 0.02), long=0.006, int8=0.4, zeros=dict.fromkeys((0.7, 0.8, 0.9), 1.0))
    best = searched(lab, seconds=1000.0).best()
    quarter = Candidate(0.25)
    assert (best.candidate, best.stage) == (quarter, "long")
    assert [epochs for candidate, epochs in lab.trained if candidate == quarter] == [(2,), (2, 8), (2, 8, 16)]
    places = [place for place, (candidate, _) in enumerate(lab.trained) if candidate == quarter]
    assert places[2] == places[1] + 1
    bounded = searched(dataclasses.replace(lab), trials=30)
    assert "long" not in {stage for _, stage in bounded._lab.tried}, "without a clock there is no end to it"


def test_a_model_that_was_trained_is_tried_in_another_number_type_as_far_as_it_was():
    """That takes a file, so it is done even where the budget has no time for training any more."""
    lab = Figures(int8=1.2, zeros=dict.fromkeys((0.7, 0.8, 0.9), 1.0))
    search = searched(lab, seconds=75.0)
    best, eight_bits = search.best(), Candidate(0.25, quantize="int8")
    assert (best.candidate, best.stage, best.epochs) == (eight_bits, "short", 2)
    assert not any(candidate == eight_bits for candidate, _ in lab.trained), "its model is the float32 file's"
    assert [stage for candidate, stage in lab.tried if candidate == eight_bits] == ["short"]
    assert search.count() == 1
    assert lab.spent <= 75.0


def test_what_holds_after_training_is_what_smaller_ones_are_made_of():
    """A half that was trained is there when a quarter is made: its training is not lost."""
    lab = Figures(lost=0.002, kept=0.006)
    best = searched(lab).best()
    begun = [route for route in lab.routes if route.start is not None]
    assert begun
    for route in begun:
        start = route.start
        assert start.stage in ("full", "long")
        assert (start.candidate.sparsity, start.candidate.values) == (0.0, None)
        assert start.candidate.keep >= route.candidate.keep
        assert start.candidate.shape != route.candidate.shape
        assert lab.tried[start.candidate, start.stage].holds(0.01)
    assert lab.ratio(best.candidate) > 1.02 * lab.ratio(lab.optimum(WEB, 0.01)), "more than all made of the plain one"
    assert best.epochs == 20, "ten of the model that it is made of, ten of its own"


@pytest.mark.parametrize("seed", range(60))
def test_on_any_landscape_models_are_made_of_larger_ones_that_hold_and_the_end_is_reached(seed):
    drawn = np.random.default_rng(seed)
    lab = Figures(
        power=drawn.uniform(0.3, 1.2),
        int8=drawn.uniform(0.5, 4.0),
        zeros=dict(zip((0.7, 0.8, 0.9), np.cumsum([1.0, *drawn.uniform(0.0, 1.0, 3)])[1:], strict=True)),
        lost=float(np.exp(drawn.uniform(-8, -4.5))),
        untrained=(0.5, drawn.uniform(-0.002, 0.03)),
        long=drawn.uniform(0.0, 0.01),
        kept=drawn.uniform(0.0, 0.01),
    )
    search = searched(
        lab, **({"seconds": drawn.uniform(100, 5000)} if seed % 2 else {"trials": int(drawn.integers(20))})
    )
    assert search.count() <= 41
    for route in lab.routes:
        if route.start is not None:
            start = route.start.candidate
            assert start.shape != route.candidate.shape
            assert start.keep >= route.candidate.keep
            assert (start.sparsity, start.values) == (0.0, None)
    names = [(route.name, route.candidate.quantize) for route in lab.routes]
    assert len(names) == len(set(names)), "nothing is done twice"
    best = search.best()
    assert best is None or lab.tried[best.candidate, best.stage] == best


def test_what_failed_made_of_the_plain_model_is_tried_again_made_of_a_trained_one():
    """A quarter of the plain model does not hold. It does not close the way, and made of a third it does."""
    lab = Figures(lost=0.005, kept=0.008, int8=0.4, zeros=dict.fromkeys((0.7, 0.8, 0.9), 1.0))
    best = searched(lab, trials=30).best()
    quarter = [route for route in lab.routes if route.candidate == Candidate(0.25)]
    begun = [route.start for route in quarter]
    assert begun[0] is None, "half the width alone is tried first"
    assert lab.drop(Candidate(0.25)) > 0.01
    assert {start.candidate.keep for start in begun if start is not None} == {0.35}
    assert best.candidate.keep <= 0.25
    assert lab.tried[Candidate(0.25), "full"].holds(0.01)
    shares = [route.candidate.keep for route in lab.routes if route.start is not None and route.candidate.sparsity == 0]
    assert shares == sorted(shares, reverse=True), "a step at a time"


def test_training_on_keeps_the_budget_and_asks_for_time_not_trials():
    needed = searched(Figures())._lab.spent
    for seconds in (needed, needed + 150.0, needed + 500.0, needed + 2000.0):
        lab = Figures(long=0.004)
        searched(lab, seconds=seconds)
        assert lab.spent <= seconds
    on = [epochs for _, epochs in lab.trained if len(epochs) == 3]
    assert on
    assert all(8 <= epochs[-1] <= 32 for epochs in on)
    lab = Figures(long=0.004)
    searched(lab, trials=30)
    assert not [epochs for _, epochs in lab.trained if len(epochs) == 3]


def test_what_failed_by_chance_does_not_close_the_way_past_a_smaller_one_that_holds():
    class Bumpy(Figures):
        def drop(self, candidate, stages=2):
            return super().drop(candidate, stages) + (0.02 if candidate.keep == 0.35 else 0.0)

    space = dataclasses.replace(WEB, number_types=("int8",), lines=(Line(0.0, "int8"),))
    lab = Bumpy(lost=0.003, long=0.008)
    best = searched(lab, space, seconds=50_000.0).best()
    assert lab.drop(Line(0.0, "int8").at(0.25)) > 0.01, "a quarter has to be trained on"
    assert best.candidate == lab.optimum(space, 0.01, stages=3) == Line(0.0, "int8").at(0.18)


def test_files_that_are_refused_after_training_close_their_line():
    class Refused(Figures):
        def _note(self, route):
            tried, candidate = super()._note(route), route.candidate
            if candidate.sparsity and route.epochs:
                tried = dataclasses.replace(tried, metric=None, drop=None, cost=None, file="", reason="it is wrong")
                self.tried[candidate, tried.stage] = tried
            return tried

    lab = Refused()
    search = searched(lab)
    assert search.best().candidate.sparsity == 0.0
    assert lab.ratio(search.best().candidate) * 1.02 >= max(
        lab.ratio(line.at(keep))
        for line in WEB.lines
        for keep in SHARES
        if not line.sparsity and lab.drop(line.at(keep)) <= 0.01
    )
    zeros = {candidate for candidate, _ in lab.tried if candidate.sparsity}
    assert len(zeros) <= 4, "of 27 with zeros"


def test_on_a_microcontroller_no_weight_is_decoded_where_time_counts():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(2)])
    found = {what: space_for(DEVICES["mcu"], what, model).optimize for what in ("latency", "flash", "size")}
    assert found == {"latency": "portable", "flash": "size", "size": "size"}
    assert space_for(DEVICES["ethos-u55"], "latency", model).optimize == "speed"


@pytest.mark.parametrize(
    ("name", "objective", "kept"),
    [("web", "latency", True), ("web", "size", False), ("mcu", "flash", False), ("ethos-u55", "flash", True)],
)
def test_units_are_kept_in_multiples_where_these_cost_less(name, objective, kept):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(2)])
    space = space_for(DEVICES[name], objective, model)
    (step,) = steps_for(Candidate(0.5), space, model)
    assert (f"target='{name}'" in step.code(None)) == kept
