"""AnnData in files: the elements of h5ad and Zarr, and how their chunks are read."""
