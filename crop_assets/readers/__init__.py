"""The files that readers of a finished dataset open.

The index of its chips as GeoParquet (`index`), the folders and lists that TerraTorch expects (`folders`),
configurations of TerraTorch and the Clark baseline (`configs`), the check that readers find what the tables say
(`contract`), and copies in other forms (`exports`). `assets` declares the stages.
"""
