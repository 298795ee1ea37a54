"""Structured pruning while a model trains: gates, what closes and opens them, and what drives units to zero."""
