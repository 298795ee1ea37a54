"""How each weight is stored, which kernel reads it, and why."""
