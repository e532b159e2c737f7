"""Every option of a run, parsed and checked.  No torch."""
