"""Pruning while a model trains: callbacks, when they act, and what acts inside the compiled step."""
