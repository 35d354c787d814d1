"""Which layers to edit: what each branch says alone, and what it is good for."""
