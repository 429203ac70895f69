"""Files that describe a dataset: what belongs to it, its fingerprint, STAC, Croissant, card.

The modules beside the stages are pure logic.
"""
