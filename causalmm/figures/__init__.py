"""Figures of what the method does: `scripts/visualize.py`. Nothing else needs this package.

The numbers of a figure (`recording`, `maps`, `pictures`, `vision`, `language`, `tokens`) know
nothing of how they are drawn; only `canvas` and the modules `..._figure` import matplotlib.
"""
