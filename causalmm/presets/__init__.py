"""Published methods by name, each a file that declares its settings. Nothing here loads torch."""
