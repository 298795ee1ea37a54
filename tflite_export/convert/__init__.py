"""TensorFlow's own converter, and the number types that a file may have."""
