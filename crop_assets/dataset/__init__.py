"""From the kept chips of all tiles to a training set.

Splits (`splits`), band statistics (`statistics`), class weights (`weights`), the ledger of rejected chip boxes
(`funnel`), charts (`plots`), and publishing to IPFS (`publish`). `assets` declares the stages.

Judging the quality of a chip is up to `crop_assets.chips`.
"""
