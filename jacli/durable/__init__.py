"""Changes of a file that survive a crash: atomic commits by a write-ahead log.  No HDF5."""
