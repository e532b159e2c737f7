"""Files that nobody vouches for, examined without running or trusting what they hold."""
