"""Prometheus metrics: what is measured (`definitions`), what has happened so far (`counts`), what is so at the moment
of a scrape (`state`, with `known_adapters`), and the `endpoint` that serves both.

No label has a job's name, a message, or any text of a user. Labels are enums, and names of namespaces, Deployments
and adapters: as many as there are objects.
"""
