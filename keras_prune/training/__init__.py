"""Pruning while a model trains: callbacks, and when they act."""
