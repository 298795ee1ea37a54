"""TensorFlow Lite Micro: weights in the records that it decodes, and the check of files for microcontrollers."""
