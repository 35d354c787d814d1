"""Faster ways to compute a formula on some device."""
