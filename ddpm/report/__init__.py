"""The offline report of a sweep or a run."""
