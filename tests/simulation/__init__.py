"""A node played in one process: Job controller, kubelet, trainers and vLLM pods, beside a real API server.

Real are the API server, the operator's process, the companion, and every HTTP request between them. Played are
what a light cluster lacks: batch Jobs become pods here, a pod's trainer is a coroutine that follows a script, and
vLLM is a small ASGI app that knows vLLM's routes.
"""
