"""One module a benchmark: its questions, its scoring; and their registry."""
