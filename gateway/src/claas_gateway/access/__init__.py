"""Who may do what: API keys, what each key sees, and rates.

`guard` admits requests. The hot path asks it itself; around all other routes stands `edge.Edge`, which admits, bounds
bodies and adds headers; `handlers.handle_errors` gives errors their shape, `sign_in.router` lets browsers in, and a
route depends on `dependency.caller_of`.
"""
