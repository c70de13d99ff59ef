"""Independent work on many processes, of this machine or of a Dask scheduler."""
