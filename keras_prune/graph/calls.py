"""A layer's name -> its call in a graph, with the names that are near where there is none."""

from __future__ import annotations

import difflib

from keras_prune.graph.graph import Graph, Inside, Node

__all__ = ["find_call", "graph_of", "graphs_in", "open_graphs"]


def graphs_in(graph: Graph) -> list[Graph]:
    """A graph, and those of the models in it, once each."""
    bodies = {id(body): body for node in graph.walk() for body in node.bodies}
    return [graph, *bodies.values()]


def open_graphs(graph: Graph) -> list[Graph]:
    """Those of the graphs in which calls can be left out or put in: not what layers do in their own code."""
    return [one for one in graphs_in(graph) if not isinstance(one, Inside)]


def graph_of(graph: Graph, node: Node) -> Graph:
    """The graph that a call is in: this one, or that of a model in it."""
    return next(one for one in graphs_in(graph) if any(each is node for each in one.nodes))


def find_call(owner: str, graph: Graph, name: str) -> Node:
    """Return the first call of the layer with that name or path.

    Raises:
        ValueError: no layer has it; the message lists names that are near.
    """
    nodes = list(graph.walk())
    for node in nodes:
        if name in (node.path, node.operation.name):
            return node
    known = list(dict.fromkeys(node.path for node in nodes))
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"Near to it are {near}." if near else f"It has {known[:10]}{' and more' if len(known) > 10 else ''}."
    raise ValueError(f"{owner}: {graph.model.name!r} has no layer {name!r}. {hint}")
