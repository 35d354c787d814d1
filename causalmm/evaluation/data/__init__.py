"""The `data` command: what `evaluate` needs, made of hub data sets or of folders, and checked."""
