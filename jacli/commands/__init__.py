"""One function per command: the only room that introduces the rooms below to one another."""
