"""The API group `claas.dev/v1alpha1`: the two resources and what they are made of."""
