"""The trace: an HDF5 file that holds everything measured in one run."""
