"""Exact rewrites of a Keras model, each a pass that declares what it changes and is checked by running both models."""
