"""The container `.kpz`: a model in few bytes, and back, bit for bit (docs/design/container.md)."""
