"""Timing: files against each other, here and on any phone of the network."""
