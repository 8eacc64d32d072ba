"""How fast the server is, alone and with company: `python -m experiments.serve.speed`."""
