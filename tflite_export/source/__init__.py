"""What may be exported: Keras models, files of them, functions of TensorFlow, models of Keras 2."""
