"""A model as a graph of calls, read from Keras's own record, and what operations of it mean."""
