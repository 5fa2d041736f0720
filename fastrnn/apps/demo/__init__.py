"""The first minute, ``fastrnn demo``: parity, speed, a custom cell, a picture."""
