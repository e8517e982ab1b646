{{- define "claas-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "claas-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "claas-operator.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "claas-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "claas-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Labels of every object; the selector's come last, so that commonLabels can't take the pod from its Deployment. */}}
{{- define "claas-operator.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "claas" -}}
{{- $selector := include "claas-operator.selectorLabels" . | fromYaml -}}
{{- mergeOverwrite (deepCopy .Values.commonLabels) $own $selector | toYaml -}}
{{- end -}}

{{- define "claas-operator.podLabels" -}}
{{- $labels := include "claas-operator.labels" . | fromYaml -}}
{{- mergeOverwrite (deepCopy .Values.podLabels) $labels | toYaml -}}
{{- end -}}

{{- define "claas-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "claas-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount to use, since serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* An image reference: `dict "image" <image values> "chart" .Chart`. */}}
{{- define "claas-operator.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}
