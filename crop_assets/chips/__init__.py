"""From band files to chips.

Fmask alone decides first which chips of a tile can still be kept (`fmask`, `quality`). The bands are reprojected
to the CDL grid (`reproject`, `warp`), and each chip is cut from them and from the CDL raster (`clip`) and filtered
(`quality`). `assets` declares the stages; `plots` draws previews, and `rasters` reads and encodes the blocks of files.

Downloading band files is up to `crop_assets.bands`, and splits and statistics to `crop_assets.dataset`.
"""
