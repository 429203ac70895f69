"""From selected scenes to verified band files.

The STAC catalogue with IPFS alternates (`catalogue`) gives the CID of each needed file (`cids`). Files are fetched
from the recipe's sources (`download`), checked (`files`) and counted (`transfer`); `retrievability` finds out which
CIDs are available at all. `assets` declares the stages.

Choosing scenes is up to `crop_assets.scenes`, and the protocols of the sources to `resources`.
"""
