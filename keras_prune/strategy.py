"""What every choice in the library is: a frozen value with a configuration, and a name that stands for it."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import keras

__all__ = ["S", "Strategy", "check_fraction", "integer", "resolve", "to_integers", "to_numbers"]

S = TypeVar("S", bound="Strategy")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Base of schedules, criteria, patterns, allocations, growth rules and step parts.

    A strategy is a frozen dataclass: it compares by value, and its fields are its configuration. Fields marked with
    `metadata={"config": False}` (a data set, say) are left out of the configuration, since they cannot be written down.

    Subclasses need no registration to be used; to be saved and loaded by name, they carry
    `@keras.saving.register_keras_serializable(package=...)` like any Keras object.
    """

    kind: ClassVar[str] = "strategy"
    """What the strategy is called in messages: "schedule", "criterion", ..."""

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


def resolve(value: Any, base: type[S], names: Mapping[str, type[S]]) -> S:
    """Turn a name into the strategy it stands for; this is the one place where strings become objects.

    Args:
        value: an instance of `base`, a name in `names`, or a configuration made by
            `keras.saving.serialize_keras_object`.
        base: the kind of strategy asked for.
        names: the names that are known, each with a class whose arguments all have defaults.

    Raises:
        ValueError: the name is unknown, or stands for a class that needs arguments.
        TypeError: the value is neither a name nor a strategy of this kind.
    """
    if isinstance(value, base):
        return value
    if isinstance(value, Mapping) and "class_name" in value:
        value = keras.saving.deserialize_keras_object(dict(value))
        if isinstance(value, base):
            return value
    if isinstance(value, str):
        if value not in names:
            near = difflib.get_close_matches(value, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else _by_class(value, base)
            raise ValueError(f"Unknown {base.kind}: {value!r}. Known names: {sorted(names)}.{hint}")
        return names[value]()
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


def _is_percentage(value: object) -> bool:
    return isinstance(value, int | float) and 1 < value < 100
