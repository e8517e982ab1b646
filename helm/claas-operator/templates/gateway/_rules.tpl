{{/* What the gateway needs in each namespace that it looks after. */}}
{{- define "claas-operator.gateway.rules" -}}
- apiGroups: [claas.dev]
  resources: [loraadapters]
  verbs: [get, list, watch]
# A job for each batch of feedback.
- apiGroups: [claas.dev]
  resources: [distilljobs]
  verbs: [get, list, watch, create]
# The vLLM Deployments that adapters name, and their pods.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# Which pods a step may put to sleep.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch]
# API keys; control token, API key, CA and Modal's proxy token of vLLM; the samples of each batch, until its job is
# accounted for. Never list or watch.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
{{- end -}}

{{/* What it needs beside that where /v1/lora/init makes adapters. */}}
{{- define "claas-operator.gateway.adapterRules" -}}
- apiGroups: [claas.dev]
  resources: [loraadapters]
  verbs: [create, delete]
{{- end -}}
