"""The contract between operator and trainer.

A trainer pod is given one `TrainerInput` as a mounted file and the samples as another; it has no right to ask the
cluster anything. It answers with one `TrainerResult` as its termination message (4 KiB at most) and an exit code,
and while it runs it tells its `Progress` over HTTP. Details lie beside the published version.

- `input`, `result`, `progress`: the three documents
- `outcome`: what a trainer is asked for, why it can fail, its exit codes
- `places`: the files and ports of a trainer pod
"""
