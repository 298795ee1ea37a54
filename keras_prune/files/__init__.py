"""Files: written at once or not at all, and models read from them."""
