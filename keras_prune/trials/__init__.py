"""Strategies tried one after another on a copy of a model, each measured: what a search is made of."""
