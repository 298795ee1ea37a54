"""TensorFlow Lite Micro: the check of files for microcontrollers."""
