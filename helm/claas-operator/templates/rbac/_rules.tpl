{{/* What the operator needs in each namespace that it looks after. */}}
{{- define "claas-operator.rules" -}}
# Its own resources. It writes their status, and nothing else.
- apiGroups: [claas.dev]
  resources: [loraadapters]
  verbs: [get, list, watch]
# Finished jobs are deleted after ttlSecondsAfterFinished.
- apiGroups: [claas.dev]
  resources: [distilljobs]
  verbs: [get, list, watch, delete]
- apiGroups: [claas.dev]
  resources: [loraadapters/status, distilljobs/status]
  verbs: [patch]
# Owner references with blockOwnerDeletion.
- apiGroups: [claas.dev]
  resources: [loraadapters/finalizers, distilljobs/finalizers]
  verbs: [update]
# Trainer Jobs and their pods, and the pods of vLLM. A trainer that hangs in a pause is deleted with its pod; a Job that
# is accounted for gets a time to live.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# The vLLM Deployments and the volumes that adapters name.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
{{- if .Values.rbac.inferenceProxies }}
# The Deployment and the Service of each inference proxy (`serving.tinkerProxy`).
- apiGroups: [apps]
  resources: [deployments]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
{{- end }}
# The companion's ConfigMap; a job's ConfigMap of samples, whose form is checked; the CA of a vLLM with TLS.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
# The control token, the API key and the CA of vLLM; the key of an engine's service, if only to see that it is there;
# the control token of an inference proxy; a job's Secret of samples, whose form is checked; the input of each attempt.
# Never list or watch.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
# A Lease for each vLLM Deployment or adapter (one step at a time), and one for each served name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch, create, update, delete]
# Its own Events, and those that say why a trainer's pod does not start.
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end -}}

{{/* What the operator needs in its own namespace: the Lease that keeps a second operator passive. */}}
{{- define "claas-operator.leaderRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [claas-operator]
  verbs: [get, update, patch]
{{- end -}}
