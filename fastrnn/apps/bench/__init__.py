"""``fastrnn bench``: fastrnn against torch.nn on this machine, checked first and timed second.

Nothing is imported here: the command line loads the parts it needs, and the worker processes theirs.
"""
