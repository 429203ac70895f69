"""Jobs that people launch, and sensors that launch runs on their own.

The sensors (`sensors`) look for CDL releases and for years whose tiles or dataset need to be made. What to launch is
decided by plain functions (`releases`, `years`) from what is found and from the cursor of the last tick (`cursors`).
`jobs` has the jobs.
"""
