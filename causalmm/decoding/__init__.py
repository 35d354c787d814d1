"""A branch plan at work in one call of a patched model."""
