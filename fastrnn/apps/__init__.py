"""Applications built on the library: the benchmark, language models, pages and figures, the command line.

The library imports nothing from here; tests/packaging/test_structure.py checks that.
"""
