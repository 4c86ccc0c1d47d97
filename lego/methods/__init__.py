"""The merge methods, one a file. A file that is put here is found by itself."""
