"""The Modal engine: the local engine's step on a GPU of the Modal platform. `app` and `container` run there, the rest
in the trainer's pod."""
