"""Prometheus metrics: their `definitions`, counters and histograms (`counts`), gauges computed at each scrape
(`state`, with `known_adapters`), and the `endpoint` that serves them.

No label has a job's name, a message, or any text of a user. Labels are enums, and names of namespaces, Deployments
and adapters: as many as there are objects.
"""
