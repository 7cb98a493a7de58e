"""Data sets in their published formats, read row by row."""
