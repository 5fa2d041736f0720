"""``fastrnn demo``: in less than a minute what the library is for. Parity, speed, a custom cell, a picture."""
