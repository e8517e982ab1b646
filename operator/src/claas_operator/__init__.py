"""The operator: wakes on events, observes the world, plans, applies the plan, tells it in status.

`handlers` (the index wakes a key) -> `reconcile` (one key, one pass) -> `observe` (the world as one frozen value) ->
`plan_adapter`, `plan_job`, `plan_lease` (pure) -> `actions` (what a plan is made of) -> `apply` (the only writer)
with `manifests` (objects as data) and `serving` (vLLM over HTTP) -> `status_writer`. For jobs status is written
before the actions are carried out.
"""
