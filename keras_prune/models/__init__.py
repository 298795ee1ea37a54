"""What every stage asks of a Keras model: values of variables, drawn inputs, whether two models agree."""
