"""Side-by-side measurements against what one would use instead. `python -m benchmarks` runs them.

Belongs here: timings, as ratios within one run. Does not: assertions about time.
"""
