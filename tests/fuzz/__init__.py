"""Fuzzers: random calls compared with torch.nn, and random calls of the raw operators under guard pages."""
