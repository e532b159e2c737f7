"""One call on a module and points in memory: its arguments, its run, and the linear map that it gives out."""
