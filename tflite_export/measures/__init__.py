"""Measures: what a file costs on a device, as one figure that a search makes small."""
