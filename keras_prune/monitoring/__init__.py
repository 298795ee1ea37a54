"""Callbacks that follow a metric: how good a model is, which epoch was best, and the strategy that it steers."""
