"""One folder for each problem, one file for each method; each has a function `reconstruct`."""
