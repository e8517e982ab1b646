"""The public API of claas-operator: resources, conditions and payloads.

Everything here is a pydantic model or an enum; the package imports nothing but pydantic and the standard
library, so that operator, trainer and gateway can share it.

- `v1alpha1`: the API group `claas.dev/v1alpha1`, with the training settings and samples that CLaaS users know
- `samples`: reading samples as tools export them
"""

GROUP = "claas.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
