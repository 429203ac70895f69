"""From chip boxes to HLS tiles.

The Sentinel-2 tile grid is read (`grid`), and each chip box gets a tile (`mapping`). `assets` declares the stages.
"""
