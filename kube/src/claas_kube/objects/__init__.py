"""The parts of Kubernetes' own objects that are read here, as typed values."""
