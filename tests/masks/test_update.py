"""The contract of every criterion x pattern x allocation x kind of kernel, on arrays; and single updates by hand."""

import json

import keras
import numpy as np
import pytest

from keras_prune import allocation, criteria, growth, patterns, schedules
from keras_prune.arrays.layouts import Layout
from keras_prune.in_step import parts as step
from keras_prune.in_step.masked_momentum import MaskMomentum
from keras_prune.masks.recipe import Recipe, resolve_allocation, resolve_recipe
from keras_prune.masks.update import Tensor, layout_for, masks_at_sparsity, masks_at_threshold
from keras_prune.scope import Scope
from keras_prune.sharing import starts
from keras_prune.strategy import resolve

LAYOUTS = {
    "dense": ((8, 12), Layout.plain(2)),
    "conv": ((3, 3, 4, 8), Layout.plain(4)),
    "transposed": ((3, 3, 8, 4), Layout.transposed(4)),
    "depthwise": ((4, 4, 6, 2), Layout.depthwise(4)),
    "grouped": ((2, 2, 4, 12), Layout.grouped(4, 3)),
    "einsum": ((2, 4, 8), Layout((), (0, 1), (2,))),
    "einsum heads": ((8, 2, 4), Layout((), (0,), (1, 2))),
}
ALL_CRITERIA = [
    criteria.Magnitude(),
    criteria.Random(),
    criteria.Gradient(),
    criteria.Taylor(),
    criteria.Movement(),
    criteria.Fisher(),
    criteria.SNIP(),
    criteria.SynFlow(),
    criteria.Activation(),
    criteria.InputActivation(),
    criteria.GraSP(),
    criteria.SecondOrder(),
]
ALL_PATTERNS = [
    patterns.Unstructured(),
    patterns.Block(4, 1),
    patterns.NofM(2, 4),
    patterns.Filter(),
    patterns.Channel(),
]
CURVE = ((0.25, 0.1), (0.5, 0.3), (0.9, 2.0))
ALL_ALLOCATIONS = [
    allocation.Uniform(),
    allocation.Global(),
    allocation.ERK(),
    allocation.LAMP(),
    allocation.Sensitivity(),
    allocation.Explicit({"a.*": 0.5}),
]


def tensors_of(names, rng, masks=None):
    kinds = set().union(*(c.needs for c in ALL_CRITERIA), growth.RigL.needs) - {"seed"}
    tensors = []
    for i, name in enumerate(names):
        shape, layout = LAYOUTS[name]
        values = {kind: rng.standard_normal(shape).astype(np.float32) for kind in kinds}
        values["seed"] = i
        weight = rng.standard_normal(shape).astype(np.float32)
        if masks is not None:
            weight = np.where(masks[i], weight, 0)
        tensors.append(
            Tensor(f"{'ab'[i]}/{name}", weight, masks[i] if masks else None, layout, values, i, CURVE, values)
        )
    return tensors


@pytest.mark.parametrize("rule", ALL_ALLOCATIONS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("pattern", ALL_PATTERNS, ids=repr)
@pytest.mark.parametrize("criterion", ALL_CRITERIA, ids=lambda c: type(c).__name__)
def test_every_combination_keeps_its_contract(criterion, pattern, rule):
    rng = np.random.default_rng(0)
    recipe = Recipe(criterion, pattern, rule)
    for name in LAYOUTS:
        names, masks, off_before = (name, "dense"), None, 0
        for target in (0.2, 0.45):
            tensors = tensors_of(names, rng, masks)
            before, masks = masks, masks_at_sparsity(tensors, recipe, target, final=0.45)
            off = sum(int((~mask).sum()) for mask in masks)
            size = sum(mask.size for mask in masks)
            units = [weights_per_unit(pattern, t) for t in tensors]
            for tensor, mask in zip(tensors, masks, strict=True):
                assert mask.shape == tensor.weight.shape
                assert mask.dtype == bool
                assert mask.any(), "no tensor is emptied"
            if before is not None:
                assert all((new <= old).all() for new, old in zip(masks, before, strict=True)), "masks only shrink"
            if not isinstance(rule, allocation.Explicit):
                # Within one unit a tensor, the count is that of the target (or what was off already, where a unit
                # of another shape had been taken).
                assert max(off_before, round(target * size) - sum(units)) <= off <= round(target * size) + sum(units)
            off_before = off


def weights_per_unit(pattern, tensor):
    return pattern.weights_per_unit(layout_for(tensor.layout, pattern).canonical_shape(tensor.weight.shape))


def groups_of(pattern, array, layout):
    """One row a unit (a group of N:M), by plain slicing of the kernel in its own layout."""
    if isinstance(pattern, patterns.Channel):
        if layout == Layout.depthwise(4):
            return np.stack([array[:, :, c, :].ravel() for c in range(array.shape[2])])
        if layout.split:
            share = array.shape[3] // layout.split
            cut = [array[:, :, :, g * share : (g + 1) * share] for g in range(layout.split)]
            return np.stack([part[:, :, i].ravel() for part in cut for i in range(array.shape[2])])
        return np.moveaxis(layout.to_canonical(array), -2, 0).reshape(
            -1, array.size // layout.to_canonical(array).shape[-2]
        )
    matrix = layout.to_canonical(array).reshape(-1, layout.to_canonical(array).shape[-1])
    if isinstance(pattern, patterns.Filter):
        return matrix.T
    rows = pattern.m if isinstance(pattern, patterns.NofM) else pattern.rows
    return np.stack([matrix[i : i + rows, j] for i in range(0, len(matrix), rows) for j in range(matrix.shape[1])])


COARSE = [pattern for pattern in ALL_PATTERNS if pattern != patterns.Unstructured()] + [patterns.Block(2, 1, "max")]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("pattern", COARSE, ids=repr)
def test_a_coarse_pattern_over_single_zeros_takes_exactly_its_units(pattern, name):
    """A unit with some zeros is one with some zeros; under every allocation, the target counts whole units."""
    rng = np.random.default_rng(4)
    masks = [rng.random(LAYOUTS[one][0]) > 0.3 for one in (name, "dense")]
    for rule in ALL_ALLOCATIONS:
        tensors = tensors_of((name, "dense"), rng, masks)
        after = masks_at_sparsity(tensors, Recipe(criteria.Magnitude(), pattern, rule), 0.45, final=0.45)
        off, sizes = [], [weights_per_unit(pattern, tensor) for tensor in tensors]
        for tensor, mask in zip(tensors, after, strict=True):
            assert not (mask & ~tensor.mask).any(), "nothing comes back"
            left = pattern.n if isinstance(pattern, patterns.NofM) else 0
            rows, earlier = (groups_of(pattern, one, tensor.layout) for one in (mask, tensor.mask))
            gone = rows.sum(axis=1) <= left
            assert (rows[gone].sum(axis=1) == np.minimum(left, earlier[gone].sum(axis=1))).all()
            assert (rows[~gone] == earlier[~gone]).all(), "a unit that stays keeps what it had"
            off.append(int(gone.sum()))
            if isinstance(rule, allocation.Uniform | allocation.Explicit):
                own = 0.5 if isinstance(rule, allocation.Explicit) and tensor.path.startswith("a") else 0.45
                assert off[-1] == round(own * tensor.weight.size / sizes[len(off) - 1])
        if rule.adds_up:
            goal = 0.45 * sum(tensor.weight.size for tensor in tensors)
            rounded = sum(sizes) if isinstance(rule, allocation.Uniform) else max(sizes)
            assert abs(np.dot(off, sizes) - goal) <= rounded / 2, rule


@pytest.mark.parametrize("pattern", COARSE, ids=repr)
def test_a_unit_is_worth_what_is_left_of_it(pattern):
    rng = np.random.default_rng(5)
    weight, mask = rng.standard_normal((16, 12)).astype(np.float32), rng.random((16, 12)) > 0.2
    # The weights that are off keep a value, as under a wrapper through which they go on learning.
    tensor = Tensor("t", weight, mask, Layout.plain(2), {})
    target = 0.5 * pattern.limit(weight.shape)
    after = masks_at_sparsity([tensor], Recipe(criteria.Magnitude(), pattern, allocation.Uniform()), target)[0]
    rows = np.sort(groups_of(pattern, np.abs(weight) * mask, tensor.layout), axis=1)
    taken = rows[:, : pattern.m - pattern.n] if isinstance(pattern, patterns.NofM) else rows
    worth = taken.max(axis=1) if getattr(pattern, "pooling", "mean") == "max" else taken.mean(axis=1)
    left = pattern.n if isinstance(pattern, patterns.NofM) else 0
    gone = groups_of(pattern, after, tensor.layout).sum(axis=1) <= left
    assert gone.sum() == round(target * pattern.units(weight.shape))
    assert worth[gone].max() <= worth[~gone].min() + 1e-6


def test_groups_of_n_to_m_take_what_is_off_first_whatever_the_sign_of_scores():
    mask = np.array([[True], [False], [True], [True]])
    score = np.array([[-3.0], [0.0], [-2.0], [1.0]], dtype=np.float32)
    tensor = Tensor("t", np.ones((4, 1), np.float32), mask, Layout.plain(2), {"movement": score})
    recipe = Recipe(criteria.Movement(), patterns.NofM(2, 4), allocation.Uniform())
    assert masks_at_sparsity([tensor], recipe, 0.5)[0].ravel().tolist() == [False, False, True, True]


def test_a_threshold_takes_units_by_what_is_left_of_them():
    weight = np.array([[4.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    tensor = Tensor("t", weight, weight != 0, Layout.plain(2), {})
    recipe = Recipe(criteria.Magnitude(), patterns.Block(4, 1), allocation.Uniform())
    assert (masks_at_threshold([tensor], recipe, 0.7)[0] == (weight != 0)).all()
    # Means of 1 and 0.75.
    assert masks_at_threshold([tensor], recipe, 0.75)[0].sum(axis=0).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"Layer collapse: all 8 weights of 't'.*threshold 1\b"):
        masks_at_threshold([tensor], recipe, 1.0)


def test_targets_count_what_is_off_already_when_the_allocation_changes():
    rng = np.random.default_rng(6)
    for pattern in (patterns.Unstructured(), patterns.Filter()):
        before = masks_at_sparsity(
            tensors_of(("dense", "dense"), rng),
            Recipe(criteria.Magnitude(), pattern, allocation.Explicit({"a.*": 0.75})),
            0.0,
        )
        for rule in (allocation.Uniform(), allocation.ERK(), allocation.Sensitivity(), allocation.Global(floor=0.5)):
            after = masks_at_sparsity(
                tensors_of(("dense", "dense"), rng, before), Recipe(criteria.Magnitude(), pattern, rule), 0.5
            )
            assert sum(int((~mask).sum()) for mask in after) == 96, (pattern, rule)
            assert not (after[0] & ~before[0]).any()


def test_an_update_that_takes_all_that_is_left_is_refused():
    class Whole(patterns.Filter):
        """Claims to take one output, and takes all."""

        def expand(self, on, scores):
            return np.zeros(scores.shape, dtype=bool)

    tensor = tensors_of(("dense",), np.random.default_rng(0), [np.random.default_rng(1).random((8, 12)) > 0.5])[0]
    with pytest.raises(ValueError, match=r"Layer collapse: all 96 weights of 'a/dense'"):
        masks_at_sparsity([tensor], Recipe(criteria.Magnitude(), Whole(), allocation.Uniform()), 0.5)


def test_the_lowest_scores_go_and_the_count_is_exact():
    rng = np.random.default_rng(3)
    tensors = tensors_of(("dense", "conv"), rng)
    recipe = Recipe(criteria.Magnitude(), patterns.Unstructured(), allocation.Global(floor=0.0))
    masks = masks_at_sparsity(tensors, recipe, 0.9)
    joined = np.concatenate([np.abs(t.weight).ravel() for t in tensors])
    expected = joined > np.sort(joined)[round(0.9 * joined.size) - 1]
    np.testing.assert_array_equal(np.concatenate([m.ravel() for m in masks]), expected)


def test_transposed_kernels_are_cut_along_their_own_inputs():
    weight = np.arange(1.0, 9.0, dtype=np.float32).reshape(1, 2, 4)  # [space, out, in]
    tensor = Tensor("t", weight, None, Layout.transposed(3), {})
    recipe = Recipe(criteria.Magnitude(), patterns.Block(4, 1), allocation.Uniform())
    assert masks_at_sparsity([tensor], recipe, 0.5)[0][0].astype(int).tolist() == [[0] * 4, [1] * 4]


def test_thresholds_by_hand():
    weight = np.array([[0.5, -0.1, 0.1], [0.0, 0.2, -1.0]], dtype=np.float32)
    recipe = Recipe(criteria.Magnitude(), patterns.Unstructured(), allocation.Uniform())
    tensor = Tensor("t", weight, None, Layout.plain(2), {})
    assert masks_at_threshold([tensor], recipe, 0.1)[0].astype(int).tolist() == [[1, 0, 0], [0, 1, 1]]
    bound = 0.25 * weight.std()
    np.testing.assert_array_equal(
        masks_at_threshold([tensor], recipe, 0.25, relative_to="std")[0], np.abs(weight) > bound
    )
    on = np.array([[True, True, True], [True, True, False]])
    held = Tensor("t", weight, on, Layout.plain(2), {})
    assert masks_at_threshold([held], recipe, 0.1)[0].astype(int).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_growth_exchanges_blocks_whole():
    rng = np.random.default_rng(0)
    tensors = tensors_of(("dense",), rng)
    block = patterns.Block(4, 1)
    start = masks_at_sparsity(tensors, Recipe(criteria.Magnitude(), block, allocation.Uniform()), 0.5)
    recipe = Recipe(criteria.Magnitude(), block, allocation.Uniform(), growth.RigL(fraction=0.5))
    after = masks_at_sparsity(tensors_of(("dense",), rng, start), recipe, 0.5)[0]
    assert (~after).sum() == (~start[0]).sum()
    assert (after & ~start[0]).any(), "some came back"
    assert set(np.unique(block.reduce(after.astype(np.float32)))) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * np.nan, r"'t' holds NaN or infinite weights.*lower the learning rate"),
        (lambda w: np.where(w == 0.5, np.inf, w), r"'t' holds NaN or infinite weights"),
    ],
)
def test_weights_that_are_not_finite_are_refused(change, message):
    weight = change(np.full((4, 4), 0.5, dtype=np.float32))
    recipe = Recipe(criteria.Magnitude(), patterns.Unstructured(), allocation.Uniform())
    with pytest.raises(ValueError, match=message):
        masks_at_sparsity([Tensor("t", weight, None, Layout.plain(2), {})], recipe, 0.5)


def test_collapse_and_misfits_name_the_layer():
    weight = np.ones((6, 2), dtype=np.float32)
    tensor = Tensor("block/dense/kernel", weight, None, Layout.plain(2), {})
    magnitude = criteria.Magnitude()
    with pytest.raises(ValueError, match=r"Layer collapse: all 12 weights of 'block/dense/kernel'.*threshold 1"):
        masks_at_threshold([tensor], Recipe(magnitude, patterns.Unstructured(), allocation.Uniform()), 1.0)
    with pytest.raises(ValueError, match=r"'block/dense/kernel': Block\(4, 1\).*Block\(3, 1\).*exclude="):
        masks_at_sparsity([tensor], Recipe(magnitude, patterns.Block(4, 1), allocation.Uniform()), 0.5)
    with pytest.raises(ValueError, match=r"at most a sparsity of 0\.5.*'block/dense/kernel'.*target=0\.9"):
        masks_at_sparsity([tensor], Recipe(magnitude, patterns.Filter(), allocation.Uniform()), 0.9)


STRATEGIES = [
    schedules.PolynomialDecay(0.1, 0.7, begin_step=3, end_step=9, frequency=2, power=1.5),
    schedules.Linear(0.1, 0.7, begin_step=3, end_step=9, frequency=2),
    schedules.Cosine(0.1, 0.7, begin_step=3, end_step=9, frequency=2),
    schedules.Exponential(0.1, 0.7, begin_step=3, end_step=9, frequency=2),
    schedules.ConstantSparsity(0.4, begin_step=1, end_step=8, frequency=3),
    schedules.OneShot(0.4, step=3),
    schedules.Iterative(0.4, rounds=3, interval=5, begin_step=4, rewind_to=2),
    schedules.Phases(0.4, begin=3, end=30, sparse=4, dense=6),
    schedules.Piecewise((1, 4), (0.1, 0.3), interpolate=True, frequency=2),
    schedules.Threshold(0.1, final_value=0.2, begin_step=1, end_step=8, frequency=3, relative_to="std"),
    patterns.Unstructured(),
    patterns.Block(2, 3, pooling="max"),
    patterns.NofM(1, 5),
    patterns.Filter(pooling="max"),
    patterns.Channel(pooling="max"),
    *ALL_CRITERIA[:1],
    criteria.Random(seed=3),
    *ALL_CRITERIA[2:],
    allocation.Uniform(floor=0.1),
    allocation.Global(floor=0.2),
    allocation.ERK(floor=0.1),
    allocation.LAMP(floor=0.1),
    allocation.Sensitivity(points=(0.1, 0.2), floor=0.3),
    allocation.Explicit({"x": 0.5}),
    growth.SET(fraction=0.2),
    growth.RigL(fraction=0.2),
    growth.Surgery(margin=0.2),
    growth.Alternation(),
    step.ClipGradients(gamma=0.5),
    MaskMomentum(),
    step.L1(0.5, biases=True, proximal=True, ramp=schedules.OneShot(0.5, step=2)),
    Scope(include=("a",), exclude=("b",), names="c", min_size=4),
    starts.Linear(),
    starts.Density(),
    starts.Random(),
    starts.KMeansPlusPlus(),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_configurations_are_complete(strategy):
    config = strategy.get_config()
    assert type(strategy).from_config(json.loads(json.dumps(config))) == strategy
    through_keras = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(strategy)))
    )
    assert through_keras == strategy
    with pytest.raises(ValueError, match=r"Received also: \['surprise'\]"):
        type(strategy).from_config({**config, "surprise": 1})
    with pytest.raises((AttributeError, TypeError)):
        strategy.surprise = 1


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (criteria.Criterion, "fisher gradient magnitude movement random snip synflow taylor"),
        (patterns.Pattern, "channel filter unstructured"),
        (allocation.Allocation, "erk global lamp uniform"),
        (growth.Growth, "alternation rigl set surgery"),
    ],
)
def test_every_name_makes_a_strategy(base, names):
    assert [name for name in sorted(base.known_names) if name in names.split()] == names.split()
    for name in names.split():
        assert type(resolve(name, base)).__name__.lower() == name


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"Unknown criterion: 'magnitud'.*'magnitude'.*Did you mean 'magnitude'\?"):
        resolve_recipe("magnitud", None, None, default="global")
    with pytest.raises(TypeError, match=r"names \['erk', 'global', 'lamp', 'uniform'\].*Received: 3 of type int"):
        resolve_allocation(3)


def test_a_users_own_strategies_need_no_registration():
    class Smallest(criteria.Criterion):
        def __call__(self, weight, statistics):
            return -np.abs(weight)

    weight = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    recipe = Recipe(Smallest(), patterns.Unstructured(), allocation.Uniform())
    mask = masks_at_sparsity([Tensor("t", weight, None, Layout.plain(2), {})], recipe, 0.5)[0]
    assert mask.astype(int).tolist() == [[1, 1], [0, 0]]
