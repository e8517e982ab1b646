"""The data model of claas-operator: resources, conditions, payloads, and the operator-trainer contract.

Everything here is a pydantic model or an enum; the package imports nothing but pydantic and the standard
library, so that operator, trainer and gateway can share it.

- `lora_adapter`, `distill_job`: the two resources of the API group `claas.dev/v1alpha1`
- `conditions`: condition types and every reason they can have
- `training`: training settings and samples, under the names that CLaaS users know
- `sample_documents`: reading samples as tools export them, by `sample_forms`, `sample_turns` and `sample_checks`
- `pod`: the settings of trainer pods
- `contract`: what the operator hands to a trainer pod, and what it gets back
- `schema`, `manifests`: from the models to the CustomResourceDefinitions
"""

GROUP = "claas.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
