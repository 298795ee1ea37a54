"""What acts inside the compiled step of a training, around the move of the optimizer."""
