{{- define "claas-operator.gateway.fullname" -}}
{{- printf "%s-gateway" (include "claas-operator.fullname" . | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{- define "claas-operator.gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "claas-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "claas-operator.gateway.labels" -}}
{{- $labels := include "claas-operator.labels" . | fromYaml -}}
{{- mergeOverwrite $labels (include "claas-operator.gateway.selectorLabels" . | fromYaml) | toYaml -}}
{{- end -}}

{{- define "claas-operator.gateway.podLabels" -}}
{{- $labels := include "claas-operator.gateway.labels" . | fromYaml -}}
{{- mergeOverwrite (deepCopy .Values.gateway.podLabels) $labels | toYaml -}}
{{- end -}}

{{- define "claas-operator.gateway.serviceAccountName" -}}
{{- if .Values.gateway.serviceAccount.create -}}
{{- default (include "claas-operator.gateway.fullname" .) .Values.gateway.serviceAccount.name -}}
{{- else -}}
{{- required "gateway.serviceAccount.name: name the ServiceAccount to use, since gateway.serviceAccount.create is false" .Values.gateway.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* `required` or `off`. YAML reads a bare off as false. */}}
{{- define "claas-operator.gateway.keys" -}}
{{- if eq (toString .Values.gateway.keys) "false" -}}
off
{{- else -}}
{{- .Values.gateway.keys -}}
{{- end -}}
{{- end -}}

{{/* Not empty where the database is a PostgreSQL, and so several replicas can share it. */}}
{{- define "claas-operator.gateway.postgresql" -}}
{{- .Values.gateway.database.urlSecretName -}}
{{- end -}}

{{/* Refuses combinations that can't work, with what to do. */}}
{{- define "claas-operator.gateway.check" -}}
{{- $gateway := .Values.gateway -}}
{{- if not (include "claas-operator.gateway.keys" .) -}}
{{- fail "gateway.keys: choose whether clients need an API key. `required`: they do, and the keys lie in Secrets (docs/gateway.md). `off`: everybody who reaches the gateway sees and changes everything" -}}
{{- end -}}
{{- if not (include "claas-operator.gateway.postgresql" .) -}}
{{- if $gateway.autoscaling.enabled -}}
{{- fail "gateway.autoscaling.enabled: SQLite serves one replica. Give a PostgreSQL database (gateway.database.urlSecretName), or turn autoscaling off" -}}
{{- end -}}
{{- if gt (int $gateway.replicas) 1 -}}
{{- fail (printf "gateway.replicas is %d: SQLite serves one replica. Give a PostgreSQL database (gateway.database.urlSecretName), or set gateway.replicas to 1" (int $gateway.replicas)) -}}
{{- end -}}
{{- end -}}
{{- if and $gateway.autoscaling.enabled (gt (int $gateway.autoscaling.minReplicas) (int $gateway.autoscaling.maxReplicas)) -}}
{{- fail "gateway.autoscaling.minReplicas is above gateway.autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and $gateway.autoscaling.enabled (not (dig "requests" "cpu" "" $gateway.resources)) -}}
{{- fail "gateway.autoscaling.enabled: the load is measured as a share of gateway.resources.requests.cpu, which is not set" -}}
{{- end -}}
{{- if and $gateway.ingress.enabled (not $gateway.ingress.hosts) -}}
{{- fail "gateway.ingress.hosts: name the hosts, since gateway.ingress.enabled is true" -}}
{{- end -}}
{{- if and $gateway.httpRoute.enabled (not $gateway.httpRoute.parentRefs) -}}
{{- fail "gateway.httpRoute.parentRefs: name the Gateway that the route belongs to, since gateway.httpRoute.enabled is true" -}}
{{- end -}}
{{- with $gateway.adapterTemplate -}}
{{- if not (and .namespace .spec) -}}
{{- fail "gateway.adapterTemplate: it needs `namespace`, where the adapters are made, and `spec`, what they have in common" -}}
{{- end -}}
{{- if and $.Values.watchNamespaces (not (has .namespace $.Values.watchNamespaces)) -}}
{{- fail (printf "gateway.adapterTemplate.namespace is %s, which watchNamespaces does not list: its adapters would never be served" .namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
