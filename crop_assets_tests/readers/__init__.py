"""Real readers of a dataset: `make readers` loads the demo's dataset with TerraTorch, by the rules of Clark's baseline
and with geopandas, trains on it, and writes what it found to docs/readers.md.

It runs in an environment of its own, because TerraTorch and PyTorch need some 7 GB, so pytest has no part in it.
"""
