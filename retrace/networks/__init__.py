"""One file for each architecture; each has a class `Network`."""
