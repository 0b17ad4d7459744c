"""MuData, on disk and in memory, as stores."""
