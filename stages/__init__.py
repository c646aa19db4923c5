"""DVC stages, one file each: read, call the method, write."""
