"""One function a command: the library's front door, and the only place where the rooms meet."""
