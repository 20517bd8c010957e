"""The trace: one HDF5 file that holds everything measured in a run."""
