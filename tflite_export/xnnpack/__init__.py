"""Where XNNPACK switches a .tflite to sparse inference, and where the results would then be wrong."""
