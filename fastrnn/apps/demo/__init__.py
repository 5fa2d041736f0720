"""``fastrnn demo``: parity, speed, a custom cell and a figure in about a minute."""
