"""The command line `deltaspace`."""
