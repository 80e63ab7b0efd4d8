"""One file a method: training images from the weights of a classifier, nothing else."""
