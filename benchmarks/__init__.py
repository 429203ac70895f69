"""Measurements side by side with what one would use instead; `python -m benchmarks` runs them all.

Belongs here: making inputs, contenders, and telling ratios. Does not: anything that the product needs.
"""
