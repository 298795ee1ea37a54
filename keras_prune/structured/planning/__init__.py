"""A target -> which units go: chosen, measured, printed, and repeated with training in between."""
