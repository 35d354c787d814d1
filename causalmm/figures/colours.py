"""One colour for one thing in every figure, told apart by the colour-blind too."""

FACTUAL = "#0072b2"
BRANCHES = {"vision": "#e69f00", "language": "#009e73", "joint": "#cc79a7"}
ADJUSTED = "#1a1a1a"
CHANGED = "#c8320a"
LESS, MORE = "#2166ac", "#b2182b"
"""Less and more attention than an even share."""
UNSEEN = "#e4e4e4"
FAINT = "#6b6b6b"
"""What is said beside the numbers."""
