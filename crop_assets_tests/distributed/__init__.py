"""The graph on many machines, played on one: `make distributed`."""
