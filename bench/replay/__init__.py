"""How fast a run is rebuilt from its history: `python -m bench.replay`."""
