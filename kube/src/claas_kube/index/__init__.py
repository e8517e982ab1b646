"""What watches tell of the cluster, kept as small typed values: passes read here and ask the server only for what is
not watched.

`collection` holds the values of one kind, `watch` keeps it as the server has it.
"""
