"""Measurements side by side with what one would use instead; `python -m benchmarks` runs them all."""
