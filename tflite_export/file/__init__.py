"""A .tflite as a file: read, checked, edited, written."""
