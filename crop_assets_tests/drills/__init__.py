"""Bad days, rehearsed: `make drills`. Each drill ends with an undisturbed run's bytes or a clear error."""
