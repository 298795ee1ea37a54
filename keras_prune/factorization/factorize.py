"""A model whose large kernels are products of small ones: chosen, made, and held against the model."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.factorization.candidates import CONVOLUTION_FORMS, DENSE_FORMS, Candidate, candidates_of
from keras_prune.factorization.choosing import cheapest, within
from keras_prune.factorization.measuring import by_latency, seconds_of, speed_of
from keras_prune.factorization.reading import grams_of
from keras_prune.factorization.report import FactorizationReport, FactorizedLayer
from keras_prune.factorization.stages import NameGiver, chain_layers
from keras_prune.factorization.tensor_train import TrainOfDense
from keras_prune.masks.hold import under_masks
from keras_prune.models.agreement import check_agreement
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.variables import read
from keras_prune.scope import Scope, Skipped, check_scope
from keras_prune.strategy import check_fraction
from keras_prune.structured.analysis.groups import Analysis, analyse
from keras_prune.structured.counting.counting import Count, Counter
from keras_prune.structured.planning.latency import Measure, find_measure
from keras_prune.structured.surgery.rewrite import rebuild

__all__ = ["factorize"]

FORMS = ("svd", "spatial", "channel", "tucker2")
"""What is chosen from where nothing else is said."""
KNOWN = tuple(dict.fromkeys((*DENSE_FORMS, *CONVOLUTION_FORMS)))


def factorize(
    model: keras.Model,
    *,
    energy: float | None = None,
    error: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    ranks: int | Mapping[str, int | Sequence[int]] | None = None,
    forms: str | Sequence[str] = FORMS,
    data: Any = None,
    measure: Measure | None = None,
    scope: Scope | None = None,
    input_shape: Any = None,
) -> tuple[keras.Model, FactorizationReport]:
    r"""Return a model in which layers in a row stand for one, with factors of its kernel, and a report.

    A Dense layer becomes two, $W \approx U V$ with $U$ of shape `[in, r]` and $V$ of `[r, out]`; a convolution becomes
    two or three of which only one, or each along one axis, has a window (see `keras_prune.factorization.chains`). They
    are plain Keras layers: they train, save and export. The last of them keeps the old layer's name, bias and
    activation and gives what it gave. Each layer gets the form and the rank that are cheapest for what is asked; where
    no form has both fewer weights and fewer multiplications than the layer, it stays, and the report says so. One of
    `energy`, `error`, `params`, `macs`, `latency` and `ranks` says how much is to stay:

    Args:
        model: built; it stays as it is. Masks come off first: `factorize(kp.strip(model), ...)`, since factors of a
            kernel with zeros have none.
        energy: the share of squared singular values that each kernel keeps at least, a fraction in (0, 1].
        error: the relative error of each kernel at most, $\|W - W'\| / \|W\|$, a fraction in [0, 1): `error=e` is
            `energy=1 - e**2`.
        params: the share of the whole model's parameters that may be left, a fraction in (0, 1). Ranks are allocated by
            the energy that each buys for its weights, as a share of its kernel's own.
        macs: the share of the whole model's multiplications that may be left, likewise.
        latency: the share of measured latency that may be left, likewise. Models with more and more layers
            factorised, at the least loss for what is saved, are made and measured until one meets it, ten or so.
        ranks: by hand: a rank for all layers, or by layer (name or path): one number, or one for each pair of
            neighbours in the row. Other layers stay.
        forms: those to choose from: "svd" for Dense; "spatial", "channel", "tucker2" for convolutions; and for both
            "tensor_train", which needs `pip install "keras-prune[compression]"`.
        data: inputs, or batches of them; labels are not looked at. Errors and energies are then those of what each
            layer gives on them, and "svd" and "channel" are solved for that. It takes the square of the number of a
            kernel's inputs in memory.
        measure: a function from a model to the seconds of a run, such as `tflite_export.latency.Stopwatch()`.
            Layers that are measured to be no faster factorised, each by itself, are left. With `latency` None stands
            for what an installed package offers.
        scope: which kernels may be factorised; None for all. Frozen, quantized and LoRA layers stay.
        input_shape: for a subclassed model, see `trace`. It becomes a functional one.

    Returns:
        The new model, and the report: forms, ranks, costs and errors, and why the rest was left. Settings of `compile`
        are kept, the optimizer starts anew.

    Raises:
        ValueError: not one target, or one out of its range; a share that cannot be met (with the least that can); a
            name in `ranks` that no layer has; masks are on; no graph can be traced; the result answers otherwise than
            the model with the approximated kernels.

    Source: Denton et al. 2014, "Exploiting linear structure within convolutional networks for efficient evaluation".

    Example:
        >>> rng = np.random.default_rng(0)
        >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32, "relu", name="wide")])
        >>> low_rank = rng.normal(size=(32, 4)) @ rng.normal(size=(4, 32))
        >>> model.layers[0].set_weights([low_rank, np.zeros(32)])
        >>> smaller, report = factorize(model, energy=0.999)
        >>> [(layer.name, layer.units) for layer in smaller.layers], report.layers[0].ranks
        ([('wide_factor1', 4), ('wide', 32)], (4,))
    """
    targets = {"energy": energy, "error": error, "params": params, "macs": macs, "latency": latency, "ranks": ranks}
    names = _checked(model, targets, forms, scope)
    analysis = analyse(model, input_shape=input_shape)
    found, skipped = candidates_of(
        analysis.graph, scope or Scope(), names, lambda kernels: {} if data is None else grams_of(model, kernels, data)
    )
    counter = Counter(analysis)
    total = counter.total(counter.sizes)
    before: float | None = None
    if latency is not None:
        measure = measure or find_measure(model, data)
        build = functools.partial(_made, analysis, found)
        chosen, before = by_latency(found, model, total.macs, latency, measure, build)
        left = _rest(found, chosen, f"latency={latency} is met without it, at less loss of energy")
    else:
        chosen, left = _choose(found, targets, total)
    speeds: dict[int, float] = {}
    if measure is not None:
        speeds = {place: _speed(found[place], choice, measure) for place, choice in chosen.items()}
        slow = {place: speed for place, speed in speeds.items() if speed <= 1.0}
        left += [
            Skipped(found[place].target.path, _slower(found[place], chosen[place], s)) for place, s in slow.items()
        ]
        chosen = {place: choice for place, choice in chosen.items() if place not in slow}
    new = _made(analysis, found, chosen)
    report = _report(total, found, chosen, speeds, [*skipped, *left])
    if before is not None and measure is not None:
        report = dataclasses.replace(report, latency=(before, seconds_of(measure, new)))
    return new, report


def _speed(candidate: Candidate, choice: int, measure: Measure) -> float:
    return speed_of(candidate.target.layer, candidate.shape, _layers(candidate, choice, lambda name: name), measure)


def _slower(candidate: Candidate, choice: int, speed: float) -> str:
    form, ranks = candidate.chosen(choice)
    return (
        f"as {form.form} of rank {', '.join(map(str, ranks))} it was measured {speed:.2f} times as fast, so no faster"
    )


def _checked(
    model: keras.Model, targets: Mapping[str, Any], forms: str | Sequence[str], scope: Scope | None
) -> tuple[str, ...]:
    """Refuse what cannot be asked for; return the names of the forms."""
    refuse_keras2("factorize", model)
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        received = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none"
        raise ValueError(
            f"factorize takes one of {', '.join(targets)}, which says how much is to stay. Received: {received}."
        )
    for name, value in given.items():
        if name != "ranks":
            check_fraction(f"factorize: {name}", value, below_one=name != "energy")
            if value == 0.0 and name != "error":
                raise ValueError(f"factorize: {name} is a share that stays, so it is above 0. Received: {value}")
    names = (forms,) if isinstance(forms, str) else tuple(forms)
    unknown = [name for name in names if name not in KNOWN]
    if unknown or not names:
        raise ValueError(f"factorize: forms must be among {KNOWN}. Received: {unknown or names}")
    check_scope("factorize", scope)
    masked = [variable.path for variable in under_masks(model)]
    if masked:
        raise ValueError(
            f"factorize: {model.name!r} has masks on {len(masked)} variables, the first {masked[0]!r}, and factors of "
            "a kernel with zeros have none. Take the masks off first: kp.factorize(kp.strip(model), ...)."
        )
    return names


# -- what each layer gets ---------------------------------------------------------------------------------------------


def _choose(
    found: Sequence[Candidate], targets: Mapping[str, Any], total: Count
) -> tuple[dict[int, int], list[Skipped]]:
    """The choice for each layer, and why the others get none."""
    if targets["ranks"] is not None:
        return _by_hand(found, targets["ranks"])
    for by in ("params", "macs"):
        if targets[by] is not None:
            return _by_budget(found, by, targets[by], getattr(total, by))
    error = targets["error"] if targets["error"] is not None else np.sqrt(max(0.0, 1.0 - targets["energy"]))
    chosen = {
        place: choice for place, one in enumerate(found) if (choice := cheapest(one.choices, error**2)) is not None
    }
    reason = f"no form keeps its error at {error:.4g} with fewer weights and multiplications than it has"
    return chosen, _rest(found, chosen, reason)


def _by_budget(found: Sequence[Candidate], by: str, share: float, whole: int) -> tuple[dict[int, int], list[Skipped]]:
    chosen = within([one.choices for one in found], by, int(np.ceil(whole - share * whole)))
    if chosen is None:
        saved = sum(one.whole.of(by) - one.choices.costs(by).min() for one in found)
        least = 1.0 - saved / whole if whole else 1.0
        raise ValueError(
            f"factorize: {by}={share} cannot be met: at rank 1 everywhere {least:.4f} of the model is left. Give a "
            "larger share, or more layers by forms= or scope=."
        )
    return chosen, _rest(found, chosen, f"the share {by}={share} is met without it, at less loss of energy")


def _by_hand(
    found: Sequence[Candidate], ranks: int | Mapping[str, int | Sequence[int]]
) -> tuple[dict[int, int], list[Skipped]]:
    chosen: dict[int, int] = {}
    left: list[Skipped] = []
    wanted = {one.name: ranks for one in found} if isinstance(ranks, int) else dict(ranks)
    for place, one in enumerate(found):
        rank = next((wanted[key] for key in (one.name, one.target.layer.name) if key in wanted), None)
        if rank is None:
            left.append(Skipped(one.target.path, "ranks= does not name it"))
            continue
        fits = [i for i in range(len(one.of)) if _is_rank(one.chosen(i)[1], rank)]
        if fits:
            chosen[place] = min(fits, key=lambda i: (one.choices.lost[i], one.choices.macs[i]))
        else:
            reason = f"no form has rank {rank} with fewer weights and multiplications than it has"
            left.append(Skipped(one.target.path, reason))
    names = {name for one in found for name in (one.name, one.target.layer.name)}
    unknown = sorted(set(wanted) - names)
    if unknown:
        raise ValueError(
            f"factorize: ranks must name layers that can be factorised. Received: {unknown}. Those that can: "
            f"{[one.name for one in found]}."
        )
    return chosen, left


def _is_rank(ranks: tuple[int, ...], wanted: int | Sequence[int]) -> bool:
    return all(rank == wanted for rank in ranks) if isinstance(wanted, int) else ranks == tuple(wanted)


def _rest(found: Sequence[Candidate], chosen: Mapping[int, int], reason: str) -> list[Skipped]:
    return [Skipped(one.target.path, reason) for place, one in enumerate(found) if place not in chosen]


# -- the new model ----------------------------------------------------------------------------------------------------


def _made(analysis: Analysis, found: Sequence[Candidate], chosen: Mapping[int, int]) -> keras.Model:
    """The new model, which answers as the old one does with the approximated kernels."""
    model = analysis.graph.model
    taken = {node.operation.name for node in analysis.graph.walk()}

    def unused(name: str) -> str:
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        taken.add(free := next(one for one in names if one not in taken))
        return free

    instead, state = {}, []
    for place, choice in chosen.items():
        candidate = found[place]
        kernel, (form, ranks) = candidate.target.variable, candidate.chosen(choice)
        instead[id(candidate.target.layer)] = _layers(candidate, choice, unused)
        state.append((kernel, form.approximation(ranks).astype(read(kernel).dtype)))
    new = rebuild(analysis, np.ones(analysis.size, bool), instead=instead, owner="factorize")
    check_agreement("factorize", model, new, state=state)
    return new


def _layers(candidate: Candidate, choice: int, name: NameGiver) -> list[keras.Layer]:
    """New layers in the place of a layer."""
    form, ranks = candidate.chosen(choice)
    if isinstance(form, TrainOfDense):
        return form.layers(candidate.target.layer, ranks, name)
    return chain_layers(candidate.target.layer, form.kernels(ranks), form.moves, name)


def _report(
    total: Count,
    found: Sequence[Candidate],
    chosen: Mapping[int, int],
    speeds: Mapping[int, float],
    left: Sequence[Skipped],
) -> FactorizationReport:
    rows = []
    for place, choice in sorted(chosen.items()):
        candidate = found[place]
        choices, (form, ranks) = candidate.choices, candidate.chosen(choice)
        params, macs = int(choices.params[choice]), int(choices.macs[choice])
        rows.append(
            FactorizedLayer(
                candidate.name,
                type(candidate.target.layer).__name__,
                form.form,
                ranks,
                (candidate.whole.params, params),
                (candidate.whole.macs, macs),
                float(np.sqrt(choices.lost[choice])),
                speeds.get(place),
            )
        )
    less = (sum(r.params[0] - r.params[1] for r in rows), sum(r.macs[0] - r.macs[1] for r in rows))
    whole_params, whole_macs = (total.params, total.params - less[0]), (total.macs, total.macs - less[1])
    return FactorizationReport(total.path, tuple(rows), tuple(left), whole_params, whole_macs)
