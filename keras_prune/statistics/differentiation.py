"""Derivatives of a scalar function of tensors: the one place where the backends differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

__all__ = ["gradient", "hessian_product"]

Function = Callable[[Sequence[Any]], Any]


def gradient(function: Function, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    r"""Return $f(v)$ and $\partial f / \partial v_i$, dense and zero where f does not depend on $v_i$.

    Args:
        function: values -> a scalar tensor, without side effects.
        values: tensors of the backend.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            result = function(values)
        found = tape.gradient(result, list(values), unconnected_gradients="zero")
        return result, [tf.convert_to_tensor(g) for g in found]
    if backend == "jax":
        import jax

        result, found = jax.value_and_grad(function)(list(values))
        return result, list(found)
    if backend == "torch":
        result, found = _torch_gradient(function, [v.detach().requires_grad_() for v in values], create_graph=False)
        return result.detach(), found
    raise _no_backend(backend)


def hessian_product(function: Function, values: Sequence[Any], vectors: Sequence[Any]) -> list[Any]:
    r"""Return $\sum_j \partial^2 f / \partial v_i \partial v_j \, u_j$: the Hessian times a vector.

    Args:
        function: values -> a scalar tensor, without side effects.
        values: tensors of the backend.
        vectors: the vector u, in parts of the shapes of `values`.
    """
    backend = keras.backend.backend()
    vectors = [ops.convert_to_tensor(u, dtype=v.dtype) for u, v in zip(vectors, values, strict=True)]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(values)
            # Inside the outer tape, so that it sees the gradient being taken.
            _, found = gradient(function, values)
            along = tf.add_n([tf.reduce_sum(g * u) for g, u in zip(found, vectors, strict=True)])
        products = outer.gradient(along, list(values), unconnected_gradients="zero")
        return [tf.convert_to_tensor(p) for p in products]
    if backend == "jax":
        import jax

        return list(jax.jvp(jax.grad(function), (list(values),), (vectors,))[1])
    if backend == "torch":
        leaves = [v.detach().requires_grad_() for v in values]
        _, found = _torch_gradient(function, leaves, create_graph=True)
        along = sum((g * u).sum() for g, u in zip(found, vectors, strict=True))
        return _torch_gradient(lambda _: along, leaves, create_graph=False)[1]
    raise _no_backend(backend)


def _torch_gradient(function: Function, leaves: Sequence[Any], *, create_graph: bool) -> tuple[Any, list[Any]]:
    import torch  # type: ignore[import-not-found, unused-ignore]

    with torch.enable_grad():
        result = function(leaves)
        if not result.requires_grad:  # constant, or linear where this is the second derivative
            return result, [torch.zeros_like(leaf) for leaf in leaves]
        found = torch.autograd.grad(result, list(leaves), create_graph=create_graph, allow_unused=True)
    return result, [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def _no_backend(backend: str) -> NotImplementedError:
    return NotImplementedError(
        f"Gradients of a data set are taken on the backends tensorflow, jax and torch. Received: backend "
        f"{backend!r}. "
        "Take gradients from training (data=None), or a criterion without gradients."
    )
