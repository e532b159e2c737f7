"""What was decided, and which candidates to measure: integers only, no torch."""
