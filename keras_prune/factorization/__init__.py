"""Kernels as products of smaller ones: plain Keras layers in a row in the place of one."""
