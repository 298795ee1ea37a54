"""New models from old ones: fewer units, more units, fewer layers, more layers, with weights and training state."""
