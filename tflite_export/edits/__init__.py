"""Edits of a .tflite file, one a module."""
