"""Masks: computed from weights and statistics, bound to variables, saved with the model, held when training goes on."""
