"""``python -m fastrnn``, the same as the ``fastrnn`` command."""

import sys

from fastrnn.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
