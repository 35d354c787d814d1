"""The commands that make the demonstration models and their benchmarks."""
