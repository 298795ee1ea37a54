"""What a Keras model takes, gives and answers: signature, inputs, shapes, state, reference answers."""
