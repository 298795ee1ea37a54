"""Commands of `tflite-export` that are more than a line or two of options; `cli.py` has the others."""
