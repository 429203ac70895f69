"""Distributes a batch of work over threads."""

from resources.parallel import in_parallel as in_parallel
