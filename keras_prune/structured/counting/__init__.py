"""Parameters, multiplications and memory of a model, as it is and as it would be."""
