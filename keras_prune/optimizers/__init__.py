"""The optimizers of a model: which one moves a variable, how many steps it has made, what it keeps for each weight."""
