"""``fastrnn bench``: comparison of fastrnn with torch.nn on this machine, correctness first and then speed.

Nothing is imported here: the command line and the worker processes each load only the modules they need.
"""
