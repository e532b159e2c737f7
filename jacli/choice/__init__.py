"""Which method, sizes and cut a run takes, by measurement on its first batch."""
