"""From a problem and its plans to batches of results, checked against plain passes as they are computed."""
