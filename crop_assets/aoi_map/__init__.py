"""The page of `crop-assets aoi`, on which a user draws an area of interest.

`server` serves the page (`page/`) on loopback and saves what is drawn; `drawing` validates its GeoJSON, `area` counts
the chip boxes and tiles inside, and `picture` renders chip boxes as map tiles. The counts are the same as in the graph,
but fast enough to follow the mouse.

The rules that choose boxes are in `crop_assets.labels` and `crop_assets.tiles`; access control is in
`crop_assets.local_server`.
"""
