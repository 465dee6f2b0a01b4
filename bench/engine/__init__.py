"""How fast workflows run on a real PostgreSQL: `python -m bench.engine`."""
