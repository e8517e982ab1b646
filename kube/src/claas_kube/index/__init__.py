"""The index: watched objects as small typed values. Passes read it, and ask the server only for objects that are not
watched.

`collection` holds the values of one kind, `watch` keeps them up to date, `watches` are those of a program.
"""
