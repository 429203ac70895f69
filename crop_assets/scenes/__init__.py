"""From tiles to their three scenes.

The archive is asked for all scenes of a tile's season (`archive`), their items and documents become rows (`granules`),
and three are selected (`selection`) and charted (`plots`). `assets` declares the stages.
"""
