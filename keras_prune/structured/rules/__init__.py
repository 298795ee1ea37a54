"""How each kind of layer and operation relates the axes of what comes in, what goes out, and its weights."""
