"""How each kind of layer or operation relates the axes of its inputs, its results and its weights."""
