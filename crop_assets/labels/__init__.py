"""From a year's CDL raster to chip boxes.

A CDL release, or a local raster, becomes one checked GeoTIFF (`release`, `cdl`). The classes are counted in every box
of the national chip grid (`cdl`), and the recipe chooses boxes from them (`sampling`, `balance`), inside an area of
interest if there is one (`aoi`). `assets` declares the stages; `plots` draws their charts.

Finding and downloading releases is up to `resources.cdl`, assigning boxes to HLS tiles to `crop_assets.tiles`, and
drawing an area on a map to `crop_assets.aoi_map`.
"""
