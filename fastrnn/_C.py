"""Stands for the compiled module, which depends on the version of torch: this name becomes the one that fits."""

import sys

from fastrnn import _parts

sys.modules[__name__] = _parts.load(__name__)
