"""What every choice in the library is: a frozen value with a configuration, and a name that stands for it."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import keras

__all__ = [
    "FROM_TRAINING",
    "IN_RECONSTRUCTION",
    "ONLY_FROM_TRAINING",
    "STATISTICS",
    "Measuring",
    "S",
    "Strategy",
    "check_fraction",
    "check_needs",
    "check_points",
    "data_field",
    "declared",
    "integer",
    "resolve",
    "to_integers",
    "to_numbers",
]

S = TypeVar("S", bound="Strategy")


class _Declared:
    """A value that an attribute has where a subclass does not define it.

    Looked up on a class it is not there. `dataclass` would take it for the default of a subclass's field of that name,
    and refuse fields without a default after it.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            raise AttributeError("declared for instances only")
        return self.value


def declared(value: Any) -> Any:
    """Declare an attribute on a base class, with the value that it has where a subclass has no such field or property.

    Example:
        >>> class Base(Strategy):
        ...     data = declared(None)
        >>> @dataclasses.dataclass(frozen=True)
        ... class Mine(Base):
        ...     data: int
        ...     power: float
        >>> Base().data, Mine(3, 2.0).data
        (None, 3)
    """
    return _Declared(value)


@dataclasses.dataclass(frozen=True)
class Strategy(ABC):  # noqa: B024 (abstract are the bases of each kind)
    """Base of schedules, criteria, patterns, allocations, growth rules and parts of the training step.

    A strategy is a frozen dataclass: it compares by value, and its fields are its configuration. Fields marked with
    `metadata={"config": False}` (a data set, say) are left out of the configuration, since they cannot be written down.

    Subclasses need no registration to be used. To be saved and loaded, they carry
    `@keras.saving.register_keras_serializable(package=...)` like any Keras object. To be chosen by a string, they are
    given one: `class Mine(Criterion, name="mine")`; all their fields then need defaults.
    """

    kind: ClassVar[str] = "strategy"
    """What the strategy is called in messages: "schedule", "criterion", ..."""
    known_names: ClassVar[dict[str, type[Any]]] = {}
    """The strings that stand for strategies of this kind, each with its class."""

    def __init_subclass__(cls, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(cls):
            cls.known_names = {}
        if name is not None:
            taken = cls.known_names.get(name, cls)
            if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(
                    f"{cls.__name__}: the name {name!r} must be one of its own. Received: a name that stands for the "
                    f"{cls.kind} {taken.__module__}.{taken.__qualname__}."
                )
            cls.known_names[name] = cls

    def get_config(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dictionary; `from_config` is its inverse.

        Example:
            >>> import keras_prune as kp
            >>> kp.patterns.Block(4, 1).get_config()
            {'rows': 4, 'cols': 1, 'pooling': 'mean'}
        """
        return {
            field.name: keras.saving.serialize_keras_object(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.metadata.get("config", True)
        }

    @classmethod
    def from_config(cls: type[S], config: Mapping[str, Any]) -> S:
        """Make the strategy that `get_config` described.

        Args:
            config: what `get_config` returned, directly or after a trip through JSON.

        Raises:
            ValueError: it holds something that is no field of this class.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(
                f"{cls.__name__}.from_config knows {sorted(known)}. Received also: {unknown}. "
                "Was the configuration written by another version or another class?"
            )
        return cls(**{name: _restore(value) for name, value in config.items()})


def _restore(value: Any) -> Any:
    """Undo `serialize_keras_object`, giving tuples where JSON has lists: a frozen value holds no list."""
    value = keras.saving.deserialize_keras_object(value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value


# -- what is measured for a strategy ----------------------------------------------------------------------------------

FROM_TRAINING = frozenset({"gradient", "abs_gradient", "squared_gradient", "movement"})
"""Statistics that the training step can sum up; all others come from a pass over data or from the tensor itself."""

ONLY_FROM_TRAINING = frozenset({"movement"})
"""Statistics that no pass over data can give."""

STATISTICS = FROM_TRAINING | {"hessian_gradient", "synflow", "input_norm", "input_mean", "seed"}
"""Every statistic that a strategy may need in training and out of it; `Measuring` says what each is."""

IN_RECONSTRUCTION = frozenset({"inverse_hessian"})
"""Statistics of a criterion whose masks are chosen while the weights that stay are solved: `prune(reconstruct=)`."""


@dataclasses.dataclass(frozen=True)
class Measuring(Strategy):
    r"""Base of strategies that go by measurements: criteria, growth rules, allocations, importances.

    Whoever runs one measures what `needs` names, each an array of the weight's shape or broadcasting to it:

    | statistic | value |
    | --- | --- |
    | "gradient" | mean of g = dL/dw |
    | "abs_gradient" | mean of $|g|$ |
    | "squared_gradient" | mean of $g^2$ |
    | "movement" | $-\sum_t w_t g_t$ over the steps of training |
    | "hessian_gradient" | H g |
    | "synflow" | $\partial R / \partial |w|$ |
    | "input_norm" | L2 norm of the input that a weight reads |
    | "input_mean" | mean $|a|$ of the input that a weight reads |
    | "seed" | an integer of the tensor's own |
    | "inverse_hessian" | diagonal of $H^{-1}$, $H = X^T X / n$ of the n inputs X that a kernel reads, damped |

    With `data`, they are taken on it at each update of the masks. Without, the first four come from training itself,
    "synflow" and "seed" from the tensor, and the others are refused. "movement" comes from training in any case. A
    criterion that takes "inverse_hessian" takes nothing else, and is for `prune(..., reconstruct=inputs)`, which takes
    it on these: for the whole kernel at first, then input by input, once those before are settled.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """The statistics, by name. A subclass may also make it a property."""
    data = declared(None)
    """What they are taken on. A subclass that takes data has a field of this name, made by `data_field()`."""

    @property
    def takes_data(self) -> bool:
        """Whether the strategy has a field for data."""
        return any(field.name == "data" for field in dataclasses.fields(self))

    @property
    def from_training(self) -> frozenset[str]:
        """The statistics that training gives."""
        return frozenset(self.needs) & (FROM_TRAINING if self.data is None else ONLY_FROM_TRAINING)

    @property
    def from_data(self) -> frozenset[str]:
        """The statistics that a pass over `data` gives, or without data the tensor itself."""
        return frozenset(self.needs) - self.from_training

    def on(self, data: Any) -> Self:
        """Return the same strategy on this data, if it takes some and has none of its own."""
        if data is None or self.data is not None or not self.takes_data:
            return self
        return dataclasses.replace(self, **{"data": data})


def data_field() -> Any:
    """Return a field for data: neither compared nor written into the configuration."""
    return dataclasses.field(default=None, metadata={"config": False}, compare=False, repr=False)


def check_needs(strategy: Measuring, known: frozenset[str] = STATISTICS) -> None:
    """Refuse a strategy that needs what nobody measures.

    Raises:
        ValueError: a statistic is unknown. TypeError: `needs` is no set of names.
    """
    subject = f"{type(strategy).__name__}: needs"
    if not isinstance(strategy.needs, frozenset | set):
        raise TypeError(
            f"{subject} must be a set of names of statistics. Received: {strategy.needs!r}. "
            "Write frozenset({'gradient'})."
        )
    unknown = sorted(strategy.needs - known, key=str)
    if unknown:
        raise ValueError(f"{subject} must be among {sorted(known)}. Received: {unknown}")


# -- names ------------------------------------------------------------------------------------------------------------


def resolve(value: Any, base: type[S], names: Mapping[str, type[S] | S] | None = None) -> S:
    """Turn a name into the strategy it stands for; this is the one place where strings become objects.

    Args:
        value: an instance of `base`, a name, or a configuration made by `keras.saving.serialize_keras_object`.
        base: the kind of strategy asked for.
        names: the names that are known, each with an instance, or with a class whose fields all have defaults; None
            for those that the classes of this kind were given.

    Raises:
        ValueError: the name is unknown, or stands for a class that needs arguments.
        TypeError: the value is neither a name nor a strategy of this kind.

    Example:
        >>> from keras_prune.criteria import Criterion
        >>> resolve("magnitude", Criterion)
        Magnitude()
    """
    names = base.known_names if names is None else names
    if isinstance(value, Mapping) and "class_name" in value:
        value = keras.saving.deserialize_keras_object(dict(value))
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        if value not in names:
            near = difflib.get_close_matches(value, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else _by_class(value, base)
            raise ValueError(f"Unknown {base.kind}: {value!r}. Known names: {sorted(names)}.{hint}")
        found = names[value]
        return found() if isinstance(found, type) else found
    hint = f" Write {value.__name__}(...)." if isinstance(value, type) and issubclass(value, base) else ""
    raise TypeError(
        f"A {base.kind} is one of the names {sorted(names)} or an instance of {base.__name__}. "
        f"Received: {value!r} of type {type(value).__name__}.{hint}"
    )


def _by_class(name: str, base: type[Strategy]) -> str:
    """Say how a strategy is written that needs arguments, and so has no name; nothing where there is none."""
    waiting = [base]
    while waiting:
        found = waiting.pop()
        waiting += found.__subclasses__()
        if found.__name__.lower() == name.lower().replace("_", ""):
            arguments = [
                f"{field.name}=..."
                for field in dataclasses.fields(found)
                if field.name == "data" or (field.default is field.default_factory is dataclasses.MISSING)
            ]
            return f" It is written as an instance: {found.__name__}({', '.join(arguments)})."
    return ""


# -- checks of fields -------------------------------------------------------------------------------------------------


def to_integers(strategy: Strategy, *names: str) -> None:
    """Make plain integers of fields, NumPy's too; None stays.

    Raises:
        ValueError: a number that is not whole. TypeError: no number.
    """
    for name in names:
        value = getattr(strategy, name)
        if value is not None:
            object.__setattr__(strategy, name, integer(f"{type(strategy).__name__}: {name}", value))


def integer(subject: str, value: Any) -> int:
    """Return a whole number as a plain integer.

    Example:
        >>> integer("Linear: end_step", 70.5)
        Traceback (most recent call last):
            ...
        ValueError: Linear: end_step must be a whole number. Received: 70.5. Write int(...) around it.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        raise ValueError(f"{subject} must be a whole number. Received: {value!r}. Write int(...) around it.")
    raise TypeError(f"{subject} must be a whole number. Received: {value!r} of type {type(value).__name__}")


def to_numbers(strategy: Strategy, *names: str) -> None:
    """Make plain floats of fields, NumPy's too, and leave integers and None.

    Raises:
        TypeError: no number.
    """
    for name in names:
        value = getattr(strategy, name)
        if value is None or type(value) in (int, float):
            continue
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            subject, kind = f"{type(strategy).__name__}: {name}", type(value).__name__
            raise TypeError(f"{subject} must be a number. Received: {value!r} of type {kind}")
        object.__setattr__(strategy, name, float(value))


def check_fraction(subject: str, value: float, *, below_one: bool = True) -> None:
    """Refuse a sparsity that is not a fraction in [0, 1) (or [0, 1] with `below_one=False`).

    Raises:
        ValueError: naming the subject, the rule and the value; a value in (1, 100] is taken for a percentage.
    """
    top = "1)" if below_one else "1]"
    ok = isinstance(value, numbers.Real) and 0.0 <= value <= 1.0 and (value < 1.0 or not below_one)
    if not ok:
        hint = f" Sparsities are fractions: for {value} % write {value / 100}." if _is_percentage(value) else ""
        raise ValueError(f"{subject} must be a fraction in [0, {top}. Received: {value!r}.{hint}")


def check_points(owner: str, points: Sequence[float]) -> None:
    """Refuse sparsities at which something is measured unless they increase, from above 0 to below 1.

    Args:
        owner: whose `points` they are, for messages.
        points: the sparsities.

    Raises:
        ValueError: naming the owner, the rule and what was received.
    """
    if not points or list(points) != sorted(set(points)) or points[0] <= 0:
        raise ValueError(f"{owner}: points must increase from above 0. Received: points={points}")
    for point in points:
        check_fraction(f"{owner}: each of points", point)


def _is_percentage(value: object) -> bool:
    return isinstance(value, int | float) and 1 < value < 100
