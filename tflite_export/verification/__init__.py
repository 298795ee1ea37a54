"""Verify a file against the model that it came from, here, where sparse kernels are on, and on the device itself."""
