"""The parts of `tools/modal-live-check`."""
