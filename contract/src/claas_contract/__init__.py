"""The contract between operator and trainer.

A trainer pod gets one `TrainerInput` as a mounted file and the samples as another; it has no access to the Kubernetes
API. It answers with one `TrainerResult` as its termination message (4 KiB at most) and an exit code, and serves its
`Progress` over HTTP while it runs. Details lie beside the published version.

- `input`, `result`, `progress`: the three documents
- `engine`: what a training engine is asked for, answers and needs
- `outcome`: the trainer's commands, failure reasons and exit codes
- `places`: the files and ports of a trainer pod
"""
