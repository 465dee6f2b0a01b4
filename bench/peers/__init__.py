"""The other systems, each in a process of its own with its own packages (`bench/.venv`).

`Peer` (in `bench.peers.link`) starts one and talks to it in lines of JSON. Modules named after a
system run on the other side: they import that system and nothing of ours.
"""
