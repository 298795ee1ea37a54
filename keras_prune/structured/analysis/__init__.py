"""Which units of a graph can be removed, in groups, with all that each takes along."""
