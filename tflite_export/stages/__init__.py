"""The stages of an export up to the plan: checks, preparation, the dense file, the plan."""
