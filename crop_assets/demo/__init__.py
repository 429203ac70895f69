"""The demo: a small synthetic world, and the production graph run on it without the network.

The world is a CDL raster (`landscape`) and all HLS scenes that a dataset needs (`scenes`, `world`), served on loopback
as a STAC catalogue, LP DAAC and an IPFS gateway (`server`, `gateway`). `run` launches the jobs and prints a summary;
`fit` checks that a recipe suits the world.

The stages themselves are those of the production graph; nothing here replaces them.
"""
