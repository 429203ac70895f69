"""Runs labels, tiles and dataset of years to their end, without the UI: `crop-assets run` and the demo.

`years` holds the sequence. `here` executes the jobs in this process, `daemon` has the Dagster daemon execute them.
"""
