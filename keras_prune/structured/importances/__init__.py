"""What a unit is worth: from weights, gradients, activations, or measured costs."""
