"""Where XNNPACK switches a .tflite to sparse inference, and where it would then answer wrongly."""
